"""The sessions that a broker opens in place of those that have ended: when, how often, and what is on disk before."""

import contextlib
import json
import os
import threading
import time

import pytest

from qrmi_slurm.broker import sessions
from qrmi_slurm.broker.own_jobs import OwnJobs
from qrmi_slurm.broker.refusal import Refusal
from qrmi_slurm.broker.sessions import Sessions
from qrmi_slurm.broker.spec import Qpu, Spec
from qrmi_slurm.broker.upstream import UpstreamError
from qrmi_slurm.log import HookLog
from qrmi_slurm.secret import Secret
from qrmi_slurm.state import renewals

FIRST = "first-session"


class Upstream:
    """A service whose sessions are closed once `ended` is set; it opens others, or does what a test says."""

    def __init__(self):
        self.asked = []
        self.open = {FIRST: True}
        self.fails = None
        self.on_open = lambda: None

    @contextlib.contextmanager
    def ask(self, request):
        path = request.target.removeprefix("/api/v1")
        if path == "/identity/token":
            yield Answer(200, {"access_token": "t", "expires_in": 3600})
            return
        self.asked.append((request.method, path, json.loads(request.body or b"null")))
        if request.method == "POST":
            self.on_open()
            if isinstance(self.fails, Exception):
                raise self.fails
            if self.fails is not None:
                yield Answer(self.fails, {})
                return
            session = f"session-{len(self.open)}"
            self.open[session] = True
            yield Answer(200, {"id": session})
        else:
            session = path.split("/")[2]
            state = "open" if self.open.get(session) else "closed"
            yield Answer(200 if session in self.open else 404, {"state": state})

    def end(self, *names):
        self.open.update(dict.fromkeys(names, False))

    def opened(self):
        return [body for method, _, body in self.asked if method == "POST"]


class Answer:
    def __init__(self, status, document):
        self.status = status
        self.text = json.dumps(document).encode()

    def read_whole(self, _max_bytes):
        return self.text


class Clocks:
    """Both clocks; setting the wall's is no passing of time."""

    def __init__(self):
        self.wall_s = 1_000_000.0
        self.boot_s = 500.0

    def go_on(self, seconds):
        self.wall_s += seconds
        self.boot_s += seconds


@pytest.fixture
def clocks(monkeypatch):
    found = Clocks()
    monkeypatch.setattr(sessions, "boot_clock_s", lambda: found.boot_s)
    return found


class Broker:
    """Its sessions, the service, and its two files; `again` is what a restarted one has."""

    def __init__(self, folder, clocks, **changes):
        self.folder, self.clocks, self.upstream = folder, clocks, Upstream()
        qpu = Qpu("q", Secret("key"), FIRST, "http://s/api/v1", "http://s", Secret("real"), "crn")
        qpu = qpu._replace(session_ends_s=clocks.wall_s + 60, **changes)
        self.spec = Spec(12, 1000, 0, clocks.wall_s + 100_000, (None, qpu), {}, session_margin_s=30)
        self.fds = [os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_APPEND) for name in ("broker", "sessions")]
        self.again()

    def again(self):
        log = HookLog("broker", 12, echo=False)
        clock = lambda: self.clocks.wall_s  # noqa: E731
        self.sessions = Sessions(self.spec, self.upstream, OwnJobs(self.fds[0]), self.fds[1], log, clock)

    def renew(self):
        return self.sessions.renew_if_over(1)

    def present(self):
        return self.sessions.in_place(1, f"/sessions/{FIRST}").removeprefix("/sessions/")

    def noted(self):
        return renewals.read_open(self.fds[1]).asked


@pytest.fixture
def broker(tmp_path, clocks, syslog_lines):
    made = Broker(tmp_path, clocks)
    yield made
    for fd in made.fds:
        os.close(fd)


def test_a_session_that_goes_on_is_used_and_the_service_is_not_asked(broker, clocks):
    clocks.go_on(59)
    assert not broker.renew()
    assert (broker.present(), broker.upstream.asked) == (FIRST, [])


def test_one_that_has_ended_is_replaced_as_long_as_the_job_may_run(broker, clocks):
    """With the site's margin, and no longer than the service allows; requests then name the new one."""
    clocks.go_on(61)
    broker.upstream.end(FIRST)
    assert broker.renew()
    assert broker.upstream.opened() == [{"mode": "dedicated", "backend": "q", "backend_name": "q", "max_ttl": 28800}]
    assert broker.present() == "session-1"
    body = json.loads(broker.sessions.body_in_place(1, json.dumps({"session_id": FIRST, "x": [FIRST]}).encode()))
    assert body == {"session_id": "session-1", "x": [FIRST]}
    [one] = broker.noted()
    assert (one.place, one.ttl_s, one.token.reveal(), one.asked_s) == (1, 28800, "session-1", clocks.wall_s)
    clocks.go_on(28801)
    broker.upstream.end("session-1")
    assert broker.renew()
    clocks.go_on(28801)
    broker.upstream.end("session-2")
    assert broker.renew()
    clocks.go_on(28801)
    broker.upstream.end("session-3")
    assert broker.renew()
    assert broker.upstream.opened()[-1]["max_ttl"] == 100_000 - 61 - 3 * 28801 + 30


def test_the_intent_is_on_disk_before_the_service_is_asked(broker, clocks):
    clocks.go_on(61)
    broker.upstream.end(FIRST)
    seen = []
    broker.upstream.on_open = lambda: seen.extend(broker.noted())
    broker.renew()
    assert [(one.number, one.is_unknown) for one in seen] == [(1, True)]


def test_mode_and_limit_of_the_first_session_hold_for_the_next(tmp_path, clocks, syslog_lines):
    broker = Broker(tmp_path, clocks, session_mode="batch", session_cap_s=7)
    clocks.go_on(61)
    broker.upstream.end(FIRST)
    broker.renew()
    assert broker.upstream.opened() == [{"mode": "batch", "backend": "q", "backend_name": "q", "max_ttl": 7}]


def test_after_the_jobs_end_nothing_is_opened_unless_that_has_moved(broker, clocks):
    clocks.go_on(100_001)
    broker.upstream.end(FIRST)
    assert not broker.renew()
    assert broker.upstream.asked == []
    renewals.append(broker.fds[1], [renewals.ends(clocks.wall_s + 600)])
    assert broker.renew()
    assert broker.upstream.opened()[0]["max_ttl"] == 630
    renewals.append(broker.fds[1], [renewals.ends(clocks.wall_s + 1)])
    clocks.go_on(631)
    assert not broker.renew()


@pytest.mark.parametrize("jump_s", [-7200, 7200])
def test_a_clock_that_jumps_neither_opens_a_session_nor_prevents_one(broker, clocks, jump_s):
    clocks.wall_s += jump_s
    assert not broker.renew()
    assert broker.upstream.asked == []
    clocks.go_on(61)
    broker.upstream.end(FIRST)
    assert broker.renew()


def test_a_broker_that_was_restarted_after_a_jump_asks_the_service(broker, clocks):
    """Set forward: the session seems over, and the service still has it. Set back: it cannot last for years."""
    clocks.wall_s += 7200
    broker.again()
    assert not broker.renew()
    assert not broker.renew()  # not with each request
    assert [asked[:2] for asked in broker.upstream.asked] == [("GET", f"/sessions/{FIRST}")]
    clocks.wall_s -= 1e6
    broker.again()
    clocks.boot_s += 28801
    broker.upstream.end(FIRST)
    assert broker.renew()


def test_a_restarted_broker_goes_on_with_the_session_that_it_had_opened(broker, clocks):
    clocks.go_on(61)
    broker.upstream.end(FIRST)
    broker.renew()
    broker.again()
    assert broker.present() == "session-1"
    assert not broker.renew()
    assert len(broker.upstream.opened()) == 1


def test_a_session_that_the_job_has_closed_itself_is_not_replaced(broker, clocks):
    broker.sessions.closed(1)
    broker.upstream.end(FIRST)
    clocks.go_on(61)
    assert not broker.renew()


def test_many_requests_at_a_time_open_one_session(broker, clocks):
    clocks.go_on(61)
    broker.upstream.end(FIRST)
    broker.upstream.on_open = lambda: time.sleep(0.05)
    threads = [threading.Thread(target=broker.renew) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(broker.upstream.opened()) == 1


@pytest.mark.parametrize(
    ("fails", "is_unknown"), [(403, False), (503, True), (UpstreamError("it took too long", is_late=True), True)]
)
def test_a_service_that_opens_none_is_asked_again_later_and_seldom(broker, clocks, fails, is_unknown):
    """An answer that leaves open whether there is a session is one of three; then nothing is asked for any more."""
    clocks.go_on(61)
    broker.upstream.end(FIRST)
    broker.upstream.fails = fails
    for _ in range(5):
        with pytest.raises(Refusal, match="the job's session has ended, and no new one") as caught:
            broker.renew()
        assert caught.value.status == 502
    assert len(broker.upstream.opened()) == 1
    for _ in range(20):
        clocks.go_on(300)
        with pytest.raises(Refusal):
            broker.renew()
    assert len(broker.upstream.opened()) == (3 if is_unknown else 21)
    assert {one.is_unknown for one in broker.noted()} == {is_unknown}
    broker.again()
    broker.upstream.fails = None
    if is_unknown:
        with pytest.raises(Refusal):
            broker.renew()
    else:
        assert broker.renew()


def test_a_session_that_cannot_be_recorded_is_closed_at_once(broker, clocks):
    """The job's folder has gone meanwhile, with the file."""
    clocks.go_on(61)
    broker.upstream.end(FIRST)
    broker.upstream.on_open = (broker.folder / "broker").unlink
    with pytest.raises(Refusal, match="cannot be recorded"):
        broker.renew()
    assert broker.upstream.asked[-1][:2] == ("DELETE", "/sessions/session-1/close")
    assert broker.present() == FIRST


def test_without_a_known_end_nothing_is_renewed(tmp_path, clocks, syslog_lines):
    broker = Broker(tmp_path, clocks)
    qpu = broker.spec.qpus[1]._replace(session_ends_s=None)
    broker.spec = broker.spec._replace(qpus=(None, qpu))
    broker.again()
    clocks.go_on(1e6)
    assert not broker.renew()
    assert broker.present() == FIRST
