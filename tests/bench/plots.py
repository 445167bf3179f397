"""Two plots as SVG, written by hand: figures of a benchmark need no library."""

from collections.abc import Mapping, Sequence
from html import escape

from bench.figures import Figure, Spread, spread

_WIDTH = 760
_ROW = 26
_LEFT = 330
_COLOURS = ("#8a8a8a", "#1f6fb4", "#c96a12", "#3a8f3a")


def ratio_bars(title: str, figures: Sequence[Figure], arms: Sequence[str]) -> str:
    """Return bars of each figure's ratio to its base, quartiles as whiskers, the target as a mark."""
    bars = [(figure, arm, ratio) for figure in figures for arm in arms if (ratio := _ratio(figure, arm)) is not None]
    largest = max(
        [ratio.high for _, _, ratio in bars] + [figure.at_most or 0 for figure, _, _ in bars if figure.is_ratio]
    )
    scale = (_WIDTH - _LEFT - 60) / largest
    shapes = []
    for row, (figure, arm, ratio) in enumerate(bars):
        y = 46 + row * _ROW
        colour = _COLOURS[arms.index(arm) % len(_COLOURS)]
        shapes.append(_text(_LEFT - 8, y + 13, f"{figure.what} ({arm})", "end"))
        shapes.append(f'<rect x="{_LEFT}" y="{y}" width="{ratio.median * scale:.1f}" height="16" fill="{colour}"/>')
        low, high = _LEFT + ratio.low * scale, _LEFT + ratio.high * scale
        shapes.append(
            f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y + 8}" y2="{y + 8}" stroke="#000" stroke-width="2"/>'
        )
        shapes.append(_text(high + 6, y + 13, f"{ratio.median:.2f}", "start"))
        if figure.at_most is not None and figure.is_ratio:
            x = _LEFT + figure.at_most * scale
            shapes.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 3}" y2="{y + 19}" stroke="#c00" stroke-width="2"/>'
            )
    return _svg(title, 60 + len(bars) * _ROW, shapes)


def lines(title: str, unit: str, xs: Sequence[int], series: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """Return lines of medians over a few whole numbers, with quartiles.

    Args:
        title: of the plot.
        unit: of the values.
        xs: the numbers.
        series: by name, the measured values at each number.
    """
    height, left, bottom = 320, 70, 270
    found = {name: [spread(values) for values in points] for name, points in series.items()}
    largest = max(point.high for points in found.values() for point in points)
    step = (_WIDTH - left - 220) / max(1, len(xs) - 1)
    shapes = [_text(left + index * step, bottom + 20, str(x), "middle") for index, x in enumerate(xs)]
    for tick in range(5):
        value = largest * tick / 4
        y = bottom - value / largest * 220
        shapes.append(f'<line x1="{left}" x2="{_WIDTH - 210}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        shapes.append(_text(left - 8, y + 4, f"{value:.0f} {unit}", "end"))
    for index, (name, points) in enumerate(found.items()):
        colour = _COLOURS[(index + 1) % len(_COLOURS)]
        places = [(left + at * step, bottom - point.median / largest * 220) for at, point in enumerate(points)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        shapes.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for (x, _), point in zip(places, points, strict=True):
            low, high = bottom - point.low / largest * 220, bottom - point.high / largest * 220
            shapes.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}" stroke="{colour}"/>')
        shapes.append(_text(places[-1][0] + 10, places[-1][1] + 4, name, "start"))
    return _svg(title, height, shapes)


def _ratio(figure: Figure, arm: str) -> Spread | None:
    return figure.ratio(arm) if arm in figure.values else None


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(title: str, height: int, shapes: Sequence[str]) -> str:
    font = 'font-family="sans-serif" font-size="12"'
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" {font}>'
        f'<rect width="100%" height="100%" fill="#fff"/><text x="12" y="24" font-size="15">{escape(title)}</text>'
    )
    return "\n".join([head, *shapes, "</svg>", ""])
