"""A reader for /dev/log on machines without syslog: what the hooks send there."""

import contextlib
import fcntl
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DEV_LOG = Path("/dev/log")
LOCK = Path("/run/lock/qrmi-slurm-test-syslog")
MAX_DATAGRAM_BYTES = 65536


class Syslog:
    """The messages of every program on the machine, as received: priority, time, tag, text.

    A thread reads them: without a reader syslog(3) blocks once the kernel has queued ten.
    """

    def __init__(self, end: socket.socket) -> None:
        self._messages: list[str] = []
        threading.Thread(target=self._take, args=(end,), daemon=True).start()

    def messages(self) -> list[str]:
        """Return all messages so far."""
        return list(self._messages)

    def _take(self, end: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while content := end.recv(MAX_DATAGRAM_BYTES):
                self._messages.append(content.decode("utf-8", "replace"))


@contextmanager
def listening() -> Iterator[Syslog | None]:
    """Listen until the block ends. None if the machine has a syslog of its own, which is left alone."""
    LOCK.parent.mkdir(exist_ok=True)
    with LOCK.open("w") as lock, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if DEV_LOG.exists() and _is_answered():
            yield None
            return
        DEV_LOG.unlink(missing_ok=True)  # left by a killed run
        end.bind(str(DEV_LOG))
        DEV_LOG.chmod(0o666)
        try:
            yield Syslog(end)
        finally:
            DEV_LOG.unlink()
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)  # ends the thread


def _is_answered() -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(str(DEV_LOG))
        except ConnectionRefusedError:
            return False
        return True
