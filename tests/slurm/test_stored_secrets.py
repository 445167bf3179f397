"""The config may say where a key is stored; a new key takes effect with the next job, and nothing is restarted."""

from pathlib import Path

import pytest

from slurm.emulator import API_KEY
from slurm.jobs import PRINT_ENVIRONMENT, environment_of
from slurm.site import Site

KEY = "QRMI_IBM_QCS_IAM_APIKEY"


def keep(path: Path, text: str, mode: int) -> Path:
    path.touch(mode=mode)
    path.write_text(text)
    return path


def source_of(site: Site, kind: str) -> dict[str, object]:
    if kind == "file":
        return {"file": str(keep(site.cluster.etc / "ibm.key", f"{API_KEY}\n", 0o600))}
    keep(site.cluster.etc / "key-of-the-day", API_KEY, 0o600)
    script = keep(site.cluster.etc / "ask", f"#!/bin/sh\ncat {site.cluster.etc}/key-of-the-day\n", 0o700)
    return {"command": [str(script)]}


@pytest.mark.parametrize("kind", ["file", "command"])
def test_a_stored_key_and_its_rotation(site: Site, kind: str) -> None:
    """The first job runs with the stored key, the second fails with a wrong one, the third has the right one again."""
    resource = site.emulator.resource("ibm_demo")
    del resource["environment"][KEY]
    site.config([{**resource, "slurm": {"secrets": {KEY: source_of(site, kind)}}}])
    assert site.command("validate-config").returncode == 0
    done = site.command("validate-config", "--online")
    assert done.returncode == 0, done.stdout
    assert site.command("qpus").stdout.splitlines()[1].split()[2] == "yes"
    kept = site.cluster.etc / ("ibm.key" if kind == "file" else "key-of-the-day")
    states = []
    for key in (API_KEY, "planted-wrong-key", API_KEY):
        kept.write_text(key)
        job_id = site.cluster.sbatch(PRINT_ENVIRONMENT, "--qpu=ibm_demo")
        states.append(site.cluster.wait_job_over(job_id).state)
        output = site.cluster.job_output(job_id)
    assert states == ["COMPLETED", "FAILED", "COMPLETED"], output
    assert environment_of(output)[f"ibm_demo_{KEY}"] == API_KEY
    site.cluster.wait_nodes_idle()
    assert not site.emulator.open_sessions()
    for text in (site.hooks_log(), site.config_path.read_text()):
        assert API_KEY not in text
        assert "planted-wrong-key" not in text


def test_a_key_rotated_under_a_running_job_still_releases(site: Site) -> None:
    """Epilog reads the stored key again if the one used to acquire is refused."""
    resource = site.emulator.resource("ibm_demo")
    del resource["environment"][KEY]
    path = keep(site.cluster.etc / "ibm.key", API_KEY, 0o600)
    site.config([{**resource, "slurm": {"secrets": {KEY: {"file": str(path)}}}}])
    job_id = site.cluster.sbatch("#!/bin/sh\nsleep 300\n", "--qpu=ibm_demo")
    site.wait_hook_run("after-prolog", job_id)

    def spoil(record: dict[str, list[dict[str, dict[str, str]]]]) -> None:
        record["entries"][0]["environment"][f"ibm_demo_{KEY}"] = "planted-old-key"

    site.change_record(job_id, spoil)
    site.cluster.slurm("scancel", str(job_id))
    site.cluster.wait_job_over(job_id)
    site.cluster.wait_nodes_idle()
    assert not site.emulator.open_sessions()
    assert site.record_of(job_id) is None


def test_a_key_that_others_can_read_fails_the_job(site: Site) -> None:
    """The user is told whom to ask; the admin's log names the file but shows none of its contents."""
    resource = site.emulator.resource("ibm_demo")
    del resource["environment"][KEY]
    path = keep(site.cluster.etc / "open.key", "planted-open-key", 0o644)
    site.config([{**resource, "slurm": {"secrets": {KEY: {"file": str(path)}}}}])
    job_id = site.cluster.sbatch(PRINT_ENVIRONMENT, "--qpu=ibm_demo")
    assert site.cluster.wait_job_over(job_id).state == "FAILED"
    output = site.cluster.job_output(job_id)
    assert f"ibm_demo could not be acquired: the site's {KEY} cannot be read; please tell an admin" in output
    assert str(path) not in output
    log = site.hooks_log()
    assert str(path) in log
    assert "planted-open-key" not in log + output
    done = site.command("validate-config")
    assert "QS413" in done.stdout
    assert "planted-open-key" not in done.stdout
