"""Wrong input is reported plainly to the user, the job fails at once, and nothing else is affected."""

from collections.abc import Sequence

import pytest

from slurm.cluster import ClusterError
from slurm.jobs import PRINT_ENVIRONMENT, environment_of
from slurm.site import Site

MARK = "the-script-ran"
SCRIPT = f"#!/bin/sh\necho {MARK}\n"


def assert_refused(site: Site, qpu: str, *reasons: str, options: Sequence[str] = ()) -> None:
    """The job fails at its first task and prints the reasons, its node stays in service, and no session is open."""
    job_id = site.cluster.sbatch(SCRIPT, f"--qpu={qpu}", *options)
    info = site.cluster.wait_job_over(job_id)  # waits for idle nodes, which a drained one never is
    output = site.cluster.job_output(job_id)
    assert (info.state, info.exit_code) == ("FAILED", "1:0"), output
    assert MARK not in output
    assert f"qrmi-slurm: job {job_id} has no QPU" in output
    for reason in reasons:
        assert reason in output
    assert not site.emulator.open_sessions()
    assert not list(site.state_dir.glob(f"*/{job_id}"))
    after = site.cluster.sbatch(SCRIPT)
    assert site.cluster.wait_job_over(after).state == "COMPLETED"


def test_an_unknown_qpu_among_known_ones_is_ignored_with_a_line(site: Site) -> None:
    """The job runs with the known ones, and one line in its output names the unknown."""
    job_id = site.cluster.sbatch(PRINT_ENVIRONMENT, "--qpu=nowhere,ibm_demo")
    assert site.cluster.wait_job_over(job_id).state == "COMPLETED"
    output = site.cluster.job_output(job_id)
    notes = [line for line in output.splitlines() if line.startswith("qrmi-slurm:")]
    assert notes == ["qrmi-slurm: unknown QPU, ignored: nowhere"]
    assert environment_of(output)["QRMI_JOB_QPU_RESOURCES"] == "ibm_demo"


def test_only_unknown_qpus_fail_the_job(site: Site) -> None:
    """The job's output names the QPUs unknown to the site."""
    assert_refused(site, "nowhere,neither", "unknown QPUs: nowhere, neither; known QPUs: ")


def test_a_service_that_is_down_fails_a_job_that_does_not_wait(site: Site) -> None:
    """The job's output says that the service could not be reached."""
    resource = site.emulator.resource("ibm_demo")
    nobody_listens = "http://127.0.0.1:9"
    resource["environment"] |= {
        "QRMI_IBM_QCS_ENDPOINT": nobody_listens,
        "QRMI_IBM_QCS_IAM_ENDPOINT": nobody_listens,
    }
    site.config([resource])
    reasons = ("ibm_demo could not be acquired", "error sending request")
    assert_refused(site, "ibm_demo", *reasons, options=["--no-requeue"])


def test_a_wrong_key_fails_the_job(site: Site) -> None:
    """The job's output says that its credentials were refused, and never shows the key."""
    key = "test-key-that-nobody-knows"
    resource = site.emulator.resource("ibm_demo")
    resource["environment"] |= {"QRMI_IBM_QCS_IAM_APIKEY": key}
    site.config([resource])
    assert_refused(site, "ibm_demo", "ibm_demo could not be acquired", "authentication failed")
    for output in site.cluster.user.home.glob("slurm-*.out"):
        assert key not in output.read_text()


@pytest.mark.parametrize("content", ['{"resources": [', "[]", ""])
def test_a_broken_config_fails_the_job(site: Site, content: str) -> None:
    """The job's output says that the site's configuration is at fault and whom to tell, but not its contents."""
    site.config_path.write_text(content)
    assert_refused(site, "ibm_demo", "configuration cannot be used", "tell an admin")


def test_a_service_that_never_answers_fails_the_job_in_time(site: Site) -> None:
    """A hanging service costs no more than the acquire timeout, after which the node is free again."""
    site.plugstack(site.plugstack_line("--acquire-timeout=2"))
    with site.emulator.fault(call="create_session", kind="hang"):
        job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo", "--no-requeue")
        info = site.cluster.wait_job_over(job_id)
    output = site.cluster.job_output(job_id)
    assert info.state == "FAILED"
    assert "ibm_demo could not be acquired: no answer within 2 s" in output
    assert not site.emulator.open_sessions()


def test_one_of_two_qpus_that_fails_is_named_and_the_job_runs_with_the_other(site: Site) -> None:
    """By default a job runs with the QPUs that could be acquired."""
    second = site.emulator.resource("ibm_second")
    second["environment"] |= {"QRMI_IBM_QCS_IAM_APIKEY": "test-key-that-nobody-knows"}
    site.config([site.emulator.resource("ibm_demo"), second])
    job_id = site.cluster.sbatch(PRINT_ENVIRONMENT, "--qpu=ibm_demo,ibm_second")
    assert site.cluster.wait_job_over(job_id).state == "COMPLETED"
    output = site.cluster.job_output(job_id)
    assert "qrmi-slurm: ibm_second could not be acquired: the service refused the API key" in output
    assert environment_of(output)["QRMI_JOB_QPU_RESOURCES"] == "ibm_demo"
    assert not site.emulator.open_sessions()


@pytest.mark.parametrize(
    ("qpu", "sentence"),
    [
        ("", "--qpu"),
        ("ibm_demo,,ibm_second", "--qpu"),
        ("ibm\ndemo", "--qpu"),
        ("x" * 5000, "--qpu"),
    ],
)
def test_a_malformed_list_is_refused_at_submission(site: Site, qpu: str, sentence: str) -> None:
    """sbatch itself refuses, so there is no job."""
    with pytest.raises(ClusterError, match=sentence):
        site.cluster.sbatch(SCRIPT, f"--qpu={qpu}")


def test_an_unknown_option_on_the_plugin_line_fails_the_job(site: Site) -> None:
    """A typo in an option never means that the default is used silently."""
    site.plugstack(site.plugstack_line("--aquire-timeout=5"))
    job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo")
    info = site.cluster.wait_job_over(job_id)
    assert info.state == "FAILED"
    assert "unknown option --aquire-timeout" in site.cluster.job_output(job_id)
    assert not site.emulator.open_sessions()


def test_a_duplicate_plugin_line_counts_once(site: Site) -> None:
    """Jobs still work after a double installation, and a message at submission says what to fix."""
    site.plugstack(site.plugstack_line(), site.plugstack_line())
    job_id = site.cluster.sbatch(PRINT_ENVIRONMENT, "--qpu=ibm_demo")
    assert site.cluster.wait_job_over(job_id).state == "COMPLETED"
    assert environment_of(site.cluster.job_output(job_id))["QRMI_JOB_QPU_RESOURCES"] == "ibm_demo"
    done = site.cluster.run_as_user(["srun", "--qpu=ibm_demo", "true"])
    assert "plugstack.conf has 2 lines that load this plugin" in done.stderr
    assert done.returncode == 0


def test_an_unknown_qpu_among_known_ones_is_ignored_for_a_direct_step_too(site: Site) -> None:
    """`srun --qpu` without an allocation runs with the known ones, and one line in its output names the unknown."""
    done = site.cluster.run_as_user(["srun", "--qpu=ibm_demo,nowhere", "env"])
    site.cluster.wait_nodes_idle()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "qrmi-slurm: unknown QPU, ignored: nowhere" in done.stdout
    assert environment_of(done.stdout)["QRMI_JOB_QPU_RESOURCES"] == "ibm_demo"
