"""Bounded work: what has no deadline of its own (a resolver, a slow server) is left behind in a thread at ours."""

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

_T = TypeVar("_T")


def within(timeout_s: float, work: Callable[[], _T]) -> _T:
    """Return what `work` returns.

    Raises:
        TimeoutError: it did not within that time; its thread goes on, unheard.
    """
    results: list[_T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:  # noqa: BLE001 handed on to the thread that waits
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {timeout_s:g} s")
    return results[0]


def side_by_side(works: Sequence[Callable[[], _T]]) -> list[_T]:
    """Do each of `works`, which bound themselves and raise nothing, in a thread; return what they return."""
    results: dict[int, _T] = {}

    def run(place: int) -> None:
        results[place] = works[place]()

    threads = [threading.Thread(target=run, args=(place,), daemon=True) for place in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[place] for place in range(len(works))]
