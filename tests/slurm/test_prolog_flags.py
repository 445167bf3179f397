"""PrologFlags: srun and salloc wait for all nodes' Prolog (Alloc, Contain), or a step for its own node's (NoHold)."""

import re
import signal
import time
from collections.abc import Iterator

import pytest

from qrmi_slurm.slurm import prolog_flags
from qrmi_slurm.slurm.plugstack import DEFAULT_ACQUIRE_TIMEOUT_S
from slurm.aftermath import assert_next_job_is_fine, assert_why
from slurm.cluster import ClusterOptions
from slurm.jobs import print_token
from slurm.polling import wait_for
from slurm.site import Site, SiteOptions

TOKEN = print_token("ibm_demo")


def started(flags: str) -> Site:
    """Return a site of three nodes whose srun waits as long as Prolog may take."""
    start_timeout_s = prolog_flags.start_timeout_s(DEFAULT_ACQUIRE_TIMEOUT_S)
    settings = {"PrologFlags": flags, "BatchStartTimeout": str(start_timeout_s)}
    return Site(SiteOptions(ClusterOptions(nodes=3, settings=settings)))


@pytest.fixture(scope="module")
def no_hold_site() -> Iterator[Site]:
    """Start a site whose steps wait."""
    with started("Alloc,NoHold") as site:
        yield site


@pytest.fixture
def no_hold(no_hold_site: Site) -> Site:
    """Return it in its initial state."""
    no_hold_site.reset()
    return no_hold_site


def assert_every_form_has_its_qpu(site: Site) -> None:
    """On two nodes: `srun`, a step of `salloc`, a step of a batch job, one without the script's environment."""
    run = site.cluster.run_as_user
    before = len(site.emulator.sessions())
    direct = run(["srun", "-N2", "-n2", "--qpu=ibm_demo", "sh", "-c", TOKEN])
    step = run(["salloc", "-N2", "-n2", "--qpu=ibm_demo", "srun", "sh", "-c", TOKEN])
    scripts = [f"#!/bin/sh\nsrun {words} /bin/sh -c '{TOKEN}'\n" for words in ("", "--export=NONE")]
    job_ids = [site.cluster.sbatch(script, "--qpu=ibm_demo", "-N2", "-n2") for script in scripts]
    assert [site.cluster.wait_job_over(job_id).state for job_id in job_ids] == ["COMPLETED"] * 2
    site.cluster.wait_nodes_idle()
    sessions = site.emulator.sessions()[before:]
    outputs = [direct.stdout, step.stdout, *map(site.cluster.job_output, job_ids)]
    assert sorted(output.split() for output in outputs) == sorted([session["id"]] * 2 for session in sessions)
    assert [session["state"] for session in sessions] == ["closed"] * 4


def test_every_form_has_its_qpu_with_contain() -> None:
    """For pam_slurm_adopt; Slurm's daemons do not start if NoHold is also set."""
    with started("Contain") as site:
        assert_every_form_has_its_qpu(site)


def test_every_form_has_its_qpu_with_nohold(no_hold: Site) -> None:
    """Prolog on the first node ends before a task starts there, and tasks on other nodes wait for its exports."""
    assert_every_form_has_its_qpu(no_hold)


@pytest.mark.parametrize(
    "form",
    [pytest.param(["srun"], id="srun"), pytest.param(["salloc", "srun"], id="salloc", marks=pytest.mark.one_release)],
)
def test_the_step_waits_for_a_slow_service_on_every_node(no_hold: Site, form: list[str]) -> None:
    """Longer than TaskProlog waits just for a shared file system, and longer than MessageTimeout."""
    command = [form[0], "-N2", "-n2", "--qpu=ibm_demo", *form[1:], "sh", "-c", TOKEN]
    with no_hold.emulator.fault(call="*", kind="delay", delay_s=5.5):  # two calls
        done = no_hold.cluster.run_as_user(command)
    no_hold.cluster.wait_nodes_idle()
    session = no_hold.emulator.sessions()[-1]
    assert (done.stdout.split(), session["state"]) == ([session["id"]] * 2, "closed"), done.stderr


def test_a_component_of_several_nodes_waits_on_each(no_hold: Site) -> None:
    """A salloc step in the second component of a heterogeneous job, whose tasks do not know its --qpu."""
    command = ["salloc", "-N1", ":", "-N2", "-n2", "--qpu=ibm_demo", "srun", "--het-group=1", "sh", "-c", TOKEN]
    with no_hold.emulator.fault(call="*", kind="delay", delay_s=1.5):
        done = no_hold.cluster.run_as_user(command)
    no_hold.cluster.wait_nodes_idle()
    session = no_hold.emulator.sessions()[-1]
    assert (done.stdout.split(), session["state"]) == ([session["id"]] * 2, "closed"), done.stderr


def test_ctrl_c_while_the_step_waits(no_hold: Site) -> None:
    """srun ends when Prolog does, not before; what Prolog has acquired is released."""
    with no_hold.emulator.held("create_session", "after") as fault:
        srun = no_hold.cluster.popen_as_user(["srun", "--qpu=ibm_demo", "sleep", "60"])
        fault.wait_for(1)
        for _ in range(4):  # srun wants a second Ctrl-C within a second, by its own count of seconds
            srun.send_signal(signal.SIGINT)
            time.sleep(0.2)
        assert srun.poll() is None
        (folder,) = no_hold.state_dir.glob("*/[0-9]*")
        fault.go_on()
        srun.communicate(timeout=20)
    no_hold.cluster.wait_nodes_idle()
    assert_why(no_hold, folder.name, "was cancelled, at ")
    assert no_hold.emulator.sessions()[-1]["state"] == "closed"
    assert not list(no_hold.state_dir.glob("*/[0-9]*"))


def test_a_prolog_that_is_killed_behind_a_waiting_step(no_hold: Site) -> None:
    """The first task says so, the second node's does not wait forever, and recover releases what was acquired."""
    no_hold.plugstack(no_hold.plugstack_line("--acquire-timeout=2"))
    with no_hold.emulator.held("create_session", "after") as fault:
        srun = no_hold.cluster.popen_as_user(["srun", "-N2", "-n2", "--qpu=ibm_demo", "true"])
        fault.wait_for(1)
        no_hold.kill_prolog()
        fault.go_on()
        out, err = srun.communicate(timeout=30)
    assert srun.returncode != 0
    told = re.search(r"qrmi-slurm: job (\d+) has no QPU: Prolog on n1 was killed by signal 9; ", out)
    assert told, (out, err)
    no_hold.cluster.wait_nodes_idle()
    assert_why(no_hold, told[1], "failed: Prolog on n1 was killed by signal 9")
    wait_for(lambda: not no_hold.call_pids("prolog"), "the call to end", 10)
    no_hold.recover()
    assert no_hold.emulator.sessions()[-1]["state"] == "closed"
    assert_next_job_is_fine(no_hold)
