"""The timeline: a picture of who held which QPU when, as SVG that needs nothing else.

Each QPU has a row, with a lane for each job that may hold it at a time. A QPU with very many acquisitions is drawn as a
column for each moment instead, as high as it was in use, so that the file stays small.
"""

import html
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from qrmi_slurm.report.timespan import Timespan
from qrmi_slurm.report.usage import HELD, NOT_ACQUIRED, UNKNOWN, Acquisition, Usage
from qrmi_slurm.text import printable

WIDTH: Final = 1200
_LEFT: Final = 210
_RIGHT: Final = 100
_PLOT: Final = WIDTH - _LEFT - _RIGHT
_TOP: Final = 60
_TITLE: Final = 32
_LANE: Final = 20
_LANE_GAP: Final = 3
_ROW_GAP: Final = 18
_DENSE_HEIGHT: Final = 46
_BOTTOM: Final = 34

# Beyond these, a QPU is drawn in columns. A bar with its words has some 300 bytes.
_MAX_BARS: Final = 2000
_MIN_BARS_OF_A_QPU: Final = 40
_MAX_LANES: Final = 12
_COLUMNS: Final = 178

_MIN_BAR: Final = 1.5
_CHAR: Final = 6.6  # width of a letter of 11 px, on the safe side
_LEGEND_CHAR: Final = 6.6

# Fills for who held it, the heaviest user first, on light and on dark ground; the last is for everybody else.
_LIGHT: Final = ("2f6fb7", "b85c00", "17805a", "a8407f", "0b7d8f", "c03a3a", "6a4fc0", "6f7011", "6e7783")
_DARK: Final = ("7db1ec", "f0a65a", "63c79b", "e48fc4", "5cc6d4", "f18d8d", "b39cf2", "cccc69", "9aa4b0")
OTHERS: Final = len(_LIGHT) - 1

_STEPS_S: Final = (60, 300, 900, 1800, 3600, 3 * 3600, 6 * 3600, 12 * 3600)
_STEPS_DAYS: Final = (1, 2, 7, 14)
_MAX_TICKS: Final = 10


@dataclass(frozen=True, slots=True)
class Colours:
    """Who has which colour.

    Args:
        who: the text that stands for an acquisition's holder.
        numbers: the colours' numbers by that text; who is not in it is of the others.
    """

    who: Callable[[Acquisition], str]
    numbers: Mapping[str, int]

    def of(self, one: Acquisition) -> int:
        """Return the number of an acquisition's colour."""
        return self.numbers.get(self.who(one), OTHERS)


def colours(usage: Usage, who: Callable[[Acquisition], str]) -> Colours:
    """Return colours for those who held the most; one more than there are colours for is `others`."""
    held: Counter[str] = Counter()
    for one in usage.acquisitions:
        held[who(one)] += 0 if one.acquired_s is None else max(1, round(one.held_s(usage.span)))
    names = [name for name, _ in sorted(held.items(), key=lambda item: (-item[1], item[0]))]
    return Colours(who, {name: number for number, name in enumerate(names[:OTHERS])})


def _style() -> str:
    """Return the picture's style sheet, for light and for dark ground."""
    light = "".join(f".c{number}{{fill:#{fill}}}" for number, fill in enumerate(_LIGHT))
    night = "".join(f".c{number}{{fill:#{fill}}}" for number, fill in enumerate(_DARK))
    return (
        ".timeline{font-family:system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;font-size:12px}"
        ".ground{fill:#fff}.text{fill:#1c232b}.soft{fill:#5c6773}.title{font-size:18px;font-weight:600}"
        ".name{font-weight:600}.small{font-size:11px}.lane{fill:#f0f2f5}.grid{stroke:#d9dee4}.axis{stroke:#a6afb9}"
        ".on{fill:#fff;font-size:11px;pointer-events:none}.bad{fill:#c4262e}.meter{fill:#e3e7ec}.used{fill:#5c6773}"
        ".open{fill:none;stroke:#8a5a00;stroke-dasharray:3 2}.clear{fill:transparent}"
        f"{light}"
        "@media (prefers-color-scheme: dark){"
        ".ground{fill:#12161b}.text{fill:#e8ecf0}.soft{fill:#9aa6b2}.lane{fill:#1d232a}"
        ".grid{stroke:#2b333c}.axis{stroke:#55606c}.on{fill:#10151a}.bad{fill:#ff7b7b}.meter{fill:#2b333c}"
        f".used{{fill:#9aa6b2}}.open{{stroke:#e0b050}}{night}"
        "}"
    )


def svg(usage: Usage, who: Callable[[Acquisition], str], *, is_alone: bool) -> str:
    """Return the picture.

    Args:
        usage: what to show.
        who: the text that stands for an acquisition's holder: its user, or its account.
        is_alone: whether it is a file of its own, with a title; or a part of a page.
    """
    return _Timeline(usage, who, is_alone=is_alone).render()


def utilisation(usage: Usage, qpu: str) -> float:
    """Return which part of what a QPU could be held was held, from 0 to 1."""
    held_s = sum(one.held_s(usage.span) for one in usage.acquisitions if one.qpu == qpu)
    return held_s / (usage.span.length_s * usage.capacity(qpu))


def moment(epoch_s: float) -> str:
    """Return a moment in local time, as in `23 Nov 2026 14:05:09`."""
    return datetime.fromtimestamp(epoch_s).strftime("%-d %b %Y %H:%M:%S")


def duration(seconds: float) -> str:
    """Return seconds as Slurm's commands write them: `[days-]hours:minutes:seconds`."""
    days, rest = divmod(round(seconds), 86400)
    clock = f"{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"
    return f"{days}-{clock}" if days else clock


class _Timeline:
    """One picture under way: how far down it has come."""

    def __init__(self, usage: Usage, who: Callable[[Acquisition], str], *, is_alone: bool) -> None:
        self._usage = usage
        self._span: Timespan = usage.span
        self._is_alone = is_alone
        self._colours = colours(usage, who)
        self._qpus: dict[str, list[Acquisition]] = {name: [] for name in usage.qpus}
        for one in usage.acquisitions:
            self._qpus[one.qpu].append(one)
        self._bars_of_a_qpu = max(_MIN_BARS_OF_A_QPU, _MAX_BARS // max(1, len(self._qpus)))
        self._parts: list[str] = []
        self._top = float(_TOP + _TITLE if is_alone else _TOP)
        self._y = self._top

    def render(self) -> str:
        """Return the whole picture."""
        legend = list(self._legend())
        for name, found in self._qpus.items():
            self._row(name, found)
        if not self._qpus:
            self._text(_LEFT, self._y + 14, "no QPU was asked for", "soft")
            self._y += _LANE + _ROW_GAP
        height = round(self._y + _BOTTOM)
        what = f"Who held which QPU, {moment(self._span.since_s)} to {moment(self._span.until_s)}"
        head = [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="timeline" viewBox="0 0 {WIDTH} {height}" role="img"'
            f' aria-label="{_escaped(what)}"' + (f' width="{WIDTH}" height="{height}">' if self._is_alone else ">"),
        ]
        head.append(f"<style>{_style()}</style>")
        head.append(f'<rect class="ground" width="{WIDTH}" height="{height}"/>')
        if self._is_alone:
            head.append(f'<text class="text title" x="24" y="34">{_escaped(what)}</text>')
        grid = list(self._grid(self._y - _ROW_GAP / 2))
        return "\n".join([*head, *legend, *grid, *self._parts, "</svg>"]) + "\n"

    # --- around the rows ----------------------------------------------------------------------------

    def _legend(self) -> Iterator[str]:
        names = sorted(self._colours.numbers, key=self._colours.numbers.__getitem__)
        shown = [(printable(name, 24) or "(none)", number) for name, number in zip(names, range(OTHERS), strict=False)]
        if any(self._colours.of(one) == OTHERS for one in self._usage.acquisitions):
            shown.append(("others", OTHERS))
        x, y = 24.0, self._top - 34
        for name, number in shown:
            yield f'<rect class="c{number}" x="{x:g}" y="{y - 10:g}" width="12" height="12" rx="2"/>'
            yield f'<text class="text" x="{x + 17:g}" y="{y:g}">{_escaped(name)}</text>'
            x += 17 + _LEGEND_CHAR * len(name) + 22
        if any(one.result in NOT_ACQUIRED for one in self._usage.acquisitions):
            yield f'<path class="bad" d="{_mark(x + 6, y - 10)}"/>'
            yield f'<text class="text" x="{x + 17:g}" y="{y:g}">not acquired</text>'

    def _grid(self, bottom: float) -> Iterator[str]:
        top = self._top - 6
        for at_s, label in _ticks(self._span):
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
            self._add(f'<rect class="lane" x="{_LEFT}" y="{top:g}" width="{_PLOT}" height="{height:g}" rx="2"/>')
            self._columns(name, found, top, height)
        else:
            height = count * (_LANE + _LANE_GAP) - _LANE_GAP
            for lane in range(count):
                y = top + lane * (_LANE + _LANE_GAP)
                self._add(f'<rect class="lane" x="{_LEFT}" y="{y:g}" width="{_PLOT}" height="{_LANE}" rx="2"/>')
            for one, lane in zip(held, lanes, strict=True):
                self._bar(one, top + lane * (_LANE + _LANE_GAP))
            for one in found:
                if one.acquired_s is None:
                    self._failure(one, top, height)
        self._heading(name, top, height)
        self._y = top + height + _ROW_GAP

    def _heading(self, name: str, top: float, height: float) -> None:
        middle = top + height / 2
        capacity = self._usage.capacity(name)
        self._text(24, middle + (4 if capacity == 1 else -1), printable(name, 25), "text name")
        if capacity > 1:
            self._text(24, middle + 13, f"{capacity} jobs at a time", "soft small")
        used = utilisation(self._usage, name)
        x = WIDTH - _RIGHT + 12
        self._text(x, middle + 1, percent(used), "text name")
        self._add(f'<rect class="meter" x="{x}" y="{middle + 5:g}" width="64" height="4" rx="2"/>')
        if used > 0:
            self._add(
                f'<rect class="used" x="{x}" y="{middle + 5:g}" width="{max(1.0, 64 * min(1.0, used)):.1f}"'
                ' height="4" rx="2"/>'
            )

    def _bar(self, one: Acquisition, y: float) -> None:
        began_s = one.asked_s if one.acquired_s is None else one.acquired_s
        x = self._x(began_s)
        width = max(_MIN_BAR, self._x(one.ended_s) - x)
        x = min(x, WIDTH - _RIGHT - width)
        width -= 0.7 if width > 6 else 0.0  # two of one user's stay two
        who = printable(self._colours.who(one), 24)
        self._add(
            f'<rect class="c{self._colours.of(one)}" x="{x:.1f}" y="{y:g}" width="{width:.1f}" height="{_LANE}" rx="2">'
            f"<title>{_escaped(_told(one))}</title></rect>"
        )
        label = next((text for text in (f"{who} {one.job}", who) if len(text) * _CHAR + 10 <= width), "")
        if label:
            self._text(x + 5, y + 14, label, "on")

    def _failure(self, one: Acquisition, top: float, height: float) -> None:
        if one.result == UNKNOWN or (one.result in ("expired", "forgotten") and one.ended_s > one.asked_s):
            x = self._x(one.asked_s)
            width = max(_MIN_BAR, self._x(one.ended_s) - x)
            self._add(
                f'<rect class="open" x="{x:.1f}" y="{top + 1:g}" width="{width:.1f}" height="{height - 2:g}" rx="2"/>'
            )
        mark = _mark(self._x(one.asked_s), top - 9)
        self._add(f'<path class="bad" d="{mark}"><title>{_escaped(_told(one))}</title></path>')

    def _columns(self, name: str, found: Sequence[Acquisition], top: float, height: float) -> None:
        width = _PLOT / _COLUMNS
        each_s = self._span.length_s / _COLUMNS
        room_s = each_s * self._usage.capacity(name)
        held: list[Counter[int]] = [Counter() for _ in range(_COLUMNS)]
        by_who: list[Counter[str]] = [Counter() for _ in range(_COLUMNS)]
        asked, failed = Counter[int](), Counter[int]()
        for one in found:
            asked[self._column(one.asked_s)] += 1
            if one.acquired_s is None:
                failed[self._column(one.asked_s)] += 1
                continue
            for column in range(self._column(one.acquired_s), self._column(one.ended_s) + 1):
                since_s = self._span.since_s + column * each_s
                seconds = Timespan(since_s, since_s + each_s).overlap_s(one.acquired_s, one.ended_s)
                held[column][self._colours.of(one)] += round(seconds * 1000)
                by_who[column][self._colours.who(one)] += round(seconds * 1000)
        paths: dict[int, list[str]] = {}
        for column in range(_COLUMNS):
            x, y = _LEFT + column * width, top + height
            for colour in sorted(held[column]):
                part = min(y - top, height * held[column][colour] / 1000 / room_s)
                if part > 0.05:
                    y -= part
                    paths.setdefault(colour, []).append(f"M{x:.1f} {y:.1f}h{width:.1f}v{part:.1f}h-{width:.1f}z")
        for colour, parts in sorted(paths.items()):
            self._add(f'<path class="c{colour}" d="{"".join(parts)}"/>')
        for column in range(_COLUMNS):
            if not asked[column] and not held[column]:
                continue
            x = _LEFT + column * width
            if failed[column]:
                tall = 1.5 + 5 * failed[column] / asked[column]
                size = f'width="{width - 1:.1f}" height="{tall:.1f}"'
                self._add(f'<rect class="bad" x="{x:.1f}" y="{top - 2 - tall:.1f}" {size}/>')
            since_s = self._span.since_s + column * each_s
            told = [f"{moment(since_s)}, for {duration(each_s)}"]
            told.append(f"{percent(sum(held[column].values()) / 1000 / room_s)} held; {asked[column]} asked for")
            told += [f"{failed[column]} not acquired"] if failed[column] else []
            for text, value in by_who[column].most_common(4):
                told.append(f"{printable(text, 40) or '(none)'} {percent(value / 1000 / room_s)}")
            self._add(
                f'<rect class="clear" x="{x:.1f}" y="{top:g}" width="{width:.1f}" height="{height:g}">'
                f"<title>{_escaped(chr(10).join(told))}</title></rect>"
            )

    # --- small things -------------------------------------------------------------------------------

    def _column(self, at_s: float) -> int:
        part = (at_s - self._span.since_s) / self._span.length_s
        return max(0, min(_COLUMNS - 1, int(part * _COLUMNS)))

    def _x(self, at_s: float) -> float:
        part = (at_s - self._span.since_s) / self._span.length_s
        return _LEFT + _PLOT * max(0.0, min(1.0, part))

    def _text(self, x: float, y: float, text: str, style_class: str) -> None:
        self._add(f'<text class="{style_class}" x="{x:.1f}" y="{y:.1f}">{_escaped(text)}</text>')

    def _add(self, part: str) -> None:
        self._parts.append(part)


def percent(part: float) -> str:
    """Return a part as people read it; what is more than nothing never looks like nothing."""
    if 0 < part < 0.001:
        return "<0.1 %"
    return f"{part * 100:.1f} %" if 0 < part < 0.0995 else f"{part * 100:.0f} %"


def _told(one: Acquisition) -> str:
    """Return what stands beside the pointer over an acquisition; nothing that is root's alone."""
    job = f"job {one.job}" + (f" ({one.job_id})" if one.array_job_id is not None else "")
    job += f" of {one.het_job_id}" if one.het_job_id is not None else ""
    job += f", run {one.restart + 1}" if one.restart else ""
    lines = [f"{one.qpu}: {job} on {one.node}", f"{one.user}, account {one.account or '(none)'}"]
    if one.acquired_s is None:
        lines.append(f"{moment(one.asked_s)}: {one.result}")
    elif one.result == HELD:
        lines.append(f"since {moment(one.acquired_s)}: {duration(one.ended_s - one.acquired_s)}, held now")
    else:
        held = duration(max(0.0, one.ended_s - one.acquired_s))
        lines.append(f"{moment(one.acquired_s)} to {moment(one.ended_s)}: {held}, {one.result} by {one.by}")
    return "\n".join(printable(line) for line in lines)


def _lanes(held: Sequence[Acquisition]) -> list[int]:
    """Return a lane for each acquisition, in which no two of them are at a time."""
    ends: list[float] = []
    found = []
    for one in sorted(held, key=lambda one: (one.acquired_s or 0.0, one.id)):
        began_s = one.acquired_s or 0.0
        lane = next((number for number, end_s in enumerate(ends) if end_s <= began_s), len(ends))
        ends[lane : lane + 1] = [one.ended_s]
        found.append((one, lane))
    lanes = {one.id: lane for one, lane in found}
    return [lanes[one.id] for one in held]


def _ticks(span: Timespan) -> Iterator[tuple[float, str]]:
    """Yield round moments of local time in a timespan, and what to call them."""
    step_s = next((step for step in _STEPS_S if span.length_s / step <= _MAX_TICKS), None)
    day = datetime.fromtimestamp(span.since_s).replace(hour=0, minute=0, second=0, microsecond=0)
    if step_s is not None:
        at = day
        while at.timestamp() < span.until_s:
            if at.timestamp() >= span.since_s:
                is_midnight = (at.hour, at.minute) == (0, 0)
                yield at.timestamp(), at.strftime("%-d %b") if is_midnight else at.strftime("%H:%M")
            at += timedelta(seconds=step_s)
        return
    days = next((step for step in _STEPS_DAYS if span.length_s / (step * 86400) <= _MAX_TICKS), None)
    if days is not None:
        at = day
        while at.timestamp() < span.until_s:
            if at.timestamp() >= span.since_s:
                yield at.timestamp(), at.strftime("%-d %b")
            at += timedelta(days=days)
        return
    months = max(1, round(span.length_s / (30.4 * 86400) / _MAX_TICKS + 0.5))
    at = day.replace(day=1)
    while at.timestamp() < span.until_s:
        if at.timestamp() >= span.since_s:
            yield at.timestamp(), at.strftime("%b %Y")
        number = at.month - 1 + months
        at = at.replace(year=at.year + number // 12, month=number % 12 + 1)


def _mark(x: float, y: float) -> str:
    """Return the path of a small triangle that points down."""
    return f"M{x - 4:.1f} {y:.1f}h8l-4 7z"


def _escaped(text: str) -> str:
    return html.escape(text, quote=True)
