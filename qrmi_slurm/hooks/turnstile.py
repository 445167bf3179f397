"""The turnstile: lets so many Prologs of a node work at a time, and none of one user's in the way of another's.

Hundreds of jobs may start on a node at once. If all their Prologs worked at once, slurmd would have no processor left
to answer slurmctld, which then starts the jobs again. So a Prolog waits before it has loaded much: first in its shell
(scripts/prolog.py), as a `flock` on a file that its user's jobs share, then, as the first of them, in Python for one of
the places at work (calls/places.py). Both locks are files of root's in a folder that only root can enter, and the
kernel unlocks them when their process ends. No process of a user's has them open.

An Epilog does not wait; as long as it works, a Prolog less may begin.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from qrmi_slurm import files, names
from qrmi_slurm.calls.places import WORK, Node, at_work
from qrmi_slurm.deadline import Deadline
from qrmi_slurm.errors import NodeBusyError, RecordError
from qrmi_slurm.log import HookLog
from qrmi_slurm.slurm.job_context import JobContext
from qrmi_slurm.slurm.plugstack import SiteOptions

# In it are a folder for each cluster and node of this machine. In /run, which is local, so that locking is cheap, and
# empty after a boot; no user can make anything there. The shell has the same path.
FOLDER: Final = Path("/run/qrmi-slurm")

# What the shell reads: how many lanes each user has, how long to wait in one, and how much longer once that is
# over, in seconds. Missing until the first Prolog has run.
_LANES_FILE: Final = "lanes"
_MAX_LANES: Final = 16

# The descriptor of the lane's file, which Python has from the shell.
_LANE_FD: Final = 9

# What is left after the longest wait, in seconds, if that is not more than half of it all: for the acquisition, or for
# going back into the queue, in which those that are too late wait for each other for half of it.
_ACQUIRING_S: Final = 10.0

# How soon to look for a place again, at first and later. Of each user only so many look as there are lanes.
_FIRST_PAUSE_S: Final = 0.01
_LAST_PAUSE_S: Final = 0.08


def enter(
    job: JobContext, options: SiteOptions, environment: Mapping[str, str], deadline: Deadline, log: HookLog
) -> None:
    """Wait until a Prolog may work; then let the next one of the user's look for a place.

    Where the places cannot be used, it goes on without one: they keep a node responsive, and protect nothing else.

    Args:
        job: whose Prolog it is.
        options: the site's.
        environment: what slurmd set.
        deadline: of the whole Prolog; it may have waited already.
        log: of the hook.

    Raises:
        NodeBusyError: too many others were working all that time. It stays in its lane until it ends.
    """
    folder = _folder(environment)
    latest_s = _longest_wait_s(options.acquire_timeout_s)
    try:
        cpus = len(os.sched_getaffinity(0))
        late_s = (options.acquire_timeout_s - latest_s) / 2
        _publish(folder, f"{min(cpus, _MAX_LANES)} {int(latest_s)} {int(late_s)}\n")
        node, kind = Node(folder, job.node, job.uid), at_work(cpus)
        pause_s = _FIRST_PAUSE_S
        while lack := WORK.begin(node, kind):
            if deadline.left_s <= options.acquire_timeout_s - latest_s:
                raise NodeBusyError(f"its Prolog could not begin within {latest_s:g} s: {lack}")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LAST_PAUSE_S)
    except (OSError, RecordError) as error:
        log.warning("no-turnstile", reason=error)
    _leave_lane(folder)


def enter_at_once(job: JobContext, environment: Mapping[str, str]) -> None:
    """Let Prologs begin later while an Epilog works; it waits for nothing itself."""
    folder = _folder(environment)
    with contextlib.suppress(OSError, RecordError):
        if folder.exists():  # else no Prolog has run since the boot
            WORK.begin_epilog(Node(folder, job.node, job.uid), at_work(len(os.sched_getaffinity(0))))


def _folder(environment: Mapping[str, str]) -> Path:
    return FOLDER / environment.get(names.SLURM_CLUSTER_NAME, "") / environment.get(names.SLURMD_NODENAME, "")


def _longest_wait_s(acquire_timeout_s: float) -> float:
    return acquire_timeout_s - min(_ACQUIRING_S, acquire_timeout_s / 2)


def _publish(folder: Path, lanes: str) -> None:
    """Tell the shells of later Prologs where to wait, and for how long."""
    path = folder / _LANES_FILE
    try:
        if files.read(path).decode() == lanes:
            return
    except FileNotFoundError:
        files.make_folder(FOLDER, 0o700)
        files.make_folder(folder, 0o700)
    files.replace(path, lanes.encode(), 0o600, is_durable=False)


def _leave_lane(folder: Path) -> None:
    """Unlock the file that the shell has locked: the lock is of its descriptor, which this process shares."""
    with contextlib.suppress(OSError):
        if Path(f"/proc/self/fd/{_LANE_FD}").readlink().is_relative_to(folder):
            fcntl.flock(_LANE_FD, fcntl.LOCK_UN)
            os.close(_LANE_FD)
