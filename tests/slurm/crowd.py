"""A crowd: many QPU jobs that start on one node at once. Counts what they cost: acquisitions, processes, seconds.

`make crowd CROWD=200`, on a node that claims to have room for all of them, whatever this machine has. Exit status 0:
each job had one acquisition, none was started again, and at most 16 processes of ours per processor were at work.
"""

import argparse
import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from slurm.cluster import Cluster, ClusterOptions, sweep
from slurm.polling import DeadlineError, wait_for
from slurm.site import BIN, Site, SiteOptions

PROCESSES_PER_CPU = 16
SAMPLE_S = 0.03
END_DEADLINE_S = 100.0
STARTED_AGAIN = re.compile(r"Requeu|missing from batch node|Killing non-startable", re.IGNORECASE)
# Each script appends one line, which no other can tear.
SCRIPT = "#!/bin/sh\n#SBATCH --output=/dev/null\ndate +%s.%N >>{starts}\n"


@dataclass(slots=True)
class Processes:
    """The largest numbers of the hooks' processes at any moment: of all, of those at work, and of those that wait."""

    all: int = 0
    at_work: int = 0
    waiting: int = 0
    pythons: int = 0
    by_hook: dict[str, int] = field(default_factory=dict)

    def note(self, shells: int, flocks: int, pythons: dict[str, int]) -> None:
        """Note how many there are now."""
        pythons_now = sum(pythons.values())
        # A Prolog that waits is its shell and a flock.
        now = (shells + flocks + pythons_now, shells - flocks + pythons_now, flocks, pythons_now)
        self.all, self.at_work, self.waiting, self.pythons = map(
            max, now, (self.all, self.at_work, self.waiting, self.pythons)
        )
        for hook, count in pythons.items():
            self.by_hook[hook] = max(self.by_hook.get(hook, 0), count)


@contextmanager
def watched(cluster: Cluster) -> Iterator[Processes]:
    """Watch the processes of Prologs and Epilogs until the block ends."""
    most = Processes()
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(SAMPLE_S):
            most.note(*_hooks(cluster))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        is_over.set()
        thread.join()


def _hooks(cluster: Cluster) -> tuple[int, int, dict[str, int]]:
    """Return how many shells, flocks and Pythons the hooks of this installation are now; it has one cluster."""
    shells = flocks = 0
    pythons = {"prolog": 0, "epilog": 0}
    lanes = f"/run/qrmi-slurm/throwaway-{cluster.token}/"
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
            if words[0] == b"/usr/bin/flock":
                flocks += str(Path(f"/proc/{name}/fd/9").readlink()).startswith(lanes)
                continue
        except OSError:
            continue  # it has ended meanwhile
        script = next((word for word in words if word.startswith(_HOOKS)), b"").decode()
        if not script:
            continue
        if words[0].endswith(b"python3"):
            pythons[script.rpartition("-")[2]] += 1
        else:
            shells += 1
    return shells, flocks, pythons


_HOOKS = f"{BIN}/qrmi-slurm-".encode()


@dataclass(frozen=True, slots=True)
class Crowd:
    """What a crowd of jobs cost.

    Args:
        jobs: how many there were.
        acquisitions: how many sessions the service has opened.
        started_again: what slurmctld has logged about starts that it repeated, or gave up.
        completed: how many jobs have completed.
        processes: the largest numbers of the hooks' processes.
        first_s: from submission to the first script, in seconds.
        last_s: from submission to the last script.
    """

    jobs: int
    acquisitions: int
    started_again: tuple[str, ...]
    completed: int
    processes: Processes
    first_s: float
    last_s: float

    def __str__(self) -> str:
        cpus = len(os.sched_getaffinity(0))
        rows = {
            "jobs": f"{self.jobs}, of which {self.completed} completed",
            "acquisitions": f"{self.acquisitions}",
            "started again": f"{len(self.started_again)}",
            "processes": f"{self.processes.all} at once, {self.processes.all / cpus:.1f} per processor: "
            f"{self.processes.at_work} at work, {self.processes.waiting} waiting Prologs",
            "pythons": f"{self.processes.pythons} at once ({self.processes.by_hook})",
            "scripts": f"the first after {self.first_s:.1f} s, the last after {self.last_s:.1f} s",
        }
        return "".join(f"  {name:14}{value}\n" for name, value in rows.items())


def run(site: Site, count: int, deadline_s: float = END_DEADLINE_S) -> Crowd:
    """Start so many jobs with one QPU each at once, as the tasks of an array, and wait for their end.

    Args:
        site: with one node that has room for all of them.
        count: how many.
        deadline_s: how long to wait for the last, in seconds.
    """
    cluster = site.cluster
    starts = cluster.user.home / "starts"
    starts.unlink(missing_ok=True)
    starts.touch()
    os.chown(starts, cluster.user.uid, cluster.user.gid)
    opened, logged = len(site.emulator.sessions()), len(_slurmctld_log(cluster))
    with watched(cluster) as processes:
        began_s = time.time()
        script = SCRIPT.format(starts=starts)
        array = cluster.sbatch(script, "--qpu=ibm_demo", "--time=5", f"--array=1-{count}")
        with contextlib.suppress(DeadlineError):  # what Slurm starts again waits for two minutes; the figures say so
            wait_for(lambda: not cluster.slurm("squeue", "--noheader", f"--jobs={array}").strip(), "them", deadline_s)
            cluster.wait_nodes_idle(60)
    times_s = sorted(map(float, starts.read_text().split()))
    states = cluster.slurm("squeue", "--noheader", "--array", "--states=all", f"--jobs={array}", "--format=%T").split()
    return Crowd(
        count,
        len(site.emulator.sessions()) - opened,
        tuple(line for line in _slurmctld_log(cluster)[logged:] if STARTED_AGAIN.search(line)),
        states.count("COMPLETED"),
        processes,
        times_s[0] - began_s if times_s else float("inf"),
        times_s[-1] - began_s if times_s else float("inf"),
    )


def _slurmctld_log(cluster: Cluster) -> list[str]:
    return cluster.log("slurmctld").read_text(errors="replace").splitlines()


def options(count: int) -> SiteOptions:
    """Return a site whose node has room for so many jobs."""
    return SiteOptions(cluster=ClusterOptions(nodes=1, users=2, cpus_per_node=count), hooks_log=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it and print its figures.

    Returns:
        The exit status: 0, or 1 if a bound was not kept.
    """
    parser = argparse.ArgumentParser(prog="slurm.crowd", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--keep-log", type=Path, metavar="FILE", help="where to put the logs of slurmctld and slurmd")
    chosen = parser.parse_args(arguments)
    sweep()
    is_kept = True
    with Site(options(chosen.jobs)) as site:
        for _ in range(chosen.rounds):
            site.cluster.slurm("scancel", f"--user={site.cluster.user.name}")
            site.cluster.revive_nodes()
            crowd = run(site, chosen.jobs)
            print(crowd, flush=True)
            if chosen.keep_log is not None:
                chosen.keep_log.write_text(
                    "\n".join(_slurmctld_log(site.cluster)) + "\n" + site.cluster.slurmd_log("n1")
                )
            for line in crowd.started_again[:3]:
                print(f"  slurmctld     {line}")
            most = PROCESSES_PER_CPU * len(os.sched_getaffinity(0))
            is_kept &= crowd.acquisitions == crowd.completed == chosen.jobs and not crowd.started_again
            is_kept &= crowd.processes.at_work <= most
    print("  passed" if is_kept else "  failed")
    return 0 if is_kept else 1


if __name__ == "__main__":
    sys.exit(main())
