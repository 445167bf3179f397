"""Slurm's licenses: how many there are, how many are in use or reserved, and which ones a running job has.

Tried on Slurm: an operator's update counts at once on a running job and may over-subscribe a license; it replaces the
job's whole list, and there is no update that fails when none is free.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from qrmi_slurm.errors import SchedulerError
from qrmi_slurm.slurm import commands

# src/scontrol/info_lics.c, 22.05 to 26.05. No user's text is in it.
_LINE: Final = re.compile(r"LicenseName=(\S+) Total=(\d+) Used=(\d+) Free=\d+ Reserved=(\d+)(?: .*)?")

# One license of a list: `name`, `name:count` or `name=count`; remote ones are `name@server`.
_COUNT: Final = re.compile(r"([^\s,;:=|()]+)(?:[:=](\d{1,9}))?")

# The names in a list, which may have counts, and from 25.11 nodes; a node's name is taken for one as well.
_NAME: Final = re.compile(r"(?:^|[,;])\s*([^\s,;:=|()]+)")

# The same, possibly bound to nodes: `name:count(nodes)`, from 25.11; `a|b` counts as a name of its own.
_GRANTED: Final = re.compile(r"([^\s,;:=()]+)(?:[:=](\d{1,9}))?(?:\(.*\))?")


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
        return max(0, self.left)

    @property
    def left(self) -> int:
        """The same, but negative where more are used and reserved than there are."""
        # Slurm's own Free ignores reservations on 22.05.
        return self.total - self.used - self.reserved


def read(slurm_conf: Path, timeout_s: float | None = None) -> dict[str, License]:
    """Return Slurm's licenses by name.

    Args:
        slurm_conf: Slurm's configuration file.
        timeout_s: how long slurmctld may take, in seconds.

    Raises:
        SchedulerError: slurmctld cannot be asked.
    """
    return parse(commands.run(["scontrol", "show", "licenses", "--oneliner"], slurm_conf, timeout_s))


def parse(text: str) -> dict[str, License]:
    """Return what `scontrol show licenses --oneliner` printed."""
    found: dict[str, License] = {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line.strip())
        if match:
            found.setdefault(match[1], License(match[1], int(match[2]), int(match[3]), int(match[4])))
    return found


def parse_counts(text: str) -> dict[str, int] | None:
    """Return how many of each license a list has, as in `a:1,b`; a license without a count is one.

    Args:
        text: the list as slurm.conf, squeue and Prolog's environment have it.

    Returns:
        None where the text is not such a list; from Slurm 25.05 on a job may ask for `a|b`.
    """
    found: dict[str, int] = {}
    for word in re.split("[,;]", text) if text.strip() not in ("", "(null)") else ():
        match = _COUNT.fullmatch(word.strip())
        if match is None:
            return None
        found[match[1]] = found.get(match[1], 0) + int(match[2] or 1)
    return found


def granted_counts(text: str) -> dict[str, int]:
    """Return how many of each license a job was granted, as far as its list can be read.

    Unlike `parse_counts` it does not give up: a job with an odd word in its list, such as an empty one or `c:1(n1)`,
    still holds the others, and must not be taken for a job without licenses.

    Args:
        text: the list as squeue, Prolog's environment and slurm.conf have it.
    """
    found: dict[str, int] = {}
    for word in re.split("[,;]", text):
        match = _GRANTED.fullmatch(word.strip())
        if match is not None:
            found[match[1]] = found.get(match[1], 0) + int(match[2] or 1)
    return found


def names_in(text: str) -> frozenset[str]:
    """Return every name in a list of licenses as slurm.conf has it; no license of the list is missing in it."""
    return frozenset(_NAME.findall(text))


def list_text(counts: Mapping[str, int]) -> str:
    """Return a list of licenses as Slurm takes it: `a:1,b:2`."""
    return ",".join(f"{name}:{count}" for name, count in counts.items())


def change(job: str, counts: Mapping[str, int], slurm_conf: Path, timeout_s: float) -> bool:
    """Give a running job other licenses than it started with, as an operator may; tell whether Slurm did.

    Args:
        job: its id as scontrol takes it: `12`, or `12_3` for a task of an array: the number alone may mean all tasks.
        counts: all that the job is to have.
        slurm_conf: Slurm's configuration file.
        timeout_s: how long slurmctld may take, in seconds.
    """
    update = ["scontrol", "update", f"JobId={job}", f"Licenses={list_text(counts)}"]
    try:
        commands.run(update, slurm_conf, timeout_s)
    except SchedulerError:
        return False
    return True
