"""`qrmi-slurm qpus` shows root QRMI's current answers, and everybody else its last ones."""

import json
from typing import Any

from slurm.emulator import API_KEY
from slurm.polling import wait_for
from slurm.site import BIN, Site


def qpus(site: Site, *words: str) -> dict[str, dict[str, Any]]:
    """Return what root sees, by QPU name."""
    done = site.command("qpus", "--json", *words)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return {qpu["name"]: qpu for qpu in json.loads(done.stdout)["qpus"]}


def test_a_qpu_held_by_a_job(site: Site) -> None:
    """Root sees which job holds a QPU, and afterwards that it is free."""
    job_id = site.cluster.sbatch("#!/bin/sh\necho begun\nsleep 300\n", "--qpu=ibm_demo")
    wait_for(lambda: site.cluster.job_output(job_id) or None, "the script to begin", 20)
    found = qpus(site)
    assert list(found) == ["ibm_demo", "ibm_second"]
    assert (found["ibm_demo"]["job_ids"], found["ibm_second"]["job_ids"]) == ([job_id], [])
    assert {qpu["is_usable"] for qpu in found.values()} == {True}
    assert {qpu["state"] for qpu in found.values()} == {"online"}
    assert {qpu["pending_jobs"] for qpu in found.values()} == {0}
    site.cluster.slurm("scancel", str(job_id))
    site.cluster.wait_job_over(job_id)
    assert qpus(site, "ibm_demo")["ibm_demo"]["job_ids"] == []
    assert not site.emulator.open_sessions()


def test_users_read_roots_last_list(site: Site) -> None:
    """It has names, types, states and its age; before there is a list, users are told how an admin creates it."""
    user = [str(BIN / "qrmi-slurm"), "qpus"]
    done = site.cluster.run_as_user(user)
    assert (done.returncode, done.stdout) == (2, "")
    assert "an admin creates it with: qrmi-slurm qpus" in done.stderr
    with site.emulator.fault(call="iam_token", kind="error", status=503):
        assert qpus(site)["ibm_demo"]["state"] == "unreachable"
    done = site.cluster.run_as_user(user)
    assert done.returncode == 0, done.stderr
    heading, first, second, age = done.stdout.splitlines()
    assert heading.split() == ["QPU", "TYPE", "USABLE", "STATE", "QUEUE", "JOBS"]
    assert first.split() == ["ibm_demo", "ibm-quantum-compute-service", "no", "unreachable", "-", "0"]
    assert second.startswith("ibm_second")
    assert age.startswith("as of ")


def test_the_public_list_holds_no_secret(site: Site) -> None:
    """It is readable by all, and has no credentials, addresses or job ids."""
    job_id = site.cluster.sbatch("#!/bin/sh\necho begun\nsleep 300\n", "--qpu=ibm_demo")
    wait_for(lambda: site.cluster.job_output(job_id) or None, "the script to begin", 20)
    qpus(site)
    site.cluster.slurm("scancel", str(job_id))
    path = site.state_dir / "qpus.json"
    assert path.stat().st_mode & 0o777 == 0o644
    text = path.read_text()
    assert json.loads(text)["qpus"][0]["held_by"] == 1
    for secret in (API_KEY, "127.0.0.1", "crn:", "job_ids", site.emulator.sessions()[-1]["id"]):
        assert secret not in text
    site.cluster.wait_job_over(job_id)


def test_online_checks_of_a_running_site(site: Site) -> None:
    """validate-config --online goes all the way to the service, and names IAM if IAM rejects the key."""
    done = site.command("validate-config", "--online")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok       credential  IAM gives a token for the key" in done.stdout
    assert "ok       account     127.0.0.1 accepts the token" in done.stdout
    assert "ok       qrmi        the QPU is online, jobs waiting: 0" in done.stdout
    assert not done.stderr, "no progress is shown in a pipe"
    assert not site.emulator.open_sessions()
    wrong = site.emulator.resource("ibm_demo")
    wrong["environment"]["QRMI_IBM_QCS_IAM_APIKEY"] = "planted-secret-key"
    unknown = site.emulator.resource("ibm_unknown")
    foreign = site.emulator.resource("ibm_second")
    foreign["environment"]["QRMI_IBM_QCS_SERVICE_CRN"] = "crn:v1:another"
    site.config([wrong, unknown, foreign])
    done = site.command("validate-config", "--online", "--format", "json")
    assert done.returncode == 1
    assert "planted-secret-key" not in done.stdout
    said = {report["resource"]: report for report in json.loads(done.stdout)["online"]}
    faults = {
        name: next((step["name"], step["message"]) for step in report["steps"] if step["level"] == "error")
        for name, report in said.items()
    }
    rejected = "IAM rejects the key: 400 Provided API key could not be found. (BXNIM0415E)"
    assert faults["ibm_demo"] == ("credential", rejected)
    assert faults["ibm_unknown"][1].startswith("127.0.0.1 has no ibm_unknown: 404")
    assert faults["ibm_second"][1].startswith("127.0.0.1 rejects the token: 40")


def test_one_resource_of_many_online(site: Site) -> None:
    """With --resource only that one is tried; an unknown one is an error."""
    done = site.command("validate-config", "--online", "--resource", "ibm_second", "--format", "json")
    assert [report["resource"] for report in json.loads(done.stdout)["online"]] == ["ibm_second"]
    done = site.command("validate-config", "--online", "--resource", "ibm_third")
    assert done.returncode == 2
    assert "has no resource ibm_third" in done.stderr
