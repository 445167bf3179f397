"""`qrmi-slurm doctor` finds nothing wrong with a sound cluster, and finds each fault planted in one."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from slurm.polling import wait_for
from slurm.release import installed
from slurm.site import BIN, STUB, Site

HEALTHY = {
    "Slurm": "ok",
    "clock": "ok",
    "plugstack": "ok",
    "plugin": "ok",
    "--qpu": "ok",
    "Prolog": "ok",
    "TaskProlog": "ok",
    "Epilog": "ok",
    "users": "ok",
    "PrologFlags": "ok",
    "BatchStartTimeout": "ok",
    "JobRequeue": "ok",
    "MessageTimeout": "warning",  # 10 s by default: with a slow service, slurmd tells users that Prolog hangs
    "config": "ok",
    "licenses": "ok",  # not used here
    "QRMI": "ok",
    "state": "ok",
    "space": "ok",
    "records": "ok",
    "shared": "warning",  # the test's state directory is local to this machine, and the cluster has three nodes
    "private /tmp": "warning",  # and it is in /tmp
}


def doctor(site: Site, *words: str) -> dict[str, dict[str, Any]]:
    """Return the doctor's results by name, after checking that its exit status agrees with them."""
    done = site.command("doctor", "--json", *words)
    assert done.returncode in (0, 1), done.stderr
    assert not done.stderr
    said = json.loads(done.stdout)
    assert said["healthy"] is (done.returncode == 0)
    lines: dict[str, dict[str, Any]] = {}
    for line in said["lines"]:
        if line["name"] not in lines or line["level"] == "error":
            lines[line["name"]] = line
    return lines


def levels(lines: dict[str, dict[str, Any]], level: str) -> set[str]:
    """Return the names of the results of a level."""
    return {name for name, line in lines.items() if line["level"] == level}


@contextmanager
def settings(site: Site, **values: str | None) -> Iterator[None]:
    """Change slurm.conf until the block ends; None removes a setting."""
    conf = site.cluster.slurm_conf
    before = conf.read_text()
    text = before
    for name, value in values.items():
        text = re.sub(rf"^{name}=.*\n", "", text, flags=re.MULTILINE)
        text = text if value is None else f"{name}={value}\n{text}"
    try:
        conf.write_text(text)
        site.cluster.slurm("scontrol", "reconfigure")
        yield
    finally:
        conf.write_text(before)
        site.cluster.slurm("scontrol", "reconfigure")
        wait_for(lambda: _answers_as(site, before), "slurmctld to have its settings back", 20)


def _answers_as(site: Site, conf: str) -> bool:
    shown = site.cluster.slurm("scontrol", "show", "config")
    wanted = re.findall(r"^(Prolog|TaskProlog|Epilog)=(.*)$", conf, re.MULTILINE)
    return all(re.search(rf"^{name}(\[0\])?\s*= {re.escape(value)}$", shown, re.MULTILINE) for name, value in wanted)


def test_a_sound_cluster_has_no_error(site: Site) -> None:
    """Every result is there, and the only warnings are those that a test cluster on one machine cannot avoid."""
    job_id = site.cluster.sbatch("#!/bin/sh\ntrue\n", "--qpu=ibm_demo")
    site.cluster.wait_job_over(job_id)
    found = {name: line["level"] for name, line in doctor(site).items()}
    assert found.pop("syslog") in ("ok", "warning"), "depends on the machine"
    timeouts = {name: found.pop(name) for name in list(found) if name.startswith("PrologEpilogTimeout")}
    assert set(timeouts.values()) == {"ok"}
    assert len(timeouts) == 2
    assert found == HEALTHY


def test_the_output_as_text(site: Site) -> None:
    """Without --json: level, name and message on one line, the hint below it, and a summary."""
    done = site.command("doctor")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    place = next(index for index, line in enumerate(lines) if line.startswith("warning  MessageTimeout"))
    assert lines[place + 1].strip().startswith("set MessageTimeout=")
    assert re.fullmatch(r"\d warnings", lines[-1])


def test_a_login_node_needs_less(site: Site) -> None:
    """With --login-node the hooks, the config and the state directory are not checked."""
    site.config_path.unlink()
    assert set(doctor(site, "--login-node")) == {"Slurm", "clock", "plugstack", "plugin", "--qpu"}


def test_a_user_learns_what_was_not_checked(site: Site) -> None:
    """For a user, a check that needs root is a warning, never an error."""
    site.state_dir.mkdir(mode=0o711)
    done = site.cluster.run_as_user([BIN / "qrmi-slurm", "doctor", "--json"])
    lines = {line["name"]: line for line in json.loads(done.stdout)["lines"]}
    assert levels(lines, "error") == set()
    assert {"config", "users", "root"} <= levels(lines, "warning")
    assert done.returncode == 0


# One run for each set: the results do not depend on each other.
SETTINGS: tuple[tuple[dict[str, str | None], dict[str, tuple[str, str]]], ...] = (
    (
        {"Prolog": None, "TaskProlog": None, "Epilog": "/nonexistent/epilog.d/*", "PrologFlags": None},
        {
            "Prolog": ("error", "is not set"),
            "TaskProlog": ("error", "is not set"),
            "Epilog": ("error", "matches no file"),
            "PrologFlags": ("warning", "first step"),
            "BatchStartTimeout": ("warning", "count as missing"),
        },
    ),
    (
        {
            "Prolog": "/bin/true",
            "TaskProlog": "/nonexistent/task-prolog",
            "PrologFlags": "Alloc,NoHold",
            "PrologEpilogTimeout": "20",
            "MessageTimeout": "60",
        },
        {
            "Prolog": ("error", "does not run qrmi-slurm-prolog"),
            "TaskProlog": ("error", "matches no file"),
            "PrologFlags": ("ok", "Alloc,NoHold"),
            "BatchStartTimeout": ("warning", "srun gives up its step"),
            "PrologEpilogTimeout (for Prolog)": ("error", "drains the node"),
            "PrologEpilogTimeout (for Epilog)": ("error", "drains the node"),
            "MessageTimeout": ("ok", "60 s"),
        },
    ),
)


@pytest.mark.parametrize(("changes", "wanted"), SETTINGS, ids=["not set", "set wrongly"])
def test_settings_of_slurm_conf(site: Site, changes: dict[str, str | None], wanted: dict[str, tuple[str, str]]) -> None:
    """A setting that breaks the hooks, or makes Slurm give up on them, is found and has a hint."""
    with settings(site, **changes):
        lines = doctor(site)
    for name, (level, words) in wanted.items():
        assert (lines[name]["level"], words in lines[name]["message"]) == (level, True), lines[name]
        assert (lines[name]["hint"] is None) is (level == "ok")


def test_hooks_that_cannot_be_run(site: Site) -> None:
    """A Prolog that is not executable, and a TaskProlog in a folder that users cannot enter, are errors."""
    closed = site.cluster.folder / "closed"
    closed.mkdir(mode=0o700)
    for name in ("prolog", "task-prolog"):
        shutil.copy(BIN / f"qrmi-slurm-{name}", closed / f"qrmi-slurm-{name}")
    (closed / "qrmi-slurm-prolog").chmod(0o644)
    try:
        prolog, task_prolog = (str(closed / f"qrmi-slurm-{name}") for name in ("prolog", "task-prolog"))
        with settings(site, Prolog=prolog, TaskProlog=task_prolog):
            lines = doctor(site)
    finally:
        shutil.rmtree(closed)
    assert "not executable" in lines["Prolog"]["message"]
    assert lines["TaskProlog"]["level"] == "warning", "it is another installation's"
    assert lines["users"]["level"] == "error"
    assert str(closed) in lines["users"]["message"]


def test_a_venv_that_users_cannot_read(site: Site) -> None:
    """For a venv with a closed folder, the doctor tries as the user nobody and reports what fails."""
    folder = site.cluster.folder / "venv"
    shutil.copytree(BIN.parent, folder, symlinks=True)
    command = (folder / "bin" / "qrmi-slurm").read_text().replace(str(BIN.parent), str(folder))
    (folder / "bin" / "qrmi-slurm").write_text(command)
    (package,) = folder.glob("lib/python3*/site-packages/qrmi_slurm")
    package.chmod(0o700)
    try:
        command_line = [str(folder / "bin" / "qrmi-slurm"), "doctor", "--json"]
        done = subprocess.run(command_line, env=site.root_env("n1"), capture_output=True, text=True, timeout=60)
        line = next(line for line in json.loads(done.stdout)["lines"] if line["name"] == "users")
    finally:
        shutil.rmtree(folder)
    assert line["level"] == "error"
    assert "nobody" in line["message"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("# nothing\n", {"plugstack": ("error", "no --qpu")}),
        (
            "{line} --acquire-timeot=3\n{line}\n",
            {"plugstack": ("error", "unknown option --acquire-timeot|also loaded in")},
        ),
        (
            "include plugstack.conf.d/*.conf\n{line} --acquire-timeout=5\n",
            {"plugstack": ("warning", "matches no file"), "MessageTimeout": ("ok", "5 s")},
        ),
        (
            "required /nonexistent/spank_qrmi.so\n",
            {"plugstack": ("warning", "required"), "plugin": ("error", "No such file")},
        ),
    ],
    ids=["no line", "malformed, and twice", "an include without files", "required, without a plugin"],
)
def test_plugstack_conf(site: Site, text: str, wanted: dict[str, tuple[str, str]]) -> None:
    """A line that is missing, malformed, duplicated or without a plugin is found."""
    site.plugstack(text.format(line=site.plugstack_line()).rstrip("\n"))
    lines = doctor(site)
    for name, (level, words) in wanted.items():
        assert lines[name]["level"] == level, lines[name]
        assert any(word in lines[name]["message"] for word in words.split("|")), lines[name]


def test_a_plugin_that_does_not_know_this_release(site: Site) -> None:
    """It is refused by Slurm, says so itself, and doctor explains."""
    content = STUB.read_bytes()
    release = installed().release
    year, month = map(int, release.split("."))
    # The plugin's table, and the list for doctor.
    known = re.search(rb"[\x20-\x3f]\0{7}" + re.escape(bytes([year, month])) + rb"\0{6}", content)
    assert known is not None
    assert content.count(release.encode()) == 1
    content = content.replace(known[0], bytes([99]) + known[0][1:]).replace(release.encode(), b"19.05")
    other = site.cluster.etc / "spank_qrmi.so"
    other.write_bytes(content)
    site.plugstack(f"optional {other} {site.config_path} --state-dir={site.state_dir}")
    lines = doctor(site)
    assert f"so Slurm {release} does not load it" in lines["plugin"]["message"]
    assert lines["--qpu"]["level"] == "error"
    done = site.cluster.run_as_user(["srun", "true"])
    assert done.returncode == 0
    assert "spank_qrmi: this file is for Slurm" in done.stderr


def test_another_plugin_of_the_same_name(site: Site) -> None:
    """A plugin that Slurm loads but that lacks our marker is reported."""
    other = site.cluster.etc / "spank_qrmi.so"
    other.write_bytes(STUB.read_bytes().replace(b"qrmi-slurm stub", b"another's stub "))
    site.plugstack(f"optional {other} {site.config_path} --state-dir={site.state_dir}")
    line = doctor(site)["plugin"]
    assert (line["level"], f"{other} is not the plugin of qrmi-slurm" in line["message"]) == ("error", True)


@pytest.mark.parametrize(
    ("mode", "content", "level", "words"),
    [
        (0o644, None, "warning", "read by others"),
        (0o662, None, "error", "changed by others"),
        (0o600, '{"resources": [{}]}', "error", "has 3 errors"),
        (0o600, "{", "error", "has 1 error"),
    ],
)
def test_the_config(site: Site, mode: int, content: str | None, level: str, words: str) -> None:
    """The config's mode and its text are checked."""
    if content is not None:
        site.config_path.write_text(content)
    site.config_path.chmod(mode)
    line = doctor(site)["config"]
    assert (line["level"], words in line["message"]) == (level, True), line


def test_a_config_that_is_missing_or_belongs_to_a_user(site: Site) -> None:
    """Both are errors."""
    shutil.chown(site.config_path, site.cluster.user.uid)
    assert "belongs to uid" in doctor(site)["config"]["message"]
    site.config_path.unlink()
    assert "No such file" in doctor(site)["config"]["message"]


@pytest.mark.parametrize(("mode", "words"), [(0o777, "the hooks refuse it"), (0o700, "users cannot enter")])
def test_the_state_directorys_mode(site: Site, mode: int, words: str) -> None:
    """A state directory that others can change, that users cannot enter, or that belongs to a user is an error."""
    site.state_dir.mkdir()
    site.state_dir.chmod(mode)
    assert words in doctor(site)["state"]["message"]
    site.state_dir.chmod(0o711)
    assert doctor(site)["state"]["level"] == "ok"
    shutil.chown(site.state_dir, site.cluster.user.uid)
    assert "belongs to uid" in doctor(site)["state"]["message"]
    assert list(site.state_dir.iterdir()) == [], "the doctor's trial file was left behind"
