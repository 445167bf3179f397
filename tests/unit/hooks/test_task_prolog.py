"""TaskProlog: it prints the job's QPU environment, or why the task must not run."""

import os
import time

import pytest
from doubles import SECRET, printed, variables_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qrmi_slurm.hooks import prolog, task_prolog
from qrmi_slurm.state import exports


def test_without_a_selection_or_inherited_variables_nothing_is_printed(site):
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


def test_a_job_without_qpus_loses_the_variables_of_a_surrounding_job(site):
    outcome = task_prolog.task_prolog(site.task_environment(None, **INHERITED, a_OTHER="stays", d_QRMI_X="stays"))
    assert outcome.exit_code == 0
    assert sorted(outcome.lines) == sorted(f"unset {name}" for name in INHERITED)


def test_the_sites_variables_are_unset_with_the_surrounding_jobs_but_the_users_stay(site):
    site.configure("--env:PROXY=http://site", "--env:MINE=http://site")
    own = {"PROXY": "http://site", "MINE": "http://user"}
    assert task_prolog.task_prolog(site.task_environment(None, **own)).lines == ()
    outcome = task_prolog.task_prolog(site.task_environment(None, **INHERITED, **own))
    assert sorted(outcome.lines) == sorted(f"unset {name}" for name in [*INHERITED, "PROXY"])


def test_the_sites_earlier_variables_are_unset_too(site):
    """Their values have changed since the surrounding job began, so only their fingerprints tell."""
    site.configure("--env:PROXY=http://new", "--env:RUST_LOG=warn")
    own = {"PROXY": "http://old", "MINE": "http://user", "RUST_LOG": "trace"}
    given = ",".join(exports.fingerprint(name, own[name]) for name in ("PROXY", "RUST_LOG"))
    inherited = {**INHERITED, **own, "QRMI_SLURM_GIVEN": given}
    outcome = task_prolog.task_prolog(site.task_environment(None, **inherited))
    assert sorted(outcome.lines) == sorted(f"unset {name}" for name in inherited if name != "MINE")


def test_the_sites_earlier_log_level_is_not_the_users(site, start):
    site.add("a")
    site.configure("--env:RUST_LOG=warn")
    start("a")
    given = exports.fingerprint("RUST_LOG", "trace")
    for mark, level in ((given, "warn"), ("", None)):
        inherited = {**INHERITED, "RUST_LOG": "trace", "QRMI_SLURM_GIVEN": mark}
        outcome = task_prolog.task_prolog(site.task_environment("a", **inherited))
        assert variables_of(outcome.lines).get("RUST_LOG") == level


ATTACHED = {"QRMI_SLURM_JOB_ID": "12", "QRMI_SLURM_QPU": None, "SLURM_STEP_ID": "0"}


def test_a_step_that_was_attached_from_elsewhere_has_what_the_job_has(site, start):
    site.add("a").add("b")
    of_job = variables_of(start("a,b").lines)
    step = site.task_environment(None, **ATTACHED)
    assert variables_of(task_prolog.task_prolog(step).lines) == of_job
    narrowed = variables_of(task_prolog.task_prolog({**step, "QRMI_SLURM_QPU": "b"}).lines)
    assert narrowed["QRMI_JOB_QPU_RESOURCES"] == "b"
    refused = task_prolog.task_prolog({**step, "QRMI_SLURM_QPU": "c"})
    assert (refused.exit_code, printed(refused)) == (1, ["qrmi-slurm: this job does not hold c; it holds a, b"])


def test_a_step_that_was_attached_to_a_job_without_qpus_loses_our_marks(site):
    step = site.task_environment(None, **ATTACHED, QRMI_SLURM_STATE_DIR="/x", **INHERITED)
    outcome = task_prolog.task_prolog(step)
    marks = ("QRMI_SLURM_JOB_ID", "QRMI_SLURM_STATE_DIR")
    assert sorted(outcome.lines) == sorted(f"unset {name}" for name in (*INHERITED, *marks))
    assert outcome.exit_code == 0


def test_a_surrounding_jobs_variables_are_unset_before_the_jobs_own_are_set(site, start):
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


def test_if_prolog_left_nothing_the_task_fails_and_says_where_to_look(site):
    outcome = task_prolog.task_prolog(site.task_environment("a"))
    assert outcome.exit_code == 1
    assert "job 12 has no QPU: Prolog left nothing at" in printed(outcome)[0]
    assert "journalctl" in printed(outcome)[0]


def test_a_node_that_does_not_see_the_state_directory_names_the_option(site):
    outcome = task_prolog.task_prolog(site.task_environment("a", SLURMD_NODENAME="n2"))
    assert outcome.exit_code == 1
    assert "--state-dir" in printed(outcome)[0]


def test_another_node_waits_for_the_shared_file_system(site, start, monkeypatch):
    """Even if it does not see the folder: an older version's Prolog makes none there."""
    site.add("a")
    start("a")
    path = site.folder().path
    hidden = path.rename(site.path / "hidden")
    monkeypatch.setattr(task_prolog, "_SHARED_WAIT_S", 5.0)
    monkeypatch.setattr(time, "sleep", lambda _: hidden.exists() and hidden.rename(path))
    outcome = task_prolog.task_prolog(site.task_environment("a", SLURMD_NODENAME="n2"))
    assert outcome.exit_code == 0


# On a node other than the first: a step of salloc, one of `srun --qpu` without an allocation, and one in a later
# component of a heterogeneous job, whose environment does not tell its selection.
OTHER_NODE = {"SLURMD_NODENAME": "n2", "SLURM_STEP_ID": "0"}
DIRECT = {**OTHER_NODE, "SLURM_SPANK_QRMI_QPU": None}
COMPONENT = {**DIRECT, "SLURM_JOB_ID": "11", "QRMI_SLURM_JOB_ID": "12", "QRMI_SLURM_QPU": None}
ON_OTHER_NODE = pytest.mark.parametrize("step", [OTHER_NODE, DIRECT, COMPONENT], ids=["salloc", "srun", "component"])


@ON_OTHER_NODE
@pytest.mark.parametrize("left", ["folder", "record"])
def test_another_node_waits_for_the_first_nodes_prolog(site, start, monkeypatch, step, left):
    """Its own Prolog has ended and made the folder; the record shows that the first node's is running."""
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
def test_a_killed_prolog_is_not_waited_for_forever(site, start, monkeypatch, step):
    """The wait ends after --acquire-timeout and a second; then the task names the node to look at."""
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
def test_a_state_directory_that_is_not_shared_is_reported(site, step):
    """This node's Prolog made the folder, and nothing appears in it."""
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
    """The first node of a requeued job may have left them if its Epilog never ran."""
    site.add("a")
    start("a")
    step = site.task_environment("a", SLURM_JOB_RESTART_COUNT="1", SLURM_RESTART_COUNT="1")
    assert task_prolog.task_prolog(step).exit_code == 1


@pytest.mark.parametrize(("age_s", "exit_code"), [(400, 1), (200, 0)], ids=["another job's", "its own"])
def test_exports_from_long_before_the_jobs_start_are_never_used(site, start, age_s, exit_code):
    """They are a dead job's with its number. A job's own may be older by the time in which its nodes powered up."""
    site.add("a")
    start("a", SLURM_JOB_START_TIME="1000")
    os.utime(site.folder().exports_path, (5000 - age_s,) * 2)
    task = site.task_environment("a", SLURM_JOB_START_TIME="5000")
    assert task_prolog.task_prolog(task).exit_code == exit_code
    known = {**task, "SLURM_JOB_START_TIME": "1000"}
    assert task_prolog.task_prolog(known).exit_code == 0


def test_exports_of_another_user_are_never_used(site, start):
    site.add("a")
    start("a")
    os.chown(site.folder().exports_path, 65534, -1)
    outcome = task_prolog.task_prolog(site.task_environment("a"))
    assert (outcome.exit_code, variables_of(outcome.lines)) == (1, {})


def test_exports_that_the_user_cannot_reach_are_reported_with_what_to_do(site, monkeypatch):
    def denied(path, *arguments):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("qrmi_slurm.state.exports.os.open", denied)
    outcome = task_prolog.task_prolog(site.task_environment("a"))
    assert outcome.exit_code == 1
    [line] = printed(outcome)
    assert "Permission denied" in line
    assert "admin" in line


@pytest.mark.parametrize(
    "content",
    [b"", b"garbage", bytes(range(256)), b"# qrmi-slurm exports 3\njob=12 restart=0 start=1000 outcome=ready\n"],
)
def test_incomplete_exports_fail_the_task_with_a_sentence(site, start, content):
    site.add("a")
    start("a")
    path = site.folder().exports_path
    path.chmod(0o600)
    path.write_bytes(content)
    outcome = task_prolog.task_prolog(site.task_environment("a"))
    assert outcome.exit_code == 1
    assert len(printed(outcome)) == 1


@pytest.mark.parametrize("arguments", ["--unknown", "--state-dir=relative", f"--env:A-B={SECRET}"])
def test_an_invalid_plugin_line_is_reported_with_its_file_and_number(site, syslog_lines, arguments):
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
def test_the_users_own_level_is_kept(site, start, options):
    site.configure(*options)
    site.add("a")
    start("a")
    outcome = task_prolog.task_prolog(site.task_environment("a", RUST_LOG="warn", SRUN_DEBUG="5"))
    assert variables_of(outcome.lines).get("RUST_LOG", "warn") == "warn"


def test_a_level_that_the_site_set_reaches_the_task(site, start):
    site.configure("--env:RUST_LOG=qrmi=debug")
    site.add("a")
    assert variables_of(start("a").lines)["RUST_LOG"] == "qrmi=debug"


def test_a_step_in_a_heterogeneous_component_gets_its_own_jobs_exports(site, start):
    """SLURM_JOB_ID is the first component's there; the stub passes on the step's own."""
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
def test_no_value_in_the_environment_makes_taskprolog_print_anything_but_directives(site, changes):
    outcome = task_prolog.task_prolog({**site.task_environment("a"), **changes})
    assert outcome.exit_code in (0, 1)
    assert all(line.partition(" ")[0] in ("print", "export", "unset") and "\n" not in line for line in outcome.lines)
