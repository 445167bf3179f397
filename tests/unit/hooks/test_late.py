"""Late answers: another process waits for them, and gives back what they bring."""

import json
import os
import time
from pathlib import Path

import pytest
from doubles import SECRET

from qrmi_slurm.calls import places
from qrmi_slurm.errors import RecordError
from qrmi_slurm.hooks import late, prolog
from qrmi_slurm.hooks.late import give_back
from qrmi_slurm.secret import Secret
from qrmi_slurm.state.job_folder import JobFolder
from qrmi_slurm.state.record import Entry, Record, State


def wait_until(condition, timeout_s=20.0):
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "not within its time"
        time.sleep(0.01)


def is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.fixture
def forked(monkeypatch):
    """Note the processes that the hook starts, and reap them at the end."""
    real_fork, found = os.fork, []

    def fork():
        pid = real_fork()
        if pid:
            found.append(pid)
        return pid

    monkeypatch.setattr(os, "fork", fork)
    yield found
    for pid in found:
        wait_until(lambda pid=pid: is_gone(pid))


@pytest.fixture
def late_prolog(site, tmp_path, forked):
    """Run a Prolog whose service does not answer in time; return the file that makes it answer."""

    def run(**fake):
        gate = tmp_path / "gate"
        site.configure("--acquire-timeout=0.5")
        site.add("a", **{"acquire": f"wait-for:{gate}", **fake})
        started_s = time.monotonic()
        assert prolog.prolog(site.hook_environment("a")) == 0
        assert time.monotonic() - started_s < 2.5
        (entry,) = site.folder().read().entries
        assert entry.state is State.INDETERMINATE
        assert entry.reason == (
            "no answer within 0.5 s; the answer is awaited for another 30 s, to release what it brings"
        )
        return gate

    return run


def ledger_of(site):
    return [
        json.loads(line)["result"]
        for path in site.state_dir.glob("test/.accounting/*")
        for line in path.read_text().splitlines()
    ]


def test_what_a_late_answer_brings_is_released(site, late_prolog):
    """The exports stay: they tell the job's tasks why it has no QPU."""
    gate = late_prolog()
    gate.touch()
    wait_until(lambda: not site.folder().read().entries)
    assert site.calls() == ["acquire a ", "release a session-a"]
    assert ledger_of(site) == ["released"]
    assert site.folder().exports_path.exists()


def test_after_epilog_the_folder_goes_as_well(site, late_prolog):
    gate = late_prolog()
    site.folder().remove_exports()
    gate.touch()
    wait_until(lambda: not site.folder().exists())
    assert ledger_of(site) == ["released"]


def test_a_later_run_of_the_job_has_nothing_of_the_late_answer(site, late_prolog):
    """Its record is in the job's folder by now; the earlier one moved, and goes when its QPU is released."""
    gate = late_prolog()
    site.folder().remove_exports()
    aside = site.folder().put_aside()
    record = aside.read()
    (entry,) = record.entries
    later = record._replace(created_s=record.created_s + 1, entries=(entry.to(State.ACQUIRING),))
    site.folder().write(later)
    gate.touch()
    wait_until(lambda: not aside.exists())
    assert site.folder().read() == later
    assert site.calls() == ["acquire a ", "release a session-a"]


def test_a_late_refusal_ends_the_doubt(site, late_prolog, tmp_path):
    """Nothing is held, so nothing has to expire."""
    late_prolog(acquire=f"refuse-after:{tmp_path / 'gate'}").touch()
    wait_until(lambda: not site.folder().read().entries)
    assert ledger_of(site) == ["failed"]


def test_a_release_that_fails_stays_recorded(site, late_prolog):
    gate = late_prolog(release="raise")
    gate.touch()
    wait_until(lambda: site.folder().read().entries[0].attempts == 1)
    (entry,) = site.folder().read().entries
    assert (entry.state, entry.token) == (State.RELEASING, Secret("session-a"))


def test_without_a_place_a_call_is_killed(site, late_prolog, forked, monkeypatch):
    monkeypatch.setattr(late, "LATE", places.LATE._replace(of_node=0))
    late_prolog()
    call, waiting = forked
    wait_until(lambda: is_gone(call) and is_gone(waiting))
    assert site.folder().read().entries[0].state is State.INDETERMINATE


def test_after_its_time_a_call_is_killed(site, late_prolog, forked, monkeypatch):
    monkeypatch.setattr(late, "LATE_S", 0.2)
    late_prolog()
    call, waiting = forked
    wait_until(lambda: is_gone(call) and is_gone(waiting))
    assert site.calls() == ["acquire a "]


def test_a_token_in_a_late_journal_is_to_be_released_while_the_job_lives(site, late_prolog):
    """The waiting process may have been killed: the job does not know of this QPU."""
    late_prolog()
    (site.folder().path / "token-0").write_text("session-a")
    (entry,) = site.folder().read().entries
    assert (entry.state, entry.token) == (State.RELEASING, Secret("session-a"))
    assert site.folder().read().held == ()


def test_what_no_disk_remembers_is_tried_again(site, forked, monkeypatch):
    monkeypatch.setattr(late, "_FIRST_PAUSE_S", 0.01)
    site.add("a")
    site.folder().create()
    told = {"a_QRMI_FAKE_CALLS": str(site.calls_path), "a_QRMI_FAKE_RELEASE": "raise", "a_X": SECRET}
    entry = Entry("a", "ibm-quantum-compute-service", told, state=State.ACQUIRED, token=Secret("t"))
    record = Record("test", 12, os.getuid(), "n1", "b", 0, time.time(), (entry,))

    def full(*_):
        raise RecordError("No space left on device")

    monkeypatch.setattr(JobFolder, "write", full)
    give_back(record, site.hook_run("prolog"))
    wait_until(lambda: is_gone(forked[0]))
    assert site.calls() == ["release a t"] * late._TRIES
