"""The hooks: Prolog and Epilog always end well for Slurm, TaskProlog says yes or says why not."""

import json
import os
import time

import pytest
from doubles import COMPUTE_SERVICE, SECRET, variables_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qrmi_slurm.calls import backend
from qrmi_slurm.errors import RecordError
from qrmi_slurm.hooks import epilog, prolog, task_prolog
from qrmi_slurm.state.job_folder import JobFolder
from qrmi_slurm.state.journal import Journals
from qrmi_slurm.state.record import State


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A shared file system that shows nothing is given up on at once."""
    monkeypatch.setattr(task_prolog, "_SHARED_WAIT_S", 0.05)
    monkeypatch.setattr(task_prolog, "_FIRST_NODE_WAIT_S", 0.05)
    monkeypatch.setattr(task_prolog, "_SHARED_POLL_S", 0.01)


@pytest.fixture
def start(site, syslog_lines):
    """Run Prolog and then the batch script's TaskProlog."""

    def run(selection, **changes):
        assert prolog.prolog(site.hook_environment(selection, **changes)) == 0
        assert not any(SECRET in line for _, line in syslog_lines)
        return task_prolog.task_prolog(site.task_environment(selection))

    return run


def printed(outcome):
    return [line.removeprefix("print ") for line in outcome.lines if line.startswith("print ")]


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
def test_whatever_slurm_leaves_out_or_garbles_the_node_stays(site, syslog_lines, monkeypatch, hook, name, value):
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
def test_whatever_breaks_in_the_state_directory_the_node_stays(site, syslog_lines, monkeypatch, fault, where):
    site.add("a")

    def broken(*arguments, **options):
        raise fault

    monkeypatch.setattr(Journals if where == "open" else JobFolder, where, broken)
    assert prolog.prolog(site.hook_environment("a")) == 0
    assert epilog.epilog(site.hook_environment("a")) == 0
    assert all("\n" not in line for _, line in syslog_lines)


def test_a_surprise_is_logged_with_its_traceback_and_told_to_the_user_without(site, start, syslog_lines, monkeypatch):
    site.add("a")
    monkeypatch.setattr(backend, "run", lambda *arguments: 1 / 0)
    outcome = start("a")
    assert outcome.exit_code == 1
    assert printed(outcome) == ["qrmi-slurm: job 12 has no QPU: an internal error; please tell an admin"]
    assert any("ZeroDivisionError" in line and "job=12" in line for _, line in syslog_lines)


def test_after_a_killed_prolog_epilog_releases_what_its_children_left(site, syslog_lines):
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
    """An admin changed --state-dir while the job ran: its sessions stand in the old one."""
    site.add("a")
    start("a")
    site.state_dir = site.path / "another"
    site.configure()
    assert epilog.epilog(site.hook_environment("a")) == 0
    assert "job=12" in syslog_lines[-1][1]
    assert "another" in syslog_lines[-1][1]


def test_what_epilog_cannot_release_stays_pending_without_credentials_for_tasks(site, start):
    site.add("a", release="raise")
    start("a")
    assert epilog.epilog(site.hook_environment("a")) == 0
    [entry] = site.folder().read().entries
    assert entry.state is State.RELEASING
    assert not site.folder().exports_path.exists()


def test_a_record_of_another_version_stops_no_epilog_and_is_not_lost(site, start):
    site.add("a")
    start("a")
    path = site.folder().path / "record.json"
    path.write_text(json.dumps({"version": 99}))
    assert epilog.epilog(site.hook_environment("a")) == 0
    assert any(found.read_text() == '{"version": 99}' for found in site.state_dir.rglob("*.json"))


def test_a_record_that_cannot_be_read_just_now_stays_where_it_is(site, start, monkeypatch):
    """A stale NFS handle is no broken record: moved aside, its sessions would never be released."""
    site.add("a")
    start("a")

    def stale(path):
        raise OSError(116, "Stale file handle")

    with monkeypatch.context() as patched:
        patched.setattr("qrmi_slurm.files.read", stale)
        assert epilog.epilog(site.hook_environment("a")) == 0
    assert epilog.epilog(site.hook_environment("a")) == 0
    assert site.calls() == ["acquire a ", "release a session-a"]


def test_prolog_run_again_for_the_same_run_keeps_what_the_job_holds(site, start):
    """A restarted slurmd may run Prolog again under a job whose tasks use the session."""
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


# --- TaskProlog ------------------------------------------------------------------------------------------


def test_without_a_selection_and_an_inheritance_nothing_is_said(site):
    outcome = task_prolog.task_prolog(site.task_environment(None, HOME="/root"))
    assert (outcome.lines, outcome.exit_code) == ((), 0)


INHERITED = {
    "QRMI_JOB_ID": "7",
    "QRMI_JOB_UID": "0",
    "QRMI_JOB_QPU_RESOURCES": "a,b-c",
    "QRMI_JOB_QPU_TYPES": "t,t",
    "SLURM_JOB_QPU_RESOURCES": "a,b-c",
    "SLURM_JOB_QPU_TYPES": "t,t",
    "a_QRMI_JOB_ACQUISITION_TOKEN": "stale",
    "b-c_QRMI_IBM_QCS_IAM_APIKEY": SECRET,
    "RUST_LOG": "info",
    "QRMI_SLURM_RUST_LOG": "info",
}


def test_what_a_surrounding_job_left_is_taken_out_of_a_job_without_qpus(site):
    outcome = task_prolog.task_prolog(site.task_environment(None, **INHERITED, a_OTHER="stays", d_QRMI_X="stays"))
    assert outcome.exit_code == 0
    assert sorted(outcome.lines) == sorted(f"unset {name}" for name in INHERITED)


def test_the_sites_own_variables_go_with_the_surrounding_job_but_a_users_stay(site):
    site.configure("--env:PROXY=http://site", "--env:MINE=http://site")
    own = {"PROXY": "http://site", "MINE": "http://user"}
    assert task_prolog.task_prolog(site.task_environment(None, **own)).lines == ()
    outcome = task_prolog.task_prolog(site.task_environment(None, **INHERITED, **own))
    assert sorted(outcome.lines) == sorted(f"unset {name}" for name in [*INHERITED, "PROXY"])


def test_what_a_surrounding_job_left_goes_before_the_jobs_own_comes(site, start):
    site.add("a")
    start("a")
    outcome = task_prolog.task_prolog(site.task_environment("a", **INHERITED))
    after = dict(INHERITED)
    for line in outcome.lines:
        word, _, rest = line.partition(" ")
        if word == "unset":
            after.pop(rest, None)
        elif word == "export":
            after[rest.partition("=")[0]] = rest.partition("=")[2]
    assert after["a_QRMI_JOB_ACQUISITION_TOKEN"] == "session-a"
    assert after["QRMI_JOB_QPU_RESOURCES"] == "a"
    assert not any(name.startswith("b-c_") for name in after)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text("aQRMI_\n =Xx", min_size=1, max_size=12), st.text(max_size=5), max_size=5))
def test_no_name_in_the_environment_becomes_another_directive(site, extra):
    extra = {f"a_QRMI_{name}": value for name, value in extra.items()}
    outcome = task_prolog.task_prolog({**site.task_environment(None, **INHERITED), **extra})
    assert all(line.startswith("unset ") and "\n" not in line for line in outcome.lines)


def test_a_step_within_the_job_keeps_what_it_inherited(site, start):
    site.add("a")
    variables = variables_of(start("a").lines)
    step = site.task_environment("a", SLURM_STEP_ID="0", **{**variables, "a_QRMI_IBM_QCS_ENDPOINT": "changed"})
    outcome = task_prolog.task_prolog(step)
    assert outcome.exit_code == 0
    assert "a_QRMI_IBM_QCS_ENDPOINT" not in variables_of(outcome.lines)


def test_a_steps_own_qpu_narrows_the_lists(site, start):
    site.add("a").add("b")
    variables = variables_of(start("a,b").lines)
    for inherited in ({}, variables):
        step = site.task_environment("a,b", QRMI_SLURM_QPU="b", SLURM_STEP_ID="0", **inherited)
        outcome = task_prolog.task_prolog(step)
        assert variables_of(outcome.lines)["QRMI_JOB_QPU_RESOURCES"] == "b"
        assert variables_of(outcome.lines)["SLURM_JOB_QPU_RESOURCES"] == "b"


def test_a_step_that_asks_for_a_foreign_qpu_fails_with_a_sentence(site, start):
    site.add("a").add("b")
    variables = variables_of(start("a").lines)
    outcome = task_prolog.task_prolog(site.task_environment("a", QRMI_SLURM_QPU="b", SLURM_STEP_ID="0", **variables))
    assert outcome.exit_code == 1
    assert printed(outcome) == ["qrmi-slurm: this job does not hold b; it holds a"]


def test_a_step_of_a_job_without_qpus_is_told_to_submit_with_them(site):
    outcome = task_prolog.task_prolog(site.task_environment(None, QRMI_SLURM_QPU="a", SLURM_STEP_ID="0"))
    assert outcome.exit_code == 1
    assert "holds no QPU, so a step of it cannot have a; submit the job with --qpu" in printed(outcome)[0]


def test_where_prolog_left_nothing_the_task_fails_and_says_where_to_look(site):
    outcome = task_prolog.task_prolog(site.task_environment("a"))
    assert outcome.exit_code == 1
    assert "job 12 has no QPU: Prolog left nothing at" in printed(outcome)[0]
    assert "journalctl" in printed(outcome)[0]


def test_a_node_that_does_not_see_the_state_directory_names_the_option(site):
    outcome = task_prolog.task_prolog(site.task_environment("a", SLURMD_NODENAME="n2"))
    assert outcome.exit_code == 1
    assert "--state-dir" in printed(outcome)[0]


def test_another_node_waits_for_the_shared_file_system(site, start, monkeypatch):
    """Also where it does not even see the folder: its own Prolog may be an older one, which makes none."""
    site.add("a")
    start("a")
    path = site.folder().path
    hidden = path.rename(site.path / "hidden")
    monkeypatch.setattr(task_prolog, "_SHARED_WAIT_S", 5.0)
    monkeypatch.setattr(time, "sleep", lambda _: hidden.exists() and hidden.rename(path))
    outcome = task_prolog.task_prolog(site.task_environment("a", SLURMD_NODENAME="n2"))
    assert outcome.exit_code == 0


# On another node than the first: a step of salloc, one of `srun --qpu` without an allocation, one in a further
# component of a heterogeneous job, whose selection its environment does not tell.
OTHER_NODE = {"SLURMD_NODENAME": "n2", "SLURM_STEP_ID": "0"}
DIRECT = {**OTHER_NODE, "SLURM_SPANK_QRMI_QPU": None}
COMPONENT = {**DIRECT, "SLURM_JOB_ID": "11", "QRMI_SLURM_JOB_ID": "12", "QRMI_SLURM_QPU": None}
ON_OTHER_NODE = pytest.mark.parametrize("step", [OTHER_NODE, DIRECT, COMPONENT], ids=["salloc", "srun", "component"])


@ON_OTHER_NODE
@pytest.mark.parametrize("left", ["folder", "record"])
def test_another_node_waits_for_the_first_ones_prolog(site, start, monkeypatch, step, left):
    """Its own is over, and has made the folder; the record shows that the other is at it."""
    site.add("a")
    start("a")
    folder = site.folder()
    hidden = folder.exports_path.rename(site.path / "hidden")
    if left == "folder":
        folder.remove()
        prolog.prolog(site.hook_environment("a", SLURMD_NODENAME="n2"))
        monkeypatch.setattr(task_prolog, "_FIRST_NODE_WAIT_S", 5.0)
    until_s = time.monotonic() + 0.3
    real_sleep = time.sleep

    def sleep(seconds):
        real_sleep(seconds)
        if hidden.exists() and time.monotonic() > until_s:
            hidden.rename(folder.exports_path)

    monkeypatch.setattr(time, "sleep", sleep)
    outcome = task_prolog.task_prolog(site.task_environment("a", **step))
    assert (outcome.exit_code, variables_of(outcome.lines)["a_QRMI_JOB_ACQUISITION_TOKEN"]) == (0, "session-a")


@ON_OTHER_NODE
def test_a_prolog_that_was_killed_is_not_waited_for_without_end(site, start, monkeypatch, step):
    """It ends within --acquire-timeout and a second; then the task says on which node to look."""
    site.add("a")
    start("a")
    site.folder().exports_path.unlink()
    site.configure("--acquire-timeout=1")
    monkeypatch.setattr(task_prolog, "_PROLOG_GRACE_S", 0.0)
    began_s = time.monotonic()
    outcome = task_prolog.task_prolog(site.task_environment("a", **step))
    assert outcome.exit_code == 1
    assert 1 < time.monotonic() - began_s < 10
    assert printed(outcome)[0].endswith("an admin can look at: journalctl -t qrmi-slurm-prolog on n1")


@ON_OTHER_NODE
def test_a_state_directory_of_each_nodes_own_is_told(site, step):
    """The folder is there, since this node's Prolog has made it, and nothing comes into it."""
    prolog.prolog(site.hook_environment("a", SLURMD_NODENAME="n2"))
    outcome = task_prolog.task_prolog(site.task_environment("a", **step))
    assert outcome.exit_code == 1
    assert "--state-dir" in printed(outcome)[0]


@pytest.mark.parametrize(("step", "exit_code"), [(DIRECT, 1), (COMPONENT, 0)], ids=["--qpu", "component"])
def test_a_step_of_a_job_without_qpu_waits_for_nothing(site, monkeypatch, step, exit_code):
    monkeypatch.setattr(time, "sleep", None)
    outcome = task_prolog.task_prolog(site.task_environment("a", **step))
    assert outcome.exit_code == exit_code
    assert all("holds no QPU" in line for line in printed(outcome))


def test_exports_of_another_job_are_never_used(site, start):
    site.add("a")
    start("a")
    text = site.folder().exports_path.read_text()
    site.folder().write_exports(text.replace("job=12", "job=11"), os.getuid())
    outcome = task_prolog.task_prolog(site.task_environment("a"))
    assert (outcome.exit_code, variables_of(outcome.lines)) == (1, {})


def test_exports_of_an_earlier_run_are_never_used(site, start):
    """The first node of a requeued job may have left them where its Epilog never ran."""
    site.add("a")
    start("a")
    step = site.task_environment("a", SLURM_JOB_RESTART_COUNT="1", SLURM_RESTART_COUNT="1")
    assert task_prolog.task_prolog(step).exit_code == 1


def test_exports_of_somebody_else_are_never_used(site, start):
    site.add("a")
    start("a")
    os.chown(site.folder().exports_path, 65534, -1)
    outcome = task_prolog.task_prolog(site.task_environment("a"))
    assert (outcome.exit_code, variables_of(outcome.lines)) == (1, {})


def test_exports_that_the_user_may_not_reach_are_told_with_what_to_do(site, monkeypatch):
    def denied(path, *arguments):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("qrmi_slurm.state.exports.os.open", denied)
    outcome = task_prolog.task_prolog(site.task_environment("a"))
    assert outcome.exit_code == 1
    [line] = printed(outcome)
    assert "Permission denied" in line
    assert "admin" in line


@pytest.mark.parametrize(
    "content", [b"", b"garbage", bytes(range(256)), b"# qrmi-slurm exports 2\njob=12 restart=0 outcome=ready\n"]
)
def test_exports_that_are_not_whole_fail_the_task_with_a_sentence(site, start, content):
    site.add("a")
    start("a")
    path = site.folder().exports_path
    path.chmod(0o600)
    path.write_bytes(content)
    outcome = task_prolog.task_prolog(site.task_environment("a"))
    assert outcome.exit_code == 1
    assert len(printed(outcome)) == 1


@pytest.mark.parametrize("arguments", ["--unknown", "--state-dir=relative", f"--env:A-B={SECRET}"])
def test_a_plugin_line_that_cannot_be_used_is_told_with_its_place(site, syslog_lines, arguments):
    site.add("a")
    site.configure(arguments)
    assert prolog.prolog(site.hook_environment("a")) == 0
    assert site.calls() == []
    outcome = task_prolog.task_prolog(site.task_environment("a"))
    assert outcome.exit_code == 1
    assert "plugstack.conf:1" in printed(outcome)[0]
    assert SECRET not in " ".join([*outcome.lines, *(line for _, line in syslog_lines)])


@pytest.mark.parametrize(
    ("verbosity", "level"), [("2", "error"), ("3", "info"), ("4", "debug"), ("5", "trace"), ("9", "trace")]
)
def test_qrmis_level_follows_sruns_verbosity(site, start, verbosity, level):
    site.add("a")
    start("a")
    outcome = task_prolog.task_prolog(site.task_environment("a", SRUN_DEBUG=verbosity))
    assert variables_of(outcome.lines)["RUST_LOG"] == level


def test_a_verbose_step_of_a_batch_job_gets_its_own_level(site, start):
    site.add("a")
    variables = variables_of(start("a").lines)
    outcome = task_prolog.task_prolog(site.task_environment("a", SRUN_DEBUG="5", SLURM_STEP_ID="0", **variables))
    assert variables_of(outcome.lines)["RUST_LOG"] == "trace"


@pytest.mark.parametrize("options", [[], ["--env:RUST_LOG=trace"]])
def test_a_level_that_the_user_set_stays(site, start, options):
    site.configure(*options)
    site.add("a")
    start("a")
    outcome = task_prolog.task_prolog(site.task_environment("a", RUST_LOG="warn", SRUN_DEBUG="5"))
    assert variables_of(outcome.lines).get("RUST_LOG", "warn") == "warn"


def test_a_level_that_the_site_set_reaches_the_task(site, start):
    site.configure("--env:RUST_LOG=qrmi=debug")
    site.add("a")
    assert variables_of(start("a").lines)["RUST_LOG"] == "qrmi=debug"


def test_in_a_step_of_a_heterogeneous_job_the_components_own_job_counts(site, start):
    """SLURM_JOB_ID is the first component's there; the stub hands the step's own id on."""
    site.add("a")
    start("a")
    step = site.task_environment("a", SLURM_JOB_ID="11", QRMI_SLURM_JOB_ID="12", SLURM_STEP_ID="0")
    outcome = task_prolog.task_prolog(step)
    assert outcome.exit_code == 0
    assert variables_of(outcome.lines)["a_QRMI_JOB_ACQUISITION_TOKEN"] == "session-a"


SEEN_BY_TASKPROLOG = (
    "SLURM_JOB_ID",
    "SLURM_PROCID",
    "SLURM_CLUSTER_NAME",
    "SLURM_CONF",
    "SLURM_JOB_NODELIST",
    "SRUN_DEBUG",
    "QRMI_JOB_ID",
    "QRMI_SLURM_QPU",
    "SLURM_SPANK_QRMI_QPU",
    "RUST_LOG",
    "QRMI_JOB_QPU_RESOURCES",
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    st.dictionaries(
        st.sampled_from(SEEN_BY_TASKPROLOG),
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=10)
        | st.sampled_from(["12", "a", "0", "\udcff"]),
        max_size=5,
    )
)
def test_whatever_a_user_puts_into_the_environment_taskprolog_answers_in_its_own_words(site, changes):
    outcome = task_prolog.task_prolog({**site.task_environment("a"), **changes})
    assert outcome.exit_code in (0, 1)
    assert all(line.partition(" ")[0] in ("print", "export", "unset") and "\n" not in line for line in outcome.lines)


def test_a_users_own_credentials_travel_from_submission_to_task(site, start):
    site.add("a")
    own = {f"SPANK_a_{name}": f"mine-{name}" for name in COMPUTE_SERVICE}
    variables = variables_of(start("a", **own).lines)
    assert variables["a_QRMI_IBM_QCS_ENDPOINT"] == "mine-QRMI_IBM_QCS_ENDPOINT"
    assert SECRET not in " ".join(variables.values())
