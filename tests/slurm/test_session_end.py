"""Session and job end together; where the session ends first, everybody is told, and the job gets another one."""

import json
import re

import pytest

from slurm.aftermath import assert_nothing_left, assert_why, let_go, start_long_job
from slurm.polling import wait_for
from slurm.site import Site

TTL_S = 3


def short_sessions(site: Site, **changes: object) -> None:
    """Write a config whose sessions live three seconds."""
    resource = site.emulator.resource("ibm_demo")
    resource["environment"]["QRMI_IBM_QCS_SESSION_MAX_TTL"] = str(TTL_S)
    site.config([{**resource, **changes}])


def wait_expired(site: Site) -> None:
    """Wait until the service has ended the last session by itself."""
    wait_for(lambda: site.emulator.sessions()[-1]["state"] == "expired", "the session to expire", 30)


def status_of(site: Site, job_id: int) -> list[str]:
    """Return the states of a job's QPUs, as `status` shows them."""
    found = json.loads(site.command("status", "--json").stdout)["qpus"]
    return [one["state"] for one in found if one["job_id"] == job_id]


def test_a_session_that_ends_before_its_job_is_announced_and_then_shown_as_expired(site: Site) -> None:
    """In the job's output at its start, with the time; later by `why`, to the user as well, and by `status`."""
    short_sessions(site)
    job_id = start_long_job(site)
    when = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S+"
    said = f"^qrmi-slurm: the session on ibm_demo ends at {when}, and the job may run longer$"
    assert re.search(said, site.cluster.job_output(job_id), re.MULTILINE), site.cluster.job_output(job_id)
    wait_expired(site)
    wait_for(lambda: status_of(site, job_id) == ["expired"], "status to say so", 10)
    for as_user in (False, True):
        assert_why(site, job_id, "runs with ibm_demo", "", as_user=as_user)
    said = f"Job {job_id} runs with ibm_demo .*, but the session on ibm_demo has expired, at "
    assert re.search(said, site.command("why", str(job_id)).stdout)
    assert "its session has ended" in site.command("status").stdout
    let_go(site, job_id)
    assert site.cluster.wait_job_over(job_id).state == "COMPLETED"
    assert_nothing_left(site, job_id)


@pytest.mark.one_release
def test_a_session_lives_as_long_as_slurm_lets_its_job_run(site: Site) -> None:
    """OverTimeLimit and the site's margin are taken into its time to live, and slurmctld is not asked for them."""
    conf = site.cluster.slurm_conf.read_text()
    try:
        site.cluster.slurm_conf.write_text(conf.replace("PartitionName=", "OverTimeLimit=9\nPartitionName="))
        site.cluster.slurm("scontrol", "reconfigure")
        lived = []
        for margin in ((), ("--session-margin=0",)):
            site.plugstack(site.plugstack_line(*margin))
            job_id = site.cluster.sbatch("#!/bin/sh\ntrue\n", "--qpu=ibm_demo", "--time=2")
            assert site.cluster.wait_job_over(job_id).state == "COMPLETED"
            assert "ends at" not in site.cluster.job_output(job_id)
            lived.append(site.emulator.sessions()[-1]["max_ttl"])
        site.cluster.slurm_conf.write_text(conf.replace("MaxTime=", "OverTimeLimit=UNLIMITED MaxTime="))
        job_id = site.cluster.sbatch("#!/bin/sh\ntrue\n", "--qpu=ibm_demo", "--time=2")
        assert site.cluster.wait_job_over(job_id).state == "COMPLETED"
        assert "and the job may run longer" in site.cluster.job_output(job_id)
        lived.append(site.emulator.sessions()[-1]["max_ttl"])
    finally:
        site.cluster.slurm_conf.write_text(conf)
        site.cluster.slurm("scontrol", "reconfigure")
    assert lived == [120 + 540 + 60, 120 + 540, 28800]
