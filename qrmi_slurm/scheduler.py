"""The scheduler: what slurmctld tells of jobs, asked with squeue in formats that hold no user's text.

Prolog asks for one job's time limit, and only where its environment does not say (22.05); the command asks for all
jobs. Nothing else of a hook comes here.
"""

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qrmi_slurm.names import SLURM_CONF, UNLIMITED_TIMEOUT_S

# slurmctld answers in milliseconds; a busy one must not hold a job's start for long. All jobs may be 100,000.
_ONE_JOB_TIMEOUT_S: Final = 5.0
_ALL_JOBS_TIMEOUT_S: Final = 30.0

_DIRECTORIES: Final = ("/usr/bin", "/usr/local/bin", "/opt/slurm/bin")
_TIME_LIMIT: Final = re.compile(r"(?:(\d{1,6})-)?(?:(\d{1,6}):)?(\d{1,6}):(\d{1,2})")

# States in which a job's processes may be there and its QPUs in use (squeue(1), JOB STATE CODES). A job that is
# COMPLETING has its Epilog running or still to come.
_LIVING: Final = frozenset(
    {"CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "RESIZING", "STAGE_OUT"}
)


@dataclass(frozen=True, slots=True)
class Job:
    """A job that Slurm knows.

    Args:
        state: Slurm's long word for its state.
        restart_count: how often it was requeued.
    """

    state: str
    restart_count: int

    def is_living_run(self, restart_count: int) -> bool:
        """Tell whether this very run of the job may still use what it has acquired."""
        return self.state in _LIVING and self.restart_count == restart_count


def time_limit_s(job_id: int, slurm_conf: Path) -> int | None:
    """Ask for a job's time limit in seconds; None where it cannot be had.

    Args:
        job_id: Slurm's id.
        slurm_conf: Slurm's configuration file.

    Returns:
        Seconds; 2147483647 where Slurm says UNLIMITED.
    """
    answer = _squeue(["--jobs", str(job_id), "--format=%l"], slurm_conf, _ONE_JOB_TIMEOUT_S)
    return None if answer is None else parse_time_limit_s(answer)


def parse_time_limit_s(text: str) -> int | None:
    """Return the seconds of squeue's `[[days-]hours:]minutes:seconds`; None where it says something else."""
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
    arguments = ["--array", "--states=all", "--Format=JobID:.20,State:.20,RestartCnt:.20"]
    answer = _squeue(arguments, slurm_conf, _ALL_JOBS_TIMEOUT_S)
    return None if answer is None else parse_jobs(answer)


def parse_jobs(text: str) -> dict[int, Job]:
    """Return the jobs of squeue's answer: a line each with job id, state and restart count."""
    found = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) == 3 and words[0].isdecimal() and words[2].isdecimal():
            found[int(words[0])] = Job(words[1], int(words[2]))
    return found


def _squeue(arguments: Sequence[str], slurm_conf: Path, timeout_s: float) -> str | None:
    program = _program()
    if program is None:
        return None
    try:
        answer = subprocess.run(
            [program, "--noheader", *arguments],
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


def _program() -> str | None:
    """Find squeue beside the running slurmd (its parent folder's bin), or where packages put it."""
    for folder in (*_beside_ancestors(), *_DIRECTORIES):
        program = f"{folder}/squeue"
        if os.access(program, os.X_OK):
            return program
    return None


def _beside_ancestors() -> list[str]:
    """Return the bin folders beside this process's ancestors: a hook's shell, and the slurmd that started it."""
    folders = []
    pid = os.getppid()
    for _ in range(2):
        try:
            folders.append(str(Path(f"/proc/{pid}/exe").readlink().parent.parent / "bin"))
            # proc_pid_stat(5): pid, (name), state, parent; the name may hold blanks and brackets.
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            break
    return folders
