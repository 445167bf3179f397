"""The figures of a benchmark: values measured in turn, their medians and quartiles, and ratios within a round."""

import html
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

# The arms: no hooks and no plugin; a plugin that does nothing, and /bin/true as Prolog and Epilog; our hooks in
# slurm.conf; with TaskProlog run by the plugin; with PrologFlags=Alloc,NoHold; /bin/true as each of the three hooks.
NONE = "none"
FLOOR = "floor"
OURS = "ours"
BY_PLUGIN = "ours, by plugin"
NO_HOLD = "ours, NoHold"
EMPTY = "empty hooks"


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
        at_most: the target: a ratio if `is_ratio`, otherwise a value.
        is_ratio: whether the target is a ratio.
        judged: the arm that the target is for.
    """

    section: str
    what: str
    unit: str
    digits: int = 1
    values: dict[str, list[float]] = field(default_factory=dict)
    base: str | Sequence[float] = FLOOR
    at_most: float | None = None
    is_ratio: bool = True
    judged: str = OURS

    def add(self, arm: str, value: float) -> None:
        """Add one measurement."""
        self.values.setdefault(arm, []).append(value)

    def ratio(self, arm: str) -> Spread | None:
        """Return the ratios of an arm to the base for each round, or None without a base."""
        base = self.values.get(self.base) if isinstance(self.base, str) else self.base
        if base is None or arm == self.base:
            return None
        return spread([value / other for value, other in zip(self.values[arm], base, strict=False) if other])

    def is_met(self) -> bool | None:
        """Tell whether the target is met; None without a target or values."""
        if self.at_most is None or self.judged not in self.values:
            return None
        reached = self.ratio(self.judged) if self.is_ratio else spread(self.values[self.judged])
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


def table(figures: Sequence[Figure]) -> str:
    """Return a Markdown table: a row for each figure, with each arm's median and its ratio to the base, and the target.

    The quartiles are those of the ratio, or of the value where there is no ratio.
    """
    arms = list(dict.fromkeys(arm for figure in figures for arm in figure.values))
    heading = ["what", *arms, "target"]
    rows = [heading, ["---"] * len(heading)]
    for figure in figures:
        cells = [_cell(figure, arm) if arm in figure.values else "" for arm in arms]
        rows.append([f"{figure.what}, {figure.unit}", *cells, _target(figure)])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def _cell(figure: Figure, arm: str) -> str:
    ratio = figure.ratio(arm)
    value = spread(figure.values[arm])
    return f"{value.median:.{figure.digits}f}; x {ratio.text(2)}" if ratio else value.text(figure.digits)


def _target(figure: Figure) -> str:
    met = figure.is_met()
    if met is None:
        return ""
    kind = f"x {figure.at_most:g}" if figure.is_ratio else f"{figure.at_most:g} {figure.unit}"
    return f"{kind}: {'met' if met else '**not met**'}"


# --- plots ---------------------------------------------------------------------------------------------------

_WIDTH, _LABEL_WIDTH, _BAR, _GAP = 760, 330, 14, 10
_COLORS = ("#9aa5b1", "#52606d", "#0f62fe", "#08bdba", "#8a3ffc", "#fa4d56", "#ff832b")


def plot(figures: Sequence[Figure]) -> str:
    """Return an SVG picture: a group of bars for each figure, a bar for each arm, from zero, with its quartiles."""
    arms = list(dict.fromkeys(arm for figure in figures for arm in figure.values))
    longest = max(spread(values).high for figure in figures for values in figure.values.values())
    scale = (_WIDTH - _LABEL_WIDTH - 90) / (longest or 1.0)
    parts, top = [], 24
    for number, arm in enumerate(arms):
        left = 10 + number * (_WIDTH - 20) // len(arms)
        parts.append(f'<rect x="{left}" y="6" width="10" height="10" fill="{_color(number)}"/>')
        parts.append(_text(left + 14, 15, arm))
    for figure in figures:
        there = [arm for arm in arms if arm in figure.values]
        middle = top + (_BAR * len(there)) / 2 + 4
        parts.append(_text(_LABEL_WIDTH - 8, middle, f"{figure.what}, {figure.unit}", anchor="end"))
        for arm in there:
            found = spread(figure.values[arm])
            width, low, high = (round(value * scale, 1) for value in (found.median, found.low, found.high))
            color, y = _color(arms.index(arm)), top + _BAR / 2
            parts.append(f'<rect x="{_LABEL_WIDTH}" y="{top}" width="{width}" height="{_BAR - 2}" fill="{color}"/>')
            ends = f'x1="{_LABEL_WIDTH + low}" x2="{_LABEL_WIDTH + high}" y1="{y - 1}" y2="{y - 1}"'
            parts.append(f'<line {ends} stroke="#1f2933"/>')
            parts.append(_text(_LABEL_WIDTH + high + 6, y + 3, f"{found.median:.{figure.digits}f}"))
            top += _BAR
        top += _GAP
    size = f'width="{_WIDTH}" height="{top}" viewBox="0 0 {_WIDTH} {top}"'
    style = 'font-family="sans-serif" font-size="11"'
    body = "\n".join(parts)
    background = '<rect width="100%" height="100%" fill="#ffffff"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n{background}\n{body}\n</svg>\n'


def _color(number: int) -> str:
    return _COLORS[number % len(_COLORS)]


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="#1f2933">{html.escape(text)}</text>'
