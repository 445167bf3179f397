"""The way to the services: requests and their answers. No redirect is ever followed."""

import contextlib
import errno
import http.client
import math
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from qrmi_slurm.broker.pool import Connection, Pool, proxy_authorization
from qrmi_slurm.calls import proxies

# QRMI waits forever; a thread of ours does not. A request that takes longer is answered with 504: until its answer
# begins, or until all of it is there where it has to be read as a whole.
READ_TIMEOUT_S: Final = 300.0

# A service may just be closing a connection that has been idle for longer. A GET that fails for this is sent again;
# other methods must not be sent twice, so they never use such a connection.
_FRESH_S: Final = 2.0


class UpstreamError(Exception):
    """A service gave no answer; the message contains neither address nor header.

    Args:
        message: why.
        is_late: whether time was up.
    """

    def __init__(self, message: str, *, is_late: bool = False) -> None:
        super().__init__(message)
        self.is_late = is_late


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """A request to a service.

    Args:
        method: GET, POST, ...
        endpoint: a URL; its scheme, host and port are used.
        target: path and query.
        headers: all but Host; with Content-Length for a body in pieces.
        body: whole or in pieces; None for none.
    """

    method: str
    endpoint: str
    target: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes | Iterable[bytes] | None = field(default=None, repr=False)


class _Waits:
    """The waits for services, each with an end: a byte now and then would let a socket's own timeout begin anew.

    Args:
        limit_s: how long each may take, in seconds.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._lock = threading.Lock()
        self._ends_s: dict[socket.socket, float] = {}

    @contextlib.contextmanager
    def limited(self, sock: socket.socket) -> Iterator[None]:
        """Limit the wait for a service in the block.

        Raises:
            TimeoutError: it was ended.
        """
        with self._lock:
            self._ends_s[sock] = time.monotonic() + self._limit_s
        try:
            yield
        finally:
            with self._lock:
                is_late = self._ends_s.pop(sock, None) is None
            if is_late:  # also where the block took what there was for the whole
                raise TimeoutError(errno.ETIMEDOUT, "it took too long")

    def end_late(self) -> None:
        """End those that have taken too long: what reads from their sockets finds the end of the answer."""
        now_s = time.monotonic()
        with self._lock:
            late = [sock for sock, ends_s in self._ends_s.items() if ends_s <= now_s]
            for sock in late:
                del self._ends_s[sock]
        for sock in late:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # not TLS's own, whose state the reader is using


class Answer(http.client.HTTPResponse):
    """A service's answer, of which only the headers have been read.

    Args:
        sock: what it arrives over.
    """

    waits: _Waits

    def __init__(self, sock: socket.socket, *more: Any, **others: Any) -> None:
        super().__init__(sock, *more, **others)
        self._sock = sock  # the connection forgets it where this is its last answer

    def read_whole(self, max_bytes: int) -> bytes:
        """Return all of the body, or as much of it; it has to arrive in time.

        Raises:
            TimeoutError: it did not.
            OSError: it broke off.
        """
        with self.waits.limited(self._sock):
            return self.read(max_bytes)


class Upstream:
    """Sends requests to services; may be used from any thread.

    Args:
        env: the site's `--env:` variables: SSL_CERT_FILE, proxies.
        read_timeout_s: how long to wait for an answer, and for each part of a long one.

    Raises:
        OSError: SSL_CERT_FILE cannot be read.
    """

    def __init__(self, env: Mapping[str, str], read_timeout_s: float = READ_TIMEOUT_S) -> None:
        self._env = dict(env)
        self._pool = Pool(env, read_timeout_s)
        self._waits = _Waits(read_timeout_s)

    @contextlib.contextmanager
    def ask(self, request: UpstreamRequest) -> Iterator[Answer]:
        """Send a request, and yield the answer once its headers are there, whatever its status.

        Raises:
            UpstreamError: no answer, or one that is not HTTP.
        """
        parts = urlsplit(request.endpoint)
        origin = f"{parts.scheme}://{parts.netloc}"
        with _as_upstream_errors():
            connection, answer = self._send(origin, request)
            is_kept = False
            try:
                yield answer
                if answer.isclosed() and not answer.will_close:
                    self._pool.keep(origin, connection)
                    is_kept = True
            finally:
                if not is_kept:
                    connection.close()

    def end_late(self) -> None:
        """End the waits for answers that are late; to be called every second or so."""
        self._waits.end_late()

    def close(self) -> None:
        """Close all idle connections."""
        self._pool.close()

    def _send(self, origin: str, request: UpstreamRequest) -> tuple[Connection, Answer]:
        """Send a request; a second time only where the first cannot have been read."""
        is_get = request.method == "GET"
        connection, is_reused = self._pool.take(origin, math.inf if is_get else _FRESH_S)
        try:
            return connection, self._send_over(connection, request)
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            if not is_reused or not is_get:
                raise
        connection = self._pool.open(origin)
        return connection, self._send_over(connection, request)

    def _send_over(self, connection: Connection, request: UpstreamRequest) -> Answer:
        """Send a request over a connection, which is closed if that fails."""
        parts = urlsplit(request.endpoint)
        headers = {**request.headers, "Host": parts.netloc.rpartition("@")[2]}
        target = request.target
        proxy = proxies.proxy_for(request.endpoint, self._env)
        if proxy is not None and parts.scheme == "http":
            target = f"http://{headers['Host']}{target}"
            headers |= proxy_authorization(proxy)
        try:
            connection.response_class = Answer
            connection.request(request.method, target, request.body, headers)
            with self._waits.limited(connection.sock):
                answer = connection.getresponse()
            assert isinstance(answer, Answer)  # noqa: S101
            answer.waits = self._waits
            return answer
        except BaseException:
            connection.close()
            raise


@contextlib.contextmanager
def _as_upstream_errors() -> Iterator[None]:
    """Turn what sockets, TLS and HTTP raise into UpstreamError, without an address in its message."""
    try:
        yield
    except TimeoutError as error:
        raise UpstreamError(error.strerror or "it took too long", is_late=True) from None
    except ssl.SSLError as error:
        raise UpstreamError(f"TLS: {error.reason or type(error).__name__}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise UpstreamError(str(reason)) from None
