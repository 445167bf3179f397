"""Which release of Slurm the tests run on, and how its releases differ in what the tests see.

A test asks `NAME.is_here` of a difference; docs/support.md lists all of them.
"""

import functools
import re
import subprocess
from typing import Final, NamedTuple

SYSTEM_PATH: Final = "/usr/sbin:/usr/bin"


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
    command = ["slurmctld", "-V"]  # needs no slurm.conf, unlike sinfo's
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env={"PATH": SYSTEM_PATH}).stdout
    return version(shown)


def version(text: str) -> Version:
    """Return the first version in a text."""
    found = re.search(r"(\d+)\.(\d+)\.(\d+)", text)
    assert found, text
    return Version(*map(int, found.groups()))


class Difference(NamedTuple):
    """One thing that changed with a release.

    Args:
        since: the first release that has it, as far as the tests and recordings tell.
        what: what Slurm does from then on.
        so: what that means for qrmi-slurm's users or admins.
    """

    since: tuple[int, int]
    what: str
    so: str

    @property
    def is_here(self) -> bool:
        """Whether this system's Slurm has it."""
        return installed() >= self.since


HOOKS_KNOW_TIMES: Final = Difference(
    (23, 2),
    "Prolog and Epilog get the job's start and end time, and its licenses",
    "before, Prolog asks slurmctld for the time limit: one RPC for each job with `--qpu`",
)
LICENSES_IN_FIRST_COMPONENT: Final = Difference(
    (23, 2),
    "only the first component of a heterogeneous job may ask for licenses",
    "where QPUs are licenses, `--qpu` goes with the first component; it is refused in the others",
)
LICENSES_IN_PLACE_OF_OTHERS: Final = Difference(
    (25, 5),
    "a job may ask for one license or another (`--licenses='a|b'`)",
    "where one of them counts a QPU's slots, Prolog asks slurmctld which one the job got: one RPC for such a job",
)
RESERVATIONS_HAVE_COMMENTS: Final = Difference(
    (24, 11),
    "a reservation has a Comment",
    "`drain` and the sensor keep their reason there; before, in Features",
)
TASK_PROLOG_LINE_HAS_A_TIME: Final = Difference(
    (26, 5),
    "`error: TaskProlog failed` in a job's output begins with a time, not with `slurmstepd-NODE:`",
    "it comes after our own line, which says why",
)
COMMANDS_WAIT_FOR_SLURMCTLD: Final = Difference(
    (26, 5),
    "a command whose slurmctld is down gives up after 10 s instead of 9",
    "our commands end it at 10 s, and say that scontrol did not answer rather than what it said",
)

DIFFERENCES: Final = (
    HOOKS_KNOW_TIMES,
    LICENSES_IN_FIRST_COMPONENT,
    RESERVATIONS_HAVE_COMMENTS,
    TASK_PROLOG_LINE_HAS_A_TIME,
    COMMANDS_WAIT_FOR_SLURMCTLD,
)
