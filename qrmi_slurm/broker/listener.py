"""The listener: accepts connections on loopback, and gives each that the door admits a thread of its own.

A job has few connections, and a service that hangs holds up only one of them.
"""

import _thread
import contextlib
import socket
import threading
import time
from collections.abc import Callable
from typing import Final

from qrmi_slurm.broker.door import Door

_MAX_CONNECTIONS: Final = 256
_THREAD_STACK_BYTES: Final = 512 * 1024
_LISTEN_QUEUE: Final = 4096  # the kernel's own limit since Linux 5.4 (net.core.somaxconn)

# How often it checks whether it is still needed.
_CHECK_INTERVAL_S: Final = 1.0


def listen(port: int) -> socket.socket:
    """Return a socket that listens on loopback.

    Args:
        port: 0 for any.

    Raises:
        OSError: the port is taken.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(_LISTEN_QUEUE)
    except OSError:
        listener.close()
        raise
    return listener


class Listener:
    """Accepts connections until it is no longer needed.

    Args:
        listener: the listening socket.
        door: says which connections are served.
        handle: serves one connection, and raises nothing.
        why_over: says why the listener is no longer needed; empty while it is.
    """

    def __init__(
        self,
        listener: socket.socket,
        door: Door,
        handle: Callable[[socket.socket], None],
        why_over: Callable[[], str],
    ) -> None:
        self._listener = listener
        self._door = door
        self._handle = handle
        self._why_over = why_over
        self._slots = threading.BoundedSemaphore(_MAX_CONNECTIONS)

    def serve(self) -> str:
        """Accept connections, and return why it stopped."""
        threading.stack_size(_THREAD_STACK_BYTES)
        self._listener.settimeout(_CHECK_INTERVAL_S)
        checked_s = time.monotonic()
        while True:
            if time.monotonic() - checked_s >= _CHECK_INTERVAL_S:
                checked_s = time.monotonic()
                self._door.tidy()
                if reason := self._why_over():
                    return reason
            if self._slots.acquire(timeout=_CHECK_INTERVAL_S):
                self._accept()

    def _accept(self) -> None:
        """Start a thread for the next connection, which then gives the slot back."""
        try:
            connection, client = self._listener.accept()
            if not self._door.admit(connection, client):
                self._slots.release()
                return
            # Not threading.Thread: its start() waits until the new thread runs, 0.1 ms and two switches.
            _thread.start_new_thread(self._run, (connection,))
        except TimeoutError:
            self._slots.release()
        except (OSError, RuntimeError, MemoryError):  # out of descriptors, threads or memory: wait for some to be freed
            self._slots.release()
            time.sleep(_CHECK_INTERVAL_S / 10)

    def _run(self, connection: socket.socket) -> None:
        try:
            self._handle(connection)
        finally:
            with contextlib.suppress(OSError):
                connection.close()
            self._slots.release()
