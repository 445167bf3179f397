"""The settings: slurmctld's running configuration, from `scontrol show config` of 22.05 to 26.05.

Unlike slurm.conf itself, it includes defaults, and leaves out changes that slurmctld has not read yet.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from qrmi_slurm.slurm import commands

# src/api/config_info.c: `Name = value`; from 24.05 each Prolog and Epilog has a line: `Prolog[0] = ...`.
_LINE: Final = re.compile(r"([A-Za-z_]\w*)(?:\[\d+\])?\s*=\s?(.*)")
_AS_OF: Final = re.compile(r"Configuration data as of (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)")
_NUMBER: Final = re.compile(r"(\d+)(?: sec)?")
_VERSION: Final = re.compile(r"(\d+)\.(\d+)\.?(\w*)")

# What scontrol prints for no value.
_NONE: Final = ("", "(null)", "(none)", "N/A")

# NO_VAL16: no limit (the default of PrologEpilogTimeout).
_NO_LIMIT: Final = 65534


@dataclass(frozen=True, slots=True)
class SlurmSettings:
    """slurmctld's configuration.

    Args:
        values: the values of each setting, whose name is in lower case; most settings have one.
        as_of: slurmctld's clock when it answered, in this process's time zone; None if it is not in the answer.
    """

    values: Mapping[str, Sequence[str]]
    as_of: datetime | None

    def all(self, name: str) -> list[str]:
        """Return the values of a setting; an empty list if it is not set."""
        return [value for value in self.values.get(name.lower(), ()) if value not in _NONE]

    def text(self, name: str) -> str:
        """Return the value of a setting; empty if it is not set."""
        return next(iter(self.all(name)), "")

    def flags(self, name: str) -> frozenset[str]:
        """Return the words of a setting that is a list of flags, in lower case."""
        return frozenset(word.strip().lower() for word in self.text(name).split(",") if word.strip())

    def seconds(self, name: str) -> int | None:
        """Return a time in seconds; None if there is no limit, or the setting is missing."""
        match = _NUMBER.fullmatch(self.text(name))
        return int(match[1]) if match and int(match[1]) != _NO_LIMIT else None

    @property
    def version(self) -> tuple[int, int] | None:
        """Slurm's release, such as (24, 5); None if it is not in the answer."""
        match = _VERSION.match(self.text("SLURM_VERSION"))
        return (int(match[1]), int(match[2])) if match else None


def parse(text: str) -> SlurmSettings:
    """Return the settings in the output of `scontrol show config`."""
    values: dict[str, list[str]] = {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line.strip())
        if match:
            values.setdefault(match[1].lower(), []).append(match[2].strip())
    as_of = _AS_OF.search(text)
    return SlurmSettings(values, datetime.fromisoformat(as_of[1]) if as_of else None)


def ask(slurm_conf: Path) -> SlurmSettings:
    """Ask slurmctld for its settings.

    Raises:
        SchedulerError: slurmctld did not answer, and why.
    """
    return parse(commands.run(["scontrol", "show", "config"], slurm_conf))
