"""Confining: a broker gives up its rights, and no other process can look into it."""

import contextlib
import os
import resource
from pathlib import Path
from typing import Final

from qrmi_slurm.calls import confinement

# Linux's customary `nobody`. Other processes that run as it could kill a broker, but not read its memory.
UNPRIVILEGED_ID: Final = 65534

# All private memory: a job's body is held once as text and once as JSON, and a thread takes about 100 kB.
_MAX_DATA_BYTES: Final = 1024**3
_MAX_FILES: Final = 2048


def confine() -> None:
    """Give up all rights for good, and close this process's memory to others.

    Raises:
        OSError: the kernel refuses; the process must not go on.
    """
    os.chdir("/")
    os.umask(0o077)
    with contextlib.suppress(OSError):  # slurmd may be spared when memory is short; a broker should not inherit that
        Path("/proc/self/oom_score_adj").write_text("0")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (_MAX_DATA_BYTES, _MAX_DATA_BYTES))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = _MAX_FILES if hard == resource.RLIM_INFINITY else min(_MAX_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    if os.geteuid() == 0:
        confinement.become(UNPRIVILEGED_ID, UNPRIVILEGED_ID, [])
    confinement.keep_privileges_down()
    confinement.hide_memory()  # no ptrace, /proc/PID/mem or core but for root


def close_all_but(kept_fds: frozenset[int]) -> None:
    """Close every other descriptor: slurmd or a site's own hook may have left some open."""
    for fd in [int(name) for name in os.listdir("/proc/self/fd")]:
        if fd not in kept_fds:
            with contextlib.suppress(OSError):
                os.close(fd)
