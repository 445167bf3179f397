"""Confinement: takes rights away from our processes.

The hooks run as root on users' text, and QRMI's calls work on what a service answers. prctl(2) is called through
`_ctypes`, which loads in 0.3 ms; `ctypes` takes 5, most of it for C structures that are not needed here.
"""

import os
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Final

# prctl(2), from linux/prctl.h.
_PR_SET_DUMPABLE: Final = 4
_PR_SET_NO_NEW_PRIVS: Final = 38

# QRMI writes no file, and a token's journal has at most 64 KiB.
_MAX_FILE_BYTES: Final = 1024 * 1024

# A connection or two, and what QRMI's runtime needs per core.
_MAX_FILES: Final = 1024

# capset(2), from linux/capability.h: the structure's version, our own process, and three empty sets of 64 bits.
_NO_CAPABILITIES: Final = (0x20080522.to_bytes(4, "little") + bytes(4), bytes(24))

# QRMI keeps a service's whole answer in memory, and a user may name any service. A call takes some 20 MB, and its
# threads' stacks 2 MB per core. A fork's memory comes on top of the hook's: the config may be large.
_MAX_DATA_BYTES: Final = 256 * 1024 * 1024
_DATA_BYTES_PER_CORE: Final = 4 * 1024 * 1024


def hide_memory() -> None:
    """Let nobody but root look into this process, and let it write no core file; children inherit that."""
    _prctl(_PR_SET_DUMPABLE, 0)


def keep_privileges_down() -> None:
    """Let this process and its children gain no rights by executing a file."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def become(uid: int, gid: int, groups: Sequence[int]) -> None:
    """Make root's process another user's for good, without a moment in which that user could look into it.

    Each change of the effective user or group makes the process dumpable as fs.suid_dumpable says, which may be 1.
    Tracing also takes the real and the saved user (ptrace(2)): those change last, once the memory is hidden, and that
    change leaves it hidden.

    Raises:
        OSError: the kernel refused.
    """
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(-1, uid, -1)
    hide_memory()
    os.setresuid(uid, uid, uid)


def confine(cpu_s: float) -> None:
    """Take from this process what a call to QRMI does not need: privileges, core files, large files, much memory.

    Root's process stays root by name, which a Warden checks through munge, and has its own files; it has no power over
    anything else.

    Args:
        cpu_s: how much processor time it may use, in seconds; then it is killed.

    Raises:
        OSError: the kernel refused.
        ValueError: the kernel does not take a limit.
    """
    hide_memory()
    keep_privileges_down()
    _call("capset", *_NO_CAPABILITIES)
    data_bytes = _data_bytes() + _MAX_DATA_BYTES + _DATA_BYTES_PER_CORE * (os.cpu_count() or 1)
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
    """Return the size of this process's data and stack, in bytes: proc_pid_statm(5)."""
    with Path("/proc/self/statm").open("rb") as file:
        return int(file.read().split()[5]) * resource.getpagesize()


def _prctl(option: int, value: int) -> None:
    _call("prctl", option, value, 0, 0, 0)


def _call(name: str, *arguments: int | bytes) -> None:
    """Call a libc function that returns 0 on success."""
    try:
        import _ctypes

        function = _ctypes.dlsym(_ctypes.dlopen(None, 0), name)  # type: ignore[arg-type]
        result = _ctypes.call_function(function, arguments)
    except (ImportError, AttributeError):  # a Python whose internals differ
        import ctypes

        result = getattr(ctypes.CDLL(None), name)(*arguments)
    if result != 0:
        raise OSError(f"{name}() failed")
