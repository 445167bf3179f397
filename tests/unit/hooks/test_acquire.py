"""Acquiring: a selection becomes QPUs that are held, recorded and exported, or sentences about why not."""

import json
import os
import sys
import time

import pytest
from doubles import COMPUTE_SERVICE, SECRET

from qrmi_slurm.errors import RecordError, SchedulerError
from qrmi_slurm.slurm import jobs
from qrmi_slurm.slurm.jobs import Allotment, Times
from qrmi_slurm.state import exports, inventory
from qrmi_slurm.state.job_folder import JobFolder
from qrmi_slurm.state.record import State

KEY = "QRMI_IBM_QCS_IAM_APIKEY"


def states(site):
    current = site.folder().read()
    return {entry.name: entry.state for entry in current.entries} if current else {}


def test_a_qpu_is_acquired_recorded_and_exported(site, acquire_for):
    site.add("a")
    result = acquire_for("a")
    assert result.is_ready
    assert result.notes == ()
    assert result.variables == {
        "QRMI_JOB_QPU_RESOURCES": "a",
        "SLURM_JOB_QPU_RESOURCES": "a",
        "QRMI_JOB_QPU_TYPES": "ibm-quantum-compute-service",
        "SLURM_JOB_QPU_TYPES": "ibm-quantum-compute-service",
        "QRMI_JOB_ID": "12",
        "QRMI_JOB_UID": str(os.getuid()),
        **{f"a_{name}": value for name, value in COMPUTE_SERVICE.items()},
        "a_QRMI_FAKE_CALLS": str(site.calls_path),
        "a_QRMI_JOB_ACQUISITION_TOKEN": "session-a",
        "a_QRMI_JOB_TIMEOUT_SECONDS": "300",
        "QRMI_SLURM_GIVEN": result.variables["QRMI_SLURM_GIVEN"],
    }
    [entry] = site.folder().read().entries
    assert entry.state is State.ACQUIRED
    assert entry.token.reveal() == "session-a"
    assert entry.run_as_uid is None


def test_qpus_are_in_the_order_of_the_selection_whichever_is_acquired_first(site, acquire_for):
    site.add("a", acquire=f"wait-for:{site.path / 'gate'}").add("b", type="iqm-server").add("c")
    site.resources[1]["environment"] |= {"QRMI_IQM_ISA_ENDPOINT": "e", "QRMI_IQM_ISA_TOKEN": f"{SECRET}-t"}
    site.resources[2]["environment"]["QRMI_FAKE_ACQUIRE"] = ""
    site.write_config(json.dumps({"resources": site.resources}))
    (site.path / "gate").touch()
    result = acquire_for("c,a,b")
    assert result.variables["QRMI_JOB_QPU_RESOURCES"] == "c,a,b"
    assert result.variables["QRMI_JOB_QPU_TYPES"].split(",")[2] == "iqm-server"


def test_the_intent_is_on_disk_before_qrmi_is_called(site, acquire_for, monkeypatch):
    site.add("a")
    monkeypatch.setattr("qrmi_slurm.calls.backend.run", lambda *arguments, **options: seen.update(states(site)))
    seen = {}
    acquire_for("a")
    assert seen == {"a": State.ACQUIRING}


def test_if_the_intent_cannot_be_written_nothing_is_acquired(site, acquire_for, monkeypatch):
    site.add("a")

    def full(folder, record):
        raise RecordError("no space")

    monkeypatch.setattr(JobFolder, "write", full)
    with pytest.raises(RecordError):
        acquire_for("a")
    assert site.calls() == []


def test_a_disk_that_fills_up_loses_no_token(site, acquire_for, monkeypatch):
    """The record can no longer be written, but each child has written its token to a journal."""
    site.add("a").add("b")
    real, writes = JobFolder.write, []

    def fill_up(folder, record):
        writes.append(record)
        if len(writes) > 1:
            raise RecordError("no space")
        real(folder, record)

    monkeypatch.setattr(JobFolder, "write", fill_up)
    with pytest.raises(RecordError):
        acquire_for("a,b")
    monkeypatch.undo()
    called = {call.split()[1] for call in site.calls()}
    tokens = {entry.name for entry in site.folder().read().entries if entry.token}
    assert tokens == called


def test_unknown_names_are_left_out_with_a_note(site, acquire_for):
    site.add("a")
    result = acquire_for("x,a,y")
    assert result.is_ready
    assert result.variables["QRMI_JOB_QPU_RESOURCES"] == "a"
    assert result.notes == ("qrmi-slurm: unknown QPUs, ignored: x, y",)


def test_a_job_that_names_only_unknown_qpus_fails_with_the_reason(site, acquire_for):
    site.add("a")
    assert acquire_for("x,y").notes == ("qrmi-slurm: job 12 has no QPU: unknown QPUs: x, y; known QPUs: a",)
    assert site.calls() == []


@pytest.mark.parametrize("text", ["", "a,,b", "a=b", "a\nexport X=1", ","])
def test_a_forged_selection_fails_the_job_in_one_line(site, acquire_for, text):
    site.add("a")
    result = acquire_for(text)
    assert not result.is_ready
    assert len(result.notes) == 1
    assert "\n" not in result.notes[0]


@pytest.mark.parametrize("config", ["{", "[]", f'{{"resources": ["{SECRET}"]}}'])
def test_a_broken_config_is_reported_to_the_user_without_details(site, acquire_for, config):
    site.write_config(config)
    [note] = acquire_for("a").notes
    assert "the site's QPU configuration cannot be used" in note
    assert str(site.path) not in note


def test_with_any_a_job_starts_with_the_qpus_that_it_got(site, acquire_for):
    site.add("a").add("b", acquire="raise", secret=f"{SECRET}-echo")
    site.resources[1]["environment"]["QRMI_OTHER_TOKEN"] = f"{SECRET}-echo"
    site.write_config(json.dumps({"resources": site.resources}))
    result = acquire_for("a,b")
    assert result.is_ready
    assert result.variables["QRMI_JOB_QPU_RESOURCES"] == "a"
    assert result.notes == ("qrmi-slurm: b could not be acquired: the service says no to ***",)
    assert not any(name.startswith("b_") for name in result.variables)
    assert states(site) == {"a": State.ACQUIRED, "b": State.FAILED}


def test_with_all_the_acquired_qpus_are_given_back(site, acquire_for):
    site.configure("--require=all")
    site.add("a").add("b", acquire="raise")
    result = acquire_for("a,b")
    assert not result.is_ready
    assert "release a session-a" in site.calls()
    assert result.notes == ("qrmi-slurm: job 12 has no QPU: b could not be acquired: the service says no to you",)
    assert states(site).get("a") is None


@pytest.mark.parametrize("selection", ["a,unknown", "a,b"])
def test_with_all_nothing_is_acquired_if_a_qpu_is_known_to_be_missing(site, acquire_for, selection):
    site.configure("--require=all")
    site.add("a").add("b", type="new-vendor")
    assert not acquire_for(selection).is_ready
    assert site.calls() == []


def test_a_refused_job_keeps_its_folder_for_the_exports(site, acquire_for):
    """TaskProlog reads the reason there."""
    site.add("a", acquire="raise")
    result = acquire_for("a")
    site.folder().write_exports(exports.render(result), os.getuid())


def test_a_call_without_an_answer_stays_recorded_if_the_type_locks(site, acquire_for):
    site.configure("--acquire-timeout=0.2")
    site.add("a", acquire="hang")
    assert acquire_for("a").notes == ("qrmi-slurm: job 12 has no QPU: a could not be acquired: no answer within 0.2 s",)
    assert states(site) == {"a": State.INDETERMINATE}


def test_another_spelling_of_a_type_that_locks_stays_recorded_too(site, acquire_for):
    site.configure("--acquire-timeout=0.2")
    site.add("a", type="ibm_quantum_compute_service", acquire="hang")
    acquire_for("a")
    assert states(site) == {"a": State.INDETERMINATE}


def test_a_killed_child_that_wrote_its_token_has_acquired(site, acquire_for, monkeypatch):
    """The journal counts if the answer is lost."""
    site.add("a")
    monkeypatch.setattr("qrmi_slurm.calls.backend._read_answer", lambda content, code: ("unanswered", None, "killed"))
    assert acquire_for("a").variables["a_QRMI_JOB_ACQUISITION_TOKEN"] == "session-a"


def test_a_token_of_several_lines_is_released_and_fails_the_job(site, acquire_for, monkeypatch):
    import qrmi

    monkeypatch.setattr(qrmi.QuantumResource, "acquire", lambda self: "session\nexport LD_PRELOAD=/x")
    site.add("a")
    result = acquire_for("a")
    assert not result.is_ready
    assert site.calls()[0] == "release a session"


def test_a_token_that_qrmi_logs_is_masked(site, acquire_for, syslog_lines):
    """With --env:RUST_LOG=debug QRMI may name the session that it opened."""
    site.add("a", acquire="say-token")
    assert acquire_for("a").is_ready
    assert any("opened ***" in line for _, line in syslog_lines)
    assert not any("session-a" in line for _, line in syslog_lines)


def test_an_empty_token_fails_the_job(site, acquire_for):
    """It cannot be released, and a task could not use it."""
    site.add("a", token="")
    assert not acquire_for("a").is_ready


def test_the_users_own_credentials_are_used_as_the_user(site, acquire_for):
    site.add("a")
    result = acquire_for("a", **{f"SPANK_a_{KEY}": "mine"})
    assert result.variables[f"a_{KEY}"] == "mine"
    assert site.folder().read().entries[0].run_as_uid == os.getuid()


def test_tokens_and_sessions_of_a_surrounding_job_never_reach_qrmi(site, acquire_for):
    site.add("a")
    acquire_for("a", SPANK_a_QRMI_JOB_ACQUISITION_TOKEN="stale", SPANK_a_QRMI_IBM_QCS_SESSION_ID="stale")
    assert "stale" not in site.folder().read().entries[0].environment.values()


def test_the_sites_environment_reaches_qrmi_and_the_tasks(site, acquire_for):
    site.configure("--env:HTTPS_PROXY=http://proxy:1")
    site.add("a")
    assert acquire_for("a").variables["HTTPS_PROXY"] == "http://proxy:1"
    assert site.folder().read().entries[0].environment["HTTPS_PROXY"] == "http://proxy:1"


@pytest.mark.parametrize("variable", ["QRMI_JOB_ACQUISITION_TOKEN", "QRMI_IBM_QCS_SESSION_ID"])
def test_the_config_cannot_set_a_token_or_session(site, acquire_for, variable):
    """QRMI would reuse, and later close, a session that somebody else opened."""
    site.add("a")
    site.resources[0]["environment"][variable] = "stale"
    site.write_config(json.dumps({"resources": site.resources}))
    assert "stale" not in acquire_for("a").variables.values()
    assert "stale" not in site.folder().read().entries[0].environment.values()


@pytest.mark.parametrize(
    ("start", "end", "timeout", "ttl"),
    [
        ("1000", "1300", "300", "360"),
        ("1000", "101000", "100000", "28800"),
        ("1", "99999999999", "2147483647", "28800"),
    ],
)
def test_a_session_ends_with_the_job_at_the_latest(site, acquire_for, start, end, timeout, ttl):
    site.add("a")
    result = acquire_for("a", SLURM_JOB_START_TIME=start, SLURM_JOB_END_TIME=end)
    assert result.variables["a_QRMI_JOB_TIMEOUT_SECONDS"] == timeout
    [entry] = site.folder().read().entries
    assert entry.environment["a_QRMI_IBM_QCS_SESSION_MAX_TTL"] == ttl
    assert entry.expires_s == pytest.approx(entry.since_s + int(ttl), abs=60)


@pytest.mark.parametrize(
    ("line", "conf", "ttl"),
    [
        ("--session-margin=0", "", "300"),
        ("--session-margin=7.2", "", "308"),
        ("--session-margin=0", "OverTimeLimit=2\n", "420"),
        ("--session-margin=5", "OverTimeLimit=UNLIMITED\n", "28800"),
    ],
)
def test_a_session_lives_as_long_as_slurm_lets_the_job_run_and_the_sites_margin(site, acquire_for, line, conf, ttl):
    """So do the times of users, which have one cap; the tasks still learn the time limit itself."""
    site.configure(line)
    with site.slurm_conf.open("a") as file:
        file.write(conf)
    site.add("a").add("b")
    result = acquire_for("a,b", SPANK_b_QRMI_IBM_QCS_SESSION_MAX_TTL="2147483647")
    found = {entry.name: entry for entry in site.folder().read().entries}
    assert found["a"].environment["a_QRMI_IBM_QCS_SESSION_MAX_TTL"] == ttl
    assert found["b"].environment["b_QRMI_IBM_QCS_SESSION_MAX_TTL"] == ttl
    assert found["a"].ends_s == found["a"].asked_s + int(ttl)
    assert result.variables["a_QRMI_JOB_TIMEOUT_SECONDS"] == "300"
    assert (result.notes == ()) is ("UNLIMITED" not in conf)


def test_a_session_that_ends_before_the_job_is_announced_with_the_time(site, acquire_for):
    """The site's own value, a user's, and the service's longest."""
    site.add("a").add("b").add("c")
    site.resources[0]["environment"]["QRMI_IBM_QCS_SESSION_MAX_TTL"] = "60"
    site.write_config(json.dumps({"resources": site.resources}))
    times = {"SLURM_JOB_START_TIME": "1000", "SLURM_JOB_END_TIME": "101000"}
    notes = acquire_for("a,b,c", SPANK_b_QRMI_IBM_QCS_SESSION_MAX_TTL="90", **times).notes
    ends = {entry.name: entry.ends_s for entry in site.folder().read().entries}
    shown = {name: time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(ends_s)) for name, ends_s in ends.items()}
    assert notes == tuple(
        f"qrmi-slurm: the session on {name} ends at {shown[name]}, and the job may run longer" for name in "abc"
    )
    assert ends["c"] - ends["a"] == 28800 - 60


def test_a_configured_session_lifetime_is_kept(site, acquire_for):
    site.add("a")
    site.resources[0]["environment"]["QRMI_IBM_QCS_SESSION_MAX_TTL"] = "60"
    site.write_config(json.dumps({"resources": site.resources}))
    acquire_for("a")
    assert site.folder().read().entries[0].environment["a_QRMI_IBM_QCS_SESSION_MAX_TTL"] == "60"


@pytest.mark.parametrize("own", [{}, {f"SPANK_a_{KEY}": "mine"}], ids=["the site's key", "the user's key"])
def test_a_users_session_lifetime_is_capped_for_qrmi_and_for_tasks(site, acquire_for, own):
    variable = "a_QRMI_IBM_QCS_SESSION_MAX_TTL"
    site.add("a")
    times = {"SLURM_JOB_START_TIME": "1000", "SLURM_JOB_END_TIME": "1300"}
    result = acquire_for("a", **times, **own, **{f"SPANK_{variable}": "2147483647"})
    [entry] = site.folder().read().entries
    assert entry.environment[variable] == result.variables[variable] == "360"
    assert result.variables["a_QRMI_SLURM_CAPPED_AT"] == "360"
    assert entry.run_as_uid == (os.getuid() if own else None)


@pytest.mark.parametrize("digits", [20, 5000])
def test_an_absurd_session_lifetime_breaks_no_other_qpu_and_no_release(site, acquire_for, digits):
    """Users may set it, and Epilog and recover must still be able to use the record."""
    site.configure("--acquire-timeout=0.2")
    site.add("a", acquire="hang").add("b")
    result = acquire_for("a,b", SPANK_a_QRMI_IBM_QCS_SESSION_MAX_TTL="9" * digits)
    assert result.is_ready
    from qrmi_slurm.hooks import release

    folder = site.folder()
    left = release.release(folder.read(), site.hook_run("epilog"))
    assert left is None or [entry.name for entry in left.entries] == ["a"]


def test_without_times_slurmctld_is_asked(site, acquire_for, monkeypatch):
    site.add("a")
    monkeypatch.setattr("qrmi_slurm.slurm.jobs.times", lambda job_id, slurm_conf, timeout_s: Times(77, 990, 1000))
    result = acquire_for("a", SLURM_JOB_START_TIME=None, SLURM_JOB_END_TIME=None)
    assert result.variables["a_QRMI_JOB_TIMEOUT_SECONDS"] == "77"
    assert result.start_s == site.folder().read().start_s == 1000


def test_without_a_known_time_limit_nothing_is_acquired(site, acquire_for, monkeypatch):
    site.add("a")
    monkeypatch.setattr("qrmi_slurm.slurm.jobs.times", lambda job_id, slurm_conf, timeout_s: Times())
    with pytest.raises(SchedulerError, match="submit the job again"):
        acquire_for("a", SLURM_JOB_END_TIME=None)
    assert site.calls() == []


def test_a_requeued_job_releases_its_earlier_run_first(site, acquire_for):
    site.add("a")
    acquire_for("a")
    result = acquire_for("a", SLURM_JOB_RESTART_COUNT="1")
    assert result.is_ready
    assert result.restart_count == 1
    assert site.calls() == ["acquire a ", "release a session-a", "acquire a "]
    assert len(site.folder().read().entries) == 1


def test_a_qpu_that_a_requeued_job_cannot_release_stays_recorded(site, acquire_for):
    site.add("a", release="raise")
    acquire_for("a")
    assert acquire_for("a", SLURM_JOB_RESTART_COUNT="1").is_ready
    records = [item.record for item in inventory.read(site.state_dir)]
    assert [(record.restart_count, record.entries[0].state) for record in records] == [
        (1, State.ACQUIRED),
        (0, State.RELEASING),
    ]
    assert site.folder().read() == records[0]


def test_a_dropped_type_is_exported_under_its_successor_and_its_old_name(site, acquire_for):
    old = {f"QRMI_IBM_DA_{name}": name for name in ("ENDPOINT", "IAM_ENDPOINT", "IAM_APIKEY", "SERVICE_CRN")}
    site.add("d", type="direct-access")
    site.resources[0]["environment"] |= old
    site.write_config(json.dumps({"resources": site.resources}))
    variables = acquire_for("d").variables
    assert variables["QRMI_JOB_QPU_TYPES"] == "ibm-quantum-system"
    assert variables["SLURM_JOB_QPU_TYPES"] == "direct-access"
    assert variables["d_QRMI_IBM_DA_IAM_APIKEY"] == variables["d_QRMI_IBM_QS_IAM_APIKEY"] == "IAM_APIKEY"


def test_an_unknown_type_affects_only_its_qpu(site, acquire_for, syslog_lines):
    site.add("a").add("n", type="new-vendor")
    result = acquire_for("a,n")
    assert result.variables["QRMI_JOB_QPU_RESOURCES"] == "a"
    assert "n could not be acquired: the installed QRMI does not know the resource type new-vendor" in result.notes[0]
    assert any("new-vendor" in line for _, line in syslog_lines)


def test_without_qrmi_the_job_fails_with_a_sentence(site, acquire_for, monkeypatch):
    monkeypatch.setitem(sys.modules, "qrmi", None)
    site.add("a")
    assert "QRMI cannot be imported" in acquire_for("a").notes[0]


@pytest.mark.parametrize("name", ["iqm:x", "a.b-c", "a b", "Ünïcode", "*", "KEY"])
def test_a_name_is_used_unchanged_in_variables(site, acquire_for, name):
    site.add(name)
    assert acquire_for(name).variables[f"{name}_QRMI_JOB_ACQUISITION_TOKEN"] == f"session-{name}"


# --- slots -----------------------------------------------------------------------------------------------------

SLOTS = {"a_QRMI_JOB_QPU_SLOTS": "3", "QRMI_JOB_QPU_SLOTS": "3"}


def called_with(site, name):
    """Return what QRMI was called with for a QPU, of its slots."""
    [entry] = [entry for entry in site.folder().read().entries if entry.name == name]
    return {variable: value for variable, value in entry.environment.items() if "SLOTS" in variable}


def test_the_number_of_a_license_is_how_many_slots_a_job_has(site, acquire_for):
    """QRMI gets it with and without the resource's name, tasks with it, and other resources are unaffected."""
    site.add("a").add("b").configure("--qpu-slots-license:a=lanes")
    result = acquire_for("a,b", SLURM_JOB_LICENSES="matlab:2,lanes:3")
    assert called_with(site, "a") == SLOTS
    assert called_with(site, "b") == {}
    assert {name: value for name, value in result.variables.items() if "SLOTS" in name} == {"a_QRMI_JOB_QPU_SLOTS": "3"}


@pytest.mark.parametrize("licenses", [None, "lane:3", "lanes:0", "lanes@there:3", "lanes2:1"])
def test_a_job_without_slots_fails_for_good(site, acquire_for, licenses):
    """It is not put back into the queue; with another QPU it runs."""
    site.add("a").add("b").configure("--qpu-slots-license:a=lanes", "--on-unavailable=requeue")
    result = acquire_for("a", SLURM_JOB_LICENSES=licenses)
    sentence = "a is shared by slots, and this job has none: ask for some with --licenses=lanes:NUMBER"
    assert result.notes == (f"qrmi-slurm: job 12 has no QPU: {sentence}",)
    assert site.calls() == []


def test_another_qpu_needs_no_slots(site, acquire_for):
    site.add("a").add("b").configure("--qpu-slots-license:a=lanes")
    assert acquire_for("a,b").variables["QRMI_JOB_QPU_RESOURCES"] == "b"


def test_a_choice_takes_a_qpu_that_the_job_has_slots_of(site, acquire_for):
    site.add("a").add("b").configure("--qpu-slots-license:a=lanes", "--qpu-slots-license:b=others")
    assert acquire_for("any:*", SLURM_JOB_LICENSES="others:1").variables["b_QRMI_JOB_QPU_SLOTS"] == "1"


def test_a_user_cannot_set_the_slots(site, acquire_for):
    site.add("a").add("b").configure("--qpu-slots-license:a=lanes")
    own = {f"SPANK_{name}_QRMI_JOB_QPU_SLOTS": "99" for name in "ab"}
    result = acquire_for("a,b", SLURM_JOB_LICENSES="lanes:3", **own)
    assert called_with(site, "a") == SLOTS
    assert called_with(site, "b") == {}
    assert "b_QRMI_JOB_QPU_SLOTS" not in result.variables


def test_the_qpus_behind_a_dynamic_resource_have_its_slots(site, acquire_for, monkeypatch):
    """Or those of their own entries."""
    behind = {"QRMI_FAKE_BEHIND": "x y"}
    site.add("dyn", is_dynamic=True).add("y")
    site.resources[0]["environment"] |= behind
    site.write_config(json.dumps({"resources": site.resources}))
    site.configure("--qpu-slots-license:dyn=lanes", "--qpu-slots-license:y=others")
    result = acquire_for("dyn,dyn", SLURM_JOB_LICENSES="lanes:3")
    assert result.variables["x_QRMI_JOB_QPU_SLOTS"] == "3"


@pytest.mark.parametrize(
    ("het_job_id", "sentence"),
    [("12", "ask for some with --licenses=lanes:NUMBER"), ("11", "only in a heterogeneous job's first component")],
)
def test_a_component_without_slots(site, acquire_for, het_job_id, sentence):
    site.add("a").configure("--qpu-slots-license:a=lanes")
    assert sentence in acquire_for("a", SLURM_HET_JOB_ID=het_job_id).notes[0]


@pytest.mark.parametrize("told", [Allotment({"lanes": 2}, ""), Allotment({}, ""), None])
def test_before_23_02_slurmctld_is_asked_once(site, acquire_for, monkeypatch, told):
    """Without an answer the job waits, if it can."""
    questions = []
    monkeypatch.setattr(jobs, "times", lambda *arguments: Times(300, 990, 1000))
    monkeypatch.setattr(jobs, "allotment", lambda *arguments: questions.append(arguments) or told)
    site.add("a").add("b").configure("--qpu-slots-license:a=lanes", "--qpu-slots-license:b=lanes")
    result = acquire_for("a,b", SLURM_JOB_START_TIME=None, SLURM_JOB_END_TIME=None)
    assert len(questions) == 1
    if told is None:
        assert "Slurm does not say whether this job has its license" in result.notes[0]
    else:
        assert result.is_ready is bool(told.licenses)
        assert result.variables.get("b_QRMI_JOB_QPU_SLOTS") == ("2" if told.licenses else None)


@pytest.mark.parametrize(("granted", "is_ready"), [({"lanes": 2}, True), ({"matlab": 1}, False), (None, False)])
def test_of_licenses_that_were_asked_for_in_place_of_each_other_the_granted_one_counts(
    site, acquire_for, monkeypatch, granted, is_ready
):
    """Prolog's environment has the list as it was asked for; slurmctld knows which one the job got."""
    monkeypatch.setattr(jobs, "granted_licenses", lambda *arguments: granted)
    site.add("a").configure("--qpu-slots-license:a=lanes")
    result = acquire_for("a", SLURM_JOB_LICENSES="lanes:2|matlab:1")
    assert (result.is_ready, result.variables.get("a_QRMI_JOB_QPU_SLOTS")) == (is_ready, "2" if is_ready else None)
