"""The settings: what slurmctld says slurm.conf says, from `scontrol show config`, as of 22.05 to 26.05.

Not slurm.conf itself: includes, defaults and what was not reconfigured yet are in slurmctld's answer alone.
"""

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from qrmi_slurm import slurm_commands
from qrmi_slurm.errors import SchedulerError
from qrmi_slurm.names import SLURM_CONF


class RefusedError(SchedulerError):
    """One of Slurm's commands failed.

    Args:
        message: what is wrong.
        hint: what to do next.
        said: all that it has written to its standard error.
    """

    def __init__(self, message: str, hint: str, said: str) -> None:
        super().__init__(message, hint)
        self.said = said


_TIMEOUT_S: Final = 10.0

# src/api/config_info.c: `Name = value`; from 24.05 a Prolog or Epilog has a line each: `Prolog[0] = ...`.
_LINE: Final = re.compile(r"([A-Za-z_]\w*)(?:\[\d+\])?\s*=\s?(.*)")
_AS_OF: Final = re.compile(r"Configuration data as of (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)")
_NUMBER: Final = re.compile(r"(\d+)(?: sec)?")
_VERSION: Final = re.compile(r"(\d+)\.(\d+)\.?(\w*)")

# What stands for no value.
_NONE: Final = ("", "(null)", "(none)", "N/A")

# NO_VAL16: no limit (PrologEpilogTimeout's default).
_NO_LIMIT: Final = 65534


@dataclass(frozen=True, slots=True)
class SlurmSettings:
    """What slurmctld says of its configuration.

    Args:
        values: by setting, in lower case; a setting of several values has several.
        as_of: slurmctld's clock when it answered, in this process's time zone; None where it did not say.
    """

    values: Mapping[str, Sequence[str]]
    as_of: datetime | None

    def all(self, name: str) -> list[str]:
        """Return the values of a setting; none where it has none."""
        return [value for value in self.values.get(name.lower(), ()) if value not in _NONE]

    def text(self, name: str) -> str:
        """Return the value of a setting; empty where it has none."""
        return next(iter(self.all(name)), "")

    def flags(self, name: str) -> frozenset[str]:
        """Return the words of a setting that is a list of flags, in lower case."""
        return frozenset(word.strip().lower() for word in self.text(name).split(",") if word.strip())

    def seconds(self, name: str) -> int | None:
        """Return a time in seconds; None where there is no limit, or the setting is not there."""
        match = _NUMBER.fullmatch(self.text(name))
        return int(match[1]) if match and int(match[1]) != _NO_LIMIT else None

    @property
    def version(self) -> tuple[int, int] | None:
        """Slurm's release, as (24, 5); None where it does not say."""
        match = _VERSION.match(self.text("SLURM_VERSION"))
        return (int(match[1]), int(match[2])) if match else None


def parse(text: str) -> SlurmSettings:
    """Return what `scontrol show config` has printed."""
    values: dict[str, list[str]] = {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line.strip())
        if match:
            values.setdefault(match[1].lower(), []).append(match[2].strip())
    as_of = _AS_OF.search(text)
    return SlurmSettings(values, datetime.fromisoformat(as_of[1]) if as_of else None)


def ask(slurm_conf: Path) -> SlurmSettings:
    """Ask slurmctld.

    Raises:
        SchedulerError: it cannot be asked; says why.
    """
    return parse(run(["scontrol", "show", "config"], slurm_conf))


def run(command: Sequence[str], slurm_conf: Path, timeout_s: float | None = None, time_format: str = "standard") -> str:
    """Run one of Slurm's commands and return its output.

    Args:
        command: its name and arguments.
        slurm_conf: Slurm's configuration file.
        timeout_s: how long it may take, in seconds; 10 where nothing is said.
        time_format: SLURM_TIME_FORMAT: how it writes times; `%s` is seconds since the epoch.

    Raises:
        SchedulerError: it is not there, or took too long.
        RefusedError: it failed.
    """
    name = command[0]
    timeout_s = _TIMEOUT_S if timeout_s is None else timeout_s
    program = slurm_commands.find(name)
    if program is None:
        raise SchedulerError(f"there is no {name} on this node", "install Slurm's client commands, or set PATH")
    try:
        done = subprocess.run(
            [program, *command[1:]],
            env={SLURM_CONF: str(slurm_conf), "PATH": "/usr/bin:/bin", "SLURM_TIME_FORMAT": time_format},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise SchedulerError(f"{name} gave no answer within {timeout_s:g} s", "does slurmctld run?") from None
    except OSError as error:
        raise SchedulerError(f"{program} cannot be run: {error.strerror}") from error
    if done.returncode != 0:
        last = next(iter(reversed(done.stderr.strip().splitlines())), f"exit status {done.returncode}")
        raise RefusedError(f"{name} failed: {last}", "does slurmctld run, and munge?", done.stderr)
    return done.stdout
