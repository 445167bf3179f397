"""The rows of a picture: one QPU's acquisitions as bars in lanes or, if there are very many, as columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from qrmi_slurm.report import slices
from qrmi_slurm.report.acquisition import HELD, UNKNOWN, Acquisition
from qrmi_slurm.report.canvas import CHAR, LEFT, MARGIN, PLOT, RIGHT, WIDTH, Canvas, escaped, triangle
from qrmi_slurm.report.colors import Colors
from qrmi_slurm.report.figures import duration, moment, percent
from qrmi_slurm.report.slices import Slice
from qrmi_slurm.text import printable

LANE: Final = 20
MAX_NAME_CHARS: Final = 24
NOBODY: Final = "(none)"

_LANE_STEP: Final = LANE + 3
_MAX_LANES: Final = 12
_DENSE_HEIGHT: Final = 46
_METER: Final = 64
_MIN_BAR: Final = 1.5
_COLUMNS: Final = 178
_COLUMN: Final = PLOT / _COLUMNS


@dataclass(frozen=True, slots=True)
class Row:
    """A QPU's row.

    Args:
        qpu: its name.
        found: its acquisitions.
        capacity: how many jobs may hold it at a time.
        available_s: for how many seconds it could be held, by all jobs together.
        top: the row's upper edge, in pixels.
    """

    qpu: str
    found: Sequence[Acquisition]
    capacity: int
    available_s: float
    top: float


def draw(canvas: Canvas, row: Row, colors: Colors, max_bars: int) -> float:
    """Draw a row and return its height, in pixels.

    Args:
        canvas: where to draw.
        row: the row.
        colors: those of the holders.
        max_bars: with more acquisitions than this the row has columns.
    """
    held = [one for one in row.found if one.acquired_s is not None]
    lanes = _lanes(held)
    count = max(row.capacity, 1 + max(lanes, default=0))
    if len(row.found) > max_bars or count > _MAX_LANES:
        height = float(_DENSE_HEIGHT)
        _lane(canvas, row.top, height)
        _columns(canvas, row, colors)
    else:
        height = float((count - 1) * _LANE_STEP + LANE)
        for lane in range(count):
            _lane(canvas, row.top + lane * _LANE_STEP, LANE)
        for one, lane in zip(held, lanes, strict=True):
            _bar(canvas, one, row.top + lane * _LANE_STEP, colors)
        for one in row.found:
            if one.acquired_s is None:
                _failure(canvas, one, row.top, height)
    _heading(canvas, row, row.top + height / 2)
    return height


def _lane(canvas: Canvas, y: float, height: float) -> None:
    canvas.add(f'<rect class="lane" x="{LEFT}" y="{y:g}" width="{PLOT}" height="{height:g}" rx="2"/>')


def _heading(canvas: Canvas, row: Row, middle: float) -> None:
    """Write a QPU's name to the left of its row, and how much it was used to the right."""
    canvas.text(MARGIN, middle + (4 if row.capacity == 1 else -1), printable(row.qpu, MAX_NAME_CHARS + 1), "text name")
    if row.capacity > 1:
        canvas.text(MARGIN, middle + 13, f"{row.capacity} jobs at a time", "soft small")
    used = sum(one.held_s(canvas.span) for one in row.found) / row.available_s
    x, y = WIDTH - RIGHT + 12, middle + 5
    canvas.text(x, middle + 1, percent(used), "text name")
    canvas.add(f'<rect class="meter" x="{x}" y="{y:g}" width="{_METER}" height="4" rx="2"/>')
    if used > 0:
        width = max(1.0, _METER * min(1.0, used))
        canvas.add(f'<rect class="used" x="{x}" y="{y:g}" width="{width:.1f}" height="4" rx="2"/>')


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


# --- bars ------------------------------------------------------------------------------------------


def _bar(canvas: Canvas, one: Acquisition, y: float, colors: Colors) -> None:
    x = canvas.x(one.asked_s if one.acquired_s is None else one.acquired_s)
    width = max(_MIN_BAR, canvas.x(one.ended_s) - x)
    x = min(x, WIDTH - RIGHT - width)
    width -= 0.7 if width > 6 else 0.0  # so that two in a row of the same user can be told apart
    canvas.add(
        f'<rect class="c{colors.of(one)}" x="{x:.1f}" y="{y:g}" width="{width:.1f}" height="{LANE}" rx="2">'
        f"<title>{escaped(_bar_title(one))}</title></rect>"
    )
    who = printable(colors.who(one), MAX_NAME_CHARS)
    label = next((text for text in (f"{who} {one.job}", who) if len(text) * CHAR + 10 <= width), "")
    if label:
        canvas.text(x + 5, y + 14, label, "on")


def _failure(canvas: Canvas, one: Acquisition, top: float, height: float) -> None:
    x = canvas.x(one.asked_s)
    if one.result == UNKNOWN or (one.result in ("expired", "forgotten") and one.ended_s > one.asked_s):
        width = max(_MIN_BAR, canvas.x(one.ended_s) - x)
        canvas.add(
            f'<rect class="open" x="{x:.1f}" y="{top + 1:g}" width="{width:.1f}" height="{height - 2:g}" rx="2"/>'
        )
    canvas.add(f'<path class="bad" d="{triangle(x, top - 9)}"><title>{escaped(_bar_title(one))}</title></path>')


def _bar_title(one: Acquisition) -> str:
    """Return the text beside the pointer over an acquisition, with nothing that only root may read."""
    job = f"job {one.job}" + (f" ({one.job_id})" if one.array_job_id is not None else "")
    job += f" of {one.het_job_id}" if one.het_job_id is not None else ""
    job += f", run {one.restart + 1}" if one.restart else ""
    lines = [f"{one.qpu}: {job} on {one.node}", f"{one.user}, account {one.account or NOBODY}"]
    if one.acquired_s is None:
        lines.append(f"{moment(one.asked_s)}: {one.result}")
    elif one.result == HELD:
        lines.append(f"since {moment(one.acquired_s)}: {duration(one.ended_s - one.acquired_s)}, held now")
    else:
        held = duration(max(0.0, one.ended_s - one.acquired_s))
        lines.append(f"{moment(one.acquired_s)} to {moment(one.ended_s)}: {held}, {one.result} by {one.by}")
    return "\n".join(printable(line) for line in lines)


# --- columns ---------------------------------------------------------------------------------------


def _columns(canvas: Canvas, row: Row, colors: Colors) -> None:
    parts = slices.cut(row.found, canvas.span, colors, _COLUMNS)
    full_ms = row.available_s / _COLUMNS * 1000
    _column_fills(canvas, parts, full_ms, row.top)
    for number, part in enumerate(parts):
        if not part.asked and not part.held_ms:
            continue
        x = LEFT + number * _COLUMN
        if part.failed:
            tall = 1.5 + 5 * part.failed / part.asked
            size = f'width="{_COLUMN - 1:.1f}" height="{tall:.1f}"'
            canvas.add(f'<rect class="bad" x="{x:.1f}" y="{row.top - 2 - tall:.1f}" {size}/>')
        canvas.add(
            f'<rect class="clear" x="{x:.1f}" y="{row.top:g}" width="{_COLUMN:.1f}" height="{_DENSE_HEIGHT}">'
            f"<title>{escaped(_slice_title(part, full_ms))}</title></rect>"
        )


def _column_fills(canvas: Canvas, parts: Sequence[Slice], full_ms: float, top: float) -> None:
    """Draw the columns, all of a color as one path.

    Args:
        canvas: where to draw.
        parts: the slices of the timespan.
        full_ms: for how many milliseconds the QPU could be held in each.
        top: the row's upper edge, in pixels.
    """
    paths: dict[int, list[str]] = {}
    for number, part in enumerate(parts):
        x, y = LEFT + number * _COLUMN, top + _DENSE_HEIGHT
        for color in sorted(part.held_ms):
            tall = min(y - top, _DENSE_HEIGHT * part.held_ms[color] / full_ms)
            if tall > 0.05:
                y -= tall
                paths.setdefault(color, []).append(f"M{x:.1f} {y:.1f}h{_COLUMN:.1f}v{tall:.1f}h-{_COLUMN:.1f}z")
    for color, pieces in sorted(paths.items()):
        canvas.add(f'<path class="c{color}" d="{"".join(pieces)}"/>')


def _slice_title(part: Slice, full_ms: float) -> str:
    """Return the text beside the pointer over a slice."""
    lines = [f"{moment(part.span.since_s)}, for {duration(part.span.length_s)}"]
    lines.append(f"{percent(sum(part.held_ms.values()) / full_ms)} held; {part.asked} asked for")
    if part.failed:
        lines.append(f"{part.failed} not acquired")
    for who, held_ms in part.held_by_ms.most_common(4):
        lines.append(f"{printable(who, 40) or NOBODY} {percent(held_ms / full_ms)}")
    return "\n".join(lines)
