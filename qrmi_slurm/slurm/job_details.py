"""What Slurm says about one job, for people: from slurmctld, or from slurmdbd once slurmctld has forgotten the job.

Hooks ask with jobs.py. Each question here has a mark of its own between the fields of the answer, since some of these
are users' text.
"""

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from qrmi_slurm.errors import ContextError, SchedulerError
from qrmi_slurm.slurm import commands, conf_file, licenses
from qrmi_slurm.slurm.commands import RefusedError
from qrmi_slurm.slurm.job_context import first_host

# An id as people type it: `12`, a task of an array `12_3`, a component of a heterogeneous job `12+1`.
_ID: Final = re.compile(r"([1-9]\d{0,9})(?:_(\d{1,9})|\+(\d{1,4}))?")
_EXIT: Final = re.compile(r"(\d{1,3}):(\d{1,3})")

# src/api/job_info.c, slurm_sprint_job_info(), which fills in `%j` and the like.
_OUTPUT_LINE: Final = re.compile(r"^   StdOut=(/.*)$", re.MULTILINE)

_EPOCH: Final = "%s"
_TIMEOUT_S: Final = 10.0
# squeue looks through all jobs for those with a license.
_ALL_JOBS_TIMEOUT_S: Final = 30.0

# How slurmctld says that there is no such job, or none that this user may see (PrivateData=jobs).
_NO_SUCH_JOB: Final = "Invalid job id specified"

# squeue's fields (src/squeue/opts.c) and sacct's (src/sacct/sacct.c), 22.05 to 26.05.
_SQUEUE: Final = (
    *("JobArrayID", "JobID", "State", "Reason", "UserName", "Licenses", "SubmitTime", "EligibleTime", "StartTime"),
    *("EndTime", "RestartCnt", "NodeList", "exit_code", "admin_comment"),
)
_SACCT: Final = ("JobID", "JobIDRaw", "State", "User", "Submit", "Start", "End", "ExitCode", "NodeList", "AdminComment")
_HOLDER: Final = ("JobArrayID", "UserName", "State", "EndTime")

# Jobs in these states have their licenses.
_HOLDING: Final = "RUNNING,SUSPENDED,COMPLETING,CONFIGURING,STOPPED"


class JobId(NamedTuple):
    """A job's id.

    Args:
        number: the id, or that of the array, or of the heterogeneous job.
        part: what follows it: `_3`, `+1` or nothing.
    """

    number: int
    part: str = ""

    def __str__(self) -> str:
        return f"{self.number}{self.part}"


@dataclass(frozen=True, slots=True)
class JobDetails:
    """A job, as Slurm describes it.

    Args:
        shown: its id as people know it: `12`, `12_3`, `12_[4-9]`, `12+1`.
        job_id: its own number.
        state: Slurm's long word.
        reason: why it waits, in Slurm's word; empty if unknown.
        user: its owner's login name.
        licenses: how many of each license it asks for; empty if Slurm does not say.
        submit_s: when it was submitted; seconds since the epoch, None if unknown. So are the other times.
        eligible_s: from when on it may start.
        start_s: when it started, or is expected to.
        end_s: when it ended, or has to end; None also without a time limit.
        restarts: how often it was put back into the queue; None if unknown.
        node: its first node; empty if it has none.
        exit_code: of its script; None if unknown.
        signal: that ended it; 0 for none.
        admin_comment: the site's text.
        is_of_past: whether slurmdbd said so, because slurmctld does not know the job any more.
    """

    shown: str
    job_id: int
    state: str
    reason: str = ""
    user: str = ""
    licenses: Mapping[str, int] = field(default_factory=dict)
    submit_s: int | None = None
    eligible_s: int | None = None
    start_s: int | None = None
    end_s: int | None = None
    restarts: int | None = None
    node: str = ""
    exit_code: int | None = None
    signal: int = 0
    admin_comment: str = ""
    is_of_past: bool = False


@dataclass(frozen=True, slots=True)
class Holder:
    """A job that has a license.

    Args:
        shown: its id.
        user: its owner's login name.
        state: Slurm's long word.
        end_s: when it has to end; None without a time limit.
    """

    shown: str
    user: str
    state: str
    end_s: int | None


def parse_id(text: str) -> JobId | None:
    """Return the id that a text is; None if it is none."""
    match = _ID.fullmatch(text.strip())
    if match is None:
        return None
    part = f"_{int(match[2])}" if match[2] else f"+{int(match[3])}" if match[3] else ""
    return JobId(int(match[1]), part)


def find(job: JobId, slurm_conf: Path) -> list[JobDetails]:
    """Return a job, or all that is left of an array or a heterogeneous job; an empty list if Slurm shows none.

    Raises:
        SchedulerError: slurmctld cannot be asked.
    """
    is_task = job.part.startswith("_")
    command = ["squeue", "--noheader", "--all", "--local", "--states=all", *(["--array"] if is_task else [])]
    command += [f"--jobs={job if is_task else job.number}"]
    mark = _mark()
    try:
        answer = commands.run([*command, _format(_SQUEUE, mark)], slurm_conf, _TIMEOUT_S, _EPOCH)
    except RefusedError as error:
        if _NO_SUCH_JOB not in error.stderr:
            raise
        answer = ""
    found = parse_squeue(answer, mark)
    if job.part:
        found = [one for one in found if one.shown == str(job)]
    return found or _find_in_the_past(job, slurm_conf)


def _find_in_the_past(job: JobId, slurm_conf: Path) -> list[JobDetails]:
    """Return what slurmdbd knows of a job; nothing at a site without it."""
    if "slurmdbd" not in (conf_file.setting(slurm_conf, "AccountingStorageType") or ""):
        return []
    mark = _mark()
    command = ["sacct", "--noheader", "--allocations", "--parsable", f"--delimiter={mark}", f"--jobs={job}"]
    return parse_sacct(commands.run([*command, f"--format={','.join(_SACCT)}"], slurm_conf, _TIMEOUT_S, _EPOCH), mark)


def holders(license: str, slurm_conf: Path) -> list[Holder]:
    """Return the jobs that have a license, as far as the caller may see them.

    Raises:
        SchedulerError: slurmctld cannot be asked.
    """
    mark = _mark()
    command = ["squeue", "--noheader", "--all", "--local", f"--states={_HOLDING}", f"--licenses={license}"]
    answer = commands.run([*command, _format(_HOLDER, mark)], slurm_conf, _ALL_JOBS_TIMEOUT_S, _EPOCH)
    return [Holder(shown, user, state, _seconds(end)) for shown, user, state, end in _rows(answer, len(_HOLDER), mark)]


def output_path(job_id: int, slurm_conf: Path) -> Path | None:
    """Return the file that a batch job writes its output to; None if it has none, or slurmctld does not say.

    The job's owner can forge it, so only they may act on it.
    """
    try:
        command = ["scontrol", "--local", "show", "job", str(job_id)]
        found = _OUTPUT_LINE.findall(commands.run(command, slurm_conf, _TIMEOUT_S))
    except SchedulerError:
        return None
    return Path(found[-1]) if found else None


def parse_squeue(text: str, mark: str) -> list[JobDetails]:
    """Return the jobs in squeue's answer.

    Args:
        text: the answer.
        mark: what follows each field.
    """
    found = []
    for row in _rows(text, len(_SQUEUE), mark):
        shown, number, state, reason, user, asked, submit, eligible, start, end, restarts, nodes, status, comment = row
        if not number.isdecimal():
            continue
        exit_code, signal = _exit(status)
        found.append(
            JobDetails(
                shown=shown,
                job_id=int(number),
                state=state,
                reason=reason,
                user=user,
                licenses=licenses.granted_counts(_text(asked)),
                submit_s=_seconds(submit),
                eligible_s=_seconds(eligible),
                start_s=_seconds(start),
                end_s=_seconds(end),
                restarts=int(restarts) if restarts.isdecimal() else None,
                node=_first_node(nodes),
                exit_code=exit_code,
                signal=signal,
                admin_comment=_text(comment),
            )
        )
    return found


def parse_sacct(text: str, mark: str) -> list[JobDetails]:
    """Return the jobs in sacct's answer.

    Args:
        text: the answer.
        mark: what follows each field.
    """
    found = []
    for row in _rows(text, len(_SACCT), mark):
        shown, number, state, user, submit, start, end, status, nodes, comment = row
        if not number.isdecimal():
            continue
        exit_code, signal = _exit(status)
        found.append(
            JobDetails(
                shown=shown,
                job_id=int(number),
                state=state.partition(" ")[0],  # "CANCELLED by 1000"
                user=user,
                submit_s=_seconds(submit),
                start_s=_seconds(start),
                end_s=_seconds(end),
                node=_first_node(nodes),
                exit_code=exit_code,
                signal=signal,
                admin_comment=_text(comment),
                is_of_past=True,
            )
        )
    return found


def _mark() -> str:
    """Return what stands between fields; nobody could have guessed it."""
    return f"|{secrets.token_hex(8)}|"


def _format(fields: Sequence[str], mark: str) -> str:
    # A colon without a number: as wide as needed (src/squeue/opts.c).
    return f"--Format={','.join(f'{name}:{mark}' for name in fields)}"


def _rows(text: str, width: int, mark: str) -> list[list[str]]:
    """Return the rows of an answer; a field may have line breaks in it."""
    parts = text.split(mark)
    rows = [parts[at : at + width] for at in range(0, len(parts) - width + 1, width)]
    return [[row[0].removeprefix("\n"), *row[1:]] for row in rows]


def _exit(field: str) -> tuple[int | None, int]:
    """Return a script's exit code and the signal that ended it: of `1:0`, or of a wait status, as squeue 22.05 says."""
    match = _EXIT.fullmatch(field)
    if match is not None:
        return int(match[1]), int(match[2])
    return (int(field) >> 8, int(field) & 0x7F) if field.isdecimal() else (None, 0)


def _first_node(field: str) -> str:
    """Return the first node of a list; nothing where a job has none (`None assigned`, `n/a` for one that has lost all).

    squeue's BatchHost is the host of the command for jobs of srun and salloc.
    """
    try:
        return "" if " " in field or field in ("", "n/a", "None", "(null)") else first_host(field)
    except ContextError:
        return ""


def _text(field: str) -> str:
    return "" if field in ("(null)", "N/A") else field


def _seconds(field: str) -> int | None:
    """Return a time in seconds since the epoch; None where Slurm has none (`N/A`, `NONE`, `Unknown`)."""
    return int(field) if field.isdecimal() and int(field) > 0 else None
