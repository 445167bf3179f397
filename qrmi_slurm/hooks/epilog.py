"""Epilog: releases the job's QPUs on the node that acquired them."""

from collections.abc import Mapping

from qrmi_slurm.deadline import HOOK_GRACE_S, Deadline
from qrmi_slurm.errors import NewerRecordError, RecordError
from qrmi_slurm.hooks import turnstile, watchdog
from qrmi_slurm.hooks.guard import guarded
from qrmi_slurm.hooks.hook_run import HookRun
from qrmi_slurm.log import HookLog
from qrmi_slurm.slurm import job_context, plugstack
from qrmi_slurm.slurm.job_context import JobContext
from qrmi_slurm.state.job_folder import JobFolder
from qrmi_slurm.state.record import Record


def epilog(environment: Mapping[str, str], waited_s: float = 0.0) -> int:
    """Run Epilog; what could not be released stays recorded as pending.

    Args:
        environment: what slurmd set.
        waited_s: how long its shell has been waiting for its turn, in seconds.

    Returns:
        The exit status. Slurm effect: always 0.
    """
    return guarded("epilog", lambda environment, log: _epilog(environment, log, waited_s), environment)


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


def _epilog(environment: Mapping[str, str], log: HookLog, waited_s: float) -> None:
    from qrmi_slurm.hooks import release

    job = job_context.of_job(environment)
    options = plugstack.read(job.slurm_conf)
    left_s = turnstile.left_s(options.release_timeout_s, waited_s)
    watchdog.limit(left_s + watchdog.GRACE_S)
    folder = JobFolder(options.state_dir, job.cluster, job.job_id)
    if not folder.exists():
        if job.is_first_node:  # already released, Prolog never ran, or --state-dir has changed since
            log.warning("nothing-recorded", folder=folder.path)
        return
    whole = Deadline.after(left_s + HOOK_GRACE_S)
    try:
        seen = folder.read()
    except RecordError:
        seen = None  # reported below, with the lock held
    if seen is not None and not _releases(seen, job):
        return
    turnstile.enter_at_once(job, environment)
    if seen is not None and _is_of_later_job(seen, job):
        log.warning("record-of-a-later-job", start=seen.start_s)
        return
    if seen is None and (not job.is_first_node or job.is_leaving):
        folder.remove_if_empty()  # this node's Prolog made it
        return
    with folder.locked(left_s / 2):
        try:
            record, fault = folder.read_or_set_aside()
        except NewerRecordError as error:
            log.error("record-left-alone", reason=error)
            return
        if fault is not None:
            log.error("record-set-aside", reason=fault)
        if record is not None and seen is not None and record.identity != seen.identity:
            log.warning("record-of-a-later-run", restart=record.restart_count)  # whose Prolog did not wait for this
            return
        run = HookRun(options, folder, log, whole.within(left_s))
        if record is not None and job.is_leaving:
            from qrmi_slurm.hooks import leaving  # seldom

            leaving.leave(record, job, run)
        elif record is not None and _releases(record, job):
            release.release(record, run)
        elif record is None and job.is_first_node:  # Prolog failed before it acquired anything
            folder.remove()


def _releases(record: Record, job: JobContext) -> bool:
    """Tell whether this node releases; on a shared state directory, each of the job's nodes sees the record."""
    if record.has_left:
        return job.is_first_node and not job.is_leaving
    return record.node == job.node


def _is_of_later_job(record: Record, job: JobContext) -> bool:
    """Tell whether a record is of a job that started after this one, and has its id now.

    That of an earlier one is released: its number is another job's, which has ended as well.
    """
    return record.start_s is not None and job.start_s is not None and record.start_s > job.start_s
