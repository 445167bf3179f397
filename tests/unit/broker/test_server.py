"""A broker's server: bytes on a socket, from clients that mean no good and services that misbehave."""

import http.client
import json
import os
import socket
import threading
import time
from contextlib import closing, contextmanager

import pytest

from qrmi_slurm.broker import peer, server, tokens
from qrmi_slurm.broker.own_jobs import OwnJobs
from qrmi_slurm.broker.rules import Refusal
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
    """A service that answers each path as a test says, and keeps what it was asked."""

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
                    content = json.dumps(answer).encode()
                else:
                    content = self.answers.get((line[0], line[1].partition("?")[0]), b'{"ok": 1}')
                if callable(content):
                    content = content(headers)
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
    def __init__(self, service, folder, uid=None):
        qpu = Qpu("q", Secret(KEY), SESSION, f"{service.url}/api/v1", service.url, Secret(REAL), "crn:own")
        self.path = folder / "broker"
        self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        self.listener = server.listen(0)
        self.port = self.listener.getsockname()[1]
        self.log = HookLog("broker", 12, echo=False)
        spec = Spec(12, os.getuid() if uid is None else uid, 0, time.time() + 60, (qpu, None), {})
        self.server = Server(spec, self.listener, Upstream({}, read_timeout_s=2), OwnJobs(self.fd), self.log)
        self.thread = threading.Thread(target=self._serve)
        self.ended = None
        self.thread.start()
        self.token = tokens.issue(Secret(KEY), time.time())

    def _serve(self):
        self.ended = self.server.serve()

    def raw(self, *parts):
        """Send bytes, and return all that comes back."""
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
        assert self.ended == "its job has given back its QPUs"
        self.listener.close()
        self.server.upstream.close()
        os.close(self.fd)


@pytest.fixture
def service():
    made = Service()
    yield made
    made.stop()


@pytest.fixture
def broker(service, tmp_path, syslog_lines, monkeypatch):
    monkeypatch.setattr(server, "_LOOK_S", 0.05)
    made = Broker(service, tmp_path)
    yield made
    made.stop()
    assert not [line for _, line in syslog_lines if any(secret in line for secret in (KEY, REAL, TOKEN))]
    assert not [line for _, line in syslog_lines if "surprise" in line], syslog_lines


def requests_of(service):
    return [asked[:2] for asked in service.asked if asked[1] != "/identity/token"]


def test_a_request_gets_the_sites_credential_and_nothing_of_the_jobs(broker, service):
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
    """A key may have been rotated, or a token be taken back."""
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
def test_without_a_token_of_this_jobs_nothing_is_asked(broker, service, authorization):
    assert broker.ask("GET", "/backends/q/status", Authorization=authorization)[0] == 401
    assert service.asked == []


def test_a_token_ends_and_cannot_be_made_up():
    key, now_s = Secret(KEY), 1000.0
    token = tokens.issue(key, now_s)
    assert tokens.is_good(token, key, now_s + 3599)
    assert not tokens.is_good(token, key, now_s + 3601)
    assert not tokens.is_good(token, Secret("another"), now_s)
    mark, ends, proof = token.split(".")
    for forged in (
        f"{mark}.{int(ends) + 1}.{proof}",
        f"{mark}.{ends}.",
        f"{mark}..{proof}",
        f"{mark}.-1.{proof}",
        "\xff",
    ):
        assert not tokens.is_good(forged, key, now_s)


def test_another_users_connection_is_refused_unread(service, tmp_path, syslog_lines, monkeypatch):
    monkeypatch.setattr(server, "_LOOK_S", 0.05)
    broker = Broker(service, tmp_path, uid=os.getuid() + 1)
    try:
        assert broker.raw("").startswith(b"HTTP/1.1 403 ")
        assert broker.ask("GET", "/backends/q/status")[0] == 403
    finally:
        broker.stop()
    assert service.asked == []
    assert any(f"connection of uid {os.getuid()}" in line for _, line in syslog_lines)


@pytest.mark.parametrize("look", [peer.by_netlink, peer.by_proc])
def test_the_kernel_tells_whose_a_connection_is(look):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        connection, address = listener.accept()
        with connection:
            assert look(address, connection.getsockname()) == os.getuid()
            client.close()
            assert look(address, connection.getsockname()) is None, "nobody's any more: not uid 0, as the table says"
            assert peer.uid_of(("127.0.0.1", 1), connection.getsockname()) is None


def test_a_kernel_that_does_not_answer_netlink_is_asked_otherwise(monkeypatch):
    """It says ENOENT where it has no tcp_diag, as for a socket that there is not."""
    monkeypatch.setattr(peer, "_SOCK_DIAG_BY_FAMILY", 4711)
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
        connection, address = listener.accept()
        with connection:
            with pytest.raises(OSError):
                peer.by_netlink(address, connection.getsockname())
            assert peer.uid_of(address, connection.getsockname()) == os.getuid()


# --- requests that mean no good ---------------------------------------------------------------------------------

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


def test_a_page_in_a_browser_of_the_users_cannot_ask(broker, service):
    """It comes by a name that was made to lead here."""
    head = broker.head(GET).replace("127.0.0.1", "evil.example", 1)
    assert status_of(broker.raw(head)) == 403
    assert service.asked == []


def test_what_stands_behind_a_refused_request_is_no_request(broker, service):
    """The connection ends with the refusal: nothing of a body is taken for a request."""
    inner = broker.head(GET)
    head = broker.head(f"POST {API}/sessions HTTP/1.1", f"Content-Length: {len(inner)}")
    answer = broker.raw(head, inner)
    assert answer.count(b"HTTP/1.1 ") == 1 and status_of(answer) == 403
    assert service.asked == []


def test_a_chunked_body_is_read_as_what_it_is_and_sent_with_its_length(broker, service):
    service.answers["POST", "/api/v1/jobs"] = b'{"id": "made"}'
    chunks = "".join(f"{len(part):x}\r\n{part}\r\n" for part in (JOB[:10], JOB[10:])) + "0\r\n\r\n"
    answer = broker.raw(broker.head(f"POST {API}/jobs HTTP/1.1", "Transfer-Encoding: chunked"), chunks)
    assert status_of(answer) == 200
    _, _, sent, body = service.asked[-1]
    assert (sent["content-length"], body.decode()) == (str(len(JOB)), JOB)
    assert "transfer-encoding" not in sent


def test_requests_one_behind_the_other_are_answered_in_turn(broker, service):
    head = broker.head(GET)
    answer = broker.raw(head, head, broker.head(f"GET {API}/backends/r/status HTTP/1.1"), head)
    assert [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]] == [200, 200, 403]
    assert len(requests_of(service)) == 2


@pytest.mark.parametrize("end", [10, 60, 200])
def test_a_client_that_stops_half_way_harms_nobody(broker, service, end):
    broker.raw(broker.head(f"POST {API}/jobs HTTP/1.1", f"Content-Length: {len(JOB)}")[:end])
    assert requests_of(service) == []
    assert broker.ask("GET", "/backends/q/status")[0] == 200


def test_a_body_that_is_too_long_is_refused(broker, service, monkeypatch):
    monkeypatch.setattr(server, "MAX_JOB_BYTES", 100)
    assert broker.ask("POST", "/jobs", JOB + " " * 100)[0] == 413
    chunked = iter([JOB.encode(), b" " * 100])
    assert broker.ask("POST", "/jobs", chunked)[0] == 413
    assert requests_of(service) == []


def test_a_client_that_waits_to_be_asked_for_its_body_is_asked(broker, service):
    service.answers["POST", "/api/v1/jobs"] = b'{"id": "made"}'
    with socket.create_connection(("127.0.0.1", broker.port), timeout=10) as connection:
        head = broker.head(f"POST {API}/jobs HTTP/1.1", f"Content-Length: {len(JOB)}", "Expect: 100-continue")
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        connection.sendall(JOB.encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")


# --- jobs ----------------------------------------------------------------------------------------------------


def test_a_job_that_was_made_here_may_be_asked_for_and_no_other(broker, service):
    service.answers["POST", "/api/v1/jobs"] = b'{"id": "made-1"}'
    assert broker.ask("GET", "/jobs/made-1")[0] == 403
    assert broker.ask("POST", "/jobs", JOB)[0] == 200
    assert broker.ask("GET", "/jobs/made-1")[0] == 200
    assert broker.ask("GET", "/jobs/made-2")[0] == 403
    assert b"0 made-1" in broker.path.read_bytes()


def test_the_job_of_a_failed_request_is_nobodys(broker, service):
    service.answers["POST", "/api/v1/jobs"] = b'HTTP/1.1 400 Bad Request\r\ncontent-length: 15\r\n\r\n{"id":"made-1"}'
    assert broker.ask("POST", "/jobs", JOB)[0] == 400
    assert broker.ask("GET", "/jobs/made-1")[0] == 403


def test_a_broker_that_is_started_again_knows_its_jobs(tmp_path):
    """Also where a full disk or a kill left half a line."""
    path = tmp_path / "broker"
    path.write_bytes(b"\n0 a\n\n1 b\n\n0 hal\n0 c\n\xff\n")
    fd = os.open(path, os.O_RDWR | os.O_APPEND)
    jobs = OwnJobs(fd)
    assert (set(jobs.of(0)), set(jobs.of(1)), set(jobs.of(2))) == ({"a", "c", "hal"}, {"b"}, set())
    assert jobs.add(2, "d")
    assert set(OwnJobs(fd).of(2)) == {"d"}
    assert not jobs.is_folder_gone()
    path.unlink()
    assert jobs.is_folder_gone()
    os.close(fd)


def test_a_full_disk_keeps_no_job_from_its_results(broker, service, monkeypatch, syslog_lines):
    service.answers["POST", "/api/v1/jobs"] = b'{"id": "made-1"}'
    monkeypatch.setattr(broker.server.own_jobs, "_fd", os.open("/dev/full", os.O_WRONLY))
    assert broker.ask("POST", "/jobs", JOB)[0] == 200
    assert broker.ask("GET", "/jobs/made-1")[0] == 200
    assert any("the disk did not take" in line for _, line in syslog_lines)
    os.close(broker.server.own_jobs._fd)
    monkeypatch.undo()


# --- services that misbehave ---------------------------------------------------------------------------------

STATUS = ("GET", "/api/v1/backends/q/status")


def test_a_service_that_repeats_its_headers_tells_no_secret(broker, service):
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
def test_what_a_service_says_comes_back_or_502(broker, service, answer, status):
    service.answers[STATUS] = answer
    assert broker.ask("GET", "/backends/q/status")[0] == status


def test_an_answer_that_ends_too_early_does_not_look_whole(broker, service):
    service.answers[STATUS] = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf"
    with pytest.raises(http.client.IncompleteRead):
        broker.ask("GET", "/backends/q/status")


def test_a_large_answer_is_streamed(broker, service):
    """It never is in memory as a whole, and comes back byte for byte."""
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


def test_a_login_that_fails_says_so_without_the_key(broker, service, syslog_lines):
    broker.server.real_tokens[0]._qpu = Qpu(
        "q", Secret(KEY), SESSION, service.url, "http://127.0.0.1:1", Secret(REAL), "crn"
    )
    status, text, _ = broker.ask("GET", "/backends/q/status")
    assert (status, b"cannot log in" in text) == (502, True)
    assert any("not-answered" in line and "IAM cannot be reached" in line for _, line in syslog_lines)


def test_the_log_does_not_fill_with_refusals(broker, syslog_lines):
    for _ in range(120):
        broker.server.refused(None, "GET", "/x", Refusal("no"))
    refused = [line for _, line in syslog_lines if "refused" in line]
    assert len(refused) == 51
    assert "further refusals are not logged" in refused[-1]


def test_it_ends_when_the_jobs_time_is_over_and_nobody_asks(service, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "_LOOK_S", 0.02)
    broker = Broker(service, tmp_path)
    broker.server._used_s = time.time() - 3601
    assert broker.thread.is_alive()
    broker.server.clock = lambda: time.time() + 7200
    broker.thread.join(5)
    assert broker.ended == "its job's time is over, and nobody asks any more"
    broker.listener.close()
    os.close(broker.fd)


@contextmanager
def proxy_seen():
    listener = socket.create_server(("127.0.0.1", 0))
    seen = []

    def serve():
        connection, _ = listener.accept()
        with connection:
            seen.append(connection.recv(65536).decode())
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"http://user:pass%40word@127.0.0.1:{listener.getsockname()[1]}", seen
    thread.join()
    listener.close()


def test_the_sites_proxy_is_used():
    with proxy_seen() as (url, seen):
        upstream = Upstream({"http_proxy": url})
        with upstream.ask("GET", "http://api.example:81", "/x", {}, None) as answer:
            assert answer.read() == b"{}"
        upstream.close()
    assert seen[0].startswith("GET http://api.example:81/x HTTP/1.1\r\n")
    assert "Proxy-Authorization: Basic dXNlcjpwYXNzQHdvcmQ=" in seen[0]
