"""Starting, finding, ending a broker; what a job that has one sees."""

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
from hypothesis import given
from hypothesis import strategies as st

from qrmi_slurm.broker import launch, spec
from qrmi_slurm.config import credentials
from qrmi_slurm.config.config_file import Resource
from qrmi_slurm.config.resource_types import with_successors
from qrmi_slurm.config.slurm_section import SlurmSection
from qrmi_slurm.deadline import Deadline
from qrmi_slurm.errors import BrokerError, CredentialsError, RecordError
from qrmi_slurm.hooks import epilog, prolog, release, task_prolog
from qrmi_slurm.hooks.hook_run import HookRun
from qrmi_slurm.log import HookLog
from qrmi_slurm.secret import Secret
from qrmi_slurm.slurm import plugstack
from qrmi_slurm.state import record
from qrmi_slurm.state.job_folder import JobFolder
from qrmi_slurm.state.record import Broker, Entry, Record, State

ENVIRONMENT = {f"a_{name}": value for name, value in COMPUTE_SERVICE.items()}
SYSTEM = {
    "QRMI_IBM_QS_ENDPOINT": "https://qs.example",
    "QRMI_IBM_QS_IAM_ENDPOINT": "https://iam.example",
    "QRMI_IBM_QS_IAM_APIKEY": f"{SECRET}-key",
    "QRMI_IBM_QS_SERVICE_CRN": "crn",
    "QRMI_IBM_QS_AWS_ACCESS_KEY_ID": f"{SECRET}-id",
    "QRMI_IBM_QS_AWS_SECRET_ACCESS_KEY": f"{SECRET}-aws",
    "QRMI_IBM_QS_S3_ENDPOINT": "https://s3.example",
    "QRMI_IBM_QS_S3_ENDPOINT_FOR_QSAPI": "https://s3.inside",
    "QRMI_IBM_QS_S3_BUCKET": "bkt",
    "QRMI_IBM_QS_S3_REGION": "eu",
}


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
    launch.kill(current.broker)
    reap(current.broker.pid)


def reap(pid):
    """Take a child's end note, which init does in a cluster."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def wait_gone(broker, deadline_s=10):
    ends_s = time.monotonic() + deadline_s
    while launch.is_alive(broker):
        assert time.monotonic() < ends_s
        time.sleep(0.02)


def files_of(process):
    """Return what a process has open, in the order of the descriptors."""
    fds = sorted((process / "fd").iterdir(), key=lambda fd: int(fd.name))
    return [str(fd.readlink()).partition(":")[0] for fd in fds]


def test_it_is_recorded_and_runs_apart_from_the_hook(folder, started):
    """Its own session, nothing of ours open, nothing of the secrets where `ps` or another user looks."""
    broker = folder.read().broker
    assert broker == started.broker
    process = Path(f"/proc/{broker.pid}")
    assert os.getsid(broker.pid) == broker.pid
    words = (process / "cmdline").read_bytes().split(b"\0")
    assert words[-2] == b"job=12"
    assert (process / "environ").read_bytes() == b"MALLOC_ARENA_MAX=2\0"
    wanted = ["/dev/null", "/dev/null", "/dev/null", str(folder.broker_path), "socket"]
    ends_s = time.monotonic() + 10  # it lets go of Prolog's pipes when it has told its port
    while (links := files_of(process)) != wanted:
        assert time.monotonic() < ends_s, links
        time.sleep(0.02)
    assert (process / "limits").read_text().split("Max core file size")[1].split()[:2] == ["0", "0"]
    if os.getuid() == 0:
        assert "Uid:\t65534" in (process / "status").read_text()
    for key in broker.keys.values():
        assert key.reveal() not in repr(started) and str(key) == "***"
    assert SECRET not in repr(started)


def test_epilog_ends_it_at_once(folder, started, log, syslog_lines):
    assert launch.end(folder, started, log).broker is None
    assert not launch.is_alive(started.broker)
    assert any("broker-ended: job=12" in line for _, line in syslog_lines)
    assert launch.kill(started.broker) is False


def test_it_ends_by_itself_when_its_folder_is_removed(folder, started):
    """Whoever removes it, on whichever node."""
    folder.remove()
    wait_gone(started.broker)


def test_a_number_that_is_another_process_now_is_never_killed(started):
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        mistaken = started.broker._replace(pid=other.pid)
        assert not launch.is_alive(mistaken)
        assert not launch.kill(mistaken)
        assert other.poll() is None
        other.kill()
    assert not launch.kill(started.broker._replace(pid=2**22 - 1))


def test_a_record_of_another_boot_names_no_process_of_this_one(folder, started, log, monkeypatch):
    """It may be another node's, where nobody here can end it: it sees that its file is gone."""
    with monkeypatch.context() as patched:
        patched.setattr(launch, "kill", lambda broker: pytest.fail("it is another machine's"))
        assert launch.end(folder, started._replace(boot_id="another"), log).broker is None
    wait_gone(started.broker)


def test_one_that_died_is_started_again_with_its_port_keys_and_jobs(folder, started, log):
    with folder.broker_path.open("a") as file:
        file.write("\n0 made-before\n")
    os.kill(started.broker.pid, signal.SIGKILL)
    reap(started.broker.pid)
    renewed = launch.revive(folder, started, log)
    try:
        assert renewed.broker._replace(pid=0, start_ticks=0) == started.broker._replace(pid=0, start_ticks=0)
        assert folder.read().broker == renewed.broker
        assert "made-before" in folder.broker_path.read_text()
        assert launch.revive(folder, renewed, log) is None, "it lives"
    finally:
        launch.kill(renewed.broker)
        reap(renewed.broker.pid)
    folder.broker_path.unlink()
    assert launch.revive(folder, renewed, log) is None, "its job has given back its QPUs"


def test_what_cannot_start_is_an_error_and_no_process(folder, held, log, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(BrokerError, match="No such file"):
        launch.start(folder, held, ["a"], 0, 5, log)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(BrokerError, match="ended before it listened"):
        launch.start(folder, held, ["a"], 0, 5, log)
    monkeypatch.setattr(sys, "executable", "/bin/sleep")
    with pytest.raises(BrokerError):
        launch.start(folder, held, ["a"], 0, 0.2, log)


def test_a_faulty_site_option_is_said(folder, held, log):
    entry = held.entries[0]._replace(environment={**ENVIRONMENT, "SSL_CERT_FILE": "/nowhere.pem"})
    with pytest.raises(BrokerError, match="cannot be started: No such file"):
        launch.start(folder, held._replace(entries=(entry,)), ["a"], 0, 10, log)


def test_what_cannot_be_recorded_does_not_stay(folder, held, log, monkeypatch):
    """A disk that is full: a broker that nobody could end is ended at once."""
    pids = []

    def refuse(current):
        pids.append(current.broker)
        raise RecordError("cannot write")

    monkeypatch.setattr(folder, "write", refuse)
    with pytest.raises(RecordError):
        launch.start(folder, held, ["a"], 0, 10, log)
    assert not launch.is_alive(pids[0])
    reap(pids[0].pid)


def test_releasing_ends_it_before_the_session(fake_qrmi, tmp_path, folder, started, log):
    options = plugstack.SiteOptions(tmp_path / "none", folder.state_dir)
    release.release(started, HookRun(options, folder, log, Deadline.after(30)))
    assert not launch.is_alive(started.broker)


def test_a_record_without_one_is_read(folder, held):
    """As an earlier version wrote it, and as this one does."""
    document = json.loads((folder.path / "record.json").read_text())
    assert document["broker"] is None
    del document["broker"]
    (folder.path / "record.json").write_text(json.dumps(document))
    assert folder.read() == held


# --- what it is told, what the job sees -------------------------------------------------------------------------


def told(entries, keys, broker_restart=0):
    current = Record("c", 12, 1000, "n1", "b", 0, 0.0, tuple(entries))
    broker = Broker(1, 2, 3, broker_restart, keys, "space", 99.0)
    text = json.dumps(launch._spec(current, broker)).encode() + b"\n"
    return spec.parse(text)


def test_it_is_told_its_own_qpus_and_the_sites_options_alone():
    entry = Entry(
        "a",
        "ibm-quantum-compute-service",
        {**ENVIRONMENT, "https_proxy": "http://p", "QRMI_JOB_ID": "12", "a_QRMI_JOB_TIMEOUT_SECONDS": "60"},
        state=State.ACQUIRED,
        token=Secret("s"),
    )
    earlier = entry._replace(restart_count=-1, token=Secret("of-before"))
    other = entry._replace(name="b", environment={"b_QRMI_IBM_QCS_IAM_APIKEY": "not-for-it"})
    found = told([earlier, entry, other], {"a": Secret("k"), "gone": Secret("l")})
    assert found.env == {"https_proxy": "http://p"}
    (own, gone) = found.qpus
    assert gone is None
    assert (own.session, own.api_key.reveal(), own.bucket) == ("s", COMPUTE_SERVICE["QRMI_IBM_QCS_IAM_APIKEY"], None)
    assert "not-for-it" not in repr(found)


def test_an_older_types_variables_are_read_as_well():
    older = {name.replace("QCS", "QRS"): value for name, value in COMPUTE_SERVICE.items()}
    environment = {f"a_{name}": value for name, value in with_successors(older).items()}
    entry = Entry("a", "qiskit-runtime-service", environment, state=State.ACQUIRED, token=Secret("s"))
    assert told([entry], {"a": Secret("k")}).qpus[0].endpoint == COMPUTE_SERVICE["QRMI_IBM_QCS_ENDPOINT"]
    seen = launch.variables("qiskit-runtime-service", older, Secret("k"), 0, 1)
    assert seen["QRMI_IBM_QRS_IAM_APIKEY"] == seen["QRMI_IBM_QCS_IAM_APIKEY"] == "k"


def test_a_systems_s3_is_told():
    environment = {f"a_{name}": value for name, value in SYSTEM.items()}
    entry = Entry("a", "ibm-quantum-system", environment, state=State.ACQUIRED, token=Secret("dummy"))
    (qpu,) = told([entry], {"a": Secret("k")}).qpus
    assert qpu.session is None
    bucket = qpu.bucket
    assert (bucket.endpoint, bucket.service_endpoint) == ("https://s3.example", "https://s3.inside")
    assert bucket.prefix == "qrmi-slurm-broker/space/"


@pytest.mark.parametrize("text", [b"", b"{}", b"{}\n", b"[]\n", b'{"job_id": 1\n', b"null\n"])
def test_a_spec_that_is_cut_off_is_none(text):
    """Prolog was killed while it wrote."""
    with pytest.raises(ValueError):
        spec.parse(text)


@given(
    st.sampled_from([COMPUTE_SERVICE, SYSTEM]),
    st.dictionaries(
        st.sampled_from(["QRMI_IBM_QCS_NEW", "QRMI_X_TOKEN", "QRMI_IBM_QS_PASSWORD", "PASQAL_CONFIG_ROOT"]),
        st.just(f"{SECRET}-more"),
    ),
    st.sets(st.sampled_from(sorted(SYSTEM)), max_size=4),
)
def test_no_secret_of_the_sites_is_in_what_a_job_sees(base, more, without):
    """Whatever else stands in the environment, and whatever is missing."""
    environment = {name: value for name, value in {**base, **more}.items() if name not in without}
    type_name = "ibm-quantum-system" if base is SYSTEM else "ibm-quantum-compute-service"
    seen = launch.variables(type_name, environment, Secret("key-of-the-job"), 3, 4711)
    assert SECRET not in str(seen)
    assert not [value for value in seen.values() if "example" in value or "invalid" in value]
    assert all("/qrmi-slurm-broker/3/" in value for name, value in seen.items() if "ENDPOINT" in name)


# --- who needs one -------------------------------------------------------------------------------------------------

SITE = Resource("a", "ibm-quantum-compute-service", COMPUTE_SERVICE, slurm=SlurmSection(broker=True))


def test_a_site_that_says_so_has_one_where_its_key_is_used():
    assert credentials.merge(SITE, {}).need_broker
    assert not credentials.merge(SITE._replace(slurm=SlurmSection()), {}).need_broker
    assert credentials.merge(SITE, {"a_QRMI_IBM_QCS_SESSION_MODE": "batch"}).need_broker
    assert not credentials.merge(SITE, {"a_QRMI_IBM_QCS_IAM_APIKEY": "mine"}).need_broker


@pytest.mark.parametrize("name", ["SERVICE_CRN", "IAM_OTHER", "CALIBRATION"])
def test_the_sites_key_serves_nothing_that_a_user_names(name):
    with pytest.raises(CredentialsError, match=f"a_QRMI_IBM_QCS_{name}, which cannot be combined with the site's"):
        credentials.merge(SITE, {f"a_QRMI_IBM_QCS_{name}": "x"})


def test_what_a_job_within_a_job_inherits_is_not_its_users():
    key = Secret("qrmi-slurm-broker.abc")
    inherited = launch.variables("ibm-quantum-compute-service", COMPUTE_SERVICE, key, 0, 4711)
    merged = credentials.merge(SITE, {f"a_{name}": value for name, value in inherited.items()})
    assert merged.environment == COMPUTE_SERVICE
    assert (merged.are_users, merged.need_broker) == (False, True)


def test_a_type_that_can_have_none_is_refused_rather_than_shown():
    garnet = Resource(
        "g",
        "iqm-server",
        {"QRMI_IQM_ISA_ENDPOINT": "https://x", "QRMI_IQM_ISA_TOKEN": SECRET},
        slurm=SlurmSection(broker=True),
    )
    with pytest.raises(CredentialsError, match="iqm-server cannot have one"):
        credentials.merge(garnet, {})


# --- the hooks -----------------------------------------------------------------------------------------------------


@pytest.fixture
def brokers(site, monkeypatch):
    """Let no broker start: return those that would have, and what the site's one resource sees of it."""
    made = []

    def run(folder, current, timeout_s, log):
        made.append(current.broker)
        return current._replace(broker=current.broker._replace(pid=2**22 - 1, start_ticks=len(made), port=4711))

    monkeypatch.setattr(launch, "_run", run)
    site.add("a", slurm={"broker": True}).add("b")
    return made


def test_a_jobs_variables_lead_to_its_broker_and_hold_no_key(site, brokers):
    assert prolog.prolog(site.hook_environment("a,b")) == 0
    environment = site.task_environment("a,b", NO_PROXY="example.org", http_proxy="http://p")
    variables = variables_of(task_prolog.task_prolog(environment).lines)
    (broker,) = brokers
    assert list(broker.keys) == ["a"]
    assert variables["a_QRMI_IBM_QCS_ENDPOINT"] == "http://127.0.0.1:4711/qrmi-slurm-broker/0/api"
    assert variables["a_QRMI_IBM_QCS_IAM_APIKEY"] == broker.keys["a"].reveal()
    assert variables["b_QRMI_IBM_QCS_IAM_APIKEY"] == COMPUTE_SERVICE["QRMI_IBM_QCS_IAM_APIKEY"]
    assert SECRET not in str({name: value for name, value in variables.items() if name.startswith("a_")})
    assert variables["QRMI_SLURM_BROKER"] == "n1"
    assert variables["NO_PROXY"] == variables["no_proxy"] == "example.org,127.0.0.1"
    step = task_prolog.task_prolog(site.task_environment("a,b", **variables, SLURM_STEP_ID="0"))
    assert "a_QRMI_IBM_QCS_ENDPOINT" not in variables_of(step.lines), "it is inherited"
    assert epilog.epilog(site.hook_environment("a,b")) == 0
    assert not site.folder().exists()


def test_a_step_on_another_node_is_led_to_nobody(site, brokers):
    prolog.prolog(site.hook_environment("a,b"))
    variables = variables_of(task_prolog.task_prolog(site.task_environment("a,b")).lines)
    for inherited in (variables, {}):
        elsewhere = site.task_environment("a,b", SLURMD_NODENAME="n2", SLURM_STEP_ID="0", **inherited)
        seen = variables_of(task_prolog.task_prolog(elsewhere).lines)
        for name, path in (("ENDPOINT", "api"), ("IAM_ENDPOINT", "iam")):
            away = f"http://credential-broker-is-on-n1-only.invalid/qrmi-slurm-broker/0/{path}"
            assert seen[f"a_QRMI_IBM_QCS_{name}"] == away
        assert "invalid/qrmi-slurm-broker" not in seen.get("b_QRMI_IBM_QCS_ENDPOINT", "")


def test_a_job_without_qpus_loses_the_mark_of_a_surrounding_jobs_broker(site, brokers):
    prolog.prolog(site.hook_environment("a"))
    variables = variables_of(task_prolog.task_prolog(site.task_environment("a")).lines)
    lines = task_prolog.task_prolog(site.task_environment(None, SLURM_JOB_ID="99", **variables)).lines
    assert {"unset QRMI_SLURM_BROKER", "unset a_QRMI_IBM_QCS_IAM_APIKEY"} <= set(lines)


@pytest.mark.parametrize(("require", "ready"), [("any", True), ("all", False)])
def test_without_its_broker_a_job_does_not_have_the_qpu(site, brokers, monkeypatch, require, ready):
    """What it has beside it, it keeps, unless the site says all or none; the session is given back."""

    def fail(*arguments):
        raise BrokerError("the credential broker did not listen within 8.0 s")

    monkeypatch.setattr(launch, "_run", fail)
    site.configure(f"--require={require}")
    prolog.prolog(site.hook_environment("a,b"))
    outcome = task_prolog.task_prolog(site.task_environment("a,b"))
    assert "a: the credential broker did not listen within 8.0 s" in str(outcome.lines)
    assert (outcome.exit_code == 0) == ready
    if ready:
        assert variables_of(outcome.lines)["QRMI_JOB_QPU_RESOURCES"] == "b"
    epilog.epilog(site.hook_environment("a,b"))
    assert {"release a session-a", "release b session-b"} <= set(site.calls())


def test_prolog_again_under_the_job_looks_after_its_broker(site, brokers, monkeypatch, syslog_lines):
    """A slurmd that was restarted may run it; what cannot be started again is logged."""
    prolog.prolog(site.hook_environment("a"))
    (site.folder().path / "broker").touch()
    prolog.prolog(site.hook_environment("a"))
    assert len(brokers) == 2
    assert site.folder().read().broker.start_ticks == 2

    def fail(*arguments):
        raise BrokerError("Address already in use")

    monkeypatch.setattr(launch, "_run", fail)
    assert prolog.prolog(site.hook_environment("a")) == 0
    assert any("no-broker" in line and "Address already in use" in line for _, line in syslog_lines)
