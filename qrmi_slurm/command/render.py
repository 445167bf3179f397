"""How the command prints: styled on a terminal, plain and unwrapped elsewhere; data is never read as markup.

rich honors NO_COLOR by itself. It is imported only to print a result: `--help` and completion do without its 50 ms.
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn, TextIO, TypeVar

from qrmi_slurm.errors import QrmiSlurmError
from qrmi_slurm.text import printable

if TYPE_CHECKING:
    from qrmi_slurm.checks.result import Result

# Grows by one when a field of the JSON output is renamed, removed or changes its meaning; new fields may come.
JSON_VERSION: Final = 1

# By the word that is printed: a check's level, a finding's severity.
STYLES: Final = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "bold red"}

# A service may answer with a whole page; an admin reads a line.
MAX_CELL_CHARS: Final = 400
MAX_LINE_CHARS: Final = 1000

_CLEAR: Final = "\x1b[H\x1b[2J"  # cursor home, erase all

_T = TypeVar("_T")


class Printer:
    """Prints lines to one stream: styled on a terminal, otherwise plain.

    Args:
        stream: where to.
    """

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.control import strip_control_codes

        self._stream = stream
        self._console = Console(file=stream, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._is_terminal = self._console.is_terminal
        self._strip = strip_control_codes

    def line(self, *parts: str | tuple[str, str]) -> None:
        """Print one line.

        Args:
            parts: each a text, or a text and its rich style.
        """
        if self._is_terminal:
            from rich.text import Text

            self._console.print(Text.assemble(*parts))
        else:  # of 20,000 lines each costs
            plain = "".join([part if isinstance(part, str) else part[0] for part in parts])
            self._stream.write(self._strip(plain) + "\n")

    def table(self, heading: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str]) -> None:
        """Print rows in columns under a heading.

        Args:
            heading: the columns' names.
            rows: the cells.
            styles: for each row, the style of its third cell.
        """
        widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
        self.line(("  ".join(map(str.ljust, heading, widths)).rstrip(), "bold"))
        for cells, style in zip(rows, styles, strict=True):
            padded = list(map(str.ljust, cells, widths))
            self.line("  ".join(padded[:2]), "  ", (padded[2], style), "  ", "  ".join(padded[3:]).rstrip())


def print_error(error: QrmiSlurmError, stream: TextIO) -> None:
    """Print what is wrong, then what to do."""
    printer = Printer(stream)
    printer.line(("error", STYLES["error"]), f": {error.message}")
    if error.hint:
        printer.line(f"hint: {error.hint}")


def print_json(stream: TextIO, **fields: Any) -> None:
    """Print one JSON object; `version` comes first."""
    stream.write(json.dumps({"version": JSON_VERSION, **fields}, indent=2) + "\n")


def print_checks(lines: "Sequence[Result]", stream: TextIO, indent: str = "") -> None:
    """Print a line for each check, with the hint below."""
    printer = Printer(stream)
    width = max((len(line.name) for line in lines), default=0)
    for line in lines:
        took = "" if line.duration_s is None else f" ({line.duration_s * 1000:.0f} ms)"
        level = (f"{line.level.value:<7}", STYLES[line.level])
        message = printable(line.message, MAX_CELL_CHARS)
        printer.line(indent, level, f"  {line.name:<{width}}  {message}", (took, "dim"))
        if line.hint:
            printer.line((f"{indent}{'':<{width + 11}}{printable(line.hint, MAX_CELL_CHARS)}", "dim"))


def checks_json(lines: "Sequence[Result]") -> list[dict[str, Any]]:
    """Return checks for a JSON document."""
    return [
        {
            "name": line.name,
            "level": line.level.value,
            "message": line.message,
            "hint": line.hint or None,
            "duration_ms": None if line.duration_s is None else round(line.duration_s * 1000, 1),
        }
        for line in lines
    ]


def counted(number: int, noun: str) -> str:
    """Return `1 error`, `2 errors`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def duration(seconds: float) -> str:
    """Return seconds as people say them: `45s`, `12m03s`, `3h05m`, `2d04h`."""
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if seconds < 60:
        return f"{seconds:.0f}s"
    if minutes < 60:
        return f"{minutes}m{int(seconds) % 60:02}s"
    return f"{hours}h{minutes % 60:02}m" if hours < 24 else f"{days}d{hours % 24:02}h"


@contextlib.contextmanager
def progress(stream: TextIO) -> Iterator[Callable[[str], None]]:
    """Show on a terminal what is being done; print nothing anywhere else.

    Args:
        stream: usually standard error, because standard output is for the result.
    """
    from rich.console import Console
    from rich.text import Text

    with Console(file=stream, highlight=False, markup=False, emoji=False).status("") as status:
        yield lambda what: status.update(Text(what))


def watch(read: Callable[[], _T], show: Callable[[_T, TextIO], None], interval_s: float) -> NoReturn:
    """Read and show something again and again until Ctrl-C; a terminal is cleared first.

    Args:
        read: gets what is shown.
        show: prints it.
        interval_s: pause between two rounds, in seconds.
    """
    while True:
        found = read()
        if sys.stdout.isatty():
            sys.stdout.write(_CLEAR)
        show(found, sys.stdout)
        sys.stdout.flush()
        time.sleep(interval_s)
