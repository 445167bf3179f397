"""Each type QRMI knows, called through the backend against a stand-in that sees QRMI's actual requests."""

import json
import re
import subprocess
import sys
import time
import urllib.request

import pytest

from qrmi_slurm.calls import backend, child
from qrmi_slurm.calls.protocol import Call, Verdict
from qrmi_slurm.config.resource_types import KNOWN, with_successors
from qrmi_slurm.secret import Secret
from standins import rogue as rogue_program
from standins.resources import SECRET, VARIABLES, resource

SESSION = "session-0"
LOGIN = "POST /online/identity/token"

# The requests that acquire and release make, with placeholders for the test's name and id.
REQUESTS = {
    "alice-bob-felis": [],
    "direct-access": [
        LOGIN,
        "GET /online/v1/backends/NAME",
        "GET /online/v1/backends/NAME/lanes",
        "GET /online/v1/jobs",
    ],
    "ibm-quantum-compute-service": [
        LOGIN,
        "GET /online/backends/NAME/status",
        "POST /online/sessions",
        LOGIN,
        "GET /online/jobs?pending=true&session_id=ID",
        "PATCH /online/sessions/ID",
    ],
    "iqm-server": ["GET /online/api/v1/quantum-computers/my_iqm:server"],
    "oqtopus": [],  # through its own library
    "pasqal-cloud": ["GET /online/core-fast/api/v1/devices?device_type=NAME"],
    "pasqal-local": ["GET /online/accessible", "POST /online/sessions", "DELETE /online/sessions/ID"],
}
REQUESTS["ibm-quantum-system"] = REQUESTS["direct-access"]
REQUESTS["qiskit-runtime-service"] = REQUESTS["ibm-quantum-compute-service"]

# These are acquired without any request: a wrong key shows only in the user's first task.
ASKS_NOBODY = "alice-bob-felis"
SESSIONS_OF_IBM = {"ibm-quantum-compute-service", "qiskit-runtime-service"}
# OQTOPUS's client is a library, and its stand-in has no service that could fail.
BEHIND_HTTP = sorted(set(VARIABLES) - {ASKS_NOBODY, "oqtopus"})


@pytest.fixture
def ask(services, fake_libraries):
    """Acquire or release a resource of a type whose service plays a scenario."""

    def ask(type_name, scenario, action="acquire", *, token=SESSION, timeout_s=20.0, **more):
        described = resource(type_name, f"{services.url}/{scenario}")
        job = {"QRMI_JOB_UID": "1001", "QRMI_JOB_ID": "12"}
        libraries = {"PY_BRIDGE_PATH": str(fake_libraries), "PYTHON_LIBRARY": str(fake_libraries)}
        variables = with_successors(described["environment"])
        environment = {f"{described['name']}_{variable}": value for variable, value in variables.items()}
        environment |= job | libraries | more.pop("environment", {})
        answers = []
        call = Call(
            described["name"],
            type_name,
            action,
            {name: value for name, value in environment.items() if value is not None},
            token=Secret(token) if action == "release" else None,
            **more,
        )
        backend.run([call], timeout_s, answers.extend)
        [answer] = answers
        assert SECRET not in answer.reason
        assert not any(SECRET in line for line in answer.log)
        return answer

    return ask


def test_every_type_has_a_stand_in():
    """Fails when our table gains a type that has no stand-in."""
    assert set(VARIABLES) == set(KNOWN) == set(REQUESTS)


@pytest.mark.parametrize("type_name", sorted(VARIABLES))
def test_acquire_and_release_make_only_the_necessary_requests(ask, services, type_name):
    """Both calls succeed, with only the necessary requests."""
    before = len(services.requests())
    acquired = ask(type_name, "online")
    assert (acquired.verdict, acquired.reason) == (Verdict.DONE, "")
    token = acquired.token.reveal()
    assert token and "\n" not in token
    assert ask(type_name, "online", "release", token=token).verdict is Verdict.DONE
    made = [f"{request['method']} {request['path']}" for request in services.requests()[before:]]
    name = resource(type_name, "")["name"]
    # A status makes its requests in parallel.
    assert sorted(path.replace(token, "ID").replace(name, "NAME") for path in made) == sorted(REQUESTS[type_name])


@pytest.mark.parametrize("type_name", ["direct-access", "ibm-quantum-compute-service"])
def test_the_sites_key_reaches_its_service(ask, services, type_name):
    """In a single login."""
    before = len(services.requests())
    ask(type_name, "online")
    [login] = [request for request in services.requests()[before:] if request["path"].endswith("/identity/token")]
    assert f"apikey={SECRET}" in login["body"]


@pytest.mark.parametrize("scenario", ["offline", "paused"])
@pytest.mark.parametrize("type_name", [*BEHIND_HTTP, "oqtopus"])
def test_a_qpu_that_is_not_online_is_refused(ask, services, type_name, scenario):
    """A job does not start with a QPU that takes no work, even if acquire alone would have succeeded."""
    before = len(services.requests())
    if type_name == "oqtopus" and scenario == "paused":
        scenario = "offline"  # its only other state
    answer = ask(type_name, scenario)
    assert (answer.verdict, answer.token) == (Verdict.REFUSED, None)
    assert re.fullmatch(r"the QPU is (offline|paused)(: maintenance until noon)?", answer.reason)
    assert not [request for request in services.requests()[before:] if request["path"].endswith("/sessions")]


@pytest.mark.parametrize("scenario", ["401", "403", "404"])
@pytest.mark.parametrize("type_name", BEHIND_HTTP)
def test_a_refusing_service_leaves_nothing_to_release(ask, type_name, scenario):
    """Nothing is held, so there is nothing to release."""
    answer = ask(type_name, scenario)
    assert (answer.verdict, answer.token) == (Verdict.REFUSED, None)
    assert answer.reason


@pytest.mark.parametrize("type_name", BEHIND_HTTP)
def test_an_unreadable_answer_is_refused_before_acquiring(ask, type_name):
    """A proxy's page with status 200."""
    answer = ask(type_name, "unreadable")
    assert answer.verdict is Verdict.REFUSED
    assert answer.reason.startswith(("QRMI cannot get the QPU's status: ", "QRMI cannot tell whether the QPU is acc"))


@pytest.mark.parametrize("type_name", BEHIND_HTTP)
def test_a_hanging_service_costs_the_deadline(ask, type_name):
    answer = ask(type_name, "hang", timeout_s=0.3)
    assert (answer.verdict, answer.reason) == (Verdict.UNANSWERED, "no answer within 0.3 s")


def test_alice_bob_felis_makes_no_request(ask, services):
    """A wrong key or a dead service shows only in the user's first task: QRMI has no call that would tell."""
    before = len(services.requests())
    assert ask("alice-bob-felis", "401").verdict is Verdict.DONE
    assert len(services.requests()) == before


def test_an_invalid_felis_key_is_refused_without_showing_it(ask):
    """It is base64 of user:password."""
    name = resource("alice-bob-felis", "")["name"]
    key = "my-secret-not-base64"
    answer = ask("alice-bob-felis", "online", environment={f"{name}_QRMI_AB_FELIS_API_KEY": key})
    assert answer.verdict is Verdict.REFUSED
    assert "QRMI_AB_FELIS_API_KEY" in answer.reason
    assert key not in answer.reason


@pytest.mark.parametrize("type_name", ["direct-access", "ibm-quantum-system"])
def test_an_older_ibm_system_without_lanes_can_be_acquired(ask, type_name):
    """Only its state counts here."""
    assert ask(type_name, "nolanes").verdict is Verdict.DONE


def test_an_unhealthy_iqm_machine_can_be_acquired(ask):
    """It is online; whether it calibrates well enough is for the user to judge."""
    assert ask("iqm-server", "unhealthy").verdict is Verdict.DONE


def test_a_pasqal_cloud_resource_must_have_a_devices_name(services):
    answers = []
    variables = resource("pasqal-cloud", f"{services.url}/online")["environment"]
    call = Call("q", "pasqal-cloud", "acquire", {f"q_{name}": value for name, value in variables.items()})
    backend.run([call], 10.0, answers.extend)
    assert answers[0].verdict is Verdict.REFUSED
    assert "device 'q' is invalid. Valid devices: FRESNEL" in answers[0].reason


# --- pasqal-local: a Warden's sessions -----------------------------------------------------------------------


@pytest.mark.parametrize("uid", [None, 65534])
def test_a_warden_learns_the_jobs_owner_and_the_caller(ask, services, munge, monkeypatch, uid):
    """Munge vouches for root, or for the user if the user supplied the variables."""
    monkeypatch.setattr(child, "_START_AGAIN", f"import ctypes\nctypes.CDLL({str(munge)!r}){child._START_AGAIN}")
    before = len(services.requests())
    token = ask("pasqal-local", "online", run_as_uid=uid).token.reveal()
    ask("pasqal-local", "online", "release", token=token, run_as_uid=uid)
    _, created, revoked = services.requests()[before:]
    assert created["body"] == '{"user_id":"1001","slurm_job_id":"12"}'
    assert revoked["path"] == f"/online/sessions/{token}"
    assert {request["headers"]["x-munge-cred"] for request in (created, revoked)} == {f"uid-{uid or 0}"}


@pytest.mark.parametrize("code", ["401", "409"])
def test_a_refusing_warden_has_opened_nothing(ask, code):
    assert ask("pasqal-local", f"sessions-{code}").verdict is Verdict.REFUSED


def test_a_failing_warden_may_have_opened_a_session(ask):
    assert ask("pasqal-local", "sessions-500").verdict is Verdict.UNANSWERED


def test_without_munge_nothing_is_opened(ask):
    """The reason names munge, and no session is looked for later."""
    answer = ask("pasqal-local", "online", environment={"QRMI_FAKE_MUNGE_DOWN": "1"})
    assert answer.verdict is Verdict.REFUSED
    assert answer.reason == "munge encode failed: Socket communication error"


@pytest.mark.parametrize(
    ("scenario", "verdict"),
    [("sessions-404", Verdict.GONE), ("page404", Verdict.REFUSED), ("sessions-500", Verdict.REFUSED)],
)
def test_a_session_unknown_to_the_warden_is_gone(ask, scenario, verdict):
    """The Warden itself answers in JSON; a gateway's page proves nothing."""
    assert ask("pasqal-local", scenario, "release").verdict is verdict


def test_the_wardens_old_variable_works(ask, services):
    name = resource("pasqal-local", "")["name"]
    older = {f"{name}_QRMI_WARDEN_URL": None, f"{name}_QRMI_URL": f"{services.url}/online"}
    assert ask("pasqal-local", "online", environment=older).verdict is Verdict.DONE


# --- OQTOPUS: through a library that its own project builds ---------------------------------------------------


def test_without_its_bridge_oqtopus_is_refused_by_name(ask):
    answer = ask("oqtopus", "online", environment={"PY_BRIDGE_PATH": None})
    assert answer.verdict is Verdict.REFUSED
    assert "liboqtopus_py_bridge.so" in answer.reason


def test_an_oqtopus_service_that_is_down_is_refused(ask):
    answer = ask("oqtopus", "broken")
    assert answer.verdict is Verdict.REFUSED
    assert answer.reason.endswith("the service cannot be reached")


# --- IBM's sessions: a login that fails ----------------------------------------------------------------------


@pytest.mark.parametrize("type_name", sorted(SESSIONS_OF_IBM))
def test_a_404_from_both_login_and_service_does_not_mean_a_closed_session(ask, type_name):
    """A gateway that answers 404 to both says nothing about the session behind it."""
    assert ask(type_name, "404", "release").verdict is Verdict.REFUSED


# --- A service that redirects QRMI ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rogue(tmp_path_factory):
    """A service that redirects to another one: its address, and what the other one has received since the last look."""
    ports = tmp_path_factory.mktemp("rogue") / "ports"
    with subprocess.Popen([sys.executable, rogue_program.__file__, ports]) as process:
        while not ports.exists():
            time.sleep(0.01)
        first, second = ports.read_text().split()
        url, seen = f"http://127.0.0.1:{first}", 0

        def caught():
            nonlocal seen
            with urllib.request.urlopen(f"{url}/requests", timeout=5) as answer:
                requests = json.loads(answer.read())[seen:]
            seen += len(requests)
            return [request for request in requests if str(request["port"]) == second]

        yield url, caught
        process.kill()


@pytest.mark.parametrize("code", [301, 302, 307, 308])
@pytest.mark.parametrize("type_name", ["ibm-quantum-compute-service", "direct-access", "iqm-server", "pasqal-cloud"])
def test_a_redirection_does_not_carry_the_authorization_header(rogue, type_name, code):
    """QRMI follows it without the header; following cannot be turned off."""
    url, caught = rogue
    described = resource(type_name, f"{url}/redirect-{code}")
    variables = with_successors(described["environment"])
    environment = {f"{described['name']}_{name}": value for name, value in variables.items()}
    backend.run([Call(described["name"], type_name, "acquire", environment)], 20, lambda answers: None)
    requests = caught()
    assert requests
    assert not [request for request in requests if "authorization" in map(str.lower, request["headers"])]
    assert SECRET not in str(requests) and rogue_program.BEARER not in str(requests)


@pytest.mark.parametrize(("code", "goes_along"), [(302, False), (307, True)])
def test_a_307_redirection_of_the_login_carries_the_key(rogue, code, goes_along):
    """A known fault of QRMI's, explained in docs/security.md. Once QRMI fixes it, update that page."""
    url, caught = rogue
    described = resource("ibm-quantum-compute-service", f"{url}/login-redirect-{code}")
    variables = with_successors(described["environment"])
    environment = {f"{described['name']}_{name}": value for name, value in variables.items()}
    backend.run([Call(described["name"], described["type"], "acquire", environment)], 20, lambda answers: None)
    assert (SECRET in str(caught())) is goes_along
