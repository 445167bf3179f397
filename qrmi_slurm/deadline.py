"""A deadline: the moment by which work has to end, passed down so that no caller has to recompute a time limit."""

import time
from typing import Final, NamedTuple, Self

# How much longer than --acquire-timeout or --release-timeout a whole hook may take, in seconds: for the work before and
# after QRMI's calls.
HOOK_GRACE_S: Final = 1.0

# The least time that a call gets, in seconds; with less it would be killed before it could do anything.
MIN_CALL_S: Final = 0.1


class Deadline(NamedTuple):
    """A moment on the monotonic clock.

    Args:
        length_s: how far away it was at first, in seconds; for messages.
        ends_s: the moment, in seconds of the monotonic clock.
    """

    length_s: float
    ends_s: float

    @classmethod
    def after(cls, seconds: float) -> Self:
        """Return the deadline this many seconds from now."""
        return cls(seconds, time.monotonic() + seconds)

    @property
    def left_s(self) -> float:
        """Seconds left; 0 once the deadline has passed."""
        return max(0.0, self.ends_s - time.monotonic())

    @property
    def call_s(self) -> float:
        """Seconds left for one more call, at least the minimum for a call."""
        return max(self.left_s, MIN_CALL_S)

    def within(self, seconds: float) -> "Deadline":
        """Return the deadline this many seconds from now, but no later than this one."""
        return Deadline.after(min(seconds, self.call_s))
