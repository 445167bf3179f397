"""TaskProlog: prints the job's QPU environment for a task, or why the task must not run.

It runs as the user before every task of a QPU job, so it imports little; in common cases its script does not even
start Python.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from qrmi_slurm import names
from qrmi_slurm.errors import ExportsError, PlugstackError, QrmiSlurmError
from qrmi_slurm.slurm import job_context, plugstack
from qrmi_slurm.slurm.job_context import TaskContext
from qrmi_slurm.slurm.selection import parse as parse_selection
from qrmi_slurm.state import exports
from qrmi_slurm.state.exports import Exports
from qrmi_slurm.text import is_one_line, printable

# How long TaskProlog waits on nodes other than the first until the exports appear on a shared filesystem; NFS clients
# cache the absence of a file for 3 s and more (nfs(5), acregmin and acdirmin).
_SHARED_WAIT_S: Final = 5.0
_SHARED_POLL_S: Final = 0.1

# The same if this node's Prolog has ended and the first node's may not have begun: with PrologFlags=NoHold, and in a
# later component of a heterogeneous batch job, a step waits only for its own node's Prolog. The site's own Prolog
# scripts may run before ours.
_FIRST_NODE_WAIT_S: Final = 10.0

# Between slurmctld's clock and the file system's: munge accepts no more between two machines (munged(8), --max-ttl).
_MAX_CLOCK_DIFFERENCE_S: Final = 300.0

# How much longer than --acquire-timeout a Prolog may take after writing the record; as deadline.HOOK_GRACE_S.
_PROLOG_GRACE_S: Final = 1.0

# Of the time that the stub gives TaskProlog: what it takes to start, and to say why it gives up.
_LAST_WORDS_S: Final = 5.0

# What is printed about new sessions: a line for each of 64 QPUs.
_MAX_RENEWED_BYTES: Final = 64 * 1024


# TaskProlog's exit statuses; a failed TaskProlog ends its task but does not drain the node.
TASK_MAY_RUN_EXIT: Final = 0
TASK_MUST_NOT_RUN_EXIT: Final = 1


class TaskOutcome(NamedTuple):
    """What TaskProlog returns to slurmstepd.

    Args:
        lines: its standard output.
        exit_code: Slurm effect: 0 lets the task run, 1 ends it.
    """

    lines: tuple[str, ...]
    exit_code: int


def task_prolog(environment: Mapping[str, str]) -> TaskOutcome:
    """Return the lines that set a task's QPU environment, or the reason why the task must not run.

    Args:
        environment: the task's environment.
    """
    is_first_task = environment.get(names.SLURM_PROCID, "0") in ("", "0")
    try:
        return _task_outcome(job_context.of_task(environment, os.getuid()), environment)
    except QrmiSlurmError as error:
        sentence = f"{exports.PREFIX}: {error}"
    except Exception as error:  # noqa: BLE001 the last resort: the user reads a sentence, never a traceback
        sentence = f"{exports.PREFIX}: no QPU: an internal error ({type(error).__name__}); please tell an admin"
    return _refuse(is_first_task, [sentence])


def _task_outcome(task: TaskContext, environment: Mapping[str, str]) -> TaskOutcome:
    if not task.job_selection_text and not task.step_selection_text and not _holds_something(task):
        marks = [f"unset {name}" for name in (names.QRMI_SLURM_JOB_ID, names.QRMI_SLURM_STATE_DIR) if task.is_untold]
        return TaskOutcome((*_unset_lines(environment, _site_env(task)), *marks), TASK_MAY_RUN_EXIT)
    within_job = task.inherited_job_id == str(task.job_id)
    found = _inherited(task, environment) if within_job else _read_exports(task, environment)
    if not found.is_ready:
        return _refuse(task.task_rank == 0, found.notes)
    if task.restart_count is not None and found.restart_count != task.restart_count and not within_job:
        raise ExportsError(
            f"job {task.job_id} has no QPU: what Prolog left is from another run of the job",
            f"an admin can look at: journalctl -t qrmi-slurm-prolog on {task.node}",
        )
    # Within a batch job a step inherits the environment, including the script's changes. It lacks only what a shell
    # dropped and what the step's own options change.
    variables = {name: value for name, value in found.variables.items() if not (within_job and name in environment)}
    notes = list(found.notes) if task.task_rank == 0 and not within_job else []
    renewed = _renewed_path(task, environment)
    if renewed is not None:
        variables |= _of_session(found.variables)
        notes += _printed_once(renewed) if task.task_rank == 0 else []
    if task.step_selection_text and task.step_selection_text != task.job_selection_text:
        wanted = parse_selection(task.step_selection_text)
        if task.job_selection_text is None:
            # The step's --qpu may be the job's own (srun without an allocation) and include QPUs that the job did not
            # get, as Prolog's notes say. Refuse the step only if it gets none of its QPUs.
            held = exports.assigned(found.variables, wanted)
            wanted = tuple(term for term, name in zip(wanted, held, strict=True) if name) or wanted
        variables |= exports.narrowed(found.variables, wanted)
    if names.RUST_LOG in variables and _is_users_rust_log(task, environment):
        del variables[names.RUST_LOG]
    variables |= _rust_log(task, environment, found.variables)
    variables |= _of_broker(task, {**environment, **found.variables}, variables, within_job=within_job)
    lines = [f"print {note}" for note in notes]
    stale = _unset_lines(environment, {}) if not within_job else []
    return TaskOutcome((*lines, *stale, *exports.export_lines(variables)), TASK_MAY_RUN_EXIT)


def _holds_something(task: TaskContext) -> bool:
    """Tell whether the job of a task has a folder, where the task's environment does not tell the job's selection."""
    return task.is_untold and _exports_path(plugstack.read(task.slurm_conf), task).parent.exists()


def _inherited(task: TaskContext, environment: Mapping[str, str]) -> Exports:
    """Return the exports for a step within the job; if this node has no file, the variables that the step inherited."""
    options = plugstack.read(task.slurm_conf)
    try:
        return exports.read(_exports_path(options, task), task.uid, task.job_id)
    except FileNotFoundError:
        of_lists = (*exports.LISTS, names.QRMI_SLURM_CHOICES)
        variables = {name: environment[name] for name in of_lists if name in environment}
        return Exports(task.job_id, 0, is_ready=True, notes=(), variables=variables)


def _renewed_path(task: TaskContext, environment: Mapping[str, str]) -> Path | None:
    """Return the file that is there once the job has another session than at its start; None where it is not."""
    known = environment.get(names.QRMI_SLURM_STATE_DIR)
    state_dir = Path(known) if known else plugstack.read(task.slurm_conf).state_dir
    path = state_dir / task.cluster / str(task.job_id) / names.RENEWED_FILE
    return path if path.exists() else None


def _of_session(variables: Mapping[str, str]) -> dict[str, str]:
    """Return what differs between two sessions of a QPU: its token, and the job's time limit."""
    held = variables.get(names.QRMI_JOB_QPU_RESOURCES, "").split(",")
    own = {names.of_resource(name, of) for name in held for of in (names.ACQUISITION_TOKEN, names.TIMEOUT_SECONDS)}
    return {name: value for name, value in variables.items() if name in own}


def _printed_once(path: Path) -> list[str]:
    """Return what is to be printed about a new session, and empty the file, so that no other step prints it."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:  # another user's, in a step that an admin has attached
        return []
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        text = os.read(fd, _MAX_RENEWED_BYTES).decode("utf-8", "replace")
        os.ftruncate(fd, 0)
    except OSError:  # another step has it
        return []
    finally:
        os.close(fd)
    return [printable(line, 1000) for line in text.split("\n") if line]


def _exports_path(options: plugstack.SiteOptions, task: TaskContext) -> Path:
    return options.state_dir / task.cluster / str(task.job_id) / names.EXPORTS_FILE


def _read_exports(task: TaskContext, environment: Mapping[str, str]) -> Exports:
    options = plugstack.read(task.slurm_conf)
    path = _exports_path(options, task)
    node_list = environment.get(names.SLURM_JOB_NODELIST, "")
    first_node = job_context.first_host(node_list) if node_list else task.node
    began_s = time.monotonic()
    while True:
        with contextlib.suppress(FileNotFoundError):
            found = exports.read(path, task.uid, task.job_id)
            if not _are_an_earlier_jobs(found, path, task):
                return found
        wait_s = _wait_s(path.parent, task, options) if first_node != task.node else 0.0
        if time.monotonic() - began_s >= wait_s:
            break
        time.sleep(_SHARED_POLL_S)
    wanted = printable(task.step_selection_text or task.job_selection_text or "")
    if not task.job_selection_text and not path.parent.exists():
        raise ExportsError(
            f"job {task.job_id} holds no QPU, so a step of it cannot have {wanted}; submit the job with --qpu"
        )
    if first_node == task.node or _record_path(path.parent).exists():
        raise ExportsError(
            f"job {task.job_id} has no QPU: Prolog left nothing at {path}",
            f"an admin can look at: journalctl -t qrmi-slurm-prolog on {first_node}",
        )
    raise ExportsError(
        f"job {task.job_id}: node {task.node} does not see {path}",
        "jobs of several nodes need the state directory on a shared filesystem: --state-dir in plugstack.conf",
    )


def _are_an_earlier_jobs(found: Exports, path: Path, task: TaskContext) -> bool:
    """Tell whether exports were written long before the job started, for another with its id; Prolog removes them.

    Where a job's nodes power up, its start time grows after its Prolog has noted it.
    """
    if None in (task.start_s, found.start_s) or task.start_s == found.start_s:
        return False
    return path.stat().st_mtime < (task.start_s or 0) - _MAX_CLOCK_DIFFERENCE_S


def _wait_s(folder: Path, task: TaskContext, options: plugstack.SiteOptions) -> float:
    """Return how long a node other than the first waits for the exports, in seconds, given the files so far."""
    wait_s = _wish_s(folder, task, options)
    return wait_s if task.time_limit_s is None else min(wait_s, task.time_limit_s - _LAST_WORDS_S)


def _wish_s(folder: Path, task: TaskContext, options: plugstack.SiteOptions) -> float:
    if _record_path(folder).exists():  # Prolog is running, or was killed
        return options.acquire_timeout_s + _PROLOG_GRACE_S + _SHARED_WAIT_S
    if folder.exists():
        return _FIRST_NODE_WAIT_S
    # A job without --qpu has no folder and gets no exports.
    return _SHARED_WAIT_S if task.job_selection_text else 0.0


def _record_path(folder: Path) -> Path:
    return folder / names.RECORD_FILE  # users can see that it exists, not read it


def _rust_log(task: TaskContext, environment: Mapping[str, str], from_job: Mapping[str, str]) -> dict[str, str]:
    """Return QRMI's log level for the task, unless the user or the site set one.

    A second variable repeats the level, so that a step can tell the user's own value from an inherited one.
    """
    if names.RUST_LOG in from_job or _is_users_rust_log(task, environment):  # the site's comes from --env:RUST_LOG
        return {}
    level = exports.rust_log_level(task.srun_debug)
    return {names.RUST_LOG: level, names.QRMI_SLURM_RUST_LOG: level}


def _of_broker(
    task: TaskContext, seen: Mapping[str, str], given: Mapping[str, str], *, within_job: bool
) -> dict[str, str]:
    """Return the additional variables of a task in a job with a credential broker.

    The broker listens on the loopback of the job's first node, which must not be reached through a proxy. On other
    nodes, nothing may be sent to whoever listens on that port: the addresses are replaced by invalid ones that name
    the broker's node, which QRMI's error then shows.

    Args:
        task: the task.
        seen: the environment that the task would have.
        given: the variables in it that are exported.
        within_job: whether the environment was inherited from a task of the same job.
    """
    node = given.get(names.QRMI_SLURM_BROKER) or (seen.get(names.QRMI_SLURM_BROKER, "") if within_job else "")
    if not node:
        return {}
    if node != task.node:
        shown = "".join(char if char.isalnum() and char.isascii() else "-" for char in node)
        mark = f"/{names.BROKER_MARK}/"
        away = {name: value for name, value in seen.items() if mark in value and value.startswith("http://")}
        return {
            name: f"http://credential-broker-is-on-{shown}-only.invalid{value[value.index(mark) :]}"
            for name, value in away.items()
        }
    direct = seen.get("NO_PROXY") or seen.get("no_proxy", "")
    if "127.0.0.1" not in direct.split(","):
        direct = f"{direct},127.0.0.1".lstrip(",")
    return {"NO_PROXY": direct, "no_proxy": direct} if is_one_line(direct) else {}


def _is_users_rust_log(task: TaskContext, environment: Mapping[str, str]) -> bool:
    if task.rust_log is None or task.rust_log == environment.get(names.QRMI_SLURM_RUST_LOG):
        return False
    return exports.fingerprint(names.RUST_LOG, task.rust_log) not in _given(environment)


def _given(environment: Mapping[str, str]) -> frozenset[str]:
    """Return the fingerprints of the site's values that this environment was given, possibly in another job."""
    return frozenset(filter(None, environment.get(names.QRMI_SLURM_GIVEN, "").split(",")))


def _site_env(task: TaskContext) -> Mapping[str, str]:
    """Return the site's `--env:` variables; none if the line is invalid, which must not stop a job without QPUs."""
    try:
        return plugstack.read(task.slurm_conf).env
    except PlugstackError:
        return {}


def _unset_lines(environment: Mapping[str, str], site_env: Mapping[str, str]) -> list[str]:
    """Return `unset NAME` lines for the variables of a surrounding QPU job, including the site's.

    Without such a job nothing is unset: users may have set the site's proxy themselves.
    """
    if names.QRMI_JOB_ID not in environment:
        return []
    foreign = environment.get(names.QRMI_JOB_QPU_RESOURCES) or environment.get(names.SLURM_JOB_QPU_RESOURCES, "")
    prefixes = tuple(names.of_resource(name, names.QRMI_PREFIX) for name in foreign.split(",") if name)
    stale = {name for name in environment if prefixes and name.startswith(prefixes)}
    stale |= {name for name, value in site_env.items() if environment.get(name) == value}
    given = _given(environment)
    stale |= {name for name, value in environment.items() if given and exports.fingerprint(name, value) in given}
    of_job = {
        *exports.LISTS,
        names.QRMI_SLURM_GIVEN,
        names.QRMI_SLURM_CHOICES,
        names.QRMI_SLURM_BROKER,
        names.QRMI_JOB_ID,
        names.QRMI_JOB_UID,
    }
    stale |= of_job & environment.keys()
    if environment.get(names.QRMI_SLURM_RUST_LOG) is not None:
        stale.add(names.QRMI_SLURM_RUST_LOG)
        if environment.get(names.RUST_LOG) == environment[names.QRMI_SLURM_RUST_LOG]:
            stale.add(names.RUST_LOG)
    # The second line of a name would be another directive.
    return [f"unset {name}" for name in sorted(stale) if is_one_line(name)]


def _refuse(is_first_task: bool, sentences: tuple[str, ...] | list[str]) -> TaskOutcome:
    """Return the outcome that ends the task; only the first task of a step prints the reason."""
    lines = [f"print {printable(sentence, 1000)}" for sentence in sentences] if is_first_task else []
    return TaskOutcome(tuple(lines), TASK_MUST_NOT_RUN_EXIT)
