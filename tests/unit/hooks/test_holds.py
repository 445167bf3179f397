"""A licensed QPU counts as held until its release is proven."""

import os
import time

import pytest

from qrmi_slurm.errors import SchedulerError
from qrmi_slurm.hooks import holds
from qrmi_slurm.outages import reservations
from qrmi_slurm.secret import Secret
from qrmi_slurm.state import inventory
from qrmi_slurm.state.job_folder import JobFolder
from qrmi_slurm.state.record import Ended, Entry, Record, State

CREATED_S = 1000.0
HELD = "qpu_held_qpu_a_12_1000_0"


def entry(**changes):
    return Entry("a", "t", {}, state=State.RELEASING, token=Secret("t"), license="qpu_a")._replace(**changes)


def record(*entries, job_id=12):
    return Record("test", job_id, os.getuid(), "n1", "b", 0, CREATED_S, entries)


@pytest.fixture
def run(site, syslog_lines):
    return site.hook_run("epilog")


# --- after a release ---------------------------------------------------------------------------------------------


def test_the_license_of_a_failed_release_is_kept_and_given_back(slurm, run):
    slurm.licenses["qpu_a"] = (1, 0)
    (kept,) = holds.keep(record(entry()), run).entries
    assert kept.hold == HELD
    assert slurm.reservations[HELD]["Licenses"] == "qpu_a:1"
    assert slurm.reservations[HELD]["EndTime"] == "now+3600seconds"
    over = [Ended(kept, "released", 1.0)]
    assert holds.let_go(over, run) == (over, [])
    assert slurm.reservations == {}
    assert holds.let_go(over, run) == (over, [])  # Slurm has ended it


def test_it_lasts_as_long_as_the_session(slurm, run):
    slurm.licenses["qpu_a"] = (1, 0)
    holds.keep(record(entry(expires_s=time.time() + 500)), run)
    assert slurm.reservations[HELD]["EndTime"] in ("now+499seconds", "now+500seconds")


@pytest.mark.parametrize(
    "changes",
    [
        {"license": ""},
        {"state": State.ACQUIRED},
        {"state": State.INDETERMINATE, "token": None},
        {"expires_s": 1.0},
        {"run_as_uid": 1000},
        {"hold": HELD, "expires_s": time.time() + 1000},
    ],
)
def test_what_needs_no_hold_gets_none(slurm, run, changes):
    """Not counted, not failed, over, a user's own, kept already."""
    before = record(entry(**changes))
    assert holds.keep(before, run) == before
    assert slurm.changes == []


def test_all_out_of_service_is_as_good(slurm, run):
    slurm.licenses["qpu_a"] = (1, 0)
    slurm.full.add("qpu_a")
    assert holds.keep(record(entry()), run).entries[0].hold == ""


def test_if_slurm_cannot_be_asked_the_release_goes_on(slurm, run, syslog_lines):
    slurm.is_up = False
    assert holds.keep(record(entry()), run).entries[0].hold == ""
    other = Ended(entry(), "released", 1.0)
    over, stuck = holds.let_go([Ended(entry(hold=HELD), "released", 1.0), other], run)
    assert over == [other]
    assert [(item.state, item.hold) for item in stuck] == [(State.RELEASING, HELD)], "the next attempt gives it back"
    events = [line.split(":")[1].strip() for _, line in syslog_lines]
    assert events == ["license-not-held", "license-still-held"]


def test_one_without_an_end_is_renewed(monkeypatch):
    asked = []

    def run(command, slurm_conf, timeout_s):
        asked.append(" ".join(command[1:3]))
        if command[1] == "create":
            raise reservations.RefusedError("m", "h", "Error creating the reservation: Duplicate reservation name\n")
        return ""

    monkeypatch.setattr(reservations.commands, "run", run)
    assert reservations.hold(HELD, "qpu_a", 3600.0, "why", None, 1.0)
    assert asked == ["create reservation", f"update ReservationName={HELD}"]


def test_another_refusal_is_an_error(monkeypatch):
    def run(command, slurm_conf, timeout_s):
        raise reservations.RefusedError("m", "h", "Access denied\n")

    monkeypatch.setattr(reservations.commands, "run", run)
    with pytest.raises(SchedulerError):
        reservations.hold(HELD, "qpu_a", 3600.0, "why", None, 1.0)
    with pytest.raises(SchedulerError):
        reservations.let_go(HELD, None, 1.0)


# --- before an acquisition ---------------------------------------------------------------------------------------


@pytest.fixture
def other(site):
    """Write the record of another job."""

    def write(*entries):
        folder = JobFolder(site.state_dir, "test", 7)
        folder.create()
        folder.write(record(*entries, job_id=7))

    return write


@pytest.mark.parametrize(
    ("changes", "capacity", "is_held"),
    [
        ({"reason": "500"}, 1, True),
        ({"reason": "500"}, 2, False),
        ({"state": State.ACQUIRED}, 1, True),
        ({"license": "qpu_b"}, 1, False),
        ({"license": ""}, 1, False),
        ({"expires_s": 1.0}, 1, False),
        ({"run_as_uid": 1000}, 1, False),
        ({"state": State.FAILED, "token": None}, 1, False),
        ({"state": State.INDETERMINATE, "token": None}, 1, False),
        ({"state": State.INDETERMINATE, "token": None, "since_s": 9e9}, 1, True),
    ],
)
def test_another_jobs_session_is_met(site, run, other, changes, capacity, is_held):
    """One without a token counts while its answer is awaited."""
    other(entry(**changes))
    short = run.within(0.4)
    assert holds.holder("qpu_a", capacity, record(), short) == (7 if is_held else None)


def test_an_earlier_run_of_the_same_job_is_met(run):
    own = record(entry(reason="500"))
    assert holds.holder("qpu_a", 1, own, run) == 12


def test_another_clusters_session_is_not_met(site, run):
    """Each cluster's Slurm counts its own licenses, also where clusters share a state directory."""
    folder = JobFolder(site.state_dir, "elsewhere", 7)
    folder.create()
    folder.write(record(entry(reason="500"), job_id=7)._replace(cluster="elsewhere"))
    assert holds.holder("qpu_a", 1, record(), run) is None


def test_a_release_that_ends_in_time_is_waited_for(site, run, other, monkeypatch):
    other(entry(state=State.ACQUIRED))
    monkeypatch.setattr(holds.time, "sleep", lambda _: other())
    assert holds.holder("qpu_a", 1, record(), run) is None


def test_thousands_of_records_are_read_once_while_a_release_is_waited_for(site, run, other, monkeypatch):
    """Then only those that hold the license are looked at, ten times a second."""
    for job_id in range(100, 140):
        folder = JobFolder(site.state_dir, "test", job_id)
        folder.create()
        folder.write(record(entry(license="qpu_b"), job_id=job_id))
    other(entry(state=State.ACQUIRED))
    scans, decoded, sleeps = [], [], []
    scan, decode = inventory.mentioning, JobFolder.decoded
    monkeypatch.setattr(inventory, "mentioning", lambda *asked: scans.append(asked) or scan(*asked))
    monkeypatch.setattr(JobFolder, "decoded", lambda folder, text: decoded.append(folder) or decode(folder, text))
    monkeypatch.setattr(holds.time, "sleep", lambda _: sleeps.append(1) or (other() if len(sleeps) == 50 else None))
    assert holds.holder("qpu_a", 1, record(), run) is None
    assert len(scans) == 2, "at first, and when the only holder was gone"
    assert {folder.job_id for folder in decoded} == {7}
    assert len(decoded) <= 52


def test_one_that_comes_while_another_is_waited_for_is_met(site, run, other, monkeypatch):
    other(entry(state=State.ACQUIRED))

    def sleep(_):
        other()
        folder = JobFolder(site.state_dir, "test", 8)
        folder.create()
        folder.write(record(entry(reason="500"), job_id=8))

    monkeypatch.setattr(holds.time, "sleep", sleep)
    assert holds.holder("qpu_a", 1, record(), run) == 8
