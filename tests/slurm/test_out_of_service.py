"""Jobs wait for a QPU that is offline or drained and start when it is back; those that left it open get another."""

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest

from slurm.cluster import ClusterOptions
from slurm.polling import wait_for
from slurm.site import BIN, Site, SiteOptions

SLEEP = "#!/bin/sh\necho begun\nsleep 300\n"
QUICK = "#!/bin/sh\necho ran\n"
DEMO = "--qpu=ibm_demo"
SECOND = "--qpu=ibm_second"
ANY = "--qpu=any:ibm_*"


@pytest.fixture(scope="module")
def counted_site() -> Iterator[Site]:
    """Start a site whose two QPUs are counted by licenses, one job at a time each."""
    options = SiteOptions(
        cluster=ClusterOptions(nodes=1),
        backends={"ibm_demo": "FakeSherbrooke", "ibm_second": "FakeSherbrooke"},
        licenses={"qpu_ibm_demo": 1, "qpu_ibm_second": 1, "other": 1},
    )
    with Site(options) as site:
        yield site


@pytest.fixture
def site(counted_site: Site) -> Site:
    """Return the site with all QPUs online and in service, and no jobs."""
    for name in counted_site.options.backends:
        state(counted_site, name, "online")
    for name in reservations(counted_site):
        counted_site.cluster.slurm("scontrol", "delete", f"ReservationName={name}")
    counted_site.reset()
    return counted_site


def state(site: Site, name: str, status: str) -> None:
    """Let the service say something else of a QPU."""
    site.emulator.control("POST", f"backends/{name}", {"status": status})


def reservations(site: Site) -> dict[str, str]:
    """Return scontrol's line of each reservation, by name."""
    lines = site.cluster.slurm("scontrol", "show", "reservations", "--oneliner").splitlines()
    return {match[1]: line for line in lines if (match := re.match(r"ReservationName=(\S+)", line))}


def sensor(site: Site, status: int = 0) -> dict[str, Any]:
    """Run the sensor and return what it says."""
    done = site.command("sensor", "--json")
    assert done.returncode == status, done.stdout + done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    assert bool(said["faults"]) is (status == 1)
    return said


def told(site: Site, *words: str) -> str:
    """Run one of the admin's commands, which must succeed, and return what it prints."""
    done = site.command(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def begun(site: Site, *args: str) -> int:
    """Start a job and wait until its script has begun."""
    job_id = site.cluster.sbatch(SLEEP, *args)
    wait_for(lambda: "begun" in site.cluster.job_output(job_id), "the script to begin", 20)
    return job_id


def wait_for_license(site: Site, job_id: int) -> None:
    """Wait until Slurm has tried a job and says that it waits for a license."""
    wait_for(lambda: site.cluster.job(job_id).reason == "Licenses", f"job {job_id} to wait", 20)


def stays_pending(site: Site, *job_ids: int) -> None:
    """Watch jobs for longer than slurmctld takes between two looks at the queue (sched_interval=2)."""
    end_s = time.monotonic() + 4
    while time.monotonic() < end_s:
        assert {site.cluster.job(job_id).state for job_id in job_ids} == {"PENDING"}
        time.sleep(0.2)


@pytest.mark.parametrize(("status", "word"), [("offline", "offline"), ("paused", "offline: paused")])
def test_jobs_wait_while_the_service_says_no(site: Site, status: str, word: str) -> None:
    """Once the sensor has seen it jobs wait, with and without a time limit, and start when it has seen it back."""
    state(site, "ibm_demo", status)
    said = sensor(site)
    assert said["changes"] == [{"license": "qpu_ibm_demo", "qpus": ["ibm_demo"], "notice": word}]
    assert said["out"] == {"ibm_demo": word}
    jobs = [site.cluster.sbatch(QUICK, DEMO, limit) for limit in ("--time=1", "--time=UNLIMITED")]
    other = site.cluster.sbatch(QUICK, SECOND)
    for job_id in jobs:
        wait_for_license(site, job_id)
    assert site.cluster.wait_job(other).state == "COMPLETED"
    assert sensor(site)["changes"] == []
    stays_pending(site, *jobs)
    state(site, "ibm_demo", "online")
    assert sensor(site)["changes"] == [{"license": "qpu_ibm_demo", "qpus": ["ibm_demo"], "notice": ""}]
    assert [site.cluster.wait_job(job_id).state for job_id in jobs] == ["COMPLETED", "COMPLETED"]
    assert not reservations(site)


def test_one_answer_that_does_not_come_is_no_outage(site: Site) -> None:
    """A QPU that gives no answer once stays in service, and one that was out stays out; the second time counts."""
    with site.emulator.fault(call="iam_token", kind="error", status=503):
        assert sensor(site)["changes"] == []
    assert sensor(site)["changes"] == []
    with site.emulator.fault(call="iam_token", kind="error", status=503):
        assert sensor(site)["changes"] == []
        assert {change["notice"] for change in sensor(site)["changes"]} == {"offline: unreachable"}
    assert set(reservations(site)) == {"qpu_out_qpu_ibm_demo", "qpu_out_qpu_ibm_second"}
    assert {change["notice"] for change in sensor(site)["changes"]} == {""}
    state(site, "ibm_demo", "paused")
    sensor(site)
    with site.emulator.fault(call="iam_token", kind="error", status=503):
        assert sensor(site)["changes"] == []
    assert sensor(site)["out"] == {"ibm_demo": "offline: paused"}


def test_what_the_sensor_takes_out_ends_by_itself(site: Site) -> None:
    """A sensor that dies keeps no QPU from its jobs for longer than an hour; one that lives renews in time."""
    state(site, "ibm_demo", "offline")
    sensor(site)
    assert " Duration=01:00:00 " in reservations(site)["qpu_out_qpu_ibm_demo"]
    site.cluster.slurm("scontrol", "update", "ReservationName=qpu_out_qpu_ibm_demo", "EndTime=now+20minutes")
    assert sensor(site)["changes"] == []
    assert " Duration=01:00:0" in reservations(site)["qpu_out_qpu_ibm_demo"]
    job_id = site.cluster.sbatch(QUICK, DEMO)
    wait_for_license(site, job_id)
    site.cluster.slurm("scontrol", "update", "ReservationName=qpu_out_qpu_ibm_demo", "EndTime=now+1")
    assert site.cluster.wait_job(job_id).state == "COMPLETED"


def test_a_drained_qpu(site: Site) -> None:
    """A running job keeps it, others wait, users read the reason, the sensor leaves it alone, and resume ends it."""
    sensor(site)
    running = begun(site, DEMO)
    out = told(site, "drain", "ibm_demo", "--reason", "new fridge [bold] = 5%, Flags=x")
    assert out == "ibm_demo: drained: new fridge [bold] = 5%, Flags=x (1 running job keeps it)\n"
    done = site.cluster.run_as_user(["sbatch", "--parsable", DEMO, "--wrap=true"])
    waiting = int(done.stdout)
    assert done.stderr == (
        "sbatch: qrmi-slurm: ibm_demo is out of service (drained: new fridge [bold] = 5%, Flags=x); "
        "the job waits until it is back\n"
    )
    wait_for_license(site, waiting)
    assert site.cluster.job(running).state == "RUNNING"
    listed = site.cluster.run_as_user([str(BIN / "qrmi-slurm"), "qpus"]).stdout
    for shown in (listed, told(site, "qpus")):
        row = next(line for line in shown.splitlines() if line.startswith("ibm_demo"))
        assert row.split()[2:4] == ["no", "drained"]
        assert row.endswith("drained: new fridge [bold] = 5%, Flags=x")
    looked_at = {line["name"]: line["level"] for line in json.loads(site.command("doctor", "--json").stdout)["lines"]}
    assert (looked_at["catalogue"], looked_at["sensor"]) == ("ok", "ok")
    site.cluster.slurm("scancel", str(running))
    site.cluster.wait_job(running)
    assert sensor(site)["changes"] == []
    stays_pending(site, waiting)
    assert told(site, "drain", "ibm_demo", "--reason", "later").startswith("ibm_demo: drained: later")
    assert told(site, "drain", "ibm_demo", "--reason", "later") == "ibm_demo: unchanged: drained: later\n"
    assert told(site, "resume", "ibm_demo") == "ibm_demo: in service\n"
    assert told(site, "resume", "ibm_demo") == "ibm_demo: unchanged: in service\n"
    assert site.cluster.wait_job(waiting).state == "COMPLETED"


def test_a_drain_outlives_slurmctld(site: Site) -> None:
    """The reason and the waiting are Slurm's to keep: after a restart both are there."""
    told(site, "drain", "ibm_demo", "--reason", "until Friday")
    site.cluster.stop_daemon("slurmctld")
    start_slurmctld(site)
    assert sensor(site)["out"] == {"ibm_demo": "drained: until Friday"}
    job_id = site.cluster.sbatch(QUICK, DEMO)
    wait_for_license(site, job_id)
    stays_pending(site, job_id)


def test_root_can_try_a_drained_qpu(site: Site) -> None:
    """A job of root's in the reservation has the QPU while everybody else waits."""
    told(site, "drain", "ibm_demo", "--reason", "new fridge")
    told_id = site.cluster.slurm(
        *("sbatch", "--parsable", "--reservation=qpu_out_qpu_ibm_demo", DEMO, "--output=/dev/null", "--wrap=true")
    )
    assert site.cluster.wait_job(int(told_id)).state == "COMPLETED"


def test_resume_of_a_qpu_that_went_offline_meanwhile(site: Site) -> None:
    """It stays out of service, now for the sensor's reason: its jobs would fail."""
    told(site, "drain", "ibm_demo", "--reason", "maintenance")
    state(site, "ibm_demo", "offline")
    assert sensor(site)["out"] == {"ibm_demo": "drained: maintenance"}
    assert told(site, "resume", "ibm_demo") == "ibm_demo: offline\n"
    state(site, "ibm_demo", "online")
    assert sensor(site)["out"] == {}
    assert not reservations(site)


def test_what_cannot_be_drained(site: Site) -> None:
    """A name that is not known, a QPU without a license, one that Slurm lacks: each is a sentence with a remedy."""
    cases = {
        "ibm_dmeo": "not known at this site: ibm_dmeo (did you mean ibm_demo?); known are: ibm_demo, ibm_none, ",
        "ibm_none": 'ibm_none has "license": null',
        "ibm_lost": "Slurm has no license qpu_ibm_lost",
    }
    none = {**site.emulator.resource("ibm_none"), "slurm": {"license": None}}
    site.config([site.emulator.resource("ibm_demo"), none, site.emulator.resource("ibm_lost")])
    for name, sentence in cases.items():
        done = site.command("drain", "ibm_demo", name, "--reason", "x")
        assert (done.returncode, done.stdout) == (2, "")
        assert sentence in done.stderr
        assert "hint: " in done.stderr
    assert not reservations(site), "nothing is done where one name is wrong"


def test_a_qpu_that_is_reserved_for_others(site: Site) -> None:
    """Neither a reservation that runs nor one to come keeps it in service; their own jobs wait as well."""
    user = site.cluster.user.name
    for name, start in (("now", "now"), ("later", "now+2hours")):
        site.cluster.slurm(
            *("scontrol", "create", "reservation", f"ReservationName={name}", "Licenses=qpu_ibm_demo:1"),
            *(f"Users={user}", "Flags=LICENSE_ONLY", f"StartTime={start}", "Duration=60"),
        )
    state(site, "ibm_demo", "paused")
    assert sensor(site)["out"] == {"ibm_demo": "offline: paused"}
    state(site, "ibm_demo", "online")
    assert told(site, "drain", "ibm_demo", "--reason", "x") == "ibm_demo: drained: x\n"
    assert sensor(site)["out"] == {"ibm_demo": "drained: x"}
    line = reservations(site)["qpu_out_qpu_ibm_demo"]
    assert " Duration=365-00:00:00 " in line
    assert " State=ACTIVE " in line
    jobs = [site.cluster.sbatch(QUICK, DEMO, "--time=1", *words) for words in ((), ("--reservation=now",))]
    for job_id in jobs:
        wait_for_license(site, job_id)
    stays_pending(site, *jobs)
    told(site, "resume", "ibm_demo")
    assert site.cluster.wait_job(jobs[1]).state == "COMPLETED"
    assert site.cluster.job(jobs[0]).state == "PENDING", "its user has reserved it, and the job does not say so"


def test_a_shared_license(site: Site) -> None:
    """QPUs that share one go together, which has to be said; the sensor takes it out only when all are offline."""
    shared = [{**site.emulator.resource(name), "slurm": {"license": "other"}} for name in ("ibm_demo", "ibm_second")]
    site.config(shared)
    done = site.command("drain", "ibm_demo", "--reason", "x")
    assert done.returncode == 2
    assert "ibm_demo and ibm_second share the license other: they go out of service together" in done.stderr
    assert told(site, "drain", "ibm_demo", "--yes", "--reason", "x") == "ibm_demo, ibm_second: drained: x\n"
    assert told(site, "resume", "ibm_second", "ibm_demo") == "ibm_demo, ibm_second: in service\n"
    state(site, "ibm_demo", "offline")
    assert sensor(site)["changes"] == []
    state(site, "ibm_second", "paused")
    assert sensor(site)["out"] == {"ibm_demo": "offline", "ibm_second": "offline"}


def licenses_of(site: Site, job_id: int | str) -> str:
    """Return what a job has."""
    return site.cluster.job(job_id).fields["Licenses"]


def test_jobs_that_left_the_qpu_open_are_moved(site: Site) -> None:
    """The one whose turn it is gets the license that is free; the next waits, and so does whoever left nothing open."""
    holders = {"qpu_ibm_demo:1": begun(site, DEMO), "qpu_ibm_second:1": begun(site, SECOND)}
    named = site.cluster.sbatch(SLEEP, DEMO)
    jobs = [site.cluster.sbatch(SLEEP, ANY) for _ in range(3)]
    for job_id in (named, *jobs):
        wait_for_license(site, job_id)
    # slurmctld's Lua takes turns: the first and the third have the same license, the second one has the other.
    mine, others = licenses_of(site, jobs[0]), licenses_of(site, jobs[1])
    assert {mine, others} == holders.keys()
    site.cluster.slurm("scancel", str(jobs[1]), *([str(named)] if others == "qpu_ibm_demo:1" else []))
    site.cluster.slurm("scancel", str(holders[others]))
    site.cluster.wait_job(holders[others])
    stays_pending(site, jobs[0], jobs[2])
    moved = {"job": str(jobs[0]), "before": {mine[:-2]: 1}, "after": {others[:-2]: 1}}
    assert sensor(site)["moves"] == [moved]
    site.cluster.wait_job(jobs[0], {"RUNNING"})
    assert licenses_of(site, jobs[0]) == others
    wait_for(lambda: "begun" in site.cluster.job_output(jobs[0]), "the script to begin", 20)
    assert {session["backend"] for session in site.emulator.open_sessions()} == {"ibm_demo", "ibm_second"}
    assert sensor(site)["moves"] == []
    assert site.cluster.job(holders[mine]).state == "RUNNING"
    assert site.cluster.job(jobs[2]).state == "PENDING"


def test_the_tasks_of_an_array_move_one_by_one(site: Site) -> None:
    """While a QPU is drained the tasks go one after another on the other; when it is back, one of them moves to it."""
    told(site, "drain", "ibm_demo", "--reason", "x")
    array = site.cluster.sbatch(SLEEP, ANY, "--array=1-3")
    wait_for(lambda: sum(state == "RUNNING" for state, _ in tasks(site, array).values()) == 1, "a task to run", 20)
    assert set(tasks(site, array).values()) == {("RUNNING", "qpu_ibm_second:1"), ("PENDING", "qpu_ibm_second:1")}
    assert sensor(site)["moves"] == []
    told(site, "resume", "ibm_demo")
    (move,) = sensor(site)["moves"]
    assert move == {"job": f"{array}_2", "before": {"qpu_ibm_second": 1}, "after": {"qpu_ibm_demo": 1}}
    wait_for(lambda: tasks(site, array)["2"][0] == "RUNNING", "the moved task to run", 20)
    assert tasks(site, array) == {
        "1": ("RUNNING", "qpu_ibm_second:1"),
        "2": ("RUNNING", "qpu_ibm_demo:1"),
        "3": ("PENDING", "qpu_ibm_second:1"),
    }


def tasks(site: Site, array: int) -> dict[str, tuple[str, str]]:
    """Return each task's state and licenses."""
    lines = site.cluster.slurm("squeue", "--noheader", "--array", f"--jobs={array}", "--format=%K %T %W").splitlines()
    return {task: (state, licenses) for task, state, licenses in map(str.split, lines)}


def test_no_user_can_have_a_job_moved_by_its_name(site: Site) -> None:
    """The words count in the admin's comment alone, whatever a user writes into name and comment."""
    choice = "qrmi-slurm:any=qpu_ibm_demo|qpu_ibm_second"
    begun(site, DEMO)
    job_id = site.cluster.sbatch(QUICK, DEMO, f"--job-name=x\n9|1|Licenses|a|{choice}", f"--comment={choice}")
    # A line break in a job's name is more than the test's own reader of scontrol's output takes.
    reason = ("squeue", "--noheader", f"--jobs={job_id}", "--format=%r")
    wait_for(lambda: site.cluster.slurm(*reason).strip() == "Licenses", f"job {job_id} to wait", 20)
    assert sensor(site)["moves"] == []
    done = site.cluster.run_as_user(["scontrol", "update", f"JobId={job_id}", f"AdminComment={choice}"])
    assert done.returncode != 0


def test_two_at_once(site: Site) -> None:
    """The second one says that the first has not ended, and changes nothing."""
    state(site, "ibm_demo", "offline")
    with site.emulator.held("iam_token") as fault:
        first = site.popen_command("sensor", "--json")
        fault.wait_for(1)
        assert sensor(site)["is_skipped"]
        assert not reservations(site)
    out, err = first.communicate(timeout=60)
    assert first.returncode == 0, err
    assert json.loads(out)["out"] == {"ibm_demo": "offline"}
    assert set(reservations(site)) == {"qpu_out_qpu_ibm_demo"}


def test_without_slurmctld(site: Site) -> None:
    """It is said, with exit status 2; users still have their list; and the next run does what was left undone."""
    state(site, "ibm_demo", "offline")
    site.cluster.stop_daemon("slurmctld")
    done = site.command("sensor")
    assert (done.returncode, done.stdout) == (2, "")
    assert "scontrol failed: " in done.stderr
    assert "is slurmctld running" in done.stderr
    shown = site.command("qpus", "ibm_demo")
    assert shown.returncode == 0
    assert shown.stderr.startswith("warning: cannot tell which QPUs are drained: ")
    start_slurmctld(site)
    listed = site.cluster.run_as_user([str(BIN / "qrmi-slurm"), "qpus"]).stdout
    assert re.search(r"^ibm_demo +\S+ +no +offline ", listed, re.MULTILINE)
    assert sensor(site)["out"] == {"ibm_demo": "offline"}


def start_slurmctld(site: Site) -> None:
    """Start slurmctld again and wait until it answers and the node is there."""
    site.cluster.start_daemon("slurmctld", ["slurmctld", "-D"], {})
    wait_for(lambda: "UP" in (site.cluster.try_slurm("scontrol", "ping") or ""), "slurmctld", 20)
    site.cluster.wait_nodes_idle()
