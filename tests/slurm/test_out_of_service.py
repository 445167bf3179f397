"""Jobs wait for a QPU that is offline or drained, and start when it is back; jobs with a choice get another QPU."""

import contextlib
import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slurm.cluster import ClusterOptions
from slurm.polling import wait_for
from slurm.release import COMMANDS_WAIT_FOR_SLURMCTLD, RESERVATIONS_HAVE_COMMENTS
from slurm.site import BIN, Site, SiteOptions

SLEEP = "#!/bin/sh\necho begun\nsleep 300\n"
QUICK = "#!/bin/sh\necho ran\n"
DEMO = "--qpu=ibm_demo"
SECOND = "--qpu=ibm_second"
ANY = "--qpu=any:ibm_*"


# QPUs that a test adds, for which users bring their own credentials; each is a license.
MANY = tuple(f"r{number}" for number in range(30))


@pytest.fixture(scope="module")
def counted_site() -> Iterator[Site]:
    """Start a site whose two QPUs are licenses, each for one job at a time."""
    options = SiteOptions(
        cluster=ClusterOptions(nodes=1),
        backends={"ibm_demo": "FakeSherbrooke", "ibm_second": "FakeSherbrooke"},
        licenses={"qpu_ibm_demo": 1, "qpu_ibm_second": 1, "other": 1, **{f"qpu_{name}": 1 for name in MANY}},
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
    """Make the service report a different state for a QPU."""
    site.emulator.control("POST", f"backends/{name}", {"status": status})


def reservations(site: Site) -> dict[str, str]:
    """Return scontrol's line of each reservation, by name."""
    lines = site.cluster.slurm("scontrol", "show", "reservations", "--oneliner").splitlines()
    return {match[1]: line for line in lines if (match := re.match(r"ReservationName=(\S+)", line))}


def sensor(site: Site, *words: str) -> dict[str, Any]:
    """Run the sensor and return its JSON output."""
    done = site.command("sensor", "--json", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    assert not said["faults"]
    return said


def printed(site: Site, *words: str) -> str:
    """Run one of the admin's commands, which has to succeed, and return its output."""
    done = site.command(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def begun(site: Site, *args: str) -> int:
    """Submit a job and wait until its script has started."""
    job_id = site.cluster.sbatch(SLEEP, *args)
    wait_for(lambda: "begun" in site.cluster.job_output(job_id), "the script to begin", 20)
    return job_id


def wait_for_license(site: Site, job_id: int) -> None:
    """Wait until Slurm has tried to start a job and reports that it waits for a license."""
    wait_for(lambda: site.cluster.job(job_id).reason == "Licenses", f"job {job_id} to wait", 20)


def stays_pending(site: Site, *job_ids: int) -> None:
    """Check that jobs stay pending for longer than slurmctld's scheduling interval (sched_interval=2)."""
    end_s = time.monotonic() + 4
    while time.monotonic() < end_s:
        assert {site.cluster.job(job_id).state for job_id in job_ids} == {"PENDING"}
        time.sleep(0.2)


@pytest.mark.parametrize(("status", "word"), [("offline", "offline"), ("paused", "offline: paused")])
def test_jobs_wait_while_the_service_is_offline(site: Site, status: str, word: str) -> None:
    """From the sensor run that sees the QPU offline to the one that sees it back, with and without a time limit."""
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


def test_one_missing_answer_changes_nothing(site: Site) -> None:
    """Whether the QPU is in or out of service; only the second missing answer in a row counts."""
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


def test_an_outage_of_the_sensor_ends_by_itself(site: Site) -> None:
    """A dead sensor keeps a QPU from jobs for an hour at most; a running one renews the reservation in time."""
    state(site, "ibm_demo", "offline")
    sensor(site)
    assert " Duration=01:00:00 " in reservations(site)["qpu_out_qpu_ibm_demo"]
    site.cluster.slurm("scontrol", "update", "ReservationName=qpu_out_qpu_ibm_demo", "EndTime=now+20minutes")
    assert sensor(site)["changes"] == []
    assert " Duration=01:00:0" in reservations(site)["qpu_out_qpu_ibm_demo"]
    job_id = site.cluster.sbatch(QUICK, DEMO)
    wait_for_license(site, job_id)
    state(site, "ibm_demo", "online")
    site.cluster.slurm("scontrol", "update", "ReservationName=qpu_out_qpu_ibm_demo", "EndTime=now+1")
    assert site.cluster.wait_job(job_id).state == "COMPLETED"


def test_a_drained_qpu(site: Site) -> None:
    """The running job keeps it, others wait, users can read the reason, the sensor leaves it alone, resume ends it."""
    sensor(site)
    running = begun(site, DEMO)
    out = printed(site, "drain", "ibm_demo", "--reason", "new fridge [bold] = 5%, Flags=x")
    assert out == "ibm_demo: drained: new fridge [bold] = 5%, Flags=x (1 running job keeps it)\n"
    done = site.cluster.run_as_user(["sbatch", "--parsable", DEMO, "--wrap=true"])
    waiting = int(done.stdout)
    assert done.stderr == (
        "sbatch: qrmi-slurm: ibm_demo is out of service (drained: new fridge [bold] = 5%, Flags=x); "
        "the job waits until it is back\n"
    )
    wait_for_license(site, waiting)
    assert site.cluster.job(running).state == "RUNNING"
    field = "Comment" if RESERVATIONS_HAVE_COMMENTS.is_here else "Features"
    assert f" {field}=drained by root at " in site.cluster.slurm("scontrol", "show", "reservation", "--oneliner")
    listed = site.cluster.run_as_user([str(BIN / "qrmi-slurm"), "qpus"]).stdout
    for shown in (listed, printed(site, "qpus")):
        row = next(line for line in shown.splitlines() if line.startswith("ibm_demo"))
        assert row.split()[2:4] == ["no", "drained"]
        assert row.endswith("drained: new fridge [bold] = 5%, Flags=x")
    looked_at = {line["name"]: line["level"] for line in json.loads(site.command("doctor", "--json").stdout)["lines"]}
    assert (looked_at["catalogue"], looked_at["sensor"]) == ("ok", "ok")
    site.cluster.slurm("scancel", str(running))
    site.cluster.wait_job(running)
    assert sensor(site)["changes"] == []
    stays_pending(site, waiting)
    assert printed(site, "drain", "ibm_demo", "--reason", "later").startswith("ibm_demo: drained: later")
    assert printed(site, "drain", "ibm_demo", "--reason", "later") == "ibm_demo: unchanged: drained: later\n"
    assert printed(site, "resume", "ibm_demo") == "ibm_demo: in service\n"
    assert printed(site, "resume", "ibm_demo") == "ibm_demo: unchanged: in service\n"
    assert site.cluster.wait_job(waiting).state == "COMPLETED"


def test_a_drain_outlives_slurmctld(site: Site) -> None:
    """After a restart the reason is still there, and jobs still wait."""
    printed(site, "drain", "ibm_demo", "--reason", "until Friday")
    site.cluster.stop_daemon("slurmctld")
    start_slurmctld(site)
    assert sensor(site)["out"] == {"ibm_demo": "drained: until Friday"}
    job_id = site.cluster.sbatch(QUICK, DEMO)
    wait_for_license(site, job_id)
    stays_pending(site, job_id)


def test_root_can_try_a_drained_qpu(site: Site) -> None:
    """With a job in the reservation, while everybody else waits."""
    printed(site, "drain", "ibm_demo", "--reason", "new fridge")
    job_id = site.cluster.slurm(
        *("sbatch", "--parsable", "--reservation=qpu_out_qpu_ibm_demo", DEMO, "--output=/dev/null", "--wrap=true")
    )
    assert site.cluster.wait_job(int(job_id)).state == "COMPLETED"


def test_resume_of_a_qpu_that_went_offline_meanwhile(site: Site) -> None:
    """It stays out of service for the sensor's reason, since its jobs would fail."""
    printed(site, "drain", "ibm_demo", "--reason", "maintenance")
    state(site, "ibm_demo", "offline")
    assert sensor(site)["out"] == {"ibm_demo": "drained: maintenance"}
    assert printed(site, "resume", "ibm_demo") == "ibm_demo: offline\n"
    state(site, "ibm_demo", "online")
    assert sensor(site)["out"] == {}
    assert not reservations(site)


def test_a_qpu_that_cannot_be_drained(site: Site) -> None:
    """For an unknown name, a QPU without a license and a license that Slurm lacks, the message says what to do."""
    cases = {
        "ibm_dmeo": "unknown QPU: ibm_dmeo (did you mean ibm_demo?); known QPUs: ibm_demo, ibm_none, ",
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
    assert not reservations(site), "one wrong name, and nothing is done"


def test_a_qpu_that_the_site_has_reserved_goes_out_of_service_too(site: Site) -> None:
    """Whether the reservation has started or is still to come; jobs in the reservation wait as well."""
    user = site.cluster.user.name
    for name, start in (("now", "now"), ("later", "now+2hours")):
        site.cluster.slurm(
            *("scontrol", "create", "reservation", f"ReservationName={name}", "Licenses=qpu_ibm_demo:1"),
            *(f"Users={user}", "Flags=LICENSE_ONLY", f"StartTime={start}", "Duration=60"),
        )
    state(site, "ibm_demo", "paused")
    assert sensor(site)["out"] == {"ibm_demo": "offline: paused"}
    state(site, "ibm_demo", "online")
    assert printed(site, "drain", "ibm_demo", "--reason", "x") == "ibm_demo: drained: x\n"
    assert sensor(site)["out"] == {"ibm_demo": "drained: x"}
    line = reservations(site)["qpu_out_qpu_ibm_demo"]
    assert " Duration=365-00:00:00 " in line
    assert " State=ACTIVE " in line
    jobs = [site.cluster.sbatch(QUICK, DEMO, "--time=1", *words) for words in ((), ("--reservation=now",))]
    for job_id in jobs:
        wait_for_license(site, job_id)
    stays_pending(site, *jobs)
    printed(site, "resume", "ibm_demo")
    assert site.cluster.wait_job(jobs[1]).state == "COMPLETED"
    assert site.cluster.job(jobs[0]).state == "PENDING", (
        "the QPU is reserved, and the job does not name the reservation"
    )


def test_a_shared_license(site: Site) -> None:
    """Its QPUs are drained together, which the admin has to confirm; the sensor waits until all are offline."""
    shared = [{**site.emulator.resource(name), "slurm": {"license": "other"}} for name in ("ibm_demo", "ibm_second")]
    site.config(shared)
    done = site.command("drain", "ibm_demo", "--reason", "x")
    assert done.returncode == 2
    assert "ibm_demo and ibm_second share the license other: they go out of service together" in done.stderr
    assert printed(site, "drain", "ibm_demo", "--yes", "--reason", "x") == "ibm_demo, ibm_second: drained: x\n"
    assert printed(site, "resume", "ibm_second", "ibm_demo") == "ibm_demo, ibm_second: in service\n"
    state(site, "ibm_demo", "offline")
    assert sensor(site)["changes"] == []
    state(site, "ibm_second", "paused")
    assert sensor(site)["out"] == {"ibm_demo": "offline", "ibm_second": "offline"}


def licenses_of(site: Site, job_id: int | str) -> str:
    """Return a job's licenses."""
    return site.cluster.job(job_id).fields["Licenses"]


def test_a_job_with_a_choice_is_moved_to_the_free_qpu(site: Site) -> None:
    """Only the job whose turn it is moves; the next one waits, and so does a job that named its QPU."""
    holders = {"qpu_ibm_demo:1": begun(site, DEMO), "qpu_ibm_second:1": begun(site, SECOND)}
    named = site.cluster.sbatch(SLEEP, DEMO)
    jobs = [site.cluster.sbatch(SLEEP, ANY) for _ in range(3)]
    for job_id in (named, *jobs):
        wait_for_license(site, job_id)
    # slurmctld's Lua alternates: the first and third job have the same license, the second has the other.
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
    """While one QPU is drained, the tasks run one after another on the other; when it is back, one moves to it."""
    printed(site, "drain", "ibm_demo", "--reason", "x")
    array = site.cluster.sbatch(SLEEP, ANY, "--array=1-3")
    wait_for(lambda: sum(state == "RUNNING" for state, _ in tasks(site, array).values()) == 1, "a task to run", 20)
    assert set(tasks(site, array).values()) == {("RUNNING", "qpu_ibm_second:1"), ("PENDING", "qpu_ibm_second:1")}
    assert sensor(site)["moves"] == []
    printed(site, "resume", "ibm_demo")
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


def test_users_cannot_write_a_choice(site: Site) -> None:
    """Only the admin comment counts, whatever a user writes into a job's name and comment."""
    choice = "qrmi-slurm:any=qpu_ibm_demo|qpu_ibm_second"
    begun(site, DEMO)
    job_id = site.cluster.sbatch(QUICK, DEMO, f"--job-name=x\n9|1|Licenses|a|{choice}", f"--comment={choice}")
    # The tests' parser of scontrol output cannot handle a line break in a job's name.
    reason = ("squeue", "--noheader", f"--jobs={job_id}", "--format=%r")
    wait_for(lambda: site.cluster.slurm(*reason).strip() == "Licenses", f"job {job_id} to wait", 20)
    assert sensor(site)["moves"] == []
    done = site.cluster.run_as_user(["scontrol", "update", f"JobId={job_id}", f"AdminComment={choice}"])
    assert done.returncode != 0


def test_two_runs_of_the_sensor_at_once(site: Site) -> None:
    """The second reports that the first is still running, and changes nothing."""
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


def test_the_sensor_without_slurmctld(site: Site) -> None:
    """Exit status 2 with the reason. Users still have their list, and the next run does what this one could not."""
    state(site, "ibm_demo", "offline")
    site.cluster.stop_daemon("slurmctld")
    done = site.command("sensor")
    assert (done.returncode, done.stdout) == (2, "")
    if COMMANDS_WAIT_FOR_SLURMCTLD.is_here:
        wanted = r"error: scontrol did not answer within 10 s\nhint: is slurmctld running\?"
    else:
        wanted = r"error: scontrol failed: .*\nhint: are slurmctld and munged running\?"
    assert re.match(wanted, done.stderr)
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


def test_a_job_with_many_choices_does_not_hold_up_the_sensor(site: Site) -> None:
    """30 free licenses fit five of its choices, and none the sixth: trying every way took half a minute."""
    many = [{"name": name, "type": "ibm-quantum-compute-service", "environment": {}} for name in MANY]
    site.config([*(site.emulator.resource(name) for name in site.options.backends), *many])
    begun(site, "--qpu=ibm_demo,ibm_second")
    waiting = site.cluster.sbatch(QUICK, f"--qpu={','.join(['any:r*'] * 5)},any:ibm_*")
    wait_for_license(site, waiting)
    began_s = time.monotonic()
    assert sensor(site)["moves"] == []
    assert time.monotonic() - began_s < 10


def test_what_hangs_does_not_hold_up_the_sensor(site: Site) -> None:
    """Four programs that print no key, and two services that do not answer: all of them have one deadline each."""
    program = site.cluster.etc / "ask"
    program.write_text("#!/bin/sh\nexec sleep 100\n")
    program.chmod(0o700)
    demo = site.emulator.resource("ibm_demo")
    stored = [{**demo, "name": f"r{n}", "slurm": _key_of(program, f"key-{n}")} for n in range(4)]
    dead = []
    with contextlib.ExitStack() as stack:
        for number in range(4, 6):
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            url = f"http://127.0.0.1:{server.getsockname()[1]}"
            addresses = {"QRMI_IBM_QCS_ENDPOINT": url, "QRMI_IBM_QCS_IAM_ENDPOINT": url}
            dead.append({**demo, "name": f"r{number}", "environment": {**demo["environment"], **addresses}})
        site.config([*stored, *dead, *(site.emulator.resource(name) for name in site.options.backends)])
        state(site, "ibm_demo", "offline")
        began_s = time.monotonic()
        (change,) = sensor(site, "--timeout=8")["changes"]
        assert time.monotonic() - began_s < 8 + 18  # a program may take 10 s
    assert change["qpus"] == ["ibm_demo"]


def _key_of(program: Path, name: str) -> dict[str, Any]:
    return {"secrets": {"QRMI_IBM_QCS_IAM_APIKEY": {"command": [str(program), name]}}}
