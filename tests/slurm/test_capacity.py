"""`"capacity": "auto"`: as many jobs can have a QPU as its service has slots."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from slurm.cluster import ClusterOptions
from slurm.polling import wait_for
from slurm.site import Site, SiteOptions
from slurm.standins import Services
from standins.resources import resource

KIND = "ibm-quantum-system"
NAME = resource(KIND, "")["name"]
LICENSE = f"qpu_{NAME}"


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """Start a site with four licenses of a QPU."""
    with Site(SiteOptions(ClusterOptions(nodes=1), licenses={LICENSE: 4, "qpu_ibm_demo": 1})) as started:
        yield started


def lanes(site: Site, url: str, count: int, status: int = 0) -> dict[str, Any]:
    """Let the service have so many lanes, and run the sensor; return its output."""
    site.config([{**resource(KIND, f"{url}/lanes-{count}"), "slurm": {"capacity": "auto"}}])
    done = site.command("sensor", "--json")
    assert done.returncode == status, done.stdout + done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def listed(site: Site) -> tuple[int, int, int]:
    """Return the capacity, and how much of it is used and free, as a user sees them."""
    done = site.cluster.run_as_user(["qrmi-slurm", "qpus", "--json"])
    [found] = json.loads(done.stdout)["qpus"]
    return found["capacity"], found["used"], found["free"]


def test_the_number_of_jobs_follows_the_services_lanes(site: Site) -> None:
    """Jobs wait for lanes that the service does not have; those that run keep theirs when there are fewer."""
    url = Services(site.cluster).url
    gate = site.cluster.user.home / "gate"
    hold = f"#!/bin/sh\necho begun\nwhile [ ! -e {gate} ]; do sleep 0.05; done\n"

    def running() -> list[int]:
        return [job_id for job_id in jobs if "begun" in site.cluster.job_output(job_id)]

    assert lanes(site, url, 2)["capacities"] == [{"license": LICENSE, "capacity": 2}]
    jobs = [site.cluster.sbatch(hold, f"--qpu={NAME}") for _ in range(4)]
    wait_for(lambda: len(running()) == 2, "two jobs to begin", 30)
    waiting = [job_id for job_id in jobs if job_id not in running()]
    wait_for(lambda: all(site.cluster.job(job_id).reason == "Licenses" for job_id in waiting), "the others to wait", 20)
    lanes(site, url, 3)
    assert listed(site)[0] == 3
    wait_for(lambda: len(running()) == 3, "the third job to begin", 30)
    # Nonsense, and fewer than jobs have: nothing happens to those that run.
    [fault] = lanes(site, url, 4294967295, status=1)["faults"]
    assert "reports nonsense: 4294967295 of 4294967295 slots; it stays as it is" in fault
    assert listed(site) == (3, 3, 0)
    assert lanes(site, url, 1)["capacities"] == [{"license": LICENSE, "capacity": 1}]
    assert listed(site) == (1, 3, 0)
    assert [site.cluster.job(job_id).state for job_id in running()] == ["RUNNING"] * 3
    assert site.command("drain", NAME, "--reason", "x").returncode == 0
    assert site.command("resume", NAME).returncode == 0
    assert listed(site) == (1, 3, 0)
    gate.touch()
    for job_id in jobs:
        assert site.cluster.wait_job(job_id).state == "COMPLETED", site.cluster.job_output(job_id)
    assert lanes(site, url, 4)["capacities"] == [{"license": LICENSE, "capacity": 4}]
    assert not re.search("qpu_(less|fewer)", site.cluster.slurm("scontrol", "show", "reservations"))
    assert listed(site) == (4, 0, 4)
    shown = site.command("slurm-conf").stdout
    assert f"Licenses={LICENSE}:4," in shown or f",{LICENSE}:4" in shown
