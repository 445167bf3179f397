"""Releasing: nothing is removed from the record before its release is proven."""

import json
import os
import time

import pytest
from doubles import COMPUTE_SERVICE, SECRET

from qrmi_slurm.calls import protocol
from qrmi_slurm.errors import BackendError, RecordError
from qrmi_slurm.hooks import release
from qrmi_slurm.secret import Secret
from qrmi_slurm.state.record import Entry, Record, State


def entry(
    site, name, *, state=State.ACQUIRED, token="", type="ibm-quantum-compute-service", expires_s=None, journal=0, **fake
):
    told = {f"{name}_QRMI_FAKE_{key.upper()}": value for key, value in fake.items()}
    environment = {f"{name}_{key}": value for key, value in COMPUTE_SERVICE.items()}
    return Entry(
        name=name,
        type=type,
        environment={**environment, f"{name}_QRMI_FAKE_CALLS": str(site.calls_path), **told},
        state=state,
        token=Secret(token or f"{SECRET}-{name}") if token is not None else None,
        expires_s=expires_s,
        journal=journal,
    )


@pytest.fixture
def run(site, syslog_lines):
    """Write a record with entries, release it, and return what is left; check that no log line has a secret."""

    def release_all(*entries, **options):
        folder = site.folder()
        folder.create()
        folder.write(Record("test", 12, os.getuid(), "n1", "b", 0, time.time(), entries))
        left = release.release(folder.read(), site.hook_run("epilog"), **options)
        assert not any(SECRET in line for _, line in syslog_lines)
        return left

    return release_all


def test_after_a_proven_release_the_folder_is_gone(site, run):
    assert run(entry(site, "a"), entry(site, "b")) is None
    assert sorted(site.calls()) == [f"release a {SECRET}-a", f"release b {SECRET}-b"]
    assert not site.folder().exists()


def test_a_session_that_the_service_does_not_know_is_released(site, run):
    assert run(entry(site, "a", release="gone")) is None


@pytest.mark.parametrize("word", ["raise", "panic", "segv", "exit"])
def test_a_qpu_that_cannot_be_released_stays_with_its_token(site, run, word, syslog_lines):
    left = run(entry(site, "a"), entry(site, "b", release=word))
    assert [kept.name for kept in left.entries] == ["b"]
    assert site.folder().read() == left
    [kept] = left.entries
    assert (kept.state, kept.attempts, kept.token.reveal()) == (State.RELEASING, 1, f"{SECRET}-b")
    assert kept.reason
    assert any("not-released: job=12 qpu=b" in line for _, line in syslog_lines)


def test_hanging_services_share_one_deadline(site, run):
    site.configure("--release-timeout=0.3")
    started_s = time.monotonic()
    left = run(*(entry(site, name, release="hang") for name in "abc"))
    assert time.monotonic() - started_s < 1.3
    assert len(left.entries) == 3


def test_the_exports_are_removed_even_if_something_is_left(site, run):
    site.folder().create()
    site.folder().write_exports("x", os.getuid())
    assert run(entry(site, "a", release="raise"))
    assert not site.folder().exports_path.exists()


def test_a_second_release_tries_again(site, run):
    left = run(entry(site, "a", release="raise"))
    assert run(*(kept for kept in left.entries)).entries[0].attempts == 2


def test_releasing_is_on_disk_before_qrmi_is_called(site, run, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "qrmi_slurm.calls.backend.run", lambda *arguments: seen.append(site.folder().read().entries[0].state)
    )
    run(entry(site, "a"))
    assert seen == [State.RELEASING]


def test_a_qpu_that_was_refused_is_not_released(site, run):
    assert run(entry(site, "a", state=State.FAILED, token=None)) is None
    assert site.calls() == []


@pytest.mark.parametrize("state", [State.ACQUIRING, State.INDETERMINATE])
def test_an_unfinished_acquire_of_a_type_that_locks_stays_recorded(site, run, state):
    left = run(entry(site, "a", state=state, token=None, expires_s=time.time() + 100))
    assert [kept.state for kept in left.entries] == [State.INDETERMINATE]
    assert site.calls() == []


def test_an_unfinished_acquire_of_another_type_holds_nothing(site, run):
    assert run(entry(site, "a", state=State.ACQUIRING, token=None, type="iqm-server")) is None


def test_after_the_session_has_expired_nothing_is_held(site, run):
    assert run(entry(site, "a", state=State.INDETERMINATE, token=None, expires_s=time.time() - 1)) is None


def test_a_session_of_unknown_end_is_not_logged_as_ending_in_1970(site, run, syslog_lines):
    run(entry(site, "a", state=State.INDETERMINATE, token=None, type="pasqal-local"))
    assert not any("1970" in line for _, line in syslog_lines)


def test_an_end_beyond_the_calendar_stops_no_release(site, run):
    left = run(entry(site, "a", state=State.INDETERMINATE, token=None, expires_s=1e20), entry(site, "b"))
    assert [kept.name for kept in left.entries] == ["a"]


def test_a_folder_may_be_kept_for_a_job_that_goes_on(site, run):
    assert run(entry(site, "a"), keep_folder=True) is None
    assert site.folder().read().entries == ()


def test_a_token_is_never_used_for_another_qpu(site, run):
    """The hook died after b's child wrote its token: released entries must not shift c into b's place."""
    folder = site.folder()
    folder.create()
    fd = folder.journals.open(1)
    os.write(fd, b"token-of-b")
    os.close(fd)
    run(
        entry(site, "a"),
        entry(site, "b", state=State.ACQUIRING, token=None, journal=1, release="raise"),
        entry(site, "c", state=State.ACQUIRING, token=None, journal=2),
    )
    tokens = {kept.name: kept.token and kept.token.reveal() for kept in folder.read().entries}
    assert tokens == {"b": "token-of-b", "c": None}


def test_a_token_that_arrives_after_a_release_is_found(site, run):
    """An orphaned child may still be acquiring while Epilog releases the others."""
    folder = site.folder()
    folder.create()
    fd = folder.journals.open(1)
    run(entry(site, "a"), entry(site, "b", state=State.ACQUIRING, token=None, journal=1))
    os.write(fd, b"late-token")
    os.close(fd)
    assert [kept.token.reveal() for kept in folder.read().entries if kept.token] == ["late-token"]


@pytest.mark.parametrize("what", ["write", "remove_exports"])
def test_a_full_disk_keeps_no_session_open(site, run, monkeypatch, what):
    """The record on disk is then out of date, and its QPUs are released again later."""

    def refuse(*_arguments):
        raise RecordError("No space left on device")

    folder = site.folder()
    folder.create()
    folder.write(Record("test", 12, os.getuid(), "n1", "b", 0, time.time(), (entry(site, "a"),)))
    current = folder.read()
    monkeypatch.setattr(f"qrmi_slurm.state.job_folder.JobFolder.{what}", refuse)
    assert release.release(current, site.hook_run("epilog")) is None
    assert site.calls() == [f"release a {SECRET}-a"]


def test_if_qrmi_cannot_be_imported_that_is_the_reason(site, run, monkeypatch):
    def no_qrmi(*_arguments):
        raise BackendError("QRMI cannot be imported")

    monkeypatch.setattr("qrmi_slurm.calls.backend.run", no_qrmi)
    [kept] = run(entry(site, "a")).entries
    assert (kept.state, kept.reason) == (State.RELEASING, "QRMI cannot be imported")


def test_a_running_jobs_other_qpus_stay_as_they_are(site, run):
    """recover releases what an earlier run left; the record and the exports belong to the current one."""
    site.folder().create()
    site.folder().write_exports("x", os.getuid())
    left = run(
        entry(site, "a", state=State.RELEASING), entry(site, "b"), which=lambda held: held.state is State.RELEASING
    )
    assert [(kept.name, kept.state) for kept in left.entries] == [("b", State.ACQUIRED)]
    assert site.calls() == [f"release a {SECRET}-a"]
    assert site.folder().exports_path.exists()


def rotated(site, **changes):
    """Write a config whose key is another one than the record's; the stand-in refuses the record's."""
    site.add("a", **{"calls": str(site.calls_path)})
    resource = site.resources[0]["environment"]
    resource |= {"QRMI_IBM_QCS_IAM_APIKEY": f"{SECRET}-new", **changes}
    site.write_config(json.dumps({"resources": site.resources}))


def keys_asked_with(monkeypatch):
    """Return the keys that QRMI is called with; every call is refused."""
    keys = []

    def refuse(calls, _timeout_s, on_answers):
        for call in calls:
            keys.append(call.environment["a_QRMI_IBM_QCS_IAM_APIKEY"])
            on_answers([protocol.Answer(call, protocol.Verdict.REFUSED, None, "401", 0.0, ())])

    monkeypatch.setattr("qrmi_slurm.calls.backend.run", refuse)
    return keys


def test_a_rotated_key_is_tried_after_the_records_key(site, run, monkeypatch):
    rotated(site)
    keys = keys_asked_with(monkeypatch)
    run(entry(site, "a"))
    assert keys == [f"{SECRET}-apikey", f"{SECRET}-new"]
    assert site.folder().read().entries[0].environment["a_QRMI_IBM_QCS_IAM_APIKEY"] == f"{SECRET}-apikey"


@pytest.mark.parametrize(
    "changes", [{"QRMI_IBM_QCS_ENDPOINT": "http://elsewhere.invalid"}, {"QRMI_IBM_QCS_SERVICE_CRN": "crn:v1:other"}]
)
def test_a_new_key_is_never_sent_to_an_old_address(site, run, monkeypatch, changes):
    rotated(site, **changes)
    keys = keys_asked_with(monkeypatch)
    run(entry(site, "a"))
    assert keys == [f"{SECRET}-apikey"]


def test_a_word_in_the_qpus_name_does_not_make_its_variables_secret(site, run, monkeypatch):
    """For a QPU called `my_QRMI_KEY`, a changed address is not a secret to renew."""
    site.add("my_QRMI_KEY")
    changes = {"QRMI_IBM_QCS_IAM_APIKEY": f"{SECRET}-new", "QRMI_IBM_QCS_ENDPOINT": "http://elsewhere.invalid"}
    site.resources[0]["environment"] |= changes
    site.write_config(json.dumps({"resources": site.resources}))
    asked = []

    def refuse(calls, _timeout_s, on_answers):
        asked.extend(call.resource for call in calls)
        on_answers([protocol.Answer(call, protocol.Verdict.REFUSED, None, "401", 0.0, ()) for call in calls])

    monkeypatch.setattr("qrmi_slurm.calls.backend.run", refuse)
    run(entry(site, "my_QRMI_KEY"))
    assert asked == ["my_QRMI_KEY"]


def test_a_tuned_session_gets_the_new_key_as_well(site, run, monkeypatch):
    rotated(site, QRMI_IBM_QCS_SESSION_MAX_TTL="900")
    keys = keys_asked_with(monkeypatch)
    one = entry(site, "a")
    run(one._replace(environment={**one.environment, "a_QRMI_IBM_QCS_SESSION_MAX_TTL": "60"}))
    assert keys == [f"{SECRET}-apikey", f"{SECRET}-new"]


def test_a_users_own_key_is_not_replaced_by_the_sites(site, run, monkeypatch):
    rotated(site)
    keys = keys_asked_with(monkeypatch)
    run(entry(site, "a")._replace(run_as_uid=1001))
    assert keys == [f"{SECRET}-apikey"]


# --- a user's own credentials: whatever the user does, releasing comes to an end ----------------------------------


@pytest.mark.parametrize(
    ("field", "since_now_s", "is_left"),
    [("expires_s", 60, True), ("expires_s", -1, False), ("asked_s", -28_700, True), ("asked_s", -28_900, False)],
    ids=["open", "expired", "for eight hours", "for longer"],
)
def test_releasing_with_a_users_credentials_is_given_up_once_the_session_has_ended(
    site, run, syslog_lines, field, since_now_s, is_left
):
    changes = {field: time.time() + since_now_s}
    users = entry(site, "a", release="segv")._replace(run_as_uid=os.getuid(), **changes)
    sites = entry(site, "b", release="segv")._replace(**changes)
    left = run(users, sites)
    assert [kept.name for kept in left.entries] == (["a", "b"] if is_left else ["b"])
    assert any("given-up: job=12 qpu=a" in line for _, line in syslog_lines) is not is_left


def test_a_qpu_that_a_living_job_holds_is_never_given_up(site, run):
    held = entry(site, "a")._replace(run_as_uid=os.getuid(), expires_s=time.time() - 1)
    left = run(held, which=lambda _entry: False)
    assert [kept.name for kept in left.entries] == ["a"]


@pytest.mark.parametrize("word", ["", "gone"])
@pytest.mark.parametrize(("ends_in_s", "held_s"), [(-50, 250), (50, 300)], ids=["expired", "open"])
def test_a_session_that_has_ended_by_itself_is_held_no_longer_than_that(site, run, word, ends_in_s, held_s):
    """A job may have gone on for hours since, before Epilog confirms that it is closed."""
    now_s = time.time()
    begun_s = now_s - 300
    held = entry(site, "a", release=word, expires_s=now_s + 900)
    assert run(held._replace(ends_s=now_s + ends_in_s, asked_s=begun_s, acquired_s=begun_s)) is None
    [file] = site.state_dir.glob("*/.accounting/*.jsonl")
    [line] = file.read_text().splitlines()
    assert json.loads(line)["held_s"] == pytest.approx(held_s, abs=20)
