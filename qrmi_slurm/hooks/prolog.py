"""Prolog: acquires the job's QPUs on its first node and leaves record and exports there; elsewhere only the folder."""

import contextlib
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from qrmi_slurm.calls.places import WORK
from qrmi_slurm.deadline import HOOK_GRACE_S, MIN_CALL_S, Deadline
from qrmi_slurm.errors import NodeBusyError, QrmiSlurmError, RecordBusyError
from qrmi_slurm.hooks import turnstile, watchdog
from qrmi_slurm.hooks.guard import guarded
from qrmi_slurm.log import HookLog
from qrmi_slurm.slurm import job_context, plugstack
from qrmi_slurm.slurm.job_context import JobContext
from qrmi_slurm.slurm.plugstack import SiteOptions
from qrmi_slurm.state import exports
from qrmi_slurm.state.job_folder import JobFolder

if TYPE_CHECKING:
    from qrmi_slurm.hooks.hook_run import HookRun

# The last words have little time (watchdog.LAST_WORDS_S), of which a question to slurmctld gets half of this.
_LAST_QUESTION_S: Final = 0.5


def prolog(environment: Mapping[str, str], waited_s: float = 0.0) -> int:
    """Run Prolog; what went wrong is in the exports, where TaskProlog finds it.

    Args:
        environment: what slurmd set.
        waited_s: how long its shell has been waiting for its turn, in seconds.

    Returns:
        The exit status. Slurm effect: always 0.
    """
    try:
        return guarded("prolog", lambda environment, log: _prolog(environment, log, waited_s), environment)
    finally:
        WORK.end()


def last_words(environment: Mapping[str, str], status: int) -> int:
    """Tell the job's tasks and the admin that Prolog's Python has ended early, with the process gone.

    What it had recorded is on disk: Epilog or recover releases it.

    Args:
        environment: what slurmd set.
        status: how the shell says that it ended.

    Returns:
        The exit status. Slurm effect: always 0.
    """
    return guarded("prolog", lambda environment, log: _last_words(environment, log, status), environment)


def _last_words(environment: Mapping[str, str], log: HookLog, status: int) -> None:
    log.error("ended-early", status=status)
    job = job_context.of_job(environment)
    options = plugstack.read(job.slurm_conf)
    fate = watchdog.fate(status, options.acquire_timeout_s + watchdog.GRACE_S)
    log.error("failed", reason=f"Prolog {fate}")
    folder = JobFolder(options.state_dir, job.cluster, job.job_id)
    folder.create()
    if not job.is_first_node:
        return
    from qrmi_slurm.hooks import earlier, job_environment
    from qrmi_slurm.hooks.hook_run import HookRun
    from qrmi_slurm.hooks.job_facts import JobFacts

    run = HookRun(options, folder, log, Deadline.after(_LAST_QUESTION_S))
    if earlier.are_own_exports(job, run, JobFacts(job, run)):
        return  # it had come as far as telling the tasks
    reason = f"Prolog on {job.node} {fate}; please tell an admin"
    folder.write_exports(exports.render(job_environment.failed(job, reason)), job.uid)


def _tell_tasks(result: exports.Exports, job: JobContext, run: "HookRun") -> None:
    """Write the exports; a job whose tasks cannot be told does not keep its QPUs."""
    try:
        run.folder.write_exports(exports.render(result), job.uid)
    except QrmiSlurmError:
        from qrmi_slurm.hooks import acquire

        acquire.give_up(run)
        raise


def _prolog(environment: Mapping[str, str], log: HookLog, waited_s: float) -> None:
    job = job_context.of_job(environment)
    options = plugstack.read(job.slurm_conf)
    left_s = turnstile.left_s(options.acquire_timeout_s, waited_s)
    watchdog.limit(left_s + watchdog.GRACE_S)
    began_s, refusal = time.monotonic(), None
    try:
        turnstile.enter(job, options, environment, Deadline.after(left_s), log)
    except NodeBusyError as error:
        refusal = error
    left_s = turnstile.left_s(options.acquire_timeout_s, waited_s + time.monotonic() - began_s)
    folder = JobFolder(options.state_dir, job.cluster, job.job_id)
    folder.create()
    if not job.is_first_node:
        # The folder tells TaskProlog that the first node's Prolog has something for it, or will have.
        if folder.exports_path.exists():
            from qrmi_slurm.hooks import earlier
            from qrmi_slurm.hooks.hook_run import HookRun

            deadline = Deadline.after(options.acquire_timeout_s)
            earlier.forget_foreign_exports(job, HookRun(options, folder, log, deadline))
        return
    from qrmi_slurm.hooks import job_environment  # no other hook and no other node needs it

    reason = "an internal error; please tell an admin"
    try:
        if refusal is not None:
            raise _put_back(job, options, folder, log, refusal)
        _acquire(job, options, folder, log, left_s)
        reason = ""
    except QrmiSlurmError as error:
        reason = error.message
        raise
    finally:
        if reason:  # for TaskProlog; where even that cannot be written, TaskProlog reports missing exports
            with contextlib.suppress(QrmiSlurmError):
                folder.write_exports(exports.render(job_environment.failed(job, reason)), job.uid)


def _put_back(
    job: JobContext, options: SiteOptions, folder: JobFolder, log: HookLog, refusal: NodeBusyError
) -> NodeBusyError:
    """Let a job wait in the queue that found no place on its node; return what its tasks are told if it cannot."""
    from qrmi_slurm.failure import Failure, Kind  # only where a node is busy
    from qrmi_slurm.hooks import requeue
    from qrmi_slurm.hooks.hook_run import HookRun

    run = HookRun(options, folder, log, Deadline.after(HOOK_GRACE_S))
    why_not = requeue.put_back(job, run, [Failure(Kind.NO_ANSWER, job.selection_text, refusal.message)])
    return NodeBusyError(f"{refusal.message}; {why_not}") if why_not else refusal


def _acquire(job: JobContext, options: SiteOptions, folder: JobFolder, log: HookLog, left_s: float) -> None:
    """Acquire the job's QPUs in what is left of Prolog's time, and leave its exports."""
    # No other hook and no other node needs these.
    from qrmi_slurm.hooks import acquire, earlier
    from qrmi_slurm.hooks.hook_run import HookRun

    waiting = Deadline.after(left_s)

    def run() -> HookRun:
        # Rounded: an uncontended lock costs a millisecond, and messages show the option as it was written.
        return HookRun(options, folder, log, Deadline.after((round(waiting.left_s, 1) or MIN_CALL_S) + HOOK_GRACE_S))

    # Epilog or recover may be releasing an earlier run; where that hangs, acquiring would hang too.
    with _locked(folder, min(options.acquire_timeout_s / 2, waiting.left_s)):
        if not earlier.make_way(job, run()):
            return
    # Another lock: what was in the folder may have moved, and its lock with it.
    with _locked(folder, min(options.acquire_timeout_s / 2, waiting.left_s)):
        hook_run = run()
        _tell_tasks(acquire.acquire(job, hook_run), job, hook_run)


def _locked(folder: JobFolder, wait_s: float) -> contextlib.ExitStack:
    """Lock the record; a Prolog that has to wait for it makes room for others at work."""
    stack = contextlib.ExitStack()
    try:
        stack.enter_context(folder.locked(0, make=True))
    except RecordBusyError:
        WORK.end()
        stack.enter_context(folder.locked(wait_s, make=True))
    return stack
