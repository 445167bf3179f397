"""The settings of slurm.conf that say when Prolog runs, and how long it is waited for."""

import math
from collections.abc import Iterable, Sequence
from typing import Final

# Each of them makes slurmctld have Prolog run at the job's start (read_config.c, prolog_str2flags()).
_AT_START: Final = frozenset({"alloc", "nohold", "contain", "x11", "deferbatch", "runinjob", "forcerequeueonfail"})

# Prolog and Epilog end within their option and a second (acquire.py, hooks.py); this is for a slow start of Python.
GRACE_S: Final = 3.0


def runs_at_start(flags: Iterable[str]) -> bool:
    """Tell whether Prolog runs when a job starts, not at its first step on a node.

    Args:
        flags: PrologFlags, in upper or lower case.
    """
    return any(flag.lower() in _AT_START for flag in flags)


def step_waits(flags: Iterable[str]) -> bool:
    """Tell whether it is the step that waits for Prolog, in slurmd, and not srun and salloc before it.

    Args:
        flags: PrologFlags, in upper or lower case.
    """
    flags = {flag.lower() for flag in flags}
    return "nohold" in flags or not runs_at_start(flags)


def wanted_flags(present: Sequence[str]) -> list[str]:
    """Return what PrologFlags should be.

    Args:
        present: what it is; the site's own stay, in their order.
    """
    return [*present] if runs_at_start(present) else ["Alloc", *present]


def start_timeout_s(acquire_timeout_s: float) -> int:
    """Return the least BatchStartTimeout, in seconds, with which neither srun nor slurmctld gives up a step that waits.

    slurm.conf(5): after it a batch job counts as missing, and it is added to the time in which a step has to start.

    Args:
        acquire_timeout_s: the site's --acquire-timeout, in seconds.
    """
    return math.ceil(acquire_timeout_s + GRACE_S)
