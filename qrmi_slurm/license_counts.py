"""The licenses: how many Slurm has of each, and how many are in use or reserved, from `scontrol show licenses`."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from qrmi_slurm import slurm_settings

# src/scontrol/info_lics.c, 22.05 to 26.05. A user's text is nowhere in it.
_LINE: Final = re.compile(r"LicenseName=(\S+) Total=(\d+) Used=(\d+) Free=\d+ Reserved=(\d+)(?: .*)?")


class License(NamedTuple):
    """One of Slurm's licenses.

    Args:
        name: as in slurm.conf.
        total: how many there are.
        used: how many running jobs have.
        reserved: how many are in reservations that have begun.
    """

    name: str
    total: int
    used: int
    reserved: int

    @property
    def free(self) -> int:
        """How many a job without a reservation could have now."""
        # Slurm's own Free leaves reservations out on 22.05.
        return max(0, self.total - self.used - self.reserved)


def read(slurm_conf: Path) -> dict[str, License]:
    """Return Slurm's licenses by name.

    Raises:
        SchedulerError: slurmctld cannot be asked.
    """
    return parse(slurm_settings.run(["scontrol", "show", "licenses", "--oneliner"], slurm_conf))


def parse(text: str) -> dict[str, License]:
    """Return what scontrol has printed."""
    found: dict[str, License] = {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line.strip())
        if match:
            found.setdefault(match[1], License(match[1], int(match[2]), int(match[3]), int(match[4])))
    return found


def counts(text: str) -> Mapping[str, int] | None:
    """Return the licenses that a job asks for, as squeue writes them (`a:1,b`); None where it is not such a list."""
    found: dict[str, int] = {}
    for word in text.split(",") if text not in ("", "(null)") else ():
        name, _, number = word.partition(":")
        if not re.fullmatch(r"[A-Za-z0-9_.@-]+", name) or not re.fullmatch(r"\d{0,9}", number):
            return None  # Slurm 25.05 has `a|b`
        found[name] = found.get(name, 0) + int(number or 1)
    return found
