"""`make demo`: run a Bell pair on an emulated QPU in a private Slurm cluster, from --qpu to the release.

It does not touch the machine's own Slurm, and removes everything at the end; KEEP=1 leaves the cluster up.
"""

import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from slurm.cluster import TERMINAL_STATES, ClusterError, sweep
from slurm.polling import INTERVAL_S, DeadlineError
from slurm.site import Site, SiteOptions

EXAMPLES = Path(__file__).resolve().parent
QPU = "ibm_demo"
JOB_DEADLINE_S = 120.0
RELEASE_DEADLINE_S = 20.0

# FakeSherbrooke misreads a good qubit about once in a hundred times, so a Bell pair stays far below this.
WRONG_AT_MOST = 0.15
EACH_AT_LEAST = 0.35

BAR_WIDTH = 40
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ERROR_STATUS = 1
INTERRUPTED_STATUS = 130


class DemoError(Exception):
    """The demo did not show what it should; the message says why."""


def main() -> int:
    """Run the demo and stop everything afterwards, whatever happens.

    Returns:
        The exit status: 0 only if the job completed, measured a Bell pair and left no session open.
    """
    site = Site(SiteOptions())
    up = False
    for number in STOP_SIGNALS:
        signal.signal(number, interrupt)
    try:
        try:
            status = run(site)
            up = os.environ.get("KEEP", "") not in ("", "0") and bool(site.cluster.users)
        finally:
            ignore_signals()
    except KeyboardInterrupt:
        print("\ninterrupted: stopping everything", file=sys.stderr, flush=True)
        status = INTERRUPTED_STATUS
    except BrokenPipeError:  # `make demo | head`: the reader has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = ERROR_STATUS
    finally:
        if not up:
            site.stop()
    if up:
        leave_up(site)
    return status


def run(site: Site) -> int:
    """Run the demo, report any failure, and return the exit status."""
    began = time.monotonic()
    try:
        for folder in sweep():
            say("tidy", f"removed {folder}, left by a run that was killed")
        start(site)
        show_job(site)
    except (DemoError, ClusterError, DeadlineError) as error:
        say("FAILED", str(error))
        say("next", "`make demo KEEP=1` leaves everything up, with all logs")
        return ERROR_STATUS
    say("passed", f"in {time.monotonic() - began:.0f} s")
    return 0


def start(site: Site) -> None:
    """Start the cluster and the emulator, and print what runs."""
    began = time.monotonic()
    site.start_cluster()
    slurm = site.cluster.slurm("sinfo", "--version").split()[-1]
    nodes = f"{len(site.cluster.nodes)} nodes, all of it in {site.cluster.folder}"
    say("cluster", f"Slurm {slurm}, {nodes} ({time.monotonic() - began:.1f} s)")
    site.start_emulator()
    say("emulator", f"{QPU} is {site.options.backends[QPU]} with its noise, behind {site.emulator.url}")
    say("hooks", f"qrmi-slurm {version('qrmi-slurm')} as Prolog, TaskProlog and Epilog; QRMI {version('qrmi')}")


def show_job(site: Site) -> None:
    """Submit the example as a user would, show what it does, and check the result.

    Raises:
        DemoError: the job did not complete, did not measure a Bell pair, or left its session open.
    """
    cluster = site.cluster
    for name in ("bell.sh", "bell.py"):
        shutil.copy(EXAMPLES / name, cluster.user.home / name)
        (cluster.user.home / name).chmod(0o755)
    if site.emulator.sessions():
        raise DemoError("the emulator already has sessions before the job is submitted")

    print(f"\n{cluster.user.name}$ sbatch --qpu={QPU} bell.sh", flush=True)
    job_id = cluster.sbatch("bell.sh", f"--qpu={QPU}")
    print(f"Submitted batch job {job_id}\n", flush=True)

    output = follow(site, job_id)
    info = cluster.job(job_id)
    if info.state != "COMPLETED":
        log = "hooks" if site.hooks_log() else "n1"
        raise DemoError(f"job {job_id} is {info.state} ({info.reason})\n{cluster.log_tail(log)}")
    check_bell_pair(output)
    check_released(site)


def follow(site: Site, job_id: int) -> str:
    """Show when the job's session opens, and the job's output as it grows; return the output.

    Raises:
        DeadlineError: the job did not end in time.
    """
    shown = 0
    session_shown = False
    end = time.monotonic() + JOB_DEADLINE_S
    while True:
        info = site.cluster.job(job_id)  # before the output, so that all output of an ended job is read
        if not session_shown and (sessions := site.emulator.sessions()):
            say("acquire", f"Prolog has opened {name_of(sessions[0])}")
            session_shown = True
        output = site.cluster.job_output(job_id)
        complete = output.rfind("\n") + 1
        for line in output[shown:complete].splitlines():
            say("", f"| {line}")
        shown = complete
        if info.state in TERMINAL_STATES:
            return output
        if time.monotonic() > end:
            raise DeadlineError(f"waited {JOB_DEADLINE_S:g} s for job {job_id}\n{site.cluster.log_tail('n1')}")
        time.sleep(INTERVAL_S)


def check_bell_pair(output: str) -> None:
    """Check the counts that the job printed.

    Raises:
        DemoError: 00 and 11 do not each come up about half of the time.
    """
    counts = {bits: int(count) for bits, count in re.findall(r"\b([01]{2})=(\d+)", output)}
    shots = sum(counts.values())
    if not shots:
        raise DemoError("the job printed no counts")
    for bits in ("00", "11"):
        share = counts.get(bits, 0) / shots
        say(bits, f"{'#' * round(share * BAR_WIDTH)} {share:.1%}")
    wrong = (counts.get("01", 0) + counts.get("10", 0)) / shots
    say("01, 10", f"{'#' * round(wrong * BAR_WIDTH)} {wrong:.1%}, the QPU's noise")
    if wrong > WRONG_AT_MOST or min(counts.get("00", 0), counts.get("11", 0)) / shots < EACH_AT_LEAST:
        raise DemoError(f"{counts} is not a Bell pair: 00 and 11 should each come up about half of the time")


def check_released(site: Site) -> None:
    """Wait for Epilog, and check that the emulator has closed the session.

    Raises:
        DemoError: no session was opened, or one is still open.
    """
    site.cluster.wait_nodes_idle(RELEASE_DEADLINE_S)
    still_open = site.emulator.open_sessions()
    if still_open:
        raise DemoError(f"still open after Epilog: {', '.join(map(name_of, still_open))}")
    sessions = site.emulator.sessions()
    if not sessions:
        raise DemoError("the job ran without a session on the QPU")
    for session in sessions:
        say("release", f"Epilog has {session['state']} {name_of(session)}; sessions still open: 0")


def name_of(session: Mapping[str, Any]) -> str:
    """Return the start of a session's id (which is the job's acquisition token) and its backend."""
    return f"session {str(session['id'])[:8]}... on {session['backend']}"


def leave_up(site: Site) -> None:
    """Keep the cluster up, and print how to use it and how to stop it."""
    env_sh = site.cluster.leave_up()
    print(
        f"""
The cluster stays up. To use it as {site.cluster.user.name}:

    source {env_sh}
    as_user sbatch --qpu={QPU} bell.sh
    as_user srun --qpu={QPU} env
    sinfo; scontrol show job; tail {site.cluster.folder}/log/*.log
    curl {site.emulator.url}/_emulator/sessions

To stop it:

    make demo-stop""",
        flush=True,
    )


def say(subject: str, what: str = "") -> None:
    """Print one line, with its subject in a separate column."""
    print(f"  {subject:<9} {what}".rstrip(), flush=True)


def interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    """Stop the demo, and ignore further signals."""
    ignore_signals()
    raise KeyboardInterrupt


def ignore_signals() -> None:
    """Ignore signals while everything stops: another Ctrl-C would leave processes behind."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main())
