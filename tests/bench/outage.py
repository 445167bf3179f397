"""Measures what an outage of a service costs a queue: `PYTHONPATH=tests python -P tests/bench/outage.py --help`.

Jobs wait in the queue while the service answers 503 for a while; the sensor runs once a minute, as by its timer. With
--flap the service comes and goes instead. The rows are those of docs/benchmarks.md, "An outage".
"""

import argparse
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from bench.rpcs import rpcs
from slurm.cluster import ClusterOptions, sweep
from slurm.polling import wait_for
from slurm.site import Site, SiteOptions

QUICK = "#!/bin/sh\necho ran\n"
DOWN = {"call": "iam_token", "kind": "error", "status": 503}
SENSOR_S = 60.0
LOOK_S = 0.2

# RPCs without any job, and this program's own questions: sdiag, nodes, squeue.
_NOISE = re.compile(r"NODE_REGISTRATION|PING|STATS_INFO|NODE_INFO|PARTITION_INFO|REQUEST_JOB_INFO$|SUBMIT_BATCH_JOB")
# What slurmctld gets for each start of a job, whatever the hooks are.
_OF_SLURM = re.compile(r"COMPLETE_PROLOG|EPILOG_COMPLETE|COMPLETE_BATCH_SCRIPT")


@dataclass
class Watch:
    """What was seen while the jobs waited and ran.

    Args:
        site: the site.
        busy_s: for how long nodes were allocated or completing, summed up, in seconds.
        at: RPCs by type, at the end of each minute.
    """

    site: Site
    busy_s: float = 0.0
    at: list[dict[str, int]] = field(default_factory=list)
    _is_over: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Look at the nodes and run the sensor until the block ends."""
        threads = [threading.Thread(target=work) for work in (self._look, self._sense)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            for thread in threads:
                thread.join()

    def _look(self) -> None:
        seen_s = time.monotonic()
        while not self._is_over.wait(LOOK_S):
            shown = self.site.cluster.try_slurm("scontrol", "show", "node", "--oneliner") or ""
            now_s = time.monotonic()
            busy = sum(
                "CPUAlloc=0 " not in line or "COMPLETING" in line for line in shown.splitlines() if "NodeName=" in line
            )
            self.busy_s += busy * (now_s - seen_s)
            seen_s = now_s

    def _sense(self) -> None:
        while not self._is_over.wait(SENSOR_S):
            self.site.command("sensor")
            self.at.append(rpcs(self.site.cluster))


def main() -> int:
    """Run one measurement and print its row.

    Returns:
        0, or 1 if a job was lost.
    """
    options = _options()
    sweep()
    cluster = ClusterOptions(nodes=2)
    licenses = {} if options.no_licenses else {"qpu_ibm_demo": 1}
    with Site(SiteOptions(cluster=cluster, licenses=licenses, plugstack_args=tuple(options.arg))) as site:
        return _flap(site, options) if options.flap else _outage(site, options)


def _outage(site: Site, options: argparse.Namespace) -> int:
    watch = Watch(site)
    before = rpcs(site.cluster)
    began_s = time.monotonic()
    with watch.running():
        with site.emulator.fault(**DOWN):
            jobs = [site.cluster.sbatch(QUICK, "--qpu=ibm_demo", "--time=5") for _ in range(options.jobs)]
            time.sleep(max(0.0, options.seconds - (time.monotonic() - began_s)))
            burnt_s, during = watch.busy_s, rpcs(site.cluster)
        wait_for(lambda: not _left(site), "all jobs to end", options.limit)
    ended = Counter(info.state for job_id in jobs for info in site.cluster.jobs(job_id))
    starts = Counter(re.findall(r"not-acquired: job=(\d+)", site.hooks_log()))
    most = max(starts.values(), default=0)
    print(f"jobs: {dict(ended)}; failed starts: {starts.total()}, at most {most} per job")
    print(f"node-seconds during the outage: {burnt_s:.1f}; all had ended after {time.monotonic() - began_s:.0f} s")
    _print_rpcs("RPCs during the outage", before, during)
    return 0 if ended.total() == options.jobs else 1


def _flap(site: Site, options: argparse.Namespace) -> int:
    watch = Watch(site)
    watch.at.append(rpcs(site.cluster))
    end_s = time.monotonic() + options.seconds
    with watch.running():
        for _ in range(options.jobs):
            site.cluster.sbatch("#!/bin/sh\nsleep 10\n", "--qpu=ibm_demo", "--time=5")
        while time.monotonic() < end_s:
            with site.emulator.fault(**DOWN):
                time.sleep(options.flap)
            time.sleep(options.flap)
    states = Counter(site.cluster.slurm("squeue", "--noheader", "--states=all", "--Format=State").split())
    print(f"jobs: {dict(states)}; failed starts: {site.hooks_log().count('not-acquired: ')}")
    for minute, (earlier, later) in enumerate(zip(watch.at, watch.at[1:], strict=False), start=1):
        _print_rpcs(f"minute {minute}", earlier, later)
    return 0


def _left(site: Site) -> bool:
    time.sleep(1.0)
    return bool(site.cluster.slurm("squeue", "--noheader", "--format=%i").strip())


def _print_rpcs(what: str, before: dict[str, int], after: dict[str, int]) -> None:
    grown = Counter({name: count - before.get(name, 0) for name, count in after.items() if not _NOISE.search(name)})
    of_slurm = sum(count for name, count in grown.items() if _OF_SLURM.search(name))
    ours = {name: count for name, count in grown.items() if count and not _OF_SLURM.search(name)}
    print(f"{what}: {of_slurm} of Slurm's own starts and ends, {sum(ours.values())} others: {ours}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=100, help="how many wait")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the service is down, or comes and goes")
    parser.add_argument("--flap", type=float, default=0.0, help="it comes and goes: so many seconds down, as many up")
    parser.add_argument("--limit", type=float, default=1200.0, help="when all jobs have to have ended, in seconds")
    parser.add_argument("--no-licenses", action="store_true", help="a site where nothing counts QPUs")
    parser.add_argument("--arg", action="append", default=[], help="an option of the plugin's line")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
