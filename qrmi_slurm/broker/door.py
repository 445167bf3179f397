"""The door: lets the connections of one user in, and turns all others away without waiting for them.

Anybody on the node may connect, as often as they like. Each of their connections costs one question to the kernel, and
none of them keeps a thread, nor for more than a moment a descriptor.
"""

import contextlib
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from qrmi_slurm.broker.connection import refusal
from qrmi_slurm.broker.peer import Address, Peers

# How many strangers may read why they were turned away, each for a second; closing at once may lose the answer. More
# come by accident only with a program in a loop.
_MAX_TOLD: Final = 16
_TELL_S: Final = 1.0

# socket(7), SO_LINGER: close() resets the connection, so that it occupies neither end's port any longer.
_RESET: Final = struct.pack("ii", 1, 0)

_ANSWER: Final = "this is another user's credential broker"


class Door:
    """Decides about connections as they are accepted; for one thread.

    Args:
        uid: the user who may connect.
        server: the listening socket's address.
        on_refused: gets the uid of each connection that is turned away; None where it was closed already.
    """

    def __init__(self, uid: int, server: Address, on_refused: Callable[[int | None], None]) -> None:
        self._uid = uid
        self._peers = Peers(server)
        self._on_refused = on_refused
        self._answer = refusal(_ANSWER)
        self._told: deque[tuple[float, socket.socket]] = deque()

    def admit(self, connection: socket.socket, client: Address) -> bool:
        """Tell whether a connection is the user's; if not, this closes it, at once or soon.

        Args:
            connection: what accept() returned.
            client: its other end.
        """
        uid = self._peers.uid_of(client)
        if uid == self._uid:
            return True
        self._on_refused(uid)
        self._turn_away(connection)
        return False

    def tidy(self) -> None:
        """Close what was turned away a while ago."""
        oldest_s = time.monotonic() - _TELL_S
        while self._told and self._told[0][0] <= oldest_s:
            self._told.popleft()[1].close()

    def close(self) -> None:
        """Close everything."""
        while self._told:
            self._told.popleft()[1].close()
        self._peers.close()

    def _turn_away(self, connection: socket.socket) -> None:
        self.tidy()
        with contextlib.suppress(OSError):
            if len(self._told) < _MAX_TOLD:
                connection.setblocking(False)
                connection.send(self._answer)
                connection.shutdown(socket.SHUT_WR)
                self._told.append((time.monotonic(), connection))
                return
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        connection.close()
