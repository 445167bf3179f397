"""Which release of Slurm the tests run on."""

import functools
import re
import subprocess
from typing import NamedTuple

from slurm.cluster import SYSTEM_PATH


class Version(NamedTuple):
    """A version of Slurm, such as 24.11.5."""

    year: int
    month: int
    micro: int

    @property
    def release(self) -> str:
        """The release that it belongs to: 24.11."""
        return f"{self.year}.{self.month:02}"

    def __str__(self) -> str:
        """Return it as Slurm writes it."""
        return f"{self.release}.{self.micro}"


@functools.cache
def installed() -> Version:
    """Return the version of this system's Slurm."""
    command = ["slurmctld", "-V"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env={"PATH": SYSTEM_PATH}).stdout
    found = re.search(r" (\d+)\.(\d+)\.(\d+)", shown)
    assert found, shown
    return Version(*map(int, found.groups()))
