"""The HTTP edge: connections on loopback, faults carried out on them, and one line printed for each request."""

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO
from urllib.parse import quote

from werkzeug.exceptions import HTTPException
from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler
from werkzeug.wrappers import Request, Response

from qrmi_emulator import wire
from qrmi_emulator.calls import Calls, recognise
from qrmi_emulator.control import PREFIX, Control, RequestBook, RequestRecord
from qrmi_emulator.faults import Fault, FaultBook
from qrmi_emulator.service import ServiceError

# Everything that a request may hold in memory: circuits of a hundred qubits are some hundred kB of text.
_MAX_BODY_BYTES = 256 * 1024 * 1024
_LOOK_AT_PEER_S = 0.1
_LISTEN_QUEUE = 1024  # hundreds of clients at once
# struct linger: on, 0 seconds. Closing then sends RST (man 7 socket).
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_GARBAGE = b"<html><body>emulated garbage"

StartResponse = Callable[..., Any]


class LostConnectionError(ConnectionError):
    """The request gets no answer: a fault took it, or its client is gone."""


class RequestLog:
    """Prints one line for each request; never a header, a body or a query.

    Args:
        stream: where the lines go.
        clock: seconds since the epoch.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        self._stream = stream
        self._clock = clock
        self._lock = threading.Lock()

    def line(self, record: RequestRecord, took_ms: float) -> None:
        """Print a request that has ended."""
        moment = time.strftime("%H:%M:%S", time.localtime(self._clock()))
        words = [moment, record.method, record.path, str(record.status or "-"), f"{took_ms:.1f} ms"]
        words += [word for word in (record.call, record.fault and f"fault={record.fault}") if word]
        self.write(" ".join(words))

    def write(self, text: str) -> None:
        """Print a line; where nobody reads any more, nothing happens."""
        try:
            with self._lock:
                self._stream.write(f"{text}\n")
                self._stream.flush()
        except (BrokenPipeError, ValueError):  # the reader is gone, or the stream was closed
            return


class Application:
    """The WSGI application: control interface, faults and calls.

    Args:
        calls: answers the service's calls.
        control: answers the control interface.
        faults: the faults that are set.
        requests: notes the requests.
        log: prints the requests.
        stopping: set when the emulator ends.
    """

    def __init__(
        self,
        calls: Calls,
        control: Control,
        faults: FaultBook,
        requests: RequestBook,
        log: RequestLog,
        stopping: threading.Event,
    ) -> None:
        self._calls = calls
        self._control = control
        self._faults = faults
        self._requests = requests
        self._log = log
        self._stopping = stopping

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        began_s = time.perf_counter()
        request = Request(environ)
        request.max_content_length = _MAX_BODY_BYTES
        call = recognise(request.method, request.path)
        # Percent-encoded: a path can hold no newline or terminal code that way.
        record = RequestRecord(request.method, quote(request.path), call.name if call else "")
        try:
            # Read at once: closing a connection with unread data resets it, and the client might lose the answer.
            request.get_data(cache=True, parse_form_data=request.path.endswith("/identity/token"))
            if request.path.startswith(f"{PREFIX}/"):
                response = self._control.answer(request)
            else:
                self._requests.add(record)
                response = self._answer(request, record)
            record.status = response.status_code
            return response(environ, start_response)
        except HTTPException as error:  # a body that is too long, or ends too early
            record.status = error.code
            return error.get_response(environ)(environ, start_response)
        finally:
            self._log.line(record, (time.perf_counter() - began_s) * 1e3)

    def _answer(self, request: Request, record: RequestRecord) -> Response:
        call = recognise(request.method, request.path)
        faults = self._faults.take(record.call)
        record.fault = ",".join(fault.spec.kind for fault in faults)
        for fault in faults:
            if fault.spec.when == "before" and (answer := self._misbehave(fault, request, None)):
                return answer
        response = self._calls.answer(call, request)
        for fault in faults:
            if fault.spec.when == "after" or fault.spec.kind == "drop_after":
                response = self._misbehave(fault, request, response) or response
        return response

    def _misbehave(self, fault: Fault, request: Request, response: Response | None) -> Response | None:
        """Carry a fault out; what it returns is the answer, None lets the request go on.

        Raises:
            LostConnectionError: there is no answer.
        """
        spec = fault.spec
        match spec.kind:
            case "delay":
                self._wait(fault, request, threading.Event(), spec.delay_s)
                return None
            case "hold":
                self._wait(fault, request, fault.released)
                return None
            case "hang":
                self._wait(fault, request, fault.released)
                raise LostConnectionError
            case "error":
                return Response(_error_text(spec.status, spec.body), spec.status, content_type="application/json")
            case "garbage":
                return Response(_GARBAGE, 200, content_type="application/json")
            case "drop_after":
                return None if response is None else _truncated(response, spec.bytes)
            case "reset":
                connection: socket.socket = request.environ["werkzeug.socket"]
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                raise LostConnectionError
            case _:
                raise LostConnectionError

    def _wait(self, fault: Fault, request: Request, until: threading.Event, timeout_s: float | None = None) -> None:
        """Wait for an event or `timeout_s`, as long as the client does.

        Raises:
            LostConnectionError: the client is gone, or the emulator ends.
        """
        ends_s = None if timeout_s is None else time.monotonic() + timeout_s
        self._faults.count_holding(fault, 1)
        try:
            while not until.is_set():
                left_s = _LOOK_AT_PEER_S if ends_s is None else ends_s - time.monotonic()
                if left_s <= 0:
                    return
                if self._stopping.is_set() or _is_gone(request.environ["werkzeug.socket"]):
                    raise LostConnectionError
                until.wait(min(left_s, _LOOK_AT_PEER_S))
        finally:
            self._faults.count_holding(fault, -1)


class Handler(WSGIRequestHandler):
    """A connection: one HTTP/1.1 request (werkzeug keeps none alive), without an answer where a fault says so."""

    protocol_version = "HTTP/1.1"

    def connection_dropped(self, error: BaseException, environ: dict[str, Any] | None = None) -> None:
        """End a connection that got no answer."""
        self.close_connection = True

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Print nothing: the application prints its own line."""

    def log(self, type: str, message: str, *args: Any) -> None:
        """Print nothing of what clients do wrong; a traceback goes to stderr."""
        if type == "error" and args and "Traceback" in str(args[0]):
            super().log(type, message, *args)


class Server(ThreadedWSGIServer):
    """A server that resets a connection where it was told to."""

    request_queue_size = _LISTEN_QUEUE

    def shutdown_request(self, request: Any) -> None:
        """Close a connection; one that is to be reset without the FIN that would come first."""
        linger = request.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, len(_RESET_ON_CLOSE))
        if linger == _RESET_ON_CLOSE:
            self.close_request(request)
        else:
            super().shutdown_request(request)


def listen(host: str, port: int, application: Application) -> Server:
    """Return a server that listens, and serves once it is told to.

    Raises:
        OSError: the address is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_LISTEN_QUEUE)
        # werkzeug ends the process where it cannot bind; given a socket, it duplicates that.
        return Server(host, listener.getsockname()[1], application, Handler, fd=listener.fileno())


def _is_gone(connection: socket.socket) -> bool:
    """Say whether a client has closed its end."""
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:  # connected, and silent
        return False
    except OSError:
        return True


def _truncated(response: Response, size_bytes: int) -> Response:
    """Return a response that ends after some bytes of its body, short of its Content-Length."""
    whole = response.get_data()

    def body() -> Iterator[bytes]:
        yield whole[:size_bytes]
        raise LostConnectionError

    cut = Response(body(), response.status_code, content_type=response.content_type)
    cut.content_length = len(whole) + 1  # also an empty body then ends too early
    return cut


def _error_text(status: int, body: object) -> str:
    if isinstance(body, str):
        return body
    return json.dumps(body or wire.error_body(ServiceError(status, "An emulated fault."), "emulator"))
