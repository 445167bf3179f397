"""The server: one user's connections on loopback; each request is checked, given the site's credential, and answered.

Answers are streamed.

A thread for each connection: a job has few of them, and a service that hangs holds up one.
"""

import _thread
import contextlib
import http.client
import json
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Final
from urllib.parse import parse_qsl, urlsplit

import h11

from qrmi_slurm.broker import peer, rules, sigv4, tokens
from qrmi_slurm.broker.masking import Masker
from qrmi_slurm.broker.own_jobs import OwnJobs
from qrmi_slurm.broker.rules import Address, Body, Passage, Refusal, Service
from qrmi_slurm.broker.spec import Bucket, Qpu, Spec
from qrmi_slurm.broker.tokens import LoginError, RealTokens
from qrmi_slurm.broker.upstream import Upstream, UpstreamError
from qrmi_slurm.log import HookLog
from qrmi_slurm.secret import Secret
from qrmi_slurm.text import printable

# A request's head; QRMI's are below 1 kB.
_MAX_HEAD_BYTES: Final = 64 * 1024
_MAX_SMALL_BODY_BYTES: Final = 64 * 1024

# A job's circuits and parameters. It is looked at as a whole before it goes on, so it has to fit into memory.
MAX_JOB_BYTES: Final = 64 * 1024**2
# Bodies above this are read one after the other.
_LARGE_BYTES: Final = 1024**2

_MAX_MADE_BYTES: Final = 1024**2  # the answer to a new job: its id
_MAX_LIST_BYTES: Final = 32 * 1024**2
_MAX_ERROR_BYTES: Final = 64 * 1024
_CHUNK_BYTES: Final = 64 * 1024

# QRMI's HTTP library gives up an idle connection after 90 s: it is to be the first.
_IDLE_TIMEOUT_S: Final = 100.0
_PART_TIMEOUT_S: Final = 60.0
_LINGER_S: Final = 1.0
_MAX_CONNECTIONS: Final = 256
_THREAD_STACK_BYTES: Final = 512 * 1024
_LISTEN_QUEUE: Final = 1024

# How often it looks whether its job is over, and how long after the job's time it goes on where it is used.
_LOOK_S: Final = 1.0
_IDLE_AFTER_END_S: Final = 3600.0

# A program in a loop must not fill the site's log.
_MAX_REFUSALS_LOGGED: Final = 50

_MORE_INFO: Final = "https://quantum.cloud.ibm.com/docs/errors"

# What goes on of a request's headers, and of an answer's. All else is ours to write, or nobody's business.
_REQUEST_HEADERS: Final = frozenset({"accept", "content-type", "ibm-api-version", "user-agent"})
_S3_REQUEST_HEADERS: Final = frozenset(
    {
        "content-encoding",
        "content-md5",
        "content-type",
        "x-amz-checksum-crc32",
        "x-amz-checksum-crc32c",
        "x-amz-checksum-crc64nvme",
        "x-amz-checksum-mode",
        "x-amz-checksum-sha1",
        "x-amz-checksum-sha256",
        "x-amz-decoded-content-length",
        "x-amz-sdk-checksum-algorithm",
        "x-amz-trailer",
    }
)
_ANSWER_HEADERS: Final = frozenset({"content-type", "etag", "last-modified", "retry-after", "x-request-id"})
# S3's words for a body whose hash is not, or not yet, known; none for one that is signed piece by piece with a key.
_PAYLOADS: Final = frozenset({sigv4.UNSIGNED, "STREAMING-UNSIGNED-PAYLOAD-TRAILER"})

_REASONS: Final = http.client.responses


class ClientGoneError(Exception):
    """The job's end of a connection is gone, or says nothing any more."""


class Server:
    """A job's broker.

    Args:
        spec: what it has to know.
        listener: where it listens.
        upstream: how services are reached.
        own_jobs: the jobs that were made through it.
        log: its own.
        uid_of: tells whose process a connection comes from.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        spec: Spec,
        listener: socket.socket,
        upstream: Upstream,
        own_jobs: OwnJobs,
        log: HookLog,
        uid_of: Callable[[peer.Address, peer.Address], int | None] = peer.uid_of,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.spec = spec
        self.upstream = upstream
        self.own_jobs = own_jobs
        self.clock = clock
        self.large_bodies = threading.Lock()
        self.real_tokens = {
            place: RealTokens(qpu, upstream, clock) for place, qpu in enumerate(spec.qpus) if qpu is not None
        }
        host, port = listener.getsockname()
        self.hosts = (f"{host}:{port}", f"localhost:{port}")
        self._listener = listener
        self._uid_of = uid_of
        self._log = log
        self._slots = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        self._refusals = 0
        self._used_s = clock()

    def serve(self) -> str:
        """Serve until the job is over, and say how that was seen."""
        threading.stack_size(_THREAD_STACK_BYTES)
        self._listener.settimeout(_LOOK_S)
        looked_s = time.monotonic()
        while True:
            if time.monotonic() - looked_s >= _LOOK_S:
                looked_s = time.monotonic()
                if reason := self._why_over():
                    return reason
            if not self._slots.acquire(timeout=_LOOK_S):
                continue
            try:
                connection, client = self._listener.accept()
                # Not threading.Thread: its start() waits until the new thread runs, 0.1 ms and two switches.
                _thread.start_new_thread(self._run, (connection, client))
            except TimeoutError:
                self._slots.release()
            except (OSError, RuntimeError):  # out of descriptors or threads: those in use will be given back
                self._slots.release()
                time.sleep(_LOOK_S / 10)

    def _why_over(self) -> str:
        if self.own_jobs.is_folder_gone():
            return "its job has given back its QPUs"
        now_s = self.clock()
        if now_s > self.spec.ends_s + _IDLE_AFTER_END_S and now_s > self._used_s + _IDLE_AFTER_END_S:
            return "its job's time is over, and nobody asks any more"
        return ""

    def _run(self, connection: socket.socket, client: peer.Address) -> None:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            uid = self._uid_of(client, connection.getsockname())
            if uid != self.spec.uid:
                self.refused(None, "-", "-", Refusal(f"connection of uid {uid}"))
                _say_and_close(connection, "this is another user's credential broker")
                return
            self._used_s = self.clock()
            _Exchange(self, connection).run()
        except (OSError, ClientGoneError):
            pass
        except MemoryError:
            pass
        except Exception:  # noqa: BLE001 one connection, not the broker
            self._log.exception("surprise")
        finally:
            with contextlib.suppress(OSError):
                connection.close()
            self._slots.release()

    def refused(self, qpu: Qpu | None, method: str, path: str, refusal: Refusal) -> None:
        """Log a refused request, unless there were very many."""
        self._refusals += 1
        if self._refusals > _MAX_REFUSALS_LOGGED:
            return
        self._log.warning(
            "refused",
            qpu=printable(qpu.name) if qpu is not None else "-",
            method=printable(method, 20),
            path=printable(path, 200),
            status=refusal.status,
            reason=refusal.message,
        )
        if self._refusals == _MAX_REFUSALS_LOGGED:
            self._log.warning("refused", reason="further refusals are not logged")

    def failed(self, qpu: Qpu, reason: str) -> None:
        """Log that a service could not be asked, in the same bounds."""
        self._refusals += 1
        if self._refusals <= _MAX_REFUSALS_LOGGED:
            self._log.error("not-answered", qpu=printable(qpu.name), reason=reason)


def listen(port: int) -> socket.socket:
    """Return a socket that listens on loopback.

    Args:
        port: 0 for any.

    Raises:
        OSError: the port is taken.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(_LISTEN_QUEUE)
    except OSError:
        listener.close()
        raise
    return listener


class _Exchange:
    """The requests of one connection, one after the other."""

    def __init__(self, server: Server, connection: socket.socket) -> None:
        self._server = server
        self._socket = connection
        self._http = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_HEAD_BYTES)
        self._headers: dict[str, str] = {}

    def run(self) -> None:
        """Answer requests until either side has enough."""
        while True:
            self._socket.settimeout(_IDLE_TIMEOUT_S)
            try:
                event = self._next()
            except h11.RemoteProtocolError as error:
                self._refuse(None, "?", "?", Refusal("the request is no HTTP", error.error_status_hint))
                return
            if not isinstance(event, h11.Request):
                return
            self._socket.settimeout(_PART_TIMEOUT_S)
            if not self._one(event):
                return
            self._http.start_next_cycle()

    def _one(self, request: h11.Request) -> bool:
        """Answer one request; True where the connection can serve another one."""
        method, target = request.method.decode("ascii"), request.target.decode("latin-1")
        qpu = None
        try:
            self._read_headers(request)
            at = rules.address(target)
            qpu = self._qpu(at)
            self._authorize(qpu, at)
            passage = rules.passage(qpu, self._server.own_jobs.of(at.place), method, at)
            self._pass(qpu, at, passage, method)
        except Refusal as refusal:
            self._refuse(qpu, method, target, refusal)
        except h11.RemoteProtocolError as error:  # in the body
            self._refuse(qpu, method, target, Refusal("the body is no HTTP", error.error_status_hint))
        except LoginError as error:
            self._fail(qpu, 502, f"the credential broker cannot log in: {error}")
        except UpstreamError as error:
            status = 504 if error.is_late else 502
            self._fail(qpu, status, f"the credential broker gets no answer of the service: {error}")
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    # --- the request ------------------------------------------------------------------------------------

    def _read_headers(self, request: h11.Request) -> None:
        self._headers = {}
        for name_bytes, value in request.headers:
            name = name_bytes.decode("ascii")
            if name in self._headers and name in ("authorization", "host", "content-length", "transfer-encoding"):
                raise Refusal(f"the header {name} stands twice", 400)
            self._headers[name] = value.decode("latin-1")
        if "content-length" in self._headers and "transfer-encoding" in self._headers:
            raise Refusal("the body has two lengths", 400)
        if self._headers.get("host") not in self._server.hosts:
            raise Refusal("the header host names another one")

    def _qpu(self, at: Address) -> Qpu:
        qpus = self._server.spec.qpus
        qpu = qpus[at.place] if at.place < len(qpus) else None
        if qpu is None:
            raise Refusal("there is nothing at this path")
        return qpu

    def _authorize(self, qpu: Qpu, at: Address) -> None:
        """Raise unless the request shows the job's key, or what was given for it. At IAM the body does."""
        scheme, _, credential = self._headers.get("authorization", "").partition(" ")
        if at.service == "api":
            is_good = scheme.lower() == "bearer" and tokens.is_good(credential.strip(), qpu.key, self._server.clock())
        elif at.service == "s3":
            named = credential.replace(" ", "").partition("Credential=")[2].partition("/")[0]
            is_good = scheme == sigv4.ALGORITHM and tokens.same(named, qpu.key.reveal())
        else:
            is_good = True
        if not is_good:
            raise Refusal("the token or key is not this job's, or has ended", 401)

    def _next(self) -> h11.Event | type[h11.PAUSED]:
        """Return the next event of the connection.

        Raises:
            ClientGoneError: nothing more comes.
        """
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                if self._http.they_are_waiting_for_100_continue:
                    self._send(h11.InformationalResponse(status_code=100, headers=[]))
                try:
                    self._http.receive_data(self._socket.recv(_CHUNK_BYTES))
                except OSError as error:
                    raise ClientGoneError from error
            elif isinstance(event, h11.ConnectionClosed):
                raise ClientGoneError
            else:
                return event  # type: ignore[return-value]

    def _pieces(self) -> Iterator[bytes]:
        while isinstance(event := self._next(), h11.Data):
            yield bytes(event.data)

    def _body(self, max_bytes: int) -> bytes:
        """Return the request's body.

        Raises:
            Refusal: it is longer than that.
        """
        length = self._headers.get("content-length")
        is_large = max_bytes > _LARGE_BYTES and (length is None or int(length) > _LARGE_BYTES)
        if length is not None and int(length) > max_bytes:
            raise Refusal(f"the body has more than {max_bytes} bytes", 413)
        body = bytearray()
        with self._server.large_bodies if is_large else contextlib.nullcontext():
            for piece in self._pieces():
                body += piece
                if len(body) > max_bytes:
                    raise Refusal(f"the body has more than {max_bytes} bytes", 413)
            return bytes(body)

    # --- going on ---------------------------------------------------------------------------------------

    def _pass(self, qpu: Qpu, at: Address, passage: Passage, method: str) -> None:
        if passage.body is Body.OBJECT or passage.service is Service.S3:
            self._pass_to_s3(qpu, passage, method)
            return
        body = self._body(MAX_JOB_BYTES if passage.body is Body.JOB else _MAX_SMALL_BODY_BYTES)
        made = ""
        if passage.body is Body.LOGIN:
            self._log_in(qpu, body)
            return
        if passage.body is Body.CLOSE:
            rules.check_close(body)
        elif passage.body is Body.JOB and passage.service is Service.COMPUTE_SERVICE:
            rules.check_job(qpu, body)
        elif passage.body is Body.JOB:
            made, body = rules.system_job(qpu, body, self._presigner(qpu))
        elif body:
            raise Refusal("this request has no body")
        self._ask(qpu, at.place, passage, method, body, made)

    def _log_in(self, qpu: Qpu, body: bytes) -> None:
        """Give a token of ours for the job's key."""
        try:
            pairs = parse_qsl(body.decode("ascii"), strict_parsing=True, max_num_fields=16)
        except ValueError:
            raise Refusal("the form is none", 400) from None
        form = dict(pairs)
        if len(form) != len(pairs) or form.get("grant_type") != tokens.APIKEY_GRANT:
            raise Refusal("the grant type is not supported", 400)
        if not tokens.same(form.get("apikey", ""), qpu.key.reveal()):
            raise Refusal("Provided API key could not be found.", 400)
        now_s = self._server.clock()
        token = {
            "access_token": tokens.issue(qpu.key, now_s),
            "refresh_token": "not_supported",
            "token_type": "Bearer",
            "expires_in": tokens.LIFETIME_S,
            "expiration": int(now_s) + tokens.LIFETIME_S,
            "scope": "ibm openid",
        }
        self._answer(200, {"content-type": "application/json"}, json.dumps(token).encode())

    def _presigner(self, qpu: Qpu) -> Callable[[str, str, int], str]:
        bucket = _bucket(qpu)

        def url_of(method: str, name: str, life_s: int) -> str:
            return sigv4.presigned_url(bucket, method, bucket.prefix + name, life_s, self._server.clock())

        return url_of

    def _ask(self, qpu: Qpu, place: int, passage: Passage, method: str, body: bytes, made: str) -> None:
        """Ask the service with the site's token, once more with a new one where it refuses that."""
        real = self._server.real_tokens[place]
        headers = {name: value for name, value in self._headers.items() if name in _REQUEST_HEADERS}
        headers |= {"Service-CRN": qpu.crn, "Accept-Encoding": "identity"}
        target = urlsplit(qpu.endpoint).path.rstrip("/") + passage.target
        token = real.get()
        for is_last in (False, True):
            headers["Authorization"] = f"Bearer {token.reveal()}"
            with self._server.upstream.ask(method, qpu.endpoint, target, headers, body or None) as answer:
                if answer.status == 401 and not is_last:
                    answer.read(_MAX_ERROR_BYTES)
                    token = real.get(refused=token)
                    continue
                self._relay(answer, qpu, (*qpu.secrets, *real.secrets), place, passage, made)
                return

    def _pass_to_s3(self, qpu: Qpu, passage: Passage, method: str) -> None:
        """Ask S3 with the site's signature in the place of the job's."""
        bucket = _bucket(qpu)
        headers = {name: value for name, value in self._headers.items() if name in _S3_REQUEST_HEADERS}
        payload = sigv4.UNSIGNED
        pieces: Iterator[bytes] | None = None
        unsigned = {"Accept-Encoding": "identity"}
        if passage.body is Body.OBJECT:
            length = self._headers.get("content-length")
            payload = self._headers.get("x-amz-content-sha256", sigv4.UNSIGNED)
            if length is None:
                raise Refusal("an object's length has to be known", 411)
            if payload not in _PAYLOADS and not (len(payload) == 64 and set(payload) <= set("0123456789abcdef")):
                raise Refusal("this way of signing a body is not supported", 501)
            unsigned["Content-Length"] = length
            pieces = self._pieces()
        elif self._body(0):
            raise Refusal("this request has no body")
        target = sigv4.object_target(bucket.endpoint, bucket.name, bucket.prefix + passage.name)
        signed = sigv4.signed_headers(bucket, method, target, headers, payload, self._server.clock())
        with self._server.upstream.ask(method, bucket.endpoint, target, {**signed, **unsigned}, pieces) as answer:
            self._relay(answer, qpu, qpu.secrets, 0, passage, "")

    def _relay(
        self,
        answer: http.client.HTTPResponse,
        qpu: Qpu,
        secrets: tuple[Secret, ...],
        place: int,
        passage: Passage,
        made: str,
    ) -> None:
        """Hand a service's answer on: what has to be read as a whole, else piece by piece."""
        if 300 <= answer.status < 400 and answer.status != 304:
            self._server.failed(qpu, f"{passage.call}: redirected with status {answer.status}, not followed")
            answer.close()
            raise Refusal("the service redirects, and the credential broker follows no redirect", 502)
        is_good = 200 <= answer.status < 300
        masker = Masker(secrets)
        headers = _fit_headers(answer, masker)
        if is_good and (passage.makes_job or passage.keeps):
            bound = _MAX_LIST_BYTES if passage.keeps else _MAX_MADE_BYTES
            text = answer.read(bound + 1)
            if len(text) > bound:
                raise Refusal("the service's answer is too long", 502)
            if passage.keeps:
                text = rules.only_own(text, passage, qpu, self._server.own_jobs.of(place))
            elif (job := made or rules.job_of(text)) and not self._server.own_jobs.add(place, job):
                self._server.failed(qpu, "the disk did not take a job's id: a broker started anew will not know it")
            self._answer(answer.status, headers, masker.feed(text) + masker.rest())
            return
        length = answer.getheader("content-length")
        if length is not None and length.isascii() and length.isdecimal() and not answer.chunked:
            headers["content-length"] = length
        self._send(_head(answer.status, headers))
        while piece := answer.read1(_CHUNK_BYTES):
            if fit := masker.feed(piece):
                self._send(h11.Data(data=fit))
        if rest := masker.rest():
            self._send(h11.Data(data=rest))
        try:
            self._send(h11.EndOfMessage())
        except h11.LocalProtocolError:  # the service ended before its length: the job is to see that too
            raise ClientGoneError from None

    # --- the answer -------------------------------------------------------------------------------------

    def _send(self, event: h11.Event) -> None:
        data = self._http.send(event)
        if data:
            try:
                self._socket.sendall(data)
            except OSError as error:
                raise ClientGoneError from error

    def _answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """Send a whole answer, in one piece."""
        if status == 204:
            body = b""
        with_length = dict(headers) if status == 204 else {**headers, "content-length": str(len(body))}
        parts = [self._http.send(_head(status, with_length))]
        if body:
            parts.append(self._http.send(h11.Data(data=body)))
        parts.append(self._http.send(h11.EndOfMessage()))
        try:
            self._socket.sendall(b"".join(part for part in parts if part))
        except OSError as error:
            raise ClientGoneError from error

    def _refuse(self, qpu: Qpu | None, method: str, target: str, refusal: Refusal) -> None:
        self._server.refused(qpu, method, target.partition("?")[0], refusal)
        self._end_with(refusal.status, refusal.message)

    def _fail(self, qpu: Qpu | None, status: int, reason: str) -> None:
        if qpu is not None:
            self._server.failed(qpu, reason)
        self._end_with(status, reason)

    def _end_with(self, status: int, message: str) -> None:
        """Answer with an error, in the service's own form, and end the connection: a body may be under way still."""
        if self._http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            raise ClientGoneError  # half an answer is out: its end must not look whole
        body = {
            "errors": [{"message": f"credential broker: {message}", "more_info": _MORE_INFO}],
            "status_code": status,
            "title": _REASONS.get(status, "Refused"),
            "trace": uuid.uuid4().hex,
            "errorCode": "BROKER",
            "errorMessage": f"credential broker: {message}",
        }
        headers = {"content-type": "application/json", "connection": "close"}
        self._answer(status, headers, json.dumps(body).encode())
        _linger(self._socket)


def _bucket(qpu: Qpu) -> Bucket:
    if qpu.bucket is None:
        raise Refusal("this QPU has no S3")
    return qpu.bucket


def _fit_headers(answer: http.client.HTTPResponse, masker: Masker) -> dict[str, str]:
    """Return those headers of an answer that go on; h11 refuses values that would begin another line."""
    headers = {}
    for name, value in answer.getheaders():
        lower = name.lower()
        if (
            (lower in _ANSWER_HEADERS or lower.startswith("x-amz-checksum-"))
            and value.isascii()
            and value.isprintable()
        ):
            masked = masker.feed(value.encode()) + masker.rest()
            headers[lower] = masked.decode()
    return headers


def _head(status: int, headers: Mapping[str, str]) -> h11.Response:
    return h11.Response(status_code=status, headers=list(headers.items()), reason=_REASONS.get(status, ""))


def _say_and_close(connection: socket.socket, message: str) -> None:
    """Refuse a connection before a byte of it is read."""
    body = json.dumps({"errors": [{"message": f"credential broker: {message}", "more_info": _MORE_INFO}]}).encode()
    head = f"HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    connection.settimeout(_LINGER_S)
    connection.sendall(f"{head}connection: close\r\n\r\n".encode() + body)
    _linger(connection)


def _linger(connection: socket.socket) -> None:
    """Wait a little for the other end to have read: closing with something unread resets, and the answer is lost."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(_LINGER_S)
        ends_s = time.monotonic() + _LINGER_S
        while time.monotonic() < ends_s and connection.recv(_CHUNK_BYTES):
            pass
