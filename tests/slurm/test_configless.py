"""Nodes without a slurm.conf: jobs get their QPUs, and the command works and speaks of slurmctld's files."""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm import pages
from slurm.cluster import ClusterOptions
from slurm.configless import ConfiglessSite
from slurm.jobs import environment_of
from slurm.site import BIN, STUB, SiteOptions

COMMAND = BIN / "qrmi-slurm"
NODES_CONFIG = "/etc/slurm/qrmi_config.json"


@pytest.fixture(scope="module")
def configless() -> Iterator[ConfiglessSite]:
    """Two nodes, each without a slurm.conf."""
    with ConfiglessSite(SiteOptions(cluster=ClusterOptions(nodes=2), hooks_log=False)) as site:
        yield site


def said(site: ConfiglessSite, *words: str, status: int = 0, node: str = "n1") -> str:
    """Run `qrmi-slurm` as root on a node, check its exit status and return its output."""
    done = site.cluster.on_node(node, COMMAND, *words)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def held(site: ConfiglessSite) -> list[int]:
    """Return the jobs that `status` shows on n1."""
    return [qpu["job_id"] for qpu in json.loads(said(site, "status", "--json"))["qpus"]]


def doctor(site: ConfiglessSite) -> dict[str, tuple[str, str]]:
    """Return level and message of the doctor's results on n1, by name."""
    done = site.cluster.on_node("n1", COMMAND, "doctor", "--json")
    return {line["name"]: (line["level"], line["message"]) for line in json.loads(done.stdout)["lines"]}


def test_the_nodes_have_nothing_but_copies(configless: ConfiglessSite) -> None:
    """There is no slurm.conf in /etc/slurm, and no way to the controller's."""
    listed = configless.cluster.on_node("n1", "ls", "/etc/slurm", "/run/slurm/conf/", configless.cluster.etc).stdout
    assert "/run/slurm/conf/:\nplugstack.conf\nslurm.conf\n" in listed
    assert "/etc/slurm:\nplugstack.conf\nqrmi_config.json\n" in listed
    assert f"{configless.cluster.etc}:\n" in listed
    assert "config.json" not in listed.replace("qrmi_config.json", "", 1)


def test_a_batch_job_over_two_nodes(configless: ConfiglessSite) -> None:
    """Hooks, plugin and every task find their options; the config is the node's own in /etc/slurm."""
    script = "#!/bin/sh\nenv\nsrun -N2 -n2 sh -c 'echo $SLURMD_NODENAME: $ibm_demo_QRMI_JOB_ACQUISITION_TOKEN'\n"
    job_id = configless.cluster.sbatch(script, "--qpu=ibm_demo", "-N2")
    assert configless.cluster.wait_job_over(job_id).state == "COMPLETED", configless.cluster.job_output(job_id)
    output = configless.cluster.job_output(job_id)
    token = environment_of(output)["ibm_demo_QRMI_JOB_ACQUISITION_TOKEN"]
    assert set(re.findall(r"^n\d: .*$", output, re.MULTILINE)) == {f"n1: {token}", f"n2: {token}"}
    assert not configless.emulator.open_sessions()
    assert configless.record_of(job_id) is None


def test_srun_on_a_node_as_a_user(configless: ConfiglessSite) -> None:
    """The user's srun has --qpu from the copy, and its task has the QPU."""
    done = configless.cluster.on_node("n1", "srun", "--qpu=ibm_demo", "env", user=configless.cluster.user)
    assert done.returncode == 0, done.stderr
    assert environment_of(done.stdout)["QRMI_JOB_QPU_RESOURCES"] == "ibm_demo"
    configless.cluster.wait_nodes_idle()
    assert not configless.emulator.open_sessions()


def test_the_doctor_and_validate_config(configless: ConfiglessSite) -> None:
    """Nothing is wrong, the doctor says that this is a copy, and both check the node's own config."""
    results = doctor(configless)
    assert [name for name, (level, _) in results.items() if level == "error"] == []
    assert results["slurm.conf"] == ("ok", "configless: /run/slurm/conf/slurm.conf is slurmd's copy of slurmctld's")
    assert results["plugstack"] == ("ok", "/run/slurm/conf/plugstack.conf:1")
    assert results["config"] == ("ok", f"{NODES_CONFIG}: ibm_demo")
    assert said(configless, "validate-config") == "ok: 1 resource\n"
    config = configless.config_path.rename(configless.config_path.with_suffix(".away"))
    try:
        assert f"cannot read {NODES_CONFIG}: " in said(configless, "validate-config", status=2)
        assert doctor(configless)["config"][0] == "error"
    finally:
        config.rename(configless.config_path)


def test_slurm_conf_names_the_controllers_files(configless: ConfiglessSite) -> None:
    """It prints what the controller has, for the controller's files; nothing names a copy, which slurmd overwrites."""
    printed = said(configless, "slurm-conf", "--existing-task-prolog", "/etc/slurm/own.sh")
    assert not re.search("/run/slurm|conf-cache|/var/spool/slurmd", printed)
    blocks = dict(re.findall(r"^### (.*)\n(?:# .*\n)*([^#]*)", printed, re.MULTILINE))
    there = configless.cluster.slurm_conf.read_text()
    lines = blocks["/etc/slurm/slurm.conf on slurmctld's node: add"].split()
    assert lines.pop(1) == "TaskProlog=/etc/slurm/task_prolog"
    assert len(lines) == 3
    assert all(f"\n{line}\n" in there for line in lines)
    wanted = f"optional {STUB} {NODES_CONFIG} --state-dir={configless.state_dir}"
    assert blocks["/etc/slurm/plugstack.conf on slurmctld's node: add"].strip() == wanted
    assert "exec " in blocks["/etc/slurm/task_prolog (mode 0755)"] + printed
    assert "SLURM_CONF" not in blocks["/etc/systemd/system/qrmi-slurm-recover.service"]
    assert "job_submit.lua /etc/slurm/ && " in printed


def test_the_catalogue_is_not_written_into_a_copy(configless: ConfiglessSite) -> None:
    """slurmctld would not see it."""
    assert "run this on slurmctld's node" in said(configless, "catalogue", status=2)
    assert not configless.cluster.on_node("n1", "ls", "/run/slurm/conf/qrmi_catalogue.lua").stdout


@pytest.fixture
def holding(configless: ConfiglessSite) -> Iterator[int]:
    """A job that holds the QPU on n1; afterwards slurmd is as it was."""
    job_id = configless.cluster.sbatch("#!/bin/sh\nsleep 600\n", "--qpu=ibm_demo", "--nodelist=n1")
    configless.cluster.wait_job(job_id, {"RUNNING"})
    try:
        yield job_id
    finally:
        (configless.cluster.node_etc / "slurm.conf").unlink(missing_ok=True)
        configless.cluster.slurm("scancel", str(job_id))
        configless.cluster.revive_nodes()
        assert not configless.emulator.open_sessions()


def test_status_with_an_empty_slurm_conf(configless: ConfiglessSite, holding: int) -> None:
    """An admin may have made it for Debian 12's unit: slurmd ignores it, and so does the command."""
    assert holding in held(configless)
    (configless.cluster.node_etc / "slurm.conf").touch()
    assert holding in held(configless)
    assert doctor(configless)["slurm.conf"][0] == "ok"


def test_the_doctor_on_a_node_with_two_configurations(configless: ConfiglessSite, holding: int) -> None:
    """slurmd uses its copy, Slurm's commands the file in /etc/slurm: the doctor warns."""
    (configless.cluster.node_etc / "slurm.conf").write_text(configless.cluster.slurm_conf.read_text())
    assert "slurm.conf" not in doctor(configless)
    (configless.cluster.node_etc / "slurm.conf").write_text(f"{configless.cluster.slurm_conf.read_text()}# old\n")
    level, message = doctor(configless)["slurm.conf"]
    assert (level, "differs from /run/slurm/conf/slurm.conf" in message) == ("warning", True)
    assert holding


def test_recover_while_slurmd_is_stopped(configless: ConfiglessSite, holding: int) -> None:
    """systemd removes /run/slurm with a slurmd that has RuntimeDirectory=slurm; the state directory is found."""
    configless.cluster.stop_daemon("n1")
    assert configless.cluster.on_node("n1", "rm", "-r", "/run/slurm").returncode == 0
    assert holding in held(configless)
    assert f"job {holding} ibm_demo: would leave" in said(configless, "recover", "--dry-run")


def test_a_node_that_has_never_got_its_configuration(configless: ConfiglessSite) -> None:
    """On Debian 12 slurmd stays inactive: recover warns that it looks at the defaults, and the doctor says why."""
    configless.cluster.stop_daemon("n1")
    try:
        assert configless.cluster.on_node("n1", "rm", "-r", "/run/slurm", "/var/spool/slurmd").returncode == 0
        assert said(configless, "recover").startswith("warning: there is no slurm.conf on this node, ")
        level, message = doctor(configless)["slurm.conf"]
    finally:
        configless.cluster.revive_nodes()
    assert (level, message) == ("error", "there is neither /etc/slurm/slurm.conf nor /run/slurm/conf/slurm.conf")


def test_the_pages_drop_in_lets_debians_slurmd_start(tmp_path: Path) -> None:
    """Debian 12's unit has a condition that fails on such a node, Debian 13's has none; nor has it with the drop-in."""
    units = tmp_path / "etc/systemd/system"
    units.mkdir(parents=True)
    packaged = Path("/lib/systemd/system/slurmd.service").read_text()
    (units / "slurmd.service").write_text(packaged.replace("=/etc/slurm/", f"={tmp_path}/etc/slurm/"))
    env = {"PATH": os.defpath, "SYSTEMD_UNIT_PATH": str(units)}
    ask = ["systemd-analyze", "condition", "--unit=slurmd.service"]
    before = subprocess.run(ask, env=env, capture_output=True, text=True)
    has_condition = "\nConditionPathExists=/etc/slurm/slurm.conf\n" in packaged
    assert (before.returncode, "ConditionPathExists" in before.stderr) == (int(has_condition), has_condition)
    make_folder, write, *_ = pages.block("docs/admin.md", "Configless clusters", "sh").commands
    for command in (make_folder, write):
        subprocess.run(["bash", "-c", command.replace("/etc/systemd", f"{tmp_path}/etc/systemd")], check=True)
    after = subprocess.run(ask, env=env, capture_output=True, text=True)
    assert (after.returncode, after.stdout + after.stderr) == (0, "")
    env["SYSTEMD_UNIT_PATH"] += ":"  # the units that this one names
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "slurmd.service"], env=env, capture_output=True, text=True
    )
    assert (verified.returncode, verified.stderr) == (0, "")
