"""The timespan of a report: from when to when, in the words that people use."""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from qrmi_slurm.errors import QrmiSlurmError
from qrmi_slurm.text import printable

_AGO: Final = re.compile(r"(\d{1,5})([mhdw])")
_UNITS_S: Final = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_MONTH: Final = re.compile(r"\d{4}-\d{2}")


@dataclass(frozen=True, slots=True)
class Timespan:
    """Some time.

    Args:
        since_s: its first moment; seconds since the epoch.
        until_s: the first moment after it.
    """

    since_s: float
    until_s: float

    @property
    def length_s(self) -> float:
        """How long it is, in seconds."""
        return self.until_s - self.since_s

    def overlap_s(self, began_s: float, ended_s: float) -> float:
        """Return how many seconds of something that began and ended lie in it; never less than none."""
        return max(0.0, min(ended_s, self.until_s) - max(began_s, self.since_s))


def parse(since: str, until: str, now_s: float) -> Timespan:
    """Return the timespan between two moments, as people write them.

    Args:
        since: `today`, `yesterday`, `now`, an amount that lies back (`90m`, `12h`, `7d`, `4w`), a month (`2026-01`), a
            date (its first moment), or a date with a time of day, in local time where no zone stands there.
        until: the same; a moment that is still to come is now.
        now_s: seconds since the epoch.

    Raises:
        QrmiSlurmError: one is none of these, or the first is not before the second.
    """
    # Nobody had a QPU before the epoch, and calendars end somewhere.
    span = Timespan(max(0.0, _moment("--since", since, now_s)), min(_moment("--until", until, now_s), now_s))
    if span.since_s >= span.until_s:
        raise QrmiSlurmError("--since is not before --until, or has yet to come")
    return span


def _moment(option: str, text: str, now_s: float) -> float:
    word = text.strip().lower()
    midnight = datetime.fromtimestamp(now_s).replace(hour=0, minute=0, second=0, microsecond=0)
    if word == "now":
        return now_s
    if word == "today":
        return midnight.timestamp()
    if word == "yesterday":
        return (midnight - timedelta(days=1)).timestamp()
    ago = _AGO.fullmatch(word)
    if ago:
        return now_s - int(ago[1]) * _UNITS_S[ago[2]]
    try:
        moment = datetime.fromisoformat(f"{word}-01" if _MONTH.fullmatch(word) else text.strip())
        return moment.timestamp()
    except (ValueError, OverflowError, OSError):
        raise QrmiSlurmError(
            f"{option} {printable(text, 60)} is no time",
            "write today, 12h, 7d, 2026-01-31 or 2026-01-31T12:00",
        ) from None
