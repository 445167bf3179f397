"""`qrmi-slurm why` answers, for a job's user and for root, from every node, whatever users have written into a job."""

import json
from collections.abc import Iterator

import pytest

from slurm.aftermath import why_without
from slurm.cluster import ClusterOptions, User
from slurm.polling import wait_for
from slurm.site import BIN, Site, SiteOptions

SLEEP = "#!/bin/sh\necho begun\nsleep 300\n"
DEMO = "--qpu=ibm_demo"
# Where no state directory is seen, as on a login node.
ELSEWHERE = "--state-dir=/nonexistent"


@pytest.fixture(scope="module")
def private_site() -> Iterator[Site]:
    """Start a site whose QPUs are licenses, and where users see no jobs of others."""
    options = SiteOptions(
        cluster=ClusterOptions(nodes=1, users=2, settings={"PrivateData": "jobs"}),
        backends={"ibm_demo": "FakeSherbrooke", "ibm_second": "FakeSherbrooke"},
        licenses={"qpu_ibm_demo": 1, "qpu_ibm_second": 4},
    )
    with Site(options) as site:
        yield site


@pytest.fixture
def site(private_site: Site) -> Site:
    """Return the site without jobs."""
    private_site.reset()
    return private_site


def why(site: Site, *words: str, user: User | None = None, status: int = 0) -> str:
    """Run the command as a user, or as root, and return what it printed."""
    if user is not None:
        done = site.cluster.run_as_user([BIN / "qrmi-slurm", "why", *words], user=user)
    else:
        done = site.command("why", *words)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if status == 0 else done.stderr


def first(site: Site, *words: str, user: User | None = None) -> str:
    """Return the first line that it printed."""
    return why(site, *words, user=user).splitlines()[0]


def begun(site: Site, *args: str) -> int:
    """Submit a job and wait until its script has started."""
    job_id = site.cluster.sbatch(SLEEP, *args)
    wait_for(lambda: "begun" in site.cluster.job_output(job_id), "the script to begin", 30)
    return job_id


def wait_for_license(site: Site, job_id: int | str) -> None:
    """Wait until Slurm has tried to start a job and reports that it waits for a license."""
    wait_for(lambda: site.cluster.job(job_id).reason == "Licenses", f"job {job_id} to wait", 30)


def test_who_has_the_qpu_and_until_when(site: Site) -> None:
    """Its user, root and a login node get the answer; another user sees no such job."""
    owner, other = site.cluster.users
    holder = begun(site, DEMO, "--time=30")
    waiting = site.cluster.sbatch(SLEEP, DEMO)
    wait_for_license(site, waiting)
    has = f": job {holder} ({owner.name}) has it, until "
    assert first(site, str(waiting)).startswith(f"Job {waiting} waits for ibm_demo{has}")
    assert first(site, str(waiting), user=owner).startswith(f"Job {waiting} waits for the license qpu_ibm_demo{has}")
    assert site.command("qpus").returncode == 0  # root publishes the list for users
    assert first(site, str(waiting), user=owner).startswith(f"Job {waiting} waits for ibm_demo{has}")
    (told,) = json.loads(why(site, "--json", str(waiting)))["jobs"]
    assert (told["cause"], told["qpus"], told["job"]) == ("license-taken", ["ibm_demo"], str(waiting))
    assert told["until_s"] > 0
    assert f"Slurm shows no job {waiting}: " in why(site, str(waiting), user=other, status=1)
    foreign = site.cluster.sbatch(SLEEP, DEMO, user=other)
    wait_for_license(site, foreign)
    said = first(site, str(foreign), user=other)
    site.cluster.slurm("scancel", str(foreign))
    assert said == f"Job {foreign} waits for ibm_demo: 1 job that you may not see has it"
    for words, user, qpu in (
        ((), owner, "ibm_demo"),
        ((), None, "ibm_demo"),
        ((ELSEWHERE,), None, "ibm_demo"),
        ((ELSEWHERE,), owner, "the license qpu_ibm_demo"),
    ):
        assert first(site, *words, str(holder), user=user).startswith(f"Job {holder} runs with {qpu} until ")


@pytest.mark.one_release
def test_what_is_said_of_a_drained_qpu_and_one_whose_service_is_offline(site: Site) -> None:
    """Who took it out of service, since when and why."""
    assert site.command("drain", "ibm_demo", "--reason", "new [bold] fridge").returncode == 0
    job_id = site.cluster.sbatch(SLEEP, DEMO)
    wait_for_license(site, job_id)
    said = first(site, str(job_id), user=site.cluster.user)
    assert "which is out of service since 20" in said
    assert said.endswith(": drained: new [bold] fridge (says root)")
    assert site.command("resume", "ibm_demo").returncode == 0


@pytest.mark.one_release
def test_a_job_that_failed_for_its_qpu(site: Site) -> None:
    """The reason is known on its node after Epilog, to its user and to root; elsewhere its user's output has it."""
    owner, other = site.cluster.users
    with site.emulator.fault(call="iam_token", kind="error", status=400):
        job_id = site.cluster.sbatch(SLEEP, DEMO)
        site.cluster.wait_job_over(job_id)
    assert not site.folder_of(job_id).exists()
    reason = site.cluster.job_output(job_id).splitlines()[0].partition(" has no QPU: ")[2]
    assert reason.startswith("ibm_demo could not be acquired: ")
    for words, user in (((), None), ((), owner), ((ELSEWHERE,), owner)):
        assert first(site, *words, str(job_id), user=user).startswith(f"Job {job_id} failed: {reason[:200]}")
    said = why(site, ELSEWHERE, str(job_id))
    assert said.startswith(f"Job {job_id} failed: its script ended with exit status 1")
    assert f"can be seen on n1, by qrmi-slurm why {job_id} or in its output, {owner.home}/slurm-{job_id}.out" in said
    assert f"Slurm shows no job {job_id}: " in why(site, str(job_id), user=other, status=1)
    kept = site.folder_of(job_id).with_name(".failed") / str(job_id)
    for user, status in ((owner, 0), (other, 1)):
        assert site.cluster.run_as_user(["cat", kept], user=user).returncode == status


def test_arrays_and_heterogeneous_jobs(site: Site) -> None:
    """One of their jobs, or all of them in few lines."""
    holder = begun(site, DEMO)
    array = site.cluster.sbatch(SLEEP, DEMO, "--array=1-40%30")
    het = site.cluster.sbatch(SLEEP, DEMO, "--begin=now+1hour", ":", "-N1")
    wait_for(lambda: "Licenses" in {one.reason for one in site.cluster.jobs(array)}, "the array to wait", 30)
    said = first(site, f"{array}_3")
    assert said.startswith(f"Job {array}_3 waits") and f"job {holder} " in said, said
    assert len(why(site, str(array)).splitlines()) < 24
    assert first(site, str(het)) == "2 jobs: 2 PENDING"
    assert first(site, f"{het}+1").startswith(f"Job {het}+1 waits: ")
    for unknown in (f"{array}_77", f"{het}+7", "999999"):
        assert f"Slurm shows no job {unknown}: " in why(site, unknown, status=1)
    assert "is not a job's id" in why(site, f"{array}_[1-3]", status=2)


def test_hostile_text(site: Site) -> None:
    """Line breaks, escape sequences and forged answers in a job's name, comment and files stay where they are."""
    holder = begun(site, DEMO)
    evil = f"x\n   StdOut=/etc/shadow\n\x1b[2J\u202e|JobId={holder} RUNNING qrmi-slurm:requeued=9,busy,z,1"
    job_id = site.cluster.sbatch(SLEEP, DEMO, f"--job-name={evil}", f"--comment={evil}", f"--output={evil}")
    squeue = ("squeue", "--noheader", "--format=%r", f"--jobs={job_id}")
    wait_for(lambda: site.cluster.slurm(*squeue).strip() == "Licenses", f"job {job_id} to wait", 30)
    for user in (site.cluster.user, None):
        printed = why(site, str(job_id), user=user)
        assert f": job {holder} " in printed.splitlines()[0]
        assert "put back" not in printed
    site.cluster.slurm("scancel", str(job_id))
    for user in (site.cluster.user, None):
        printed = why(site, str(job_id), user=user)
        assert printed.startswith(f"Job {job_id} was cancelled")
        assert "\x1b" not in printed and "\u202e" not in printed and "shadow" not in printed


@pytest.mark.one_release
def test_slurmctld_cannot_be_asked(site: Site) -> None:
    """It says so; what this node has recorded of a job is told all the same."""
    job_id = begun(site, DEMO)
    for asked, status, said in (
        (job_id, 0, f"Job {job_id} holds ibm_demo, by what"),
        (999999, 2, "error: squeue failed"),
    ):
        done = why_without(site, "Unable to contact slurm controller (connect failure)", str(asked))
        assert done.returncode == status, done.stderr
        assert (done.stdout or done.stderr).startswith(said)
        assert "Unable to contact slurm controller" in done.stdout + done.stderr
