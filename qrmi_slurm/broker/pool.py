"""The pool: connections to the services, kept alive between requests, through TLS and the site's proxies."""

import base64
import contextlib
import errno
import http.client
import select
import ssl
import threading
import time
from collections.abc import Mapping
from typing import Final
from urllib.parse import SplitResult, unquote, urlsplit

from qrmi_slurm.calls import ca_bundle, proxies

CONNECT_TIMEOUT_S: Final = 30.0

_MAX_IDLE: Final = 16

Connection = http.client.HTTPConnection


class Pool:
    """Open connections by origin (scheme, host and port); may be used from any thread.

    Args:
        env: the site's `--env:` variables: SSL_CERT_FILE, proxies.
        read_timeout_s: how long a connection waits for each part of an answer.

    Raises:
        OSError: SSL_CERT_FILE cannot be read.
    """

    def __init__(self, env: Mapping[str, str], read_timeout_s: float) -> None:
        self._env = dict(env)
        self._read_timeout_s = read_timeout_s
        # Made while the process may still read what root may.
        self._tls = ssl.create_default_context(cafile=ca_bundle.bundle(env))
        self._lock = threading.Lock()
        self._idle: dict[str, list[tuple[float, Connection]]] = {}

    def take(self, origin: str, max_idle_s: float) -> tuple[Connection, bool]:
        """Return a connection, and whether it was used before; a used one has been idle for max_idle_s at most.

        Raises:
            OSError: no connection can be opened; TimeoutError where that takes too long.
        """
        while True:
            with self._lock:
                kept = self._idle.get(origin)
                since_s, connection = kept.pop() if kept else (0.0, None)
            if connection is None:
                return self.open(origin), False
            is_fresh = time.monotonic() - since_s <= max_idle_s
            # An idle connection that can be read from has been closed at the other end.
            if is_fresh and connection.sock is not None and not select.select([connection.sock], [], [], 0)[0]:
                return connection, True
            connection.close()

    def open(self, origin: str) -> Connection:
        """Return a new connection.

        Raises:
            OSError: it cannot be opened; TimeoutError where that takes too long.
        """
        connection = self._unconnected(urlsplit(origin), proxies.proxy_for(origin, self._env))
        try:
            connection.connect()
        except TimeoutError:
            raise TimeoutError(errno.ETIMEDOUT, "cannot connect in time") from None
        if connection.sock is not None:
            connection.sock.settimeout(self._read_timeout_s)
        return connection

    def keep(self, origin: str, connection: Connection) -> None:
        """Keep a connection for another request, or close it where enough are kept."""
        with self._lock:
            kept = self._idle.setdefault(origin, [])
            if len(kept) < _MAX_IDLE:
                kept.append((time.monotonic(), connection))
                return
        with contextlib.suppress(OSError):
            connection.close()

    def close(self) -> None:
        """Close all idle connections."""
        with self._lock:
            kept = [connection for connections in self._idle.values() for _, connection in connections]
            self._idle.clear()
        for connection in kept:
            connection.close()

    def _unconnected(self, origin: SplitResult, proxy: str | None) -> Connection:
        host = origin.hostname or ""
        port = origin.port or (443 if origin.scheme == "https" else 80)
        first, first_port = (host, port) if proxy is None else _address_of(proxy)
        if origin.scheme != "https":
            return Connection(first, first_port, timeout=CONNECT_TIMEOUT_S)
        secure = http.client.HTTPSConnection(first, first_port, timeout=CONNECT_TIMEOUT_S, context=self._tls)
        if proxy is not None:
            secure.set_tunnel(host, port, proxy_authorization(proxy))
        return secure


def proxy_authorization(proxy: str) -> dict[str, str]:
    """Return the header for a proxy whose URL has a user name; empty for one without."""
    parts = urlsplit(proxy)
    if parts.username is None:
        return {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def _address_of(proxy: str) -> tuple[str, int]:
    parts = urlsplit(proxy)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise OSError(errno.EINVAL, "the proxy is not an HTTP proxy")
    return parts.hostname, parts.port or 80
