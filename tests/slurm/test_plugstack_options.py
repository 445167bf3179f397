"""The options on the plugin's line in plugstack.conf: each does what it says, and a wrong one is never ignored."""

import json
import re
import stat

import pytest

from slurm.jobs import PRINT_ENVIRONMENT, environment_of
from slurm.polling import wait_for
from slurm.site import STUB, Site
from slurm.standins import Services
from standins.resources import resource

SCRIPT = "#!/bin/sh\necho the-script-ran\n"


def test_a_proxy_is_used_for_qrmis_calls_and_is_in_the_tasks_environment(site: Site, services: Services) -> None:
    """A service whose name only the proxy can resolve: both acquire and release reach it."""
    site.config([resource("ibm-quantum-compute-service", "http://qpu.invalid/online")])
    proxy = services.url.replace("http://", "http://user:proxy-password@")
    site.plugstack(site.plugstack_line(f"--env:http_proxy={proxy}", "--env:no_proxy=localhost"))
    before = len(services.requests())
    job_id = site.cluster.sbatch(PRINT_ENVIRONMENT, "--qpu=my_ibm_quantum_compute_service")
    assert site.cluster.wait_job_over(job_id).state == "COMPLETED", site.cluster.job_output(job_id)
    env = environment_of(site.cluster.job_output(job_id))
    assert (env["http_proxy"], env["no_proxy"]) == (proxy, "localhost")
    made = [f"{request['method']} {request['path']}" for request in services.requests()[before:]]
    token = env["my_ibm_quantum_compute_service_QRMI_JOB_ACQUISITION_TOKEN"]
    assert "POST http://qpu.invalid/online/sessions" in made
    assert f"PATCH http://qpu.invalid/online/sessions/{token}" in made
    assert "proxy-authorization" in services.requests()[before]["headers"]


def test_records_are_kept_in_the_state_directory(site: Site) -> None:
    """While the job runs they exist and other users cannot read them; afterwards they are gone."""
    elsewhere = site.cluster.folder / "another-state"
    site.plugstack(f"optional {STUB} {site.config_path} --state-dir={elsewhere}")
    job_id = site.cluster.sbatch("#!/bin/sh\necho begun\nsleep 300\n", "--qpu=ibm_demo")
    wait_for(lambda: site.cluster.job_output(job_id) or None, "the script to begin", 20)
    [folder] = elsewhere.glob(f"*/{job_id}")
    modes = {path.name: (stat.S_IMODE(path.stat().st_mode), path.stat().st_uid) for path in folder.iterdir()}
    user = site.cluster.user.uid
    assert modes == {"record.json": (0o600, 0), "lock": (0o600, 0), "exports": (0o400, user)}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (folder, folder.parent, elsewhere)} == {0o711}
    assert not site.state_dir.exists()
    site.cluster.slurm("scancel", str(job_id))
    site.cluster.wait_job_over(job_id)
    assert not folder.exists()
    assert not site.emulator.open_sessions()


def test_without_a_usable_state_directory_the_job_fails(site: Site) -> None:
    """What could not be recorded is not acquired, and the node stays in service."""
    in_the_way = site.cluster.folder / "no-folder"
    in_the_way.touch()
    site.plugstack(f"optional {STUB} {site.config_path} --state-dir={in_the_way}")
    before = len(site.emulator.sessions())
    job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo")
    assert site.cluster.wait_job_over(job_id).state == "FAILED"
    output = site.cluster.job_output(job_id)
    assert f"qrmi-slurm: cannot read {in_the_way}/" in output
    assert "Not a directory" in output
    assert "the-script-ran" not in output
    assert f"failed: job={job_id}" in site.hooks_log()
    assert len(site.emulator.sessions()) == before


def test_a_release_over_its_timeout_is_left_for_later(site: Site, services: Services) -> None:
    """The node is free again, and the record keeps what is to be released."""
    site.config([resource("ibm-quantum-compute-service", f"{services.url}/hang-release")])
    site.plugstack(site.plugstack_line("--release-timeout=0.5"))
    job_id = site.cluster.sbatch(SCRIPT, "--qpu=my_ibm_quantum_compute_service")
    assert site.cluster.wait_job_over(job_id).state == "COMPLETED"
    [record] = site.state_dir.glob(f"*/{job_id}/record.json")
    [entry] = json.loads(record.read_text())["entries"]
    assert (entry["state"], entry["reason"]) == ("releasing", "no answer within 0.5 s")
    [line] = [line for line in site.hooks_log().splitlines() if f"not-released: job={job_id}" in line]
    # Killed at its timeout, not when the service gives up; the message counts from the call, a little later.
    [seconds] = re.findall(r" seconds=(\S+)", line)
    assert 0.3 < float(seconds) < 3
    assert not record.with_name("exports").exists()


def test_a_job_that_needs_all_its_qpus_releases_those_it_got(site: Site) -> None:
    """--require=all: one QPU fails, the other is released, and the job's output says why it does not run."""
    second = site.emulator.resource("ibm_second")
    second["environment"] |= {"QRMI_IBM_QCS_IAM_APIKEY": "nobody-knows-this-key"}
    site.config([site.emulator.resource("ibm_demo"), second])
    site.plugstack(site.plugstack_line("--require=all"))
    before = len(site.emulator.sessions())
    job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo,ibm_second")
    assert site.cluster.wait_job_over(job_id).state == "FAILED"
    output = site.cluster.job_output(job_id)
    assert (
        f"qrmi-slurm: job {job_id} has no QPU: ibm_second could not be acquired: the service refused the API key"
        in output
    )
    assert "the-script-ran" not in output
    [session] = site.emulator.sessions()[before:]
    assert (session["backend"], session["state"]) == ("ibm_demo", "closed")
    assert not list(site.state_dir.glob(f"*/{job_id}"))


def test_a_job_that_needs_all_its_qpus_does_not_start_with_an_unknown_one(site: Site) -> None:
    """--require=all: nothing is acquired at all."""
    site.plugstack(site.plugstack_line("--require=all"))
    before = len(site.emulator.sessions())
    job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo,nowhere")
    assert site.cluster.wait_job_over(job_id).state == "FAILED"
    assert "has no QPU: unknown QPU: nowhere" in site.cluster.job_output(job_id)
    assert len(site.emulator.sessions()) == before


def test_the_plugins_line_may_be_in_an_included_file(site: Site) -> None:
    """`include` with a pattern relative to plugstack.conf, as Slurm itself reads it."""
    folder = site.cluster.etc / "plugstack.conf.d"
    folder.mkdir(exist_ok=True)
    (folder / "50-qrmi").write_text(f"# ours\n{site.plugstack_line('--env:FROM_INCLUDED=yes')}\n")
    site.plugstack("include plugstack.conf.d/*")
    job_id = site.cluster.sbatch(PRINT_ENVIRONMENT, "--qpu=ibm_demo")
    assert site.cluster.wait_job_over(job_id).state == "COMPLETED", site.cluster.job_output(job_id)
    assert environment_of(site.cluster.job_output(job_id))["FROM_INCLUDED"] == "yes"
    assert not site.emulator.open_sessions()


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--aquire-timeout=5", "unknown option --aquire-timeout"),
        ("--release-timeout=soon", "--release-timeout=soon is not a number of seconds"),
        ("--require=some", "--require=some is neither any nor all"),
        ("--env:NO-NAME=my-secret", "--env:NO-NAME is not --env:NAME=VALUE"),
        ("--env:A=my-secret with-a-blank", "2 words are not options"),
    ],
)
def test_a_wrong_option_is_reported_to_admin_and_user(site: Site, option: str, sentence: str) -> None:
    """The job fails; its output and the hooks' log say which line is wrong. Neither shows a value of --env:."""
    site.plugstack("# a comment", site.plugstack_line(option))
    before = len(site.emulator.sessions())
    job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo")
    assert site.cluster.wait_job_over(job_id).state == "FAILED"
    output = site.cluster.job_output(job_id)
    assert f"qrmi-slurm: {site.cluster.etc}/plugstack.conf:2: {sentence}" in output
    assert "the-script-ran" not in output
    for hook in ("prolog", "epilog"):
        [line] = [
            line
            for line in site.hooks_log().splitlines()
            if line.startswith(f"qrmi-slurm-{hook}: error: failed: job={job_id} ")
        ]
        assert sentence in line
    assert "my-secret" not in output + site.hooks_log()
    assert len(site.emulator.sessions()) == before


def test_with_both_ways_to_run_task_prolog_nothing_happens_twice(site: Site) -> None:
    """Nor with a mark that the user sets: then their own job has no QPU, and nobody else's."""
    site.run_task_prolog_by("both")
    job_id = site.cluster.sbatch(f"{PRINT_ENVIRONMENT}srun true\n", "--qpu=ibm_demo,nowhere")
    assert site.cluster.wait_job_over(job_id).state == "COMPLETED"
    output = site.cluster.job_output(job_id)
    assert output.count("unknown QPU, ignored: nowhere") == 1, output
    assert environment_of(output)["QRMI_JOB_QPU_RESOURCES"] == "ibm_demo"
    site.run_task_prolog_by("slurm")
    script = "export QRMI_SLURM_TASK_PROLOG=$SLURM_JOB_ID\nsrun sh -c 'echo $QRMI_SLURM_TASK_PROLOG $QRMI_JOB_ID'\n"
    job_id = site.cluster.sbatch(f"#!/bin/sh\n{script}", "--qpu=ibm_demo", env={"QRMI_SLURM_TASK_PROLOG": "1"})
    assert site.cluster.wait_job_over(job_id).state == "COMPLETED"
    assert site.cluster.job_output(job_id) == f"{job_id}\n"
