"""The timeline: a picture of who held which QPU when, as SVG that needs nothing else.

Each QPU has a row, with a lane for each job that may hold it at the same time. A QPU with very many acquisitions has
columns instead, as high as it was in use in each slice of the timespan, so that the file stays small.
"""

import html
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from qrmi_slurm.report import colors, slices, ticks
from qrmi_slurm.report.acquisition import HELD, NOT_ACQUIRED, UNKNOWN, Acquisition
from qrmi_slurm.report.colors import OTHERS
from qrmi_slurm.report.figures import duration, moment, percent
from qrmi_slurm.report.slices import Slice
from qrmi_slurm.report.timespan import Timespan
from qrmi_slurm.report.usage import Usage
from qrmi_slurm.text import printable

# The picture's measures, in pixels.
WIDTH: Final = 1200
_LEFT: Final = 210
_RIGHT: Final = 100
_PLOT: Final = WIDTH - _LEFT - _RIGHT
_MARGIN: Final = 24
_TOP: Final = 60
_TITLE: Final = 32
_LANE: Final = 20
_LANE_GAP: Final = 3
_ROW_GAP: Final = 18
_DENSE_HEIGHT: Final = 46
_BOTTOM: Final = 34
_METER: Final = 64
_MIN_BAR: Final = 1.5
_CHAR: Final = 6.6  # the width of a letter, with some to spare

# A QPU with more than these is drawn in columns. A bar with its words takes some 300 bytes.
_MAX_BARS: Final = 2000
_MIN_BARS_OF_A_QPU: Final = 40
_MAX_LANES: Final = 12
_COLUMNS: Final = 178
_COLUMN: Final = _PLOT / _COLUMNS

_MAX_NAME_CHARS: Final = 24
_NOBODY: Final = "(none)"


def svg(usage: Usage, who: Callable[[Acquisition], str], *, is_alone: bool) -> str:
    """Return the picture.

    Args:
        usage: what to show.
        who: returns the text that names an acquisition's holder: its user, or its account.
        is_alone: whether it is a file of its own, with a title, or part of a page.
    """
    return _Timeline(usage, who, is_alone=is_alone).render()


class _Timeline:
    """One picture while it is being drawn, from top to bottom."""

    def __init__(self, usage: Usage, who: Callable[[Acquisition], str], *, is_alone: bool) -> None:
        self._usage = usage
        self._span: Timespan = usage.span
        self._is_alone = is_alone
        self._colors = colors.assign(usage, who)
        self._qpus: dict[str, list[Acquisition]] = {name: [] for name in usage.qpus}
        for one in usage.acquisitions:
            self._qpus[one.qpu].append(one)
        self._bars_of_a_qpu = max(_MIN_BARS_OF_A_QPU, _MAX_BARS // max(1, len(self._qpus)))
        self._parts: list[str] = []
        self._top = float(_TOP + _TITLE if is_alone else _TOP)
        self._y = self._top

    def render(self) -> str:
        """Return the whole picture."""
        for name, found in self._qpus.items():
            self._row(name, found)
        if not self._qpus:
            self._text(_LEFT, self._y + 14, "no QPU was requested", "soft")
            self._y += _LANE + _ROW_GAP
        height = round(self._y + _BOTTOM)
        grid = self._grid(self._y - _ROW_GAP / 2)
        return "\n".join([*self._head(height), *self._legend(), *grid, *self._parts, "</svg>"]) + "\n"

    # --- around the rows ----------------------------------------------------------------------------

    def _head(self, height: int) -> Iterator[str]:
        what = f"Who held which QPU, {moment(self._span.since_s)} to {moment(self._span.until_s)}"
        size = f' width="{WIDTH}" height="{height}"'
        yield (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="timeline" viewBox="0 0 {WIDTH} {height}" role="img"'
            f' aria-label="{_escaped(what)}"{size if self._is_alone else ""}>'
        )
        yield f"<style>{colors.style_sheet()}</style>"
        yield f'<rect class="ground"{size}/>'
        if self._is_alone:
            yield f'<text class="text title" x="{_MARGIN}" y="34">{_escaped(what)}</text>'

    def _legend(self) -> Iterator[str]:
        names = self._colors.numbers.items()
        shown = [(printable(name, _MAX_NAME_CHARS) or _NOBODY, number) for name, number in names]
        if any(self._colors.of(one) == OTHERS for one in self._usage.acquisitions):
            shown.append(("others", OTHERS))
        x, y = float(_MARGIN), self._top - 34
        for name, number in shown:
            yield f'<rect class="c{number}" x="{x:g}" y="{y - 10:g}" width="12" height="12" rx="2"/>'
            yield f'<text class="text" x="{x + 17:g}" y="{y:g}">{_escaped(name)}</text>'
            x += 17 + _CHAR * len(name) + 22
        if any(one.result in NOT_ACQUIRED for one in self._usage.acquisitions):
            yield f'<path class="bad" d="{_mark(x + 6, y - 10)}"/>'
            yield f'<text class="text" x="{x + 17:g}" y="{y:g}">not acquired</text>'

    def _grid(self, bottom: float) -> Iterator[str]:
        top = self._top - 6
        for at_s, label in ticks.of(self._span):
            x = self._x(at_s)
            yield f'<path class="grid" d="M{x:.1f} {top:g}V{bottom:.1f}"/>'
            if _LEFT + 12 < x < WIDTH - _RIGHT - 12:
                yield f'<text class="soft small" x="{x:.1f}" y="{bottom + 18:.1f}" text-anchor="middle">{label}</text>'
        yield f'<path class="axis" d="M{_LEFT} {bottom:.1f}H{WIDTH - _RIGHT}"/>'

    # --- a row --------------------------------------------------------------------------------------

    def _row(self, name: str, found: Sequence[Acquisition]) -> None:
        held = [one for one in found if one.held_s(self._span) > 0 or one.acquired_s is not None]
        lanes = _lanes(held)
        count = max(self._usage.capacity(name), 1 + max(lanes, default=0))
        top = self._y
        if len(found) > self._bars_of_a_qpu or count > _MAX_LANES:
            height = float(_DENSE_HEIGHT)
            self._lane(top, height)
            parts = slices.cut(found, self._span, self._colors, _COLUMNS)
            self._columns(parts, self._usage.available_s(name) / _COLUMNS * 1000, top, height)
        else:
            height = count * (_LANE + _LANE_GAP) - _LANE_GAP
            for lane in range(count):
                self._lane(top + lane * (_LANE + _LANE_GAP), _LANE)
            for one, lane in zip(held, lanes, strict=True):
                self._bar(one, top + lane * (_LANE + _LANE_GAP))
            for one in found:
                if one.acquired_s is None:
                    self._failure(one, top, height)
        self._heading(name, top + height / 2)
        self._y = top + height + _ROW_GAP

    def _lane(self, y: float, height: float) -> None:
        self._add(f'<rect class="lane" x="{_LEFT}" y="{y:g}" width="{_PLOT}" height="{height:g}" rx="2"/>')

    def _heading(self, name: str, middle: float) -> None:
        """Draw a QPU's name to the left of its row, and how much it was used to the right."""
        capacity = self._usage.capacity(name)
        self._text(_MARGIN, middle + (4 if capacity == 1 else -1), printable(name, 25), "text name")
        if capacity > 1:
            self._text(_MARGIN, middle + 13, f"{capacity} jobs at a time", "soft small")
        used = sum(one.held_s(self._span) for one in self._qpus[name]) / self._usage.available_s(name)
        x, y = WIDTH - _RIGHT + 12, middle + 5
        self._text(x, middle + 1, percent(used), "text name")
        self._add(f'<rect class="meter" x="{x}" y="{y:g}" width="{_METER}" height="4" rx="2"/>')
        if used > 0:
            width = max(1.0, _METER * min(1.0, used))
            self._add(f'<rect class="used" x="{x}" y="{y:g}" width="{width:.1f}" height="4" rx="2"/>')

    def _bar(self, one: Acquisition, y: float) -> None:
        began_s = one.asked_s if one.acquired_s is None else one.acquired_s
        x = self._x(began_s)
        width = max(_MIN_BAR, self._x(one.ended_s) - x)
        x = min(x, WIDTH - _RIGHT - width)
        width -= 0.7 if width > 6 else 0.0  # so that two in a row of the same user can be told apart
        who = printable(self._colors.who(one), _MAX_NAME_CHARS)
        self._add(
            f'<rect class="c{self._colors.of(one)}" x="{x:.1f}" y="{y:g}" width="{width:.1f}" height="{_LANE}" rx="2">'
            f"<title>{_escaped(_bar_title(one))}</title></rect>"
        )
        label = next((text for text in (f"{who} {one.job}", who) if len(text) * _CHAR + 10 <= width), "")
        if label:
            self._text(x + 5, y + 14, label, "on")

    def _failure(self, one: Acquisition, top: float, height: float) -> None:
        x = self._x(one.asked_s)
        if one.result == UNKNOWN or (one.result in ("expired", "forgotten") and one.ended_s > one.asked_s):
            width = max(_MIN_BAR, self._x(one.ended_s) - x)
            self._add(
                f'<rect class="open" x="{x:.1f}" y="{top + 1:g}" width="{width:.1f}" height="{height - 2:g}" rx="2"/>'
            )
        self._add(f'<path class="bad" d="{_mark(x, top - 9)}"><title>{_escaped(_bar_title(one))}</title></path>')

    def _columns(self, parts: Sequence[Slice], full_ms: float, top: float, height: float) -> None:
        """Draw a QPU's slices.

        Args:
            parts: the slices.
            full_ms: for how many milliseconds the QPU could be held in each.
            top: the row's upper edge.
            height: the row's height.
        """
        self._column_fills(parts, full_ms, top, height)
        for number, part in enumerate(parts):
            if not part.asked and not part.held_ms:
                continue
            x = _LEFT + number * _COLUMN
            if part.failed:
                tall = 1.5 + 5 * part.failed / part.asked
                size = f'width="{_COLUMN - 1:.1f}" height="{tall:.1f}"'
                self._add(f'<rect class="bad" x="{x:.1f}" y="{top - 2 - tall:.1f}" {size}/>')
            self._add(
                f'<rect class="clear" x="{x:.1f}" y="{top:g}" width="{_COLUMN:.1f}" height="{height:g}">'
                f"<title>{_escaped(_slice_title(part, full_ms))}</title></rect>"
            )

    def _column_fills(self, parts: Sequence[Slice], full_ms: float, top: float, height: float) -> None:
        """Draw the columns, all of a color as one path."""
        paths: dict[int, list[str]] = {}
        for number, part in enumerate(parts):
            x, y = _LEFT + number * _COLUMN, top + height
            for color in sorted(part.held_ms):
                tall = min(y - top, height * part.held_ms[color] / full_ms)
                if tall > 0.05:
                    y -= tall
                    paths.setdefault(color, []).append(f"M{x:.1f} {y:.1f}h{_COLUMN:.1f}v{tall:.1f}h-{_COLUMN:.1f}z")
        for color, pieces in sorted(paths.items()):
            self._add(f'<path class="c{color}" d="{"".join(pieces)}"/>')

    # --- small things -------------------------------------------------------------------------------

    def _x(self, at_s: float) -> float:
        part = (at_s - self._span.since_s) / self._span.length_s
        return _LEFT + _PLOT * max(0.0, min(1.0, part))

    def _text(self, x: float, y: float, text: str, style_class: str) -> None:
        self._add(f'<text class="{style_class}" x="{x:.1f}" y="{y:.1f}">{_escaped(text)}</text>')

    def _add(self, part: str) -> None:
        self._parts.append(part)


def _bar_title(one: Acquisition) -> str:
    """Return the text beside the pointer over an acquisition, with nothing that only root may read."""
    job = f"job {one.job}" + (f" ({one.job_id})" if one.array_job_id is not None else "")
    job += f" of {one.het_job_id}" if one.het_job_id is not None else ""
    job += f", run {one.restart + 1}" if one.restart else ""
    lines = [f"{one.qpu}: {job} on {one.node}", f"{one.user}, account {one.account or _NOBODY}"]
    if one.acquired_s is None:
        lines.append(f"{moment(one.asked_s)}: {one.result}")
    elif one.result == HELD:
        lines.append(f"since {moment(one.acquired_s)}: {duration(one.ended_s - one.acquired_s)}, held now")
    else:
        held = duration(max(0.0, one.ended_s - one.acquired_s))
        lines.append(f"{moment(one.acquired_s)} to {moment(one.ended_s)}: {held}, {one.result} by {one.by}")
    return "\n".join(printable(line) for line in lines)


def _slice_title(part: Slice, full_ms: float) -> str:
    """Return the text beside the pointer over a slice."""
    lines = [f"{moment(part.span.since_s)}, for {duration(part.span.length_s)}"]
    lines.append(f"{percent(sum(part.held_ms.values()) / full_ms)} held; {part.asked} asked for")
    if part.failed:
        lines.append(f"{part.failed} not acquired")
    for who, held_ms in part.held_by_ms.most_common(4):
        lines.append(f"{printable(who, 40) or _NOBODY} {percent(held_ms / full_ms)}")
    return "\n".join(lines)


def _lanes(held: Sequence[Acquisition]) -> list[int]:
    """Return a lane for each acquisition, so that no two in the same lane overlap."""
    ends: list[float] = []
    found = []
    for one in sorted(held, key=lambda one: (one.acquired_s or 0.0, one.id)):
        began_s = one.acquired_s or 0.0
        lane = next((number for number, end_s in enumerate(ends) if end_s <= began_s), len(ends))
        ends[lane : lane + 1] = [one.ended_s]
        found.append((one, lane))
    lanes = {one.id: lane for one, lane in found}
    return [lanes[one.id] for one in held]


def _mark(x: float, y: float) -> str:
    """Return the path of a small triangle that points down."""
    return f"M{x - 4:.1f} {y:.1f}h8l-4 7z"


def _escaped(text: str) -> str:
    return html.escape(text, quote=True)
