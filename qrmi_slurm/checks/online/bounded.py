"""Bounded work: runs what has no deadline of its own, such as a resolver, in a thread that is abandoned at ours."""

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

_T = TypeVar("_T")


def within(timeout_s: float, work: Callable[[], _T]) -> _T:
    """Return what `work` returns, and raise what it raises.

    Args:
        timeout_s: how long to wait, in seconds.
        work: what to do.

    Raises:
        TimeoutError: it took longer. Its thread goes on, and its result is ignored.
    """
    results: list[_T] = []
    errors: list[Exception] = []

    def run() -> None:
        try:
            results.append(work())
        except Exception as error:  # noqa: BLE001 passed on to the waiting thread
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
    """Run all `works` at the same time and return their results; each must have its own deadline and never raise."""
    results: dict[int, _T] = {}

    def run(place: int) -> None:
        results[place] = works[place]()

    threads = [threading.Thread(target=run, args=(place,), daemon=True) for place in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[place] for place in range(len(works))]
