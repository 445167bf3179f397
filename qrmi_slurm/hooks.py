"""The hooks around a job, Prolog and Epilog: the environment handed in, the exit status out."""

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from typing import Final

from qrmi_slurm import confinement, context, exports, names, outcomes, plugstack
from qrmi_slurm.errors import QrmiSlurmError, RecordError
from qrmi_slurm.logs import HookLog
from qrmi_slurm.record import JobFolder

# Epilog's whole bound is --release-timeout and this; Prolog's is acquire's to keep.
_GRACE_S: Final = 1.0


def prolog(environment: Mapping[str, str]) -> int:
    """Acquire the job's QPUs on its first node, and leave record and exports there; on others, the job's folder.

    Args:
        environment: what slurmd set.

    Returns:
        The exit status. Slurm effect: always 0, since any other would DRAIN the node and hold the job; what
        went wrong stands in the exports, where TaskProlog finds it.
    """
    _guarded("prolog", _prolog, environment)
    return outcomes.PROLOG_EXIT


def _prolog(environment: Mapping[str, str], log: HookLog) -> None:
    job = context.of_job(environment)
    options = plugstack.read(job.slurm_conf)
    folder = JobFolder(options.state_dir, job.cluster, job.job_id)
    folder.create()
    if not job.is_first_node:
        return  # by the folder TaskProlog knows that the first node's Prolog has something for it, or will have
    from qrmi_slurm import acquire  # no other hook and no other node needs it

    reason = "an internal error; please tell an admin"
    try:
        began_s = time.monotonic()
        # An Epilog or a recover that releases an earlier run; where that hangs, so would what is to be acquired.
        with folder.locked(options.acquire_timeout_s / 2, make=True):
            left_s = options.acquire_timeout_s - (time.monotonic() - began_s)
            # Rounded: a record that nobody holds costs a millisecond, and an option is told as it was written.
            result = acquire.acquire(job, options._replace(acquire_timeout_s=round(left_s, 1) or 0.1), folder, log)
            if result is not None:
                folder.write_exports(exports.render(result), job.uid)
        reason = ""
    except QrmiSlurmError as error:
        reason = error.message
        raise
    finally:
        if reason:  # word for TaskProlog; where it cannot be left either, TaskProlog misses the exports
            with contextlib.suppress(QrmiSlurmError):
                folder.write_exports(exports.render(acquire.failed(job, reason)), job.uid)


def epilog(environment: Mapping[str, str]) -> int:
    """Release the job's QPUs on the node that acquired them.

    Args:
        environment: what slurmd set.

    Returns:
        The exit status. Slurm effect: always 0, since any other would DRAIN the node; what could not be
        released stays recorded as pending.
    """
    _guarded("epilog", _epilog, environment)
    return outcomes.EPILOG_EXIT


def _epilog(environment: Mapping[str, str], log: HookLog) -> None:
    from qrmi_slurm import release  # Prolog needs it for a job that was requeued alone

    job = context.of_job(environment)
    options = plugstack.read(job.slurm_conf)
    folder = JobFolder(options.state_dir, job.cluster, job.job_id)
    if not folder.exists():
        if job.is_first_node:  # released already, Prolog never ran, or --state-dir is another one than it was then
            log.warning("nothing-recorded", folder=folder.path)
        return
    began_s = time.monotonic()
    try:
        seen = folder.read()
    except RecordError:
        seen = None  # said below, with the lock held
    if seen is not None and seen.node != job.node:
        return  # on a shared state directory: the node that acquired releases
    if seen is None and not job.is_first_node:
        folder.remove_if_empty()  # what this node's Prolog has made
        return
    with folder.locked(options.release_timeout_s / 2):
        left_s = options.release_timeout_s + _GRACE_S - (time.monotonic() - began_s)
        options = options._replace(release_timeout_s=min(options.release_timeout_s, left_s))
        current, fault = folder.read_or_set_aside()
        if fault is not None:
            log.error("record-set-aside", reason=fault)
        if current is not None and current.node == job.node:
            release.release(folder, current, options, log)
        elif current is None and job.is_first_node:  # Prolog failed before it acquired anything
            folder.remove()


def _guarded(hook: str, work: Callable[[Mapping[str, str], HookLog], None], environment: Mapping[str, str]) -> None:
    """Do a hook's work, and log whatever becomes of it: no fault and no surprise may drain the node."""
    _open_standard_files()
    log = HookLog(hook, environment.get(names.SLURM_JOB_ID, "?"))
    try:
        confinement.hide_memory()  # QPUs' credentials will be in it
        work(environment, log)
    except QrmiSlurmError as error:
        log.error("failed", reason=error)
    except BaseException:  # the last line
        log.exception("surprise")


def _open_standard_files() -> None:
    """Open what a daemon may have closed, so that no pipe of ours takes the place of standard output."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
