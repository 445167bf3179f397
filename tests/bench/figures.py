"""The figures of a benchmark: values measured in turn, their medians and quartiles, and ratios within a round."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

BASE = "none"
EMPTY = "empty hooks"
NO_HOLD = "ours, NoHold"


@dataclass(frozen=True, slots=True)
class Spread:
    """A median and its quartiles."""

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
    """One measured quantity, with the same number of values for each arm.

    Args:
        section: the letter of its section.
        what: its description, in one line.
        unit: of the values.
        digits: decimal places to show.
        values: by arm, in the order of the rounds.
        base: the denominator of ratios: an arm, or values of another figure.
        at_most: the target for `ours`: a ratio if `is_ratio`, otherwise a value.
        is_ratio: whether the target is a ratio.
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
        """Add one measurement."""
        self.values.setdefault(arm, []).append(value)

    def ratio(self, arm: str, to: str = "") -> Spread | None:
        """Return the ratios of an arm to the base for each round, or None without a base.

        Args:
            arm: the numerator.
            to: another arm as the base.
        """
        other = to or self.base
        base = self.values.get(other) if isinstance(other, str) else other
        if base is None or arm == other:
            return None
        return spread([value / other for value, other in zip(self.values[arm], base, strict=False) if other])

    def is_met(self) -> bool | None:
        """Tell whether the target is met; None without a target or values."""
        if self.at_most is None or "ours" not in self.values:
            return None
        reached = self.ratio("ours") if self.is_ratio else spread(self.values["ours"])
        return reached is not None and reached.median <= self.at_most

    def json(self) -> dict[str, Any]:
        """Return all fields for JSON."""
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
    """Return a Markdown table: for each figure a row with medians and quartiles of each arm, ratios and the target."""
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
