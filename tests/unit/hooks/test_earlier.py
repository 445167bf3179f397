"""What is in a job's folder when its Prolog begins: this run's, an earlier run's, another job's, a newer version's."""

import json
import os

import pytest
from doubles import SECRET

from qrmi_slurm.errors import NewerRecordError, RecordBusyError
from qrmi_slurm.hooks import acquire, earlier, epilog, prolog
from qrmi_slurm.slurm import jobs
from qrmi_slurm.slurm.jobs import Times
from qrmi_slurm.state import exports, inventory
from qrmi_slurm.state.record import RECORD_VERSION, State

OLD, NEW = "1000", "2000"


@pytest.fixture
def begin(site, syslog_lines):
    """Run Prolog for job 12, and return its exports."""

    def run(selection="a", **changes):
        assert prolog.prolog(site.hook_environment(selection, **changes)) == 0
        assert not any(SECRET in line for _, line in syslog_lines)
        return exports.read(site.folder().exports_path, os.getuid(), 12)

    return run


@pytest.fixture(autouse=True)
def slurmctld(monkeypatch):
    """Let slurmctld say that job 12 was submitted at 1990; return how often it was asked."""
    asked = []

    def times(_job_id, _slurm_conf, timeout_s):
        asked.append(timeout_s)
        return Times(300, 1990, 2000)

    monkeypatch.setattr(jobs, "times", times)
    return asked


def records(site):
    return [item.record for item in inventory.read(site.state_dir)]


def calls(site):
    """Return which QPU was acquired or released, in order."""
    return [tuple(call.split()[:2]) for call in site.calls()]


@pytest.mark.parametrize("selection", ["a", "b"])
def test_a_job_with_a_dead_ones_number_gets_its_own(site, begin, selection):
    site.add("a").add("b")
    begin("a", SLURM_JOB_START_TIME=OLD)
    told = begin(selection, SLURM_JOB_START_TIME=NEW, SLURM_JOB_END_TIME="2300")
    assert told.variables["QRMI_JOB_QPU_RESOURCES"] == selection
    assert told.start_s == 2000
    assert calls(site) == [("acquire", "a"), ("release", "a"), ("acquire", selection)]
    [record] = records(site)
    assert (record.start_s, record.selection) == (2000, selection)


def test_on_22_05_slurmctld_is_asked_once_which_job_it_is(site, begin, slurmctld):
    site.add("a")
    begin("a", SLURM_JOB_START_TIME=OLD)
    begin("a", SLURM_JOB_START_TIME=None, SLURM_JOB_END_TIME="2300")
    assert calls(site) == [("acquire", "a"), ("release", "a"), ("acquire", "a")]
    assert records(site)[0].start_s == 2000
    assert len(slurmctld) == 2, "once to tell the two jobs apart, once for the time limit"


def test_prolog_again_under_a_job_whose_nodes_have_powered_up_keeps_its_qpus(site, begin):
    """Its start time has grown since."""
    site.add("a")
    begin("a", SLURM_JOB_START_TIME="1995")
    begin("a", SLURM_JOB_START_TIME=NEW)
    assert calls(site) == [("acquire", "a")]


def test_prolog_again_under_a_running_job_asks_nobody(site, begin, slurmctld):
    site.add("a")
    begin("a")
    begin("a")
    assert calls(site) == [("acquire", "a")]
    assert slurmctld == []


def test_what_a_dead_job_held_stays_its_own_until_it_is_released(site, begin):
    """Another user has its number now."""
    site.add("a", release="raise").add("b")
    begin("a", SLURM_JOB_START_TIME=OLD, SLURM_JOB_USER="alice")
    begin("b", SLURM_JOB_START_TIME=NEW, SLURM_JOB_USER="bob")
    living, dead = records(site)
    assert (living.user, [entry.name for entry in living.held]) == ("bob", ["b"])
    assert (dead.user, dead.start_s, dead.entries[0].state) == ("alice", 1000, State.RELEASING)
    assert epilog.epilog(site.hook_environment("b", SLURM_JOB_START_TIME=NEW)) == 0
    assert records(site) == [dead]


def test_a_dead_jobs_late_token_is_not_taken_for_the_living_jobs(site, begin):
    """Its call ends only now; both runs have the same number and restart count."""
    site.configure("--acquire-timeout=1")
    site.add("a", acquire=f"wait-for:{site.path / 'gate'}").add("b")
    begin("a", SLURM_JOB_START_TIME=OLD)
    begin("b", SLURM_JOB_START_TIME=NEW)
    living, dead = inventory.read(site.state_dir)
    fd = dead.folder.journals.open(dead.record.entries[0].journal)
    os.write(fd, b"late-token")
    os.close(fd)
    assert [entry.name for entry in site.folder().read().held] == ["b"]
    assert dead.folder.read().entries[0].token is not None
    assert living.folder.path == site.folder().path


def test_the_epilog_of_a_dead_job_leaves_the_living_ones_qpus(site, begin):
    """slurmd has run it late, with the dead job's own start time."""
    site.add("a")
    begin("a", SLURM_JOB_START_TIME=NEW)
    assert epilog.epilog(site.hook_environment("a", SLURM_JOB_START_TIME=OLD)) == 0
    assert calls(site) == [("acquire", "a")]


def test_an_epilog_that_waited_while_the_next_run_began_leaves_its_qpus(site, begin, monkeypatch):
    site.add("a")
    begin("a")
    locked = type(site.folder()).locked

    def late(folder, timeout_s, **more):
        monkeypatch.undo()
        begin("a", SLURM_JOB_RESTART_COUNT="1")
        return locked(folder, timeout_s, **more)

    monkeypatch.setattr(type(site.folder()), "locked", late)
    assert epilog.epilog(site.hook_environment("a")) == 0
    assert calls(site) == [("acquire", "a"), ("release", "a"), ("acquire", "a")]


def test_the_epilog_of_a_job_releases_what_a_dead_one_left(site, begin):
    """Its own Prolog was killed before it looked."""
    site.add("a")
    begin("a", SLURM_JOB_START_TIME=OLD)
    assert epilog.epilog(site.hook_environment("a", SLURM_JOB_START_TIME=NEW)) == 0
    assert calls(site) == [("acquire", "a"), ("release", "a")]
    assert records(site) == []


def test_a_killed_prologs_last_words_replace_a_dead_jobs_exports(site, begin):
    site.add("a")
    begin("a", SLURM_JOB_START_TIME=OLD)
    assert prolog.last_words(site.hook_environment("a", SLURM_JOB_START_TIME=NEW), 137) == 0
    assert not exports.read(site.folder().exports_path, os.getuid(), 12).is_ready
    own = begin("a", SLURM_JOB_START_TIME=NEW)
    assert prolog.last_words(site.hook_environment("a", SLURM_JOB_START_TIME=NEW), 137) == 0
    assert exports.read(site.folder().exports_path, os.getuid(), 12) == own


@pytest.mark.parametrize(
    "changes",
    [{"SLURM_JOB_START_TIME": NEW}, {"SLURM_JOB_START_TIME": None}, {"SLURM_JOB_RESTART_COUNT": "1"}],
    ids=["since 23.02", "22.05", "requeued"],
)
def test_a_node_that_waits_for_exports_removes_another_runs(site, begin, changes):
    site.add("a")
    begin("a", SLURM_JOB_START_TIME=OLD)
    waiting = {"SLURMD_NODENAME": "n2", "SLURM_JOB_START_TIME": OLD, **changes}
    assert prolog.prolog(site.hook_environment("a", **waiting)) == 0
    assert not site.folder().exports_path.exists()
    assert [record.held[0].name for record in records(site)] == ["a"]


def test_a_node_that_waits_leaves_its_own_runs_exports(site, begin, slurmctld):
    site.add("a")
    told = begin("a")
    assert prolog.prolog(site.hook_environment("a", SLURMD_NODENAME="n2")) == 0
    assert exports.read(site.folder().exports_path, os.getuid(), 12) == told
    assert slurmctld == []


@pytest.fixture
def newer(site, begin):
    """Leave a record that a newer version wrote, of a job that holds a QPU; return its path."""
    site.add("a")
    begin("a", SLURM_JOB_START_TIME=OLD)
    path = site.folder().path / "record.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": RECORD_VERSION + 1}))
    return path


def test_under_a_running_job_a_newer_versions_record_is_left_alone(site, begin, newer):
    before = newer.read_text()
    assert begin("a", SLURM_JOB_START_TIME=OLD).is_ready
    assert epilog.epilog(site.hook_environment("a", SLURM_JOB_START_TIME=OLD)) == 0
    assert newer.read_text() == before
    assert calls(site) == [("acquire", "a")]


def test_another_run_leaves_a_newer_versions_record_to_that_version(site, begin, newer):
    before = newer.read_text()
    assert begin("a", SLURM_JOB_START_TIME=OLD, SLURM_JOB_RESTART_COUNT="1").is_ready
    own, aside = inventory.read(site.state_dir)
    assert own.record.restart_count == 1
    assert isinstance(aside.fault, NewerRecordError)
    assert (aside.folder.path / "record.json").read_text() == before


def test_two_prologs_of_one_run_do_not_both_acquire(site, begin):
    site.add("a")
    begin("a")
    with site.folder().locked(1), pytest.raises(RecordBusyError):
        acquire.acquire(site.job("a"), site.hook_run("prolog"))
    with site.folder().locked(1):
        assert not earlier.make_way(site.job("a"), site.hook_run("prolog"))
