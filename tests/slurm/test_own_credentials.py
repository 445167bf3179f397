"""A user's own credentials work without any in the config, and the site's never go where a user points."""

from collections.abc import Callable

import pytest

from slurm.emulator import API_KEY
from slurm.jobs import PRINT_ENVIRONMENT, environment_of
from slurm.polling import wait_for
from slurm.site import Site
from slurm.standins import Services
from standins.resources import SECRET, resource

TOKEN = "ibm_demo_QRMI_JOB_ACQUISITION_TOKEN"
KEY = "ibm_demo_QRMI_IBM_QCS_IAM_APIKEY"
SHOW = f"/bin/sh -c 'echo ${TOKEN} ${KEY}'"


def batch(*args: str, script: str = f"{SHOW}\n") -> Callable[[Site, dict[str, str]], list[str]]:
    """Return a launch by sbatch, which returns the lines of the job's output."""

    def launch(site: Site, env: dict[str, str]) -> list[str]:
        job_id = site.cluster.sbatch(f"#!/bin/sh\n{script}", "--qpu=ibm_demo", *args, env=env)
        assert site.cluster.wait_job_over(job_id).state == "COMPLETED", site.cluster.job_output(job_id)
        return site.cluster.job_output(job_id).splitlines()

    return launch


def direct(*command: str) -> Callable[[Site, dict[str, str]], list[str]]:
    """Return a launch by srun or salloc, which returns the lines of its output."""

    def launch(site: Site, env: dict[str, str]) -> list[str]:
        done = site.cluster.run_as_user([command[0], "--qpu=ibm_demo", *command[1:]], env=env)
        assert done.returncode == 0, done.stderr
        site.cluster.wait_nodes_idle()
        return done.stdout.splitlines()

    return launch


def array(site: Site, env: dict[str, str]) -> list[str]:
    """Launch two array tasks, and return the lines of both."""
    args = ("--qpu=ibm_demo", "--array=1-2", "--output=own-%a.txt")
    job_id = site.cluster.sbatch(f"#!/bin/sh\n{SHOW}\n", *args, env=env)
    wait_for(lambda: all(info.state == "COMPLETED" for info in site.cluster.jobs(job_id)), "both array tasks", 30)
    site.cluster.wait_nodes_idle()
    return [(site.cluster.user.home / f"own-{n}.txt").read_text().strip() for n in (1, 2)]


# How a job is launched, how many lines it prints, and how many sessions it has.
LAUNCHES = {
    "sbatch": (batch(), 1, 1),
    "sbatch --export=NONE": (batch("--export=NONE"), 1, 1),
    "steps over nodes": (batch("-N2", "-n4", script=f"srun -n4 -N2 {SHOW}\n"), 4, 1),
    "srun --export=NONE in a job": (batch("-N2", script=f"srun --export=NONE -n2 -N2 {SHOW}\n"), 2, 1),
    "srun": (direct("srun", "-N2", "-n3", "/bin/sh", "-c", f"echo ${TOKEN} ${KEY}"), 3, 1),
    "salloc": (direct("salloc", "-N2", "-n2", "sh", "-c", f"srun {SHOW}; srun {SHOW}"), 4, 1),
    "array": (array, 2, 2),
    "het": (
        batch("-N1", ":", "-N1", "--qpu=ibm_demo", script=f"srun --het-group=0 {SHOW}\nsrun --het-group=1 {SHOW}\n"),
        2,
        2,
    ),
}


@pytest.mark.parametrize("form", LAUNCHES)
def test_users_can_set_everything_that_the_config_leaves_empty(site: Site, form: str) -> None:
    """However the job is launched, its QPU is acquired with the user's variables, and each task has them as well."""
    launch, lines, count = LAUNCHES[form]
    own = {f"ibm_demo_{name}": value for name, value in site.emulator.resource("ibm_demo")["environment"].items()}
    site.config([{**site.emulator.resource("ibm_demo"), "environment": {}}])
    before = len(site.emulator.sessions())
    output = launch(site, own)
    tokens = [session["id"] for session in site.emulator.sessions()[before:]]
    assert len(tokens) == count
    assert sorted(output) == sorted(f"{token} {API_KEY}" for token in tokens for _ in range(lines // count))
    assert not site.emulator.open_sessions()


def test_a_job_without_its_users_variables_says_which_are_missing(site: Site) -> None:
    """The message names them and says what to do."""
    site.config([{**site.emulator.resource("ibm_demo"), "environment": {}}])
    job_id = site.cluster.sbatch(PRINT_ENVIRONMENT, "--qpu=ibm_demo", env={KEY: API_KEY})
    assert site.cluster.wait_job_over(job_id).state == "FAILED"
    names = ", ".join(f"ibm_demo_QRMI_IBM_QCS_{name}" for name in ("ENDPOINT", "IAM_ENDPOINT", "SERVICE_CRN"))
    assert site.cluster.job_output(job_id).splitlines()[0] == (
        f"qrmi-slurm: job {job_id} has no QPU: ibm_demo could not be acquired: "
        f"{names} not set: export it before you submit, or ask an admin to set it in the config"
    )


# A variable that a user sets while the site has the others, and what they then have to set as well.
ENDPOINTS = [
    ("ibm-quantum-compute-service", "QRMI_IBM_QCS_ENDPOINT"),
    ("ibm-quantum-compute-service", "QRMI_IBM_QCS_IAM_ENDPOINT"),
    ("direct-access", "QRMI_IBM_QS_IAM_ENDPOINT"),
    ("iqm-server", "QRMI_IQM_ISA_ENDPOINT"),
    ("pasqal-cloud", "QRMI_PASQAL_CLOUD_BASE_URL"),
    ("pasqal-cloud", "QRMI_PASQAL_CLOUD_AUTH_ENDPOINT"),
]


@pytest.mark.parametrize(("kind", "variable"), ENDPOINTS)
def test_no_secret_of_the_site_goes_to_an_endpoint_that_a_user_set(
    site: Site, services: Services, kind: str, variable: str
) -> None:
    """A listener there sees none, and neither does the job: it has its QPU without them, or a clear reason."""
    site.config([resource(kind, f"{services.url}/offline")])
    name = resource(kind, "")["name"]
    before = len(services.requests())
    # pasqal-cloud takes a token only from its variable or the user's own file, so it needs nothing else.
    mine = {f"{name}_{variable}": f"{services.url}/online", "HOME": str(site.cluster.user.home)}
    if variable == "QRMI_PASQAL_CLOUD_AUTH_ENDPOINT":
        mine[f"{name}_QRMI_PASQAL_CLOUD_BASE_URL"] = f"{services.url}/online"
    job_id = site.cluster.sbatch(PRINT_ENVIRONMENT, f"--qpu={name}", env=mine)
    info = site.cluster.wait_job_over(job_id)
    output = site.cluster.job_output(job_id)
    if kind == "pasqal-cloud":
        assert info.state == "COMPLETED", output
    else:
        assert info.state == "FAILED"
        assert f"you set {name}_{variable}, so the site's credentials are not used: also set {name}_QRMI_" in output
    assert SECRET not in output
    assert SECRET not in str(services.requests()[before:])


def test_a_user_with_an_endpoint_and_all_credentials_gets_the_qpu_there(site: Site, services: Services) -> None:
    """The user's key goes to the user's service, the site's key nowhere."""
    site.config([resource("iqm-server", f"{services.url}/offline")])
    before = len(services.requests())
    mine = {
        "my_iqm_server_QRMI_IQM_ISA_ENDPOINT": f"{services.url}/online",
        "my_iqm_server_QRMI_IQM_ISA_TOKEN": "the-users-own",
    }
    job_id = site.cluster.sbatch(PRINT_ENVIRONMENT, "--qpu=my_iqm_server", env=mine)
    output = site.cluster.job_output(job_id)
    assert site.cluster.wait_job_over(job_id).state == "COMPLETED", output
    env = environment_of(site.cluster.job_output(job_id))
    assert {name: env[name] for name in mine} == mine
    made = services.requests()[before:]
    assert [request["headers"]["authorization"] for request in made] == ["Bearer the-users-own"]
    assert SECRET not in str(made) + str(env)
