"""Polling with a deadline."""

import time
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")

INTERVAL_S = 0.03


class DeadlineError(Exception):
    """The condition did not become true in time."""


def wait_for(
    ask: Callable[[], Answer | None],
    what: str,
    deadline_s: float,
    *,
    on_timeout: Callable[[], str] = lambda: "",
) -> Answer:
    """Poll until the answer is neither None nor False, and return it.

    Args:
        ask: called every 30 ms; an exception it raises ends the waiting.
        what: completes the sentence "waited 10 s for ...".
        deadline_s: how long to poll, in seconds; `ask` is called at least once.
        on_timeout: returns text to add to the error, such as the end of a log.

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
