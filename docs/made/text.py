"""What the pages share: where they stand, how their lines are broken."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Final

DOCS: Final = Path(__file__).resolve().parents[1]
CHECKOUT: Final = DOCS.parent
COLUMNS: Final = 128


def made_from(source: str) -> str:
    """Return the line that keeps people from editing a page."""
    return f"<!-- Made by docs/generate.py from {source}: change it there. -->"


def wrapped(text: str, indent: str = "") -> list[str]:
    """Return a paragraph in lines; `indent` stands before all but the first."""
    return textwrap.wrap(
        " ".join(text.split()),
        width=COLUMNS,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def table(head: tuple[str, str], rows: Sequence[tuple[str, str]]) -> list[str]:
    """Return a table of two columns."""
    return [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {left} | {right} |" for left, right in rows)]
