"""Epilog: releases the job's QPUs on the node that acquired them."""

from collections.abc import Mapping

from qrmi_slurm.deadline import HOOK_GRACE_S, Deadline
from qrmi_slurm.errors import RecordError
from qrmi_slurm.hooks import watchdog
from qrmi_slurm.hooks.guard import guarded
from qrmi_slurm.hooks.hook_run import HookRun
from qrmi_slurm.log import HookLog
from qrmi_slurm.slurm import job_context, plugstack
from qrmi_slurm.state.job_folder import JobFolder


def epilog(environment: Mapping[str, str]) -> int:
    """Run Epilog; what could not be released stays recorded as pending.

    Args:
        environment: what slurmd set.

    Returns:
        The exit status. Slurm effect: always 0.
    """
    return guarded("epilog", _epilog, environment)


def last_words(environment: Mapping[str, str], status: int) -> int:
    """Tell the admin that Epilog's Python has ended early, with the process gone.

    Args:
        environment: what slurmd set.
        status: how the shell says that it ended.

    Returns:
        The exit status. Slurm effect: always 0.
    """
    return guarded("epilog", lambda environment, log: _last_words(environment, log, status), environment)


def _last_words(environment: Mapping[str, str], log: HookLog, status: int) -> None:
    log.error("ended-early", status=status, hint="recover goes on from the record")
    job = job_context.of_job(environment)
    options = plugstack.read(job.slurm_conf)
    fate = watchdog.fate(status, options.release_timeout_s + watchdog.GRACE_S)
    log.error("failed", reason=f"Epilog {fate}")
    folder = JobFolder(options.state_dir, job.cluster, job.job_id)
    with folder.locked(0):  # else recover has it already
        record = folder.read()
        if record is not None and record.node == job.node and any(entry.license for entry in record.entries):
            from qrmi_slurm.hooks import holds, release

            record = release.to_be_released(record)
            folder.write(holds.keep(record, HookRun(options, folder, log, Deadline.after(0))))


def _epilog(environment: Mapping[str, str], log: HookLog) -> None:
    from qrmi_slurm.hooks import release

    job = job_context.of_job(environment)
    options = plugstack.read(job.slurm_conf)
    watchdog.limit(options.release_timeout_s + watchdog.GRACE_S)
    folder = JobFolder(options.state_dir, job.cluster, job.job_id)
    if not folder.exists():
        if job.is_first_node:  # already released, Prolog never ran, or --state-dir has changed since
            log.warning("nothing-recorded", folder=folder.path)
        return
    whole = Deadline.after(options.release_timeout_s + HOOK_GRACE_S)
    try:
        seen = folder.read()
    except RecordError:
        seen = None  # reported below, with the lock held
    if seen is not None and seen.node != job.node:
        return  # on a shared state directory: the node that acquired releases
    if seen is None and not job.is_first_node:
        folder.remove_if_empty()  # this node's Prolog made it
        return
    with folder.locked(options.release_timeout_s / 2):
        record, fault = folder.read_or_set_aside()
        if fault is not None:
            log.error("record-set-aside", reason=fault)
        if record is not None and record.node == job.node:
            release.release(record, HookRun(options, folder, log, whole.within(options.release_timeout_s)))
        elif record is None and job.is_first_node:  # Prolog failed before it acquired anything
            folder.remove()
