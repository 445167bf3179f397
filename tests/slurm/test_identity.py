"""A job is more than its number: whose QPUs are on record is decided by cluster, id, run, start time and version."""

import fcntl
import json
import shutil
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from slurm.aftermath import LONG_SCRIPT, assert_nothing_left, assert_why, let_go, start_long_job
from slurm.cluster import HOOKS_FOLDER, ClusterOptions
from slurm.jobs import PRINT_ENVIRONMENT, environment_of
from slurm.polling import wait_for
from slurm.site import Site, SiteOptions

OTHER_JOB = 900_200

# Each begins with the one before and the prefix of QRMI's variables.
LONGER_NAMES = ("x", "x_QRMI", "x_QRMI_JOB")

# Waits before the first node's Prolog, on the first node only.
WAIT_ON_FIRST = """#!/bin/sh
while [ "$SLURMD_NODENAME" = n1 ] && [ -e {hold} ]; do /bin/sleep 0.05; done
"""


@pytest.fixture(scope="module")
def own_site() -> Iterator[Site]:
    """A site of this module's own, whose controller forgets its jobs; steps do not wait for other nodes' Prologs."""
    cluster = ClusterOptions(nodes=2, users=2, settings={"PrologFlags": "Alloc,NoHold"})
    backends = dict.fromkeys(("ibm_demo", "ibm_second", *LONGER_NAMES), "FakeSherbrooke")
    with Site(SiteOptions(cluster=cluster, backends=backends, watched=True)) as site:
        yield site


@pytest.fixture
def forgotten(own_site: Site) -> Site:
    """A site on which job 1 held ibm_demo when all of Slurm was killed and its state was lost."""
    own_site.reset()
    own_site.cluster.lose_state()
    for user in own_site.cluster.users:
        for name in ("go-1", "slurm-1.out"):
            (user.home / name).unlink(missing_ok=True)
    assert start_long_job(own_site) == 1
    own_site.cluster.lose_state()
    (own_site.cluster.user.home / "slurm-1.out").unlink()
    assert len(own_site.emulator.open_sessions()) == 1
    return own_site


def token_in(site: Site, job_id: int, qpu: str) -> str:
    """Return the token in the environment that a job has printed."""
    return environment_of(site.cluster.job_output(job_id))[f"{qpu}_QRMI_JOB_ACQUISITION_TOKEN"]


@pytest.mark.parametrize("qpu", ["ibm_second", "ibm_demo"])
def test_a_job_with_the_number_of_a_dead_one_gets_its_own_session(forgotten: Site, qpu: str) -> None:
    """The dead job's is closed, also where both asked for the same QPU."""
    (dead,) = forgotten.emulator.open_sessions()
    job_id = forgotten.cluster.sbatch(PRINT_ENVIRONMENT, f"--qpu={qpu}", "--nodelist=n1")
    assert job_id == 1
    assert forgotten.cluster.wait_job_over(job_id).state == "COMPLETED"
    found = environment_of(forgotten.cluster.job_output(job_id))
    assert found["QRMI_JOB_QPU_RESOURCES"] == qpu
    assert token_in(forgotten, job_id, qpu) != dead["id"]
    assert len(forgotten.emulator.sessions()) >= 2
    assert_nothing_left(forgotten, job_id)


def test_what_the_dead_job_held_is_not_lost_where_it_cannot_be_released_at_once(forgotten: Site) -> None:
    """It stays on record as that job's, another user's; recover releases it, and nothing of the living one's."""
    with forgotten.emulator.fault(call="update_session", kind="error", status=500):
        other = forgotten.cluster.users[1]
        job_id = forgotten.cluster.sbatch(LONG_SCRIPT, "--qpu=ibm_second", "--nodelist=n1", user=other)
        wait_for(lambda: len(forgotten.emulator.open_sessions()) == 2, "the second session", 30)
        forgotten.cluster.wait_job(job_id, {"RUNNING"})
    assert job_id == 1
    held = json.loads(forgotten.command("status", "--json").stdout)["qpus"]
    assert [(one["job_id"], one["qpu"], one["state"], one["uid"]) for one in held] == [
        (1, "ibm_second", "acquired", other.uid),
        (1, "ibm_demo", "releasing", forgotten.cluster.user.uid),
    ]
    forgotten.recover("--now")
    (living,) = forgotten.emulator.open_sessions()
    assert forgotten.cluster.job(job_id).state == "RUNNING"
    (other.home / f"go-{job_id}").touch()
    assert forgotten.cluster.wait_job_over(job_id).state == "COMPLETED"
    assert_nothing_left(forgotten, job_id)
    (ledger,) = forgotten.state_dir.glob("*/.accounting/*")
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert [(line["uid"], line["qpu"], line["result"]) for line in lines] == [
        (forgotten.cluster.user.uid, "ibm_demo", "released"),
        (other.uid, "ibm_second", "released"),
    ]
    assert living["id"] in {line["token"] for line in lines}


def test_recover_releases_what_a_dead_job_held_while_another_has_its_number(forgotten: Site) -> None:
    """That one asked for no QPU, so no Prolog has looked at the record."""
    job_id = forgotten.cluster.sbatch(LONG_SCRIPT, "--nodelist=n1")
    assert job_id == 1
    forgotten.cluster.wait_job(job_id, {"RUNNING"})
    (result,) = forgotten.recover()["jobs"]
    assert (result["reason"], result["outcome"]) == (
        "the job has ended, and a later one has its number",
        "released",
    )
    let_go(forgotten, job_id)
    forgotten.cluster.wait_job_over(job_id)
    assert_nothing_left(forgotten, job_id)


@pytest.mark.one_release
def test_a_job_whose_prolog_is_killed_does_not_run_with_the_dead_jobs_session(forgotten: Site) -> None:
    """Prolog was waiting for the record's lock; the dead job's exports are still there."""
    folder = forgotten.folder_of(1)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        job_id = forgotten.cluster.sbatch(PRINT_ENVIRONMENT, "--qpu=ibm_demo", "--nodelist=n1")
        assert job_id == 1
        forgotten.kill_prolog()
        forgotten.cluster.wait_job(job_id)
    assert "has no QPU: Prolog on n1 was killed by signal 9" in forgotten.cluster.job_output(job_id)
    forgotten.cluster.wait_job_over(job_id)
    assert_why(forgotten, job_id, "failed: Prolog on n1 was killed by signal 9")
    forgotten.recover("--now")
    assert_nothing_left(forgotten, job_id)


def test_a_step_on_another_node_waits_for_its_own_jobs_exports(own_site: Site) -> None:
    """The dead job's are on the state directory that the nodes share, and the first node's Prolog has not begun."""
    site = own_site
    site.reset()
    site.cluster.lose_state()
    hold = site.cluster.folder / "hold-first"
    script = site.cluster.etc / "prolog.d" / "95-first"
    script.write_text(WAIT_ON_FIRST.format(hold=hold))
    script.chmod(0o755)
    try:
        dead = site.cluster.popen_as_user(["srun", "-N2", "--qpu=ibm_demo", "sh", "-c", "echo begun; sleep 300"])
        assert dead.stdout is not None
        assert dead.stdout.readline() == "begun\n"
        (session,) = site.emulator.open_sessions()
        site.cluster.lose_state()
        dead.kill()
        dead.communicate()
        record = site.record_of(1)
        hold.touch()
        print_it = 'echo "$SLURMD_NODENAME $SLURM_JOB_ID $ibm_demo_QRMI_JOB_ACQUISITION_TOKEN"'
        step = site.cluster.popen_as_user(["srun", "-N2", "--qpu=ibm_demo", "sh", "-c", print_it])
        exports = site.folder_of(1) / "exports"
        wait_for(lambda: not exports.exists(), "the exports to be removed", 20)
        assert site.record_of(1) == record, "the first node's Prolog has not begun"
        hold.unlink()
        out, err = step.communicate(timeout=60)
        assert step.returncode == 0, err
        lines = sorted(line.split() for line in out.splitlines())
        assert [line[:2] for line in lines] == [["n1", "1"], ["n2", "1"]]
        assert lines[0][2] == lines[1][2] != session["id"]
    finally:
        hold.unlink(missing_ok=True)
        script.unlink()
    site.cluster.wait_nodes_idle()
    assert_nothing_left(site, 1)


# --- another cluster's records ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cluster", "state", "changes"),
    [
        ("cluster", "acquired", {}),
        ("other", "acquired", {"boot_id": "that of before"}),
        pytest.param("other", "releasing", {}, marks=pytest.mark.one_release),
    ],
    ids=["called cluster", "other boot", "releasing"],
)
def test_recover_touches_no_other_clusters_records(
    site: Site, cluster: str, state: str, changes: dict[str, str]
) -> None:
    """It shares the state directory, has a node n1 as well, and a job that this cluster knows nothing of."""
    site.run_hook("prolog", OTHER_JOB, SLURM_CLUSTER_NAME=cluster)
    assert len(site.emulator.open_sessions()) == 1
    path = site.state_dir / cluster / str(OTHER_JOB) / "record.json"
    record = json.loads(path.read_text())
    record["entries"][0]["state"] = state
    path.write_text(json.dumps(record | changes))
    before = path.read_bytes()
    (result,) = site.recover("--now")["jobs"]
    assert (result["step"], result["reason"]) == ("leave", f"it belongs to cluster {cluster}")
    assert path.read_bytes() == before
    assert len(site.emulator.open_sessions()) == 1
    path.write_text("not a record of this version")
    site.recover("--now")
    assert path.exists()
    path.write_bytes(before)
    site.run_hook("epilog", OTHER_JOB, SLURM_CLUSTER_NAME=cluster)
    assert site.emulator.open_sessions() == []
    shutil.rmtree(HOOKS_FOLDER / cluster)


# --- a newer version's records ------------------------------------------------------------------------------------


@pytest.mark.one_release
def test_a_newer_versions_record_is_left_alone_and_reported(site: Site) -> None:
    """While its job lives and after it: recover, Epilog and a Prolog that runs again do nothing to it."""
    job_id = start_long_job(site)
    path = site.folder_of(job_id) / "record.json"
    own = json.loads(path.read_text())
    newer = json.dumps(own | {"version": own["version"] + 1, "entries": "in another form"})
    path.write_text(newer)
    sentence = f"{path} has version 2 of a newer qrmi-slurm, and is left alone"
    said = site.recover("--now")
    assert (said["left"], said["jobs"][0]["step"]) == (0, "leave")
    assert sentence in said["jobs"][0]["reason"]
    assert sentence in site.command("recover").stdout
    assert sentence in site.command("status").stdout
    assert sentence in site.command("doctor").stdout
    assert sentence in site.command("release", "--yes", str(job_id)).stderr
    assert len(site.emulator.open_sessions()) == 1
    let_go(site, job_id)
    assert site.cluster.wait_job_over(job_id).state == "COMPLETED"
    assert path.read_text() == newer
    assert site.recover("--now")["left"] == 1, "no job uses it any more"
    assert len(site.emulator.open_sessions()) == 1
    path.write_text(json.dumps(own))
    site.recover("--now")
    assert_nothing_left(site, job_id)


@pytest.mark.one_release
def test_a_job_that_is_requeued_to_an_older_version_leaves_the_newer_ones_record(site: Site) -> None:
    """It gets its own QPU, and what the newer version has recorded is that one's to release."""
    site.run_hook("prolog", OTHER_JOB)
    path = site.folder_of(OTHER_JOB) / "record.json"
    own = json.loads(path.read_text())
    path.write_text(json.dumps(own | {"version": own["version"] + 1}))
    site.run_hook("prolog", OTHER_JOB, SLURM_JOB_RESTART_COUNT="1")
    assert len(site.emulator.open_sessions()) == 2
    assert json.loads(path.read_text())["restart_count"] == 1
    site.run_hook("epilog", OTHER_JOB, SLURM_JOB_RESTART_COUNT="1")
    (aside,) = path.parent.parent.glob(f"{OTHER_JOB}.*/record.json")
    assert len(site.emulator.open_sessions()) == 1
    aside.write_text(json.dumps(own))
    site.recover("--now")
    assert site.emulator.open_sessions() == []


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("selection", [pytest.param("x", marks=pytest.mark.one_release), "x,x_QRMI", "x_*"])
def test_credentials_for_a_qpu_are_no_other_qpus(own_site: Site, selection: str) -> None:
    """The site's key is for x, the user's are for the two whose names begin with it."""
    site = own_site
    site.reset()
    resources = [site.emulator.resource(name) for name in LONGER_NAMES]
    own = {f"{one['name']}_{name}": value for one in resources[1:] for name, value in one["environment"].items()}
    site.config([resources[0], *({**one, "environment": {}} for one in resources[1:])])
    job_id = site.cluster.sbatch(PRINT_ENVIRONMENT, f"--qpu={selection}", env=own)
    assert site.cluster.wait_job_over(job_id).state == "COMPLETED", site.cluster.job_output(job_id)
    found = environment_of(site.cluster.job_output(job_id))
    wanted = ["x_QRMI"] if selection == "x_*" else selection.split(",")
    assert found["QRMI_JOB_QPU_RESOURCES"].split(",") == wanted
    assert_nothing_left(site, job_id)


# --- a job that gives its first node back ---------------------------------------------------------------------------

GIVE_BACK = """#!/bin/sh
echo "$SLURM_JOB_ID"
scontrol update JobId=$SLURM_JOB_ID NodeList=n2 >/dev/null
while [ ! -e looked ]; do sleep 0.05; done
. ./slurm_job_${SLURM_JOB_ID}_resize.sh
srun -n1 env
"""


class Shrunk(NamedTuple):
    """A job that has given back its first node, has then started a step, and has ended."""

    job_id: int
    open_sessions: int  # in between
    status: int
    output: str
    error: str


def shrink(site: Site) -> Shrunk:
    """Run such a job, and recover in between."""
    script = site.cluster.user.home / "give-back.sh"
    script.write_text(GIVE_BACK)
    script.chmod(0o755)
    looked = site.cluster.user.home / "looked"
    looked.unlink(missing_ok=True)
    job = site.cluster.popen_as_user(["salloc", "--qpu=ibm_demo", "--nodelist=n[1-2]", str(script)])
    assert job.stdout is not None
    job_id = int(job.stdout.readline())
    site.wait_hook_run("after-epilog", job_id)
    site.recover("--now")
    count = len(site.emulator.open_sessions())
    looked.touch()
    out, err = job.communicate(timeout=60)
    site.cluster.wait_nodes_idle()
    return Shrunk(job_id, count, job.returncode, out, err)


def test_a_job_that_gives_its_first_node_back_keeps_its_qpu(site: Site) -> None:
    """recover leaves it alone, and at the job's end Epilog on its new first node releases it."""
    job = shrink(site)
    assert job.open_sessions == 1
    assert job.status == 0, job.error
    assert environment_of(job.output)["QRMI_JOB_QPU_RESOURCES"] == "ibm_demo"
    assert_nothing_left(site, job.job_id)


def test_a_job_that_gives_its_brokers_node_back_is_told(site: Site) -> None:
    """No other node can reach the broker, so the QPU is released at once."""
    resource = {**site.emulator.resource("ibm_demo"), "slurm": {"broker": True}}
    site.config([resource])
    job = shrink(site)
    assert job.open_sessions == 0
    assert job.status != 0
    reason = "its first node n1 was taken from it, and the QPU's credential broker was there"
    assert reason in job.output + job.error
    assert_why(site, job.job_id, f"failed: {reason}", "qrmi-slurm-prolog, on n2")
    assert_nothing_left(site, job.job_id)
