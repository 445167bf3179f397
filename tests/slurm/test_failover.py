"""slurmctld's machine fails and the backup takes over: jobs in Prolog get their QPUs, and every QPU is released."""

import os
import signal
from collections.abc import Iterator

import pytest

from slurm.aftermath import LONG_SCRIPT, assert_next_job_is_fine, assert_why, let_go, start_long_job
from slurm.cluster import ClusterOptions
from slurm.controllers import PRIMARY, TwoControllers
from slurm.jobs import PRINT_ENVIRONMENT, environment_of
from slurm.polling import wait_for
from slurm.site import Site, SiteOptions

NODES = 5


@pytest.fixture
def pair() -> Iterator[Site]:
    """A site with two controllers."""
    options = SiteOptions(cluster=ClusterOptions(nodes=NODES), watched=True)
    with Site(options, TwoControllers) as site:
        yield site


def controllers(site: Site) -> TwoControllers:
    """Return the site's cluster."""
    assert isinstance(site.cluster, TwoControllers)
    return site.cluster


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs"])
def test_the_primary_fails_while_prolog_runs(pair: Site, how: signal.Signals) -> None:
    """Jobs in Prolog, one of them about to ask slurmctld, get their QPU; one that ends meanwhile gives its back.

    recover takes none from a running job. No node is drained, and nothing is left.
    """
    cluster = controllers(pair)
    running, ending = start_long_job(pair), start_long_job(pair, "--nodelist=n2")
    with pair.emulator.held("create_session") as held:
        acquiring = cluster.sbatch(PRINT_ENVIRONMENT, "--qpu=ibm_demo", "--nodelist=n3", "--time=5")
        direct = cluster.popen_as_user(["srun", "--qpu=ibm_demo", "--nodelist=n5", "env"])
        held.wait_for(2)
        with pair.hold("before-prolog"):
            beginning = cluster.sbatch(PRINT_ENVIRONMENT, "--qpu=ibm_demo", "--nodelist=n4", "--time=5")
            pair.wait_hook_run("before-prolog", beginning)
            cluster.save_state(beginning)
            os.kill(cluster.pid_of(PRIMARY), how)
        let_go(pair, ending)
        recovering = pair.popen_command("recover")
    cluster.wait_takeover()
    out, err = recovering.communicate(timeout=60)
    assert recovering.returncode in (0, 1), err
    assert "released" not in out
    states = {job_id: cluster.wait_job(job_id, deadline_s=60).state for job_id in (acquiring, beginning, ending)}
    assert set(states.values()) == {"COMPLETED"}, states
    for job_id in (acquiring, beginning):
        assert environment_of(cluster.job_output(job_id))["QRMI_JOB_QPU_RESOURCES"] == "ibm_demo"
    printed, err = direct.communicate(timeout=60)
    assert (direct.returncode, environment_of(printed).get("QRMI_JOB_QPU_RESOURCES")) == (0, "ibm_demo"), err
    assert pair.recover()["left"] == 0
    assert cluster.job(running).state == "RUNNING"
    assert len(pair.emulator.open_sessions()) == 1
    let_go(pair, running)
    assert cluster.wait_job_over(running).state == "COMPLETED"
    assert pair.emulator.open_sessions() == []
    assert list(pair.state_dir.glob("*/[0-9]*")) == []


def test_the_primary_dies_before_it_has_saved_the_job(pair: Site) -> None:
    """The backup starts the job a second time, which Slurm's own check of job ids ends; its QPU is released.

    That check drains the node, with or without hooks: "Duplicate jobid" (slurmctld/agent.c).
    """
    cluster = controllers(pair)
    with pair.emulator.held("create_session") as held:
        job_id = cluster.sbatch(LONG_SCRIPT, "--qpu=ibm_demo", "--nodelist=n1")
        held.wait_for(1)
        cluster.kill_daemon(PRIMARY)
        cluster.wait_takeover()
    wait_for(lambda: cluster.job(job_id).restarts == 1, "the job to be requeued", 60)
    wait_for(lambda: not pair.folder_of(job_id).exists(), "the QPU to be released", 30)
    assert pair.emulator.sessions()
    assert pair.emulator.open_sessions() == []
    assert cluster.node_reason("n1").partition(" [")[0] in ("", "Duplicate jobid")
    assert_why(pair, job_id, "waits: ")
    cluster.slurm("scancel", str(job_id))
    cluster.revive_nodes()
    assert_next_job_is_fine(pair)
