"""The watchdog: the kernel ends a hook that has not ended by itself in time, whatever that is stuck in.

It is an alarm with its default action, so it needs nothing of Python: it ends what waits for a file server, and what
never lets go of the interpreter. It costs microseconds, and children do not inherit it. The hook's shell then starts
Python once more, for the hook's last words.
"""

import _signal as signal  # type: ignore[import-not-found]  # `signal` adds enums of the numbers, which takes 0.7 ms
from typing import Final

# How long a hook may take until it knows its own bound, which is on the plugin's line, in seconds. It reads files of
# Slurm's until then.
START_S: Final = 10.0

# How much longer than its option a whole hook may take, in seconds. It ends by itself within HOOK_GRACE_S of
# deadline.py; the rest is for putting down what happened.
GRACE_S: Final = 2.0

# How long the last words may take, in seconds: with the time in which Python starts, the hook stays within the 3 s that
# Slurm's own timeout has to be longer.
LAST_WORDS_S: Final = 0.7

_KILLED: Final = 128  # a shell's status for a process that was killed, plus the signal


def start(seconds: float = START_S) -> None:
    """End this process in so many seconds.

    Slurm effect: none, since the hook's shell exits 0 all the same.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGALRM,))
    signal.setitimer(signal.ITIMER_REAL, seconds)


def limit(seconds: float) -> None:
    """Let the hook take so many seconds from its start instead; does nothing where no watchdog was started."""
    left_s, _ = signal.getitimer(signal.ITIMER_REAL)
    if left_s:
        elapsed_s = START_S - left_s
        signal.setitimer(signal.ITIMER_REAL, max(seconds - elapsed_s, 0.001))


def fate(status: int, limit_s: float) -> str:
    """Return how a hook's Python ended, in words that follow its name: `was killed by signal 9`.

    Args:
        status: what the shell says, not 0.
        limit_s: how long it was allowed to take, in seconds.
    """
    if status == _KILLED + signal.SIGALRM:
        return f"did not end within {limit_s:g} s"
    return f"was killed by signal {status - _KILLED}" if status > _KILLED else f"ended with exit status {status}"
