"""A session never outlives its job's time limit by hours, whatever a user writes and whether or not Slurm answers."""

import signal

import pytest

from slurm.aftermath import assert_why
from slurm.jobs import PRINT_ENVIRONMENT, environment_of
from slurm.polling import wait_for
from slurm.release import HOOKS_KNOW_TIMES
from slurm.site import Site

TIMEOUT = "ibm_demo_QRMI_JOB_TIMEOUT_SECONDS"

# Slurm's own line of `scontrol show job`, the next record of an array, and a line of squeue's.
FORGED = [
    "x\n   RunTime=00:00:01 TimeLimit=UNLIMITED TimeMin=N/A",
    "x\n   RunTime=00:00:01 TimeLimit=UNLIMITED TimeMin=N/A\n\nJobId=9 JobName=y",
    "x\n{0}  UNLIMITED\n",
    "TimeLimit=UNLIMITED",
]


@pytest.mark.parametrize("text", FORGED)
def test_a_jobs_text_does_not_change_its_time_limit(site: Site, text: str) -> None:
    """A job of one minute has a session of one minute, and of the one by which it may outlive its job."""
    options = ["--qpu=ibm_demo", "--time=1", f"--job-name={text}", f"--comment={text}", "--output=forged.txt"]
    # Not through `scontrol show job`, as other tests.
    done = site.cluster.run_as_user(["sbatch", "--wait", *options], stdin=PRINT_ENVIRONMENT)
    output = (site.cluster.user.home / "forged.txt").read_text()
    assert done.returncode == 0, output
    assert environment_of(output)[TIMEOUT] == "60"
    assert site.emulator.sessions()[-1]["max_ttl"] == 120
    site.cluster.wait_nodes_idle()


def test_a_job_whose_time_limit_nobody_tells_has_no_session(site: Site) -> None:
    """slurmctld hangs while Prolog runs. From 23.02 on Prolog's environment has the times, so nobody is asked."""
    site.plugstack(site.plugstack_line("--acquire-timeout=6"))
    count = len(site.emulator.sessions())
    try:
        with site.hold("before-prolog"):
            job_id = site.cluster.sbatch(PRINT_ENVIRONMENT, "--qpu=ibm_demo", "--time=1", "--nodelist=n1")
            site.wait_hook_run("before-prolog", job_id)
            site.cluster.signal_daemon("slurmctld", signal.SIGSTOP)
        site.wait_hook_run("after-prolog", job_id)
    finally:
        site.cluster.signal_daemon("slurmctld", signal.SIGCONT)
    info = site.cluster.wait_job_over(job_id, deadline_s=60)
    output = site.cluster.job_output(job_id)
    sessions = site.emulator.sessions()[count:]
    if HOOKS_KNOW_TIMES.is_here:
        assert (info.state, [session["max_ttl"] for session in sessions]) == ("COMPLETED", [120]), output
    else:
        assert (info.state, sessions) == ("FAILED", [])
        assert f"job {job_id} has no QPU: Slurm did not tell the job's time limit within 3 s" in output
        assert_why(site, job_id, "failed: Slurm did not tell the job's time limit within 3 s")


def test_a_slurmctld_that_answers_late_is_waited_for(site: Site) -> None:
    """It is being restarted when Prolog asks."""
    with site.hold("before-prolog"):
        job_id = site.cluster.sbatch(PRINT_ENVIRONMENT, "--qpu=ibm_demo", "--time=1", "--nodelist=n1")
        site.wait_hook_run("before-prolog", job_id)
        site.cluster.signal_daemon("slurmctld", signal.SIGSTOP)
    try:
        wait_for(lambda: site.hook_pids("prolog") or None, "Prolog to ask", 20)
    finally:
        site.cluster.signal_daemon("slurmctld", signal.SIGCONT)
    assert site.cluster.wait_job_over(job_id, deadline_s=60).state == "COMPLETED", site.cluster.job_output(job_id)
    assert environment_of(site.cluster.job_output(job_id))[TIMEOUT] == "60"
