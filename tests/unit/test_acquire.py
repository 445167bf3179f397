"""Acquiring: a selection becomes QPUs that are held, recorded and exported, or sentences that say why not."""

import json
import os
import sys

import pytest
from doubles import COMPUTE_SERVICE, SECRET

from qrmi_slurm import acquire, exports
from qrmi_slurm.errors import RecordError
from qrmi_slurm.logs import HookLog
from qrmi_slurm.record import JobFolder, State

KEY = "QRMI_IBM_QCS_IAM_APIKEY"


@pytest.fixture
def run(site, syslog_lines):
    """Acquire as Prolog does; whatever happens, no secret is in a log line or a note."""

    def acquire_for(selection, **changes):
        folder = site.folder()
        folder.create()
        with folder.locked(1):
            result = acquire.acquire(site.job(selection, **changes), site.options(), folder, HookLog("prolog", 12))
        assert not any(SECRET in line for _, line in syslog_lines)
        assert SECRET not in " ".join(result.notes)
        return result

    return acquire_for


def states(site):
    current = site.folder().read()
    return {entry.name: entry.state for entry in current.entries} if current else {}


def test_a_qpu_is_acquired_recorded_and_exported(site, run):
    site.add("a")
    result = run("a")
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
    }
    [entry] = site.folder().read().entries
    assert entry.state is State.ACQUIRED
    assert entry.token.reveal() == "session-a"
    assert entry.run_as_uid is None


def test_the_order_is_that_of_the_selection_whatever_ends_first(site, run):
    site.add("a", acquire=f"wait-for:{site.path / 'gate'}").add("b", type="iqm-server").add("c")
    site.resources[1]["environment"] |= {"QRMI_IQM_ISA_ENDPOINT": "e", "QRMI_IQM_ISA_TOKEN": f"{SECRET}-t"}
    site.resources[2]["environment"]["QRMI_FAKE_ACQUIRE"] = ""
    site.write_config(json.dumps({"resources": site.resources}))
    (site.path / "gate").touch()
    result = run("c,a,b")
    assert result.variables["QRMI_JOB_QPU_RESOURCES"] == "c,a,b"
    assert result.variables["QRMI_JOB_QPU_TYPES"].split(",")[2] == "iqm-server"


def test_the_intent_is_on_disk_before_qrmi_is_called(site, run, monkeypatch):
    site.add("a")
    monkeypatch.setattr("qrmi_slurm.backend.run", lambda calls, timeout_s, on_answer: seen.update(states(site)))
    seen = {}
    run("a")
    assert seen == {"a": State.ACQUIRING}


def test_where_the_intent_cannot_be_written_nothing_is_acquired(site, run, monkeypatch):
    site.add("a")

    def full(folder, record):
        raise RecordError("no space")

    monkeypatch.setattr(JobFolder, "write", full)
    with pytest.raises(RecordError):
        run("a")
    assert site.calls() == []


def test_a_disk_that_fills_up_meanwhile_loses_no_token(site, run, monkeypatch):
    """The record cannot be written any more, but each child has left its token by itself."""
    site.add("a").add("b")
    real, writes = JobFolder.write, []

    def fill_up(folder, record):
        writes.append(record)
        if len(writes) > 1:
            raise RecordError("no space")
        real(folder, record)

    monkeypatch.setattr(JobFolder, "write", fill_up)
    with pytest.raises(RecordError):
        run("a,b")
    monkeypatch.undo()
    called = {call.split()[1] for call in site.calls()}
    tokens = {entry.name for entry in site.folder().read().entries if entry.token}
    assert tokens == called


def test_names_that_the_site_does_not_know_are_left_out_with_a_note(site, run):
    site.add("a")
    result = run("x,a,y")
    assert result.is_ready
    assert result.variables["QRMI_JOB_QPU_RESOURCES"] == "a"
    assert result.notes == ("qrmi-slurm: not known at this site, ignored: x, y",)


def test_a_job_that_names_only_unknown_qpus_fails_with_the_reason(site, run):
    site.add("a")
    assert run("x,y").notes == ("qrmi-slurm: job 12 has no QPU: not known at this site: x, y; known are: a",)
    assert site.calls() == []


@pytest.mark.parametrize("text", ["", "a,,b", "a=b", "a\nexport X=1", ","])
def test_a_forged_selection_fails_the_job_in_one_line(site, run, text):
    site.add("a")
    result = run(text)
    assert not result.is_ready
    assert len(result.notes) == 1
    assert "\n" not in result.notes[0]


@pytest.mark.parametrize("config", ["{", "[]", f'{{"resources": ["{SECRET}"]}}'])
def test_a_broken_config_is_told_to_the_user_without_what_only_an_admin_can_see(site, run, config):
    site.write_config(config)
    [note] = run("a").notes
    assert "the site's QPU configuration cannot be used" in note
    assert str(site.path) not in note


def test_with_any_a_job_starts_with_what_there_is(site, run):
    site.add("a").add("b", acquire="raise", secret=f"{SECRET}-echo")
    site.resources[1]["environment"]["QRMI_OTHER_TOKEN"] = f"{SECRET}-echo"
    site.write_config(json.dumps({"resources": site.resources}))
    result = run("a,b")
    assert result.is_ready
    assert result.variables["QRMI_JOB_QPU_RESOURCES"] == "a"
    assert result.notes == ("qrmi-slurm: b could not be acquired: the service says no to ***",)
    assert not any(name.startswith("b_") for name in result.variables)
    assert states(site) == {"a": State.ACQUIRED, "b": State.FAILED}


def test_with_all_what_was_acquired_is_given_back(site, run):
    site.configure("--require=all")
    site.add("a").add("b", acquire="raise")
    result = run("a,b")
    assert not result.is_ready
    assert "release a session-a" in site.calls()
    assert result.notes == ("qrmi-slurm: job 12 has no QPU: b could not be acquired: the service says no to you",)
    assert states(site).get("a") is None


@pytest.mark.parametrize("selection", ["a,unknown", "a,b"])
def test_with_all_nothing_is_acquired_where_it_is_known_to_be_in_vain(site, run, selection):
    site.configure("--require=all")
    site.add("a").add("b", type="new-vendor")
    assert not run(selection).is_ready
    assert site.calls() == []


def test_a_refused_job_keeps_its_folder_for_the_exports(site, run):
    """TaskProlog reads the reason from there."""
    site.add("a", acquire="raise")
    result = run("a")
    site.folder().write_exports(exports.render(result), os.getuid())


def test_a_call_without_an_answer_stays_recorded_where_the_type_locks(site, run):
    site.configure("--acquire-timeout=0.2")
    site.add("a", acquire="hang")
    assert run("a").notes == ("qrmi-slurm: job 12 has no QPU: a could not be acquired: no answer within 0.2 s",)
    assert states(site) == {"a": State.INDETERMINATE}


def test_a_misspelt_type_that_locks_is_not_forgotten_without_an_answer(site, run):
    site.configure("--acquire-timeout=0.2")
    site.add("a", type="ibm_quantum_compute_service", acquire="hang")
    run("a")
    assert states(site) == {"a": State.INDETERMINATE}


def test_a_killed_child_that_had_its_token_has_acquired(site, run, monkeypatch):
    """The journal counts where the answer did not come through."""
    site.add("a")
    monkeypatch.setattr("qrmi_slurm.backend._read_answer", lambda content, code: ("unanswered", None, "killed"))
    assert run("a").variables["a_QRMI_JOB_ACQUISITION_TOKEN"] == "session-a"


def test_a_token_of_more_than_a_line_is_released_and_fails_the_job(site, run, monkeypatch):
    import qrmi

    monkeypatch.setattr(qrmi.QuantumResource, "acquire", lambda self: "session\nexport LD_PRELOAD=/x")
    site.add("a")
    result = run("a")
    assert not result.is_ready
    assert site.calls()[0] == "release a session"


def test_a_token_that_qrmi_logs_is_masked(site, run, syslog_lines):
    """With --env:RUST_LOG=debug QRMI may name the session that it opened."""
    site.add("a", acquire="say-token")
    assert run("a").is_ready
    assert any("opened ***" in line for _, line in syslog_lines)
    assert not any("session-a" in line for _, line in syslog_lines)


def test_an_empty_token_fails_the_job(site, run):
    """QRMI's release of nothing releases nothing; a task could not use it either."""
    site.add("a", token="")
    assert not run("a").is_ready


def test_the_users_own_credentials_are_used_as_the_user(site, run):
    site.add("a")
    result = run("a", **{f"SPANK_a_{KEY}": "mine"})
    assert result.variables[f"a_{KEY}"] == "mine"
    assert site.folder().read().entries[0].run_as_uid == os.getuid()


def test_what_a_surrounding_job_left_never_reaches_qrmi(site, run):
    site.add("a")
    run("a", SPANK_a_QRMI_JOB_ACQUISITION_TOKEN="stale", SPANK_a_QRMI_IBM_QCS_SESSION_ID="stale")
    assert "stale" not in site.folder().read().entries[0].environment.values()


def test_the_sites_environment_reaches_qrmi_and_the_tasks(site, run):
    site.configure("--env:HTTPS_PROXY=http://proxy:1")
    site.add("a")
    assert run("a").variables["HTTPS_PROXY"] == "http://proxy:1"
    assert site.folder().read().entries[0].environment["HTTPS_PROXY"] == "http://proxy:1"


@pytest.mark.parametrize("variable", ["QRMI_JOB_ACQUISITION_TOKEN", "QRMI_IBM_QCS_SESSION_ID"])
def test_the_config_cannot_bring_a_session_along(site, run, variable):
    """QRMI would reuse, and later close, a session that somebody else opened."""
    site.add("a")
    site.resources[0]["environment"][variable] = "stale"
    site.write_config(json.dumps({"resources": site.resources}))
    assert "stale" not in run("a").variables.values()
    assert "stale" not in site.folder().read().entries[0].environment.values()


@pytest.mark.parametrize(
    ("start", "end", "timeout", "ttl"),
    [
        ("1000", "1300", "300", "300"),
        ("1000", "101000", "100000", "28800"),
        ("0", "99999999999", "2147483647", "28800"),
    ],
)
def test_a_session_ends_with_the_job_at_the_latest(site, run, start, end, timeout, ttl):
    site.add("a")
    result = run("a", SLURM_JOB_START_TIME=start, SLURM_JOB_END_TIME=end)
    assert result.variables["a_QRMI_JOB_TIMEOUT_SECONDS"] == timeout
    [entry] = site.folder().read().entries
    assert entry.environment["a_QRMI_IBM_QCS_SESSION_MAX_TTL"] == ttl
    assert entry.expires_s == pytest.approx(entry.since_s + int(ttl), abs=60)


def test_a_configured_session_life_stays(site, run):
    site.add("a")
    site.resources[0]["environment"]["QRMI_IBM_QCS_SESSION_MAX_TTL"] = "60"
    site.write_config(json.dumps({"resources": site.resources}))
    run("a")
    assert site.folder().read().entries[0].environment["a_QRMI_IBM_QCS_SESSION_MAX_TTL"] == "60"


@pytest.mark.parametrize("digits", [20, 5000])
def test_an_absurd_session_life_fails_no_job_of_others_and_no_later_release(site, run, digits):
    """The user may set it; the record must stay one that Epilog and recover can work with."""
    site.configure("--acquire-timeout=0.2")
    site.add("a", acquire="hang").add("b")
    result = run("a,b", SPANK_a_QRMI_IBM_QCS_SESSION_MAX_TTL="9" * digits)
    assert result.is_ready
    from qrmi_slurm import release

    folder = site.folder()
    left = release.release(folder, folder.read(), site.options(), HookLog("epilog", 12))
    assert left is None or [entry.name for entry in left.entries] == ["a"]


def test_without_times_slurmctld_is_asked(site, run, monkeypatch):
    site.add("a")
    monkeypatch.setattr("qrmi_slurm.scheduler.time_limit_s", lambda job_id, slurm_conf, timeout_s: 77)
    result = run("a", SLURM_JOB_START_TIME=None, SLURM_JOB_END_TIME=None)
    assert result.variables["a_QRMI_JOB_TIMEOUT_SECONDS"] == "77"


def test_without_any_time_limit_the_job_goes_on_as_unlimited(site, run, monkeypatch, syslog_lines):
    site.add("a")
    monkeypatch.setattr("qrmi_slurm.scheduler.time_limit_s", lambda job_id, slurm_conf, timeout_s: None)
    result = run("a", SLURM_JOB_END_TIME=None)
    assert result.variables["a_QRMI_JOB_TIMEOUT_SECONDS"] == "2147483647"
    assert any("time-limit-unknown" in line for _, line in syslog_lines)


def test_a_requeued_job_releases_its_earlier_run_first(site, run):
    site.add("a")
    run("a")
    result = run("a", SLURM_JOB_RESTART_COUNT="1")
    assert result.is_ready
    assert result.restart_count == 1
    assert site.calls() == ["acquire a ", "release a session-a", "acquire a "]
    assert len(site.folder().read().entries) == 1


def test_what_a_requeued_job_cannot_release_stays_beside_the_new_run(site, run):
    site.add("a", release="raise")
    run("a")
    assert run("a", SLURM_JOB_RESTART_COUNT="1").is_ready
    entries = site.folder().read().entries
    assert [(entry.restart_count, entry.state) for entry in entries] == [(0, State.RELEASING), (1, State.ACQUIRED)]


def test_a_dropped_types_successor_is_exported_and_its_old_name_in_the_legacy_list(site, run):
    old = {f"QRMI_IBM_DA_{name}": name for name in ("ENDPOINT", "IAM_ENDPOINT", "IAM_APIKEY", "SERVICE_CRN")}
    site.add("d", type="direct-access")
    site.resources[0]["environment"] |= old
    site.write_config(json.dumps({"resources": site.resources}))
    variables = run("d").variables
    assert variables["QRMI_JOB_QPU_TYPES"] == "ibm-quantum-system"
    assert variables["SLURM_JOB_QPU_TYPES"] == "direct-access"
    assert variables["d_QRMI_IBM_DA_IAM_APIKEY"] == variables["d_QRMI_IBM_QS_IAM_APIKEY"] == "IAM_APIKEY"


def test_a_type_that_qrmi_does_not_know_costs_only_its_qpu(site, run, syslog_lines):
    site.add("a").add("n", type="new-vendor")
    result = run("a,n")
    assert result.variables["QRMI_JOB_QPU_RESOURCES"] == "a"
    assert "n could not be acquired: the installed QRMI does not know the resource type new-vendor" in result.notes[0]
    assert any("new-vendor" in line for _, line in syslog_lines)


def test_without_qrmi_the_job_fails_with_a_sentence(site, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "qrmi", None)
    site.add("a")
    assert "QRMI cannot be imported" in run("a").notes[0]


@pytest.mark.parametrize("name", ["iqm:x", "a.b-c", "a b", "Ünïcode", "*", "KEY"])
def test_a_name_stands_in_the_variables_as_it_is(site, run, name):
    site.add(name)
    assert run(name).variables[f"{name}_QRMI_JOB_ACQUISITION_TOKEN"] == f"session-{name}"
