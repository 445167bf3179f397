"""The way to the services: connections kept alive, TLS, proxies, and no redirect ever followed."""

import base64
import contextlib
import http.client
import math
import select
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final
from urllib.parse import unquote, urlsplit

from qrmi_slurm.calls import ca_bundle, proxies

# QRMI waits for ever; a thread of ours does not. A service that needs longer for one answer answers 504.
READ_TIMEOUT_S: Final = 300.0
CONNECT_TIMEOUT_S: Final = 30.0

_MAX_IDLE: Final = 16

# A connection that has idled longer than this may be closed by the service just now. What must not be done twice, or
# not at all, does not go over it; a GET does, and is sent again.
_FRESH_S: Final = 2.0

_Connection = http.client.HTTPConnection


class UpstreamError(Exception):
    """A service gave no answer; the message has neither address nor header in it.

    Args:
        message: why.
        is_late: whether time was up.
    """

    def __init__(self, message: str, *, is_late: bool = False) -> None:
        super().__init__(message)
        self.is_late = is_late


class Upstream:
    """Requests to services; may be used from any thread.

    Args:
        env: the site's `--env:` variables: SSL_CERT_FILE, proxies.
        read_timeout_s: how long to wait for each part of an answer.

    Raises:
        OSError: SSL_CERT_FILE cannot be read.
    """

    def __init__(self, env: Mapping[str, str], read_timeout_s: float = READ_TIMEOUT_S) -> None:
        self._env = dict(env)
        self._read_timeout_s = read_timeout_s
        # Made while the process may still read what root may.
        self._tls = ssl.create_default_context(cafile=ca_bundle.bundle(env))
        self._lock = threading.Lock()
        self._idle: dict[str, list[tuple[float, _Connection]]] = {}

    @contextmanager
    def ask(
        self, method: str, endpoint: str, target: str, headers: Mapping[str, str], body: bytes | Iterable[bytes] | None
    ) -> Iterator[http.client.HTTPResponse]:
        """Send a request; the answer is yielded when its headers are there, whatever its status.

        Args:
            method: GET, POST, ...
            endpoint: a URL, of which scheme, host and port count.
            target: path and query.
            headers: all but Host; Content-Length for a body that is no bytes.
            body: what to send.

        Raises:
            UpstreamError: no answer, or one that is not HTTP. A request is sent again only where the first one cannot
                have been read.
        """
        parts = urlsplit(endpoint)
        place = f"{parts.scheme}://{parts.netloc}"
        connection: _Connection | None = None
        try:
            connection, is_kept = self._connection(place, math.inf if method == "GET" else _FRESH_S)
            try:
                response = self._send(connection, method, endpoint, target, headers, body)
            except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
                if not is_kept or method != "GET":
                    raise
                connection.close()
                connection = self._open(place)
                response = self._send(connection, method, endpoint, target, headers, body)
            yield response
            if response.isclosed() and not response.will_close:
                self._keep(place, connection)
                connection = None
        except TimeoutError:
            raise UpstreamError("no answer in time", is_late=True) from None
        except ssl.SSLError as error:
            raise UpstreamError(f"TLS: {error.reason or type(error).__name__}") from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise UpstreamError(str(reason)) from None
        finally:
            if connection is not None:
                connection.close()

    def close(self) -> None:
        """Close the connections that are kept."""
        with self._lock:
            kept = [connection for connections in self._idle.values() for _, connection in connections]
            self._idle.clear()
        for connection in kept:
            connection.close()

    def _send(
        self,
        connection: _Connection,
        method: str,
        endpoint: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes | Iterable[bytes] | None,
    ) -> http.client.HTTPResponse:
        parts = urlsplit(endpoint)
        more = {"Host": parts.netloc.rpartition("@")[2]}
        proxy = proxies.proxy_for(endpoint, self._env)
        if proxy is not None and parts.scheme == "http":
            target = f"http://{more['Host']}{target}"
            more |= _proxy_authorization(proxy)
        connection.request(method, target, body, {**headers, **more})
        return connection.getresponse()

    def _connection(self, place: str, max_idle_s: float) -> tuple[_Connection, bool]:
        """Return a connection, and whether it was used before, which then is no longer ago than that."""
        while True:
            with self._lock:
                kept = self._idle.get(place)
                since_s, connection = kept.pop() if kept else (0.0, None)
            if connection is None:
                break
            is_fresh = time.monotonic() - since_s <= max_idle_s
            # One that can be read from has been closed at the other end.
            if is_fresh and connection.sock is not None and not select.select([connection.sock], [], [], 0)[0]:
                return connection, True
            connection.close()
        return self._open(place), False

    def _open(self, place: str) -> _Connection:
        parts = urlsplit(place)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        proxy = proxies.proxy_for(place, self._env)
        host, at = parts.hostname or "", port
        if proxy is not None:
            through = urlsplit(proxy)
            if through.scheme not in ("http", "https") or not through.hostname:
                raise UpstreamError("the proxy is none that speaks HTTP")
            host, at = through.hostname, through.port or 80
        if parts.scheme == "https":
            secure = http.client.HTTPSConnection(host, at, timeout=CONNECT_TIMEOUT_S, context=self._tls)
            if proxy is not None:
                secure.set_tunnel(parts.hostname or "", port, _proxy_authorization(proxy))
            connection: _Connection = secure
        else:
            connection = _Connection(host, at, timeout=CONNECT_TIMEOUT_S)
        try:
            connection.connect()
        except TimeoutError:
            raise UpstreamError("it cannot be reached in time", is_late=True) from None
        if connection.sock is not None:
            connection.sock.settimeout(self._read_timeout_s)
        return connection

    def _keep(self, place: str, connection: _Connection) -> None:
        with self._lock:
            kept = self._idle.setdefault(place, [])
            if len(kept) < _MAX_IDLE:
                kept.append((time.monotonic(), connection))
                return
        with contextlib.suppress(OSError):
            connection.close()


def _proxy_authorization(proxy: str) -> dict[str, str]:
    parts = urlsplit(proxy)
    if parts.username is None:
        return {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
