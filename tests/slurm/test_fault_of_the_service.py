"""Whatever the service does to an acquire or release: the job is told, no session stays open, no node is drained."""

import sys
from collections.abc import Mapping
from typing import Any

import pytest

from slurm.aftermath import (
    SCRIPT,
    assert_next_job_is_fine,
    assert_nothing_left,
    assert_why,
    finish_with,
    let_go,
    start_long_job,
)
from slurm.gate import Gate
from slurm.polling import wait_for
from slurm.site import Site

FAULTS: dict[str, dict[str, Any]] = {
    "hangs": {"kind": "hang"},
    "resets": {"kind": "reset"},
    "answers 429": {"kind": "error", "status": 429},
    "answers 500": {"kind": "error", "status": 500},
    "answers garbage": {"kind": "garbage"},
}
# What an acquire call that ends so is called in the job's AdminComment; garbage to a login is no login.
KINDS = {"hang": "no-answer", "reset": "unreachable", 429: "busy", 500: "service-error", "garbage": "no-answer"}
# QRMI takes any 2xx answer to the close request as success and reads no body, so it cannot tell.
LOUD_FAULTS = {name: fault for name, fault in FAULTS.items() if name != "answers garbage"}
# The others differ only for QRMI, whatever Slurm's release.
ON_ALL_RELEASES = frozenset(
    {("create_session", "hangs"), ("create_session", "answers 500"), ("update_session", "hangs")}
)

# The job leaves a task of its own in the queue, so that QRMI cancels the session instead of closing it.
QUEUE_A_TASK = f"""exec {sys.executable} - <<'END'
import json, qrmi
program = 'OPENQASM 3.0; include "stdgates.inc"; bit[1] c; c[0] = measure $0;'
pubs = json.dumps(dict(pubs=[[program, None, 5]], version=2))
payload = qrmi.Payload.QiskitPrimitive(input=pubs, program_id="sampler")
qrmi.QuantumResource("ibm_demo", qrmi.ResourceType.IBMQuantumComputeService).task_start(payload)
END
"""


def cases(faults: Mapping[str, Mapping[str, dict[str, Any]]]) -> pytest.MarkDecorator:
    """Return the mark that runs a test with each fault of each call."""
    return pytest.mark.parametrize(
        ("call", "fault"),
        [
            pytest.param(
                call,
                fault,
                id=f"{call} {name}",
                marks=() if (call, name) in ON_ALL_RELEASES else pytest.mark.one_release,
            )
            for call, those in faults.items()
            for name, fault in those.items()
        ],
    )


def short_sessions(site: Site, timeout_s: int = 1, **changes: str) -> None:
    """Let the service end each session by itself after a second, and Prolog wait no longer than `timeout_s`."""
    resource = site.emulator.resource("ibm_demo")
    resource["environment"] |= {"QRMI_IBM_QCS_SESSION_MAX_TTL": "1", **changes}
    site.config([resource])
    site.plugstack(site.plugstack_line(f"--acquire-timeout={timeout_s}"))


def assert_job_waits(site: Site, kind: str) -> int:
    """A job goes back into the queue, its script has not run, and its AdminComment says why; it is then cancelled."""
    job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo", "--nodelist=n1")
    word = f"qrmi-slurm:requeued=1,{kind},ibm_demo,"
    wait_for(lambda: word in site.cluster.job(job_id).fields.get("AdminComment", ""), word, 30)
    site.cluster.wait_nodes_idle()
    info = site.cluster.job(job_id)
    assert (info.state, info.restarts) == ("PENDING", 1)
    assert "the-script-ran" not in site.cluster.job_output(job_id)
    assert_why(site, job_id, "was put back into the queue once, at ", "ibm_demo could not be acquired: ")
    site.cluster.slurm("scancel", str(job_id))
    return job_id


def assert_job_fails(site: Site, *reasons: str) -> int:
    """A job that is not to wait fails at once, and its output says why."""
    job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo", "--nodelist=n1", "--no-requeue")
    info = site.cluster.wait_job_over(job_id)
    output = site.cluster.job_output(job_id)
    assert (info.state, info.exit_code) == ("FAILED", "1:0"), output
    assert "the-script-ran" not in output
    for reason in (f"job {job_id} has no QPU: ibm_demo could not be acquired", *reasons):
        assert reason in output
    assert_why(site, job_id, "failed: ibm_demo could not be acquired: ")
    return job_id


def assert_forgotten_at_its_end(site: Site, job_id: int) -> None:
    """A session the service may have opened ends by itself; recover says so without alarm, then drops the record."""

    def forgotten() -> bool:
        said = site.recover()
        assert said["left"] == 0, said
        return not site.folder_of(job_id).exists()

    wait_for(forgotten, "the record to be forgotten", 20)
    assert_nothing_left(site, job_id)


# --- acquire -----------------------------------------------------------------------------------------------------


@cases({"iam_token": FAULTS, "create_session": FAULTS})
def test_while_acquiring(site: Site, call: str, fault: dict[str, Any]) -> None:
    """The job waits, and says for what; if it is unknown whether a session was opened, that is recorded."""
    short_sessions(site, QRMI_IBM_QCS_SESSION_MAX_TTL="30")  # a possibly open session is not over before recover looks
    kind = KINDS[fault.get("status", fault["kind"])]
    if (call, fault["kind"]) == ("iam_token", "garbage"):
        kind = "unreachable"
    with site.emulator.fault(call=call, **fault) as injected:
        job_id = assert_job_waits(site, kind)
        assert injected.hits() >= 1
    assert site.emulator.open_sessions() == []
    for job in site.recover()["jobs"]:
        assert (job["job_id"], job["step"], job["is_left"]) == (job_id, "wait", False)
    site.command("release", "--forget", str(job_id))
    assert_nothing_left(site, job_id)


@pytest.mark.one_release
@pytest.mark.parametrize("kind", ["hang", "garbage"])
def test_a_session_opened_without_an_answer_is_reported_and_ends_by_itself(site: Site, kind: str) -> None:
    """The answer comes too late or is lost: log and `status` say indeterminate, and when the session ends."""
    # Long enough for a busy machine to reach the call, and to end the job while its session is open.
    short_sessions(site, timeout_s=2, QRMI_IBM_QCS_SESSION_MAX_TTL="8")
    with site.emulator.fault(call="create_session", kind=kind, when="after") as injected:
        job_id = assert_job_fails(site)
        assert injected.hits() == 1
    assert len(site.emulator.open_sessions()) == 1
    assert f"indeterminate: job={job_id} qpu=ibm_demo" in site.hooks_log()
    status = site.command("status").stdout
    assert "indeterminate" in status and "ends by itself within" in status
    assert_why(site, job_id, "failed: ", "a session on ibm_demo may be open, and ends by itself by ")
    assert_forgotten_at_its_end(site, job_id)


def test_a_service_that_refuses_connections_while_acquiring(site: Site) -> None:
    """Nothing was requested, so no possibly open session stays recorded beyond its longest possible life."""
    with Gate(site.emulator.url) as gate:
        gate.shut()
        short_sessions(site, QRMI_IBM_QCS_ENDPOINT=gate.url, QRMI_IBM_QCS_IAM_ENDPOINT=gate.url)
        job_id = assert_job_fails(site)
    assert_forgotten_at_its_end(site, job_id)


# --- release -----------------------------------------------------------------------------------------------------


def assert_recovered(site: Site, job_id: int) -> None:
    """The job has ended normally, its node is free, its session is still open; recover closes it."""
    info = site.cluster.wait_job_over(job_id)
    assert info.state == "COMPLETED", site.cluster.job_output(job_id)
    assert len(site.emulator.open_sessions()) == 1
    (entry,) = (site.record_of(job_id) or {})["entries"]
    assert (entry["state"], entry["attempts"]) == ("releasing", 1)
    assert not (site.folder_of(job_id) / "exports").exists()
    assert f"not-released: job={job_id} qpu=ibm_demo" in site.hooks_log()
    assert_why(site, job_id, "has completed", "its session on ibm_demo is not proven closed, and recover tries again: ")
    (waiting,) = site.recover()["jobs"]
    assert (waiting["step"], waiting["is_left"]) == ("wait", True), "it was tried again without back-off"
    (result,) = site.recover("--now")["jobs"]
    assert (result["job_id"], result["outcome"]) == (job_id, "released")
    assert_nothing_left(site, job_id)


@cases({"iam_token": FAULTS, "list_jobs": FAULTS, "update_session": LOUD_FAULTS})
def test_while_releasing(site: Site, call: str, fault: dict[str, Any]) -> None:
    """The session stays recorded with its token until recover closes it; the job and its node are unaffected."""
    site.plugstack(site.plugstack_line("--release-timeout=1"))
    injected = []

    def make(_job_id: int) -> None:
        injected.append(site.emulator.control("POST", "faults", {"call": call, **fault}))

    job_id = finish_with(site, make)
    site.cluster.wait_job_over(job_id)
    site.emulator.clear_faults()
    assert_recovered(site, job_id)


@cases({"close_session": LOUD_FAULTS})
def test_while_cancelling_a_session_with_tasks(site: Site, call: str, fault: dict[str, Any]) -> None:
    """QRMI cancels a session in which the job has left a task: the same applies to that call."""
    site.plugstack(site.plugstack_line("--release-timeout=1"))
    try:
        with site.emulator.fault(call=call, **fault) as injected:
            job_id = start_long_job(site, then=QUEUE_A_TASK)
            site.emulator.control("POST", "backends/ibm_demo", {"status": "paused"})  # so that the task waits
            let_go(site, job_id)
            site.cluster.wait_job_over(job_id)
            assert injected.hits() >= 1, site.cluster.job_output(job_id)
        assert_recovered(site, job_id)
    finally:
        site.emulator.control("POST", "backends/ibm_demo", {"status": "online"})


def test_a_service_that_refuses_connections_while_releasing(site: Site) -> None:
    """The service is down when the job ends, and up again later."""
    with Gate(site.emulator.url) as gate:
        resource = site.emulator.resource("ibm_demo")
        resource["environment"] |= {"QRMI_IBM_QCS_ENDPOINT": gate.url, "QRMI_IBM_QCS_IAM_ENDPOINT": gate.url}
        site.config([resource])
        job_id = finish_with(site, lambda _job_id: gate.shut())
        site.cluster.wait_job_over(job_id)
        gate.open()
        assert_recovered(site, job_id)
    site.config([site.emulator.resource("ibm_demo")])
    assert_next_job_is_fine(site)


def test_a_session_unknown_to_the_service_counts_as_released(site: Site) -> None:
    """A 404 with the service's own JSON is proof; nothing stays recorded."""
    body = {"errors": [{"code": 1291, "message": "session not found"}]}
    with site.emulator.fault(call="update_session", kind="error", status=404, body=body, when="after"):
        job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo", "--nodelist=n1")
        assert site.cluster.wait_job_over(job_id).state == "COMPLETED"
    assert_nothing_left(site, job_id)
