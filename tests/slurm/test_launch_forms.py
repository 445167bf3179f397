"""However a job is launched, its QPUs are acquired once and released once, and all tasks have the same token."""

from typing import Any

import pytest

from slurm.jobs import PRINT_ENVIRONMENT, environment_of, print_token
from slurm.polling import wait_for
from slurm.site import HookRun, Site

pytestmark = pytest.mark.parametrize("site", ["slurm", "plugin"], indirect=True)


class Sessions:
    """The sessions that the emulator has opened since this object was created."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._before = len(site.emulator.sessions())

    def opened(self) -> list[dict[str, Any]]:
        """Return them, oldest first."""
        return self._site.emulator.sessions()[self._before :]

    def ids(self) -> list[str]:
        """Their ids, oldest first."""
        return [session["id"] for session in self.opened()]

    def assert_all_closed(self, count: int) -> None:
        """Check that this many were opened, and that none is still open."""
        assert len(self.ids()) == count
        assert not self._site.emulator.open_sessions()


@pytest.fixture
def sessions(site: Site) -> Sessions:
    """The sessions that the test opens."""
    return Sessions(site)


# --- steps and nodes -----------------------------------------------------------------------------------------


def test_a_direct_step_over_several_nodes_has_one_session(site: Site, sessions: Sessions) -> None:
    """All tasks of `srun -N2 -n4 --qpu` have the token that the first node acquired."""
    done = site.cluster.run_as_user(["srun", "-N2", "-n4", "--qpu=ibm_demo", "sh", "-c", print_token("ibm_demo")])
    site.cluster.wait_nodes_idle()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == sessions.ids() * 4
    sessions.assert_all_closed(1)


def test_every_step_of_an_salloc_has_its_session(site: Site, sessions: Sessions) -> None:
    """Two steps on two nodes of one allocation share its session."""
    step = f"srun -n2 sh -c '{print_token('ibm_demo')}'"
    done = site.cluster.run_as_user(["salloc", "-N2", "-n2", "--qpu=ibm_demo", "sh", "-c", f"{step}; {step}"])
    site.cluster.wait_nodes_idle()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == sessions.ids() * 4
    sessions.assert_all_closed(1)


def test_a_step_without_the_scripts_environment_still_has_the_qpu(site: Site, sessions: Sessions) -> None:
    """`srun --export=NONE` in a batch job, on both nodes."""
    script = f"#!/bin/sh\nsrun --export=NONE -N2 -n2 /bin/sh -c '{print_token('ibm_demo')}'\n"
    job_id = site.cluster.sbatch(script, "-N2", "--qpu=ibm_demo")
    info = site.cluster.wait_job_over(job_id)
    assert info.state == "COMPLETED", site.cluster.job_output(job_id)
    assert site.cluster.job_output(job_id).splitlines() == sessions.ids() * 2
    sessions.assert_all_closed(1)


def test_a_batch_job_submitted_without_environment_has_its_qpu(site: Site, sessions: Sessions) -> None:
    """`sbatch --export=NONE --qpu`, and a step in it."""
    # Its steps have no PATH either.
    script = f"#!/bin/sh\n{print_token('ibm_demo')}\nsrun /bin/sh -c '{print_token('ibm_demo')}'\n"
    job_id = site.cluster.sbatch(script, "--export=NONE", "--qpu=ibm_demo")
    info = site.cluster.wait_job_over(job_id)
    assert info.state == "COMPLETED", site.cluster.job_output(job_id)
    assert site.cluster.job_output(job_id).splitlines() == sessions.ids() * 2
    sessions.assert_all_closed(1)


def test_a_step_may_narrow_to_some_of_the_jobs_qpus(site: Site, sessions: Sessions) -> None:
    """`srun --qpu=b` in a job that holds a,b: both lists are cut to b for that step alone."""
    lists = "echo $QRMI_JOB_QPU_RESOURCES $SLURM_JOB_QPU_RESOURCES $QRMI_JOB_QPU_TYPES $SLURM_JOB_QPU_TYPES"
    script = f"#!/bin/sh\nsrun --qpu=ibm_second sh -c '{lists}'\nsrun sh -c '{lists}'\n"
    job_id = site.cluster.sbatch(script, "--qpu=ibm_demo,ibm_second")
    info = site.cluster.wait_job_over(job_id)
    assert info.state == "COMPLETED", site.cluster.job_output(job_id)
    name, kind = "ibm_second", "ibm-quantum-compute-service"
    assert site.cluster.job_output(job_id).splitlines() == [
        f"{name} {name} {kind} {kind}",
        f"ibm_demo,{name} ibm_demo,{name} {kind},{kind} {kind},{kind}",
    ]
    sessions.assert_all_closed(2)


def test_a_step_cannot_have_a_qpu_that_its_job_does_not_hold(site: Site, sessions: Sessions) -> None:
    """The step fails with a message that says so; the job goes on."""
    script = "#!/bin/sh\nsrun --qpu=ibm_second true || echo refused\n"
    job_id = site.cluster.sbatch(script, "--qpu=ibm_demo")
    info = site.cluster.wait_job_over(job_id)
    output = site.cluster.job_output(job_id)
    assert info.state == "COMPLETED"
    assert "qrmi-slurm: this job does not hold ibm_second; it holds ibm_demo" in output
    assert "refused" in output.splitlines()
    sessions.assert_all_closed(1)


def test_a_step_cannot_have_a_qpu_if_its_job_has_none(site: Site, sessions: Sessions) -> None:
    """A `--qpu` on a step alone comes too late: the job has to be submitted with it."""
    job_id = site.cluster.sbatch("#!/bin/sh\nsrun --qpu=ibm_demo true || echo refused\n")
    site.cluster.wait_job_over(job_id)
    output = site.cluster.job_output(job_id)
    assert f"qrmi-slurm: job {job_id} holds no QPU" in output
    assert "submit the job with --qpu" in output
    assert "refused" in output.splitlines()
    sessions.assert_all_closed(0)


def test_a_verbose_step_gets_trace_unless_the_user_set_a_level(site: Site) -> None:
    """SRUN_DEBUG sets RUST_LOG for each step, and never overrides the user's value."""
    show = "sh -c 'echo level=$RUST_LOG'"
    script = (
        f"#!/bin/sh\necho level=$RUST_LOG\nsrun {show}\nsrun -Q {show}\nsrun -v {show}\nsrun -vv {show}\n"
        f"srun -vvv {show}\nsrun {show}\nexport RUST_LOG=warn\nsrun {show}\nsrun -vv {show}\n"
    )
    job_id = site.cluster.sbatch(script, "--qpu=ibm_demo")
    assert site.cluster.wait_job_over(job_id).state == "COMPLETED"
    lines = [line for line in site.cluster.job_output(job_id).splitlines() if line.startswith("level=")]
    levels = [line.removeprefix("level=") for line in lines]
    assert levels == ["info", "info", "error", "debug", "trace", "trace", "info", "warn", "warn"]


@pytest.mark.parametrize(("option", "level"), [("-Q", "error"), ("-v", "debug"), ("-vv", "trace")])
def test_a_direct_steps_verbosity_sets_qrmis_log_level(site: Site, option: str, level: str) -> None:
    """`srun -v --qpu`: the table of levels also applies to a job without a batch script."""
    done = site.cluster.run_as_user(["srun", option, "--qpu=ibm_demo", "sh", "-c", "echo level=$RUST_LOG"])
    assert done.stdout == f"level={level}\n", done.stderr
    site.cluster.wait_nodes_idle()


# --- many jobs -----------------------------------------------------------------------------------------------


def test_each_task_of_an_array_has_its_own_session(site: Site, sessions: Sessions) -> None:
    """Two array tasks are two separate jobs."""
    script = f"#!/bin/sh\n{print_token('ibm_demo')}\n"
    job_id = site.cluster.sbatch(script, "--array=1-2", "--qpu=ibm_demo", "--output=array-%a.txt")
    wait_for(lambda: all(info.state == "COMPLETED" for info in site.cluster.jobs(job_id)), "both array tasks", 30)
    site.cluster.wait_nodes_idle()
    tokens = [(site.cluster.user.home / f"array-{n}.txt").read_text().strip() for n in (1, 2)]
    assert sorted(tokens) == sorted(sessions.ids())
    sessions.assert_all_closed(2)


def test_components_of_a_heterogeneous_job_have_their_own_qpus(site: Site, sessions: Sessions) -> None:
    """`--qpu=a : --qpu=b : (none)`: two acquisitions, each for its own component, none for the third."""
    show = 'echo has=$QRMI_JOB_QPU_RESOURCES; env | grep -cE "QRMI_JOB|QPU_RES|QPU_TYPES|QCS_" || true'
    step = f"srun --het-group=%d sh -c '{show}'"
    script = "#!/bin/sh\n" + "".join(f"{step % n}\n" for n in range(3))
    job_id = site.cluster.sbatch(script, "-N1", "--qpu=ibm_demo", ":", "-N1", "--qpu=ibm_second", ":", "-N1")
    wait_for(
        lambda: all(info.state in ("COMPLETED", "FAILED") for info in site.cluster.jobs(job_id)),
        "the components",
        30,
    )
    site.cluster.wait_nodes_idle()
    lines = site.cluster.job_output(job_id).splitlines()
    has = [line for line in lines if "has=" in line]
    assert [line.partition("has=")[2] for line in has] == ["ibm_demo", "ibm_second", ""], lines
    assert lines[-1] == "0", lines
    sessions.assert_all_closed(2)


def test_a_component_of_several_nodes_has_its_qpu_on_each(site: Site, sessions: Sessions) -> None:
    """The script starts after the first component's Prolog; a step in the second component waits for that one's."""
    step = f"srun --het-group=1 sh -c '{print_token('ibm_demo')}'"
    with site.emulator.fault(call="*", kind="delay", delay_s=1.0):
        job_id = site.cluster.sbatch(f"#!/bin/sh\n{step}\n", "-N1", ":", "-N2", "-n2", "--qpu=ibm_demo")
        ended = ("COMPLETED", "FAILED")
        wait_for(lambda: all(info.state in ended for info in site.cluster.jobs(job_id)), "the components", 30)
    site.cluster.wait_nodes_idle()
    assert site.cluster.job_output(job_id).splitlines() == sessions.ids() * 2
    sessions.assert_all_closed(1)
    assert not list(site.state_dir.glob("*/[0-9]*"))


SHOW_BOTH = "echo $QRMI_JOB_QPU_RESOURCES=$ibm_demo_QRMI_JOB_ACQUISITION_TOKEN$ibm_second_QRMI_JOB_ACQUISITION_TOKEN"


def test_components_of_a_direct_heterogeneous_step_have_their_own_qpus(site: Site, sessions: Sessions) -> None:
    """`srun --qpu=a -n2 : --qpu=b -n2 : (none)`: all tasks of a component have the token of its QPU."""
    show = ["sh", "-c", SHOW_BOTH]
    first, second, none = ["-n2", "--qpu=ibm_demo", *show], ["-n2", "--qpu=ibm_second", *show], ["-n1", *show]
    done = site.cluster.run_as_user(["srun", *first, ":", *second, ":", *none])
    site.cluster.wait_nodes_idle()
    assert done.returncode == 0, done.stderr
    tokens = {session["backend"]: session["id"] for session in sessions.opened()}
    expected = [f"{name}={tokens[name]}" for name in ("ibm_demo", "ibm_second")]
    assert sorted(done.stdout.splitlines()) == sorted([*expected, *expected, "="])
    sessions.assert_all_closed(2)


def test_components_of_a_heterogeneous_salloc_have_their_own_qpus(site: Site, sessions: Sessions) -> None:
    """`salloc --qpu=a : --qpu=b`: a step in each group has that group's token."""
    steps = "; ".join(f"srun --het-group={group} sh -c '{SHOW_BOTH}'" for group in (0, 1, 0))
    command = ["salloc", "-N1", "--qpu=ibm_demo", ":", "-N1", "--qpu=ibm_second", "sh", "-c", steps]
    done = site.cluster.run_as_user(command)
    site.cluster.wait_nodes_idle()
    assert done.returncode == 0, done.stderr
    tokens = {session["backend"]: session["id"] for session in sessions.opened()}
    names = ("ibm_demo", "ibm_second", "ibm_demo")
    assert done.stdout.splitlines() == [f"{name}={tokens[name]}" for name in names]
    sessions.assert_all_closed(2)


@pytest.mark.parametrize("own", ["", "--qpu=ibm_second"])
def test_a_job_submitted_within_a_qpu_job_has_only_its_own_qpu(site: Site, sessions: Sessions, own: str) -> None:
    """For sbatch in a QPU job, its own `--qpu` replaces the outer one; without one, Slurm passes on the outer one."""
    inner = site.cluster.user.home / "inner.sh"
    inner.write_text(PRINT_ENVIRONMENT)
    script = f"#!/bin/sh\nsbatch --wait {own} --output=inner.txt {inner}\n{print_token('ibm_demo')}\n"
    job_id = site.cluster.sbatch(script, "--qpu=ibm_demo")
    info = site.cluster.wait_job_over(job_id, deadline_s=40)
    assert info.state == "COMPLETED", site.cluster.job_output(job_id)
    outer_token = site.cluster.job_output(job_id).splitlines()[-1]
    env = environment_of((site.cluster.user.home / "inner.txt").read_text())
    name = "ibm_second" if own else "ibm_demo"
    assert env["QRMI_JOB_QPU_RESOURCES"] == name
    inner_token = env[f"{name}_QRMI_JOB_ACQUISITION_TOKEN"]
    assert {outer_token, inner_token} == set(sessions.ids())
    if own:
        assert not [variable for variable in env if variable.startswith("ibm_demo_QRMI")]
    sessions.assert_all_closed(2)


def test_a_job_without_qpu_submitted_within_a_qpu_job_sees_nothing_of_it(site: Site, sessions: Sessions) -> None:
    """Inherited variables are removed for the script and its steps, including the site's --env."""
    site.plugstack(site.plugstack_line("--env:QPU_PROXY=http://127.0.0.1:1"))
    inner = site.cluster.user.home / "inner.sh"
    inner.write_text("#!/bin/sh\nenv\nsrun env\n")
    option = "SLURM_SPANK__SLURM_SPANK_OPTION_spank_qrmi_qpu"
    script = f"#!/bin/sh\nunset {option}\nsbatch --wait --output=inner.txt {inner}\n"
    job_id = site.cluster.sbatch(script, "--qpu=ibm_demo")
    info = site.cluster.wait_job_over(job_id, deadline_s=40)
    assert info.state == "COMPLETED", site.cluster.job_output(job_id)
    lines = (site.cluster.user.home / "inner.txt").read_text().splitlines()
    assert [line for line in lines if "QRMI" in line or "QPU" in line or line.startswith("RUST_LOG")] == []
    sessions.assert_all_closed(1)


# --- requeue and cancel --------------------------------------------------------------------------------------


def test_a_requeued_job_releases_its_session_and_opens_a_new_one(site: Site, sessions: Sessions) -> None:
    """`scontrol requeue` of a running job: the first session is closed, and the second run gets another one."""
    # exec: otherwise the shell may first report that its sleep was "Terminated".
    script = f'#!/bin/sh\n{print_token("ibm_demo")}\n[ "$SLURM_RESTART_COUNT" = 1 ] || exec sleep 300\n'
    job_id = site.cluster.sbatch(script, "--qpu=ibm_demo", "--requeue", "--open-mode=append")
    wait_for(lambda: site.cluster.job_output(job_id) or None, "the first run to begin", 30)
    site.cluster.slurm("scontrol", "requeue", str(job_id))
    site.cluster.wait_job(job_id, {"PENDING"})
    site.cluster.wait_nodes_idle()
    # Slurm lets a requeued job start again two minutes after its end. It could not within the same second: slurmd would
    # take the new credential for the old, revoked one (src/common/slurm_cred.c, times in seconds).
    site.cluster.slurm("scontrol", "update", f"JobId={job_id}", "StartTime=now+2")
    info = site.cluster.wait_job(job_id, {"COMPLETED"}, deadline_s=60)
    site.cluster.wait_nodes_idle()
    assert info.restarts == 1
    lines = site.cluster.job_output(job_id).splitlines()
    assert [line for line in lines if "error:" not in line] == sessions.ids()
    sessions.assert_all_closed(2)


def test_after_a_node_failure_the_old_session_is_released_before_a_new_one_opens(
    site: Site, sessions: Sessions
) -> None:
    """The node fails without running Epilog; Prolog on another node closes the first session before it opens a second.

    When the node comes back, its late Epilog leaves the second run's session alone.
    """
    script = f"#!/bin/sh\n{print_token('ibm_demo')}\nsleep 300\n"
    job_id = site.cluster.sbatch(script, "--qpu=ibm_demo", "--requeue", "--open-mode=append", "--exclude=n3")
    wait_for(lambda: site.cluster.job_output(job_id) or None, "the first run to begin", 30)
    node = site.cluster.job(job_id).nodes
    site.cluster.kill_slurmd(node)
    site.cluster.slurm("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test")
    site.cluster.wait_job(job_id, {"PENDING"})
    [first] = site.emulator.open_sessions()
    with site.emulator.held("create_session") as hold:
        # Not on the dead node: a late answer of its slurmd may have returned it to service.
        elsewhere = f"ExcNodeList=n3,{node}"
        site.cluster.slurm("scontrol", "update", f"JobId={job_id}", elsewhere, "StartTime=now+2")
        hold.wait_for(1)
        assert not site.emulator.open_sessions(), "a second session before the first was closed"
    info = site.cluster.wait_job(job_id, {"RUNNING"})
    assert info.nodes != node
    wait_for(lambda: len(site.cluster.job_output(job_id).splitlines()) >= 2 or None, "the second run to begin", 20)
    [second] = site.emulator.open_sessions()
    assert site.cluster.job_output(job_id).splitlines()[-1] == second["id"] != first["id"]

    site.cluster.start_slurmd(node)
    site.cluster.try_slurm("scontrol", "update", f"NodeName={node}", "State=RESUME")  # refused if it has returned
    late = HookRun(job_id, node)
    wait_for(lambda: late in site.hook_runs("after-epilog") or None, f"the first run's Epilog on {node}", 30)
    assert [session["id"] for session in site.emulator.open_sessions()] == [second["id"]]
    site.cluster.slurm("scancel", str(job_id))
    site.cluster.wait_job_over(job_id)
    sessions.assert_all_closed(2)


def test_cancelling_a_pending_job_acquires_nothing(site: Site, sessions: Sessions) -> None:
    """A job that never started never had a session."""
    job_id = site.cluster.sbatch("#!/bin/sh\ntrue\n", "--qpu=ibm_demo", "--hold")
    site.cluster.slurm("scancel", str(job_id))
    assert site.cluster.wait_job_over(job_id).state == "CANCELLED"
    sessions.assert_all_closed(0)


def test_cancelling_a_job_in_prolog_releases_its_pending_session(site: Site, sessions: Sessions) -> None:
    """The job is canceled during the session request; the session it opens is closed again."""
    with site.emulator.held("create_session") as hold:
        job_id = site.cluster.sbatch("#!/bin/sh\ntrue\n", "--qpu=ibm_demo")
        hold.wait_for(1)
        site.cluster.slurm("scancel", str(job_id))
    site.cluster.wait_job(job_id)
    site.cluster.wait_nodes_idle()
    wait_for(lambda: not site.emulator.open_sessions(), "the session to be closed", 20)
    sessions.assert_all_closed(1)


def test_cancelling_a_completing_job_changes_nothing(site: Site, sessions: Sessions) -> None:
    """scancel while Epilog is releasing."""
    with site.emulator.held("update_session") as hold:
        job_id = site.cluster.sbatch("#!/bin/sh\ntrue\n", "--qpu=ibm_demo")
        hold.wait_for(1)
        site.cluster.try_slurm("scancel", str(job_id))
    site.cluster.wait_job_over(job_id)
    sessions.assert_all_closed(1)
