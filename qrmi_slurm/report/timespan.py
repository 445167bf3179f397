"""The timespan of a report, and the words with which people give it."""

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
    """A timespan.

    Args:
        since_s: its first moment; seconds since the epoch.
        until_s: the first moment after it.
    """

    since_s: float
    until_s: float

    @property
    def length_s(self) -> float:
        """Its length in seconds."""
        return self.until_s - self.since_s

    def overlap_s(self, began_s: float, ended_s: float) -> float:
        """Return how many seconds of it something took that began and ended then; never less than 0."""
        return max(0.0, min(ended_s, self.until_s) - max(began_s, self.since_s))


def parse(since: str, until: str, now_s: float) -> Timespan:
    """Return the timespan between two moments.

    Args:
        since: `today`, `yesterday`, `now`, an age (`90m`, `12h`, `7d`, `4w`), a month (`2026-01`) or a date, meaning
            its first moment, or a date with a time of day; in local time if it names no zone.
        until: the same; the present replaces a moment in the future.
        now_s: seconds since the epoch.

    Raises:
        QrmiSlurmError: a moment is not one of these, or the first is not before the second.
    """
    # Nobody held a QPU before the epoch, and calendars do not go back forever.
    span = Timespan(max(0.0, _moment("--since", since, now_s)), min(_moment("--until", until, now_s), now_s))
    if span.since_s >= span.until_s:
        raise QrmiSlurmError("--since has to be in the past, and before --until")
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
            f"{option} {printable(text, 60)} is not a time",
            "write, for example, today, 12h, 7d, 2026-01-31 or 2026-01-31T12:00",
        ) from None
