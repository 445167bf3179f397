"""The hop: the connection from this node to one host, a line for each step: proxy, name, TCP, tunnel, TLS."""

import base64
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

from qrmi_slurm.calls import proxies
from qrmi_slurm.checks.online.bounded import within
from qrmi_slurm.checks.online.targets import Target
from qrmi_slurm.checks.result import Result, error, ok, warning
from qrmi_slurm.text import printable

_T = TypeVar("_T")

_EXPIRES_SOON_DAYS: Final = 14
_DAY_S: Final = 24 * 3600
_MAX_HEAD_BYTES: Final = 64 * 1024
_MAX_WORDS_CHARS: Final = 200
# OpenSSL's X509_V_FLAG_NO_CHECK_TIME (x509_vfy.h), which Python has no name for.
_NO_CHECK_TIME: Final = 0x200000

# The hint where the proxy answered, not the service.
PROXY_HINT: Final = "this is the proxy's answer, not the service's: ask whoever runs it to let this node through"


class _Failed(Exception):
    """A step failed: its line, and no further steps."""

    def __init__(self, line: Result) -> None:
        super().__init__(line.message)
        self.line = line


def lines(target: Target, step_timeout_s: float, shell: Mapping[str, str]) -> list[Result]:
    """Try each step of a connection to a host, up to the first that fails.

    Args:
        target: the host.
        step_timeout_s: how long each step may take, in seconds.
        shell: the environment of whoever runs this, only to warn that the hooks do not see its proxies.
    """
    return _Hop(target, step_timeout_s, shell).lines()


class _Hop:
    """One connection to one host."""

    def __init__(self, target: Target, timeout_s: float, shell: Mapping[str, str]) -> None:
        self._target = target
        self._timeout_s = timeout_s
        self._shell = shell
        self._lines: list[Result] = []

    def lines(self) -> list[Result]:
        """Return a line for each step, up to the first that fails."""
        try:
            self._lines.append(self._proxy())
            host, port = self._first_stop()
            addresses = self._step("name", lambda: self._resolve(host, port))
            connection = self._step("tcp", lambda: self._connect(host, port, addresses))
            with connection:
                if self._target.proxy and self._target.is_tls:
                    self._step("tunnel", lambda: self._tunnel(connection))
                if self._target.is_tls:
                    self._step("tls", lambda: self._tls(connection))
        except _Failed as failed:
            self._lines.append(failed.line)
        return self._lines

    def _step(self, name: str, work: Callable[[], tuple[Result, _T]]) -> _T:
        began_s = time.monotonic()
        try:
            line, result = within(self._timeout_s, work)
        except _Failed as failed:
            raise _Failed(replace(failed.line, duration_s=time.monotonic() - began_s)) from failed
        except TimeoutError as late:
            words = error(name, f"{self._target.host}: {late}", "does a firewall drop this node's packets?")
            raise _Failed(replace(words, duration_s=time.monotonic() - began_s)) from late
        self._lines.append(replace(line, duration_s=time.monotonic() - began_s))
        return result

    def _proxy(self) -> Result:
        proxy = self._target.proxy
        if proxy is None:
            names = [name for name in proxies.PROXY_VARIABLES if name != "no_proxy" and self._shells(name)]
            if names and proxies.proxy_for(self._target.url, self._shell):
                return warning(
                    "proxy",
                    f"none for {self._target.host}, though this shell has {', '.join(names)}",
                    f"hooks see only --env: values: write --env:{names[0]}=URL on the plugin's line if nodes need it",
                )
            return ok("proxy", f"none for {self._target.host}")
        shown = proxies.without_password(proxy)
        if not proxy.startswith("http://"):
            line = warning("proxy", f"{shown} cannot be tested from here", "only http:// can: see QRMI's line")
            raise _Failed(line)
        return ok("proxy", f"{shown} for {self._target.host}, from --env:")

    def _shells(self, name: str) -> str:
        return self._shell.get(name) or self._shell.get(name.upper(), "")

    def _first_stop(self) -> tuple[str, int]:
        if self._target.proxy is None:
            return self._target.host, self._target.port
        parts = urlsplit(self._target.proxy)
        try:
            return parts.hostname or "", parts.port or 80
        except ValueError as bad:
            line = error("proxy", "the proxy's port is not a number", "fix --env: on the plugin's line")
            raise _Failed(line) from bad

    def _resolve(self, host: str, port: int) -> tuple[Result, list[tuple[Any, ...]]]:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as failure:
            hint = "is the name right, and can a DNS server in this node's /etc/resolv.conf resolve it?"
            if self._target.proxy is None:
                hint += " Behind a proxy: --env:https_proxy=URL on the plugin's line"
            raise _Failed(error("name", f"{host} does not resolve: {failure.strerror}", hint)) from failure
        addresses = list(dict.fromkeys(str(item[4][0]) for item in found))
        more = f" and {len(addresses) - 1} more" if len(addresses) > 1 else ""
        what = f"{addresses[0]}{more}" if addresses[0] != host else "an address"
        return ok("name", f"{host} is {what}"), [tuple(item) for item in found]

    def _connect(self, host: str, port: int, addresses: list[tuple[Any, ...]]) -> tuple[Result, socket.socket]:
        last = "no address"
        for family, kind, protocol, _, address in addresses:
            connection = socket.socket(family, kind, protocol)
            # Each address gets a share of the time: the first may never answer (IPv6 without a route).
            connection.settimeout(self._timeout_s / len(addresses))
            try:
                connection.connect(address)
            except OSError as failure:
                connection.close()
                last = failure.strerror or str(failure)
                continue
            connection.settimeout(self._timeout_s)
            return ok("tcp", f"{address[0]} port {port}"), connection
        hint = "is the port right, and is this node allowed to reach it?"
        raise _Failed(error("tcp", f"{host} port {port}: {last}", hint))

    def _tunnel(self, connection: socket.socket) -> tuple[Result, None]:
        target = f"{self._target.host}:{self._target.port}"
        request = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{_proxy_login(self._target.proxy)}\r\n"
        connection.sendall(request.encode("latin-1", "replace"))
        answer = b""
        while b"\r\n\r\n" not in answer and len(answer) < _MAX_HEAD_BYTES:
            chunk = connection.recv(1)  # byte by byte: what follows belongs to TLS
            if not chunk:
                break
            answer += chunk
        status = printable(answer.split(b"\r\n")[0].decode("latin-1"), _MAX_WORDS_CHARS)
        words = status.split(None, 2)
        if len(words) < 2 or not words[0].startswith("HTTP/"):
            raise _Failed(error("tunnel", "no HTTP proxy listens there", "fix --env: on the plugin's line"))
        if words[1] == "407":
            hint = "write --env:https_proxy=http://USER:PASSWORD@HOST:PORT; that line is readable by all users"
            raise _Failed(error("tunnel", f"the proxy requires a login ({' '.join(words[1:])})", hint))
        if not words[1].startswith("2"):
            raise _Failed(error("tunnel", f"{' '.join(words[1:])} from the proxy for {target}", PROXY_HINT))
        return ok("tunnel", f"the proxy connects to {target}"), None

    def _tls(self, connection: socket.socket) -> tuple[Result, None]:
        trust = self._target.trust
        try:
            context = ssl.create_default_context(cafile=trust)
        except OSError as failure:
            line = error("tls", f"{trust}: {failure.strerror or failure}", "fix --env:SSL_CERT_FILE")
            raise _Failed(line) from failure
        try:
            with context.wrap_socket(connection, server_hostname=self._target.host) as wrapped:
                found = wrapped.getpeercert() or {}
        except ssl.SSLCertVerificationError as failure:
            raise _Failed(self._distrusted(failure)) from failure
        except OSError as failure:
            words = getattr(failure, "reason", None) or failure.strerror or str(failure)
            hint = "is https right for this port? Something in between may block TLS"
            raise _Failed(error("tls", f"no TLS with {self._target.host}: {words}", hint)) from failure
        days = int((ssl.cert_time_to_seconds(str(found["notAfter"])) - time.time()) // _DAY_S)
        message = f"signed by {printable(_issuer(found))}, ends in {days} days"
        if days < _EXPIRES_SOON_DAYS:
            return warning("tls", message, "whoever runs the service has to renew the certificate"), None
        return ok("tls", message), None

    def _distrusted(self, failure: ssl.SSLCertVerificationError) -> Result:
        """Name the signer of a refused certificate: more often than not, a proxy that inspects TLS."""
        signed = ""
        if self._target.proxy is None:
            half_s = self._timeout_s / 2
            try:
                issuer = within(half_s, lambda: _issuer_of_untrusted((self._target.host, self._target.port), half_s))
                signed = f", signed by {printable(issuer)}"
            except (OSError, ValueError):
                pass
        where = self._target.trust or "Python's certificates"
        hint = f"add the signer to {where}, or name a file that has it: --env:SSL_CERT_FILE=PATH on the plugin's line"
        return error("tls", f"not trusted{signed}: {failure.verify_message}", hint)


def _issuer_of_untrusted(address: tuple[str, int], timeout_s: float) -> str:
    """Return who signed a server's certificate, trusted or not; nothing is sent beyond the handshakes.

    Python decodes only a verified certificate, so this fetches it and connects again trusting nothing else.

    Raises:
        OSError: no connection, or no TLS.
        ValueError: the certificate cannot be decoded.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    context.load_verify_locations(cadata=ssl.get_server_certificate(address, timeout=timeout_s))
    with (
        socket.create_connection(address, timeout_s) as connection,
        context.wrap_socket(connection, server_hostname=address[0]) as wrapped,
    ):
        return _issuer(wrapped.getpeercert() or {})


def _issuer(certificate: Mapping[str, Any]) -> str:
    """Return organization and common name of who signed a certificate, as `getpeercert()` gives it."""
    names = {key: value for attributes in certificate.get("issuer", ()) for key, value in attributes}
    parts = [names[key] for key in ("organizationName", "commonName") if key in names]
    return ", ".join(parts) or "an issuer without a name"


def _proxy_login(proxy: str | None) -> str:
    parts = urlsplit(proxy or "")
    if parts.username is None:
        return ""
    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
    return f"Proxy-Authorization: Basic {base64.b64encode(login).decode()}\r\n"
