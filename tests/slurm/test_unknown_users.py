"""A node that does not know a job's user: Slurm has passed on the name and the group, and they suffice."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.emulator import API_KEY
from slurm.jobs import PRINT_ENVIRONMENT, environment_of
from slurm.namespaces import node_with
from slurm.site import Site

NODE = "n3"
TOKEN = "ibm_demo_QRMI_JOB_ACQUISITION_TOKEN"


@pytest.fixture
def stranger(site: Site) -> Iterator[str]:
    """The first user's name, whom n3 does not know; /etc/group there still lists the user's group."""
    name = site.cluster.user.name
    passwd = site.cluster.folder / "passwd-without"
    lines = Path("/etc/passwd").read_text().splitlines(keepends=True)
    passwd.write_text("".join(line for line in lines if not line.startswith(f"{name}:")))
    passwd.chmod(0o644)
    with node_with(site, NODE, f"mount --bind {passwd} /etc/passwd"):
        yield name


def run(site: Site, **env: str) -> tuple[str, str]:
    """Run a job on n3, and return its state and output."""
    job_id = site.cluster.sbatch(PRINT_ENVIRONMENT, "--qpu=ibm_demo", f"--nodelist={NODE}", env=env)
    info = site.cluster.wait_job_over(job_id)
    return info.state, site.cluster.job_output(job_id)


def test_own_credentials_are_used_as_the_user(site: Site, stranger: str) -> None:
    """To acquire and to release, although there is no home to read."""
    site.config([{**site.emulator.resource("ibm_demo"), "environment": {}}])
    own = {f"ibm_demo_{name}": value for name, value in site.emulator.resource("ibm_demo")["environment"].items()}
    count = len(site.emulator.sessions())
    state, output = run(site, **own)
    assert state == "COMPLETED", output
    env = environment_of(output)
    assert [session["id"] for session in site.emulator.sessions()[count:]] == [env[TOKEN]]
    assert env["ibm_demo_QRMI_IBM_QCS_IAM_APIKEY"] == API_KEY
    assert not site.emulator.open_sessions()


@pytest.mark.parametrize(
    ("rule", "is_let_in"),
    [("users", True), ("groups", True), ("nobody", False), ("uid", False), ("others", False)],
)
def test_access_rules_know_the_user_by_slurms_name(site: Site, stranger: str, rule: str, is_let_in: bool) -> None:
    """And the group that the job runs with, as far as the node has a name for it."""
    user = site.cluster.user
    allow = {
        "users": {"users": [stranger]},
        "groups": {"groups": [stranger]},  # useradd has made it
        "nobody": {"users": ["nobody"]},
        "uid": {"users": [str(user.uid)]},
        "others": {"users": ["alice"], "groups": ["root"]},
    }[rule]
    site.config([{**site.emulator.resource("ibm_demo"), "slurm": {"allow": allow}}])
    state, output = run(site)
    assert state == ("COMPLETED" if is_let_in else "FAILED"), output
    assert is_let_in or f"user {stranger} may not use ibm_demo: " in output
    assert not site.emulator.open_sessions()
