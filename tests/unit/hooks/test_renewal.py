"""Another session for a job that goes on after its session's end: when recover opens one, and what later steps get."""

import os
import time

import pytest
from doubles import COMPUTE_SERVICE, SECRET, printed, variables_of

from qrmi_slurm.errors import RecordError
from qrmi_slurm.hooks import recover, renewal, task_prolog
from qrmi_slurm.hooks.recover import Mode, Step, World
from qrmi_slurm.secret import Secret
from qrmi_slurm.slurm.jobs import Job
from qrmi_slurm.state import exports, renewals
from qrmi_slurm.state.record import Broker, Entry, Record, State, boot_id

NOW_S = 1_000_000.0
ENDED_S = NOW_S - 10
TTL = "a_QRMI_IBM_QCS_SESSION_MAX_TTL"
LIMIT = "a_QRMI_JOB_TIMEOUT_SECONDS"
TOKEN = "a_QRMI_JOB_ACQUISITION_TOKEN"


def job(state="RUNNING", limit_s: int | None = 3600, restart=0, left_s=600):
    """Return a job with so much of its limit left."""
    end_s = int(NOW_S) + left_s
    return Job(state, restart, 1, None if limit_s is None else end_s - limit_s, None if limit_s is None else end_s)


def entry(ttl="360", limit="300", **changes):
    environment = {TTL: ttl, LIMIT: limit}
    held = Entry("a", "ibm-quantum-compute-service", environment, state=State.ACQUIRED, token=Secret("one"))
    return held._replace(asked_s=NOW_S - 400, ends_s=ENDED_S, **changes)


def record(*entries, **changes):
    return Record("test", 12, os.getuid(), "n1", "b", 0, NOW_S - 400, entries or (entry(),), **changes)


def due(found, of=None):
    return renewal.due(found, of or job(), NOW_S)


def test_a_job_that_was_extended_or_resumed_gets_a_new_session():
    assert due(record()) == {0: None}


@pytest.mark.parametrize(
    "of",
    [
        job("SUSPENDED"),
        job("COMPLETING"),
        job("PENDING"),
        job(restart=1),
        job(left_s=0),  # its limit was set to less than it has run
        job(limit_s=300),
        job(limit_s=304),
    ],
    ids=["suspended", "ending", "requeued", "another run", "shortened", "as it was", "rounded"],
)
def test_any_other_gets_none(of):
    assert due(record(), of) == {}


def test_one_that_lived_as_long_as_the_service_allows_is_renewed_without_more():
    assert due(record(entry("28800", "99999")), job(limit_s=99999)) == {0: None}


def test_a_limit_that_was_taken_away_counts_as_an_extension():
    assert due(record(), job(limit_s=None)) == {0: None}
    assert due(record(entry(limit=str(2**31 - 1))), job(limit_s=None)) == {}


@pytest.mark.parametrize("ends_s", [NOW_S + 1, None])
def test_a_session_that_has_not_ended_or_never_does_stays(ends_s):
    assert due(record(entry()._replace(ends_s=ends_s))) == {}


def test_after_the_clock_was_set_back_a_session_has_not_ended():
    assert renewal.due(record(), job(), NOW_S - 7200) == {}


def test_while_another_may_be_open_none_is_opened():
    unknown = entry()._replace(state=State.INDETERMINATE, token=None, expires_s=NOW_S + 5)
    assert due(record(entry(), unknown)) == {}
    assert due(record(entry(), unknown._replace(expires_s=NOW_S - 5))) == {0: None}
    assert due(record(entry(), unknown._replace(state=State.ACQUIRING))) == {}


def test_a_broker_opens_its_own():
    broker = Broker(1, 2, 3, 0, {"a": Secret("k")}, "", NOW_S)
    assert due(record(broker=broker)) == {}


def test_an_attempt_that_failed_is_made_again_with_a_growing_pause():
    failed = entry()._replace(state=State.FAILED, token=None, attempts=2, since_s=NOW_S)
    found = record(entry(), failed)
    world = World("test", {12: job()}, {})
    assert due(found) == {0: 1}
    assert recover.plan(found, world, NOW_S + 59).step is Step.LEAVE
    assert recover.plan(found, world, NOW_S + 60).step is Step.RENEW
    assert recover.plan(found, world, NOW_S, now=True).step is Step.RENEW


def test_a_brokers_earlier_session_is_given_back():
    broker = Broker(1, 2, 3, 0, {"a": Secret("k")}, "", NOW_S)
    found = record(entry(), entry()._replace(ends_s=NOW_S + 60, renewal=1), broker=broker)
    assert recover.plan(found, World("test", {12: job()}, {}), NOW_S).step is Step.RENEW


@pytest.mark.parametrize(("left_s", "is_told"), [(600, False), (620, False), (640, True), (300, True)])
def test_a_jobs_end_that_has_moved_is_noted(left_s, is_told):
    found = renewal.moved_end_s(record(job_ends_s=NOW_S + 660, over_s=60), job(left_s=left_s))
    assert found == (NOW_S + left_s + 60 if is_told else None)


# --- on disk -----------------------------------------------------------------------------------------------------


@pytest.fixture
def extended(site, start, monkeypatch):
    """Start a job of five minutes whose session has ended, and extend it; return what recovers."""
    site.add("a")
    assert start("a").exit_code == 0
    folder = site.folder()
    held = folder.read()
    (one,) = held.entries
    environment = {**one.environment, "a_QRMI_FAKE_TOKEN": f"{SECRET}-two"}
    now_s = time.time()
    ended = one._replace(environment=environment, asked_s=now_s - 400, ends_s=now_s - 40)
    folder.write(held._replace(entries=(ended,)))
    now = int(time.time())

    def run(of=None, **mode):
        known = {12: of or Job("RUNNING", 0, 1, now - 400, now + 3600)}
        return recover.run(site.options(), World("test", {}, {"n1": boot_id()}), lambda _: known, Mode(**mode))

    return run


def test_the_new_session_is_recorded_told_and_the_old_one_released(site, extended):
    [result] = extended()
    assert (result.plan.step, result.outcome, result.is_left) == (Step.RENEW, "has a new session", False)
    assert site.calls() == ["acquire a ", "acquire a ", "release a session-a"]
    (new,) = site.folder().read().entries
    assert (new.state, new.token.reveal(), new.attempts) == (State.ACQUIRED, f"{SECRET}-two", 0)
    assert int(new.environment[TTL]) == pytest.approx(3660, abs=2)
    assert new.environment[LIMIT] == "4000"
    assert site.folder().read().job_ends_s == pytest.approx(time.time() + 3600, abs=5)
    assert extended()[0].outcome == ""


def test_the_next_step_says_so_once_and_all_later_ones_have_the_new_token(site, start, extended):
    inherited = variables_of(task_prolog.task_prolog(site.task_environment("a")).lines)
    extended()
    for number, more in enumerate((inherited, {}, inherited, {})):
        for rank in ("1", "0"):
            environment = site.task_environment("a", QRMI_SLURM_STATE_DIR=str(site.state_dir), **more)
            outcome = task_prolog.task_prolog({**environment, "SLURM_PROCID": rank})
            said = variables_of(outcome.lines)
            assert (said[TOKEN], said[LIMIT]) == (f"{SECRET}-two", "4000")
            assert len(printed(outcome)) == (number == 0 and rank == "0")
            if printed(outcome):
                until = exports.moment(site.folder().read().entries[0].ends_s)
                assert printed(outcome) == [
                    f"qrmi-slurm: the session on a had ended; this step has a new one, which ends at {until}"
                ]
    if os.getuid() == 0:
        assert (site.folder().path / "renewed").stat().st_mode & 0o777 == 0o600


def test_a_session_that_cannot_be_opened_is_tried_again_in_its_place(site, extended):
    folder = site.folder()
    (one,) = folder.read().entries
    broken = {**one.environment, "a_QRMI_FAKE_ACQUIRE": "raise"}
    folder.write(folder.read()._replace(entries=(one._replace(environment=broken),)))
    for attempts in (1, 2):
        [result] = extended(now=True)
        assert "has no new session yet: " in result.outcome
        old, failed = folder.read().entries
        assert (old.state, failed.state, failed.attempts) == (State.ACQUIRED, State.FAILED, attempts)
    assert extended()[0].plan.step is Step.LEAVE
    folder.write(folder.read()._replace(entries=(one, failed)))
    assert extended(now=True)[0].outcome == "has a new session"
    assert [entry.state for entry in folder.read().entries] == [State.ACQUIRED]


def test_what_ends_recover_after_the_new_session_is_opened_loses_nothing(site, extended, monkeypatch):
    """The next run goes on: it tells the tasks, and releases the old session."""

    def killed(*arguments):
        raise RecordError("gone")

    monkeypatch.setattr(renewal, "_tell_tasks", killed)
    extended()
    monkeypatch.undo()
    assert [entry.state for entry in site.folder().read().entries] == [State.ACQUIRED] * 2
    assert extended()[0].outcome == "has a new session"
    assert site.calls() == ["acquire a ", "acquire a ", "release a session-a"]
    told = exports.read(site.folder().exports_path, os.getuid(), 12)
    assert told.variables[TOKEN] == f"{SECRET}-two"
    assert told.ends_s == {"a": pytest.approx(time.time() + 3660, abs=5)}


@pytest.mark.parametrize("line", ["export =x", "export a\tb=x", "garbage"])
def test_exports_that_their_user_has_spoiled_cost_only_their_own_steps_the_new_session(site, extended, line):
    """recover goes on: the new session is recorded, the old one released, and other jobs are not kept waiting."""
    path = site.folder().exports_path
    text = path.read_text()
    path.chmod(0o600)
    path.write_text(text.replace("\nexport ", f"\n{line}\nexport ", 1))
    [result] = extended()
    assert (result.outcome, result.is_left) == ("has a new session", False)
    assert [entry.token.reveal() for entry in site.folder().read().entries] == [f"{SECRET}-two"]


def test_the_note_about_the_first_sessions_end_goes(site, start, extended):
    folder = site.folder()
    found = exports.read(folder.exports_path, os.getuid(), 12)
    notes = (f"{exports.EARLY_END}a ends at noon", "qrmi-slurm: b is not there")
    folder.write_exports(exports.render(found._replace(notes=notes)), os.getuid())
    extended()
    assert exports.read(folder.exports_path, os.getuid(), 12).notes == notes[1:]


def test_a_brokers_file_is_told_the_jobs_new_end(site, tmp_path):
    from qrmi_slurm.broker import launch

    folder = site.folder()
    folder.create()
    (folder.path / "sessions").touch()
    environment = {f"a_{name}": value for name, value in COMPUTE_SERVICE.items()}
    broker = Broker(1, 2, 3, 0, {"a": Secret("k")}, "", 5.0)
    held = record(entry()._replace(environment=environment), broker=broker)
    assert launch.tell_end(folder, held, 7.5).broker.ends_s == 7.5
    assert renewals.read(folder.path / "sessions").ends_s == 7.5


def test_the_record_learns_the_jobs_new_end_before_its_session_ends(site, extended):
    """So `status` can say that the session ends first."""
    folder = site.folder()
    (one,) = folder.read().entries
    folder.write(folder.read()._replace(entries=(one._replace(ends_s=time.time() + 100),)))
    assert extended()[0].plan.step is Step.LEAVE
    assert folder.read().job_ends_s == pytest.approx(time.time() + 3600, abs=5)
    assert folder.read().ends_before_job(folder.read().entries[0])
