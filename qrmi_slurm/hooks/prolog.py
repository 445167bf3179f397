"""Prolog: acquires the job's QPUs on its first node and leaves record and exports there; elsewhere only the folder."""

import contextlib
from collections.abc import Mapping

from qrmi_slurm.deadline import HOOK_GRACE_S, MIN_CALL_S, Deadline
from qrmi_slurm.errors import QrmiSlurmError
from qrmi_slurm.hooks.guard import guarded
from qrmi_slurm.log import HookLog
from qrmi_slurm.slurm import job_context, plugstack
from qrmi_slurm.state import exports
from qrmi_slurm.state.job_folder import JobFolder


def prolog(environment: Mapping[str, str]) -> int:
    """Run Prolog; what went wrong is in the exports, where TaskProlog finds it.

    Args:
        environment: what slurmd set.

    Returns:
        The exit status. Slurm effect: always 0.
    """
    return guarded("prolog", _prolog, environment)


def _prolog(environment: Mapping[str, str], log: HookLog) -> None:
    job = job_context.of_job(environment)
    options = plugstack.read(job.slurm_conf)
    folder = JobFolder(options.state_dir, job.cluster, job.job_id)
    folder.create()
    if not job.is_first_node:
        return  # the folder tells TaskProlog that the first node's Prolog has something for it, or will have
    # No other hook and no other node needs these.
    from qrmi_slurm.hooks import acquire, job_environment
    from qrmi_slurm.hooks.hook_run import HookRun

    reason = "an internal error; please tell an admin"
    try:
        waiting = Deadline.after(options.acquire_timeout_s)
        # Epilog or recover may be releasing an earlier run; where that hangs, acquiring would hang too.
        with folder.locked(options.acquire_timeout_s / 2, make=True):
            # Rounded: an uncontended lock costs a millisecond, and messages show the option as it was written.
            deadline = Deadline.after((round(waiting.left_s, 1) or MIN_CALL_S) + HOOK_GRACE_S)
            result = acquire.acquire(job, HookRun(options, folder, log, deadline))
            if result is not None:
                folder.write_exports(exports.render(result), job.uid)
        reason = ""
    except QrmiSlurmError as error:
        reason = error.message
        raise
    finally:
        if reason:  # for TaskProlog; where even that cannot be written, TaskProlog reports missing exports
            with contextlib.suppress(QrmiSlurmError):
                folder.write_exports(exports.render(job_environment.failed(job, reason)), job.uid)
