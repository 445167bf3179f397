"""A job may leave open which QPU it gets, and gets an available one; the site decides who may have it."""

import contextlib
import grp
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from slurm.jobs import PRINT_ENVIRONMENT, environment_of
from slurm.site import Site


@contextlib.contextmanager
def devices(site: Site, **states: tuple[str, int]) -> Iterator[None]:
    """Set the states of the service's devices and their numbers of waiting jobs until the block ends."""
    try:
        for name, (status, queue) in states.items():
            site.emulator.control("POST", f"backends/{name}", {"status": status, "queue": queue})
        yield
    finally:
        for name in states:
            site.emulator.control("POST", f"backends/{name}", {"status": "online", "queue": 0})


def run(site: Site, selection: str, *args: str, script: str = PRINT_ENVIRONMENT) -> tuple[str, str]:
    """Run a batch job, and return its state and its output."""
    job_id = site.cluster.sbatch(script, f"--qpu={selection}", *args)
    state = site.cluster.wait_job_over(job_id).state
    site.cluster.wait_nodes_idle()
    return state, site.cluster.job_output(job_id)


def held_by(output: str) -> str:
    return environment_of(output).get("QRMI_JOB_QPU_RESOURCES", "")


@pytest.mark.parametrize(
    "selection", ["any:ibm-quantum-compute-service", "any:qiskit-runtime-service", "ibm_*", "least-busy:ibm_*"]
)
def test_a_choice_is_the_least_busy_that_fits(site: Site, selection: str) -> None:
    """The environment has only the variables of the QPU the job got, and its session is released."""
    with devices(site, ibm_demo=("online", 9), ibm_second=("online", 2)):
        state, output = run(site, selection)
    assert state == "COMPLETED", output
    environment = environment_of(output)
    assert environment["QRMI_JOB_QPU_RESOURCES"] == "ibm_second"
    assert not [name for name in environment if name.startswith("ibm_demo_QRMI_")]
    assert output.splitlines()[0] == f"qrmi-slurm: {selection} is ibm_second"
    assert site.emulator.sessions()[-1]["id"] == environment["ibm_second_QRMI_JOB_ACQUISITION_TOKEN"]
    assert not site.emulator.open_sessions()


def test_a_qpu_that_is_offline_or_cannot_be_acquired_is_skipped(site: Site) -> None:
    """By its reported status or after a failed acquire; if none is left, the job's output gives each reason."""
    with devices(site, ibm_demo=("offline", 0), ibm_second=("online", 5)):
        assert held_by(run(site, "least-busy:ibm_*")[1]) == "ibm_second"
    with site.emulator.fault(call="create_session", kind="error", status=503, times=1):
        state, output = run(site, "ibm_*")
    assert (state, held_by(output)) == ("COMPLETED", "ibm_second")
    with devices(site, ibm_demo=("offline", 0), ibm_second=("paused", 0)):
        state, output = run(site, "ibm_*", "--no-requeue")
    assert state == "FAILED"
    assert "ibm_demo could not be acquired: the QPU is offline" in output
    assert "ibm_second could not be acquired: the QPU is " in output
    assert not site.emulator.open_sessions()


def test_steps_choose_among_what_the_job_holds(site: Site) -> None:
    """By the job's own terms, by another pattern, by name; a step that asks for a QPU the job does not hold fails."""
    steps = ["ibm_*", "any:ibm-quantum-compute-service", "ibm_second"]
    script = "#!/bin/sh\n" + "".join(f"srun --qpu='{step}' printenv QRMI_JOB_QPU_RESOURCES\n" for step in steps)
    with devices(site, ibm_demo=("online", 3)):
        state, output = run(site, "ibm_*", script=f"{script}srun --qpu=ibm_demo true\n")
    assert [line for line in output.splitlines() if line.startswith("ibm_")] == ["ibm_second"] * 3
    assert state == "FAILED"
    assert "this job does not hold ibm_demo; it holds ibm_second" in output


@pytest.mark.parametrize("command", [["srun"], ["salloc", "srun"]])
def test_a_choice_works_in_every_launch_form(site: Site, command: Sequence[str]) -> None:
    """In srun and salloc the task has the QPU that Prolog chose."""
    with devices(site, ibm_demo=("online", 3)):
        words = [command[0], "--qpu=any:ibm_*", *command[1:], "printenv", "QRMI_JOB_QPU_RESOURCES"]
        done = site.cluster.run_as_user(words)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "ibm_second"
        site.cluster.wait_nodes_idle()
    assert not site.emulator.open_sessions()


def test_two_choices_get_two_qpus(site: Site) -> None:
    """No QPU is used for two terms."""
    state, output = run(site, "ibm_*,ibm_*")
    assert (state, set(held_by(output).split(","))) == ("COMPLETED", {"ibm_demo", "ibm_second"})


def test_the_users_own_variables_reach_the_qpu_that_is_chosen(site: Site) -> None:
    """The stub cannot know which QPU will be chosen, and passes on all candidates' variables."""
    resources = [site.emulator.resource("ibm_demo"), site.emulator.resource("ibm_second")]
    own = resources[1]["environment"]
    resources[1]["environment"] = {}
    site.config(resources)
    env = {f"ibm_second_{name}": value for name, value in own.items()}
    with devices(site, ibm_demo=("offline", 0)):
        job_id = site.cluster.sbatch(PRINT_ENVIRONMENT, "--qpu=any:ibm-quantum-compute-service", env=env)
        assert site.cluster.wait_job_over(job_id).state == "COMPLETED", site.cluster.job_output(job_id)
    assert held_by(site.cluster.job_output(job_id)) == "ibm_second"


def test_a_dynamic_resource_resolves_to_a_device_found_by_qrmi(site: Site) -> None:
    """The real QRMI asks the service for its devices; the job gets the least busy one under its own name."""
    site.config([{**site.emulator.resource("instance"), "is_dynamic": True}])
    with devices(site, ibm_demo=("online", 4), ibm_second=("online", 1)):
        state, output = run(site, "instance")
        assert site.command("qpus").stdout.splitlines()[1].split()[:4] == [
            "instance",
            "ibm-quantum-compute-service",
            "yes",
            "online",
        ]
    assert state == "COMPLETED", output
    environment = environment_of(output)
    assert environment["QRMI_JOB_QPU_RESOURCES"] == "ibm_second"
    assert environment["ibm_second_QRMI_IBM_QCS_ENDPOINT"] == site.emulator.url
    assert output.splitlines()[0] == "qrmi-slurm: instance is ibm_second"
    assert not site.emulator.open_sessions()
    with devices(site, ibm_demo=("offline", 0), ibm_second=("offline", 0)):
        state, output = run(site, "instance", "--no-requeue")
    assert state == "FAILED"
    assert "has no QPU: instance could not be acquired: QRMI found no online QPU behind it" in output


def test_a_killed_job_of_a_dynamic_resource_is_released(site: Site) -> None:
    """The record names the device, so Epilog needs no discovery."""
    site.config([{**site.emulator.resource("instance"), "is_dynamic": True}])
    job_id = site.cluster.sbatch("#!/bin/sh\nsleep 300\n", "--qpu=instance")
    site.wait_hook_run("after-prolog", job_id)
    assert len(site.emulator.open_sessions()) == 1
    site.config([])
    site.cluster.slurm("scancel", str(job_id))
    site.cluster.wait_job_over(job_id)
    site.cluster.wait_nodes_idle()
    assert not site.emulator.open_sessions()


# --- access rules -----------------------------------------------------------------------------------------


def with_rules(site: Site, allow: dict[str, list[str]]) -> dict[str, Any]:
    return {**site.emulator.resource("ibm_demo"), "slurm": {"allow": allow}}


def rules_of(site: Site) -> dict[str, tuple[dict[str, list[str]], dict[str, list[str]], str]]:
    """For each kind of rule, return one that admits the user, one that does not, and the message for the latter."""
    user = site.cluster.user
    group = grp.getgrgid(user.gid).gr_name
    denied = "may not use ibm_demo: it is for"
    return {
        "users": ({"users": [user.name]}, {"users": ["root"]}, f"user {user.name} {denied} user root"),
        "groups": ({"groups": [group]}, {"groups": ["root"]}, f"user {user.name} {denied} group root"),
        "partitions": ({"partitions": ["main"]}, {"partitions": ["debug"]}, f"partition main {denied} partition debug"),
        "accounts": ({"accounts": ["Physics"]}, {"accounts": ["law"]}, f"account physics {denied} account law"),
    }


@pytest.mark.parametrize("rule", ["users", "groups", "partitions", "accounts"])
def test_prolog_enforces_the_access_rules(site: Site, rule: str) -> None:
    """Whatever job_submit let through: a user without access is told whom the QPU is for, and nothing is acquired."""
    allowed, refused, sentence = rules_of(site)[rule]
    site.config([with_rules(site, allowed)])
    state, output = run(site, "ibm_demo", "--account=physics")
    assert state == "COMPLETED", output
    before = len(site.emulator.sessions())
    site.config([with_rules(site, refused), site.emulator.resource("ibm_second")])
    state, output = run(site, "ibm_demo", "--account=physics")
    assert state == "FAILED"
    assert f"has no QPU: {sentence}" in output
    assert len(site.emulator.sessions()) == before
    assert held_by(run(site, "ibm_*", "--account=physics")[1]) == "ibm_second"


def test_a_forged_environment_gives_no_access(site: Site) -> None:
    """What a user sets before submitting does not override what Slurm says of the job."""
    site.config([with_rules(site, {"accounts": ["physics"]})])
    forged = {
        name: "physics" for name in ("SLURM_JOB_ACCOUNT", "SPANK_SLURM_JOB_ACCOUNT", "SLURM_SPANK_SLURM_JOB_ACCOUNT")
    }
    job_id = site.cluster.sbatch(PRINT_ENVIRONMENT, "--qpu=ibm_demo", env=forged)
    assert site.cluster.wait_job_over(job_id).state == "FAILED"
    assert "a job without an account may not use ibm_demo: it is for account physics" in site.cluster.job_output(job_id)
