"""The figures of a benchmark: series of what was measured in turn, their medians and spread, and ratios of pairs."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

BASE = "none"
EMPTY = "empty hooks"
NO_HOLD = "ours, NoHold"


@dataclass(frozen=True, slots=True)
class Spread:
    """A median, and the quartiles on both sides of it."""

    low: float
    median: float
    high: float

    def text(self, digits: int) -> str:
        """Return `12.3 (11.9 to 13.0)`."""
        return f"{self.median:.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})"


def spread(values: Sequence[float]) -> Spread:
    """Return the median and the quartiles of at least one value."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(low, median, high)


@dataclass(slots=True)
class Figure:
    """One thing that was measured, for each arm the same number of times in turn.

    Args:
        section: the letter of its section.
        what: a line of text.
        unit: of the values.
        digits: how many of them after the point are worth reading.
        values: by arm, in the order of the rounds.
        base: the arm, or the other figure's values, that ratios are taken to.
        at_most: the target, for `ours`: a ratio where `is_ratio`, else a value.
        is_ratio: whether the target is one of the ratio.
    """

    section: str
    what: str
    unit: str
    digits: int = 1
    values: dict[str, list[float]] = field(default_factory=dict)
    base: str | Sequence[float] = BASE
    at_most: float | None = None
    is_ratio: bool = True

    def add(self, arm: str, value: float) -> None:
        """Note one measurement."""
        self.values.setdefault(arm, []).append(value)

    def ratio(self, arm: str, to: str = "") -> Spread | None:
        """Return an arm's values over the base's of the same rounds; None where there is nothing to compare with.

        Args:
            arm: whose values.
            to: another arm to compare with.
        """
        other = to or self.base
        base = self.values.get(other) if isinstance(other, str) else other
        if base is None or arm == other:
            return None
        return spread([value / other for value, other in zip(self.values[arm], base, strict=False) if other])

    def is_met(self) -> bool | None:
        """Tell whether the target is met; None where there is none, or nothing was measured."""
        if self.at_most is None or "ours" not in self.values:
            return None
        reached = self.ratio("ours") if self.is_ratio else spread(self.values["ours"])
        return reached is not None and reached.median <= self.at_most

    def json(self) -> dict[str, Any]:
        """Return everything for machines."""
        arms = {}
        for arm, values in self.values.items():
            ratio = self.ratio(arm)
            found = spread(values)
            arms[arm] = {
                "median": found.median,
                "quartiles": [found.low, found.high],
                "ratio": ratio and {"median": ratio.median, "quartiles": [ratio.low, ratio.high]},
                "values": values,
            }
        return {
            "section": self.section,
            "what": self.what,
            "unit": self.unit,
            "arms": arms,
            "at_most": self.at_most,
            "target_is_ratio": self.is_ratio if self.at_most is not None else None,
            "met": self.is_met(),
        }


def table(figures: Sequence[Figure], arms: Sequence[str]) -> str:
    """Return a Markdown table: a line a figure, median and quartiles of each arm, ratios, the target."""
    compared = [arm for arm in arms if arm != BASE]
    heading = ["", "what", "unit", *arms, *(f"{arm} / base" for arm in compared), f"ours / {EMPTY}", "target"]
    rows = [heading, ["---"] * len(heading)]
    for figure in figures:
        cells = [figure.section, figure.what, figure.unit]
        cells += [spread(figure.values[arm]).text(figure.digits) if arm in figure.values else "" for arm in arms]
        for arm in compared:
            ratio = figure.ratio(arm) if arm in figure.values else None
            cells.append(ratio.text(2) if ratio else "")
        ratio = figure.ratio("ours", EMPTY) if "ours" in figure.values else None
        cells += [ratio.text(2) if ratio else "", _target(figure)]
        rows.append(cells)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def _target(figure: Figure) -> str:
    met = figure.is_met()
    if met is None:
        return ""
    kind = "x" if figure.is_ratio else f" {figure.unit}"
    return f"{figure.at_most:g}{kind}: {'met' if met else '**not met**'}"
