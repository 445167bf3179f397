"""Processes that this one has started: each wait for them has a limit, whoever holds them."""

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from qrmi_slurm.deadline import Deadline

if TYPE_CHECKING:
    import subprocess

# How long a process that was killed may take to be gone, in seconds. One that hangs in the kernel, or that another
# process traces, takes longer; nobody waits for it then.
END_S: Final = 0.3

# A process that ends takes less than a millisecond to exit, one with much memory a few.
_FIRST_POLL_S: Final = 0.0005
_LAST_POLL_S: Final = 0.02


class Done(NamedTuple):
    """A program that has ended.

    Args:
        exit_code: its exit status; negative is the signal that killed it.
        stdout: what it wrote to standard output.
        stderr: what it wrote to standard error; empty where that was not asked for.
    """

    exit_code: int
    stdout: bytes
    stderr: bytes


def age_s(pid: int) -> float:
    """Return how long a process has been running, in seconds; 0 where the kernel does not say."""
    try:
        # proc_pid_stat(5): pid, (name), state, ...; the start is the 22nd, in clock ticks since boot.
        ticks = int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0.0
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))


def reap(pid: int, deadline: Deadline) -> int | None:
    """Reap a child, and return its exit code; None if it has not ended by the deadline.

    `waitpid` without WNOHANG has no limit. A child that another process traces with ptrace(2) is not reaped, however
    dead it is, until its tracer has waited for it: one of the same user may never do that.

    Args:
        pid: the child, which has not been reaped.
        deadline: until when to wait; it is looked for once at least.

    Returns:
        Its exit status; negative is the signal that killed it.
    """
    pause_s = _FIRST_POLL_S
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if deadline.left_s <= 0:
            return None
        time.sleep(min(pause_s, deadline.left_s))
        pause_s = min(2 * pause_s, _LAST_POLL_S)


def run(arguments: Sequence[str], timeout_s: float, *, wants_stderr: bool = False, **options: Any) -> Done:
    """Run a program to its end, without standard input.

    `subprocess.run` kills a program that takes too long, and then waits for its end without limit.

    Args:
        arguments: the program's path and its arguments.
        timeout_s: how long it may take, in seconds; then it and what it has started are killed.
        wants_stderr: whether to read its standard error as well; without, that goes nowhere.
        options: of subprocess.Popen, such as `env` and `cwd`.

    Raises:
        OSError: it cannot be started.
        TimeoutError: it took too long.
    """
    import subprocess  # 5 ms, which most hooks never need

    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    process: subprocess.Popen[bytes] = subprocess.Popen(
        arguments, process_group=0, stdin=null, stdout=pipe, stderr=pipe if wants_stderr else null, **options
    )
    try:
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise TimeoutError(f"{arguments[0]} took longer than {timeout_s:g} s") from None
    finally:
        if process.returncode is None:
            _end(process)
    return Done(process.returncode, out or b"", err or b"")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill a program with what it has started, and stop waiting for it."""
    import signal  # with Popen it is there already

    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    code = reap(process.pid, Deadline.after(END_S))
    process.returncode = code if code is not None else -signal.SIGKILL
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
