"""The throwaway cluster is a real one, is isolated, and leaves nothing behind."""

import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.cluster import Cluster, ClusterError, ClusterOptions, Hooks, left_up, stop_left_up, sweep
from slurm.polling import DeadlineError, wait_for
from slurm.processes import Belongings

TESTS = Path(__file__).resolve().parents[1]
LATER_S = 15.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Start a cluster without hooks and without the stub."""
    with Cluster(ClusterOptions(users=2)) as cluster:
        yield cluster


def test_a_batch_job_runs_as_the_user_on_all_its_nodes(cluster: Cluster) -> None:
    """The job has the user's id, and its output is in the user's home."""
    job_id = cluster.sbatch("#!/bin/sh\nid -un\nsrun sh -c 'echo $SLURMD_NODENAME'\n", "--nodes=2")
    info = cluster.wait_job_over(job_id)
    assert (info.state, info.exit_code, info.nodes) == ("COMPLETED", "0:0", "n[1-2]")
    assert cluster.job_output(job_id).split()[0] == cluster.user.name
    assert sorted(cluster.job_output(job_id).split()[1:]) == ["n1", "n2"]


def test_srun_and_salloc_run_at_once(cluster: Cluster) -> None:
    """An interactive job returns its output and exit status to the caller."""
    done = cluster.run_as_user(["srun", "--nodes=2", "--label", "sh", "-c", "echo $SLURM_NODEID; exit 3"])
    assert (sorted(done.stdout.splitlines()), done.returncode) == (["0: 0", "1: 1"], 3)
    done = cluster.run_as_user(["salloc", "srun", "id", "-un"], user=cluster.users[1])
    assert done.stdout.strip() == cluster.users[1].name


def test_an_array_has_a_record_for_each_task(cluster: Cluster) -> None:
    """Each task of an array is a job with its own id."""
    job_id = cluster.sbatch("#!/bin/sh\ntrue\n", "--array=1-2")
    cluster.wait_job(f"{job_id}_1")
    cluster.wait_job_over(f"{job_id}_2")
    assert [info.state for info in cluster.jobs(job_id)] == ["COMPLETED"] * 2


def test_a_refused_submission_raises_with_sbatchs_message(cluster: Cluster) -> None:
    """The error contains sbatch's message."""
    with pytest.raises(ClusterError, match="invalid partition"):
        cluster.sbatch("#!/bin/sh\ntrue\n", "--partition=none")


def test_waiting_has_a_deadline(cluster: Cluster) -> None:
    """The error for a job that does not end has what Slurm knows of it."""
    job_id = cluster.sbatch("#!/bin/sh\nsleep 300\n")
    cluster.wait_job(job_id, {"RUNNING"})
    with pytest.raises(DeadlineError, match="state='RUNNING'"):
        cluster.wait_job(job_id, deadline_s=0)
    cluster.slurm("scancel", str(job_id))
    assert cluster.wait_job_over(job_id).state == "CANCELLED"


def test_a_job_outlives_its_nodes_slurmd(cluster: Cluster) -> None:
    """A killed slurmd that starts again finds its job, and the job completes."""
    job_id = cluster.sbatch("#!/bin/sh\ntouch running\nwhile [ -e running ]; do sleep 0.05; done\n", "--nodelist=n2")
    marker = cluster.user.home / "running"
    wait_for(marker.exists, "the job to run", LATER_S)
    cluster.kill_slurmd("n2")
    cluster.restart_slurmd("n2")
    marker.unlink()
    assert cluster.wait_job_over(job_id).state == "COMPLETED"


def test_a_failing_prolog_drains_its_node_until_it_is_resumed(tmp_path: Path) -> None:
    """Hooks run, and the node's state and reason are available."""
    failing = tmp_path / "prolog"
    failing.write_text("#!/bin/sh\nexit 1\n")
    failing.chmod(0o755)
    with Cluster(ClusterOptions(nodes=1, hooks=Hooks(prolog=failing))) as cluster:
        job_id = cluster.sbatch("#!/bin/sh\ntrue\n")
        wait_for(lambda: "drain" in cluster.node_states()["n1"], "the node to be drained", LATER_S)
        assert cluster.node_reason("n1").startswith("Prolog error")
        cluster.slurm("scancel", str(job_id))
        cluster.revive_nodes()
        assert cluster.node_states() == {"n1": "idle"}


def test_two_clusters_at_once_are_independent() -> None:
    """Each has its own ports, munge, users and job ids."""
    with Cluster(ClusterOptions(nodes=1)) as one, Cluster(ClusterOptions(nodes=1)) as other:
        assert one.sbatch("#!/bin/sh\ntrue\n") == other.sbatch("#!/bin/sh\ntrue\n") == 1
        one.stop()
        assert other.wait_job_over(1).state == "COMPLETED"


def test_stop_ends_leftover_processes_and_removes_everything() -> None:
    """A process that escaped its job, the user and the folder are all removed."""
    with Cluster(ClusterOptions(nodes=1)) as cluster:
        script = "#!/bin/sh\nsetsid sleep 300 &\ntouch fled\nwait\n"
        cluster.sbatch(script)
        wait_for((cluster.user.home / "fled").exists, "the job to run", LATER_S)
        user = cluster.user
    assert not Belongings(cluster.folder, {user.uid}).pids()
    assert not cluster.folder.exists()
    with pytest.raises(KeyError):
        pwd.getpwnam(user.name)


def test_a_daemon_that_does_not_start_raises_with_its_log() -> None:
    """The exception has the daemon's log, and nothing is left."""
    cluster = Cluster(ClusterOptions(settings={"SchedulerType": "sched/none-such"}))
    with pytest.raises(ClusterError, match="none-such"):
        cluster.start()
    assert not cluster.folder.exists()


@pytest.mark.one_release
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_point_of_the_start_leaves_nothing(number: signal.Signals) -> None:
    """Whether folders, users, some or all daemons exist: the cluster is taken down."""
    program = (
        "import signal, sys, time\n"
        "from slurm.cluster import Cluster\n"
        "signal.signal(signal.SIGTERM, signal.default_int_handler)\n"
        "cluster = Cluster()\n"
        "print(cluster.folder, flush=True)\n"
        "with cluster: time.sleep(300)\n"
    )
    for exists in ("", "etc", "munge/socket", "etc/slurm.conf", "slurmctld.pid", "n1.pid", "n2.pid"):
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": str(TESTS)},
        )
        with process:
            assert process.stdout is not None
            folder = Path(process.stdout.readline().strip())
            wait_for((folder / exists).exists, f"{folder / exists}", LATER_S)
            process.send_signal(number)
            process.wait(LATER_S)
        assert not folder.exists(), exists
        assert not Belongings(folder, ()).pids(), exists
        with pytest.raises(KeyError):
            pwd.getpwnam(f"qrmi-{folder.name.rpartition('-')[2]}-1")


def test_the_next_run_removes_what_a_killed_run_left() -> None:
    """The next run removes a cluster whose owner was killed, but not one left up on purpose."""
    program = (
        "import os, signal, sys\n"
        "from slurm.cluster import Cluster\n"
        "cluster = Cluster()\n"
        "cluster.start()\n"
        "if sys.argv[1] == 'keep': cluster.leave_up()\n"
        "print(cluster.folder, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, "-c", program]
    env = {**os.environ, "PYTHONPATH": str(TESTS)}
    kept, lost = (
        Path(subprocess.run([*command, how], env=env, capture_output=True, text=True).stdout.strip())
        for how in ("keep", "lose")
    )
    try:
        assert lost in sweep()
        assert not lost.exists()
        assert kept in left_up()
        assert Belongings(kept, ()).pids()
    finally:
        stop_left_up(kept)
    assert not kept.exists()
    assert not Belongings(kept, ()).pids()
