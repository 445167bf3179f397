"""The result of a check: what was checked, how it stands, what was seen, and what to do."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How serious a result is."""

    OK = "ok"
    WARNING = "warning"  # it works, but not as intended or not for every job; or it could not be checked
    ERROR = "error"  # jobs with --qpu, or all jobs, fail


@dataclass(frozen=True, slots=True)
class Result:
    """The result of one check.

    Args:
        name: what was checked, in a word or two; the same in every run.
        level: how serious it is.
        message: what was seen, in one clause; never contains a secret.
        hint: what to do; empty if nothing.
        duration_s: how long it took, in seconds; None if that says nothing.
    """

    name: str
    level: Level
    message: str
    hint: str = ""
    duration_s: float | None = None


def ok(name: str, message: str) -> Result:
    """Return the result of something that is in order."""
    return Result(name, Level.OK, message)


def warning(name: str, message: str, hint: str) -> Result:
    """Return the result of something that an admin should look at."""
    return Result(name, Level.WARNING, message, hint)


def error(name: str, message: str, hint: str) -> Result:
    """Return the result of something that has to be fixed."""
    return Result(name, Level.ERROR, message, hint)


def has_errors(results: Iterable[Result]) -> bool:
    """Tell whether one of the results is an error."""
    return any(result.level is Level.ERROR for result in results)
