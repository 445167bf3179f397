"""Confinement: what a process of ours can no longer do, from a moment on.

The hooks run as root on users' text, and QRMI's calls on what a service answers. prctl(2) is called through
`_ctypes`, which takes 0.3 ms where `ctypes` takes 5: most of that is for C structures, of which there is none here.
"""

import os
import resource
from pathlib import Path
from typing import Final

# prctl(2), from linux/prctl.h.
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38

# QRMI writes no file, and a token's journal has 64 KiB at the most.
_MAX_FILE_BYTES: Final = 1024 * 1024

# A connection or two, and what QRMI's runtime needs for each core.
_MAX_FILES: Final = 1024

# capset(2), from linux/capability.h: the version of the form, our own process, and three empty sets of 64 bits.
_NO_CAPABILITIES: Final = (0x20080522.to_bytes(4, "little") + bytes(4), bytes(24))

# QRMI keeps a service's whole answer in memory, and a user may name any service. A call takes some 20 MB; the stacks of
# its threads count as well, 2 MB for each core. A fork's own come on top of what the hook has: the config may be large.
_MAX_DATA_BYTES: Final = 256 * 1024 * 1024
_DATA_BYTES_PER_CORE: Final = 4 * 1024 * 1024


def hide_memory() -> None:
    """Let nobody but root look into this process, and no core file hold what is in it; children inherit that."""
    _prctl(_PR_SET_DUMPABLE, 0)


def keep_privileges_down() -> None:
    """Let this process and what it starts get no rights by executing a file."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def confine(cpu_s: float, *, begins_anew: bool = False) -> None:
    """Take from this process what a call of QRMI does not need: privileges, cores, large files, much memory.

    Root's keeps its name, which a Warden asks munge for, and its own files; it can do nothing to others' any more.

    Args:
        cpu_s: how much processor time it may use, in seconds; then SIGKILL ends it.
        begins_anew: whether it is to become another program, which has none of this one's memory.

    Raises:
        OSError: the kernel refused.
        ValueError: a limit of the caller's own is lower, and is not to be raised.
    """
    hide_memory()  # a change of user has set it back
    keep_privileges_down()
    _call("capset", *_NO_CAPABILITIES)
    data_bytes = _MAX_DATA_BYTES + _DATA_BYTES_PER_CORE * (os.cpu_count() or 1)
    if not begins_anew:
        data_bytes += _data_bytes()
    for limit, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, _MAX_FILE_BYTES),
        (resource.RLIMIT_NOFILE, _MAX_FILES),
        (resource.RLIMIT_DATA, data_bytes),
        (resource.RLIMIT_CPU, max(int(cpu_s) + 1, 1)),
    ):
        _, hard = resource.getrlimit(limit)
        value = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(limit, (value, value))


def _data_bytes() -> int:
    """Return how much data and stack this process has, in bytes: proc_pid_statm(5)."""
    with Path("/proc/self/statm").open("rb") as file:
        return int(file.read().split()[5]) * resource.getpagesize()


def _prctl(option: int, value: int) -> None:
    _call("prctl", option, value, 0, 0, 0)


def _call(name: str, *arguments: int | bytes) -> None:
    """Call a function of libc's that returns 0 where it has done its work."""
    try:
        import _ctypes

        function = _ctypes.dlsym(_ctypes.dlopen(None, 0), name)  # type: ignore[arg-type]
        result = _ctypes.call_function(function, arguments)
    except (ImportError, AttributeError):  # a Python that keeps its inside elsewhere
        import ctypes

        result = getattr(ctypes.CDLL(None), name)(*arguments)
    if result != 0:
        raise OSError(f"{name}() failed")
