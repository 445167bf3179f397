"""The soak: many short QPU jobs while the service fails and processes die; in the end nothing may be left open.

`make soak JOBS=300`. Exit status 0: no session leaked, no node drained, every job ended.
"""

import argparse
import contextlib
import os
import random
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from slurm.cluster import ClusterOptions, sweep
from slurm.polling import DeadlineError, wait_for
from slurm.processes import living
from slurm.site import Site, SiteOptions

FAULT_SHARE = 0.1  # of the acquire and release calls; half of the faults before, half after the call takes effect
CALLS = ("iam_token", "create_session", "list_jobs", "update_session")
# A service that carried out a request does not deny it.
BEFORE = ({"kind": "error", "status": 500}, {"kind": "error", "status": 429}, {"kind": "reset"}, {"kind": "hang"})
AFTER = ({"kind": "error", "status": 500}, {"kind": "garbage"}, {"kind": "reset"}, {"kind": "hang"})
KILLS_A_SECOND = 1.0
JOBS_AT_ONCE = 16
SESSION_TTL_S = 90  # far longer than a job takes: sessions that expire during the soak are counted separately
LAST_JOB_DEADLINE_S = 120.0
RECOVERY_DEADLINE_S = 240.0
SCRIPT = "#!/bin/sh\nsleep 0.$(($SLURM_JOB_ID % 10))\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it and print its figures.

    Returns:
        The exit status: 0, or 1 if something leaked, drained or did not end.
    """
    parser = argparse.ArgumentParser(prog="slurm.soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    chosen = parser.parse_args(arguments)
    sweep()
    options = SiteOptions(
        # Half of the jobs wait for a slot. A drained node has to show, so nothing resumes one.
        cluster=ClusterOptions(nodes=2, cpus_per_node=JOBS_AT_ONCE // 2),
        backends={"ibm_demo": "FakeSherbrooke", "ibm_second": "FakeSherbrooke"},
        plugstack_args=("--acquire-timeout=2", "--release-timeout=2"),
    )
    with Site(options) as site:
        return _soak(site, chosen.jobs, random.Random(chosen.seed), chosen.seed)  # noqa: S311 no secret


def _soak(site: Site, count: int, chance: random.Random, seed: int) -> int:
    resources = [site.emulator.resource(name) for name in site.options.backends]
    for resource in resources:
        resource["environment"]["QRMI_IBM_QCS_SESSION_MAX_TTL"] = str(SESSION_TTL_S)
    site.config(resources)
    began_s = time.monotonic()
    killed: dict[str, int] = {}
    for call in CALLS:
        for when, kinds in (("before", BEFORE), ("after", AFTER)):
            for fault in kinds:
                share = FAULT_SHARE / len(kinds) / 2
                site.emulator.control("POST", "faults", {"call": call, "probability": share, "when": when, **fault})
    recover = site.popen_command("recover", "--now")
    waiting = [chance.choice(["ibm_demo", "ibm_second", "ibm_demo,ibm_second"]) for _ in range(count)]
    job_ids: list[int] = []
    ended = 0
    next_kill_s = time.monotonic()
    deadline_s = time.monotonic() + count + LAST_JOB_DEADLINE_S
    while ended < count and time.monotonic() < deadline_s:
        active = site.cluster.slurm("squeue", "--noheader", "--format=%A").split()
        ended = len(job_ids) - len(active)
        for _ in range(min(JOBS_AT_ONCE * 2 - len(active), len(waiting))):
            job_ids.append(site.cluster.sbatch(SCRIPT, f"--qpu={waiting.pop()}", "--time=1", "--no-requeue"))
        if recover.poll() is not None:  # as the timer does, but more often
            recover = site.popen_command("recover", "--now")
        if time.monotonic() >= next_kill_s:
            next_kill_s += chance.expovariate(KILLS_A_SECOND)
            victim = _kill_one(site, chance)
            killed[victim] = killed.get(victim, 0) + 1
        if ended == count:
            break
        time.sleep(0.1)
    recover.communicate(timeout=RECOVERY_DEADLINE_S)
    _end_orphans(site)
    site.emulator.clear_faults()
    _recover(site)
    return _report(site, job_ids, count, killed, time.monotonic() - began_s, seed)


def _kill_one(site: Site, chance: random.Random) -> str:
    """Kill one of the running processes, and return its kind."""
    kinds = {
        "prolog": site.hook_pids("prolog"),
        "prolog's call": site.call_pids("prolog"),
        "epilog": site.hook_pids("epilog"),
        "epilog's call": site.call_pids("epilog"),
        "slurmstepd": _slurmstepds(site),
    }
    there = [(kind, pid) for kind, pids in kinds.items() for pid in pids]
    if not there:
        return "nobody"
    kind = chance.choice(sorted({kind for kind, _ in there}))
    with contextlib.suppress(ProcessLookupError):
        os.kill(chance.choice([pid for of, pid in there if of == kind]), signal.SIGKILL)
    return kind


def _slurmstepds(site: Site) -> list[int]:
    found = []
    for process in living():
        try:
            title = Path(f"/proc/{process.pid}/cmdline").read_bytes()
            links = [str(link.readlink()) for link in Path(f"/proc/{process.pid}/fd").iterdir()]
        except OSError:
            continue
        if title.startswith(b"slurmstepd: [") and any(str(site.cluster.folder) in link for link in links):
            found.append(process.pid)
    return found


def _end_orphans(site: Site) -> None:
    """End the jobs whose slurmstepd was killed; Slurm would not notice before their time limit."""
    site.cluster.slurm("scancel", f"--user={site.cluster.user.name}")
    with contextlib.suppress(DeadlineError):
        site.cluster.wait_nodes_idle(60)


def _recover(site: Site) -> None:
    """Recover until there are no records; an acquire without a token is waited for until it expires."""

    def nothing_left() -> bool:
        site.recover("--now")
        return not list(site.state_dir.glob("*/[0-9]*"))

    with contextlib.suppress(DeadlineError):
        wait_for(nothing_left, "the records to go", RECOVERY_DEADLINE_S)


def _report(
    site: Site,
    job_ids: Sequence[int],
    count: int,
    killed: dict[str, int],
    seconds: float,
    seed: int,
) -> int:
    log = site.hooks_log()
    states: dict[str, int] = {}
    for job_id in job_ids:
        state = site.cluster.job(job_id).state
        states[state] = states.get(state, 0) + 1
    sessions = site.emulator.sessions()
    by_itself = sum(session["by"] == "ttl" for session in sessions)
    drained = [node for node, state in site.cluster.node_states().items() if not re.match("idle|planned", state)]
    unended = sum(number for state, number in states.items() if state in ("PENDING", "RUNNING", "COMPLETING"))
    leaked = len(site.emulator.open_sessions())
    records = len(list(site.state_dir.glob("*/[0-9]*")))
    faults = sum(bool(request["fault"]) for request in site.emulator.requests())
    by_hooks = len(re.findall(r": released: ", log))
    closed = sum(session["by"] in ("update_session", "close_session") for session in sessions)
    figures = {
        "jobs": f"{len(job_ids)}: {_counted(states)}",
        "acquisitions": f"{len(sessions)} sessions opened, {len(re.findall(r': acquired: ', log))} told to Prolog",
        "releases": f"{closed} sessions closed: {by_hooks} by Epilog or Prolog, the others by recover",
        "retries": f"{len(re.findall(r': not-released: ', log))} releases failed at first",
        "by itself": f"{by_itself} sessions ended with their time to live: nobody was told their ids",
        "faults": f"{faults} of {len(site.emulator.requests())} requests",
        "kills": _counted(killed),
        "leaked": str(leaked),
        "records": f"{records} left",
        "drained": f"{len(drained)} {' '.join(drained)}".strip(),
        "took": f"{seconds:.0f} s, seed {seed}",
    }
    for name, figure in figures.items():
        print(f"  {name:<13} {figure}", flush=True)
    failed = leaked or records or drained or unended or len(job_ids) != count
    print("  failed" if failed else "  passed")
    return 1 if failed else 0


def _counted(numbers: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in sorted(numbers.items()) if name != "nobody")


if __name__ == "__main__":
    sys.exit(main())
