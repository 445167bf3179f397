"""The backend: whatever happens in a child affects one call and ends by the deadline."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from doubles import FAKES, SECRET, traced

from qrmi_slurm import processes
from qrmi_slurm.calls import backend, ca_bundle, installed, places
from qrmi_slurm.calls.places import WORK, Node
from qrmi_slurm.calls.protocol import Call, Verdict
from qrmi_slurm.errors import BackendError
from qrmi_slurm.secret import Secret

pytestmark = pytest.mark.usefixtures("fake_qrmi")

NOBODY_UID = 65534


def call(name="a", action="acquire", *, type="ibm-quantum-compute-service", more=None, **fake):
    told = {f"{name}_QRMI_FAKE_{key.upper()}": value for key, value in fake.items()}
    token = Secret(f"{SECRET}-token") if action == "release" else None
    return Call(name, type, action, {**told, **(more or {})}, token=token)


def answers_to(*calls, timeout_s=10.0):
    answers = []
    backend.run(calls, timeout_s, answers.extend)
    assert len(answers) == len(calls)
    return answers


def answer_to(one, timeout_s=10.0):
    return answers_to(one, timeout_s=timeout_s)[0]


def told_by(answer):
    [line] = [line for line in answer.log if line.startswith("TOLD ")]
    return json.loads(line.removeprefix("TOLD "))


def wait_until(condition, timeout_s=5.0):
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "not within its time"
        time.sleep(0.005)


def test_acquire_returns_the_token():
    answer = answer_to(call())
    assert (answer.verdict, answer.token, answer.reason) == (Verdict.DONE, Secret("session-a"), "")


def test_release_is_given_the_token(tmp_path):
    answer = answer_to(call(action="release", calls=str(tmp_path / "calls")))
    assert answer.verdict is Verdict.DONE
    assert (tmp_path / "calls").read_text() == f"release a {SECRET}-token\n"


def test_without_calls_qrmi_is_not_needed():
    backend.run([], 1.0, pytest.fail)


@pytest.mark.parametrize(
    ("word", "verdict", "reason"),
    [
        ("raise", Verdict.REFUSED, "the service says no to you"),
        ("silent", Verdict.UNANSWERED, "QrmiError"),
        ("panic", Verdict.UNANSWERED, "index out of bounds: the len is 0 but the index is 0"),
        ("exit", Verdict.UNANSWERED, "QRMI ended without an answer, with exit status 3"),
        ("segv", Verdict.UNANSWERED, "QRMI was killed by signal 11"),
        ("gone", Verdict.REFUSED, 'resource not found: {"errors": []}'),
    ],
)
def test_a_failed_acquire_gives_an_answer(word, verdict, reason):
    """Only a clear no is a refusal; after anything else the service may have opened a session."""
    answer = answer_to(call(acquire=word))
    assert (answer.verdict, answer.reason, answer.token) == (verdict, reason, None)


@pytest.mark.parametrize("word", ["gone", "gone-in-words"])
def test_a_session_that_the_service_does_not_know_is_gone(word):
    assert answer_to(call(action="release", release=word)).verdict is Verdict.GONE


@pytest.mark.parametrize("word", ["raise", "panic"])
def test_a_refused_release_is_not_a_release(word):
    assert answer_to(call(action="release", release=word)).verdict is Verdict.REFUSED


def test_a_long_reason_is_still_an_answer():
    """A proxy's error page of 200 kB must not turn a plain refusal into an unknown outcome."""
    assert answer_to(call(acquire="long-reason")).verdict is Verdict.REFUSED


def test_a_token_of_several_lines_arrives_complete():
    assert answer_to(call(token="a\nexport X=1")).token == Secret("a\nexport X=1")


def test_an_empty_token_counts_as_none():
    assert answer_to(call(token="")).token is None


def test_only_a_hanging_call_is_killed_at_the_deadline():
    started_s = time.monotonic()
    answers = answers_to(call("a", acquire="hang"), call("b"), call("c", acquire="hang"), timeout_s=0.3)
    assert time.monotonic() - started_s < 1.3
    assert [answer.call.resource for answer in answers] == ["b", "a", "c"]
    assert [answer.verdict for answer in answers] == [Verdict.DONE, Verdict.UNANSWERED, Verdict.UNANSWERED]
    assert answers[1].reason == "no answer within 0.3 s"
    assert 0.3 <= answers[1].duration_s < 1.3


def test_calls_run_side_by_side(tmp_path):
    """Each waits for a file that appears only when the other ends: one after the other would never end."""
    first, second = tmp_path / "first", tmp_path / "second"
    calls = [
        call("a", acquire=f"wait-for:{first}"),
        call("b", acquire=f"wait-for:{second}"),
        call("c"),
    ]
    order = []

    def on_answers(answers):
        for answer in answers:
            order.append(answer.call.resource)
            {"c": second.touch, "b": first.touch}.get(answer.call.resource, lambda: None)()

    backend.run(calls, 10.0, on_answers)
    assert order == ["c", "b", "a"]


def test_answers_that_arrive_while_others_are_handled_come_together(tmp_path):
    """So that one write of the record covers them all."""
    gate = tmp_path / "gate"
    calls = [call("a"), *(call(f"b{n}", acquire=f"wait-for:{gate}") for n in range(5))]
    bunches = []

    def on_answers(answers):
        bunches.append({answer.call.resource for answer in answers})
        if not gate.exists():
            gate.touch()
            time.sleep(1)

    backend.run(calls, 10.0, on_answers)
    assert bunches == [{"a"}, {"b0", "b1", "b2", "b3", "b4"}]


def test_sixty_four_qpus_are_asked_thirty_two_at_a_time(tmp_path):
    """The next begins when one has ended."""
    gate = tmp_path / "gate"
    calls_path = tmp_path / "calls"
    calls = [call(f"q{n}", calls=str(calls_path), acquire=f"wait-for:{gate}") for n in range(64)]
    answers = []

    def open_gate():
        wait_until(lambda: calls_path.exists() and len(calls_path.read_text().splitlines()) == places.AT_ONCE)
        time.sleep(0.3)
        assert len(calls_path.read_text().splitlines()) == places.AT_ONCE
        gate.touch()

    thread = threading.Thread(target=open_gate)
    thread.start()
    backend.run(calls, 20.0, answers.extend)
    thread.join()
    assert {answer.token.reveal() for answer in answers} == {f"session-q{n}" for n in range(64)}


def test_what_had_no_turn_in_time_was_not_asked(tmp_path):
    """And nothing of it was acquired; what was asked has had its own time."""
    calls_path = str(tmp_path / "calls")
    calls = [call("a", acquire="hang"), call("b"), call("c", acquire="hang"), call("d", calls=calls_path)]
    answers = []
    backend.run(calls, 1.0, answers.extend, at_once=2)
    said = {answer.call.resource: (answer.verdict, answer.reason) for answer in answers}
    assert len(answers) == 4
    assert said["b"][0] is Verdict.DONE
    assert said["a"] == (Verdict.UNANSWERED, "no answer within 1 s")
    assert said["c"][1].startswith("no answer within 0.") or said["c"][1] == "no answer within 1 s"
    assert said["d"] == (
        Verdict.UNASKED,
        "it was not asked within 1 s, because 2 other calls were still waiting for an answer",
    )
    assert not Path(calls_path).exists()


def test_a_call_is_not_begun_just_before_its_end(tmp_path):
    """It would be killed, and nobody would know whether its service has opened a session."""
    gate, calls_path = tmp_path / "gate", tmp_path / "calls"
    answers = []
    thread = threading.Timer(1.5, gate.touch)
    thread.start()
    calls = [call("a", acquire=f"wait-for:{gate}"), call("b", calls=str(calls_path))]
    backend.run(calls, 2.0, answers.extend, at_once=1)
    thread.join()
    assert [answer.verdict for answer in answers] == [Verdict.DONE, Verdict.UNASKED]
    assert not calls_path.exists()


@pytest.mark.parametrize(("slow_s", "is_left"), [(0.05, True), (5.0, False)])
def test_a_hook_that_waits_for_a_slow_service_makes_room_for_others(tmp_path, monkeypatch, slow_s, is_left):
    """Its place at work is another's; the call goes on."""
    load(monkeypatch, tmp_path, running=1)
    monkeypatch.setattr(places, "SLOW_S", slow_s)
    assert WORK.begin(Node(tmp_path, "n1", 1000), places.at_work(1)) == ""
    assert answer_to(call(acquire="hang"), timeout_s=0.4).verdict is Verdict.UNANSWERED
    assert WORK.is_at_work is not is_left


@pytest.mark.parametrize(("busy_s", "is_left"), [(0.1, True), (5.0, False)])
def test_a_busy_node_is_no_slow_service(tmp_path, monkeypatch, busy_s, is_left):
    """More hooks would make all calls slower; a service may hang there too, so not for long."""
    load(monkeypatch, tmp_path, running=2 * len(os.sched_getaffinity(0)) + 1)
    monkeypatch.setattr(places, "SLOW_S", 0.05)
    monkeypatch.setattr(places, "BUSY_S", busy_s)
    assert WORK.begin(Node(tmp_path, "n1", 1000), places.at_work(1)) == ""
    assert answer_to(call(acquire="hang"), timeout_s=0.7).verdict is Verdict.UNANSWERED
    assert WORK.is_at_work is not is_left


def test_what_waits_for_a_place_of_its_user_makes_no_room(tmp_path, monkeypatch):
    """Else hundreds of Pythons would wait, of whom none may call."""
    load(monkeypatch, tmp_path, running=1)
    monkeypatch.setattr(places, "SLOW_S", 0.05)
    node = Node(tmp_path, "n1", 1000)
    with taken_by_another_process(node, places.USERS):
        assert WORK.begin(node, places.at_work(1)) == ""
        answers = []
        backend.run([call()], 0.5, answers.extend, node=node)
        assert [answer.verdict for answer in answers] == [Verdict.UNASKED]
        assert WORK.is_at_work


def load(monkeypatch, tmp_path, running):
    path = tmp_path / "loadavg"
    path.write_text(f"0.50 0.40 0.30 {running}/100 4711\n")
    monkeypatch.setattr(places, "_LOAD", path)


@contextlib.contextmanager
def taken_by_another_process(node, count):
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        held = places.Places(node)
        os.write(tell, bytes([sum(held.take() for _ in range(count))]))
        signal.pause()
    try:
        assert os.read(told, 1) == bytes([count])
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(told)
        os.close(tell)


def test_a_service_that_hangs_leaves_places_to_the_others():
    """Ten QPUs of one that hangs come first; those of the other service are all asked."""
    dead = [call(f"a{n}", acquire="hang", more={f"a{n}_QRMI_IBM_QCS_ENDPOINT": "http://dead"}) for n in range(10)]
    live = [call(f"b{n}", more={f"b{n}_QRMI_IBM_QCS_ENDPOINT": "http://live"}) for n in range(10)]
    answers = []
    backend.run([*dead, *live], 5.0, answers.extend, at_once=4)
    assert [answer.verdict for answer in answers[:10]] == [Verdict.DONE] * 10
    assert {answer.verdict for answer in answers[10:]} == {Verdict.UNANSWERED, Verdict.UNASKED}


def test_all_services_that_a_user_has_named_have_the_share_of_one():
    """Else they could take all places with as many addresses, and the site's session would not be released."""
    hanging = {f"a{n}": {f"a{n}_QRMI_IBM_QCS_ENDPOINT": f"http://users-{n}"} for n in range(6)}
    users = [call(name, "release", release="hang", more=more) for name, more in hanging.items()]
    users = [one._replace(run_as_uid=NOBODY_UID) for one in users]
    sites = [call(f"b{n}", "release", more={f"b{n}_QRMI_IBM_QCS_ENDPOINT": "http://sites"}) for n in range(3)]
    answers = []
    backend.run([*users, *sites], 3.0, answers.extend, at_once=4)
    assert {answer.call.resource for answer in answers if answer.verdict is Verdict.DONE} == {"b0", "b1", "b2"}


@pytest.fixture
def children(monkeypatch):
    """The process ids of all children forked here."""
    pids = []
    real_fork = os.fork

    def noting_fork():
        pid = real_fork()
        pids.append(pid)
        return pid

    monkeypatch.setattr(os, "fork", noting_fork)
    return pids


def test_no_child_and_no_open_descriptor_remains(children):
    answers_to(call("warm"))
    before = sorted(os.listdir("/proc/self/fd"))
    answers_to(call("a"), call("b", acquire="hang"), call("c", acquire="segv"), timeout_s=0.3)
    assert sorted(os.listdir("/proc/self/fd")) == before
    assert len(children) == 4
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)


def test_if_an_answer_cannot_be_handled_all_children_end(children):
    def on_answers(answers):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        backend.run([call("a"), call("b", acquire="hang")], 10.0, on_answers)
    wait_until(lambda: not any(is_running(pid) for pid in children))


def test_if_one_child_cannot_be_started_none_is_left_running(children, monkeypatch):
    """If the process limit is reached at the second QPU, the first one's child must not be left running."""
    noting_fork = os.fork

    def limited_fork():
        if children:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return noting_fork()

    monkeypatch.setattr(os, "fork", limited_fork)
    answers = []
    try:
        backend.run([call("a", acquire="hang"), call("b")], 0.3, answers.extend)
    except BackendError:
        pass
    finally:
        left = [pid for pid in children if is_running(pid)]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    assert not left


def test_the_childs_environment_holds_only_what_the_call_gave(monkeypatch):
    monkeypatch.setenv("LEAK", "1")
    monkeypatch.setenv("a_QRMI_JOB_ACQUISITION_TOKEN", "stale")
    monkeypatch.setattr(ca_bundle, "variables", dict)
    given = {"a_QRMI_FAKE_ACQUIRE": "tell", "HTTPS_PROXY": "http://p"}
    told = told_by(answer_to(Call("a", "ibm-quantum-compute-service", "acquire", given)))
    assert told["env"] == {**given, "RUST_LOG": "info"}


def test_the_sites_log_level_is_kept():
    told = told_by(answer_to(call(acquire="tell", more={"RUST_LOG": "trace"})))
    assert told["env"]["RUST_LOG"] == "trace"


BUNDLE = {"SSL_CERT_FILE": "/bundle", "SSL_CERT_DIR": "/dev/null"}


@pytest.mark.parametrize("of_site", [{}, {"SSL_CERT_FILE": "/site"}, {"SSL_CERT_DIR": "/site"}])
def test_the_sites_own_certificate_settings_are_kept(monkeypatch, of_site):
    monkeypatch.setattr(ca_bundle, "variables", lambda: BUNDLE)
    env = told_by(answer_to(call(acquire="tell", more=of_site)))["env"]
    assert {name: value for name, value in env.items() if name.startswith("SSL_")} == (of_site or BUNDLE)


def test_a_client_other_than_qrmis_gets_no_certificate_settings(monkeypatch):
    monkeypatch.setattr(ca_bundle, "variables", lambda: BUNDLE)
    env = told_by(answer_to(call(acquire="tell", type="oqtopus")))["env"]
    assert not env.keys() & BUNDLE.keys()


def test_an_answer_that_is_nested_too_deep_counts_as_no_answer():
    verdict, token, _ = backend._read_answer(b"[" * 60_000, 0)
    assert (verdict, token) == (Verdict.UNANSWERED, None)


def test_for_a_release_the_token_is_also_in_the_environment():
    told = told_by(answer_to(call(action="release", release="tell")))
    assert told["env"]["a_QRMI_JOB_ACQUISITION_TOKEN"] == f"{SECRET}-token"


def test_the_hooks_own_environment_is_left_alone():
    before = dict(os.environ)
    answers_to(call(), call(action="release"))
    assert dict(os.environ) == before


def test_the_child_inherits_no_descriptor(tmp_path):
    with (tmp_path / "secret").open("w") as file:
        os.set_inheritable(file.fileno(), True)
        told = told_by(answer_to(call(acquire="tell")))
    targets = [target for target in told["files"].values() if target]
    assert not any("secret" in target for target in targets)
    assert all(target.startswith(("pipe:", "/dev/null", "/proc/")) for target in targets)
    assert len([target for target in targets if target.startswith("pipe:")]) == 3  # output, errors, the answer


def test_the_child_leads_its_own_session_in_the_root_folder():
    """A signal to the hook's process group must not interrupt a request."""
    told = told_by(answer_to(call(acquire="tell")))
    assert told["leads_session"]
    assert told["cwd"] == "/"


def test_a_call_as_the_user_is_the_users_for_good():
    one = call(acquire="tell")
    told = told_by(answer_to(Call(one.resource, one.type, "acquire", one.environment, run_as_uid=NOBODY_UID)))
    assert told["uid"] == [NOBODY_UID] * 3
    assert set(told["gid"]) == {NOBODY_UID}
    assert 0 not in told["groups"]
    assert told["env"]["HOME"] == "/nonexistent"


def test_a_user_that_the_node_does_not_know_is_a_refusal():
    """QRMI was not called, so nothing can be held."""
    answer = answer_to(Call("a", "ibm-quantum-compute-service", "acquire", {}, run_as_uid=3_999_999_999))
    assert answer.verdict is Verdict.REFUSED
    assert "3999999999" in answer.reason


def test_an_environment_that_cannot_be_set_is_a_refusal():
    answer = answer_to(Call("a", "ibm-quantum-compute-service", "acquire", {"A": "\ud800"}))
    assert answer.verdict is Verdict.REFUSED


def test_qrmis_standard_error_is_logged_up_to_a_limit():
    answer = answer_to(call(acquire="chatter"))
    assert answer.verdict is Verdict.DONE
    assert answer.log[0] == "[2026-01-31T12:00:00Z WARN qrmi::fake] renewal failed"
    assert sum(map(len, answer.log)) <= 256 * 1024


def test_pasqal_local_gets_the_jobs_id_and_owner_that_it_panics_without():
    assert "NotPresent" in answer_to(call(type="pasqal-local")).reason
    job = {"QRMI_JOB_UID": "1001", "QRMI_JOB_ID": "12"}
    assert answer_to(call(type="pasqal-local", more=job)).verdict is Verdict.DONE


def test_the_token_is_in_the_journal_before_the_answer(tmp_path):
    journal = tmp_path / "journal"
    fd = os.open(journal, os.O_WRONLY | os.O_CREAT)
    seen = []
    one = call()
    try:
        backend.run(
            [Call(one.resource, one.type, "acquire", one.environment, journal_fd=fd)],
            10.0,
            lambda answers: seen.append(journal.read_text()),
        )
    finally:
        os.close(fd)
    assert seen == ["session-a"]


@pytest.mark.parametrize("as_user", [None, NOBODY_UID])
def test_a_token_that_no_journal_takes_is_in_the_answer(as_user):
    """The disk is full: the hook still has the token, and has to give it back at once."""
    with Path("/dev/full").open("wb", buffering=0) as full:
        one = call()._replace(journal_fd=full.fileno(), run_as_uid=as_user)
        answer = answer_to(one)
    assert (answer.verdict, answer.token) == (Verdict.DONE, Secret("session-a"))
    assert answer.unjournaled == "No space left on device"


def test_a_token_that_neither_journal_nor_hook_takes_is_released_by_the_child(tmp_path):
    gate, calls = tmp_path / "gate", tmp_path / "calls"
    one = call(acquire=f"wait-for:{gate}", calls=str(calls))
    hook = os.fork()
    if hook == 0:
        with Path("/dev/full").open("wb", buffering=0) as full:
            backend.run([one._replace(journal_fd=full.fileno())], 10.0, lambda answers: None)
        os._exit(0)
    wait_until(calls.exists)
    os.kill(hook, signal.SIGKILL)
    os.waitpid(hook, 0)
    gate.touch()
    wait_until(lambda: "release a session-a" in calls.read_text())


@pytest.mark.parametrize("kind", ["check", "a type that does not lock", "nobody waits"])
def test_only_a_call_that_may_have_opened_a_session_is_handed_over(tmp_path, kind):
    """Others are killed at the deadline, as before."""
    gate = tmp_path / "gate"
    type_ = "ibm-quantum-system" if kind == "a type that does not lock" else "ibm-quantum-compute-service"
    with (tmp_path / "journal").open("wb") as journal:
        one = call(acquire=f"wait-for:{gate}", status=f"wait-for:{gate}", type=type_)
        one = one._replace(journal_fd=journal.fileno(), action="check" if kind == "check" else "acquire")
        handed, answers = [], []
        on_late = None if kind == "nobody waits" else handed.extend
        backend.run([one], 0.3, answers.extend, on_late=on_late)
    assert handed == []
    assert (answers[0].verdict, answers[0].is_awaited) == (Verdict.UNANSWERED, False)


def test_a_child_whose_hook_was_killed_goes_on_and_leaves_its_token(tmp_path):
    gate, journal, calls = tmp_path / "gate", tmp_path / "journal", tmp_path / "calls"
    fd = os.open(journal, os.O_WRONLY | os.O_CREAT)
    one = call(acquire=f"wait-for:{gate}", calls=str(calls))
    hook = os.fork()
    if hook == 0:
        backend.run(
            [Call(one.resource, one.type, "acquire", one.environment, journal_fd=fd)], 10.0, lambda answers: None
        )
        os._exit(0)
    os.close(fd)
    wait_until(calls.exists)
    os.kill(hook, signal.SIGKILL)
    os.waitpid(hook, 0)
    assert journal.read_text() == ""
    gate.touch()
    wait_until(lambda: journal.read_text() == "session-a")


def test_a_child_whose_hook_was_killed_ends_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(backend, "_ALARM_GRACE_S", 0.1)
    calls = tmp_path / "calls"
    reading, writing = os.pipe()
    hook = os.fork()
    if hook == 0:
        real_fork = os.fork

        def told_fork():
            pid = real_fork()
            if pid:
                os.write(writing, str(pid).encode())
            return pid

        os.fork = told_fork
        backend.run([call(acquire="hang", calls=str(calls))], 0.5, lambda answers: None)
        os._exit(0)
    wait_until(calls.exists)
    child = int(os.read(reading, 20))
    os.kill(hook, signal.SIGKILL)
    os.waitpid(hook, 0)
    os.close(reading)
    os.close(writing)
    wait_until(lambda: not is_running(child))


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        ("Online", Verdict.DONE),
        ("unsupported", Verdict.DONE),
        ("Paused", Verdict.REFUSED),
        ("Offline", Verdict.REFUSED),
    ],
)
def test_for_a_type_that_does_not_lock_the_status_is_checked_first(status, verdict):
    answer = answer_to(call(type="iqm-server", status=status))
    assert answer.verdict is verdict
    if verdict is Verdict.REFUSED:
        assert answer.reason == f"the QPU is {status.lower()}: maintenance until noon"


@pytest.mark.parametrize(("status", "verdict"), [("Online", Verdict.DONE), ("Offline", Verdict.REFUSED)])
def test_an_older_qrmi_without_status_is_asked_whether_it_is_accessible(monkeypatch, status, verdict):
    import qrmi

    monkeypatch.delattr(qrmi.QuantumResource, "status")
    monkeypatch.delattr(qrmi, "set_log_callback")
    assert answer_to(call(type="iqm-server", status=status)).verdict is verdict


def test_a_type_that_is_asked_for_access_is_asked_for_its_status_only_without_it(monkeypatch):
    """The status has the service's words; a later QRMI may have nothing else."""
    import qrmi

    answer = answer_to(call(status="Paused"))
    assert (answer.verdict, answer.reason) == (Verdict.REFUSED, "the QPU is paused: maintenance until noon")
    with monkeypatch.context() as patch:
        patch.setattr(qrmi.QuantumResource, "status", lambda resource: pytest.fail("it was asked"))
        assert answer_to(call()).verdict is Verdict.DONE
    monkeypatch.delattr(qrmi.QuantumResource, "is_accessible")
    assert answer_to(call()).verdict is Verdict.DONE
    assert answer_to(call(status="Paused")).verdict is Verdict.REFUSED


def test_without_qrmi_no_child_is_started(monkeypatch):
    monkeypatch.setitem(sys.modules, "qrmi", None)
    with pytest.raises(BackendError, match="QRMI cannot be imported"):
        backend.run([call()], 1.0, pytest.fail)


def test_known_members_and_installed_type():
    members = installed.known_members()
    assert "PasqalLocal" in members
    assert installed.installed_type("direct-access", members) == "ibm-quantum-system"
    assert installed.installed_type("qiskit-runtime-service", members) == "qiskit-runtime-service"
    with pytest.raises(BackendError, match="does not know the resource type new-vendor"):
        installed.installed_type("new-vendor", members)


def test_a_repr_of_call_and_answer_shows_no_secret():
    one = call(action="release", release="raise", secret=SECRET)
    assert SECRET not in repr(one)
    answer = answer_to(one)
    assert SECRET in answer.reason
    assert SECRET not in repr(answer)


def test_a_call_as_the_user_has_nothing_of_the_hooks_memory():
    """QRMI may load code of the user's, and the hook's memory has the keys of all QPUs."""
    # The hook runs in its own process: pytest's memory is too large to search.
    code = f"""
import sys
sys.path[:0] = [{str(FAKES)!r}, {str(Path(backend.__file__).parents[2])!r}]
from qrmi_slurm.calls import backend
planted = "planted in the " + "hook's memory"
for uid in (None, {NOBODY_UID}):
    told = {{"a_QRMI_FAKE_ACQUIRE": "memory", "a_QRMI_FAKE_BACKWARDS": planted[::-1]}}
    call = backend.Call("a", "ibm-quantum-compute-service", "acquire", told, run_as_uid=uid)
    backend.run([call], 20, lambda answers: [print(*answer.log, answer.reason) for answer in answers])
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=60, check=True)
    forked, anew = done.stdout.splitlines()
    assert re.fullmatch("TOLD [1-9][0-9]* ", forked)  # so the search works
    assert anew == "TOLD 0 "


def test_a_call_as_the_user_that_cannot_restart_python_is_a_refusal(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python3")
    answer = answer_to(call()._replace(run_as_uid=NOBODY_UID))
    assert (answer.verdict, answer.token) == (Verdict.REFUSED, None)
    assert "QRMI could not be called" in answer.reason


def test_a_restarted_python_has_no_environment_that_others_could_read():
    """It gets the environment in another way; limits and the alarm are kept."""
    one = call(acquire="tell", secret=SECRET)
    told = told_by(answer_to(one._replace(run_as_uid=NOBODY_UID)))
    assert told["env"]["a_QRMI_FAKE_SECRET"] == SECRET
    assert SECRET not in told["environ_at_start"]
    assert SECRET not in told["arguments"]
    assert told["leads_session"]
    assert answer_to(call(acquire="hang")._replace(run_as_uid=NOBODY_UID), timeout_s=0.5).verdict is Verdict.UNANSWERED


@pytest.mark.parametrize(("uid", "most"), [(None, 1000), (NOBODY_UID, 100)])
def test_a_service_that_answers_with_line_breaks_does_not_flood_the_log(uid, most):
    """A user's own gets fewer lines: they may have thousands of jobs."""
    answer = answer_to(call(acquire="lines")._replace(run_as_uid=uid))
    assert answer.verdict is Verdict.DONE
    assert len(answer.log) == most


@pytest.mark.parametrize(
    ("found", "taken"),
    [(["a", "b"], 2), ([f"q{number}" for number in range(5000)], 100), (["a", 5, None, ["b"], "c=d"], 1), ("abc", 0)],
    ids=["two", "thousands", "no names", "no list"],
)
def test_only_so_many_names_are_taken_from_an_answer(found, taken):
    """A child that runs as the user may say anything."""
    assert len(backend._found_of({"found": found})) == taken


# --- what a user may do to their own child ----------------------------------------------------------------------


@pytest.fixture
def pids(monkeypatch):
    """Return the list of the children that are forked."""
    found = []
    real_fork = os.fork

    def noted_fork():
        pid = real_fork()
        found.append(pid)
        return pid

    monkeypatch.setattr(os, "fork", noted_fork)
    return found


def run_with(disturb, *calls, pids, timeout_s):
    """Run calls, disturb the children as soon as all have begun, and return the answers and how long it took."""
    began_s = time.monotonic()
    answers = []
    real_read = backend._Pipes.read

    def read(self, wait_s):
        if disturb.waits and all(Path(call.environment[f"{call.resource}_QRMI_FAKE_CALLS"]).exists() for call in calls):
            disturb.waits = False
            for pid in pids:
                disturb(pid)
        return real_read(self, min(wait_s, 0.05))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend._Pipes, "read", read)
        backend.run(calls, timeout_s, answers.extend)
    return answers, time.monotonic() - began_s


class Disturbance:
    """Something that is done to each child once.

    Args:
        act: what.
    """

    def __init__(self, act):
        self.waits = True
        self._act = act

    def __call__(self, pid):
        self._act(pid)


def test_children_that_somebody_traces_are_left_behind(tmp_path, pids):
    """All of them together cost no more than one, and the answer says so."""
    with contextlib.ExitStack() as tracers:
        calls = [call(name, acquire="hang", calls=str(tmp_path / name)) for name in "abcd"]
        trace = Disturbance(lambda pid: tracers.enter_context(traced(pid)))
        answers, took_s = run_with(trace, *calls, pids=pids, timeout_s=1.5)
        assert not trace.waits
        assert took_s < 1.5 + 1
    for answer, pid in zip(answers, pids, strict=True):
        assert answer.verdict is Verdict.UNANSWERED
        assert answer.reason == f"no answer within 1.5 s; process {pid} does not end"
        wait_until(lambda pid=pid: os.waitpid(pid, os.WNOHANG)[0] == pid)


def test_children_that_fall_silent_one_after_the_other_cost_no_more_than_one():
    """Each closes its pipe and goes on, as a user's may; the next has its turn all the same."""

    def seconds(word):
        calls = [call(f"s{number}", acquire=word) for number in range(30)]
        answers = []
        began_s = time.monotonic()
        backend.run(calls, 60, answers.extend, at_once=1)
        assert [answer.verdict for answer in answers] == [Verdict.UNANSWERED] * 30
        return time.monotonic() - began_s

    assert seconds("fall-silent") < 1.5 * seconds("exit") + 10 * processes.END_S / 2


def test_an_endless_answer_is_cut_short():
    """Reading on would keep the hook busy until its deadline."""
    began_s = time.monotonic()
    answer = answer_to(call(acquire="answer-endlessly"), timeout_s=30)
    assert time.monotonic() - began_s < 15
    assert (answer.verdict, answer.token) == (Verdict.UNANSWERED, None)


def test_a_child_that_is_stopped_is_killed_at_the_deadline(tmp_path, pids):
    one = call(acquire="hang", calls=str(tmp_path / "calls"))
    stop = Disturbance(lambda pid: os.kill(pid, signal.SIGSTOP))
    [answer], took_s = run_with(stop, one, pids=pids, timeout_s=1.5)
    assert not stop.waits
    assert (answer.verdict, answer.reason) == (Verdict.UNANSWERED, "no answer within 1.5 s")
    assert took_s < 1.5 + 1


@pytest.mark.parametrize("as_user", [False, True])
def test_what_a_call_leaves_behind_holds_up_no_answer(as_user):
    """A process that QRMI started has the pipes open, and writes to the log as fast as it can."""
    began_s = time.monotonic()
    answer = answer_to(call(acquire="leave-behind")._replace(run_as_uid=NOBODY_UID if as_user else None), timeout_s=20)
    assert time.monotonic() - began_s < 5
    assert (answer.verdict, answer.token) == (Verdict.DONE, Secret("session-a"))
    assert sum(map(len, answer.log)) <= 256 * 1024


def test_a_child_becomes_the_user_only_once_it_has_nothing_of_the_hooks(monkeypatch):
    """A fork of the hook never does: the user's processes may look into each other from an exec on."""

    def refuse(*_):
        raise OSError("a fork of the hook has become the user")

    for name in ("setuid", "setreuid", "setresuid", "seteuid", "initgroups", "setgroups", "setresgid"):
        monkeypatch.setattr(os, name, refuse)
    told = told_by(answer_to(call(acquire="tell")._replace(run_as_uid=NOBODY_UID)))
    assert told["uid"] == [NOBODY_UID] * 3


def test_a_call_as_the_user_has_no_file_of_the_hooks():
    """Not even the one that the call was passed in."""
    told = told_by(answer_to(call(acquire="tell")._replace(run_as_uid=NOBODY_UID)))
    targets = [target for target in told["files"].values() if target]
    assert all(target.startswith(("pipe:", "/dev/null", "/proc/")) for target in targets), targets


def test_a_call_as_the_user_can_be_looked_into_by_nobody():
    """proc(5): the files of a process whose memory is hidden belong to root."""
    told = told_by(answer_to(call(acquire="tell")._replace(run_as_uid=NOBODY_UID)))
    assert (told["uid"][0], told["owner_in_proc"]) == (NOBODY_UID, 0)
