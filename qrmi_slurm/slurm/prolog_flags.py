"""The settings of slurm.conf that decide when Prolog runs, and how long Slurm waits for it."""

import math
from collections.abc import Iterable, Sequence
from typing import Final

# With any of these flags, Prolog runs at the job's start (read_config.c, prolog_str2flags()).
_AT_START: Final = frozenset({"alloc", "nohold", "contain", "x11", "deferbatch", "runinjob", "forcerequeueonfail"})

# Prolog and Epilog end by themselves within their option and 1 s; the rest is for the watchdog of one that is stuck.
GRACE_S: Final = 3.0


def runs_at_start(flags: Iterable[str]) -> bool:
    """Tell whether Prolog runs when a job starts, rather than at its first step on a node.

    Args:
        flags: PrologFlags, in upper or lower case.
    """
    return any(flag.lower() in _AT_START for flag in flags)


def step_waits(flags: Iterable[str]) -> bool:
    """Tell whether a step waits for Prolog in slurmd, rather than srun and salloc before it.

    Args:
        flags: PrologFlags, in upper or lower case.
    """
    flags = {flag.lower() for flag in flags}
    return "nohold" in flags or not runs_at_start(flags)


def wanted_flags(present: Sequence[str]) -> list[str]:
    """Return the PrologFlags that the hooks need.

    Args:
        present: the site's own flags; they are kept, in their order.
    """
    return [*present] if runs_at_start(present) else ["Alloc", *present]


def start_timeout_s(acquire_timeout_s: float) -> int:
    """Return the least BatchStartTimeout, in seconds, with which srun and slurmctld wait long enough for Prolog.

    slurm.conf(5): after this time a batch job counts as missing; it is also added to the time in which a step has to
    start.

    Args:
        acquire_timeout_s: the site's --acquire-timeout, in seconds.
    """
    return math.ceil(acquire_timeout_s + GRACE_S)
