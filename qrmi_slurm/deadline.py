"""A deadline: a moment that work has to end at, passed down instead of a time limit that every caller recomputes."""

import time
from typing import Final, NamedTuple, Self

# How much longer than --acquire-timeout or --release-timeout a whole hook may take, in seconds: for what comes before
# and after QRMI's calls.
HOOK_GRACE_S: Final = 1.0

# The least time that a call is given, in seconds; with less, it could only be killed.
MIN_CALL_S: Final = 0.1


class Deadline(NamedTuple):
    """A moment of the monotonic clock.

    Args:
        length_s: how long it was when it was made, in seconds; for messages.
        ends_s: the moment, in seconds of the monotonic clock.
    """

    length_s: float
    ends_s: float

    @classmethod
    def after(cls, seconds: float) -> Self:
        """Return the deadline that is so many seconds away."""
        return cls(seconds, time.monotonic() + seconds)

    @property
    def left_s(self) -> float:
        """Seconds until then; 0 once it has passed."""
        return max(0.0, self.ends_s - time.monotonic())

    @property
    def call_s(self) -> float:
        """Seconds until then for one more call: never less than a call needs to end in order."""
        return max(self.left_s, MIN_CALL_S)

    def within(self, seconds: float) -> "Deadline":
        """Return a deadline that is so many seconds away, but no later than this one."""
        return Deadline.after(min(seconds, self.call_s))
