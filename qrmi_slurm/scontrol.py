"""scontrol: the one question that Prolog may ask Slurm, and only where its environment does not say (22.05)."""

import os
import re
import subprocess
from pathlib import Path
from typing import Final

from qrmi_slurm.names import SLURM_CONF, UNLIMITED_TIMEOUT_S

# slurmctld answers in milliseconds; a busy one must not hold the job's start for long.
_TIMEOUT_S: Final = 5.0
_DIRECTORIES: Final = ("/usr/bin", "/usr/local/bin", "/opt/slurm/bin")
_TIME_LIMIT: Final = re.compile(r"\bTimeLimit=(?:(?:(\d+)-)?(\d+):(\d+):(\d+)|(UNLIMITED))\b")


def time_limit_s(job_id: int, slurm_conf: Path) -> int | None:
    """Ask slurmctld for a job's time limit in seconds; None where it cannot be had.

    Args:
        job_id: Slurm's id.
        slurm_conf: Slurm's configuration file.

    Returns:
        Seconds; 2147483647 where Slurm says UNLIMITED.
    """
    program = _program()
    if program is None:
        return None
    try:
        answer = subprocess.run(
            [program, "show", "job", "--oneliner", str(job_id)],
            env={SLURM_CONF: str(slurm_conf), "PATH": "/usr/bin:/bin"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_time_limit_s(answer.stdout)


def parse_time_limit_s(text: str) -> int | None:
    """Return the seconds of `TimeLimit=[days-]hours:minutes:seconds` in scontrol's answer; None without it."""
    match = _TIME_LIMIT.search(text)
    if match is None:
        return None
    if match[5]:
        return UNLIMITED_TIMEOUT_S
    days, hours, minutes, seconds = (int(group or 0) for group in match.groups()[:4])
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def _program() -> str | None:
    """Find scontrol beside the running slurmd (its parent folder's bin), or where packages put it."""
    for folder in (*_beside_ancestors(), *_DIRECTORIES):
        program = f"{folder}/scontrol"
        if os.access(program, os.X_OK):
            return program
    return None


def _beside_ancestors() -> list[str]:
    """Return the bin folders beside this hook's ancestors: a shell, and the slurmd that started it."""
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
