"""The earlier run: what is in a job's folder when its Prolog begins, of this run or another, and who goes on with it.

It is this very run's where slurmd has restarted under a running job. Otherwise it is of an earlier run, after a
requeue, or of another job: Slurm numbers its jobs anew where its StateSaveLocation was lost. That run keeps its own
record, in a folder of its own, from which this Prolog releases its QPUs, or later `recover`.
"""

from typing import Final

from qrmi_slurm.deadline import Deadline
from qrmi_slurm.errors import BrokerError, ExportsError, NewerRecordError, RecordBusyError
from qrmi_slurm.hooks.hook_run import HookRun
from qrmi_slurm.hooks.job_facts import JobFacts
from qrmi_slurm.slurm.job_context import JobContext
from qrmi_slurm.state import exports
from qrmi_slurm.state.record import Record, boot_id

# How long a lock is waited for until the exports are looked at again, in seconds.
_LOOK_AGAIN_S: Final = 0.2


def make_way(job: JobContext, run: HookRun) -> bool:
    """Clear a job's folder of what another run left there, as far as possible by releasing its QPUs.

    Args:
        job: the job.
        run: of the hook; the folder exists and its lock is held.

    Returns:
        Whether there is anything left to do: False where an earlier Prolog of this very run has already acquired.

    Raises:
        RecordError: the folder cannot be read or changed.
    """
    try:
        record, fault = run.folder.read_or_set_aside()
    except NewerRecordError as error:
        if are_own_exports(job, run, JobFacts(job, run)):
            run.log.info("already-acquired", reason=error)
            return False
        run.log.error("record-left-alone", reason=error)
        run.folder.remove_exports()
        run.folder.put_aside()
        return True
    if fault is not None:
        run.log.error("record-set-aside", reason=fault)
    if record is not None and _is_this_run(record, job, run):
        run.log.info("already-acquired", restart=record.restart_count)
        _revive_broker(record, run)
        return False
    run.folder.remove_exports()
    if record is not None:
        _release(record, run)
    return True


def forget_foreign_exports(job: JobContext, run: HookRun) -> None:
    """Remove exports of another run, on a node that waits for those of this one.

    The first node's Prolog removes them too, but a step on this node need not wait for that one.

    Args:
        job: the job.
        run: of the hook; the folder's lock is not held.

    Raises:
        RecordError: they cannot be removed.
    """
    facts = JobFacts(job, run)
    waiting = Deadline.after(run.options.acquire_timeout_s / 2)
    while run.folder.exports_path.exists() and not are_own_exports(job, run, facts):
        try:
            with run.folder.locked(min(_LOOK_AGAIN_S, waiting.call_s)):
                if not are_own_exports(job, run, facts):
                    run.log.warning("exports-of-another-run")
                    run.folder.remove_exports()
        except RecordBusyError:  # the first node's Prolog has it, and will have removed them
            if waiting.left_s <= 0:
                raise


def _is_this_run(record: Record, job: JobContext, run: HookRun) -> bool:
    """Tell whether a record is this run's own: a restarted slurmd may run Prolog again under a running job."""
    if (record.restart_count, record.uid, record.selection) != (job.restart_count, job.uid, job.selection_text):
        return False
    if (record.node, record.boot_id) != (job.node, boot_id()) or not record.held:
        return False
    facts = JobFacts(job, run)
    return are_own_exports(job, run, facts, is_ready=True) and facts.may_have_started_at(record.start_s)


def are_own_exports(job: JobContext, run: HookRun, facts: JobFacts, *, is_ready: bool = False) -> bool:
    """Tell whether there are exports in the folder, of this very run.

    Args:
        job: the job.
        run: of the hook.
        facts: of the job; slurmctld is asked only where nothing else tells.
        is_ready: whether they must have QPUs.
    """
    try:
        found = exports.read(run.folder.exports_path, job.uid, job.job_id)
    except (FileNotFoundError, ExportsError):
        return False
    if is_ready and not found.is_ready:
        return False
    is_same = found.is_for(job.restart_count, job.selection_text)
    return is_same and facts.may_have_started_at(found.start_s)


def _revive_broker(record: Record, run: HookRun) -> None:
    if record.broker is None:
        return
    from qrmi_slurm.broker import launch  # only where a resource has one

    try:
        launch.revive(run.folder, record, run.log)
    except BrokerError as error:
        run.log.error("no-broker", reason=error)


def _release(record: Record, run: HookRun) -> None:
    from qrmi_slurm.hooks import release  # only where there was another run

    run.log.warning("earlier-run", restart=record.restart_count, entries=len(record.entries))
    aside = run.folder.put_aside()
    # Half of the time at most: a service that hangs for one will hang for the other, and Prolog has one bound.
    half_s = min(run.options.release_timeout_s, run.deadline.call_s / 2)
    release.release(record, run._replace(folder=aside).within(half_s))
