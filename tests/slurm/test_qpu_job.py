"""A job with `--qpu` has its QPUs from its first line on, and releases them at its end."""

from slurm.jobs import PRINT_ENVIRONMENT, environment_of
from slurm.polling import wait_for
from slurm.site import Site


def test_a_batch_job_holds_a_session_while_it_runs_and_none_after(site: Site) -> None:
    """The token in the job's environment is the one session that was opened, and Epilog has closed it."""
    before = {session["id"] for session in site.emulator.sessions()}
    job_id = site.cluster.sbatch(PRINT_ENVIRONMENT, "--qpu=ibm_demo", "--time=5")
    info = site.cluster.wait_job_over(job_id)
    assert (info.state, info.exit_code) == ("COMPLETED", "0:0"), site.cluster.job_output(job_id)
    (session,) = [session for session in site.emulator.sessions() if session["id"] not in before]
    env = environment_of(site.cluster.job_output(job_id))
    assert env["ibm_demo_QRMI_JOB_ACQUISITION_TOKEN"] == session["id"]
    assert env["QRMI_JOB_QPU_RESOURCES"] == env["SLURM_JOB_QPU_RESOURCES"] == "ibm_demo"
    assert env["QRMI_JOB_QPU_TYPES"] == env["SLURM_JOB_QPU_TYPES"] == "ibm-quantum-compute-service"
    assert env["ibm_demo_QRMI_IBM_QCS_ENDPOINT"] == site.emulator.url
    assert env["ibm_demo_QRMI_JOB_TIMEOUT_SECONDS"] == "300"
    assert env["QRMI_JOB_ID"] == str(job_id)
    assert env["QRMI_JOB_UID"] == str(site.cluster.user.uid)
    assert env["RUST_LOG"] == "info"
    assert session["state"] == "closed"
    assert not list(site.state_dir.glob(f"*/{job_id}")), "the record outlived the release"


def test_the_session_lives_little_longer_than_the_job_may(site: Site) -> None:
    """A lost session would end a minute after the job's time limit, not hours later."""
    job_id = site.cluster.sbatch("#!/bin/sh\ntrue\n", "--qpu=ibm_demo", "--time=7")
    site.cluster.wait_job_over(job_id)
    assert site.emulator.sessions()[-1]["max_ttl"] == 7 * 60 + 60


def test_two_qpus_are_acquired_in_parallel(site: Site) -> None:
    """Both sessions are opened at the same time, and the job has them in the order of `--qpu`."""
    with site.emulator.held("create_session") as hold:
        job_id = site.cluster.sbatch(PRINT_ENVIRONMENT, "--qpu=ibm_second,ibm_demo")
        hold.wait_for(2)
    info = site.cluster.wait_job_over(job_id)
    assert info.state == "COMPLETED", site.cluster.job_output(job_id)
    env = environment_of(site.cluster.job_output(job_id))
    assert env["QRMI_JOB_QPU_RESOURCES"] == "ibm_second,ibm_demo"
    tokens = {env[f"{name}_QRMI_JOB_ACQUISITION_TOKEN"] for name in ("ibm_second", "ibm_demo")}
    assert tokens == {session["id"] for session in site.emulator.sessions()[-2:]}
    assert not site.emulator.open_sessions()


def test_steps_of_a_batch_job_share_its_session(site: Site) -> None:
    """Each of four tasks on two nodes has the batch script's token, and there was one acquisition."""
    count = len(site.emulator.sessions())
    script = "#!/bin/sh\nsrun -n4 -N2 sh -c 'echo token=$ibm_demo_QRMI_JOB_ACQUISITION_TOKEN'\n"
    job_id = site.cluster.sbatch(script, "--qpu=ibm_demo", "--nodes=2", "--ntasks=4")
    info = site.cluster.wait_job_over(job_id)
    output = site.cluster.job_output(job_id)
    assert info.state == "COMPLETED", output
    (session,) = site.emulator.sessions()[count:]
    assert output.splitlines() == [f"token={session['id']}"] * 4


def test_srun_without_an_allocation_gets_a_qpu(site: Site) -> None:
    """`srun --qpu` alone acquires, runs and releases."""
    done = site.cluster.run_as_user(["srun", "--qpu=ibm_demo", "env"])
    assert done.returncode == 0, done.stderr
    token = environment_of(done.stdout)["ibm_demo_QRMI_JOB_ACQUISITION_TOKEN"]
    site.cluster.wait_nodes_idle()
    assert site.emulator.sessions()[-1]["id"] == token
    assert not site.emulator.open_sessions()


def test_a_job_without_qpu_is_left_alone(site: Site) -> None:
    """A job that asked for nothing gets no variable, session or folder, and not even a Python process."""
    count = len(site.emulator.sessions())
    job_id = site.cluster.sbatch(PRINT_ENVIRONMENT)
    assert site.cluster.wait_job_over(job_id).state == "COMPLETED"
    env = environment_of(site.cluster.job_output(job_id))
    assert [name for name in env if "QRMI" in name or "QPU" in name] == []
    assert len(site.emulator.sessions()) == count


def test_cancelling_a_running_job_releases(site: Site) -> None:
    """`scancel` ends the session as well."""
    job_id = site.cluster.sbatch("#!/bin/sh\necho begun\nsleep 300\n", "--qpu=ibm_demo")
    wait_for(lambda: site.cluster.job_output(job_id) or None, "the script to begin", 20)
    assert len(site.emulator.open_sessions()) == 1
    site.cluster.slurm("scancel", str(job_id))
    site.cluster.wait_job_over(job_id)
    assert not site.emulator.open_sessions()
