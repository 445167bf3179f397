"""A broker's server: bytes on a socket, from hostile clients and misbehaving services."""

import contextlib
import http.client
import json
import os
import socket
import threading
import time
from contextlib import closing

import pytest

from qrmi_slurm.broker import api, job_tokens, listener
from qrmi_slurm.broker.own_jobs import OwnJobs
from qrmi_slurm.broker.peer import Peers
from qrmi_slurm.broker.server import Server
from qrmi_slurm.broker.spec import Qpu, Spec
from qrmi_slurm.broker.upstream import Upstream
from qrmi_slurm.log import HookLog
from qrmi_slurm.secret import Secret

KEY, REAL, TOKEN = "key-of-the-job", "real-api-key", "token-of-the-real-key"
SESSION = "own-session"
API = "/qrmi-slurm-broker/0/api"
JOB = json.dumps({"backend": "q", "session_id": SESSION, "params": {}, "program_id": "sampler"})


class Service:
    """A service that answers each path as a test tells it to, and keeps what it was asked."""

    def __init__(self):
        self.asked = []
        self.answers = {}
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self):
        while True:
            connection, _ = self.listener.accept()
            with connection, connection.makefile("rb") as stream:
                line = stream.readline().decode().split()
                if not line:
                    return
                headers = {}
                while header := stream.readline().decode().strip():
                    name, _, value = header.partition(":")
                    headers[name.lower()] = value.strip()
                body = stream.read(int(headers.get("content-length", 0)))
                self.asked.append((line[0], line[1], headers, body))
                if line[1] == "/identity/token":
                    answer = {"access_token": f"{TOKEN}-{self.logins}", "expires_in": 3600}
                    content = self.answers.get((line[0], line[1]), json.dumps(answer).encode())
                else:
                    content = self.answers.get((line[0], line[1].partition("?")[0]), b'{"ok": 1}')
                if callable(content):
                    content = content(headers)
                if isinstance(content, list):
                    with contextlib.suppress(OSError):  # the broker has had enough
                        for piece in content:
                            connection.sendall(piece)
                            time.sleep(0.05)
                    continue
                if not content.startswith(b"HTTP/"):
                    length = f"content-length: {len(content)}".encode()
                    content = b"HTTP/1.1 200 OK\r\nconnection: close\r\n" + length + b"\r\n\r\n" + content
                connection.sendall(content)

    @property
    def logins(self):
        return sum(asked[1] == "/identity/token" for asked in self.asked)

    def stop(self):
        socket.create_connection(self.listener.getsockname()).close()
        self.thread.join()
        self.listener.close()


class Broker:
    def __init__(self, service, folder, *, uid=None, iam_url=None, clock=time.time):
        qpu = Qpu("q", Secret(KEY), SESSION, f"{service.url}/api/v1", iam_url or service.url, Secret(REAL), "crn:own")
        self.path = folder / "broker"
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        self.own_jobs = OwnJobs(self.fd)
        self.upstream = Upstream({}, read_timeout_s=2)
        self.listener = listener.listen(0)
        self.port = self.listener.getsockname()[1]
        spec = Spec(12, os.getuid() if uid is None else uid, 0, time.time() + 60, (qpu, None), {})
        log = HookLog("broker", 12, echo=False)
        self.server = Server(spec, self.listener, self.upstream, self.own_jobs, log, clock)
        self.thread = threading.Thread(target=self._serve)
        self.ended = None
        self.thread.start()
        self.token = job_tokens.issue(Secret(KEY), clock())

    def _serve(self):
        self.ended = self.server.serve()

    def raw(self, *parts):
        """Send bytes, and return everything that comes back."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            for part in parts:
                connection.sendall(part if isinstance(part, bytes) else part.encode("latin-1"))
            connection.shutdown(socket.SHUT_WR)
            got = b""
            while chunk := connection.recv(65536):
                got += chunk
        return got

    def ask(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        sent = {"Authorization": f"Bearer {self.token}", **headers}
        sent = {name: value for name, value in sent.items() if value is not None}
        with closing(connection):
            connection.request(method, API + path, body, sent)
            with connection.getresponse() as answer:
                return answer.status, answer.read(), dict(answer.getheaders())

    def head(self, line, *headers, authorized=True):
        lines = [line, f"Host: 127.0.0.1:{self.port}", *headers]
        lines += [f"Authorization: Bearer {self.token}"] if authorized else []
        return "\r\n".join(lines) + "\r\n\r\n"

    def stop(self):
        if self.path.exists():
            self.path.unlink()
        self.thread.join(10)
        assert self.ended == "its job has released its QPUs"
        self.listener.close()
        self.upstream.close()
        os.close(self.fd)


@pytest.fixture
def service():
    made = Service()
    yield made
    made.stop()


@pytest.fixture
def broker(service, tmp_path, syslog_lines, monkeypatch):
    monkeypatch.setattr(listener, "_CHECK_INTERVAL_S", 0.05)
    made = Broker(service, tmp_path)
    yield made
    made.stop()
    assert not [line for _, line in syslog_lines if any(secret in line for secret in (KEY, REAL, TOKEN))]
    assert not [line for _, line in syslog_lines if "surprise" in line], syslog_lines


def requests_of(service):
    return [asked[:2] for asked in service.asked if asked[1] != "/identity/token"]


def test_a_request_carries_the_sites_credential_and_none_of_the_jobs(broker, service):
    status, text, _ = broker.ask("GET", "/backends/q/status", Cookie="a=b", **{"X-Forwarded-For": "1.2.3.4"})
    assert (status, json.loads(text)) == (200, {"ok": 1})
    (_, target, sent, _) = service.asked[-1]
    assert target == "/api/v1/backends/q/status"
    assert (sent["authorization"], sent["service-crn"]) == (f"Bearer {TOKEN}-1", "crn:own")
    assert not {"cookie", "x-forwarded-for"} & sent.keys()
    assert KEY not in str(service.asked) and broker.token not in str(service.asked)


def test_one_login_serves_many_requests(broker, service):
    for _ in range(3):
        broker.ask("GET", "/backends/q/status")
    assert service.logins == 1


def test_a_token_that_the_service_refuses_is_renewed_once(broker, service):
    """A key may have been rotated, or a token revoked."""
    refuse = lambda headers: (  # noqa: E731
        b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\n\r\n{}"
        if headers["authorization"].endswith("-1")
        else b"{}"
    )
    service.answers["GET", "/api/v1/backends/q/status"] = refuse
    assert broker.ask("GET", "/backends/q/status")[0] == 200
    service.answers["GET", "/api/v1/backends/q/status"] = b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 2\r\n\r\n{}"
    assert broker.ask("GET", "/backends/q/status")[0] == 401
    assert service.logins == 3


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer x", f"Bearer {KEY}", f"Basic {KEY}"])
def test_without_this_jobs_token_the_service_is_not_asked(broker, service, authorization):
    assert broker.ask("GET", "/backends/q/status", Authorization=authorization)[0] == 401
    assert service.asked == []


def test_another_users_connection_is_refused_before_it_is_read(service, tmp_path, syslog_lines, monkeypatch):
    monkeypatch.setattr(listener, "_CHECK_INTERVAL_S", 0.05)
    broker = Broker(service, tmp_path, uid=os.getuid() + 1)
    try:
        assert broker.raw("").startswith(b"HTTP/1.1 403 ")
        assert broker.ask("GET", "/backends/q/status")[0] == 403
    finally:
        broker.stop()
    assert service.asked == []
    assert any(f"connection from uid {os.getuid()}" in line for _, line in syslog_lines)


def test_strangers_do_not_keep_the_jobs_refusals_out_of_the_log(broker, syslog_lines, monkeypatch):
    """Another user can connect as often as they like, and has lines of their own."""
    monkeypatch.setattr(Peers, "uid_of", lambda _self, _client: os.getuid() + 1)
    for _ in range(60):
        with contextlib.suppress(ConnectionError):  # only the first few are told why
            broker.raw("")
    monkeypatch.setattr(Peers, "uid_of", lambda _self, _client: os.getuid())
    assert broker.ask("GET", "/usage")[0] == 403
    lines = [line for _, line in syslog_lines]
    assert sum("connection from uid" in line for line in lines) == 50
    assert sum("/usage" in line for line in lines) == 1


# --- hostile requests ---------------------------------------------------------------------------------

GET = f"GET {API}/backends/q/status HTTP/1.1"


def status_of(answer):
    return int(answer.split()[1]) if answer else 0


@pytest.mark.parametrize(
    ("line", "headers", "status"),
    [
        (f"GET http://127.0.0.1{API}/backends/q/status HTTP/1.1", [], 400),
        ("CONNECT api.example:443 HTTP/1.1", [], 400),
        ("OPTIONS * HTTP/1.1", [], 400),
        (f"GET {API}/backends/q/../r/status HTTP/1.1", [], 403),
        (f"GET {API}/backends/q%2f..%2fr/status HTTP/1.1", [], 403),
        (f"GET /{API}/backends/q/status HTTP/1.1", [], 403),
        (f"GET {API}/backends/q/status HTTP/3", [], 400),
        (f"GET {API}/backends/q/status\tHTTP/1.1", [], 400),
        (GET, ["Content-Length: 5", "Transfer-Encoding: chunked"], 400),
        (GET, ["Content-Length: 5", "Content-Length: 6"], 400),
        (GET, ["Content-Length: 5, 5"], 400),
        (GET, ["Content-Length: +5"], 400),
        (GET, ["Content-Length: -5"], 400),
        (GET, ["Transfer-Encoding: gzip, chunked"], 501),
        (GET, ["Transfer-Encoding : chunked"], 400),
        (GET, ["Authorization: Bearer x"], 400),
        (GET, ["Host: evil.example"], 400),
        (GET, ["X: a\x00b"], 400),
        (GET, ["X Y: a"], 400),
        (GET, ["X: " + "a" * 300_000], 431),
    ],
)
def test_a_request_that_two_readers_could_read_differently_goes_nowhere(broker, service, line, headers, status):
    assert status_of(broker.raw(broker.head(line, *headers))) == status
    assert service.asked == []


def test_a_refusal_without_a_body_is_no_surprise(broker, service, syslog_lines):
    """A HEAD request's answer has none; a surprise would be logged with each of them, however many there are."""
    for number in range(60):
        answer = broker.raw(broker.head(f"HEAD {API}/{number} HTTP/1.1"))
        assert (status_of(answer), answer.partition(b"\r\n\r\n")[2]) == (403, b"")
    assert service.asked == []
    assert len(syslog_lines) <= 51


def test_a_web_page_in_the_users_browser_cannot_ask(broker, service):
    """Its Host header has the name that an attacker made lead here (DNS rebinding)."""
    head = broker.head(GET).replace("127.0.0.1", "evil.example", 1)
    assert status_of(broker.raw(head)) == 403
    assert service.asked == []


def test_the_body_of_a_refused_request_is_not_taken_for_a_request(broker, service):
    """The connection ends with the refusal."""
    inner = broker.head(GET)
    head = broker.head(f"POST {API}/sessions HTTP/1.1", f"Content-Length: {len(inner)}")
    answer = broker.raw(head, inner)
    assert answer.count(b"HTTP/1.1 ") == 1 and status_of(answer) == 403
    assert service.asked == []


def test_a_chunked_body_is_decoded_and_sent_with_its_length(broker, service):
    service.answers["POST", "/api/v1/jobs"] = b'{"id": "made"}'
    chunks = "".join(f"{len(part):x}\r\n{part}\r\n" for part in (JOB[:10], JOB[10:])) + "0\r\n\r\n"
    answer = broker.raw(broker.head(f"POST {API}/jobs HTTP/1.1", "Transfer-Encoding: chunked"), chunks)
    assert status_of(answer) == 200
    _, _, sent, body = service.asked[-1]
    assert (sent["content-length"], body.decode()) == (str(len(JOB)), JOB)
    assert "transfer-encoding" not in sent


def test_pipelined_requests_are_answered_in_turn(broker, service):
    head = broker.head(GET)
    answer = broker.raw(head, head, broker.head(f"GET {API}/backends/r/status HTTP/1.1"), head)
    assert [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]] == [200, 200, 403]
    assert len(requests_of(service)) == 2


@pytest.mark.parametrize("end", [10, 60, 200])
def test_a_client_that_stops_half_way_harms_no_other(broker, service, end):
    broker.raw(broker.head(f"POST {API}/jobs HTTP/1.1", f"Content-Length: {len(JOB)}")[:end])
    assert requests_of(service) == []
    assert broker.ask("GET", "/backends/q/status")[0] == 200


def test_a_body_that_is_too_large_is_refused(broker, service, monkeypatch):
    monkeypatch.setattr(api, "MAX_JOB_BYTES", 100)
    assert broker.ask("POST", "/jobs", JOB + " " * 100)[0] == 413
    chunked = iter([JOB.encode(), b" " * 100])
    assert broker.ask("POST", "/jobs", chunked)[0] == 413
    assert requests_of(service) == []


def test_a_client_that_expects_100_continue_gets_it(broker, service):
    service.answers["POST", "/api/v1/jobs"] = b'{"id": "made"}'
    with socket.create_connection(("127.0.0.1", broker.port), timeout=10) as connection:
        head = broker.head(f"POST {API}/jobs HTTP/1.1", f"Content-Length: {len(JOB)}", "Expect: 100-continue")
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        connection.sendall(JOB.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")


# --- jobs ----------------------------------------------------------------------------------------------------


def test_only_a_job_that_was_submitted_here_may_be_asked_for(broker, service):
    service.answers["POST", "/api/v1/jobs"] = b'{"id": "made-1"}'
    assert broker.ask("GET", "/jobs/made-1")[0] == 403
    assert broker.ask("POST", "/jobs", JOB)[0] == 200
    assert broker.ask("GET", "/jobs/made-1")[0] == 200
    assert broker.ask("GET", "/jobs/made-2")[0] == 403
    assert b"0 made-1" in broker.path.read_bytes()


def test_a_job_whose_submission_failed_may_not_be_asked_for(broker, service):
    service.answers["POST", "/api/v1/jobs"] = b'HTTP/1.1 400 Bad Request\r\ncontent-length: 15\r\n\r\n{"id":"made-1"}'
    assert broker.ask("POST", "/jobs", JOB)[0] == 400
    assert broker.ask("GET", "/jobs/made-1")[0] == 403


def test_a_full_disk_does_not_keep_a_job_from_its_results(broker, service, monkeypatch, syslog_lines):
    service.answers["POST", "/api/v1/jobs"] = b'{"id": "made-1"}'
    monkeypatch.setattr(broker.own_jobs, "_fd", os.open("/dev/full", os.O_WRONLY))
    assert broker.ask("POST", "/jobs", JOB)[0] == 200
    assert broker.ask("GET", "/jobs/made-1")[0] == 200
    assert any("cannot be written to disk" in line for _, line in syslog_lines)
    os.close(broker.own_jobs._fd)
    monkeypatch.undo()


# --- misbehaving services ---------------------------------------------------------------------------------

STATUS = ("GET", "/api/v1/backends/q/status")


def test_a_secret_that_a_service_repeats_is_masked(broker, service):
    """In an error, in a header, in what it streams."""
    said = f"Bearer {TOKEN}-1 and {REAL}".encode()
    service.answers[STATUS] = (
        b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/" + TOKEN.encode() + b"-1\r\nset-cookie: a=b\r\n"
        b"x-echo: " + said + b"\r\ncontent-length: %d\r\n\r\n" % len(said) + said
    )
    status, text, headers = broker.ask("GET", "/backends/q/status")
    assert status == 400
    assert TOKEN not in text.decode() + str(headers) and REAL not in text.decode() + str(headers)
    assert text.decode() == f"Bearer {'*' * (len(TOKEN) + 2)} and {'*' * len(REAL)}"
    assert not {"set-cookie", "x-echo"} & {name.lower() for name in headers}


def test_a_redirect_is_not_followed(broker, service):
    service.answers[STATUS] = f"HTTP/1.1 302 Found\r\nlocation: {service.url}/x\r\ncontent-length: 0\r\n\r\n".encode()
    assert broker.ask("GET", "/backends/q/status")[0] == 502
    assert requests_of(service) == [STATUS]


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"HTTP/1.1 garbage\r\n\r\n", 502),
        (b"HTTP/1.1 200 OK\r\nno header\r\n\r\n", 200),
        (b"HTTP/", 502),
        (b"HTTP/1.1 503 Busy\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n", 503),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204),
    ],
)
def test_a_services_answer_comes_back_or_502(broker, service, answer, status):
    service.answers[STATUS] = answer
    assert broker.ask("GET", "/backends/q/status")[0] == status


def test_a_truncated_answer_does_not_look_complete(broker, service):
    service.answers[STATUS] = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf"
    with pytest.raises(http.client.IncompleteRead):
        broker.ask("GET", "/backends/q/status")


def test_a_large_answer_is_streamed(broker, service):
    """It comes back byte for byte."""
    content = os.urandom(1024) * 5000
    service.answers[STATUS] = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(content) + content
    assert broker.ask("GET", "/backends/q/status")[1] == content
    service.answers[STATUS] = (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"5\r\nhello\r\n" * 1000 + b"0\r\n\r\n"
    )
    assert broker.ask("GET", "/backends/q/status")[1] == b"hello" * 1000


def test_a_service_that_hangs_is_504(broker, service):
    service.answers[STATUS] = lambda _: time.sleep(3) or b""
    assert broker.ask("GET", "/backends/q/status")[0] == 504


def test_a_failed_login_is_reported_without_the_key(service, tmp_path, syslog_lines, monkeypatch):
    monkeypatch.setattr(listener, "_CHECK_INTERVAL_S", 0.05)
    broker = Broker(service, tmp_path, iam_url="http://127.0.0.1:1")
    try:
        status, text, _ = broker.ask("GET", "/backends/q/status")
    finally:
        broker.stop()
    assert (status, b"login failed: IAM cannot be reached" in text) == (502, True)
    assert any("not-answered" in line and "IAM cannot be reached" in line for _, line in syslog_lines)
    assert not [line for _, line in syslog_lines if REAL in line] and REAL not in text.decode()


def test_it_ends_when_the_jobs_time_is_over_and_nobody_uses_it(service, tmp_path, monkeypatch):
    monkeypatch.setattr(listener, "_CHECK_INTERVAL_S", 0.02)
    late_s = []
    broker = Broker(service, tmp_path, clock=lambda: time.time() + sum(late_s))
    assert broker.thread.is_alive()
    late_s.append(7200)
    broker.thread.join(5)
    assert broker.ended == "its job's time limit has passed, and it is no longer used"
    broker.listener.close()
    os.close(broker.fd)


# --- a service that sends a byte now and then ------------------------------------------------------------------------

OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"


def drip(text, after=b""):
    """Return an answer that begins at once, and goes on for 20 s."""
    return [after + text[:1]] + [text[at : at + 1] for at in range(1, 400)]


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (("GET", "/api/v1/backends/q/status"), drip(OK + b"x: " + b"y" * 400)),
        (("GET", "/api/v1/backends"), drip(b" " * 400, OK + b"content-length: 400\r\n\r\n")),
        (("POST", "/api/v1/jobs"), drip(b" " * 400, OK + b"\r\n")),
        (("GET", "/api/v1/backends/q/defaults"), drip(b" " * 400, b"HTTP/1.1 401 No\r\ncontent-length: 400\r\n\r\n")),
        (("POST", "/identity/token"), drip(OK + b"x: " + b"y" * 400)),
        (("POST", "/identity/token"), drip(b" " * 400, OK + b"content-length: 400\r\n\r\n")),
    ],
    ids=["head", "list", "new job", "refused token", "login's head", "login's body"],
)
def test_a_request_ends_in_time_however_slowly_its_service_answers(broker, service, call, answer):
    """A byte now and then lets each read go on, and the whole would take longer than anybody waits."""
    service.answers[call] = answer
    method, path = call if "token" not in call[1] else ("GET", "/api/v1/backends/q/status")
    began_s = time.monotonic()
    status, text, _ = broker.ask(method, path.removeprefix("/api/v1"), JOB if method == "POST" else None)
    assert time.monotonic() - began_s < 10
    assert (status, b"it took too long" in text) in ((504, True), (502, True)), text


def test_a_long_answer_may_take_its_time(broker, service):
    """Results of many megabytes take longer than the limit for a wait."""
    service.answers["GET", "/api/v1/backends/q/status"] = [OK + b"content-length: 60\r\n\r\n"] + [b"x"] * 60
    began_s = time.monotonic()
    assert broker.ask("GET", "/backends/q/status")[:2] == (200, b"x" * 60)
    assert time.monotonic() - began_s > 2.5


def test_an_answer_that_is_none_is_refused(broker, service, syslog_lines):
    """HTTP has answers that announce another one; passing them on as the last one would be our fault."""
    service.answers["GET", "/api/v1/backends/q/status"] = b"HTTP/1.1 103 Early\r\n\r\n"
    status, text, _ = broker.ask("GET", "/backends/q/status")
    assert (status, b"no final answer" in text) == (502, True)
    assert not [line for _, line in syslog_lines if "surprise" in line]
