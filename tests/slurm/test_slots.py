"""QPUs that are shared by slots: the number of a license that a job was granted is how many slots it has."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from slurm.cluster import ClusterError, ClusterOptions
from slurm.jobs import PRINT_ENVIRONMENT, environment_of
from slurm.polling import wait_for
from slurm.release import LICENSES_IN_FIRST_COMPONENT, LICENSES_IN_PLACE_OF_OTHERS
from slurm.site import Site, SiteOptions

# ibm_demo has slots, and a license that counts its jobs. ibm_second has neither.
OPTION = "--qpu-slots-license:ibm_demo=lanes"
LICENSES = {"lanes": 4, "qpu_ibm_demo": 2, "matlab": 1}
SLOTS = "ibm_demo_QRMI_JOB_QPU_SLOTS"
NO_SLOTS = "ibm_demo is shared by slots, and this job has none: ask for some with --licenses=lanes:NUMBER"


@pytest.fixture(scope="module")
def slots_site() -> Iterator[Site]:
    """Start a site with a QPU that has four slots."""
    backends = dict.fromkeys(("ibm_demo", "ibm_second"), "FakeSherbrooke")
    options = SiteOptions(ClusterOptions(nodes=2, users=2), backends, (OPTION,), licenses=LICENSES)
    with Site(options) as started:
        yield started


@pytest.fixture
def site(slots_site: Site) -> Site:
    """Return the module's site, with its config and without jobs."""
    slots_site.cluster.wait_nodes_idle()
    slots = {"ibm_demo": {"capacity": 2}, "ibm_second": {"license": None}}
    slots_site.config([{**slots_site.emulator.resource(name), "slurm": slots[name]} for name in slots])
    return slots_site


def ran(site: Site, job_id: int) -> dict[str, str]:
    """Return the environment of a job that has completed."""
    info = site.cluster.wait_job_over(job_id)
    output = site.cluster.job_output(job_id)
    assert info.state == "COMPLETED", output
    return environment_of(output)


def waiting(site: Site, *options: str) -> int:
    """Submit a job that its user may change before it starts."""
    return site.cluster.sbatch(PRINT_ENVIRONMENT, "--hold", *options)


def refusal(site: Site, *options: str) -> str:
    """Return what sbatch says of a job that is refused."""
    with pytest.raises(ClusterError) as caught:
        site.cluster.sbatch(PRINT_ENVIRONMENT, *options)
    return str(caught.value)


def bypassing(site: Site, *options: str) -> int:
    """Submit a job past job_submit.lua, which finds no slots in the catalogue."""
    path = site.cluster.etc / "qrmi_catalogue.lua"
    text = path.read_text()
    path.write_text(re.sub(r', slots = "lanes"', "", text).replace("sha256 ", "sha256 0"))
    try:
        return site.cluster.sbatch(PRINT_ENVIRONMENT, *options)
    finally:
        path.write_text(text)


def test_the_number_of_granted_licenses_is_how_many_slots_a_job_has(site: Site) -> None:
    """Tasks see it for that QPU alone; QRMI got it when it acquired the QPU."""
    job_id = site.cluster.sbatch(
        f"#!/bin/sh\nenv\necho begun\nwhile [ ! -e {site.cluster.user.home}/go ]; do sleep 0.05; done\n",
        "--qpu=ibm_demo,ibm_second",
        "--licenses=lanes:3",
    )
    wait_for(lambda: "begun" in site.cluster.job_output(job_id), "the job to begin", 30)
    record = site.record_of(job_id)
    assert record is not None
    called_with: dict[str, dict[str, Any]] = {entry["name"]: entry["environment"] for entry in record["entries"]}
    assert (called_with["ibm_demo"]["QRMI_JOB_QPU_SLOTS"], called_with["ibm_demo"][SLOTS]) == ("3", "3")
    assert not [name for name in called_with["ibm_second"] if "SLOTS" in name]
    (site.cluster.user.home / "go").touch()
    found = ran(site, job_id)
    assert {name: value for name, value in found.items() if "SLOTS" in name} == {SLOTS: "3"}


def test_a_job_without_slots_is_refused_at_submission_and_by_prolog(site: Site) -> None:
    """In the same words, and for good: no job waits for slots that it has not asked for."""
    for options in ([], ["--licenses=qpu_ibm_demo:1"], ["--licenses=lane:1"], ["--licenses=lanes:0"]):
        assert NO_SLOTS in refusal(site, "--qpu=ibm_demo", *options)
    assert "nvalid license" in refusal(site, "--qpu=ibm_demo", "--licenses=lanes:5")
    sessions = len(site.emulator.sessions())
    job_id = bypassing(site, "--qpu=ibm_demo")
    info = site.cluster.wait_job_over(job_id)
    assert (info.state, info.fields["Restarts"]) == ("FAILED", "0")
    assert f"qrmi-slurm: job {job_id} has no QPU: {NO_SLOTS}" in site.cluster.job_output(job_id)
    assert len(site.emulator.sessions()) == sessions
    assert SLOTS not in ran(site, site.cluster.sbatch(PRINT_ENVIRONMENT, "--qpu=ibm_second"))


@pytest.mark.one_release
def test_slots_run_out_like_any_license(site: Site) -> None:
    """A job waits for them in the queue, and its own license counts beside."""
    gate = site.cluster.user.home / "slots-gate"
    first = site.cluster.sbatch(
        f"#!/bin/sh\nwhile [ ! -e {gate} ]; do sleep 0.05; done\n", "--qpu=ibm_demo", "--licenses=lanes:3"
    )
    site.cluster.wait_job(first, {"RUNNING"})
    second = site.cluster.sbatch(PRINT_ENVIRONMENT, "--qpu=ibm_demo", "--licenses=lanes:2")
    wait_for(lambda: site.cluster.job(second).reason == "Licenses", "the second job to wait", 20)
    assert site.cluster.job(first).fields["Licenses"] == "lanes:3,qpu_ibm_demo:1"
    done = site.cluster.run_as_user(["scontrol", "update", f"JobId={first}", "Licenses=qpu_ibm_demo:1"])
    assert "nvalid license" in done.stderr, "a running job keeps its slots"
    gate.touch()
    assert ran(site, second)[SLOTS] == "2"


@pytest.mark.one_release
def test_a_waiting_job_may_change_how_many_slots_it_wants(site: Site) -> None:
    """But it cannot give all of them back."""
    job_id = waiting(site, "--qpu=ibm_demo", "--licenses=lanes:3")
    for licenses in ("", "qpu_ibm_demo:1"):
        done = site.cluster.run_as_user(["scontrol", "update", f"JobId={job_id}", f"Licenses={licenses}"])
        assert "nvalid license" in done.stderr, done
    done = site.cluster.run_as_user(["scontrol", "update", f"JobId={job_id}", "Licenses=lanes:1"])
    assert done.returncode == 0, done.stderr
    site.cluster.slurm("scontrol", "release", str(job_id))
    assert ran(site, job_id)[SLOTS] == "1"


def test_components_of_a_heterogeneous_job(site: Site) -> None:
    """From 23.02 on only the first can have licenses, and so slots."""
    options = ("--qpu=ibm_demo", "--licenses=lanes:2")
    job_id = site.cluster.sbatch(PRINT_ENVIRONMENT, *options, ":", "--qpu=ibm_second")
    assert ran(site, job_id)[SLOTS] == "2"
    if LICENSES_IN_FIRST_COMPONENT.is_here:
        sentence = "Slurm accepts licenses only in a heterogeneous job's first component: put --qpu=ibm_demo there"
        assert sentence in refusal(site, "--qpu=ibm_second", ":", "--qpu=ibm_demo")
        return
    job_id = site.cluster.sbatch("#!/bin/sh\nsrun --het-group=1 env\n", "--qpu=ibm_second", ":", *options)
    assert ran(site, job_id)[SLOTS] == "2"


def test_of_licenses_in_place_of_each_other_the_granted_one_counts(site: Site) -> None:
    """From 25.05 on a job may ask for `a|b`; Prolog is told that, and has to ask which of them the job got."""
    site.config([{**site.emulator.resource("ibm_demo"), "slurm": {"license": None}}])
    if not LICENSES_IN_PLACE_OF_OTHERS.is_here:
        assert "nvalid license" in refusal(site, "--qpu=ibm_demo", "--licenses=lanes:2|matlab:1")
        return
    jobs = [
        site.cluster.sbatch(PRINT_ENVIRONMENT, "--qpu=ibm_demo", f"--licenses={licenses}")
        for licenses in ("lanes:2|matlab:1", "matlab:1|lanes:2")
    ]
    assert ran(site, jobs[0])[SLOTS] == "2"
    assert site.cluster.wait_job_over(jobs[1]).state == "FAILED"
    assert NO_SLOTS in site.cluster.job_output(jobs[1])


@pytest.mark.one_release
def test_admins_are_told_of_what_does_not_fit(site: Site) -> None:
    """A license that Slurm does not have, a resource that is not in the config, two options for one resource."""
    try:
        site.plugstack(site.plugstack_line("--qpu-slots-license:ibm_demo=lane", "--qpu-slots-license:ibm_dmeo=lanes"))
        said = {line["name"]: line for line in json.loads(site.command("doctor", "--json").stdout)["lines"]}
        assert (said["slots"]["level"], said["config"]["level"]) == ("error", "error")
        assert "Slurm has no license lane (ibm_demo), so no job can have slots" in said["slots"]["message"]
        checked = site.command("validate-config")
        assert (checked.returncode, "did you mean ibm_demo?" in checked.stdout) == (1, True), checked
        site.plugstack(site.plugstack_line(OPTION, OPTION))
        job_id = site.cluster.sbatch(PRINT_ENVIRONMENT, "--qpu=ibm_demo", "--licenses=lanes:1")
        assert site.cluster.wait_job_over(job_id).state == "FAILED"
        assert "--qpu-slots-license:ibm_demo is given twice" in site.cluster.job_output(job_id)
    finally:
        site.plugstack(site.plugstack_line(OPTION))
    assert f" {OPTION}\n" in site.command("slurm-conf").stdout
