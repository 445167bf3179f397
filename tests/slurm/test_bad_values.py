"""Any name or value reaches a task unchanged, or is refused in one sentence that names the variable."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slurm.cluster import ClusterError, ClusterOptions
from slurm.jobs import environment_of
from slurm.site import Site, SiteOptions
from slurm.standins import Services
from standins.resources import resource

# dash and bash may drop variables with invalid names; a Python script sees them all.
SHOW_ALL = """#!/usr/bin/env python3
import os, subprocess
print(*(f"{name}={value}" for name, value in os.environ.items()), sep="\\n")
"""
NAMES = ("ibm-x", "ibm.x", "ibm:x", "my qpu", "q\u00fcbit-\u91cf\u5b50", "2nd")
SHORT = "\"double\" 'single' a=b $HOME `id` \\n \\\\ #no comment; é %s *"


def named(services: Services, name: str, **more: str) -> dict[str, object]:
    """Return the config's entry of a QPU with a name and more variables."""
    described = resource("ibm-quantum-compute-service", f"{services.url}/online")
    return {**described, "name": name, "environment": {**described["environment"], **more}}


def run(site: Site, script: str, *args: str, env: dict[str, str] | None = None, state: str = "COMPLETED") -> str:
    """Run a batch job to its end, and return its output."""
    job_id = site.cluster.sbatch(script, *args, env=env)
    info = site.cluster.wait_job_over(job_id)
    output = site.cluster.job_output(job_id)
    assert info.state == state, output
    assert not list(site.state_dir.glob(f"*/{job_id}"))
    return output


@pytest.fixture
def plain_site() -> Iterator[Site]:
    """A site whose slurm.conf names the hooks directly, since a shell wrapper drops variables with invalid names."""
    site = Site(SiteOptions(cluster=ClusterOptions(nodes=1), hooks_log=False))
    try:
        site.start_cluster()
        yield site
    finally:
        site.stop()


def test_a_qpus_name_may_be_any_single_line(plain_site: Site, services: Services) -> None:
    """In the script and in steps, with the user's own variables; a duplicate name counts once."""
    site = plain_site
    site.config([named(services, name) for name in NAMES])
    qpu = f"--qpu={','.join(NAMES)}, {NAMES[3]} ,{NAMES[0]}"
    own = {f"{name}_QRMI_IBM_QCS_SESSION_MODE": "batch" for name in NAMES}
    in_script = environment_of(run(site, SHOW_ALL, qpu, env=own))
    in_step = environment_of(run(site, "#!/bin/sh\nsrun env\n", qpu, env=own))
    in_bare_step = environment_of(run(site, "#!/bin/sh\nsrun --export=NONE /usr/bin/env\n", qpu, env=own))
    for env in (in_script, in_step, in_bare_step):
        assert env["QRMI_JOB_QPU_RESOURCES"] == ",".join(NAMES)
        tokens = [env[f"{name}_QRMI_JOB_ACQUISITION_TOKEN"] for name in NAMES]
        assert len(set(tokens)) == len(NAMES)
        assert {env[f"{name}_QRMI_IBM_QCS_ENDPOINT"] for name in NAMES} == {f"{services.url}/online"}
        assert {env[name] for name in own} == {"batch"}


def test_sixty_four_qpus_in_one_job(site: Site, services: Services) -> None:
    """All are acquired in parallel, exported, and released."""
    names = [f"qpu{number}" for number in range(64)]
    site.config([named(services, name) for name in names])
    before = len(services.requests())
    env = environment_of(run(site, SHOW_ALL, f"--qpu={','.join(names)}"))
    tokens = {env[f"{name}_QRMI_JOB_ACQUISITION_TOKEN"] for name in names}
    assert len(tokens) == len(names)
    closed = {
        request["path"].rpartition("/")[2] for request in services.requests()[before:] if request["method"] == "PATCH"
    }
    assert closed == tokens


@pytest.mark.parametrize("whose", ["the site's", "the user's"])
def test_a_value_reaches_script_and_step_unchanged(site: Site, services: Services, whose: str) -> None:
    """Quotes, equal signs, dollars, backslashes; nothing is expanded on the way."""
    variable = "q_QRMI_IBM_QCS_IAM_APIKEY"
    site.config([named(services, "q", QRMI_IBM_QCS_IAM_APIKEY=SHORT if whose == "the site's" else "other")])
    own = {variable: SHORT} if whose == "the user's" else {}
    assert environment_of(run(site, f"{SHOW_ALL}\n", "--qpu=q", env=own))[variable] == SHORT
    assert (
        environment_of(run(site, "#!/bin/sh\nsrun --export=NONE /usr/bin/env\n", "--qpu=q", env=own))[variable] == SHORT
    )


def test_a_value_of_100_kb_in_the_config_reaches_the_task(site: Site, services: Services) -> None:
    """A certificate chain, for example."""
    value = "x" * 100_000
    site.config([named(services, "q", QRMI_CHAIN=value)])
    assert environment_of(run(site, SHOW_ALL, "--qpu=q"))["q_QRMI_CHAIN"] == value


def test_a_value_too_long_for_an_environment_fails_the_job(site: Site, services: Services) -> None:
    """Slurm would silently leave the variable out."""
    site.config([named(services, "q", QRMI_CHAIN="x" * 140_000)])
    output = run(site, SHOW_ALL, "--qpu=q", state="FAILED")
    assert "q could not be acquired: the value of q_QRMI_CHAIN is too long for an environment" in output


@pytest.mark.parametrize("char", ["\n", "\0", "\r", "\x1b"])
def test_a_control_character_in_the_config_is_reported_with_its_variable(
    site: Site, services: Services, char: str
) -> None:
    """A line break would start another directive of TaskProlog. The user is told whom to tell."""
    site.config([named(services, "q", QRMI_NOTE=f"before{char}export LD_PRELOAD=/evil.so")])
    output = run(site, SHOW_ALL, "--qpu=q", state="FAILED")
    assert "the site's QPU configuration cannot be used; please tell an admin" in output
    assert "LD_PRELOAD" not in output
    [line] = [line for line in site.hooks_log().splitlines() if "QRMI_NOTE" in line][-1:]
    assert "resources[0].environment.QRMI_NOTE contains a line break or another control character" in line


@pytest.mark.parametrize(
    ("value", "fault"),
    [("a\nexport LD_PRELOAD=/evil.so", "contains a control character"), ("x" * 100_000, "is longer than 65536 bytes")],
    ids=["newline", "100 kB"],
)
def test_a_users_value_that_cannot_be_passed_on_is_refused_at_submission(site: Site, value: str, fault: str) -> None:
    """sbatch names the variable but shows no value."""
    variable = "ibm_demo_QRMI_IBM_QCS_IAM_APIKEY"
    with pytest.raises(ClusterError, match=f"{variable} to the job for --qpu=ibm_demo: its value {fault}") as caught:
        site.cluster.sbatch(SHOW_ALL, "--qpu=ibm_demo", env={variable: value})
    assert "LD_PRELOAD" not in str(caught.value) and "xxxx" not in str(caught.value)


def remove(exports: Path) -> None:
    exports.unlink()


def cut(exports: Path) -> None:
    content = exports.read_bytes()
    exports.write_bytes(content[: len(content) // 2])


def give_away(exports: Path) -> None:
    os.chown(exports, 0, 0)
    exports.chmod(0o444)


def slip_in(exports: Path) -> None:
    text = exports.read_text().replace("lines='", "lines='unset PATH\n")
    exports.write_text(text.replace("by=shell", "by=python"))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (remove, "Prolog left nothing at"),
        (cut, "exports is cut off or changed"),
        (give_away, "does not belong to uid"),
        (slip_in, "exports contains a line that qrmi-slurm did not write"),
    ],
)
def test_foreign_or_damaged_exports_fail_the_job(site: Site, change: Callable[..., None], sentence: str) -> None:
    """The job prints one sentence and gets none of their variables; its QPU is released all the same."""
    with site.hold("after-prolog"):
        job_id = site.cluster.sbatch(SHOW_ALL, "--qpu=ibm_demo")
        site.wait_hook_run("after-prolog", job_id)
        [exports] = site.state_dir.glob(f"*/{job_id}/exports")
        change(exports)
    info = site.cluster.wait_job_over(job_id)
    output = site.cluster.job_output(job_id)
    assert info.state == "FAILED", output
    [line] = [line for line in output.splitlines() if line.startswith("qrmi-slurm: ")]
    assert sentence in line
    assert "QRMI_JOB_QPU_RESOURCES" not in output
    assert not site.emulator.open_sessions()
    assert not list(site.state_dir.glob(f"*/{job_id}"))
