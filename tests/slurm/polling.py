"""Polling with a deadline."""

import time
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")

INTERVAL_S = 0.03
# After a question that took long, such as one to slurmctld on a busy machine: how many times as long to wait before the
# next. Questions alone would keep a core busy.
CALM = 3


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
        ask: called every 30 ms, less often if it takes long; an exception it raises ends the waiting.
        what: completes the sentence "waited 10 s for ...".
        deadline_s: how long to poll, in seconds; `ask` is called at least once.
        on_timeout: returns text to add to the error, such as the end of a log.

    Raises:
        DeadlineError: there was no answer in time.
    """
    end = time.monotonic() + deadline_s
    while True:
        began = time.monotonic()
        answer = ask()
        if answer is not None and answer is not False:
            return answer
        now = time.monotonic()
        if now > end:
            raise DeadlineError(f"waited {deadline_s:g} s for {what}\n{on_timeout()}".rstrip())
        time.sleep(max(INTERVAL_S, CALM * (now - began)))
