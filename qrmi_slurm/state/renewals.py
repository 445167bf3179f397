"""The renewals: the sessions that a job's credential broker has opened, and until when it may; a file in its folder.

The broker may not change the record. So it notes its intent here before it asks the service, and then what came of it;
whoever reads the record finds both in it. `recover` notes here when the job's end has moved. A line each:

    asked NUMBER PLACE EPOCH TTL     the broker is about to ask for a session of its QPU in that place
    opened NUMBER EPOCH SESSION      the service has opened it
    refused NUMBER                   the service has not
    ends EPOCH                       until then the job may run
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from qrmi_slurm import files
from qrmi_slurm.secret import Secret

_LINE: Final = re.compile(
    r"asked ([0-9]{1,4}) ([0-9]{1,3}) ([0-9]{1,12}\.[0-9]{3}) ([0-9]{1,10})"
    r"|opened ([0-9]{1,4}) ([0-9]{1,12}\.[0-9]{3}) ([A-Za-z0-9_-]{1,128})"
    r"|refused ([0-9]{1,4})"
    r"|ends ([0-9]{1,12}\.[0-9]{3})"
)

# How many sessions a broker may open for its job: a job of a year needs 1100 of eight hours.
MAX_RENEWALS: Final = 2000
_MAX_BYTES: Final = 1024**2


class Renewal(NamedTuple):
    """A session that a broker has asked for.

    Args:
        number: of the renewal, from 1.
        place: the QPU's place among the broker's.
        asked_s: when; seconds since the epoch.
        ttl_s: how long it may live, in seconds.
        token: its id; None where it is not known.
        opened_s: when it was opened; seconds since the epoch, None where that is not known.
        is_refused: whether the service has refused it.
    """

    number: int
    place: int
    asked_s: float
    ttl_s: int
    token: Secret | None = None
    opened_s: float | None = None
    is_refused: bool = False

    @property
    def is_unknown(self) -> bool:
        """Whether nobody knows what came of it."""
        return self.token is None and not self.is_refused


class Renewals(NamedTuple):
    """What is in such a file.

    Args:
        asked: the sessions, in order.
        ends_s: until when the job may run; seconds since the epoch, None where that has not moved.
    """

    asked: tuple[Renewal, ...] = ()
    ends_s: float | None = None


def parse(text: str) -> Renewals:
    """Return what a file has; a line that a crash has cut off counts for nothing."""
    found: dict[int, Renewal] = {}
    ends_s = None
    for line in text.split("\n"):
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        asked, place, asked_s, ttl_s, opened, opened_s, token, refused, moved_s = match.groups()
        if asked and int(asked) <= MAX_RENEWALS:
            found.setdefault(int(asked), Renewal(int(asked), int(place), float(asked_s), int(ttl_s)))
        elif opened and int(opened) in found:
            one = found[int(opened)]
            found[one.number] = one._replace(token=Secret(token), opened_s=float(opened_s))
        elif refused and int(refused) in found:
            found[int(refused)] = found[int(refused)]._replace(is_refused=True)
        elif moved_s:
            ends_s = float(moved_s)
    return Renewals(tuple(found[number] for number in sorted(found)), ends_s)


def read(path: Path) -> Renewals:
    """Return what the file has; nothing where there is none, or it cannot be read."""
    try:
        return parse(files.read(path, _MAX_BYTES).decode("ascii", "replace"))
    except OSError:
        return Renewals()


def read_open(fd: int) -> Renewals:
    """Return what an open file has."""
    content = b""
    while len(content) < _MAX_BYTES and (chunk := os.pread(fd, 65536, len(content))):
        content += chunk
    return parse(content.decode("ascii", "replace"))


def asked(renewal: Renewal) -> str:
    """Return the line about an intent."""
    return f"asked {renewal.number} {renewal.place} {renewal.asked_s:.3f} {renewal.ttl_s}"


def opened(number: int, opened_s: float, token: str) -> str:
    """Return the line about a session that was opened."""
    return f"opened {number} {opened_s:.3f} {token}"


def refused(number: int) -> str:
    """Return the line about a session that was refused."""
    return f"refused {number}"


def ends(ends_s: float) -> str:
    """Return the line about a job's end that has moved."""
    return f"ends {ends_s:.3f}"


def append(fd: int, lines: Sequence[str]) -> bool:
    """Write lines to an open file, and sync it to disk; False where that fails."""
    content = "".join(f"\n{line}\n" for line in lines).encode()
    try:
        is_whole = os.write(fd, content) == len(content)
        os.fdatasync(fd)
    except OSError:
        return False
    return is_whole
