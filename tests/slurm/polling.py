"""Waiting: ask again until something is so, but not for ever."""

import time
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")

INTERVAL_S = 0.03


class DeadlineError(Exception):
    """What was waited for did not come about in time."""


def wait_for(
    ask: Callable[[], Answer | None],
    what: str,
    deadline_s: float,
    *,
    on_timeout: Callable[[], str] = lambda: "",
) -> Answer:
    """Return the first answer that is not None (nor False).

    Args:
        ask: asked every 30 ms; an exception it raises ends the waiting.
        what: completes the sentence "waited 10 s for ...".
        deadline_s: how long to ask, in seconds; it is asked once at least.
        on_timeout: text to add to the error: the end of the log that says more.

    Raises:
        DeadlineError: there was no answer in time.
    """
    end = time.monotonic() + deadline_s
    while True:
        answer = ask()
        if answer is not None and answer is not False:
            return answer
        if time.monotonic() > end:
            raise DeadlineError(f"waited {deadline_s:g} s for {what}\n{on_timeout()}".rstrip())
        time.sleep(INTERVAL_S)
