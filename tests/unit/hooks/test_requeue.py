"""Which jobs go back into the queue, for how long, and what the others read."""

import time

import pytest

from qrmi_slurm.deadline import Deadline
from qrmi_slurm.errors import SchedulerError
from qrmi_slurm.failure import Failure, Kind
from qrmi_slurm.hooks import failed_start
from qrmi_slurm.hooks import requeue as hook
from qrmi_slurm.hooks.hook_run import HookRun
from qrmi_slurm.log import HookLog
from qrmi_slurm.slurm import admin_comment, job_context, licenses, plugstack, requeue
from qrmi_slurm.slurm.admin_comment import Requeued
from qrmi_slurm.slurm.requeue import Standing
from qrmi_slurm.state.job_folder import JobFolder

PAUSED = Failure(Kind.PAUSED, "ibm_a", "ibm_a could not be acquired: the QPU is paused")
STANDING = Standing("12", is_running=True, may_wait=True, restarts=0, comment="")


class Slurmctld:
    """Answers for one job: `standing` is what it says, `put_off` and `put_back` what it was told."""

    def __init__(self):
        self.standing = STANDING
        self.version = "slurm 24.11.5"
        self.faults = {}
        self.asked = []
        self.put_back = []
        self.put_off = []

    def act(self, what):
        if what in self.faults:
            raise SchedulerError(self.faults[what])

    def on_ask(self, job_id, work_dir, slurm_conf, deadline):
        self.asked.append(job_id)
        self.act("ask")
        return self.standing

    def on_put_back(self, name, slurm_conf, timeout_s):
        self.act("put_back")
        self.put_back.append(name)

    def on_put_off(self, standing, delay_s, comment, slurm_conf, timeout_s):
        self.act("put_off")
        self.put_off.append((delay_s, comment))


@pytest.fixture
def slurmctld(monkeypatch):
    daemon = Slurmctld()
    monkeypatch.setattr(requeue, "ask", daemon.on_ask)
    monkeypatch.setattr(requeue, "put_back", daemon.on_put_back)
    monkeypatch.setattr(requeue, "put_off", daemon.on_put_off)
    monkeypatch.setattr(requeue, "version", lambda slurm_conf, timeout_s: daemon.version)
    return daemon


@pytest.fixture
def put_back(site, slurmctld):
    """Put job 12 of a site back into the queue."""
    site.configure("--on-unavailable=requeue")

    def run(*arguments, **environment):
        if arguments:
            site.configure("--on-unavailable=requeue", *arguments)
        job = job_context.of_job(site.hook_environment("ibm_a", **environment))
        options = plugstack.read(site.slurm_conf)
        folder = JobFolder(options.state_dir, job.cluster, job.job_id)
        return hook.put_back(job, HookRun(options, folder, HookLog("prolog", 12), Deadline.after(5)), [PAUSED])

    return run


def test_a_batch_job_waits(slurmctld, put_back, syslog_lines):
    assert put_back() is None
    assert slurmctld.put_back == ["12"]
    ((delay_s, comment),) = slurmctld.put_off
    assert 22 <= delay_s <= 30
    told = admin_comment.read(comment)
    assert told == Requeued(1, "paused", "ibm_a", told.since_s, 1)
    assert abs(told.since_s - time.time()) < 60
    assert any("requeued: job=12" in line for _, line in syslog_lines)


@pytest.mark.parametrize(
    ("times", "least_s", "most_s"),
    [(0, 22, 30), (1, 45, 60), (2, 90, 120), (4, 360, 480), (5, 450, 600), (999, 450, 600)],
)
def test_it_waits_longer_each_time(slurmctld, put_back, times, least_s, most_s):
    since_s = int(time.time()) - 3600
    word = Requeued(times, "busy", "ibm_b", since_s, 7).word
    slurmctld.standing = STANDING._replace(restarts=7, comment=f"seen by bob {word}" if times else "seen by bob")
    delays = set()
    for _ in range(50):
        assert put_back() is None
        delay_s, comment = slurmctld.put_off[-1]
        delays.add(delay_s)
        told = admin_comment.read(comment)
        assert comment == f"seen by bob {told.word}"
        assert (told.times, told.kind, told.qpu, told.restarts) == (times + 1, "paused", "ibm_a", 8)
        assert told.since_s == since_s or not times
    assert least_s <= min(delays) and max(delays) <= most_s
    assert len(delays) > 3, "jobs of one outage come back at different moments"


@pytest.mark.parametrize(
    ("line", "least_s", "most_s"), [("", 122, 163), ("AuthInfo=socket=/x,cred_expire=20\n", 22, 30)]
)
def test_before_23_02_it_waits_until_slurmd_has_forgotten_its_run(slurmctld, put_back, site, line, least_s, most_s):
    """Or its script would start without Prolog, where slurmd is busy with other jobs at that moment."""
    site.slurm_conf.write_text(f"ClusterName=test\n{line}")
    for _ in range(50):
        assert put_back(SLURM_JOB_START_TIME=None, SLURM_JOB_END_TIME=None) is None
    delays = {delay_s for delay_s, _ in slurmctld.put_off}
    assert least_s <= min(delays) and max(delays) <= most_s
    assert len(delays) > 3


def test_a_job_that_ran_in_between_begins_anew(slurmctld, put_back):
    """Its restart count has grown by more than ours: someone else has requeued it."""
    word = Requeued(9, "busy", "ibm_b", 1000, 3).word
    slurmctld.standing = STANDING._replace(restarts=4, comment=word)
    assert put_back() is None
    assert admin_comment.read(slurmctld.put_off[0][1]).times == 1


def test_a_clock_that_was_set_back(slurmctld, put_back):
    slurmctld.standing = STANDING._replace(restarts=1, comment=Requeued(1, "busy", "a", 4_000_000_000, 1).word)
    assert put_back() is None
    assert admin_comment.read(slurmctld.put_off[0][1]).since_s <= time.time()


def test_the_limit(slurmctld, put_back):
    """It counts from the first failed start."""
    since_s = int(time.time()) - 3 * 3600
    slurmctld.standing = STANDING._replace(restarts=9, comment=Requeued(9, "busy", "ibm_b", since_s, 9).word)
    assert put_back("--requeue-limit=3.1") is None
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(since_s))
    told = put_back("--requeue-limit=3")
    assert told == f"it was put back into the queue 9 times since {since}, and this site's limit is 3 h"
    assert len(slurmctld.put_back) == 1


@pytest.mark.parametrize("changes", [{"may_wait": False}, {"is_running": False}])
def test_a_job_that_cannot_wait_fails_as_ever(slurmctld, put_back, changes):
    """srun, salloc, --no-requeue; one that was cancelled meanwhile."""
    slurmctld.standing = STANDING._replace(**changes)
    assert put_back() == ""
    assert not slurmctld.put_back


def test_a_site_that_does_not_want_it_is_asked_nothing(site, slurmctld, put_back):
    site.configure("--on-unavailable=fail")
    assert put_back() == ""
    assert not slurmctld.asked


@pytest.mark.parametrize(("flags", "is_put_back"), [("", False), ("Serial", False), ("X11, NoHold", True)])
def test_a_component_whose_script_may_run_is_not_put_back(site, slurmctld, put_back, flags, is_put_back):
    """Without PrologFlags=Alloc, Prolog of a later component runs at its first step."""
    site.slurm_conf.write_text(f"ClusterName=test\nPrologFlags={flags}\n" if flags else "ClusterName=test\n")
    assert put_back(SLURM_HET_JOB_ID="11") == (None if is_put_back else "")
    assert slurmctld.asked == ([11] if is_put_back else [])
    assert put_back(SLURM_HET_JOB_ID="12") is None, "the first component's Prolog is always before the script"


@pytest.mark.parametrize(
    ("latest_s", "outcome"), [(59, "its --deadline leaves no time to wait"), (75, None), (9999, None)]
)
def test_a_deadline(slurmctld, put_back, latest_s, outcome):
    """It is tried once more as long as Slurm can still start it."""
    slurmctld.standing = STANDING._replace(latest_start_s=int(time.time()) + latest_s)
    assert put_back() == outcome
    for delay_s, _ in slurmctld.put_off:
        assert delay_s <= max(latest_s - 60, 5)


@pytest.mark.parametrize(("has_licenses", "waits"), [(True, False), (False, True)])
def test_where_slurm_loses_licenses_only_jobs_without_wait(slurmctld, put_back, has_licenses, waits):
    slurmctld.version = "slurm 25.11.6\n"
    slurmctld.standing = STANDING._replace(has_licenses=has_licenses)
    told = put_back()
    assert (told is None) is waits
    if not waits:
        assert told == "it cannot wait in the queue, since slurm 25.11.6 drops a job's licenses when it puts it back"
    slurmctld.version = "slurm 25.11.7\n"
    assert put_back() is None


@pytest.mark.parametrize("what", ["ask", "put_back"])
def test_a_slurmctld_that_refuses_or_is_down(slurmctld, put_back, syslog_lines, what):
    """The job fails, and its user reads why."""
    slurmctld.faults[what] = "scontrol failed: Requested operation is presently disabled"
    assert put_back() == f"it could not be put back into the queue: {slurmctld.faults[what]}"
    assert not slurmctld.put_off
    assert any("not-requeued: job=12" in line for _, line in syslog_lines)


def test_a_job_that_is_back_but_not_put_off_waits_all_the_same(slurmctld, put_back, syslog_lines):
    """As long as Slurm has it wait by itself."""
    slurmctld.faults["put_off"] = "scontrol did not answer within 1 s"
    assert put_back() is None
    assert any("not-put-off: job=12" in line for _, line in syslog_lines)


def test_a_comment_that_is_unknown_stays(slurmctld, put_back):
    slurmctld.standing = STANDING._replace(comment=None)
    assert put_back() is None
    assert slurmctld.put_off[0][1] is None


# --- which failures count --------------------------------------------------------------------------------------


@pytest.fixture
def outcome(site, slurmctld, acquire_for):
    """Acquire for a job, and return its exports and whether it was put back into the queue."""

    def run(selection, *arguments, **environment):
        site.configure("--on-unavailable=requeue", *arguments)
        result = acquire_for(selection, **environment)
        return result, bool(slurmctld.put_back)

    return run


@pytest.mark.parametrize("selection", ["ibm_a", "ibm_*", "any:ibm_*", "ibm_a,ibm_b"])
def test_one_qpu_that_may_come_back_is_enough_where_any_will_do(site, outcome, selection):
    site.add("ibm_a", status="Paused").add("ibm_b", acquire="raise")
    result, is_waiting = outcome(selection)
    assert is_waiting and not result.is_ready
    assert all("queue" not in note for note in result.notes)


@pytest.mark.parametrize(
    ("selection", "waits"), [("ibm_a", True), ("ibm_a,ibm_c", True), ("ibm_a,ibm_b", False), ("ibm_a,nowhere", False)]
)
def test_each_must_be_able_to_come_back_where_all_are_needed(site, outcome, selection, waits):
    site.add("ibm_a", status="Paused").add("ibm_b", acquire="raise").add("ibm_c")
    result, is_waiting = outcome(selection, "--require=all")
    assert (is_waiting, result.is_ready) == (waits, False)
    of_the_other = [line.split()[0] for line in site.calls() if line.split()[1] == "ibm_c"]
    assert of_the_other == (["acquire", "release"] if "ibm_c" in selection else [])


def test_a_job_that_has_one_of_its_qpus_runs(site, outcome):
    site.add("ibm_a", status="Paused").add("ibm_b")
    result, is_waiting = outcome("ibm_a,ibm_b")
    assert result.is_ready and not is_waiting


@pytest.fixture
def told(monkeypatch, slurmctld):
    """What the sensor is told: the failed QPUs, and how often a job was put back by then."""
    found = []
    monkeypatch.setattr(
        failed_start,
        "tell",
        lambda failures, run: found.append(([one.qpu for one in failures], len(slurmctld.put_back))),
    )
    return found


@pytest.mark.parametrize("may_wait", [True, False])
def test_the_sensor_is_told_before_the_job_is_put_back(site, slurmctld, outcome, told, may_wait):
    """Also by a job that does not wait."""
    site.slurm_conf.write_text("ClusterName=test\nLicenses=qpu_a:1,qpu_ibm_b:1\n")
    slurmctld.standing = STANDING._replace(may_wait=may_wait)
    site.add("ibm_a", status="Paused", slurm={"license": "qpu_a"}).add("ibm_b", acquire="raise")
    assert outcome("ibm_*")[1] is may_wait
    assert told == [(["ibm_a", "ibm_b"], 0)]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"status": "Paused", "slurm": {"license": None}}, {"acquire": "raise"}),
        ({"status": "Paused", "slurm": {"license": "qpu_c"}}, {"acquire": "raise"}),
        ({"acquire": "raise"}, {"acquire": "raise"}),
        ({"status": "Paused"}, {}),
    ],
    ids=["no license", "not counted", "refused", "started all the same"],
)
def test_otherwise_the_sensor_is_told_nothing(site, outcome, told, first, second):
    site.slurm_conf.write_text("ClusterName=test\nLicenses=qpu_ibm_a:1,qpu_ibm_b:1\n")
    site.add("ibm_a", **first).add("ibm_b", **second)
    outcome("ibm_*", SLURM_JOB_LICENSES="qpu_ibm_b")
    assert told == []


@pytest.mark.parametrize(
    ("environment", "waits"),
    [
        ({"SLURM_JOB_LICENSES": "matlab"}, True),
        ({"SLURM_JOB_LICENSES": "matlab", "SLURM_HET_JOB_ID": "12"}, False),
        ({"SLURM_JOB_LICENSES": "matlab", "SLURM_HET_JOB_ID": "11"}, False),
    ],
    ids=["taken", "cannot change", "first component only"],
)
def test_a_license_that_is_taken_may_come_back(site, outcome, monkeypatch, environment, waits):
    """One that a job could never get does not."""
    monkeypatch.setattr(licenses, "read", lambda slurm_conf, timeout_s: {})
    site.slurm_conf.write_text("ClusterName=test\nPrologFlags=Alloc\nLicenses=qpu_ibm_a:1,matlab:9\n")
    site.add("ibm_a")
    result, is_waiting = outcome("ibm_a", **environment)
    assert (is_waiting, result.is_ready) == (waits, False)


@pytest.mark.parametrize("selection", ["nowhere", "ibm_b", "ibm_b,ibm_b"])
def test_what_stays_is_no_reason_to_wait(site, outcome, selection):
    site.add("ibm_b", acquire="raise")
    result, is_waiting = outcome(selection)
    assert not result.is_ready and not is_waiting


@pytest.mark.parametrize(
    ("own", "is_sites"),
    [
        ({}, True),
        ({"IBM_QCS_SESSION_MODE": "batch"}, False),
        ({"IBM_QCS_IAM_APIKEY": "x", "FAKE_STATUS": "Offline"}, False),
    ],
)
def test_only_the_sites_own_calls_say_something_about_the_qpu(site, slurmctld, acquire_for, monkeypatch, own, is_sites):
    """Whatever the user set may have caused it."""
    seen = []
    monkeypatch.setattr(hook, "put_back", lambda job, run, failures: seen.extend(failures) or "")
    site.add("ibm_a", status="Paused", slurm={"license": "qpu_a"})
    site.configure("--on-unavailable=requeue")
    acquire_for("ibm_a", **{f"SPANK_ibm_a_QRMI_{name}": value for name, value in own.items()})
    (failure,) = seen
    assert failure.kind.is_transient
    assert (failure.qpu, failure.license, failure.is_sites) == ("ibm_a", "qpu_a", is_sites)
