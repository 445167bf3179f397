"""The ticks of a picture's time axis: round moments of local time, and their labels."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from qrmi_slurm.report.timespan import Timespan

_DAY_S: Final = 86400
_MONTH_S: Final = 30.4 * _DAY_S
_STEPS_S: Final = (60, 300, 900, 1800, 3600, 3 * 3600, 6 * 3600, 12 * 3600)
_STEPS_DAYS: Final = (1, 2, 7, 14)
_MAX_TICKS: Final = 10


def of(span: Timespan) -> Iterator[tuple[float, str]]:
    """Yield the ticks in a timespan: each moment, in seconds since the epoch, with its label."""
    for at, label in _from_its_first_day(span):
        if at.timestamp() >= span.until_s:
            return
        if at.timestamp() >= span.since_s:
            yield at.timestamp(), label


def _from_its_first_day(span: Timespan) -> Iterator[tuple[datetime, str]]:
    """Yield ticks without end, in steps that suit a timespan's length; the first ones may lie before it."""
    at = datetime.fromtimestamp(span.since_s).replace(hour=0, minute=0, second=0, microsecond=0)
    step_s = next((step for step in _STEPS_S if span.length_s / step <= _MAX_TICKS), None)
    if step_s is not None:
        return _in_steps(at, timedelta(seconds=step_s))
    days = next((step for step in _STEPS_DAYS if span.length_s / (step * _DAY_S) <= _MAX_TICKS), None)
    if days is not None:
        return _in_steps(at, timedelta(days=days))
    return _in_months(at.replace(day=1), max(1, round(span.length_s / _MONTH_S / _MAX_TICKS + 0.5)))


def _in_steps(at: datetime, step: timedelta) -> Iterator[tuple[datetime, str]]:
    while True:
        yield at, at.strftime("%-d %b") if (at.hour, at.minute) == (0, 0) else at.strftime("%H:%M")
        at += step


def _in_months(at: datetime, months: int) -> Iterator[tuple[datetime, str]]:
    while True:
        yield at, at.strftime("%b %Y")
        number = at.month - 1 + months
        at = at.replace(year=at.year + number // 12, month=number % 12 + 1)
