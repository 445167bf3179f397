"""Starting, reviving and ending a broker, and the hooks that do so."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from doubles import COMPUTE_SERVICE, SECRET, variables_of

from qrmi_slurm.broker import launch, process
from qrmi_slurm.broker.process import Started
from qrmi_slurm.deadline import Deadline
from qrmi_slurm.errors import BrokerError, RecordError
from qrmi_slurm.hooks import epilog, prolog, release, task_prolog
from qrmi_slurm.hooks.hook_run import HookRun
from qrmi_slurm.log import HookLog
from qrmi_slurm.secret import Secret
from qrmi_slurm.slurm import plugstack
from qrmi_slurm.state import record
from qrmi_slurm.state.job_folder import JobFolder
from qrmi_slurm.state.record import Entry, Record, State

ENVIRONMENT = {f"a_{name}": value for name, value in COMPUTE_SERVICE.items()}


@pytest.fixture
def log(syslog_lines):
    return HookLog("prolog", 12, echo=False)


@pytest.fixture
def folder(tmp_path):
    made = JobFolder(tmp_path / "state", "test", 12)
    made.create()
    return made


@pytest.fixture
def held(folder):
    entry = Entry("a", "ibm-quantum-compute-service", ENVIRONMENT, state=State.ACQUIRED, token=Secret("session-1"))
    current = Record("test", 12, os.getuid(), "n1", record.boot_id(), 0, time.time(), (entry,))
    folder.write(current)
    return current


@pytest.fixture
def started(folder, held, log):
    current = launch.start(folder, held, ["a"], time.time() + 60, 20, log)
    yield current
    process.kill(current.broker)
    reap(current.broker.pid)


def reap(pid):
    """Collect a child's exit status, as init does in a cluster."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def wait_gone(broker, deadline_s=10):
    ends_s = time.monotonic() + deadline_s
    while process.is_alive(broker):
        assert time.monotonic() < ends_s
        time.sleep(0.02)


def files_of(proc):
    """Return a process's open files, in the order of their descriptors."""
    fds = sorted((proc / "fd").iterdir(), key=lambda fd: int(fd.name))
    return [str(fd.readlink()).partition(":")[0] for fd in fds]


def test_it_is_recorded_and_runs_apart_from_the_hook(folder, started):
    """In its own session, with none of our files open, and no secret where `ps` or another user looks."""
    broker = folder.read().broker
    assert broker == started.broker
    proc = Path(f"/proc/{broker.pid}")
    assert os.getsid(broker.pid) == broker.pid
    words = (proc / "cmdline").read_bytes().split(b"\0")
    assert words[-2] == b"job=12"
    assert (proc / "environ").read_bytes() == b"MALLOC_ARENA_MAX=2\0"
    ours = [str(folder.broker_path), str(folder.path / "sessions")]
    wanted = ["/dev/null", "/dev/null", "/dev/null", *ours, "socket", "socket"]
    ends_s = time.monotonic() + 10  # it closes Prolog's pipes once it has replied
    while (links := files_of(proc)) != wanted:
        assert time.monotonic() < ends_s, links
        time.sleep(0.02)
    assert (proc / "limits").read_text().split("Max core file size")[1].split()[:2] == ["0", "0"]
    if os.getuid() == 0:
        assert "Uid:\t65534" in (proc / "status").read_text()
    for key in broker.keys.values():
        assert key.reveal() not in repr(started) and str(key) == "***"
    assert SECRET not in repr(started)


def test_epilog_ends_it_at_once(folder, started, log, syslog_lines):
    assert launch.end(folder, started, log).broker is None
    assert not process.is_alive(started.broker)
    assert any("broker-ended: job=12" in line for _, line in syslog_lines)
    assert process.kill(started.broker) is False


def test_it_ends_by_itself_when_its_folder_is_removed(folder, started):
    """Whoever removes it, on whichever node."""
    folder.remove()
    wait_gone(started.broker)


def test_another_process_with_its_pid_is_never_killed(started):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        mistaken = started.broker._replace(pid=other.pid)
        assert not process.is_alive(mistaken)
        assert not process.kill(mistaken)
        assert other.poll() is None
        other.kill()
    assert not process.kill(started.broker._replace(pid=2**22 - 1))


def test_a_record_of_another_boot_identifies_no_process_here(folder, started, log, monkeypatch):
    """It may run on another node, where it notices that its file is gone."""
    with monkeypatch.context() as patched:
        patched.setattr(process, "kill", lambda broker: pytest.fail("it is another machine's"))
        assert launch.end(folder, started._replace(boot_id="another"), log).broker is None
    wait_gone(started.broker)


def test_a_dead_one_is_revived_with_its_port_keys_and_jobs(folder, started, log):
    with folder.broker_path.open("a") as file:
        file.write("\n0 made-before\n")
    os.kill(started.broker.pid, signal.SIGKILL)
    reap(started.broker.pid)
    renewed = launch.revive(folder, started, log)
    try:
        assert renewed.broker._replace(pid=0, start_ticks=0) == started.broker._replace(pid=0, start_ticks=0)
        assert folder.read().broker == renewed.broker
        assert "made-before" in folder.broker_path.read_text()
        assert launch.revive(folder, renewed, log) is None, "it is alive"
    finally:
        process.kill(renewed.broker)
        reap(renewed.broker.pid)
    folder.broker_path.unlink()
    assert launch.revive(folder, renewed, log) is None, "its job has released its QPUs"


def test_one_that_cannot_start_is_an_error_and_leaves_no_process(folder, held, log, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(BrokerError, match="No such file"):
        launch.start(folder, held, ["a"], 0, 5, log)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(BrokerError, match="exited before it was ready"):
        launch.start(folder, held, ["a"], 0, 5, log)
    monkeypatch.setattr(sys, "executable", "/bin/sleep")
    with pytest.raises(BrokerError):
        launch.start(folder, held, ["a"], 0, 0.2, log)


def test_a_faulty_site_option_is_reported(folder, held, log):
    entry = held.entries[0]._replace(environment={**ENVIRONMENT, "SSL_CERT_FILE": "/nowhere.pem"})
    with pytest.raises(BrokerError, match="cannot be started: No such file"):
        launch.start(folder, held._replace(entries=(entry,)), ["a"], 0, 10, log)


def test_one_that_cannot_be_recorded_is_killed(folder, held, log, monkeypatch):
    """The disk is full, and nobody could end it later."""
    pids = []

    def refuse(current):
        pids.append(current.broker)
        raise RecordError("cannot write")

    monkeypatch.setattr(folder, "write", refuse)
    with pytest.raises(RecordError):
        launch.start(folder, held, ["a"], 0, 10, log)
    assert not process.is_alive(pids[0])
    reap(pids[0].pid)


def test_releasing_ends_it_before_the_session(fake_qrmi, tmp_path, folder, started, log):
    options = plugstack.SiteOptions(tmp_path / "none", folder.state_dir)
    release.release(started, HookRun(options, folder, log, Deadline.after(30)))
    assert not process.is_alive(started.broker)


def test_a_record_without_a_broker_can_be_read(folder, held):
    """As an earlier version wrote it, and as this one writes it."""
    document = json.loads((folder.path / "record.json").read_text())
    assert document["broker"] is None
    del document["broker"]
    (folder.path / "record.json").write_text(json.dumps(document))
    assert folder.read() == held


# --- the hooks -----------------------------------------------------------------------------------------------------


@pytest.fixture
def brokers(site, monkeypatch):
    """Start no broker, but return the specs of those that would have been started."""
    made = []

    def start(told, life_path, timeout_s):
        made.append(told)
        return Started(pid=2**22 - 1, start_ticks=len(made), port=4711)

    monkeypatch.setattr(process, "start", start)
    site.add("a", slurm={"broker": True}).add("b")
    return made


def test_a_jobs_variables_lead_to_its_broker_and_hold_no_key(site, brokers):
    assert prolog.prolog(site.hook_environment("a,b")) == 0
    environment = site.task_environment("a,b", NO_PROXY="example.org", http_proxy="http://p")
    variables = variables_of(task_prolog.task_prolog(environment).lines)
    (told,) = brokers
    (qpu,) = told.qpus
    assert qpu.name == "a"
    assert variables["a_QRMI_IBM_QCS_ENDPOINT"] == "http://127.0.0.1:4711/qrmi-slurm-broker/0/api"
    assert variables["a_QRMI_IBM_QCS_IAM_APIKEY"] == qpu.key.reveal()
    assert variables["b_QRMI_IBM_QCS_IAM_APIKEY"] == COMPUTE_SERVICE["QRMI_IBM_QCS_IAM_APIKEY"]
    assert SECRET not in str({name: value for name, value in variables.items() if name.startswith("a_")})
    assert variables["QRMI_SLURM_BROKER"] == "n1"
    assert variables["NO_PROXY"] == variables["no_proxy"] == "example.org,127.0.0.1"
    step = task_prolog.task_prolog(site.task_environment("a,b", **variables, SLURM_STEP_ID="0"))
    assert "a_QRMI_IBM_QCS_ENDPOINT" not in variables_of(step.lines), "it is inherited"
    assert epilog.epilog(site.hook_environment("a,b")) == 0
    assert not site.folder().exists()


def test_a_step_on_another_node_gets_addresses_that_lead_nowhere(site, brokers):
    prolog.prolog(site.hook_environment("a,b"))
    variables = variables_of(task_prolog.task_prolog(site.task_environment("a,b")).lines)
    for inherited in (variables, {}):
        elsewhere = site.task_environment("a,b", SLURMD_NODENAME="n2", SLURM_STEP_ID="0", **inherited)
        seen = variables_of(task_prolog.task_prolog(elsewhere).lines)
        for name, path in (("ENDPOINT", "api"), ("IAM_ENDPOINT", "iam")):
            away = f"http://credential-broker-is-on-n1-only.invalid/qrmi-slurm-broker/0/{path}"
            assert seen[f"a_QRMI_IBM_QCS_{name}"] == away
        assert "invalid/qrmi-slurm-broker" not in seen.get("b_QRMI_IBM_QCS_ENDPOINT", "")


def test_a_job_without_qpus_loses_the_variables_of_a_surrounding_jobs_broker(site, brokers):
    prolog.prolog(site.hook_environment("a"))
    variables = variables_of(task_prolog.task_prolog(site.task_environment("a")).lines)
    lines = task_prolog.task_prolog(site.task_environment(None, SLURM_JOB_ID="99", **variables)).lines
    assert {"unset QRMI_SLURM_BROKER", "unset a_QRMI_IBM_QCS_IAM_APIKEY"} <= set(lines)


@pytest.mark.parametrize(("require", "ready"), [("any", True), ("all", False)])
def test_without_its_broker_a_job_does_not_get_the_qpu(site, brokers, monkeypatch, require, ready):
    """It keeps its other QPUs, unless the site requires all; the session is released."""

    def fail(*arguments):
        raise BrokerError("the credential broker was not ready within 8.0 s")

    monkeypatch.setattr(process, "start", fail)
    site.configure(f"--require={require}")
    prolog.prolog(site.hook_environment("a,b"))
    outcome = task_prolog.task_prolog(site.task_environment("a,b"))
    assert "a: the credential broker was not ready within 8.0 s" in str(outcome.lines)
    assert (outcome.exit_code == 0) == ready
    if ready:
        assert variables_of(outcome.lines)["QRMI_JOB_QPU_RESOURCES"] == "b"
    epilog.epilog(site.hook_environment("a,b"))
    assert {"release a session-a", "release b session-b"} <= set(site.calls())


def test_prolog_that_runs_again_revives_the_broker(site, brokers, monkeypatch, syslog_lines):
    """A restarted slurmd may run it during the job; a broker that cannot be revived is logged."""
    prolog.prolog(site.hook_environment("a"))
    (site.folder().path / "broker").touch()
    prolog.prolog(site.hook_environment("a"))
    assert len(brokers) == 2
    assert site.folder().read().broker.start_ticks == 2

    def fail(*arguments):
        raise BrokerError("Address already in use")

    monkeypatch.setattr(process, "start", fail)
    assert prolog.prolog(site.hook_environment("a")) == 0
    assert any("no-broker" in line and "Address already in use" in line for _, line in syslog_lines)
