"""The HTTP server: connections on loopback, the faults that hit them, and a printed line for each request."""

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
from qrmi_emulator.calls import Calls, recognize
from qrmi_emulator.control import PREFIX, Control, RequestBook, RequestRecord
from qrmi_emulator.faults import Fault, FaultBook
from qrmi_emulator.service import ServiceError

# Circuits of a hundred qubits are some hundred kB of text, and a job may have many.
_MAX_BODY_BYTES = 256 * 1024 * 1024
_PEER_POLL_S = 0.1  # how soon a waiting request notices that its client is gone
_LISTEN_QUEUE = 1024  # hundreds of clients may connect at once
# struct linger: on, 0 seconds; close() then sends RST (socket(7)).
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_GARBAGE = b"<html><body>emulated garbage"

StartResponse = Callable[..., Any]


class LostConnectionError(ConnectionError):
    """The request gets no answer, because of a fault or because its client is gone."""


class RequestLog:
    """Prints a line for each request; never headers, bodies or queries.

    Args:
        stream: receives the lines.
        clock: seconds since the epoch.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        self._stream = stream
        self._clock = clock
        self._lock = threading.Lock()

    def line(self, record: RequestRecord, took_ms: float) -> None:
        """Print a request that has been answered."""
        moment = time.strftime("%H:%M:%S", time.localtime(self._clock()))
        words = [moment, record.method, record.path, str(record.status or "-"), f"{took_ms:.1f} ms"]
        words += [word for word in (record.call, record.fault and f"fault={record.fault}") if word]
        self.write(" ".join(words))

    def write(self, text: str) -> None:
        """Print a line; ignore a reader that is gone."""
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
        control: answers requests to the control interface.
        faults: the faults that are set.
        requests: records requests.
        log: prints requests.
        stopping: set when the emulator stops.
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
        call = recognize(request.method, request.path)
        # Percent-encoding leaves no newlines or terminal codes in the path.
        record = RequestRecord(request.method, quote(request.path), call.name if call else "")
        try:
            # Closing a connection with unread data resets it, and the client might lose the answer.
            request.get_data(cache=True, parse_form_data=request.path.endswith("/identity/token"))
            if request.path.startswith(f"{PREFIX}/"):
                response = self._control.answer(request)
            else:
                self._requests.add(record)
                response = self._answer(request, record)
            record.status = response.status_code
            return response(environ, start_response)
        except HTTPException as error:  # the body is too long or incomplete
            record.status = error.code
            return error.get_response(environ)(environ, start_response)
        finally:
            self._log.line(record, (time.perf_counter() - began_s) * 1e3)

    def _answer(self, request: Request, record: RequestRecord) -> Response:
        call = recognize(request.method, request.path)
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
        """Carry out a fault; return its answer, or None to continue with the request.

        Raises:
            LostConnectionError: the request gets no answer.
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
        """Wait until an event is set or `timeout_s` have passed.

        Raises:
            LostConnectionError: the client disconnects, or the emulator stops.
        """
        ends_s = None if timeout_s is None else time.monotonic() + timeout_s
        self._faults.count_holding(fault, 1)
        try:
            while not until.is_set():
                left_s = _PEER_POLL_S if ends_s is None else ends_s - time.monotonic()
                if left_s <= 0:
                    return
                if self._stopping.is_set() or _is_gone(request.environ["werkzeug.socket"]):
                    raise LostConnectionError
                until.wait(min(left_s, _PEER_POLL_S))
        finally:
            self._faults.count_holding(fault, -1)


class Handler(WSGIRequestHandler):
    """A connection with one HTTP/1.1 request (werkzeug closes it afterwards)."""

    protocol_version = "HTTP/1.1"

    def connection_dropped(self, error: BaseException, environ: dict[str, Any] | None = None) -> None:
        """Close a connection whose request gets no answer."""
        self.close_connection = True

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Print nothing: the application prints its own lines."""

    def log(self, type: str, message: str, *args: Any) -> None:
        """Print only tracebacks, to stderr, and nothing about clients' mistakes."""
        if type == "error" and args and "Traceback" in str(args[0]):
            super().log(type, message, *args)


class Server(ThreadedWSGIServer):
    """A server that can reset connections."""

    request_queue_size = _LISTEN_QUEUE

    def shutdown_request(self, request: Any) -> None:
        """Close a connection; to reset it, skip the shutdown, which would send FIN first."""
        linger = request.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, len(_RESET_ON_CLOSE))
        if linger == _RESET_ON_CLOSE:
            self.close_request(request)
        else:
            super().shutdown_request(request)


def listen(host: str, port: int, application: Application) -> Server:
    """Return a server that is listening but does not serve yet.

    Raises:
        OSError: the address is in use.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_LISTEN_QUEUE)
        # werkzeug exits the process if it cannot bind an address; it duplicates a socket that it is given.
        return Server(host, listener.getsockname()[1], application, Handler, fd=listener.fileno())


def _is_gone(connection: socket.socket) -> bool:
    """Tell whether a client has closed the connection."""
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
    except BlockingIOError:  # still connected
        return False
    except OSError:
        return True


def _truncated(response: Response, size_bytes: int) -> Response:
    """Return a response whose body ends after some bytes, short of its Content-Length."""
    whole = response.get_data()

    def body() -> Iterator[bytes]:
        yield whole[:size_bytes]
        raise LostConnectionError

    cut = Response(body(), response.status_code, content_type=response.content_type)
    cut.content_length = len(whole) + 1  # so that an empty body is short, too
    return cut


def _error_text(status: int, body: object) -> str:
    if isinstance(body, str):
        return body
    return json.dumps(body or wire.error_body(ServiceError(status, "An emulated fault."), "emulator"))
