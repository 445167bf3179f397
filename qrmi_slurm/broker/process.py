"""A broker's process, as its launcher sees it: starting it, recognizing it, killing it."""

import contextlib
import fcntl
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Final, NamedTuple, Self

from qrmi_slurm import processes
from qrmi_slurm.broker import spec
from qrmi_slurm.broker.spec import Spec
from qrmi_slurm.deadline import Deadline
from qrmi_slurm.errors import BrokerError
from qrmi_slurm.names import SESSIONS_FILE
from qrmi_slurm.state.record import Broker

# How long a broker may take to listen; it needs 0.2 s. Prolog's own bound may leave it less.
START_TIMEOUT_S: Final = 8.0

# How long to wait for a broker that was killed to be gone.
_END_TIMEOUT_S: Final = 2.0

# The launcher's own descriptors start here, so that setting up 0 to 3 for the child overwrites none of them.
_FIRST_FD: Final = 10

_LOG_HINT: Final = "journalctl -t qrmi-slurm-broker"


class Started(NamedTuple):
    """A broker that listens.

    Args:
        pid: its process id.
        start_ticks: when it started, in clock ticks since boot.
        port: where it listens on loopback.
    """

    pid: int
    start_ticks: int
    port: int


def start(told: Spec, life_path: Path, timeout_s: float) -> Started:
    """Start a broker, hand it its spec, and wait until it listens.

    Args:
        told: everything the broker has to know.
        life_path: the file in the job's folder whose removal ends the broker.
        timeout_s: how long it may take, in seconds; START_TIMEOUT_S at most.

    Raises:
        BrokerError: it did not start; no process of it goes on.
    """
    try:
        with _Descriptors() as fds:
            pid, spec_write, reply_read = _spawn(told.job_id, life_path, fds)
            try:
                port = _hand_over(spec.encode(told), spec_write, reply_read, min(timeout_s, START_TIMEOUT_S))
            except (BrokerError, OSError):
                os.kill(pid, signal.SIGKILL)
                processes.reap(pid, Deadline.after(processes.END_S))
                raise
    except OSError as error:
        raise BrokerError(f"the credential broker cannot be started: {error.strerror}") from error
    ticks = _start_ticks(pid)
    if ticks is None:
        raise BrokerError("the credential broker exited right after it had started", _LOG_HINT)
    return Started(pid, ticks, port)


def kill(broker: Broker) -> bool:
    """Kill a broker, never another process, and wait until it is gone; False where there is none."""
    if not is_alive(broker):
        return False
    try:
        fd = os.pidfd_open(broker.pid)
    except OSError:
        return False
    try:
        if not is_alive(broker):  # the pid may have been reused before the descriptor pinned it
            return False
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        select.select([fd], [], [], _END_TIMEOUT_S)
        return True
    finally:
        os.close(fd)


def is_alive(broker: Broker) -> bool:
    """Tell whether a broker runs on this node: this very process, not another one with its pid."""
    return _start_ticks(broker.pid) == broker.start_ticks


def _start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None where there is none, or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[19]) if fields[0] not in "ZX" else None


class _Descriptors:
    """Open descriptors from _FIRST_FD on, all closed at the end."""

    def __init__(self) -> None:
        self._open: set[int] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in self._open:
            os.close(fd)

    def keep(self, fd: int) -> int:
        """Return a descriptor's new number."""
        try:
            kept = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_FD)
        finally:
            os.close(fd)
        self._open.add(kept)
        return kept

    def close(self, fd: int) -> None:
        self._open.remove(fd)
        os.close(fd)


def _spawn(job_id: int, life_path: Path, fds: _Descriptors) -> tuple[int, int, int]:
    """Start the process; return its pid and our ends of the pipes for the spec and the reply."""
    life = fds.keep(os.open(life_path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    renewals = fds.keep(os.open(life_path.with_name(SESSIONS_FILE), flags, 0o600))
    null = fds.keep(os.open(os.devnull, os.O_RDWR))
    spec_read, spec_write = map(fds.keep, os.pipe())
    reply_read, reply_write = map(fds.keep, os.pipe())
    given = [(spec_read, spec.SPEC_FD), (reply_write, spec.REPLY_FD), (null, 2), (life, spec.LIFE_FD)]
    given.append((renewals, spec.RENEWALS_FD))
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-X", "utf8", "-m", "qrmi_slurm.broker", f"job={job_id}"],
        {"MALLOC_ARENA_MAX": "2"},  # otherwise each thread may reserve 64 MB
        file_actions=[(os.POSIX_SPAWN_DUP2, source, target) for source, target in given],
        setsid=True,  # slurmd kills Prolog's process group when Prolog has ended
    )
    for fd in (spec_read, reply_write):
        fds.close(fd)
    return pid, spec_write, reply_read


def _hand_over(unsent: bytes, spec_write: int, reply_read: int, timeout_s: float) -> int:
    """Write the spec, and return the port that the broker replies with.

    Raises:
        BrokerError: it replied with an error, exited, or took too long.
    """
    deadline_s = time.monotonic() + timeout_s
    os.set_blocking(spec_write, False)
    reply = b""
    while b"\n" not in reply and len(reply) < spec.MAX_REPLY_BYTES:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise BrokerError(f"the credential broker was not ready within {timeout_s:.1f} s", _LOG_HINT)
        readable, writable, _ = select.select([reply_read], [spec_write] if unsent else [], [], left_s)
        if writable:
            unsent = _write_some(spec_write, unsent)
        if readable:
            reply += _read_some(reply_read)
    return spec.parse_reply(reply)


def _write_some(fd: int, unsent: bytes) -> bytes:
    """Write what fits into a pipe, and return the rest; nothing if the other end is closed."""
    try:
        return unsent[os.write(fd, unsent) :]
    except BrokenPipeError:
        return b""


def _read_some(fd: int) -> bytes:
    chunk = os.read(fd, spec.MAX_REPLY_BYTES)
    if not chunk:
        raise BrokerError("the credential broker exited before it was ready", _LOG_HINT)
    return chunk
