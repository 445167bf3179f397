"""Many QPU jobs that start on a node at once: each acquires once, few hooks work at a time, and nobody waits for long.

`make crowd` does the same with 200 jobs.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from qrmi_slurm.calls import places
from slurm import crowd
from slurm.polling import wait_for
from slurm.processes import living
from slurm.site import Site
from slurm.standins import Services
from standins.resources import resource

JOBS = 40
TIMEOUT_S = 12
CPUS = len(os.sched_getaffinity(0))
AT_WORK = places.at_work(CPUS)
SCRIPT = "#!/bin/sh\necho ran\n"
HANGING = tuple(f"q{number}" for number in range(8))


@pytest.fixture(scope="module")
def shared() -> Iterator[Site]:
    """A node with room for all of the jobs, and two users."""
    with Site(crowd.options(JOBS)) as site:
        yield site


@pytest.fixture
def site(shared: Site) -> Site:
    """Return it without jobs."""
    shared.cluster.slurm("scancel", f"--user={shared.cluster.users[0].name}")
    shared.cluster.wait_nodes_idle(60)
    shared.reset()
    return shared


@pytest.fixture
def quick(site: Site) -> Site:
    """Return it with Prologs that do not wait long for a service that hangs."""
    site.plugstack(site.plugstack_line(f"--acquire-timeout={TIMEOUT_S}"))
    return site


@pytest.fixture(scope="module")
def services(shared: Site) -> Services:
    """Stand-ins for services, of which some hang."""
    return Services(shared.cluster)


def test_each_of_many_jobs_acquires_once_and_the_others_wait_as_a_shell(site: Site) -> None:
    """slurmd has time to answer slurmctld, which then starts no job twice."""
    found = crowd.run(site, JOBS)
    assert (found.acquisitions, found.completed, found.started_again) == (JOBS, JOBS, ()), str(found)
    # How many Pythons there are depends on the machine: one whose call takes a second makes room. With many processors
    # there are places for all of them.
    assert found.processes.waiting > 0 or AT_WORK.of_user > JOBS / 2, str(found)


def test_another_users_job_does_not_wait_for_a_crowd_of_calls_that_hang(quick: Site, services: Services) -> None:
    """It starts and ends while all of the crowd's Prologs still wait for their services."""
    site = quick
    hanging = resource("ibm-quantum-compute-service", f"{services.url}/hang")
    site.config([*({**hanging, "name": name} for name in HANGING), site.emulator.resource("ibm_demo")])
    first, second = site.cluster.users
    script = SCRIPT.replace("\n", "\n#SBATCH --output=/dev/null\n", 1)
    array = site.cluster.sbatch(script, f"--qpu={','.join(HANGING)}", f"--array=1-{JOBS - 1}", user=first)
    wait_for(lambda: len(site.call_pids("prolog")) >= places.USERS, "the first user's calls", 30)
    other = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo", user=second)
    info = site.cluster.wait_job(other)
    assert info.state == "COMPLETED", site.cluster.job_output(other)
    assert len(site.call_pids("prolog")) >= places.USERS, "it ended only after the first user's calls"
    site.cluster.slurm("scancel", str(array))


def call_pids_of(uid: int) -> list[int]:
    """Return the processes of a user in which QRMI is called."""
    found = []
    for process in living():
        with contextlib.suppress(OSError):
            if process.uid == uid and b"qrmi_slurm.calls" in Path(f"/proc/{process.pid}/cmdline").read_bytes():
                found.append(process.pid)
    return found


def test_a_user_who_stops_their_calls_keeps_no_place_at_work(quick: Site, services: Services) -> None:
    """Nor has any of these processes one of the locks open, or can the user open one."""
    site = quick
    empty = {**resource("ibm-quantum-compute-service", "http://127.0.0.1:1"), "name": "own", "environment": {}}
    site.config([empty, site.emulator.resource("ibm_demo")])
    theirs = resource("ibm-quantum-compute-service", f"{services.url}/hang")["environment"]
    user, other = site.cluster.users
    jobs = AT_WORK.of_user + 2
    own = {f"own_{name}": value for name, value in theirs.items()}
    array = site.cluster.sbatch(SCRIPT, "--qpu=own", f"--array=1-{jobs}", user=user, env=own)
    stopped: set[int] = set()

    def all_have_begun() -> bool:
        for pid in set(call_pids_of(user.uid)) - stopped:
            links = [link.readlink() for link in Path(f"/proc/{pid}/fd").iterdir()]
            assert not [link for link in links if str(link).startswith("/run/qrmi-slurm")]
            os.kill(pid, signal.SIGSTOP)
            stopped.add(pid)
        return len(stopped) == jobs

    wait_for(all_have_begun, f"{jobs} calls, {AT_WORK.of_user} of which may work at a time", 25)
    lanes = f"/run/qrmi-slurm/throwaway-{site.cluster.token}/n1/lanes"
    assert Path(lanes).exists()
    for path in (lanes, f"{lanes}/../.places/work-n1", f"{lanes}/../{other.uid}.0"):
        assert site.cluster.run_as_user(["flock", "--nonblock", path, "true"], user=user).returncode != 0
    job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo", user=other)
    assert site.cluster.wait_job(job_id).state == "COMPLETED", site.cluster.job_output(job_id)
    site.cluster.slurm("scancel", str(array))
