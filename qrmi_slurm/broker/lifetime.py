"""The lifetime of a broker: until its job's folder is gone, or long after its job's time limit."""

import time
from collections.abc import Callable
from typing import Final

# How long it goes on after the job's time limit and the last request: its job may still be ending.
_IDLE_AFTER_END_S: Final = 3600.0


class Lifetime:
    """Tells whether a broker is still needed.

    Args:
        is_folder_gone: tells whether the job's folder was removed.
        ends_s: until when the job may run; seconds since the epoch.
        clock: seconds since the epoch.
    """

    def __init__(
        self, is_folder_gone: Callable[[], bool], ends_s: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._is_folder_gone = is_folder_gone
        self._ends_s = ends_s
        self._clock = clock
        self._used_s = clock()

    def touch(self) -> None:
        """Note that the broker is used."""
        self._used_s = self._clock()

    def why_over(self) -> str:
        """Return why the broker is no longer needed; empty while it is."""
        if self._is_folder_gone():
            return "its job has released its QPUs"
        if self._clock() > max(self._ends_s, self._used_s) + _IDLE_AFTER_END_S:
            return "its job's time limit has passed, and it is no longer used"
        return ""
