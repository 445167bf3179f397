"""The checkup: what a check that is no fault of a file found, one line each, with what to do."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How a line stands."""

    OK = "ok"
    WARNING = "warning"  # it works, but not as meant, or not for every job; or it could not be seen
    ERROR = "error"  # jobs with --qpu, or all jobs, fail


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that was looked at.

    Args:
        name: what, in a word or two; the same from run to run.
        level: how it stands.
        message: what was seen; one clause, never with a secret.
        hint: what to do; empty where nothing is to be done.
        duration_s: how long it took, in seconds; None where that says nothing.
    """

    name: str
    level: Level
    message: str
    hint: str = ""
    duration_s: float | None = None


def ok(name: str, message: str) -> Line:
    """Return a line of what is as it should be."""
    return Line(name, Level.OK, message)


def warning(name: str, message: str, hint: str) -> Line:
    """Return a line of what an admin should look at."""
    return Line(name, Level.WARNING, message, hint)


def error(name: str, message: str, hint: str) -> Line:
    """Return a line of what has to be mended."""
    return Line(name, Level.ERROR, message, hint)


def has_errors(lines: Iterable[Line]) -> bool:
    """Tell whether one of the lines is an error."""
    return any(line.level is Level.ERROR for line in lines)
