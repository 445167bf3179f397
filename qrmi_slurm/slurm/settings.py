"""The settings: what slurmctld says slurm.conf says, from `scontrol show config`, as of 22.05 to 26.05.

Not slurm.conf itself: includes, defaults and what was not reconfigured yet are in slurmctld's answer alone.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from qrmi_slurm.slurm import commands

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
    return parse(commands.run(["scontrol", "show", "config"], slurm_conf))
