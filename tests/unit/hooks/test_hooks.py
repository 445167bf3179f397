"""Prolog and Epilog: they always exit 0, and TaskProlog then has QPUs or a reason."""

import json
import os
import time

import pytest
from doubles import COMPUTE_SERVICE, SECRET, printed, variables_of

from qrmi_slurm.calls import backend
from qrmi_slurm.errors import RecordError
from qrmi_slurm.hooks import epilog, prolog, task_prolog
from qrmi_slurm.state.job_folder import JobFolder
from qrmi_slurm.state.journal import Journals
from qrmi_slurm.state.record import State


def test_a_job_gets_its_qpus_and_gives_them_back(site, start):
    site.add("a").add("b")
    outcome = start("b,a")
    assert outcome.exit_code == 0
    variables = variables_of(outcome.lines)
    assert variables["QRMI_JOB_QPU_RESOURCES"] == "b,a"
    assert variables["a_QRMI_JOB_ACQUISITION_TOKEN"] == "session-a"
    assert variables["RUST_LOG"] == "info"
    assert epilog.epilog(site.hook_environment("b,a")) == 0
    assert sorted(site.calls()[2:]) == ["release a session-a", "release b session-b"]
    assert not site.folder().exists()


def test_another_node_than_the_first_acquires_nothing(site):
    site.add("a")
    assert prolog.prolog(site.hook_environment("a", SLURMD_NODENAME="n2")) == 0
    assert site.calls() == []
    assert list(site.folder().path.iterdir()) == []
    assert epilog.epilog(site.hook_environment("a", SLURMD_NODENAME="n2")) == 0
    assert not site.folder().exists()


def test_another_node_than_the_first_releases_nothing(site, start):
    site.add("a")
    start("a")
    assert epilog.epilog(site.hook_environment("a", SLURMD_NODENAME="n2")) == 0
    assert site.calls() == ["acquire a "]
    assert site.folder().exists()


def test_epilog_may_run_twice_and_without_a_prolog(site, start):
    site.add("a")
    assert epilog.epilog(site.hook_environment("a")) == 0
    start("a")
    for _ in range(2):
        assert epilog.epilog(site.hook_environment("a")) == 0
    assert site.calls() == ["acquire a ", "release a session-a"]


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (lambda site: site.add("a", acquire="raise"), "a could not be acquired: the service says no to you"),
        (lambda site: site.add("a", acquire="panic"), "a could not be acquired: index out of bounds"),
        (lambda site: site.add("a", acquire="segv"), "a could not be acquired: QRMI was killed by signal 11"),
        (lambda site: site.add("a", type="new-vendor"), "does not know the resource type new-vendor"),
        (lambda site: site.add("b"), "unknown QPU: a"),
        (lambda site: site.write_config("{"), "the site's QPU configuration cannot be used"),
        (lambda site: None, "the site's QPU configuration cannot be used"),
    ],
)
def test_a_job_without_its_qpus_fails_with_the_reason_on_its_output(site, start, break_it, sentence):
    break_it(site)
    outcome = start("a")
    assert outcome.exit_code == 1
    [line] = printed(outcome)
    assert line.startswith("qrmi-slurm: job 12 has no QPU: ")
    assert sentence in line
    assert variables_of(outcome.lines) == {}
    assert epilog.epilog(site.hook_environment("a")) == 0


def test_only_the_first_task_says_the_reason(site, start):
    site.add("a", acquire="raise")
    start("a")
    outcome = task_prolog.task_prolog(site.task_environment("a", SLURM_PROCID="1", SLURM_STEP_ID="0"))
    assert (outcome.lines, outcome.exit_code) == ((), 1)


@pytest.mark.parametrize(
    "name", ["SLURM_JOB_ID", "SLURM_JOB_UID", "SLURMD_NODENAME", "SLURM_CLUSTER_NAME", "SLURM_CONF"]
)
@pytest.mark.parametrize("value", [None, "", "x/../y", "99999999999999", "٣", "\udcff", "n[", "a\nb"])
@pytest.mark.parametrize("hook", [prolog.prolog, epilog.epilog])
def test_missing_or_garbled_variables_of_slurm_do_not_drain_the_node(
    site, syslog_lines, monkeypatch, hook, name, value
):
    monkeypatch.setattr("qrmi_slurm.slurm.conf_file.DEFAULT_SLURM_CONF", site.path / "slurm.conf")
    monkeypatch.setattr("qrmi_slurm.slurm.plugstack.DEFAULT_STATE_DIR", site.path / "default-state")
    site.add("a")
    environment = site.hook_environment("a", **{name: value})
    if name == "SLURM_CONF" and value:
        environment[name] = str(site.path / value)
    monkeypatch.chdir(site.path)
    assert hook(environment) == 0


@pytest.mark.parametrize(
    "fault", [RecordError("r"), OSError(5, "EIO"), RuntimeError("x"), BaseException("panic"), MemoryError()]
)
@pytest.mark.parametrize("where", ["create", "locked", "read", "write", "write_exports", "exists", "open"])
def test_a_broken_state_directory_does_not_drain_the_node(site, syslog_lines, monkeypatch, fault, where):
    site.add("a")

    def broken(*arguments, **options):
        raise fault

    monkeypatch.setattr(Journals if where == "open" else JobFolder, where, broken)
    assert prolog.prolog(site.hook_environment("a")) == 0
    assert epilog.epilog(site.hook_environment("a")) == 0
    assert all("\n" not in line for _, line in syslog_lines)


def test_an_unexpected_error_is_logged_with_its_traceback_and_the_user_sees_a_sentence(
    site, start, syslog_lines, monkeypatch
):
    site.add("a")
    monkeypatch.setattr(backend, "run", lambda *arguments, **options: 1 / 0)
    outcome = start("a")
    assert outcome.exit_code == 1
    assert printed(outcome) == ["qrmi-slurm: job 12 has no QPU: an internal error; please tell an admin"]
    assert any("ZeroDivisionError" in line and "job=12" in line for _, line in syslog_lines)


def test_after_a_killed_prolog_epilog_releases_what_its_children_acquired(site, syslog_lines):
    site.add("a", acquire=f"wait-for:{site.path / 'gate'}").add("b")
    hook = os.fork()
    if hook == 0:
        prolog.prolog(site.hook_environment("a,b"))
        os._exit(0)
    wait_until(lambda: len(site.calls()) == 2)
    os.kill(hook, 9)
    os.waitpid(hook, 0)
    (site.path / "gate").touch()
    wait_until(lambda: all(entry.token for entry in site.folder().read().entries))
    assert epilog.epilog(site.hook_environment("a,b")) == 0
    assert sorted(site.calls()[2:]) == ["release a session-a", "release b session-b"]
    assert not site.folder().exists()


def wait_until(condition, timeout_s=5.0):
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "not within its time"
        time.sleep(0.005)


def test_an_epilog_that_finds_no_record_of_a_qpu_job_says_so(site, start, syslog_lines):
    """An admin changed --state-dir while the job ran: its sessions are recorded in the old one."""
    site.add("a")
    start("a")
    site.state_dir = site.path / "another"
    site.configure()
    assert epilog.epilog(site.hook_environment("a")) == 0
    assert "job=12" in syslog_lines[-1][1]
    assert "another" in syslog_lines[-1][1]


def test_a_qpu_that_epilog_cannot_release_stays_pending_and_the_exports_are_gone(site, start):
    site.add("a", release="raise")
    start("a")
    assert epilog.epilog(site.hook_environment("a")) == 0
    [entry] = site.folder().read().entries
    assert entry.state is State.RELEASING
    assert not site.folder().exports_path.exists()


def test_a_record_of_another_version_does_not_stop_epilog_and_is_kept(site, start):
    site.add("a")
    start("a")
    path = site.folder().path / "record.json"
    path.write_text(json.dumps({"version": 99}))
    assert epilog.epilog(site.hook_environment("a")) == 0
    assert any(found.read_text() == '{"version": 99}' for found in site.state_dir.rglob("*.json"))


def test_a_record_that_cannot_be_read_for_now_stays_in_place(site, start, monkeypatch):
    """After a stale NFS handle the record is fine; set aside, its sessions would never be released."""
    site.add("a")
    start("a")

    def stale(path):
        raise OSError(116, "Stale file handle")

    with monkeypatch.context() as patched:
        patched.setattr("qrmi_slurm.files.read", stale)
        assert epilog.epilog(site.hook_environment("a")) == 0
    assert epilog.epilog(site.hook_environment("a")) == 0
    assert site.calls() == ["acquire a ", "release a session-a"]


def test_prolog_run_again_for_the_same_run_keeps_the_jobs_qpus(site, start):
    """A restarted slurmd may run Prolog again while the job's tasks use the session."""
    site.add("a")
    start("a")
    outcome = start("a")
    assert site.calls() == ["acquire a "]
    assert outcome.exit_code == 0


def test_a_job_that_was_refused_does_not_run_with_an_earlier_runs_exports(site, start, monkeypatch):
    site.add("a")
    start("a")
    site.add("a", acquire="raise")
    assert start("a", SLURM_JOB_RESTART_COUNT="1").exit_code == 1


def test_a_users_own_credentials_travel_from_submission_to_task(site, start):
    site.add("a")
    own = {f"SPANK_a_{name}": f"mine-{name}" for name in COMPUTE_SERVICE}
    variables = variables_of(start("a", **own).lines)
    assert variables["a_QRMI_IBM_QCS_ENDPOINT"] == "mine-QRMI_IBM_QCS_ENDPOINT"
    assert SECRET not in " ".join(variables.values())
