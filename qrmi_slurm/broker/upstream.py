"""The way to the services: requests and their answers. No redirect is ever followed."""

import contextlib
import http.client
import math
import ssl
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from qrmi_slurm.broker.pool import Connection, Pool, proxy_authorization
from qrmi_slurm.calls import proxies

# QRMI waits forever; a thread of ours does not. A request that takes longer is answered with 504.
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


class Upstream:
    """Sends requests to services; may be used from any thread.

    Args:
        env: the site's `--env:` variables: SSL_CERT_FILE, proxies.
        read_timeout_s: how long to wait for each part of an answer.

    Raises:
        OSError: SSL_CERT_FILE cannot be read.
    """

    def __init__(self, env: Mapping[str, str], read_timeout_s: float = READ_TIMEOUT_S) -> None:
        self._env = dict(env)
        self._pool = Pool(env, read_timeout_s)

    @contextlib.contextmanager
    def ask(self, request: UpstreamRequest) -> Iterator[http.client.HTTPResponse]:
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

    def close(self) -> None:
        """Close all idle connections."""
        self._pool.close()

    def _send(self, origin: str, request: UpstreamRequest) -> tuple[Connection, http.client.HTTPResponse]:
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

    def _send_over(self, connection: Connection, request: UpstreamRequest) -> http.client.HTTPResponse:
        """Send a request over a connection, which is closed if that fails."""
        parts = urlsplit(request.endpoint)
        headers = {**request.headers, "Host": parts.netloc.rpartition("@")[2]}
        target = request.target
        proxy = proxies.proxy_for(request.endpoint, self._env)
        if proxy is not None and parts.scheme == "http":
            target = f"http://{headers['Host']}{target}"
            headers |= proxy_authorization(proxy)
        try:
            connection.request(request.method, target, request.body, headers)
            return connection.getresponse()
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
