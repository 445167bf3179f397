"""Whatever is killed, and whenever: acquired QPUs are released, no node is drained, later jobs run."""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.aftermath import (
    SCRIPT,
    assert_next_job_is_fine,
    assert_nothing_left,
    assert_why,
    finish_with,
    let_go,
    start_long_job,
)
from slurm.cluster import ClusterOptions
from slurm.polling import wait_for
from slurm.processes import living
from slurm.site import Site, SiteOptions


@pytest.fixture(scope="module", autouse=True)
def job_at_its_limit() -> Iterator[tuple[Site, int]]:
    """Start a job, on its own cluster, whose time runs out during the other tests; Slurm checks twice a minute."""
    with Site(SiteOptions(cluster=ClusterOptions(nodes=1))) as site:
        resource = site.emulator.resource("ibm_demo")
        resource["environment"]["QRMI_IBM_QCS_SESSION_MAX_TTL"] = "600"  # or the service ends it at the same time
        site.config([resource])
        job_id = start_long_job(site, "--time=1")
        assert len(site.emulator.open_sessions()) == 1
        site.cluster.slurm("scontrol", "update", f"JobId={job_id}", "EndTime=now+1")
        yield site, job_id


def slurmstepds(site: Site, job_id: int) -> list[int]:
    """Return a job's slurmstepds; their titles say which (`slurmstepd: [12.batch]`)."""
    found = []
    for process in living():
        try:
            title = Path(f"/proc/{process.pid}/cmdline").read_bytes()
            log = {str(link.readlink()) for link in Path(f"/proc/{process.pid}/fd").iterdir()}
        except OSError:
            continue
        if title.startswith(f"slurmstepd: [{job_id}.".encode()) and any(
            str(site.cluster.folder) in path for path in log
        ):
            found.append(process.pid)
    return found


def processes_of_user(site: Site) -> list[int]:
    """Return all processes of the cluster's user."""
    return [process.pid for process in living() if process.uid == site.cluster.user.uid]


def test_prolog_killed_before_it_acquires(site: Site) -> None:
    """It is waiting for the config, a pipe here. Nothing was acquired, and the job's output says what happened."""
    site.config_path.unlink()
    os.mkfifo(site.config_path)
    job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo", "--nodelist=n1")
    site.kill_prolog()
    info = site.cluster.wait_job_over(job_id)
    assert info.state == "FAILED"
    assert f"job {job_id} has no QPU: Prolog on n1 was killed by signal 9" in site.cluster.job_output(job_id)
    assert_why(site, job_id, "failed: Prolog on n1 was killed by signal 9")
    assert_nothing_left(site, job_id)
    site.config_path.unlink()
    site.config([site.emulator.resource("ibm_demo")])
    assert_next_job_is_fine(site)


def test_prolog_killed_while_it_acquires(site: Site) -> None:
    """The call goes on alone and journals its token. Epilog has already run by then, but recover finds it."""
    with site.emulator.held("create_session", when="after") as hold:
        job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo", "--nodelist=n1")
        hold.wait_for(1)
        site.kill_prolog()
        info = site.cluster.wait_job_over(job_id)
        assert info.state == "FAILED"
        assert f"job {job_id} has no QPU" in site.cluster.job_output(job_id)
        assert "indeterminate" in site.command("status").stdout
        assert_why(site, job_id, "failed: Prolog on n1 was killed by signal 9", "a session on ibm_demo may be open")
        (waits,) = site.recover()["jobs"]
        assert (waits["step"], waits["is_left"]) == ("wait", False)
    wait_for(lambda: not site.call_pids("prolog"), "the call to end", 10)
    assert len(site.emulator.open_sessions()) == 1
    (result,) = site.recover()["jobs"]
    assert (result["job_id"], result["outcome"]) == (job_id, "released")
    assert_nothing_left(site, job_id)
    assert_next_job_is_fine(site)


def test_prolog_killed_with_one_qpu_acquired_and_one_under_way(site: Site) -> None:
    """Epilog releases the recorded one, recover the other."""
    with site.emulator.fault(call="create_session", kind="hold", when="before", times=1) as hold:
        job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo,ibm_second", "--nodelist=n1")
        hold.wait_for(1)

        def one_has_come() -> bool:
            entries = (site.record_of(job_id) or {"entries": []})["entries"]
            return [entry["state"] for entry in entries].count("acquired") == 1

        wait_for(one_has_come, "one of two tokens", 20)
        site.kill_prolog()
        assert site.cluster.wait_job_over(job_id).state == "FAILED"
        assert_why(site, job_id, "failed: Prolog on n1 was killed by signal 9")
        assert site.emulator.open_sessions() == []
    wait_for(lambda: not site.call_pids("prolog"), "the call to end", 10)
    assert len(site.emulator.open_sessions()) == 1
    site.recover()
    assert_nothing_left(site, job_id)


def test_a_call_to_qrmi_killed(site: Site) -> None:
    """The job is told, and a session the call may have opened is reported; nothing else is."""
    with site.emulator.held("create_session") as hold:
        job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo", "--nodelist=n1")
        hold.wait_for(1)
        for pid in site.call_pids("prolog"):
            os.kill(pid, signal.SIGKILL)
        assert site.cluster.wait_job_over(job_id).state == "FAILED"
        assert "QRMI was killed by signal 9" in site.cluster.job_output(job_id)
    (entry,) = (site.record_of(job_id) or {})["entries"]
    assert entry["state"] == "indeterminate"
    assert_why(site, job_id, "failed: ibm_demo could not be acquired: QRMI was killed by signal 9")


def test_epilog_killed_while_it_releases(site: Site) -> None:
    """Its shell still exits 0, so the node stays in service; recover finishes."""
    with site.emulator.held("update_session") as hold:
        job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo", "--nodelist=n1")
        hold.wait_for(1)
        for pid in site.hook_pids("epilog") + site.call_pids("epilog"):
            os.kill(pid, signal.SIGKILL)
        assert site.cluster.wait_job_over(job_id).state == "COMPLETED"
    assert_why(site, job_id, "has completed", "its session on ibm_demo is not proven closed")
    site.recover("--now")
    assert_nothing_left(site, job_id)


def test_slurmd_killed_and_restarted_under_a_job(site: Site) -> None:
    """The job ends while no slurmd is running; the next one runs Epilog."""
    job_id = start_long_job(site)
    site.cluster.kill_slurmd("n1")
    let_go(site, job_id)
    wait_for(lambda: not slurmstepds(site, job_id), "the job to end", 20)
    assert len(site.emulator.open_sessions()) == 1
    site.cluster.restart_slurmd("n1")
    site.cluster.wait_job(job_id)
    site.cluster.wait_nodes_idle()
    site.recover("--now")
    assert_nothing_left(site, job_id)
    assert_next_job_is_fine(site)


def test_slurmd_killed_and_restarted_while_prolog_acquires(site: Site) -> None:
    """Prolog outlives its slurmd; whatever Slurm then does with the job, no session stays open."""
    with site.emulator.held("create_session") as hold:
        job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo", "--nodelist=n1", "--no-requeue")
        hold.wait_for(1)
        site.cluster.kill_slurmd("n1")
    wait_for(lambda: not site.hook_pids("prolog"), "Prolog to end", 20)
    assert len(site.emulator.open_sessions()) == 1
    site.cluster.restart_slurmd("n1")
    site.cluster.slurm("scancel", str(job_id))
    site.cluster.wait_job_over(job_id)
    site.recover("--now")
    assert_nothing_left(site, job_id)
    assert_next_job_is_fine(site)


def test_slurmstepd_killed(site: Site) -> None:
    """The tokens are not in its memory: when Slurm ends the job, Epilog releases."""
    job_id = start_long_job(site)
    pids = slurmstepds(site, job_id)
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    site.cluster.slurm("scancel", str(job_id))
    for pid in processes_of_user(site):  # nothing else kills them
        with contextlib.suppress(ProcessLookupError):  # a script's `sleep` comes and goes
            os.kill(pid, signal.SIGKILL)
    site.cluster.wait_job_over(job_id)
    assert_nothing_left(site, job_id)
    assert_next_job_is_fine(site)


@pytest.mark.one_release
def test_a_node_that_rebooted(site: Site) -> None:
    """All processes gone, another boot id, no Epilog: recover at boot releases before Slurm knows of it."""
    job_id = start_long_job(site, "--no-requeue")
    site.cluster.kill_slurmd("n1")
    for pid in slurmstepds(site, job_id) + processes_of_user(site):
        with contextlib.suppress(ProcessLookupError):  # a script's `sleep` comes and goes
            os.kill(pid, signal.SIGKILL)
    site.change_record(job_id, lambda record: record.update(boot_id="that of before"))
    assert site.cluster.job(job_id).state == "RUNNING"
    (other,) = site.recover(node="n2")["jobs"]
    assert other["reason"] == "the job is running", "only the node itself knows that it has booted"
    (result,) = site.recover(node="n1")["jobs"]
    assert (result["reason"], result["outcome"]) == ("node n1 has rebooted since", "released")
    site.cluster.restart_slurmd("n1")
    site.cluster.slurm("scancel", str(job_id))
    site.cluster.wait_job_over(job_id)
    assert_why(site, job_id, "was cancelled, at ")
    assert_nothing_left(site, job_id)
    assert_next_job_is_fine(site)


def test_epilog_twice_and_without_a_prolog(site: Site) -> None:
    """The second run finds nothing and says so; both exit 0."""
    job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo", "--nodelist=n1")
    site.cluster.wait_job_over(job_id)
    closed = [session["state"] for session in site.emulator.sessions()]
    for again in (job_id, 999_999):
        done = site.run_hook("epilog", again)
        assert done.returncode == 0
        assert f"nothing-recorded: job={again}" in done.stdout
    assert [session["state"] for session in site.emulator.sessions()] == closed


def test_prolog_again_under_a_running_job(site: Site) -> None:
    """A restarted slurmd may run Prolog again: the job keeps what it holds."""
    job_id = start_long_job(site)
    before = site.emulator.open_sessions()
    assert site.run_hook("prolog", job_id).returncode == 0
    assert site.emulator.open_sessions() == before
    let_go(site, job_id)
    site.cluster.wait_job_over(job_id)
    assert_nothing_left(site, job_id)


@pytest.mark.one_release
def test_recover_concurrent_with_epilog_and_with_itself(site: Site) -> None:
    """The second one leaves the record to the first, without raising an alarm."""
    with site.emulator.held("update_session") as hold:
        job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo", "--nodelist=n1")
        hold.wait_for(1)
        (result,) = site.recover("--now")["jobs"]
        assert (result["reason"], result["is_left"]) == ("another process is working on it", False)
    site.cluster.wait_job_over(job_id)
    assert_nothing_left(site, job_id)


@pytest.mark.one_release
def test_epilog_concurrent_with_recover(site: Site) -> None:
    """Epilog waits for the record for half of its time, leaves it to recover, and exits 0."""
    site.plugstack(site.plugstack_line("--release-timeout=4"))
    fault = {"call": "update_session", "kind": "error", "status": 500}
    job_id = finish_with(site, lambda _job_id: site.emulator.control("POST", "faults", fault))
    site.cluster.wait_job_over(job_id)
    site.emulator.clear_faults()
    with site.popen_command("recover", "--now") as recover, site.emulator.held("update_session") as hold:
        hold.wait_for(1)
        done = site.run_hook("epilog", job_id)
        assert done.returncode == 0
        assert "another process has held" in done.stdout and "for over 2 s" in done.stdout
        hold.go_on()
        assert recover.wait(20) == 0
    assert_nothing_left(site, job_id)


def test_a_requeued_jobs_first_session_is_released_during_its_second_run(site: Site) -> None:
    """Neither Epilog nor the next Prolog could close it; recover does, and leaves the running job its own."""
    job_id = start_long_job(site, "--requeue", "--open-mode=append")
    fault = {"call": "update_session", "kind": "error", "status": 500}
    site.emulator.control("POST", "faults", fault)
    site.cluster.slurm("scontrol", "requeue", str(job_id))
    site.cluster.wait_job(job_id, {"PENDING"})
    site.cluster.wait_nodes_idle()
    site.cluster.slurm("scontrol", "update", f"JobId={job_id}", "StartTime=now+2")
    wait_for(lambda: site.cluster.job_output(job_id).count("begun") == 2, "the second run", 30)
    _first, second = site.emulator.open_sessions()
    assert site.recover("--now")["left"] == 1
    site.emulator.clear_faults()
    living, earlier = site.recover("--now")["jobs"]
    assert (living["step"], living["reason"]) == ("leave", "the job is running")
    assert (earlier["reason"], earlier["outcome"]) == ("this run of the job has ended", "released")
    assert [session["id"] for session in site.emulator.open_sessions()] == [second["id"]]
    assert (site.folder_of(job_id) / "exports").exists(), "the living run's next step needs them"
    let_go(site, job_id)
    site.cluster.wait_job_over(job_id)
    assert_nothing_left(site, job_id)


def test_two_jobs_of_one_user_on_the_same_qpu(site: Site) -> None:
    """Each has its session, and the end of one closes only its own."""
    first, second = start_long_job(site), start_long_job(site)
    assert len(site.emulator.open_sessions()) == 2
    token = (site.record_of(second) or {})["entries"][0]["token"]
    let_go(site, first)
    site.cluster.wait_job(first)
    wait_for(lambda: not site.folder_of(first).exists(), "the first one's record to go", 20)
    assert [session["id"] for session in site.emulator.open_sessions()] == [token]
    let_go(site, second)
    site.cluster.wait_job_over(second)
    assert_nothing_left(site, second)


@pytest.mark.one_release
def test_release_takes_a_running_jobs_qpu_only_with_yes(site: Site) -> None:
    """It refuses without --yes. With it the session is closed, and the job's next step says who did it."""
    job_id = start_long_job(site, then="srun --export=NONE /bin/true\n")
    refused = site.command("release", str(job_id))
    assert refused.returncode == 2
    assert f"Job {job_id} is RUNNING" in refused.stderr and "--yes" in refused.stderr
    assert len(site.emulator.open_sessions()) == 1
    assert site.command("release", str(job_id), "--yes").returncode == 0
    assert site.emulator.open_sessions() == []
    assert_why(site, job_id, "runs without its QPU: an admin released it")
    let_go(site, job_id)
    assert site.cluster.wait_job_over(job_id).state == "FAILED"
    assert f"job {job_id} has no QPU: an admin released it" in site.cluster.job_output(job_id)
    assert_nothing_left(site, job_id)


# Last here, so that its time has passed while the others ran.
def test_a_job_that_reaches_its_time_limit(job_at_its_limit: tuple[Site, int]) -> None:
    """Slurm ends it, and Epilog closes its session."""
    site, job_id = job_at_its_limit
    assert site.cluster.wait_job_over(job_id, deadline_s=100).state == "TIMEOUT"
    (session,) = site.emulator.sessions()
    assert (session["state"], session["by"]) == ("closed", "update_session")
    assert_why(site, job_id, "has reached its time limit, at ")
    assert_nothing_left(site, job_id)
