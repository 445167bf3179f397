"""The hooks: what Prolog, TaskProlog and Epilog do, with the environment handed in and the exit status out."""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qrmi_slurm import context, exports, names, outcomes, plugstack
from qrmi_slurm.context import JobContext, TaskContext
from qrmi_slurm.errors import ExportsError, QrmiSlurmError
from qrmi_slurm.exports import Exports
from qrmi_slurm.selection import parse as parse_selection
from qrmi_slurm.selection import printable

# How long TaskProlog on another node than the first waits for a shared filesystem to show the exports; NFS
# clients cache what is not there for up to 3 s (nfs(5), acdirmin defaults to 30 s for what they have listed).
_SHARED_WAIT_S: Final = 5.0
_SHARED_POLL_S: Final = 0.1

# How much longer than its own calls a hook waits for the record, which Epilog and recover may hold.
_LOCK_GRACE_S: Final = 1.0


def prolog(environment: Mapping[str, str]) -> int:
    """Acquire the job's QPUs on its first node, and leave record and exports there.

    Args:
        environment: what slurmd set.

    Returns:
        The exit status. Slurm effect: always 0, since any other would DRAIN the node and hold the job; what
        went wrong stands in the exports, where TaskProlog finds it.
    """
    from qrmi_slurm import acquire, record
    from qrmi_slurm.logs import HookLog

    log = HookLog("prolog", environment.get(names.SLURM_JOB_ID, "?"))
    job: JobContext | None = None
    folder: record.JobFolder | None = None
    try:
        job = context.of_job(environment)
        if not job.is_first_node:
            return outcomes.PROLOG_EXIT
        options = plugstack.read(job.slurm_conf)
        folder = record.JobFolder(options.state_dir, job.cluster, job.job_id)
        folder.create()
        with folder.locked(options.release_timeout_s + _LOCK_GRACE_S):
            result = acquire.acquire(job, options, folder, log)
            folder.write_exports(exports.render(result), job.uid)
    except QrmiSlurmError as error:
        log.error("failed", reason=error)
        _leave_failure(job, folder, error.message)
    except BaseException:
        log.exception("surprise")
        _leave_failure(job, folder, "an internal error; please tell an admin")
    return outcomes.PROLOG_EXIT


def epilog(environment: Mapping[str, str]) -> int:
    """Release the job's QPUs on the node that acquired them.

    Args:
        environment: what slurmd set.

    Returns:
        The exit status. Slurm effect: always 0, since any other would DRAIN the node; what could not be
        released stays recorded as pending.
    """
    from qrmi_slurm import record, release
    from qrmi_slurm.logs import HookLog

    log = HookLog("epilog", environment.get(names.SLURM_JOB_ID, "?"))
    try:
        job = context.of_job(environment)
        options = plugstack.read(job.slurm_conf)
        folder = record.JobFolder(options.state_dir, job.cluster, job.job_id)
        if not folder.exists():
            return outcomes.EPILOG_EXIT
        with folder.locked(options.release_timeout_s + _LOCK_GRACE_S):
            current, fault = folder.read_or_set_aside()
            if fault is not None:
                log.error("record-set-aside", reason=fault)
            if current is None:  # Prolog failed before it acquired anything
                if job.is_first_node:
                    folder.remove()
            elif current.node == job.node:
                release.release(folder, current, options, log)
    except QrmiSlurmError as error:
        log.error("failed", reason=error)
    except BaseException:
        log.exception("surprise")
    return outcomes.EPILOG_EXIT


def _leave_failure(job: JobContext | None, folder: object, reason: str) -> None:
    """Leave word for TaskProlog where that is still possible; where it is not, TaskProlog misses the exports."""
    from qrmi_slurm import acquire, record

    if job is None or not isinstance(folder, record.JobFolder):
        return
    try:
        folder.write_exports(exports.render(acquire.failed(job, reason)), job.uid)
    except (QrmiSlurmError, OSError):
        return


@dataclass(frozen=True, slots=True)
class TaskOutcome:
    """What TaskProlog tells slurmstepd.

    Args:
        lines: its standard output.
        exit_code: Slurm effect: 0 lets the task run, 1 ends it.
    """

    lines: tuple[str, ...]
    exit_code: int


def task_prolog(environment: Mapping[str, str]) -> TaskOutcome:
    """Return the lines that put the job's QPU environment into a task, or the reason why it must not run.

    Args:
        environment: the task's.
    """
    is_first_task = environment.get(names.SLURM_PROCID, "0") in ("", "0")
    try:
        return _task_outcome(context.of_task(environment, os.getuid()), environment)
    except QrmiSlurmError as error:
        sentence = f"{exports.PREFIX}: {error}"
    except Exception as error:  # noqa: BLE001 the last line: the user reads one sentence, never a traceback
        sentence = f"{exports.PREFIX}: no QPU: an internal error ({type(error).__name__}); please tell an admin"
    return _refuse(is_first_task, [sentence])


def _task_outcome(task: TaskContext, environment: Mapping[str, str]) -> TaskOutcome:
    if not task.job_selection_text and not task.step_selection_text and not _holds_something(task):
        return TaskOutcome(tuple(_unset_lines(environment)), outcomes.TASK_MAY_RUN_EXIT)
    within_job = task.inherited_job_id == str(task.job_id)
    found = _inherited(task, environment) if within_job else _read_exports(task, environment)
    if not found.is_ready:
        return _refuse(task.task_rank == 0, found.notes)
    # Within a batch job the environment has come along already, and what the script changed in it stays; only what
    # a shell dropped and the step's own wishes are left.
    variables = {name: value for name, value in found.variables.items() if not (within_job and name in environment)}
    notes = list(found.notes) if task.task_rank == 0 and not within_job else []
    if task.step_selection_text and task.step_selection_text != task.job_selection_text:
        variables |= exports.narrowed(found.variables, parse_selection(task.step_selection_text))
    variables |= _rust_log(task, environment, found.variables)
    lines = [f"print {note}" for note in notes]
    stale = _unset_lines(environment) if task.inherited_job_id is not None and not within_job else []
    return TaskOutcome((*lines, *stale, *exports.export_lines(variables)), outcomes.TASK_MAY_RUN_EXIT)


def _holds_something(task: TaskContext) -> bool:
    """Tell whether a task's job has exports, where its environment does not say whether it asked for QPUs."""
    return task.is_further_component and _exports_path(plugstack.read(task.slurm_conf), task).exists()


def _inherited(task: TaskContext, environment: Mapping[str, str]) -> Exports:
    """Return the job's exports for a step within it; what the step has inherited, where this node has no file."""
    options = plugstack.read(task.slurm_conf)
    try:
        return exports.read(_exports_path(options, task), task.uid, task.job_id)
    except FileNotFoundError:
        variables = {name: environment[name] for name in exports.LISTS if name in environment}
        return Exports(task.job_id, 0, is_ready=True, notes=(), variables=variables)


def _exports_path(options: plugstack.SiteOptions, task: TaskContext) -> Path:
    return options.state_dir / task.cluster / str(task.job_id) / "exports"


def _read_exports(task: TaskContext, environment: Mapping[str, str]) -> Exports:
    options = plugstack.read(task.slurm_conf)
    path = _exports_path(options, task)
    node_list = environment.get(names.SLURM_JOB_NODELIST, "")
    on_first_node = not node_list or context.first_host(node_list) == task.node
    deadline_s = time.monotonic() + (0 if on_first_node else _SHARED_WAIT_S)
    while True:
        try:
            return exports.read(path, task.uid, task.job_id)
        except FileNotFoundError:
            if time.monotonic() >= deadline_s:
                break
        time.sleep(_SHARED_POLL_S)
    wanted = printable(task.step_selection_text or task.job_selection_text or "")
    if not task.job_selection_text:
        raise ExportsError(
            f"job {task.job_id} holds no QPU, so a step of it cannot have {wanted}; submit the job with --qpu"
        )
    if on_first_node:
        raise ExportsError(
            f"job {task.job_id} has no QPU: Prolog left nothing at {path}",
            f"an admin can look at: journalctl -t qrmi-slurm-prolog on {task.node}",
        )
    raise ExportsError(
        f"job {task.job_id}: node {task.node} does not see {path}",
        "for several nodes the state directory has to be on a shared filesystem: --state-dir in plugstack.conf",
    )


def _rust_log(task: TaskContext, environment: Mapping[str, str], from_job: Mapping[str, str]) -> dict[str, str]:
    """Return QRMI's log level for the task, unless the user or the site set one.

    What we export is remembered beside it, so that a step can tell the user's own value from an inherited one.
    """
    if names.RUST_LOG in from_job and names.RUST_LOG not in environment:
        return {}  # the site's --env:RUST_LOG
    if task.rust_log is not None and task.rust_log != environment.get(names.QRMI_SLURM_RUST_LOG):
        return {}
    level = exports.rust_log_level(task.srun_debug)
    return {names.RUST_LOG: level, names.QRMI_SLURM_RUST_LOG: level}


def _unset_lines(environment: Mapping[str, str]) -> list[str]:
    """Return `unset NAME` lines for what a surrounding QPU job left in the environment."""
    foreign = environment.get(names.QRMI_JOB_QPU_RESOURCES) or environment.get(names.SLURM_JOB_QPU_RESOURCES, "")
    prefixes = tuple(names.of_resource(name, names.QRMI_PREFIX) for name in foreign.split(",") if name)
    stale = {name for name in environment if prefixes and name.startswith(prefixes)}
    stale |= {*exports.LISTS, names.QRMI_JOB_ID, names.QRMI_JOB_UID} & environment.keys()
    if environment.get(names.QRMI_SLURM_RUST_LOG) is not None:
        stale.add(names.QRMI_SLURM_RUST_LOG)
        if environment.get(names.RUST_LOG) == environment[names.QRMI_SLURM_RUST_LOG]:
            stale.add(names.RUST_LOG)
    return [f"unset {name}" for name in sorted(stale)]


def _refuse(is_first_task: bool, sentences: tuple[str, ...] | list[str]) -> TaskOutcome:
    """End the task; the first of a step says why, the others would only repeat it."""
    lines = [f"print {printable(sentence, 1000)}" for sentence in sentences] if is_first_task else []
    return TaskOutcome(tuple(lines), outcomes.TASK_MUST_NOT_RUN_EXIT)
