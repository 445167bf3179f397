"""The scheduler: what slurmctld tells of jobs and licenses, and what it is told of them.

Prolog asks for one job's time limit, and only where its environment does not say (22.05), with scontrol: that is one
RPC, where squeue takes two or three. For a job that leaves the choice of a QPU open it may ask for licenses and change
the job's; for access rules on the QOS it asks for that. The command asks for all jobs. What is asked of squeue is asked
in a format that holds no user's text. Nothing else of a hook comes here.
"""

import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from qrmi_slurm import slurm_commands
from qrmi_slurm.names import SLURM_CONF, UNLIMITED_TIMEOUT_S

# slurmctld answers in milliseconds; a busy one must not hold a job's start for long. All jobs may be 100,000.
_ONE_JOB_TIMEOUT_S: Final = 5.0
_ALL_JOBS_TIMEOUT_S: Final = 30.0

# Columns of squeue's answer: the longest list of licenses that Slurm takes (src/slurmctld/job_mgr.c, _test_strlen()).
_FIELD_CHARS: Final = 1024

# A line of `scontrol show job` (src/api/job_info.c, slurm_sprint_job_info()).
_TIMES_LINE: Final = re.compile(r"^   RunTime=\S+ TimeLimit=(\S+) TimeMin=\S+$", re.MULTILINE)
_TIME_LIMIT: Final = re.compile(r"(?:(\d{1,6})-)?(?:(\d{1,6}):)?(\d{1,6}):(\d{1,2})")

# States in which no process of a job can be there, so that its QPUs are in no use: the words of job_state_string() in
# src/common/slurm_protocol_defs.c, from 22.05 to 26.05. Any other one, a new one too, counts as living. A job that is
# COMPLETING has its Epilog running or still to come.
_OVER: Final = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}
    | {"REVOKED", "TIMEOUT"}
)
_TO_RUN_AGAIN: Final = frozenset(
    {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
)


class Job(NamedTuple):
    """A job that Slurm knows.

    Args:
        state: Slurm's long word for its state.
        restart_count: how often it was requeued.
    """

    state: str
    restart_count: int

    def is_living_run(self, restart_count: int) -> bool:
        """Tell whether this very run of the job may still use what it has acquired."""
        return self.state not in _OVER | _TO_RUN_AGAIN and self.restart_count == restart_count

    @property
    def is_over(self) -> bool:
        """Whether the job has ended for good."""
        return self.state in _OVER


def time_limit_s(job_id: int, slurm_conf: Path, timeout_s: float = _ONE_JOB_TIMEOUT_S) -> int | None:
    """Ask for a job's time limit in seconds; None where it cannot be had.

    Args:
        job_id: Slurm's id.
        slurm_conf: Slurm's configuration file.
        timeout_s: how long that may take, in seconds; 5 at the most.

    Returns:
        Seconds; 2147483647 where Slurm says UNLIMITED.
    """
    arguments = ["--local", "show", "job", str(job_id)]
    answer = _ask("scontrol", arguments, slurm_conf, min(timeout_s, _ONE_JOB_TIMEOUT_S))
    # A user's text, the job's name for one, may hold such a line as well, and the other tasks of an array come with it.
    # Slurm's own line is among them, so it says what all of them say.
    limits = set(_TIMES_LINE.findall(answer or ""))
    return parse_time_limit_s(limits.pop()) if len(limits) == 1 else None


class Allotment(NamedTuple):
    """What Slurm has given a job.

    Args:
        licenses: how many of each, by name.
        qos: its quality of service; empty where it has none.
    """

    licenses: Mapping[str, int]
    qos: str


def allotment(job_id: int, slurm_conf: Path, timeout_s: float = _ONE_JOB_TIMEOUT_S) -> Allotment | None:
    """Ask for a job's licenses and quality of service; None where slurmctld does not tell.

    Args:
        job_id: Slurm's id.
        slurm_conf: Slurm's configuration file.
        timeout_s: how long that may take, in seconds; 5 at the most.
    """
    arguments = ["--noheader", "--all", "--local", "--array", f"--jobs={job_id}"]
    arguments += [f"--Format=JobID:.20,QOS:.{_FIELD_CHARS},Licenses:.{_FIELD_CHARS}"]
    for line in (_ask("squeue", arguments, slurm_conf, min(timeout_s, _ONE_JOB_TIMEOUT_S)) or "").splitlines():
        words = line.split()
        if len(words) == 3 and words[0] == str(job_id):
            return Allotment(parse_licenses(words[2]), "" if words[1] == "(null)" else words[1])
    return None


def parse_licenses(text: str) -> dict[str, int]:
    """Return how many of each license a job has, from Slurm's `a:1,b:2`; a license without a count is one."""
    found: dict[str, int] = {}
    for word in re.split(r"[,;]", text):
        name, _, count = word.strip().replace("=", ":").partition(":")
        if name and name != "(null)":
            found[name] = found.get(name, 0) + (int(count) if count.isdecimal() else 1)
    return found


def free_licenses(slurm_conf: Path, timeout_s: float = _ONE_JOB_TIMEOUT_S) -> Mapping[str, int] | None:
    """Ask how many of each license are free, those kept by reservations not counted; None where that is not told."""
    answer = _ask("scontrol", ["--oneliner", "show", "licenses"], slurm_conf, min(timeout_s, _ONE_JOB_TIMEOUT_S))
    if answer is None:
        return None
    found = {}
    for line in answer.splitlines():
        words = dict(word.partition("=")[::2] for word in line.split())
        counts = [words.get(key, "0") for key in ("Total", "Used", "Reserved")]
        if "LicenseName" in words and all(count.isdecimal() for count in counts):
            total, used, reserved = map(int, counts)
            found[words["LicenseName"]] = total - used - reserved
    return found


def change_licenses(
    job_id: int, licenses: Mapping[str, int], slurm_conf: Path, timeout_s: float = _ONE_JOB_TIMEOUT_S
) -> bool:
    """Let a running job have other licenses than it was started with, as an operator may; tell whether it has them."""
    text = ",".join(f"{name}:{count}" for name, count in licenses.items())
    arguments = ["update", f"JobId={job_id}", f"Licenses={text}"]
    return _ask("scontrol", arguments, slurm_conf, min(timeout_s, _ONE_JOB_TIMEOUT_S)) is not None


def parse_time_limit_s(text: str) -> int | None:
    """Return the seconds of Slurm's `[[days-]hours:]minutes:seconds`; None where it says something else."""
    text = text.strip()
    if text == "UNLIMITED":
        return UNLIMITED_TIMEOUT_S
    match = _TIME_LIMIT.fullmatch(text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(group or 0) for group in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def jobs(slurm_conf: Path) -> Mapping[int, Job] | None:
    """Ask for all jobs that slurmctld remembers.

    Args:
        slurm_conf: Slurm's configuration file.

    Returns:
        By job id; None where slurmctld cannot be asked.
    """
    # --all: a job in a hidden partition lives as well. --local: in a federation, other clusters' jobs are not these.
    arguments = ["--noheader", "--all", "--local", "--array", "--states=all"]
    arguments += ["--Format=JobID:.20,State:.20,RestartCnt:.20"]
    answer = _ask("squeue", arguments, slurm_conf, _ALL_JOBS_TIMEOUT_S)
    return None if answer is None else parse_jobs(answer)


def parse_jobs(text: str) -> dict[int, Job]:
    """Return the jobs of squeue's answer: a line each with job id, state and restart count."""
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[0].isdecimal() and words[2].isdecimal():
            found[int(words[0])] = Job(words[1], int(words[2]))
    return found


def _ask(command: str, arguments: Sequence[str], slurm_conf: Path, timeout_s: float) -> str | None:
    program = slurm_commands.find(command)
    if program is None:
        return None
    try:
        answer = subprocess.run(
            [program, *arguments],
            env={SLURM_CONF: str(slurm_conf), "PATH": "/usr/bin:/bin"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout
