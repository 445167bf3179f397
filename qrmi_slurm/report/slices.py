"""The slices of a timespan: how much a busy QPU was in use, and by whom, in equal parts of it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from qrmi_slurm.report.acquisition import Acquisition
from qrmi_slurm.report.colors import Colors
from qrmi_slurm.report.timespan import Timespan


@dataclass(slots=True)
class Slice:
    """One of a timespan's equal parts.

    Args:
        span: its own timespan.
        held_ms: for how many milliseconds the QPU was held, by the holder's color.
        held_by_ms: the same by the holder.
        asked: how many acquisitions were asked for in it.
        failed: how many of these failed.
    """

    span: Timespan
    held_ms: Counter[int] = field(default_factory=Counter)
    held_by_ms: Counter[str] = field(default_factory=Counter)
    asked: int = 0
    failed: int = 0


def cut(found: Sequence[Acquisition], span: Timespan, colors: Colors, count: int) -> list[Slice]:
    """Return a timespan's slices with what a QPU's acquisitions add up to in each.

    Args:
        found: the QPU's acquisitions.
        span: the timespan.
        colors: those of the holders.
        count: how many slices.
    """
    each_s = span.length_s / count
    starts = [span.since_s + number * each_s for number in range(count)]
    slices = [Slice(Timespan(since_s, since_s + each_s)) for since_s in starts]

    def number_at(at_s: float) -> int:
        return max(0, min(count - 1, int((at_s - span.since_s) / span.length_s * count)))

    for one in found:
        asked_in = slices[number_at(one.asked_s)]
        asked_in.asked += 1
        if one.acquired_s is None:
            asked_in.failed += 1
            continue
        for held_in in slices[number_at(one.acquired_s) : number_at(one.ended_s) + 1]:
            held_ms = round(held_in.span.overlap_s(one.acquired_s, one.ended_s) * 1000)
            held_in.held_ms[colors.of(one)] += held_ms
            held_in.held_by_ms[colors.who(one)] += held_ms
    return slices
