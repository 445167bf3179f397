"""Slurm's jobs: which ones live, and what slurmctld knows of one.

A hook asks as little as it can. Prolog asks scontrol for the job's time limit only where its environment does not say
(22.05): that is one RPC, where squeue takes three. It asks for the job's licenses and QOS only where the choice of a
QPU or an access rule depends on them. squeue is asked in a format that has no user's text in it.
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

# Up to this many jobs are asked for one by one. The list of all costs slurmctld 4 ms and 1 MB for 1000 jobs that it
# knows, one job 1 ms (docs/benchmarks.md), and squeue takes the list as soon as it is asked for two.
_MAX_ONE_BY_ONE: Final = 16

# How squeue says that there is no such job: ESLURM_INVALID_JOB_ID in src/common/slurm_errno.c, 22.05 to 26.05.
_NO_SUCH_JOB: Final = "Invalid job id specified"

# Columns of squeue's answer: the longest license list that Slurm takes (src/slurmctld/job_mgr.c, _test_strlen()).
_FIELD_CHARS: Final = 1024

# A line of `scontrol show job` (src/api/job_info.c, slurm_sprint_job_info()).
_TIMES_LINE: Final = re.compile(r"^   RunTime=\S+ TimeLimit=(\S+) TimeMin=\S+$", re.MULTILINE)
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
    """

    state: str
    restart_count: int

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
    command += ["--Format=JobID:.20,State:.20,RestartCnt:.20"]
    one_by_one = [[*command, f"--jobs={job_id}"] for job_id in job_ids]
    deadline = Deadline.after(_JOBS_TIMEOUT_S)
    found: dict[int, Job] = {}
    for question in one_by_one if len(job_ids) <= _MAX_ONE_BY_ONE else [command]:
        try:
            found |= parse_jobs(commands.run(question, slurm_conf, deadline.call_s))
        except commands.RefusedError as error:
            if question is command or _NO_SUCH_JOB not in error.stderr:
                return None
        except SchedulerError:
            return None
    return {job_id: found.get(job_id, Job(_GONE, 0)) for job_id in job_ids}


def parse_jobs(text: str) -> dict[int, Job]:
    """Return the jobs of squeue's answer: a line each with job id, state and restart count."""
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[0].isdecimal() and words[2].isdecimal():
            found[int(words[0])] = Job(words[1], int(words[2]))
    return found


def time_limit_s(job_id: int, slurm_conf: Path, timeout_s: float) -> int | None:
    """Ask for a job's time limit, again and again where slurmctld does not answer.

    Args:
        job_id: Slurm's id.
        slurm_conf: Slurm's configuration file.
        timeout_s: how long slurmctld may take, in seconds.

    Returns:
        Seconds, 2147483647 where there is no limit; None where slurmctld does not say.
    """
    deadline = Deadline.after(timeout_s)
    while True:
        try:
            return _ask_time_limit_s(job_id, slurm_conf, Deadline.after(min(deadline.call_s, _ONE_JOB_TIMEOUT_S)))
        except commands.RefusedError as error:
            if _NO_SUCH_JOB in error.stderr or deadline.left_s <= _AGAIN_S:
                return None
        except SchedulerError:
            if deadline.left_s <= _AGAIN_S:
                return None
        time.sleep(_AGAIN_S)


def _ask_time_limit_s(job_id: int, slurm_conf: Path, deadline: Deadline) -> int | None:
    """Ask for a job's time limit once.

    Raises:
        SchedulerError: slurmctld cannot be asked, or does not know the job.
    """
    shown = commands.run(["scontrol", "--local", "show", "job", str(job_id)], slurm_conf, deadline.call_s)
    # The job's name and comment are printed as they are, so they can forge this line, and the other tasks of an array
    # are shown too. Slurm's own line is among them: where all agree, it says the same.
    limits = set(_TIMES_LINE.findall(shown))
    if len(limits) == 1:
        return parse_time_limit_s(limits.pop())
    told = _columns(job_id, "TimeLimit:.20", slurm_conf, deadline.call_s)
    return parse_time_limit_s(told[0]) if told else None


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
    """

    licenses: Mapping[str, int]
    qos: str


def allotment(job_id: int, slurm_conf: Path, timeout_s: float = _ONE_JOB_TIMEOUT_S) -> Allotment | None:
    """Ask for a job's licenses and quality of service; None where slurmctld does not say.

    Args:
        job_id: Slurm's id.
        slurm_conf: Slurm's configuration file.
        timeout_s: how long slurmctld may take, in seconds; at most 5.
    """
    columns = f"QOS:.{_FIELD_CHARS},Licenses:.{_FIELD_CHARS}"
    try:
        told = _columns(job_id, columns, slurm_conf, min(timeout_s, _ONE_JOB_TIMEOUT_S))
    except SchedulerError:  # a hook has to live with that
        return None
    if not told:
        return None
    qos, held = told
    return Allotment(licenses.granted_counts(held), "" if qos == "(null)" else qos)


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
