"""The service over HTTP: its answers, its refusals and its faults."""

import http.client
import json
import socket
import threading
import time

import pytest
from emulated import BACKEND, KEY

SESSION = {"backend": BACKEND.name, "mode": "dedicated", "max_ttl": 60}


def wait_until(condition, deadline_s=10):
    ends_s = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < ends_s, "timed out"
        time.sleep(0.01)


class Caller(threading.Thread):
    """A request in its own thread; `outcome` is its status or its exception."""

    def __init__(self, address, emulated, path="/sessions"):
        super().__init__(daemon=True)
        self.connection = http.client.HTTPConnection(*address, timeout=20)
        self._headers = {"Authorization": f"Bearer {emulated.token()}", "Service-CRN": "crn:test"}
        self._path = path
        self.outcome = self.body = None
        self.start()

    def run(self):
        try:
            self.connection.request("POST", self._path, json.dumps(SESSION), self._headers)
            answer = self.connection.getresponse()
            self.body = answer.read()
            self.outcome = answer.status
        except (OSError, http.client.HTTPException) as error:
            self.outcome = error
        finally:
            self.connection.close()


def test_a_wrong_key_gets_no_token(emulated):
    """The error is IAM's."""
    answer = emulated.ask_token("wrong")
    assert answer.status_code == 400
    assert answer.json["errorCode"] == "BXNIM0415E"
    assert answer.json["errorMessage"] == "Provided API key could not be found."
    assert emulated.ask_token(grant="password").status_code == 400


def test_a_token_expires(emulated, clock):
    """An expired or unknown bearer token is refused."""
    token = emulated.token()
    headers = {"Authorization": f"Bearer {token}"}
    assert emulated.call("GET", "/backends", headers=headers).status_code == 200
    clock.move(3601)
    assert emulated.call("GET", "/backends", headers=headers).status_code == 401
    for wrong in ("", "Bearer ", "Bearer nothing", f"Basic {token}"):
        assert emulated.call("GET", "/backends", headers={"Authorization": wrong}).status_code == 401


def test_another_instance_is_refused(emulated):
    """A wrong Service-CRN is not authorized."""
    assert emulated.call("GET", "/backends", headers={"Service-CRN": "crn:other"}).status_code == 401


@pytest.mark.parametrize("prefix", ["", "/api", "/api/v1"])
def test_the_documented_endpoints_work(emulated, prefix):
    """All three forms of the endpoint are accepted."""
    assert emulated.call("GET", f"{prefix}/backends/ibm_demo/status").json["status"] == "active"


def test_backends_are_served_under_their_names(emulated):
    """Configuration and properties are the fake device's, with the served name."""
    for what in ("configuration", "properties"):
        assert emulated.call("GET", f"/backends/ibm_demo/{what}").json["backend_name"] == "ibm_demo"
    assert emulated.call("GET", "/backends/nothing/status").status_code == 404
    (device,) = emulated.call("GET", "/backends").json["devices"]
    assert (device["name"], device["qubits"], device["status"]) == ("ibm_demo", 5, {"name": "online"})


def test_the_control_interface_sets_what_a_backend_reports(emulated):
    """Status and queue length can be set."""
    changed = emulated.control("POST", "backends/ibm_demo", json={"status": "offline", "queue": 7})
    assert changed.json == {"name": "ibm_demo", "status": "offline", "queue": 7}
    status = emulated.call("GET", "/backends/ibm_demo/status").json
    assert (status["state"], status["status"], status["length_queue"]) == (False, "offline", 7)
    assert emulated.control("POST", "backends/ibm_demo", json={"status": "broken"}).status_code == 400
    assert emulated.control("POST", "backends/nothing", json={}).status_code == 404


def test_sessions_are_opened_and_closed(emulated):
    """PATCH closes, DELETE cancels; the control interface tells them apart."""
    first, second = emulated.new_session(max_ttl=60), emulated.new_session()
    body = emulated.call("GET", f"/sessions/{first}").json
    assert (body["state"], body["max_ttl"], body["accepting_jobs"]) == ("open", 60, True)
    patched = emulated.call("PATCH", f"/sessions/{first}", json={"accepting_jobs": False})
    deleted = emulated.call("DELETE", f"/sessions/{second}/close")
    assert (patched.status_code, deleted.status_code) == (204, 204)
    shown = emulated.control("GET", "sessions").json
    assert [(s["id"], s["state"], s["by"]) for s in shown] == [
        (first, "closed", "update_session"),
        (second, "cancelled", "close_session"),
    ]
    assert emulated.call("GET", f"/sessions/{second}").json["state"] == "closed"
    assert emulated.call("DELETE", "/sessions/nothing/close").status_code == 404


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"mode": "dedicated"}', b'{"mode": []}', b'{"backend": {}}', b"\xff"]
)
def test_an_invalid_session_request_is_refused(emulated, body):
    """It opens no session."""
    assert emulated.call("POST", "/sessions", data=body).status_code == 400
    assert emulated.control("GET", "sessions").json == []


def test_unknown_paths_and_methods_are_404(emulated):
    """The answer is the service's JSON error."""
    for method, path in (("GET", "/nothing"), ("PUT", "/jobs"), ("GET", "/jobs/none"), ("GET", "/jobs/none/logs")):
        answer = emulated.call(method, path)
        assert answer.status_code == 404 and answer.json["errors"][0]["message"]


def test_requests_are_listed_and_printed_without_secrets(emulated):
    """Lists and log lines have calls and statuses, but no keys, tokens or queries."""
    token = emulated.token()
    emulated.call("GET", f"/jobs?session_id=x&apikey={KEY}", headers={"Authorization": f"Bearer {token}"})
    emulated.client.get("/line%0Abreak", headers={"Authorization": f"Bearer {token}"})
    listed = emulated.control("GET", "requests").json
    assert ("GET", "/jobs", "list_jobs", 200) in [(r["method"], r["path"], r["call"], r["status"]) for r in listed]
    assert emulated.control("GET", "counts").json["list_jobs"] == 1
    printed = emulated.printed.text
    assert "GET /jobs 200" in printed and "/line%0Abreak" in printed
    for secret in (KEY, token):
        assert secret not in printed + json.dumps(listed)
    assert emulated.control("DELETE", "requests").status_code == 204
    assert emulated.control("GET", "requests").json == []


def test_the_control_interface_is_protected(emulated):
    """It only accepts JSON, only from this machine, and not from web pages."""
    fault = {"call": "get_job", "kind": "hang"}
    assert emulated.control("POST", "faults", data=json.dumps(fault)).status_code == 415
    away = {"REMOTE_ADDR": "192.0.2.1"}
    assert emulated.control("GET", "sessions", environ_base=away).status_code == 403
    assert emulated.control("GET", "sessions", headers={"Host": "evil.example"}).status_code == 403
    origin = {"Origin": "http://evil.example"}
    assert emulated.control("POST", "faults", json=fault, headers=origin).status_code == 403
    assert emulated.control("POST", "faults", json={"call": "nothing", "kind": "hang"}).status_code == 400
    assert emulated.control("GET", "nothing").status_code == 404
    assert emulated.control("GET", "faults").json == []


def test_an_error_is_returned_as_often_as_specified(emulated):
    """After two errors, the call works."""
    emulated.control("POST", "faults", json={"call": "create_session", "kind": "error", "status": 503, "times": 2})
    statuses = [emulated.call("POST", "/sessions", json=SESSION).status_code for _ in range(3)]
    assert statuses == [503, 503, 200]
    assert emulated.control("GET", "faults").json[0]["hits"] == 2


def test_a_lost_answer_leaves_a_session(emulated):
    """With `after`, the call is carried out and its answer replaced."""
    emulated.control("POST", "faults", json={"call": "create_session", "kind": "garbage", "when": "after"})
    answer = emulated.call("POST", "/sessions", json=SESSION)
    assert answer.status_code == 200 and b"garbage" in answer.data
    assert len(emulated.control("GET", "sessions").json) == 1


def test_a_delay_delays_the_answer(emulated, address):
    """The answer comes after the delay."""
    emulated.control("POST", "faults", json={"call": "create_session", "kind": "delay", "delay_s": 0.2})
    began_s = time.monotonic()
    caller = Caller(address, emulated)
    caller.join()
    assert caller.outcome == 200
    assert time.monotonic() - began_s >= 0.2


def test_held_requests_are_counted_and_released(emulated, address):
    """A test can see that requests are held, and release them."""
    fault = emulated.control("POST", "faults", json={"call": "create_session", "kind": "hold"}).json["id"]
    callers = [Caller(address, emulated) for _ in range(3)]
    wait_until(lambda: emulated.control("GET", "faults").json[0]["holding"] == 3)
    assert emulated.control("GET", "sessions").json == []
    assert emulated.control("POST", f"release/{fault}", json={}).status_code == 204
    for caller in callers:
        caller.join()
    assert [caller.outcome for caller in callers] == [200] * 3
    assert emulated.control("GET", "faults").json[0]["holding"] == 0


def test_a_hang_ends_when_its_client_disconnects(emulated, address):
    """No thread is left waiting for a client that is gone."""
    emulated.control("POST", "faults", json={"call": "create_session", "kind": "hang", "when": "after"})
    caller = Caller(address, emulated)
    wait_until(lambda: emulated.control("GET", "faults").json[0]["holding"] == 1)
    assert len(emulated.control("GET", "sessions").json) == 1
    caller.connection.sock.shutdown(socket.SHUT_RDWR)
    wait_until(lambda: emulated.control("GET", "faults").json[0]["holding"] == 0)
    caller.join()


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        ("reset", ConnectionResetError),
        ("close", http.client.RemoteDisconnected),
        ("drop_after", http.client.IncompleteRead),
    ],
)
def test_faults_break_connections(emulated, address, kind, outcome):
    """Each kind breaks the connection in its own way; the next request works."""
    emulated.control("POST", "faults", json={"call": "create_session", "kind": kind, "times": 1})
    broken = Caller(address, emulated)
    broken.join()
    assert type(broken.outcome) is outcome
    whole = Caller(address, emulated)
    whole.join()
    assert whole.outcome == 200


def test_hundreds_hang_while_others_are_served(emulated, address):
    """Hanging requests do not block others."""
    emulated.control("POST", "faults", json={"call": "create_session", "kind": "hang", "times": 200})
    callers = [Caller(address, emulated) for _ in range(200)]
    wait_until(lambda: emulated.control("GET", "faults").json[0]["holding"] == 200)
    after = Caller(address, emulated)
    after.join()
    assert after.outcome == 200
    assert emulated.control("DELETE", "faults").status_code == 204
    for caller in callers:
        caller.join()
