"""Session and job end together; where the session ends first, everybody is told, and the job gets another one."""

import json
import os
import re
import signal
import subprocess

import pytest

from setup.environment import CHECKOUT
from slurm.aftermath import assert_nothing_left, let_go, start_long_job
from slurm.polling import wait_for
from slurm.site import BIN, Site
from slurm.test_broker import ATTEMPTS, brokers, record_of_broker, write_program

TTL_S = 2

UNIT = CHECKOUT / "systemd" / "qrmi-slurm-recover.service"


def short_sessions(site: Site, **changes: object) -> None:
    """Write a config whose sessions live two seconds."""
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


# A batch script that runs two steps once it is let go; each prints the token that it has.
TWO_STEPS = """
for step in 1 2; do
    echo "step-$step"
    srun --ntasks=2 --overcommit sh -c 'echo "has $ibm_demo_QRMI_JOB_ACQUISITION_TOKEN"'
done
echo "script $ibm_demo_QRMI_JOB_ACQUISITION_TOKEN"
"""


def recover_as_the_unit(site: Site) -> str:
    """Run recover with no more capabilities than its systemd unit has; return what it prints."""
    found = re.search(r"^CapabilityBoundingSet=(.*)$", UNIT.read_text(), re.MULTILINE)
    assert found is not None
    kept = ",".join(f"+{word.removeprefix('CAP_').lower()}" for word in found[1].split())
    command = ["setpriv", f"--bounding-set=-all,{kept}", str(BIN / "qrmi-slurm"), "recover", "--now", "--json"]
    done = subprocess.run(command, env=site.root_env("n1"), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_session_that_ends_first_is_announced_and_shown_and_replaced_if_the_job_is_extended(site: Site) -> None:
    """In the output at the job's start, with the time; later by `status`, and by `why` to the user as well.

    recover opens the new one for later steps: not before the job was extended, not while it is suspended, and once.
    """
    short_sessions(site)
    job_id = start_long_job(site, "--time=1", then=TWO_STEPS)
    when = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S+"
    announced = f"^qrmi-slurm: the session on ibm_demo ends at {when}, and the job may run longer$"
    assert re.search(announced, site.cluster.job_output(job_id), re.MULTILINE), site.cluster.job_output(job_id)
    wait_expired(site)
    wait_for(lambda: status_of(site, job_id) == ["expired"], "status to say so", 10)
    expired = f"Job {job_id} runs with ibm_demo until .*, but the session on ibm_demo has expired, at "
    for done in (site.command("why", str(job_id)), site.cluster.run_as_user([BIN / "qrmi-slurm", "why", str(job_id)])):
        assert re.match(expired, done.stdout), done.stdout + done.stderr
    first = site.emulator.sessions()[-1]["id"]

    def outcome_of_recover() -> object:
        # Another run may have the answer of less than a minute ago.
        (found,) = [one for one in site.recover("--now")["jobs"] if one["job_id"] == job_id]
        return found["outcome"]

    assert outcome_of_recover() is None
    site.cluster.slurm("scontrol", "suspend", str(job_id))
    site.cluster.slurm("scontrol", "update", f"JobId={job_id}", "TimeLimit=30")
    assert outcome_of_recover() is None
    site.cluster.slurm("scontrol", "resume", str(job_id))
    site.cluster.wait_job(job_id, {"RUNNING"})
    assert json.loads(recover_as_the_unit(site))["jobs"][0]["outcome"] == "has a new session"
    second = site.emulator.sessions()[-1]["id"]
    assert second != first
    (entry,) = (site.record_of(job_id) or {})["entries"]
    assert (entry["state"], entry["token"]) == ("acquired", second)
    let_go(site, job_id)
    assert site.cluster.wait_job_over(job_id).state == "COMPLETED", site.cluster.job_output(job_id)
    # On a busy machine srun says that it waits.
    lines = [line for line in site.cluster.job_output(job_id).splitlines() if not line.startswith("srun: ")]
    output = "".join(f"{line}\n" for line in lines)
    steps = re.fullmatch(r"(?s).*step-1\n(.*)step-2\n(.*)script (\S+)\n", output)
    assert steps is not None, output
    own, also_own, told = sorted(steps[1].splitlines())
    assert told.startswith("qrmi-slurm: the session on ibm_demo had ended; this step has a new one, which ends at ")
    assert (own, also_own) == (f"has {second}",) * 2, output
    assert steps[2] == f"has {second}\n" * 2, output
    assert steps[3] == first
    assert_nothing_left(site, job_id)


def accounted(site: Site, job_id: int) -> set[str]:
    """Return the sessions of a job that are in the ledger."""
    lines = [line for file in site.state_dir.glob("*/*/*.jsonl") for line in file.read_text().splitlines()]
    return {one["token"] for one in map(json.loads, lines) if one["job_id"] == job_id}


# A batch script that makes a request through its broker each time it is let go.
TWO_REQUESTS = """#!/bin/sh
echo begun
for number in 1 2; do
    while [ ! -e "go-$number" ]; do sleep 0.05; done
    {run} '[["GET", "/sessions/OWN", null]]'
done
"""


@pytest.mark.one_release
def test_a_broker_opens_a_new_session_when_a_request_needs_it(site: Site) -> None:
    """The job names its first one all along. recover gives back what was replaced, and nothing is lost in the end."""
    short_sessions(site, slurm={"broker": True})
    before = len(site.emulator.sessions())
    script = TWO_REQUESTS.format(run=write_program(site, "attempts.py", ATTEMPTS))
    job_id = site.cluster.sbatch(script, "--qpu=ibm_demo", "--nodelist=n1")

    def output_has(count: int) -> bool:
        return site.cluster.job_output(job_id).count(" 200 service") == count

    wait_for(lambda: "begun" in site.cluster.job_output(job_id), "the script to begin", 30)
    assert "; the job's next request then opens a new one" in site.cluster.job_output(job_id)
    wait_expired(site)
    (site.cluster.user.home / "go-1").touch()
    wait_for(lambda: output_has(1), "the first request", 30)
    assert len(site.emulator.sessions()) == before + 2
    site.recover("--now")
    (entry,) = (site.record_of(job_id) or {})["entries"]
    assert entry["token"] == site.emulator.sessions()[-1]["id"]
    # It goes on with the present session after a restart, and learns that the job's end has moved.
    ends_s = record_of_broker(site, job_id)["ends_s"]
    site.cluster.slurm("scontrol", "update", f"JobId={job_id}", "TimeLimit=120")
    (pid,) = brokers(site, job_id)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not brokers(site, job_id), "the broker to be gone", 10)
    site.recover("--now")
    assert record_of_broker(site, job_id)["ends_s"] - ends_s == pytest.approx(3600, abs=60)
    assert "ends " in (site.folder_of(job_id) / "sessions").read_text()
    wait_expired(site)
    (site.cluster.user.home / "go-2").touch()
    assert site.cluster.wait_job_over(job_id).state == "COMPLETED", site.cluster.job_output(job_id)
    assert output_has(2), site.cluster.job_output(job_id)
    sessions = {session["id"] for session in site.emulator.sessions()[before:]}
    assert len(sessions) == 3
    assert_nothing_left(site, job_id)
    assert accounted(site, job_id) == sessions


@pytest.mark.one_release
def test_a_session_that_a_broker_was_opening_when_its_job_ended_is_not_forgotten(site: Site) -> None:
    """Nobody has its id, as after an acquisition without an answer: the record stays until it has ended by itself."""
    short_sessions(site, slurm={"broker": True})
    run = write_program(site, "attempts.py", ATTEMPTS)
    job_id = start_long_job(site, then=f"{run} '{json.dumps([['POST', '/jobs', {}]])}'\n")
    wait_expired(site)
    with site.emulator.held("create_session") as hold:
        let_go(site, job_id)
        hold.wait_for(1)
        site.cluster.slurm("scancel", str(job_id))
        site.cluster.wait_job_over(job_id)
        *_, last = (site.record_of(job_id) or {})["entries"]
        assert (last["state"], last["token"]) == ("indeterminate", None)
        assert last["expires_s"] > last["ends_s"] > last["asked_s"]
    assert site.command("release", "--forget", "--yes", str(job_id)).returncode == 0
    wait_expired(site)
    assert_nothing_left(site, job_id)
