"""Slurm's commands: where they are on this node, and the one place that runs them."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from qrmi_slurm import processes
from qrmi_slurm.errors import SchedulerError
from qrmi_slurm.names import SLURM_CONF

# Where packages and SchedMD's own build put them.
_USUAL: Final = ("/usr/bin", "/usr/local/bin", "/opt/slurm/bin")

# A hook's shell is a child of slurmd, or of the slurmstepd that runs the scripts for it.
_GENERATIONS: Final = 3

_TIMEOUT_S: Final = 10.0


class RefusedError(SchedulerError):
    """One of Slurm's commands failed.

    Args:
        message: what is wrong.
        hint: what to do next.
        stderr: all that it wrote to standard error.
    """

    def __init__(self, message: str, hint: str, stderr: str) -> None:
        super().__init__(message, hint)
        self.stderr = stderr


def run(command: Sequence[str], slurm_conf: Path, timeout_s: float | None = None, time_format: str = "standard") -> str:
    """Run one of Slurm's commands and return its standard output.

    Args:
        command: its name and arguments.
        slurm_conf: Slurm's configuration file.
        timeout_s: how long it may take, in seconds; 10 by default.
        time_format: SLURM_TIME_FORMAT, how it writes times; `%s` is seconds since the epoch.

    Raises:
        SchedulerError: it is not installed, or took too long.
        RefusedError: it failed.
    """
    name = command[0]
    timeout_s = _TIMEOUT_S if timeout_s is None else timeout_s
    program = find(name)
    if program is None:
        raise SchedulerError(f"there is no {name} on this node", "install Slurm's client commands, or set PATH")
    try:
        done = processes.run(
            [program, *command[1:]],
            timeout_s,
            env={SLURM_CONF: str(slurm_conf), "PATH": "/usr/bin:/bin", "SLURM_TIME_FORMAT": time_format},
            wants_stderr=True,
        )
    except TimeoutError:
        raise SchedulerError(f"{name} did not answer within {timeout_s:g} s", "is slurmctld running?") from None
    except OSError as error:
        raise SchedulerError(f"cannot run {program}: {error.strerror}") from error
    if done.exit_code != 0:
        stderr = done.stderr.decode("utf-8", "replace")
        last = next(iter(reversed(stderr.strip().splitlines())), f"exit status {done.exit_code}")
        raise RefusedError(f"{name} failed: {last}", "are slurmctld and munged running?", stderr)
    return done.stdout.decode("utf-8", "replace")


def find(name: str) -> str | None:
    """Return the path of one of Slurm's commands; None where it is not installed.

    In a hook it is the one beside the slurmd that started the hook: of two releases on a node, that one's. Elsewhere it
    is the caller's by PATH, then one of the usual places.
    """
    folders = (*_beside_daemon(), *os.environ.get("PATH", "").split(":"), *_USUAL)
    programs = (f"{folder}/{name}" for folder in folders if folder.startswith("/"))
    return next((program for program in programs if os.access(program, os.X_OK)), None)


def _beside_daemon() -> list[str]:
    """Return the command folders of the Slurm daemons among this process's ancestors.

    Daemons of another user do not count: under sudo the caller's own program may be named slurmd, with a squeue of
    their own beside it.
    """
    folders = []
    pid = os.getppid()
    for _ in range(_GENERATIONS):
        try:
            uids = re.findall(r"^Uid:\t(\d+)\t(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)[0]
            program = Path(f"/proc/{pid}/exe").readlink()
            # proc_pid_stat(5): pid, (name), state, parent; the name may have blanks and brackets in it.
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            break
        if program.name.startswith("slurm") and set(uids) <= {"0", str(os.geteuid())}:
            folders.append(str(program.parent.parent / "bin"))
    return folders
