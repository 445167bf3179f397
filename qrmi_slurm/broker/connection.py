"""A client's connection: HTTP/1.1 over a socket, by h11."""

import contextlib
import http.client
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Final

import h11

from qrmi_slurm.broker.refusal import Refusal, error_body
from qrmi_slurm.broker.request import Request

# A request's head; QRMI's are below 1 kB.
_MAX_HEAD_BYTES: Final = 64 * 1024
_CHUNK_BYTES: Final = 64 * 1024

# QRMI's HTTP library drops an idle connection after 90 s. It should close first, or it may send on a closed one.
_IDLE_TIMEOUT_S: Final = 100.0
_PART_TIMEOUT_S: Final = 60.0
_LINGER_S: Final = 1.0

_REASONS: Final = http.client.responses


class BrokenConnectionError(Exception):
    """The connection can only be closed: the client is gone or silent, or an answer broke off."""


class ClientConnection:
    """One client's requests, one after the other, and the answers to them.

    Args:
        connection: the socket; its owner closes it.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD_BYTES)
        self._is_head = False

    # --- the request -------------------------------------------------------------------------------------

    def next_request(self) -> Request | None:
        """Return the next request; None if the connection cannot carry another.

        Raises:
            Refusal: it is not HTTP.
            BrokenConnectionError: the client is gone.
        """
        if not self._is_ready():
            return None
        self._socket.settimeout(_IDLE_TIMEOUT_S)
        try:
            event = self._next_event()
        except h11.RemoteProtocolError as error:
            raise Refusal("the request is not valid HTTP", error.error_status_hint) from None
        self._socket.settimeout(_PART_TIMEOUT_S)
        if not isinstance(event, h11.Request):
            return None
        self._is_head = event.method == b"HEAD"
        fields = tuple((name.decode("ascii"), value.decode("latin-1")) for name, value in event.headers)
        return Request(event.method.decode("ascii"), event.target.decode("latin-1"), fields)

    def pieces(self) -> Iterator[bytes]:
        """Yield the request's body.

        Raises:
            Refusal: it is not HTTP.
            BrokenConnectionError: the client is gone.
        """
        try:
            while isinstance(event := self._next_event(), h11.Data):
                yield bytes(event.data)
        except h11.RemoteProtocolError as error:
            raise Refusal("the request's body is not valid HTTP", error.error_status_hint) from None

    def _is_ready(self) -> bool:
        """Tell whether another request may follow; the last one and its answer have to be complete."""
        states = (self._http.our_state, self._http.their_state)
        if states == (h11.DONE, h11.DONE):
            self._http.start_next_cycle()
            return True
        return states == (h11.IDLE, h11.IDLE)

    def _next_event(self) -> h11.Event | type[h11.PAUSED]:
        while (event := self._http.next_event()) is h11.NEED_DATA:
            if self._http.they_are_waiting_for_100_continue:
                self._send(h11.InformationalResponse(status_code=100, headers=[]))
            try:
                self._http.receive_data(self._socket.recv(_CHUNK_BYTES))
            except OSError as error:
                raise BrokenConnectionError from error
        if isinstance(event, h11.ConnectionClosed):
            raise BrokenConnectionError
        return event  # type: ignore[return-value]

    # --- the answer --------------------------------------------------------------------------------------

    def answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Send a whole answer in one piece; to a HEAD request without its body.

        Raises:
            BrokenConnectionError: the client is gone.
        """
        if status == 204:  # has neither body nor length (RFC 9110, 8.6)
            self._send(_head(status, headers), h11.EndOfMessage())
            return
        head = _head(status, {**headers, "content-length": str(len(body))})
        self._send(head, h11.Data(data=b"" if self._is_head else body), h11.EndOfMessage())

    def start_answer(self, status: int, headers: Mapping[str, str]) -> None:
        """Send the head of an answer whose body follows in pieces; without a content-length it is chunked.

        Raises:
            BrokenConnectionError: the client is gone.
        """
        self._send(_head(status, headers))

    def send(self, piece: bytes) -> None:
        """Send a piece of the body.

        Raises:
            BrokenConnectionError: the client is gone.
        """
        if piece:
            self._send(h11.Data(data=piece))

    def finish(self) -> None:
        """End the answer.

        Raises:
            BrokenConnectionError: the client is gone, or the body was shorter than its length, which it must notice.
        """
        try:
            self._send(h11.EndOfMessage())
        except h11.LocalProtocolError:
            raise BrokenConnectionError from None

    def end_with(self, status: int, message: str) -> None:
        """Answer with an error and end the connection: the rest of a body may still be on its way.

        Raises:
            BrokenConnectionError: the client is gone, or half an answer was sent, which must not look complete.
        """
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            raise BrokenConnectionError
        headers = {"content-type": "application/json", "connection": "close"}
        self.answer(status, headers, error_body(message, status))
        self._linger()

    def _send(self, *events: h11.Event) -> None:
        data = b"".join(self._http.send(event) or b"" for event in events)
        if not data:
            return
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise BrokenConnectionError from error

    def _linger(self) -> None:
        """Give the client time to read: closing with something unread resets the connection, and the answer is lost."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
            self._socket.settimeout(_LINGER_S)
            ends_s = time.monotonic() + _LINGER_S
            while time.monotonic() < ends_s and self._socket.recv(_CHUNK_BYTES):
                pass


def refusal(message: str) -> bytes:
    """Return the whole answer to a client from whom nothing is read."""
    http = h11.Connection(h11.SERVER)
    body = error_body(message, 403)
    headers = {"content-type": "application/json", "connection": "close", "content-length": str(len(body))}
    return b"".join(http.send(event) or b"" for event in (_head(403, headers), h11.Data(data=body), h11.EndOfMessage()))


def _head(status: int, headers: Mapping[str, str]) -> h11.Response:
    return h11.Response(status_code=status, headers=list(headers.items()), reason=_REASONS.get(status, ""))
