"""The first start that fails takes the QPU out of service; the others wait, until the sensor sees it online."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from slurm.aftermath import assert_why
from slurm.cluster import ClusterOptions
from slurm.polling import wait_for
from slurm.site import Site, SiteOptions
from slurm.test_requeue import start_now, wait_requeued

QUICK = "#!/bin/sh\necho ran\n"
DEMO = "--qpu=ibm_demo"
SECOND = "--qpu=ibm_second"
DOWN = {"call": "iam_token", "kind": "error", "status": 503}


@pytest.fixture(scope="module")
def counted_site() -> Iterator[Site]:
    """Start a site whose QPUs are licenses, one for a job at a time and one for four."""
    options = SiteOptions(
        cluster=ClusterOptions(nodes=2),
        backends={"ibm_demo": "FakeSherbrooke", "ibm_second": "FakeSherbrooke"},
        licenses={"qpu_ibm_demo": 1, "qpu_ibm_second": 4},
        watched=True,
    )
    with Site(options) as site:
        yield site


@pytest.fixture
def site(counted_site: Site) -> Site:
    """Return the site with all QPUs in service, and no jobs."""
    counted_site.reset()
    counted_site.cluster.log("hooks").write_text("")
    return counted_site


def sensor(site: Site) -> dict[str, Any]:
    """Run the sensor and return its JSON output."""
    done = site.command("sensor", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def starts(site: Site) -> int:
    """Return how many starts have failed so far."""
    return site.hooks_log().count("not-acquired: ")


def wait_for_license(site: Site, *job_ids: int) -> None:
    """Wait until Slurm has tried to start jobs and reports that they wait for a license."""

    def waits() -> bool:
        return {site.cluster.job(job_id).reason for job_id in job_ids} == {"Licenses"}

    wait_for(waits, f"jobs {job_ids} to wait", 30)


def test_one_start_fails_and_the_others_wait(site: Site) -> None:
    """While the service answers 503 its job goes back into the queue, too; once it is online, all of them run."""
    with site.emulator.fault(**DOWN):
        jobs = [site.cluster.sbatch(QUICK, DEMO) for _ in range(6)]
        wait_for(lambda: "qpu_out_qpu_ibm_demo" in site.outages(), "the QPU to go out of service", 30)
        line = site.outages()["qpu_out_qpu_ibm_demo"]
        said = re.search(r"=(offline: service-error since (\S+), says job (\d+) on n[12])", line)
        assert said, line
        failed = int(said[3])
        waiting = [job_id for job_id in jobs if job_id != failed]
        assert len(waiting) == 5
        wait_for_license(site, *waiting)
        since = said[2].replace("T", " ")
        why = f"out of service since {since}: offline: service-error (says job {failed} on n"
        assert_why(site, waiting[-1], f"waits for ibm_demo, which is {why}")
        wait_requeued(site, failed)
        assert_why(site, failed, "was put back into the queue once, at ", "the login service answered 503")
        assert sensor(site)["out"]["ibm_demo"].startswith("offline: ")
        assert " Duration=01:00:0" in site.outages()["qpu_out_qpu_ibm_demo"]
        assert starts(site) == 1
    wait_for(lambda: sensor(site)["out"] == {}, "the QPU to come back", 30)
    assert {site.cluster.wait_job(job_id, deadline_s=60).state for job_id in waiting} == {"COMPLETED"}
    start_now(site, failed)
    assert site.cluster.wait_job(failed, deadline_s=60).state == "COMPLETED"
    assert starts(site) == 1


def test_prologs_on_several_nodes_fail_at_once(site: Site) -> None:
    """Their four jobs get no answer in the same second; one reservation comes of it, and nothing is refused loudly."""
    site.plugstack(site.plugstack_line("--acquire-timeout=2"))
    with site.emulator.fault(call="iam_token", kind="hang"):
        jobs = [site.cluster.sbatch(QUICK, SECOND, "--no-requeue", f"--nodelist=n{1 + at % 2}") for at in range(4)]
        for job_id in jobs:
            assert site.cluster.wait_job(job_id).state == "FAILED"
        (line,) = site.outages().values()
        assert " Licenses=qpu_ibm_second:4 " in line
        assert "=offline: no-answer since " in line
    log = site.hooks_log()
    assert (log.count("out-of-service: "), log.count("sensor-not-told: ")) == (1, 0), log


def test_an_admins_drain_stays_when_a_start_fails(site: Site) -> None:
    """One that has begun before the drain, here held by the service."""
    with site.emulator.fault(call="iam_token", kind="hold", times=1) as hold:
        job_id = site.cluster.sbatch(QUICK, DEMO, "--no-requeue")
        hold.wait_for(1)
        assert site.command("drain", "ibm_demo", "--reason", "new fridge").returncode == 0
        with site.emulator.fault(call="create_session", kind="error", status=503):
            hold.go_on()
            assert site.cluster.wait_job(job_id).state == "FAILED"
    (line,) = site.outages().values()
    assert ": new fridge" in line


@pytest.mark.one_release
def test_a_users_own_failure_takes_nothing_out_of_service(site: Site) -> None:
    """A key of their own that fails, or an address, concerns their job alone."""
    resource = site.emulator.resource("ibm_demo")
    site.config([{**resource, "environment": {}}])
    env = {f"ibm_demo_{name}": str(value) for name, value in resource["environment"].items()}
    with site.emulator.fault(**DOWN):
        job_id = site.cluster.sbatch(QUICK, DEMO, "--no-requeue", env=env)
        assert site.cluster.wait_job(job_id).state == "FAILED"
    assert starts(site) == 1
    assert "out-of-service: " not in site.hooks_log()
    assert not site.outages()


@pytest.mark.one_release
def test_a_service_that_comes_and_goes(site: Site) -> None:
    """Each time that the sensor finds it online, one more start fails and no more: constant work for slurmctld."""
    before = len(site.hook_runs("before-prolog"))
    jobs: list[int] = []

    def has_begun() -> bool:
        return len(site.hook_runs("before-prolog")) == before + starts(site) + 1

    for attempt in (1, 2, 3):
        # It is online while the sensor looks, and down again before the next job's Prolog acquires.
        with site.hold("before-prolog"):
            wait_for(lambda: sensor(site)["out"] == {}, "the QPU to be in service", 30)
            jobs += [site.cluster.sbatch(QUICK, DEMO, "--no-requeue") for _ in range(4 - len(jobs))]
            wait_for(has_begun, "the next start", 30)
            site.emulator.control("POST", "faults", DOWN)
        wait_for(lambda: "qpu_out_qpu_ibm_demo" in site.outages(), "the QPU to go out of service", 30)
        waiting = [job_id for job_id in jobs if site.cluster.job(job_id).state == "PENDING"]
        wait_for_license(site, *waiting)
        assert (starts(site), len(waiting)) == (attempt, 4 - attempt)
        site.emulator.clear_faults()
