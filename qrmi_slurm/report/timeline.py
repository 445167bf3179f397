"""The timeline: a picture of who held which QPU when, as SVG that needs nothing else.

Each QPU has a row, with a lane for each job that may hold it at the same time. A QPU with very many acquisitions has
columns instead, as high as it was in use in each slice of the timespan, so that the file stays small.
"""

from collections.abc import Callable, Iterator
from typing import Final

from qrmi_slurm.report import colors, rows, ticks
from qrmi_slurm.report.acquisition import NOT_ACQUIRED, Acquisition
from qrmi_slurm.report.canvas import CHAR, LEFT, MARGIN, RIGHT, WIDTH, Canvas, escaped, triangle
from qrmi_slurm.report.colors import OTHERS, Colors
from qrmi_slurm.report.figures import moment
from qrmi_slurm.report.usage import Usage
from qrmi_slurm.text import printable

# Measures in pixels.
_TOP: Final = 60
_TITLE: Final = 32
_ROW_GAP: Final = 18
_BOTTOM: Final = 34

# A picture with more bars than this has columns instead. A bar with its words takes some 300 bytes.
_MAX_BARS: Final = 2000
_MIN_BARS_OF_A_QPU: Final = 40


def svg(usage: Usage, who: Callable[[Acquisition], str], *, is_alone: bool) -> str:
    """Return the picture.

    Args:
        usage: what to show.
        who: returns the text that names an acquisition's holder: its user, or its account.
        is_alone: whether it is a file of its own, with a title, or part of a page.
    """
    canvas = Canvas(usage.span)
    of_holders = colors.assign(usage, who)
    top = float(_TOP + _TITLE if is_alone else _TOP)
    end = _rows(canvas, usage, of_holders, top)
    parts = [
        *_head(usage, round(end + _BOTTOM), is_alone=is_alone),
        *_legend(usage, of_holders, top - 34),
        *_grid(canvas, top - 6, end - _ROW_GAP / 2),
        *canvas.elements,
    ]
    return "\n".join([*parts, "</svg>"]) + "\n"


def _rows(canvas: Canvas, usage: Usage, of_holders: Colors, y: float) -> float:
    """Draw a row for each QPU and return where they end, in pixels from the top."""
    of_qpus: dict[str, list[Acquisition]] = {name: [] for name in usage.qpus}
    for one in usage.acquisitions:
        of_qpus[one.qpu].append(one)
    max_bars = max(_MIN_BARS_OF_A_QPU, _MAX_BARS // max(1, len(of_qpus)))
    for name, found in of_qpus.items():
        row = rows.Row(name, found, usage.capacity(name), usage.available_s(name), y)
        y += rows.draw(canvas, row, of_holders, max_bars) + _ROW_GAP
    if not of_qpus:
        canvas.text(LEFT, y + 14, "no QPU was requested", "soft")
        y += rows.LANE + _ROW_GAP
    return y


def _head(usage: Usage, height: int, *, is_alone: bool) -> Iterator[str]:
    what = f"Who held which QPU, {moment(usage.span.since_s)} to {moment(usage.span.until_s)}"
    size = f' width="{WIDTH}" height="{height}"'
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="timeline" viewBox="0 0 {WIDTH} {height}" role="img"'
        f' aria-label="{escaped(what)}"{size if is_alone else ""}>'
    )
    yield f"<style>{colors.style_sheet()}</style>"
    yield f'<rect class="ground"{size}/>'
    if is_alone:
        yield f'<text class="text title" x="{MARGIN}" y="34">{escaped(what)}</text>'


def _legend(usage: Usage, of_holders: Colors, y: float) -> Iterator[str]:
    names = of_holders.numbers.items()
    shown = [(printable(name, rows.MAX_NAME_CHARS) or rows.NOBODY, number) for name, number in names]
    if any(of_holders.of(one) == OTHERS for one in usage.acquisitions):
        shown.append(("others", OTHERS))
    x = float(MARGIN)
    for name, number in shown:
        yield f'<rect class="c{number}" x="{x:g}" y="{y - 10:g}" width="12" height="12" rx="2"/>'
        yield f'<text class="text" x="{x + 17:g}" y="{y:g}">{escaped(name)}</text>'
        x += 17 + CHAR * len(name) + 22
    if any(one.result in NOT_ACQUIRED for one in usage.acquisitions):
        yield f'<path class="bad" d="{triangle(x + 6, y - 10)}"/>'
        yield f'<text class="text" x="{x + 17:g}" y="{y:g}">not acquired</text>'


def _grid(canvas: Canvas, top: float, bottom: float) -> Iterator[str]:
    for at_s, label in ticks.of(canvas.span):
        x = canvas.x(at_s)
        yield f'<path class="grid" d="M{x:.1f} {top:g}V{bottom:.1f}"/>'
        if LEFT + 12 < x < WIDTH - RIGHT - 12:
            yield f'<text class="soft small" x="{x:.1f}" y="{bottom + 18:.1f}" text-anchor="middle">{label}</text>'
    yield f'<path class="axis" d="M{LEFT} {bottom:.1f}H{WIDTH - RIGHT}"/>'
