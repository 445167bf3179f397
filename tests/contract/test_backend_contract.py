"""What the backend may expect of QRMI: the same from the fake as from the installed package."""

import subprocess
import sys
import time

import pytest

from qrmi_slurm.calls import backend, ca_bundle
from qrmi_slurm.calls.protocol import Call, Verdict
from qrmi_slurm.secret import Secret

SECRET = "test-secret-apikey"
TYPE = "ibm-quantum-compute-service"
SESSION = "session-1"


def ask(side, action, scenario="ok", *, token=SESSION, timeout_s=10.0, name="x"):
    environment = {f"{name}_{variable}": value for variable, value in side.variables(scenario).items()}
    answers = []
    call = Call(name, TYPE, action, environment, token=Secret(token) if action == "release" else None)
    backend.run([call], timeout_s, answers.extend)
    [answer] = answers
    return answer


def test_acquire_returns_a_token_of_one_line(side):
    answer = ask(side, "acquire")
    assert answer.verdict is Verdict.DONE
    assert answer.token.reveal().startswith("session-")
    assert answer.reason == ""


def test_release_after_acquire_succeeds(side):
    token = ask(side, "acquire").token.reveal()
    assert ask(side, "release", token=token).verdict is Verdict.DONE


@pytest.mark.parametrize("where", ["iam", "sessions"])
@pytest.mark.parametrize("what", ["400", "401", "403", "404", "429", "500", "503", "garbage", "refused"])
def test_a_failing_service_gives_a_reason_without_the_key(side, where, what):
    """A refusal, a failed login or no connection is a refusal; after anything else a session may have been opened."""
    answer = ask(side, "acquire", f"{where}-{what}")
    plain_no = where == "iam" or what.startswith("4") or what == "refused"
    assert answer.verdict is (Verdict.REFUSED if plain_no else Verdict.UNANSWERED)
    assert answer.token is None
    assert answer.reason
    assert SECRET not in answer.reason
    assert not any(SECRET in line for line in answer.log)


@pytest.mark.parametrize("where", ["iam", "sessions"])
def test_a_hanging_service_costs_the_deadline(side, where):
    started_s = time.monotonic()
    answer = ask(side, "acquire", f"{where}-hang", timeout_s=0.3)
    assert answer.verdict is Verdict.UNANSWERED
    assert time.monotonic() - started_s < 1.5


@pytest.mark.parametrize("what", ["401", "429", "500", "503"])
def test_a_release_refused_by_the_service_has_failed(side, what):
    assert ask(side, "release", f"close-{what}").verdict is Verdict.REFUSED


def test_a_session_unknown_to_the_service_is_gone(side):
    assert ask(side, "release", "close-404").verdict is Verdict.GONE


def test_a_hanging_release_costs_the_deadline(side):
    assert ask(side, "release", "close-hang", timeout_s=0.3).verdict is Verdict.UNANSWERED


@pytest.mark.parametrize("what", ["401", "404", "500", "refused", "garbage"])
def test_a_failed_login_says_nothing_about_the_session(real_side, what):
    """A 404 from the identity service must not be mistaken for one about the session."""
    assert ask(real_side, "release", f"iam-{what}").verdict is Verdict.REFUSED


@pytest.mark.parametrize("where", ["jobs", "close"])
def test_a_404_from_another_program_does_not_mean_a_closed_session(real_side, where):
    """It may come from a gateway's page or a wrong path; the service itself answers in JSON."""
    assert ask(real_side, "release", f"{where}-page404").verdict is Verdict.REFUSED


@pytest.mark.parametrize("what", ["400", "401", "refused"])
def test_a_login_that_fails_is_named_in_the_reason(real_side, what):
    """QRMI goes on without a bearer token, and its exception mentions only the service's 401."""
    answer = ask(real_side, "acquire", f"iam-{what}")
    assert "identity/token" in answer.reason or "Token renewal failed" in answer.reason


def test_an_acquire_opens_one_session_and_a_release_closes_it(real_side, requests_made):
    before = requests_made().count("POST /ok/sessions")
    token = ask(real_side, "acquire").token.reveal()
    assert requests_made().count("POST /ok/sessions") == before + 1
    assert ask(real_side, "release", token=token).verdict is Verdict.DONE
    assert f"/ok/sessions/{token}" in requests_made()


def test_several_real_qpus_are_acquired_in_parallel(real_side):
    calls = []
    for number in range(4):
        environment = {f"q{number}_{name}": value for name, value in real_side.variables("ok").items()}
        calls.append(Call(f"q{number}", TYPE, "acquire", environment))
    answers = []
    backend.run(calls, 10.0, answers.extend)
    assert len({answer.token.reveal() for answer in answers}) == 4


def test_a_missing_variable_is_refused_by_name():
    answers = []
    backend.run([Call("x", TYPE, "acquire", {})], 10.0, answers.extend)
    assert answers[0].verdict is Verdict.REFUSED
    assert "x_QRMI_IBM_QCS_" in answers[0].reason


def test_pasqal_local_without_the_jobs_owner_is_refused():
    """It panics, and a panic is not an Exception."""
    answers = []
    backend.run(
        [Call("p", "pasqal-local", "acquire", {"p_QRMI_WARDEN_URL": "http://127.0.0.1:1"})], 10.0, answers.extend
    )
    assert answers[0].verdict is Verdict.REFUSED
    assert answers[0].reason


_READS = """
import qrmi
def reads():
    return next(int(line.split()[1]) for line in open("/proc/self/io") if line.startswith("syscr"))
before = reads()
qrmi.QuantumResource("x", qrmi.ResourceType.IBMQuantumComputeService)
print(reads() - before)
"""


def test_qrmi_can_be_kept_from_reading_the_certificate_folder(real_side, tmp_path):
    """By default it reads every file for each of its clients, which ca_bundle.py avoids."""
    bundle, folder = tmp_path / "bundle", tmp_path / "certs"
    bundle.write_text("")
    folder.mkdir()
    for number in range(100):
        (folder / f"{number}.pem").write_text("")
    environment = {f"x_{name}": value for name, value in real_side.variables("ok").items()}
    reads = {}
    for told in (folder, "/dev/null"):
        env = {**environment, ca_bundle.FILE: str(bundle), ca_bundle.DIR: str(told)}
        program = [sys.executable, "-W", "ignore", "-c", _READS]
        reads[told] = int(subprocess.run(program, env=env, capture_output=True, text=True, check=True).stdout)
    assert reads[folder] - reads["/dev/null"] >= 100
