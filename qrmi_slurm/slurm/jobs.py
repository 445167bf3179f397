"""Slurm's jobs: which ones live, and what slurmctld knows of one.

A hook asks as little as it can. Prolog asks scontrol for the job's times only where its environment does not say
(22.05): that is one RPC, where squeue takes three. It asks for the job's licenses and QOS only where the choice
of a QPU or an access rule depends on them. squeue is asked in a format that has no user's text in it.
"""

import re
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from qrmi_slurm.deadline import Deadline
from qrmi_slurm.errors import SchedulerError
from qrmi_slurm.names import UNLIMITED_TIMEOUT_S
from qrmi_slurm.slurm import commands, licenses

# slurmctld answers in milliseconds; a busy one must not hold up a job's start. All jobs may be 100,000.
_ONE_JOB_TIMEOUT_S: Final = 5.0

# Without its time limit a job cannot have a QPU, so slurmctld is asked again where it does not answer: it may have been
# restarted, or its backup takes over.
_AGAIN_S: Final = 0.5
_JOBS_TIMEOUT_S: Final = 30.0

# Both commands write times in seconds since the epoch with it, as hooks get them (SLURM_TIME_FORMAT in their pages).
_EPOCH: Final = "%s"

# Up to this many jobs are asked for one by one. The list of all costs slurmctld 4 ms and 1 MB for 1000 jobs that it
# knows, one job 1 ms (docs/benchmarks.md), and squeue takes the list as soon as it is asked for two.
_MAX_ONE_BY_ONE: Final = 16

# How squeue says that there is no such job: ESLURM_INVALID_JOB_ID in src/common/slurm_errno.c, 22.05 to 26.05.
_NO_SUCH_JOB: Final = "Invalid job id specified"

# Columns of squeue's answer: the longest license list that Slurm takes (src/slurmctld/job_mgr.c, _test_strlen()).
_FIELD_CHARS: Final = 1024

# Lines of `scontrol show job` (src/api/job_info.c, slurm_sprint_job_info()).
_TIMES_LINE: Final = re.compile(r"^   RunTime=\S+ TimeLimit=(\S+) TimeMin=\S+$", re.MULTILINE)
_SUBMIT_LINE: Final = re.compile(r"^   SubmitTime=(\d{1,12}) EligibleTime=\S+$", re.MULTILINE)
_START_LINE: Final = re.compile(r"^   StartTime=(\d{1,12}) EndTime=\S+ Deadline=\S+$", re.MULTILINE)
_TIME_LIMIT: Final = re.compile(r"(?:(\d{1,6})-)?(?:(\d{1,6}):)?(\d{1,6}):(\d{1,2})")

# States in which no process of a job can exist, so that nothing uses its QPUs: the words of job_state_string() in
# src/common/slurm_protocol_defs.c, 22.05 to 26.05. Any other state, a new one too, counts as living. A job that is
# COMPLETING has its Epilog running or still to come.
_GONE: Final = "GONE"
_OVER: Final = frozenset(
    {_GONE, "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}
    | {"REVOKED", "TIMEOUT"}
)
_TO_RUN_AGAIN: Final = frozenset(
    {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
)


class Job(NamedTuple):
    """A job that Slurm knows.

    Args:
        state: Slurm's long word for its state; GONE where Slurm does not know the job.
        restart_count: how often it was requeued.
        submit_s: when it was submitted, by slurmctld's clock; seconds since the epoch, None if unknown.
        start_s: when it started, by the same clock; None if it has not, or it is unknown.
        end_s: when it has ended, or has to; None if it has no time limit, or it is unknown.
    """

    state: str
    restart_count: int
    submit_s: int | None = None
    start_s: int | None = None
    end_s: int | None = None

    def has_started_at(self, start_s: int | None) -> bool:
        """Tell whether this may be the job that started at that time, rather than a later one with the same id.

        A job's start time grows while its nodes power up, so that it alone cannot tell (src/slurmctld/job_mgr.c,
        job_config_fini()); no job was submitted after it had started.

        Args:
            start_s: by slurmctld's clock, in seconds since the epoch; None if unknown.
        """
        if start_s is None or self.submit_s is None:
            return True
        return self.submit_s <= start_s or self.start_s == start_s

    def is_living_run(self, restart_count: int) -> bool:
        """Tell whether this very run of the job may still use what it acquired."""
        return self.state not in _OVER | _TO_RUN_AGAIN and self.restart_count == restart_count

    @property
    def is_over(self) -> bool:
        """Whether the job has ended for good."""
        return self.state in _OVER


def jobs(job_ids: Collection[int], slurm_conf: Path) -> Mapping[int, Job] | None:
    """Ask for jobs, whatever their state.

    Args:
        job_ids: Slurm's ids.
        slurm_conf: Slurm's configuration file.

    Returns:
        Each of them by its id; None where slurmctld cannot be asked.
    """
    # --all: hidden partitions have living jobs too. --local: in a federation, leave out the other clusters' jobs.
    command = ["squeue", "--noheader", "--all", "--local", "--array", "--states=all"]
    command += ["--Format=JobID:.20,State:.20,RestartCnt:.20,SubmitTime:.20,StartTime:.20,EndTime:.20"]
    one_by_one = [[*command, f"--jobs={job_id}"] for job_id in job_ids]
    deadline = Deadline.after(_JOBS_TIMEOUT_S)
    found: dict[int, Job] = {}
    for question in one_by_one if len(job_ids) <= _MAX_ONE_BY_ONE else [command]:
        try:
            found |= parse_jobs(commands.run(question, slurm_conf, deadline.call_s, _EPOCH))
        except commands.RefusedError as error:
            if question is command or _NO_SUCH_JOB not in error.stderr:
                return None
        except SchedulerError:
            return None
    return {job_id: found.get(job_id, Job(_GONE, 0)) for job_id in job_ids}


def parse_jobs(text: str) -> dict[int, Job]:
    """Return the jobs of squeue's answer: a line each with job id, state, restart count, submit, start and end time."""
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 6 and words[0].isdecimal() and words[2].isdecimal():
            submit_s, start_s, end_s = (int(word) if word.isdecimal() else None for word in words[3:])  # or N/A
            found[int(words[0])] = Job(words[1], int(words[2]), submit_s, start_s, end_s or None)
    return found


class Times(NamedTuple):
    """What slurmctld says of a running job's times.

    Args:
        limit_s: its time limit in seconds; 2147483647 where it has none, None where slurmctld does not say.
        submit_s: when it was submitted; seconds since the epoch, None where slurmctld does not say.
        start_s: when it started; the same.
    """

    limit_s: int | None = None
    submit_s: int | None = None
    start_s: int | None = None


def times(job_id: int, slurm_conf: Path, timeout_s: float) -> Times:
    """Ask for a job's times, again and again where slurmctld does not answer.

    Args:
        job_id: Slurm's id.
        slurm_conf: Slurm's configuration file.
        timeout_s: how long slurmctld may take, in seconds.
    """
    deadline = Deadline.after(timeout_s)
    while True:
        try:
            return _ask_times(job_id, slurm_conf, Deadline.after(min(deadline.call_s, _ONE_JOB_TIMEOUT_S)))
        except commands.RefusedError as error:
            if _NO_SUCH_JOB in error.stderr or deadline.left_s <= _AGAIN_S:
                return Times()
        except SchedulerError:
            if deadline.left_s <= _AGAIN_S:
                return Times()
        time.sleep(_AGAIN_S)


def _ask_times(job_id: int, slurm_conf: Path, deadline: Deadline) -> Times:
    """Ask for a job's times once.

    Raises:
        SchedulerError: slurmctld cannot be asked, or does not know the job.
    """
    command = ["scontrol", "--local", "show", "job", str(job_id)]
    answer = commands.run(command, slurm_conf, deadline.call_s, _EPOCH)
    # The job's name and comment are printed as they are, so they can forge this line, and the other tasks of an array
    # are shown too. Slurm's own line is among them: where all agree, it says the same.
    limits = set(_TIMES_LINE.findall(answer))
    told = [limits.pop()] if len(limits) == 1 else _columns(job_id, "TimeLimit:.20", slurm_conf, deadline.call_s)
    # Tasks of an array start at their own times. Who forges these deceives only their own jobs.
    shown = "\n".join(part for part in answer.split("\n\n") if part.lstrip("\n").startswith(f"JobId={job_id} "))
    limit_s = parse_time_limit_s(told[0]) if told else None
    return Times(limit_s, _only_number(_SUBMIT_LINE, shown), _only_number(_START_LINE, shown))


def _only_number(pattern: re.Pattern[str], text: str) -> int | None:
    """Return the number that all matches agree on; None if they do not, or there is no match."""
    found = set(pattern.findall(text))
    return int(found.pop()) if len(found) == 1 else None


def parse_time_limit_s(text: str) -> int | None:
    """Return the seconds of Slurm's `[[days-]hours:]minutes:seconds` or UNLIMITED; None for anything else."""
    text = text.strip()
    if text == "UNLIMITED":
        return UNLIMITED_TIMEOUT_S
    match = _TIME_LIMIT.fullmatch(text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(group or 0) for group in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


class Allotment(NamedTuple):
    """What Slurm has given a job.

    Args:
        licenses: how many of each, by name; empty where the job has none.
        qos: its quality of service; empty where it has none.
        name: the job's id as scontrol takes it: `12`, or `12_3` for a task of an array.
    """

    licenses: Mapping[str, int]
    qos: str
    name: str = ""


def allotment(job_id: int, slurm_conf: Path, timeout_s: float = _ONE_JOB_TIMEOUT_S) -> Allotment | None:
    """Ask for a job's licenses and quality of service; None where slurmctld does not say.

    Args:
        job_id: Slurm's id.
        slurm_conf: Slurm's configuration file.
        timeout_s: how long slurmctld may take, in seconds; at most 5.
    """
    columns = f"ArrayJobID:.20,ArrayTaskID:.20,QOS:.{_FIELD_CHARS},Licenses:.{_FIELD_CHARS}"
    try:
        told = _columns(job_id, columns, slurm_conf, min(timeout_s, _ONE_JOB_TIMEOUT_S))
    except SchedulerError:  # a hook has to live with that
        return None
    if not told:
        return None
    array_id, task_id, qos, granted = told
    name = f"{array_id}_{task_id}" if task_id.isdecimal() else str(job_id)
    return Allotment(licenses.granted_counts(granted), "" if qos == "(null)" else qos, name)


def granted_licenses(job_id: int, slurm_conf: Path, timeout_s: float) -> Mapping[str, int] | None:
    """Ask which licenses a job was granted that asked for one or another (`a|b`, from 25.05 on).

    Args:
        job_id: Slurm's id.
        slurm_conf: Slurm's configuration file.
        timeout_s: how long slurmctld may take, in seconds; at most 5.

    Returns:
        How many of each, by name; None where slurmctld does not say.
    """
    try:
        told = _columns(job_id, f"LicensesAlloc:.{_FIELD_CHARS}", slurm_conf, min(timeout_s, _ONE_JOB_TIMEOUT_S))
    except SchedulerError:
        return None
    return licenses.granted_counts(told[0]) if told else None


def _columns(job_id: int, columns: str, slurm_conf: Path, timeout_s: float) -> list[str]:
    """Return what squeue says in some columns of a job; an empty list where the answer is not in this format.

    Raises:
        SchedulerError: slurmctld cannot be asked, or does not know the job.
    """
    command = ["squeue", "--noheader", "--all", "--local", "--array", f"--jobs={job_id}"]
    command += [f"--Format=JobID:.20,{columns}"]
    lines = [line.split() for line in commands.run(command, slurm_conf, timeout_s).splitlines()]
    expected = columns.count(",") + 2
    return next((words[1:] for words in lines if len(words) == expected and words[0] == str(job_id)), [])
