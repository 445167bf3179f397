"""Requeueing: what slurmctld knows of a job that cannot start, and putting that job back into the queue.

Slurm's documentation advises against its commands in a prolog. For a start that fails there are three, an RPC each: one
question, the requeue, and an update of the waiting job. For one that succeeds there are none.

A prolog that has its job requeued and exits 0 leaves the job pending, its script unstarted and the node free (tried on
22.05, 24.11 and 26.05). Slurm accepts a start time only after the requeue.
"""

import re
import secrets
from pathlib import Path
from typing import Final, NamedTuple

from qrmi_slurm.deadline import Deadline
from qrmi_slurm.errors import SchedulerError
from qrmi_slurm.slurm import commands
from qrmi_slurm.slurm.jobs import parse_time_limit_s
from qrmi_slurm.text import is_one_line

# Lines of `scontrol show job` (src/api/job_info.c in 22.05, src/scontrol/info_job.c in 26.05). Whatever is before the
# job's name is Slurm's own. The name itself, comments and paths are users' texts, and may have line breaks.
_PARTS: Final = re.compile(r"^(?=JobId=\d+ )", re.MULTILINE)
_FIRST_LINE: Final = re.compile(r"JobId=\d+ (?:ArrayJobId=(\d+) ArrayTaskId=(\d+) )?")
_COMPONENT: Final = re.compile(r"JobId=\d+ HetJobId=\d+ HetJobOffset=")
_STATE_LINE: Final = re.compile(r"^   JobState=(\w+) ", re.MULTILINE)
_REQUEUE_LINE: Final = re.compile(r"^   Requeue=(\d) Restarts=(\d{1,10}) BatchFlag=(\d) ", re.MULTILINE)
_LIMIT_LINE: Final = re.compile(r"^   RunTime=\S+ TimeLimit=(\S+) TimeMin=(\S+)$", re.MULTILINE)
_DEADLINE_LINE: Final = re.compile(r"^   StartTime=\S+ EndTime=\S+ Deadline=(\d{1,12})$", re.MULTILINE)
_LICENSES_LINE: Final = re.compile(r"^   OverSubscribe=.* Licenses=(\S+) ", re.MULTILINE)
_FOLDER_LINE: Final = re.compile(r"^   WorkDir=", re.MULTILINE)

# The line after WorkDir, up to the next line of Slurm's; there is none where the job has no AdminComment.
_AFTER_FOLDER: Final = re.compile(
    r"^   WorkDir=.*\n(?:   AdminComment=(.*)\n)?   (?!AdminComment=)[A-Z]\w+=", re.MULTILINE
)

# What a job is while its Prolog runs, with and without PrologFlags=Alloc.
_STARTING: Final = frozenset({"CONFIGURING", "RUNNING"})

_VERSION: Final = re.compile(r"(\d+)\.(\d+)\.(\d+)")

# From 25.05 on a requeue dropped a job's licenses, which then ran without being counted; 25.11.7 mends that
# (src/slurmctld/job_mgr.c, batch_requeue_fini()).
_LOSES_LICENSES: Final = (25, 5, 0)
_KEEPS_LICENSES: Final = (25, 11, 7)


class Standing(NamedTuple):
    """What slurmctld says of a job whose Prolog runs.

    Args:
        name: the job as scontrol takes it: `12`, `12_3` for a task of an array, the leader's id for a component of a
            heterogeneous job, of which only the leader can be requeued, with all components.
        is_running: whether the job still has its nodes: it may have been cancelled, or another component's Prolog may
            have requeued it.
        may_wait: whether it is a batch job that may be requeued.
        restarts: how often it has been restarted.
        comment: its AdminComment; None if unknown.
        is_common: whether all components of a heterogeneous job have this AdminComment.
        latest_start_s: the last moment at which it may start because of its `--deadline`; seconds since the epoch.
        has_licenses: whether it asked for licenses.
    """

    name: str
    is_running: bool
    may_wait: bool
    restarts: int
    comment: str | None
    is_common: bool = True
    latest_start_s: int | None = None
    has_licenses: bool = False


def ask(job_id: int, work_dir: str | None, slurm_conf: Path, deadline: Deadline) -> Standing:
    """Ask slurmctld about a job.

    Args:
        job_id: Slurm's id; of a heterogeneous job the leader's.
        work_dir: its working directory, as slurmd tells Prolog; None if unknown.
        slurm_conf: Slurm's configuration file.
        deadline: when the answer has to be there.

    Raises:
        SchedulerError: slurmctld did not answer, or what it says of the job cannot be made out.
    """
    command = ["scontrol", "--local", "show", "job", str(job_id)]
    found = parse(commands.run(command, slurm_conf, deadline.call_s, "%s"), job_id, work_dir)
    if found is None:
        raise SchedulerError("what scontrol shows of the job is ambiguous", "is a line break in the job's name?")
    if found.may_wait and found.comment is None:
        found = found._replace(comment=_ask_comment(job_id, slurm_conf, deadline))
    return found


def parse(answer: str, job_id: int, work_dir: str | None) -> Standing | None:
    """Return what `scontrol show job` says of a job; None where the job is not in it, or cannot be told apart.

    Args:
        answer: what it printed, with times in seconds; further tasks of an array and further components are in it too.
        job_id: of the job.
        work_dir: its working directory; None if unknown.
    """
    parts = _PARTS.split(answer)
    own = [part for part in parts if part.startswith(f"JobId={job_id} ")]
    if len(own) != 1:
        return None
    (text,) = own
    state, requeue = _only(_STATE_LINE, text), _only(_REQUEUE_LINE, text)
    first = _FIRST_LINE.match(text)
    if state is None or requeue is None or first is None:
        return None
    array_id, task_id = first.groups()
    comment = _comment(text, work_dir)
    others = [part for part in parts if part is not text and _COMPONENT.match(part)]
    return Standing(
        name=f"{array_id}_{task_id}" if array_id else str(job_id),
        is_running=state[0] in _STARTING,
        may_wait=(requeue[0], requeue[2]) == ("1", "1"),
        restarts=int(requeue[1]),
        comment=comment,
        is_common=all(_comment(part, work_dir) == comment for part in others),
        latest_start_s=_latest_start_s(text),
        has_licenses=_only(_LICENSES_LINE, text) not in (None, ("(null)",)),
    )


def _only(pattern: re.Pattern[str], text: str) -> tuple[str, ...] | None:
    """Return the groups that all matches agree on; None if they do not, or there is no match.

    Slurm's own line is always among them. Who forges another deceives only their own job.
    """
    found = {match.groups() for match in pattern.finditer(text)}
    return found.pop() if len(found) == 1 else None


def _latest_start_s(text: str) -> int | None:
    deadline, limits = _only(_DEADLINE_LINE, text), _only(_LIMIT_LINE, text)
    if deadline is None:
        return None
    seconds = [parse_time_limit_s(word) for word in limits] if limits is not None else []
    return int(deadline[0]) - min((needed for needed in seconds if needed is not None), default=0)


def _comment(text: str, work_dir: str | None) -> str | None:
    """Return the AdminComment in a job's part of the answer; None where users' text may have forged it.

    What is taken for it is written back, and only operators may write there. It follows the job's working directory.
    Whatever comes before that is found by a second `WorkDir=`, what is in it by its line break.
    """
    if work_dir is None or not is_one_line(work_dir) or len(_FOLDER_LINE.findall(text)) != 1:
        return None
    match = _AFTER_FOLDER.search(text)
    return (match[1] or "").rstrip() if match is not None else None  # None also where it has several lines


def _ask_comment(job_id: int, slurm_conf: Path, deadline: Deadline) -> str | None:
    """Ask for an AdminComment in a way that nothing in a job can disturb; it takes two RPCs more. None if unknown."""
    mark = f"|{secrets.token_hex(8)}|"
    command = ["squeue", "--noheader", "--all", "--local", "--array", "--states=all", f"--jobs={job_id}"]
    command += [f"--Format=JobID:{mark},admin_comment:{mark}"]
    try:
        answer = commands.run(command, slurm_conf, deadline.call_s)
    except SchedulerError:
        return None
    quoted = re.escape(mark)
    found = re.findall(rf"^\s*{job_id}{quoted}(.*?){quoted}$", answer, re.MULTILINE | re.DOTALL)
    return ("" if found[0] == "(null)" else found[0].rstrip()) if len(found) == 1 else None


def put_back(name: str, slurm_conf: Path, timeout_s: float) -> None:
    """Put a job back into the queue, unless it is over or waits already, which Slurm does not tell.

    Args:
        name: the job as scontrol takes it.
        slurm_conf: Slurm's configuration file.
        timeout_s: how long slurmctld may take, in seconds.

    Raises:
        SchedulerError: Slurm refused, or did not answer.
    """
    # Without the word a job that was cancelled meanwhile would come back.
    commands.run(["scontrol", "requeue", "incomplete", name], slurm_conf, timeout_s)


def put_off(standing: Standing, delay_s: int, comment: str | None, slurm_conf: Path, timeout_s: float) -> None:
    """Let a job that was just put back wait for some time, and say why in its AdminComment.

    Args:
        standing: the job's, before it was put back.
        delay_s: how long, in seconds.
        comment: its new AdminComment; None to leave it as it is.
        slurm_conf: Slurm's configuration file.
        timeout_s: how long slurmctld may take, in seconds.

    Raises:
        SchedulerError: Slurm refused, as where the job was cancelled; or it did not answer.
    """
    # The leader's number means all components, and would give them the leader's comment.
    name = standing.name if standing.is_common or comment is None else f"{standing.name}+0"
    command = ["scontrol", "update", f"JobId={name}", f"StartTime=now+{delay_s}"]
    command += [] if comment is None else [f"AdminComment={comment}"]
    commands.run(command, slurm_conf, timeout_s)


def loses_licenses(version: str) -> bool:
    """Tell whether this version of Slurm drops a job's licenses when the job is requeued.

    Args:
        version: such as `25.11.6`, possibly with other words around it.
    """
    match = _VERSION.search(version)
    return match is not None and _LOSES_LICENSES <= tuple(map(int, match.groups())) < _KEEPS_LICENSES


def version(slurm_conf: Path, timeout_s: float) -> str:
    """Return the version of this node's scontrol; slurmctld's is the same, or a newer one.

    Raises:
        SchedulerError: it cannot be run.
    """
    return commands.run(["scontrol", "--version"], slurm_conf, timeout_s)
