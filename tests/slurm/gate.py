"""A gate in front of the emulator. Shut, it refuses connections, as when a service is down."""

import contextlib
import socket
import threading
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

CHUNK_BYTES = 65536
CONNECT_DEADLINE_S = 5.0


class Gate:
    """Forwards connections to a URL's host and port; `with Gate(url) as gate:`, and `gate.url` is its own.

    Args:
        url: where to forward.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname, parts.port)
        self._listener: socket.socket | None = None
        self._connections: list[socket.socket] = []
        self._carriers: list[threading.Thread] = []
        self._port = 0
        self.open()

    @property
    def url(self) -> str:
        """The gate's own URL, which stays the same when it is shut and opened again."""
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        """Open the gate and return it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Shut it for good."""
        self.shut()

    def open(self) -> None:
        """Let connections through."""
        self._listener = socket.create_server(("127.0.0.1", self._port))
        self._port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def shut(self) -> None:
        """Refuse new connections and end open ones."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
            self._listener.close()
            self._listener = None
        while self._connections:
            with contextlib.suppress(OSError):
                self._connections.pop().shutdown(socket.SHUT_RDWR)
        while self._carriers:
            self._carriers.pop().join(CONNECT_DEADLINE_S)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return  # it was shut
            far = socket.create_connection(self._target, CONNECT_DEADLINE_S)
            far.settimeout(None)
            self._connections += [near, far]
            carrier = threading.Thread(target=_carry, args=(near, far), daemon=True)
            self._carriers.append(carrier)
            carrier.start()


def _carry(near: socket.socket, far: socket.socket) -> None:
    """Forward both ways until both ends are shut."""
    with near, far:
        back = threading.Thread(target=_pump, args=(far, near), daemon=True)
        back.start()
        _pump(near, far)
        back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(CHUNK_BYTES):
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
