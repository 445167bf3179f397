"""The canvas: the SVG elements of a picture, and where a moment is on it."""

import html
from typing import Final

from qrmi_slurm.report.timespan import Timespan

# Measures in pixels. LEFT and RIGHT are what is beside the rows.
WIDTH: Final = 1200
LEFT: Final = 210
RIGHT: Final = 100
PLOT: Final = WIDTH - LEFT - RIGHT
MARGIN: Final = 24
CHAR: Final = 6.6  # the width of a letter, with some to spare


class Canvas:
    """The elements of a picture in the order in which they are drawn.

    Args:
        span: the timespan that the picture shows.
    """

    def __init__(self, span: Timespan) -> None:
        self.span = span
        self.elements: list[str] = []

    def x(self, at_s: float) -> float:
        """Return where a moment is, in pixels from the left; one outside the timespan is at its edge."""
        part = (at_s - self.span.since_s) / self.span.length_s
        return LEFT + PLOT * max(0.0, min(1.0, part))

    def add(self, element: str) -> None:
        """Draw an element."""
        self.elements.append(element)

    def text(self, x: float, y: float, text: str, style_class: str) -> None:
        """Draw a text; `y` is its base line."""
        self.add(f'<text class="{style_class}" x="{x:.1f}" y="{y:.1f}">{escaped(text)}</text>')


def triangle(x: float, y: float) -> str:
    """Return the path of a small triangle that points down."""
    return f"M{x - 4:.1f} {y:.1f}h8l-4 7z"


def escaped(text: str) -> str:
    """Return a text as XML, in an element or an attribute."""
    return html.escape(text, quote=True)
