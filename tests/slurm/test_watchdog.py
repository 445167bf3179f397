"""Whatever a hook is stuck in, it ends within its bound and exits 0: the job says why it has no QPU, the node stays."""

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from slurm.aftermath import assert_next_job_is_fine, assert_why
from slurm.cluster import ClusterOptions
from slurm.site import Site, SiteOptions
from slurm.standins import Services
from standins.resources import SECRET, resource
from standins.stuck import stuck

TIMEOUT_S = 2
# What docs/admin.md asks for: Slurm drains the node of a hook that takes longer.
SLURMS_TIMEOUT_S = TIMEOUT_S + 3
SCRIPT = "#!/bin/sh\necho ran\n"
KEY = "QRMI_IBM_QCS_IAM_APIKEY"


@pytest.fixture(scope="module")
def strict_site() -> Iterator[Site]:
    """Start a site whose Slurm waits for a hook just as long as the documentation asks for."""
    options = SiteOptions(
        cluster=ClusterOptions(nodes=1, settings={"PrologEpilogTimeout": str(SLURMS_TIMEOUT_S)}),
        plugstack_args=(f"--acquire-timeout={TIMEOUT_S}", f"--release-timeout={TIMEOUT_S}"),
        watched=True,
    )
    with Site(options) as site:
        yield site


@pytest.fixture(scope="module")
def services(strict_site: Site) -> Services:
    return Services(strict_site.cluster)


@pytest.fixture
def site(strict_site: Site) -> Site:
    strict_site.reset()
    return strict_site


def assert_fails_alone(site: Site, *args: str, reason: str) -> None:
    """Run a job: it fails with the reason in its output, and its node goes on."""
    job_id = site.cluster.sbatch(SCRIPT, *args)
    info = site.cluster.wait_job(job_id)
    assert site.cluster.node_reason("n1") == ""
    assert info.state == "FAILED", info
    output = site.cluster.job_output(job_id)
    assert reason in output and "ran" not in output.split(), output
    assert "qrmi-slurm-prolog: error" in site.hooks_log()
    site.cluster.wait_nodes_idle()
    assert_why(site, job_id, "failed: ")


@pytest.mark.one_release
def test_a_config_on_a_file_server_that_hangs(site: Site) -> None:
    """Prolog is ended by the kernel, and has left word for the job and for the admin."""
    with stuck(site.config_path):
        assert_fails_alone(site, "--qpu=ibm_demo", reason=f"Prolog on n1 did not end within {TIMEOUT_S + 2} s")
        assert "ended-early: job=" in site.hooks_log()
    assert_next_job_is_fine(site)


@pytest.mark.one_release
def test_a_journal_on_a_file_server_that_hangs(site: Site) -> None:
    """The intent is on disk by then. Neither hook outlives its bound, and recover goes on from the record."""
    with site.hold("before-prolog"):
        job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo")
        site.wait_hook_run("before-prolog", job_id)
        folder = site.folder_of(job_id)
        folder.mkdir(parents=True)
        for path in (site.state_dir, folder.parent, folder):
            path.chmod(0o711)
        (folder / "token-0").touch()
        mount = stuck(folder / "token-0")
        mount.__enter__()
    try:
        assert site.cluster.wait_job(job_id).state == "FAILED"
        assert "Prolog on n1 did not end within" in site.cluster.job_output(job_id)
        assert_why(site, job_id, "failed: Prolog on n1 did not end within ", as_user=True)
        site.cluster.wait_nodes_idle()
        assert [entry["state"] for entry in (site.record_of(job_id) or {})["entries"]] == ["acquiring"]
        assert "recover goes on from the record" in site.hooks_log()
    finally:
        mount.__exit__(None, None, None)
    site.command("release", "--forget", "--yes", str(job_id))
    assert not folder.exists()
    assert_next_job_is_fine(site)


def many(services: Services, count: int, scenario: str = "online", **more: Any) -> list[dict[str, Any]]:
    """Return the config's entries of QPUs q0, q1 and so on."""
    one = resource("ibm-quantum-compute-service", f"{services.url}/{scenario}")
    return [{**one, **more, "name": f"q{number}"} for number in range(count)]


def with_secrets(site: Site, resources: list[dict[str, Any]], script: str) -> None:
    """Write a config whose QPUs have their keys from a script, each by a command of its own: `ask q0`, ..."""
    program = site.cluster.etc / "ask"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o700)
    for item in resources:
        item["environment"] = {name: value for name, value in item["environment"].items() if name != KEY}
        item["slurm"] = {"secrets": {KEY: {"command": [str(program), item["name"]]}}}
    site.config(resources)


def living_programs(word: str) -> list[int]:
    """Return the processes with a word among their arguments."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended meanwhile
        if word.encode() in words:
            found.append(int(process.name))
    return found


@pytest.mark.one_release
def test_commands_for_keys_that_hang(site: Site, services: Services) -> None:
    """None is started twice, 16 run side by side, and all have one deadline."""
    asked = site.cluster.folder / "asked"
    with_secrets(site, many(services, 20), f"echo $1 >>{asked}\nsleep 1234.5")
    assert_fails_alone(site, f"--qpu={','.join(['*'] * 8)}", reason=f"the site's {KEY} cannot be read")
    names = asked.read_text().split()
    assert len(names) == len(set(names)) == 16
    assert not living_programs("1234.5")


@pytest.mark.one_release
def test_one_command_that_hangs_costs_only_its_own_qpu(site: Site, services: Services) -> None:
    """The others' keys are read meanwhile, and the job runs with the others."""
    with_secrets(site, many(services, 3), f'[ "$1" = q0 ] && exec sleep 1234.5\necho {SECRET}')
    job_id = site.cluster.sbatch("#!/bin/sh\necho $QRMI_JOB_QPU_RESOURCES\n", "--qpu=q0,q1,q2")
    assert site.cluster.wait_job_over(job_id).state == "COMPLETED"
    assert site.cluster.job_output(job_id).splitlines()[-1] == "q1,q2"
    assert not living_programs("1234.5")


@pytest.mark.one_release
@pytest.mark.parametrize("text", [",".join(["any:*"] * 8), ",".join(["*"] * 2048)], ids=["8", "2048"])
def test_a_selection_that_names_everything_again_and_again(site: Site, services: Services, text: str) -> None:
    """Each of 250 QPUs is looked at once, however many terms fit it. What the plugin refuses may still reach Prolog."""
    site.config(many(services, 250))
    for hook in ("prolog", "epilog"):
        began_s = time.monotonic()
        assert site.run_hook(hook, 900_001, SPANK_QRMI_QPU=text).returncode == 0
        assert time.monotonic() - began_s < SLURMS_TIMEOUT_S
    assert site.recover("--now")["left"] == 0


@pytest.mark.one_release
def test_many_qpus_that_cannot_be_acquired(site: Site, services: Services) -> None:
    """All are online, and none opens a session: trying one after the other ends with the time."""
    site.config(many(services, 250, "sessions-403"))
    assert_fails_alone(site, "--qpu=any:*", "--no-requeue", reason="could not be acquired")


def test_a_slurmctld_that_hangs(site: Site, services: Services) -> None:
    """Prolog asks it for the job's QOS and time limit, within its own time."""
    site.config(many(services, 20, slurm={"allow": {"qos": ["gold"]}}))
    site.cluster.signal_daemon("slurmctld", signal.SIGSTOP)
    try:
        began_s = time.monotonic()
        done = site.run_hook("prolog", 900_001, SPANK_QRMI_QPU=",".join(["*"] * 8))
        assert (done.returncode, time.monotonic() - began_s < SLURMS_TIMEOUT_S) == (0, True)
        assert "may not use q1: it is for QOS gold" in done.stdout
    finally:
        site.cluster.signal_daemon("slurmctld", signal.SIGCONT)
    assert site.run_hook("epilog", 900_001).returncode == 0
