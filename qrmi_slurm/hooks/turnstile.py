"""The turnstile: lets so many Prologs of a node work at a time, and none of one user's in the way of another's.

Hundreds of jobs may start on a node at once. If all their Prologs worked at once, slurmd would have no processor left
to answer slurmctld, which then starts the jobs again. So a Prolog waits before it has loaded much: first in its shell
(scripts/prolog.py), as a `flock` on a file that its user's jobs share, then, as the first of them, in Python for one of
the places at work (calls/places.py). Both locks are files of root's in a folder that only root can enter, and the
kernel unlocks them when their process ends. No process of a user's has them open.

An Epilog waits in its shell as well (scripts/epilog.py), on files of its own, so that never more than a few of a user's
are at work; a short time only, since releases go first. As long as it works, a Prolog less may begin.
"""

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from qrmi_slurm import files, names
from qrmi_slurm.calls import places
from qrmi_slurm.calls.places import WORK, Node, at_work
from qrmi_slurm.deadline import Deadline
from qrmi_slurm.errors import NodeBusyError, RecordError
from qrmi_slurm.log import HookLog
from qrmi_slurm.slurm.job_context import JobContext
from qrmi_slurm.slurm.plugstack import SiteOptions

# In it are a folder for each cluster and node of this machine. In /run, which is local, so that locking is cheap, and
# empty after a boot; no user can make anything there. The shell has the same path.
FOLDER: Final = Path("/run/qrmi-slurm")

# What the shells read. For Prolog: how many lanes each user has, how long to wait in one, and how much longer once that
# is over, in seconds; for Epilog: how many lanes, and how long to wait. Missing until the first Prolog has run.
_LANES_FILE: Final = "lanes"
_MAX_LANES: Final = 16

# An Epilog stays in its lane while it works, for a second of a slow service at most. Two per processor release faster
# than Prologs acquire.
_RELEASES_PER_CPU: Final = 2

# How long an Epilog waits at most, in seconds, and of its option. Then it goes on beside those that are at work.
_RELEASE_WAIT_S: Final = 10.0
_RELEASE_WAIT_SHARE: Final = 1 / 3

# In a shorter time than this a hook's Python starts; only a longer one was a wait, in seconds.
_LEAST_WAIT_S: Final = 0.5

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
        release_s = min(_RELEASE_WAIT_S, options.release_timeout_s * _RELEASE_WAIT_SHARE)
        of_prolog = f"{min(cpus, _MAX_LANES)} {int(latest_s)} {int(late_s)}"
        _publish(folder, f"{of_prolog} {min(cpus * _RELEASES_PER_CPU, _MAX_LANES)} {int(release_s)}\n")
        node, kind = Node(folder, job.node, job.uid), at_work(cpus)
        pause_s = _FIRST_PAUSE_S
        while lack := WORK.begin(node, kind):
            if deadline.left_s <= options.acquire_timeout_s - latest_s:
                raise NodeBusyError(f"its Prolog could not begin within {latest_s:g} s: {lack}")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LAST_PAUSE_S)
    except (OSError, RecordError) as error:
        log.warning("no-turnstile", reason=error)
    if _has_lane(folder):
        places.leave_lane()


def enter_at_once(job: JobContext, environment: Mapping[str, str]) -> None:
    """Let Prologs begin later, and Epilogs, while an Epilog works; it has waited in its shell, and waits no more."""
    folder = _folder(environment)
    if _has_lane(folder):
        WORK.stay_in_lane()
    with contextlib.suppress(OSError, RecordError):
        if folder.exists():  # else no Prolog has run since the boot
            WORK.begin_epilog(Node(folder, job.node, job.uid), at_work(len(os.sched_getaffinity(0))))


def _folder(environment: Mapping[str, str]) -> Path:
    return FOLDER / environment.get(names.SLURM_CLUSTER_NAME, "") / environment.get(names.SLURMD_NODENAME, "")


def left_s(timeout_s: float, waited_s: float) -> float:
    """Return what is left of a hook's time; messages show it as the option was written where there was no wait.

    Args:
        timeout_s: the option, in seconds.
        waited_s: how long the hook has been running, in seconds.
    """
    return timeout_s - (waited_s if waited_s >= _LEAST_WAIT_S else 0.0)


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


def _has_lane(folder: Path) -> bool:
    """Tell whether this process has the file of a lane from its shell."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/self/fd/{places.LANE_FD}").readlink().is_relative_to(folder)
    return False
