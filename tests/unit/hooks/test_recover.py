"""Recovering: QPUs that no job uses are released, and others never."""

import json
import os
import time

import pytest
from doubles import COMPUTE_SERVICE, SECRET

from qrmi_slurm.errors import RecordError
from qrmi_slurm.hooks import recover
from qrmi_slurm.hooks.recover import Mode, Step, World
from qrmi_slurm.secret import Secret
from qrmi_slurm.slurm.jobs import Job
from qrmi_slurm.state import inventory
from qrmi_slurm.state.job_folder import JobFolder
from qrmi_slurm.state.record import Entry, Record, State

NOW_S = 1_000_000.0
GONE = Job("GONE", 0)
RUNNING = {12: Job("RUNNING", 0)}


def entry(name="a", state=State.ACQUIRED, token=f"{SECRET}-a", **changes):
    values = {"since_s": NOW_S, "token": Secret(token) if token else None, **changes}
    return Entry(name, "ibm-quantum-compute-service", {}, state=state, **values)


def record_of(*entries, **changes):
    values = {"cluster": "test", "job_id": 12, "uid": os.getuid(), "node": "n1", "boot_id": "b", "restart_count": 0}
    return Record(**{**values, "created_s": NOW_S, "entries": entries, **changes})


def world(jobs, *, cluster="test", boots=()):
    """Return what Slurm says when it is asked about any job from 1 to 99, and knows only some."""
    asked = None if jobs is None else {job_id: jobs.get(job_id, GONE) for job_id in range(1, 100)}
    return World(cluster, asked, dict(boots))


def plan(record, jobs=RUNNING, *, after_s=0.0, **more):
    return recover.plan(record, world(jobs, **more), NOW_S + after_s)


@pytest.mark.parametrize(
    "state", ["RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "EXPEDITING", "NEW_IN_2030"]
)
def test_a_running_job_keeps_its_qpus(state):
    """A job state of a newer Slurm is no reason to take a QPU away."""
    assert plan(record_of(entry()), {12: Job(state, 0)}).step is Step.LEAVE


@pytest.mark.parametrize(
    "jobs", [{}, {12: Job("COMPLETED", 0)}, {12: Job("NODE_FAIL", 0)}, {12: Job("PENDING", 1)}, {12: Job("RUNNING", 1)}]
)
def test_the_qpus_of_a_run_that_has_ended_are_released(jobs):
    assert plan(record_of(entry()), jobs).step is Step.RELEASE


def test_without_slurms_answer_nothing_is_released_and_that_is_reported():
    found = plan(record_of(entry()), None)
    assert (found.step, found.is_fault) == (Step.LEAVE, True)


def test_another_clusters_jobs_are_left_alone():
    """On a shared state directory job 12 of the other cluster lives, whatever this one knows of a job 12."""
    assert plan(record_of(entry(), cluster="other"), {}).step is Step.LEAVE
    assert plan(record_of(entry(), cluster="other"), {}, cluster=None).step is Step.LEAVE


@pytest.mark.parametrize("cluster", ["other", "cluster"])
@pytest.mark.parametrize("held", [entry(state=State.RELEASING), entry(token=None, expires_s=NOW_S - 1)])
def test_nothing_of_another_clusters_records_is_touched(cluster, held):
    """Its node n1 has another boot id, and its release is its own to retry."""
    found = plan(record_of(held, cluster=cluster), {}, boots={"n1": "another"}, after_s=1e6)
    assert (found.step, found.is_fault) == (Step.LEAVE, False)
    assert plan(record_of(cluster=cluster), {}).step is Step.LEAVE


def test_a_job_that_was_submitted_later_has_only_the_number_of_the_recorded_one():
    later = {12: Job("RUNNING", 0, submit_s=2000, start_s=2001)}
    assert plan(record_of(entry(), start_s=1000), later).step is Step.RELEASE
    assert plan(record_of(start_s=1000), later).step is Step.FORGET
    assert plan(record_of(entry(), start_s=2001), later).step is Step.LEAVE
    assert plan(record_of(entry(), start_s=None), later).step is Step.LEAVE
    powered_up = {12: Job("RUNNING", 0, submit_s=1000, start_s=2001)}
    assert plan(record_of(entry(), start_s=1000), powered_up).step is Step.LEAVE


def test_a_job_of_several_nodes_may_live_on_without_the_one_that_rebooted():
    held = record_of(entry(), node_count=2)
    assert plan(held, RUNNING, boots={"n1": "another"}).step is Step.LEAVE
    assert plan(held, {}, boots={"n1": "another"}).step is Step.RELEASE


def test_the_case_of_a_clusters_name_does_not_matter():
    assert plan(record_of(entry()), {}, cluster="Test").step is Step.RELEASE


def test_a_node_that_has_rebooted_needs_no_answer_from_slurm():
    assert plan(record_of(entry()), None, boots={"n1": "another"}).step is Step.RELEASE
    assert plan(record_of(entry()), RUNNING, boots={"n1": "another"}).step is Step.RELEASE
    assert plan(record_of(entry()), RUNNING, boots={"n1": "b", "n2": "another"}).step is Step.LEAVE
    assert plan(record_of(entry()), RUNNING, boots={"n1": ""}).step is Step.LEAVE


def test_for_a_running_job_only_pending_qpus_are_released():
    """A requeued job's first session could not be closed; its second is in use."""
    found = plan(record_of(entry(state=State.RELEASING), entry("b")))
    assert (found.step, found.only_pending) == (Step.RELEASE, True)


@pytest.mark.parametrize(("attempts", "wait_s"), [(0, 0), (1, 30), (2, 60), (3, 120), (7, 1800), (99, 1800)])
def test_the_time_between_attempts_grows(attempts, wait_s):
    held = record_of(entry(state=State.RELEASING, attempts=attempts))
    assert plan(held, {}, after_s=wait_s - 0.5).step is (Step.WAIT if wait_s else Step.RELEASE)
    assert plan(held, {}, after_s=wait_s).step is Step.RELEASE
    assert recover.plan(held, world({}), NOW_S, now=True).step is Step.RELEASE


def test_a_clock_that_was_set_back_delays_no_attempt_by_more_than_the_back_off():
    held = entry(state=State.RELEASING, attempts=1)
    assert recover.next_try_s(held, NOW_S - 3600) == NOW_S - 3600 + 30


def test_a_qpu_without_a_token_is_kept_until_its_session_has_expired():
    held = record_of(entry(state=State.INDETERMINATE, token=None, expires_s=NOW_S + 60))
    found = plan(held, {}, after_s=59)
    assert (found.step, found.is_fault) == (Step.WAIT, False)
    assert plan(held, {}, after_s=60).step is Step.FORGET


def test_a_qpu_of_unknown_end_is_left_for_an_admin_to_forget():
    found = plan(record_of(entry(state=State.INDETERMINATE, token=None)), {}, after_s=1e9)
    assert (found.step, found.is_fault) == (Step.WAIT, True)
    assert "release --forget" in found.reason


def test_a_running_jobs_folder_stays_even_if_it_holds_nothing():
    """Its exports tell the job's tasks why they have no QPU."""
    assert plan(record_of()).step is Step.LEAVE
    assert plan(record_of(), {12: Job("PENDING", 1)}).step is Step.LEAVE
    assert plan(record_of(), {}).step is Step.FORGET


# --- on disk -----------------------------------------------------------------------------------------------------


@pytest.fixture
def hold(site):
    """Write a record of job 12 that holds QPU a, whose release does what `fake` says; return its folder."""

    def write(*, job_id=12, cluster="test", state=State.ACQUIRED, run_as_uid=None, **fake):
        folder = JobFolder(site.state_dir, cluster, job_id)
        folder.create()
        told = {f"a_QRMI_FAKE_{key.upper()}": value for key, value in fake.items()}
        environment = {f"a_{key}": value for key, value in COMPUTE_SERVICE.items()}
        environment |= {"a_QRMI_FAKE_CALLS": str(site.calls_path), **told}
        held = Entry("a", "ibm-quantum-compute-service", environment, state=state, token=Secret(f"{SECRET}-a"))
        held = held._replace(run_as_uid=run_as_uid)
        folder.write(record_of(held, job_id=job_id, cluster=cluster, created_s=time.time()))
        return folder

    return write


@pytest.fixture
def run(site, syslog_lines):
    """Recover, and return the results; check that no secret is in them or in the log."""

    def recover_all(jobs=None, *, ask=None, boots=(("n1", "b"),), **mode):
        known = jobs or {}
        answer = ask or (lambda job_ids: {job_id: known.get(job_id, GONE) for job_id in job_ids})
        results = recover.run(site.options(), World("test", {}, dict(boots)), answer, Mode(**mode))
        assert SECRET not in repr(results) + repr(syslog_lines)
        return results

    return recover_all


def test_a_user_with_many_sessions_of_their_own_keeps_a_run_busy_for_seconds_only(hold, run, monkeypatch):
    """Once the time for a user's own is over, none of theirs is begun; the site's are."""
    for job_id, uid in ((12, None), (13, os.getuid()), (14, None)):
        hold(job_id=job_id, run_as_uid=uid)
    monkeypatch.setattr(recover, "_USERS_RUN_S", -1.0)
    told = {result.job_id: (result.outcome, result.plan.reason) for result in run()}
    late = "this run had no time left for it; the next one goes on"
    assert told == {number: ("released", "the job has ended") for number in (12, 14)} | {13: ("", late)}


def test_the_qpu_of_a_job_that_has_ended_is_released(site, hold, run):
    folder = hold()
    [result] = run()
    assert (result.outcome, result.is_left, result.qpus) == ("released", False, ("a",))
    assert site.calls() == [f"release a {SECRET}-a"]
    assert not folder.exists()


def test_a_dry_run_calls_no_service_and_changes_nothing(site, hold, run):
    folder = hold()
    before = (folder.path / "record.json").read_bytes()
    [result] = run(dry_run=True)
    assert (result.plan.step, result.outcome) == (Step.RELEASE, "")
    assert site.calls() == []
    assert (folder.path / "record.json").read_bytes() == before


def test_a_qpu_that_cannot_be_released_waits_for_the_next_attempt(hold, run):
    hold(release="raise")
    [first] = run()
    [second] = run()
    assert (first.is_left, second.is_left, second.plan.step) == (True, True, Step.WAIT)
    assert "says no" in first.outcome


def not_asked(job_ids):
    raise AssertionError(f"Slurm was asked about {job_ids}")


def test_what_was_put_aside_is_released_without_asking_slurm(site, hold, run):
    """Prolog does that with another run's record only: that run has ended, whatever has its number now."""
    folder = hold()
    with folder.locked(1):
        aside = folder.put_aside()
    [result] = run(ask=not_asked)
    assert (result.job_id, result.outcome) == (12, "released")
    assert not aside.exists()
    assert folder.exists()


def newer(folder):
    path = folder.path / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 2}))
    return path


@pytest.mark.parametrize(
    ("jobs", "is_left"), [(RUNNING, False), ({}, True)], ids=["its job lives", "its job has ended"]
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_newer_versions_record_is_left_alone_and_reported(site, hold, run, jobs, is_left, dry_run):
    path = newer(hold())
    before = path.read_bytes()
    [result] = run(jobs, dry_run=dry_run)
    assert (result.plan.step, result.is_left) == (Step.LEAVE, is_left)
    assert "of a newer qrmi-slurm" in result.plan.reason
    assert path.read_bytes() == before
    assert site.calls() == []


def test_another_clusters_unreadable_record_is_not_set_aside(hold, run):
    path = hold(cluster="other").path / "record.json"
    path.write_text("garbage")
    [result] = run()
    assert (result.plan.reason, result.is_left) == ("it belongs to cluster other", False)
    assert path.exists()


def test_slurm_is_not_asked_if_nothing_is_recorded(run):
    assert run(ask=not_asked) == []


def test_slurm_is_not_asked_about_a_job_on_which_nothing_depends(site, hold, run):
    """A pending release, a record from before a reboot, an unreadable one; and another cluster's."""
    hold(job_id=7, state=State.RELEASING)
    (hold(job_id=9).path / "record.json").write_text("{")
    hold(job_id=10)
    results = {result.job_id: result for result in run(ask=not_asked, boots={"n1": "another"})}
    assert [results[job_id].outcome for job_id in (7, 10)] == ["released", "released"]
    assert results[9].is_left
    hold(cluster="other")
    [result] = [result for result in run(ask=not_asked) if result.job_id == 12]
    assert result.plan == recover.Plan(Step.LEAVE, "it belongs to cluster other")


def test_a_service_that_is_down_for_a_day_is_asked_some_fifty_times():
    """With a run every minute: seven times in the first hour, then twice an hour (docs/benchmarks.md, at scale)."""
    held, attempts_s = entry(state=State.RELEASING, attempts=1), []
    for run_s in range(0, 24 * 3600, 60):
        if plan(record_of(held), after_s=run_s).step is Step.RELEASE:
            attempts_s.append(run_s)
            held = held._replace(attempts=held.attempts + 1, since_s=NOW_S + run_s)
    assert len([run_s for run_s in attempts_s if run_s < 3600]) <= 7
    assert len(attempts_s) <= 53


def test_slurm_is_asked_about_a_holding_job_in_every_run(hold, run):
    hold()
    asked = []
    for _ in range(3):
        run(ask=lambda job_ids: asked.append(job_ids) or RUNNING)
    assert asked == [[12], [12], [12]]


def test_nodes_that_share_the_records_share_the_questions(hold, run):
    """One of them asks each minute; what it has found out a moment ago, the others do not ask again."""
    folder, asked = hold(), []

    def look(node):
        [result] = run(ask=lambda job_ids: asked.append(node) or RUNNING, boots={node: "b"})
        assert result.plan.step is Step.LEAVE

    for node in ("n1", "n2", "n3", "n1"):
        look(node)
    assert asked == ["n1", "n1"]
    os.utime(folder.path / "looked", (0, time.time() - 46))
    for node in ("n2", "n3", "n1"):
        look(node)
    assert asked == ["n1", "n1", "n2"]
    [result] = run(boots={"n3": "b"}, now=True)
    assert result.outcome == "released"


def test_thousands_of_folders_on_which_nothing_depends_are_neither_locked_nor_read_again(site, hold, run, monkeypatch):
    """As after a cluster was renamed: each costs one look."""
    for job_id in range(1, 41):
        hold(job_id=job_id, cluster="other")
    monkeypatch.setattr(JobFolder, "locked", None)
    monkeypatch.setattr(JobFolder, "read", None)
    assert {result.plan.reason for result in run()} == {"it belongs to cluster other"}


def test_slurm_is_asked_hourly_about_a_folder_that_holds_nothing(site, run):
    """A job over many nodes has such a folder on each but the first."""
    folder = site.folder()
    folder.create()
    asked = []

    def ask(job_ids):
        asked.append(job_ids)
        return RUNNING

    run(ask=ask)
    assert asked == []
    for _ in range(3):
        run(ask=ask)
    assert asked == []
    os.utime(folder.path, (0, time.time() - 3601))
    for _ in range(3):
        run(ask=ask)
    assert asked == [[12]]
    run(ask=ask, now=True)
    assert asked == [[12], [12]]
    os.utime(folder.path, (0, time.time() - 3601))
    assert run(ask=lambda job_ids: None) == []
    assert [result.outcome for result in run()] == ["removed"]


def test_a_job_that_starts_after_slurms_answer_keeps_its_qpu(site, hold, run):
    """Prolog writes its record while squeue answers, so the answer does not include the job."""
    hold(job_id=7)

    def ask(job_ids):
        hold()
        return dict.fromkeys(job_ids, GONE)

    assert [result.job_id for result in run(ask=ask)] == [7]
    assert site.folder().read().entries[0].state is State.ACQUIRED


def test_a_job_that_runs_again_after_slurms_answer_keeps_its_qpu(site, hold, run):
    hold()

    def ask(_job_ids):
        site.folder().remove()
        hold()
        return {12: Job("PENDING", 1)}

    [result] = run(ask=ask)
    assert (result.plan.step, result.is_left) == (Step.LEAVE, False)
    assert site.calls() == []


def test_a_record_that_a_hook_has_locked_is_left_alone(site, hold, run):
    folder = hold()
    with folder.locked(1):
        [result] = run()
    assert (result.plan.reason, result.is_left) == ("another process is working on it", False)
    assert site.calls() == []


def test_a_folder_without_a_record_is_removed_after_its_job(site, run):
    site.folder().create()
    assert run({12: Job("RUNNING", 0)}, now=True) == []
    assert run({12: Job("PENDING", 1)}, now=True) == []
    assert site.folder().exists()
    [result] = run({12: Job("FAILED", 0)}, now=True)
    assert result.outcome == "removed"
    assert not site.folder().exists()


def test_an_unreadable_record_does_not_stop_others(site, hold, run):
    hold()
    broken = hold(job_id=7)
    (broken.path / "record.json").write_text("{")
    results = {result.job_id: result for result in run()}
    assert results[7].is_left
    assert results[12].outcome == "released"
    [aside] = inventory.set_aside(site.state_dir)
    assert (aside / "record.json").read_text() == "{"
    assert [result.job_id for result in run(now=True)] == [7]  # its empty folder is left
    assert run(now=True) == []


def test_an_admin_can_release_a_running_jobs_qpu_and_its_steps_are_told(site, hold):
    folder = hold()
    folder.write_exports("x", os.getuid())
    [item] = inventory.read(site.state_dir)
    assert recover.take_back(item, site.options(), is_living=True) is None
    assert site.calls() == [f"release a {SECRET}-a"]
    assert "an admin released it" in folder.exports_path.read_text()


def test_only_what_was_shown_to_the_admin_is_released(site, hold):
    hold()
    [item] = inventory.read(site.state_dir)
    site.folder().remove()
    hold()
    with pytest.raises(RecordError, match="just changed"):
        recover.take_back(item, site.options(), is_living=True)


def test_an_admin_can_forget_a_qpu_without_a_token(site, hold):
    folder = hold()
    folder.write(record_of(entry(state=State.INDETERMINATE, token=None)))
    [item] = inventory.read(site.state_dir)
    assert recover.take_back(item, site.options(), is_living=False) is not None
    [item] = inventory.read(site.state_dir)
    assert recover.take_back(item, site.options(), is_living=False, forget=True) is None
    assert not folder.exists()
