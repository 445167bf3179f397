"""Few characters may ask for many QPUs, and many jobs start at once: so many calls run at a time, and no more."""

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from slurm.aftermath import assert_nothing_left, let_go, start_long_job
from slurm.polling import wait_for
from slurm.site import BIN, Site
from slurm.standins import Services
from standins.resources import resource

AT_ONCE = 32
USERS = 32
# Two jobs with so many take all of a user's places.
EACH = 16
# Calls without an answer go on without their Prolog for a while; a process waits for each Prolog's.
LATE_USERS = 8

TIMEOUT_S = 12
SCRIPT = "#!/bin/sh\necho ran\n"


@pytest.fixture
def timed(site: Site) -> Site:
    """Return a site whose Prologs give up after some seconds."""
    site.plugstack(site.plugstack_line(f"--acquire-timeout={TIMEOUT_S}"))
    return site


def many(services: Services, count: int, scenario: str) -> list[dict[str, Any]]:
    """Return the config's entries of QPUs q0, q1 and so on."""
    one = resource("ibm-quantum-compute-service", f"{services.url}/{scenario}")
    return [{**one, "name": f"q{number}"} for number in range(count)]


@contextmanager
def most_at_once(site: Site) -> Iterator[list[int]]:
    """Watch Prolog's calls until the block ends; the list then has the largest number of them at any moment."""
    found = [0]
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.is_set():
            found[0] = max(found[0], len(site.call_pids("prolog")))
            time.sleep(0.02)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        is_over.set()
        thread.join()


@pytest.mark.parametrize("scenario", ["slow", "hang"])
def test_one_job_that_asks_for_everything(timed: Site, services: Services, scenario: str) -> None:
    """100 QPUs cost 32 processes at a time, whether their service answers or not."""
    timed.config(many(services, 100, scenario))
    with most_at_once(timed) as most:
        job_id = timed.cluster.sbatch(SCRIPT, "--qpu=*", "--nodelist=n1", "--no-requeue")
        state = timed.cluster.wait_job_over(job_id).state
    assert state == ("COMPLETED" if scenario == "slow" else "FAILED"), timed.cluster.job_output(job_id)
    assert 0 < most[0] <= AT_ONCE + 1


def test_one_user_leaves_places_to_the_others(timed: Site, services: Services) -> None:
    """Five of a user's jobs, each with 16 QPUs of a service that hangs; another user's starts and ends meanwhile."""
    hanging = many(services, EACH, "hang")
    timed.config([*hanging, timed.emulator.resource("ibm_demo")])
    first, second = timed.cluster.users
    all_of_them = ",".join(item["name"] for item in hanging)
    with most_at_once(timed) as most:
        options = [f"--qpu={all_of_them}", "--nodelist=n1", "--no-requeue"]
        jobs = [timed.cluster.sbatch(SCRIPT, *options, user=first) for _ in range(5)]
        wait_for(lambda: len(timed.call_pids("prolog")) >= USERS, "the first user's calls", 10)
        other = timed.cluster.sbatch(SCRIPT, "--qpu=ibm_demo", "--nodelist=n1", user=second)
        info = timed.cluster.wait_job(other)
        assert info.state == "COMPLETED", timed.cluster.job_output(other)
        assert timed.call_pids("prolog"), "the other user's job ended after the first user's calls"
        for job_id in jobs:
            assert timed.cluster.wait_job(job_id).state == "FAILED"
    assert most[0] <= USERS + 2 * LATE_USERS + 1
    outputs = [timed.cluster.job_output(job_id) for job_id in jobs]
    waited = f"{USERS} calls of your jobs on node n1 were still waiting for an answer"
    assert any(waited in output for output in outputs), outputs
    timed.cluster.wait_nodes_idle()


def test_releasing_waits_for_nobody(timed: Site, services: Services) -> None:
    """A user's job ends and gives its QPU back while all of the user's places are taken."""
    hanging = many(services, EACH, "hang")
    timed.config([*hanging, timed.emulator.resource("ibm_demo")])
    holding = start_long_job(timed)
    all_of_them = ",".join(item["name"] for item in hanging)
    options = [f"--qpu={all_of_them}", "--nodelist=n1", "--no-requeue"]
    jobs = [timed.cluster.sbatch(SCRIPT, *options) for _ in range(3)]
    wait_for(lambda: len(timed.call_pids("prolog")) >= USERS, "the user's calls", 10)
    let_go(timed, holding)
    wait_for(lambda: not timed.emulator.open_sessions(), "the session to be closed", TIMEOUT_S)
    assert timed.call_pids("prolog"), "the session was closed after the calls had ended"
    for job_id in jobs:
        timed.cluster.wait_job(job_id)
    assert_nothing_left(timed, holding)


def test_an_array_of_jobs(timed: Site, services: Services) -> None:
    """All of its tasks start on one node at once, and all get their QPU."""
    timed.config(many(services, 8, "online"))
    with most_at_once(timed) as most:
        array = timed.cluster.sbatch(SCRIPT, "--qpu=q0,q1,q2,q3,q4,q5,q6,q7", "--nodelist=n1", "--array=1-8")
        for task in range(1, 9):
            assert timed.cluster.wait_job(f"{array}_{task}", deadline_s=60).state == "COMPLETED"
    assert most[0] <= USERS
    timed.cluster.wait_nodes_idle()


def test_a_killed_hook_gives_its_places_back(timed: Site, services: Services) -> None:
    """The kernel does, however it ended."""
    timed.config([*many(services, EACH, "hang"), timed.emulator.resource("ibm_demo")])
    env = {**timed.hook_env(900_001), "SPANK_QRMI_QPU": ",".join(f"q{number}" for number in range(EACH))}
    hooks = [
        subprocess.Popen(
            [BIN / "qrmi-slurm-prolog"], env={**env, "SLURM_JOB_ID": str(900_001 + number)}, stdout=subprocess.DEVNULL
        )
        for number in range(2)
    ]
    wait_for(lambda: len(timed.call_pids("prolog")) == USERS, "both hooks' calls", 10)
    timed.kill_prolog()
    for hook in hooks:
        assert hook.wait(10) == 0
    done = timed.run_hook("prolog", 900_003)
    assert "acquired: job=900003 qpu=ibm_demo" in done.stdout
    timed.run_hook("epilog", 900_003)
    assert len(timed.call_pids("prolog")) == USERS, "they go on until their own alarms"
    for job_id in (900_001, 900_002):
        timed.command("release", "--forget", "--yes", str(job_id))
