"""Each command of the pages for admins does what its page says, typed as it stands, on a machine of its own."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from slurm import pages
from slurm.cluster import stop_left_up
from slurm.emulator import API_KEY
from slurm.machine import BASE_PACKAGES, Machine
from slurm.pages import ROOT, Block
from slurm.polling import wait_for

ADMIN, README = "docs/admin.md", "README.md"
# Followed from the first line to the last by the fixture `installed`.
INSTALLING = (
    "1. Packages, on every node",
    "2. The suite, on every compute node",
    "3. The plugin, on every compute and login node",
    "4. The configuration, on every compute node",
    "5. The hooks, in slurm.conf",
    "6. The plugin's line, in plugstack.conf, on every node",
    "7. The first job",
    "8. What the hooks could not release",
)
UPGRADING, REMOVING = "Upgrading qrmi-slurm", "Removing"
THE_EMULATOR = "The emulator"
DEMO = "qrmi-slurm"  # the section of README in which it is

# What nothing types, and why not. `make` is asked whether it knows what to do.
NOT_TYPED = {
    "dnf install python3.11 gcc make slurm-devel": "this is Debian",
    "make bench ARGS='--plugin /path/other.so,{config},--option --json figures.json'": "it needs another plugin",
    "make bench ARGS=--docs": "it writes the page",
    "make bench": "a quarter of an hour",
    "make soak JOBS=300": "some minutes",
    "make test": "this is a part of it",
    "pip install": "a mention of what other lines type",
}

Given = Callable[["Installed"], str]


@dataclass
class Installed:
    """The machine after the page was followed, and what each command printed that was typed on the way."""

    machine: Machine
    printed: dict[str, str] = field(default_factory=dict)

    def type(
        self, command: str, *, as_user: bool = False, status: int = 0, env: Mapping[str, str] | None = None
    ) -> str:
        """Type a command, which must end with that status, and return what it printed."""
        cluster = self.machine.cluster
        done = self.machine.type(command, user=cluster.user if as_user else None, env=env)
        logs = "\n".join(cluster.log_tail(name) for name in ("slurmctld", "n1"))
        assert done.returncode == status, f"{command}\n{done.stdout}\n{logs}"
        self.printed[command] = done.stdout
        return done.stdout

    def follow(self, block: Block) -> None:
        """Type each command of a block."""
        for command in block.commands:
            if command not in NOT_TYPED:
                self.type(command, as_user=block.language == "console")

    def sbatch(self, script: str, *options: str) -> int:
        """Submit a job as the user, and return its id."""
        words = " ".join(["sbatch", "--parsable", *options])
        return int(self.type(f"{words} <<'END'\n#!/bin/bash\n{script}\nEND", as_user=True))

    def output(self, job_id: int) -> str:
        """Wait until a job has ended and all nodes are idle, and return what it printed."""
        self.machine.cluster.wait_job_over(job_id)
        return self.machine.cluster.job_output(job_id)


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A cluster that has never seen the suite, and a user with the example."""
    with Machine() as machine:
        for name in ("bell.sh", "bell.py"):
            shutil.copy(ROOT / "examples" / name, machine.cluster.user.home)
        yield machine


@pytest.fixture(scope="module")
def installed(machine: Machine) -> Installed:
    """Follow docs/admin.md from the first package to the last timer, with the emulator of README as the service."""
    found = Installed(machine)
    assert found.output(found.sbatch("echo a job before")) == "a job before\n"
    machine.path("/etc/systemd/system").mkdir(parents=True, exist_ok=True)
    machine.path("/opt/slurm").mkdir()
    machine.path("/opt/slurm/include").symlink_to("/usr/include")  # as if Slurm had been built by hand
    with ThreadPoolExecutor() as side:
        emulator = side.submit(start_emulator, found)
        for section in INSTALLING:
            if section == INSTALLING[3]:
                emulator.result()
            for block in [one for one in pages.blocks(ADMIN) if one.section == section]:
                if block.is_typed:
                    found.follow(block)
                elif "Prolog=" in block.text:
                    conf = machine.path("/etc/slurm/slurm.conf")
                    conf.write_text(conf.read_text() + block.text)
    return found


def start_emulator(installed: Installed) -> None:
    """Install and start what README says; Qiskit is there already."""
    install, serve = pages.block(README, THE_EMULATOR, "sh").commands
    env = {"PYTHONPATH": str(BASE_PACKAGES), "PIP_NO_COMPILE": "1"}
    installed.type(install, env=env)
    installed.machine.start("emulator", serve, env)
    log = installed.machine.cluster.log("emulator").with_suffix(".out")
    wait_for(lambda: "listening on http://127.0.0.1:8290" in log.read_text(), "the emulator to listen", 60)
    installed.printed[serve] = log.read_text()


# --- docs/admin.md, from its top ---------------------------------------------------------------------------


def test_the_page_leads_to_a_job(installed: Installed) -> None:
    """The doctor finds no error, the job sees what the page shows, and a job without a QPU nothing of it."""
    assert "error" not in installed.printed["qrmi-slurm doctor"]
    [(command, shown)] = pages.block(ADMIN, INSTALLING[6], "console").session
    assert masked(installed.printed[command].splitlines()) == masked(shown)
    assert "QRMI" not in installed.output(installed.sbatch("env"))
    assert not installed.machine.open_sessions()


def test_wheels_are_enough_for_a_node_without_an_index(installed: Installed) -> None:
    """`pip download` brings all that `pip install` takes elsewhere: what the tests' own folder of wheels has."""
    assert any("pip download --dest wheels" in command for command in installed.printed)
    downloaded = {path.name for path in (installed.machine.checkout / "wheels").glob("*.whl")}
    assert {path.name for path in installed.machine.wheels.glob("*.whl")} <= downloaded


def test_readme_says_the_same_in_short(installed: Installed) -> None:
    """What README types to install is typed by the page as well, and the lines for slurm.conf are equal."""
    for number in range(3):
        for command in pages.block(README, "Install it on a cluster", "sh", number).commands:
            assert command in installed.printed
    lines = pages.block(README, "Install it on a cluster", "").text
    assert lines == pages.block(ADMIN, INSTALLING[4], "").text


# --- what the pages show ------------------------------------------------------------------------------------


def test_what_validate_config_shows_in_readme(installed: Installed) -> None:
    """README's example of a config is the file in examples/, and the command says of it what README shows."""
    example = pages.block(README, "Install it on a cluster", "json").text
    assert example == (ROOT / "examples" / "qrmi_config.json").read_text()
    [(command, shown)] = pages.block(README, "Install it on a cluster", "console").session
    config = installed.machine.path("/etc/slurm/qrmi_config.json")
    before = config.read_text()
    try:
        config.write_text(example)
        assert installed.type(command, status=1).splitlines() == shown
    finally:
        config.write_text(before)


def test_the_refusal_in_readme(installed: Installed) -> None:
    """A QPU's name with a typing error: what README shows, under this cluster's own job id."""
    (submit, shown), (look, reason) = pages.block(README, DEMO, "console", 1).session
    printed = installed.type(submit, as_user=True)
    assert masked(printed.splitlines()) == masked(shown)
    job_id = int(printed.split()[-1])
    installed.machine.cluster.wait_job_over(job_id)
    printed = installed.type(look.replace("-2.", f"-{job_id}."), as_user=True)
    assert masked(printed.splitlines()) == masked(reason)


def test_the_demo_in_readme() -> None:
    """`make demo KEEP=1` prints what README shows of `make demo`, and then how to go on."""
    [(command, shown)] = pages.block(README, DEMO, "console").session
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        [*command.split(), "KEEP=1"], cwd=ROOT, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    left_up = re.search(r"^ *source (\S+)/env\.sh$", done.stdout, re.MULTILINE)
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        lines = [line for line in masked(done.stdout.splitlines()) if not line.startswith(("  tidy", "  setup"))]
        wanted = masked(shown)
        while "            | ..." in wanted:
            place = wanted.index("            | ...")
            assert lines[:place] == wanted[:place]
            go_on = lines.index(wanted[place + 1])
            lines, wanted = lines[go_on:], wanted[place + 1 :]
        assert lines[: len(wanted)] == wanted
        assert left_up is not None
    finally:
        if left_up:
            stop_left_up(Path(left_up[1]))


def masked(lines: list[str]) -> list[str]:
    """Return lines without what differs from run to run: numbers, ids, users, bars, blank lines."""
    text = "\n".join(lines)
    text = re.sub(r"\b[0-9a-f]{8}\b|\d+(\.\d+)*", "0", text)
    text = re.sub(r"^\S+\$ ", "$ ", text, flags=re.MULTILINE)
    return [re.sub(r"#+", "#", line).rstrip() for line in text.splitlines() if line.strip()]


# --- every command that no section above or below types ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    """How a command of a page is typed.

    Args:
        given: makes what the command is about, and returns what it is called here, in place of `stands_for`.
        stands_for: what the page writes for it.
        shows: what the command prints, as a regular expression.
        then: words behind the command.
        as_user: whether a user types it.
        status: how it ends.
        env: variables that the page has said nothing of.
    """

    shows: str = ""
    given: Given | None = None
    stands_for: str = "4711"
    then: str = ""
    as_user: bool = False
    status: int = 0
    env: Mapping[str, str] = field(default_factory=dict)


def a_pending_release(installed: Installed) -> str:
    """Let a job end while the service refuses to close its session, and return its id."""
    fault = installed.machine.emulator("POST", "faults", {"call": "update_session", "kind": "error", "status": 500})
    job_id = installed.sbatch("true", "--qpu=ibm_demo", "--nodelist=n1")
    installed.output(job_id)
    installed.machine.emulator("DELETE", f"faults/{fault['id']}")
    assert str(job_id) in installed.type("qrmi-slurm status")
    return str(job_id)


def a_held_job(installed: Installed) -> str:
    """Submit a job that waits to be released, and return its id."""
    return str(installed.sbatch("true", "--hold"))


def a_drained_node(installed: Installed) -> str:
    """Drain n1, as a Prolog that is not there does."""
    installed.type("scontrol update NodeName=n1 State=DRAIN Reason=test")
    return "n1"


def a_qpu_job(installed: Installed) -> str:
    """Run a job with a QPU to its end, and return its id."""
    job_id = installed.sbatch("true", "--qpu=ibm_demo")
    installed.output(job_id)
    return str(job_id)


def a_program(installed: Installed) -> str:
    """Write a program into the user's home."""
    (installed.machine.cluster.user.home / "program.py").write_text("print('ran')\n")
    return "program.py"


OF_PROLOG, OF_EPILOG = r"qrmi-slurm-prolog info: acquired: job=\d+", r"qrmi-slurm-epilog info: released: job=\d+"
STEPS = {
    "/opt/qrmi-emulator/bin/qrmi-slurm emulator --help": Step("--backend", env={"PYTHONPATH": str(BASE_PACKAGES)}),
    "/opt/qrmi-slurm/bin/pip install qrmi": Step("already satisfied: qrmi"),
    "export ibm_quebec_QRMI_IBM_QCS_IAM_APIKEY=...": Step(
        f"ibm_demo_QRMI_IBM_QCS_IAM_APIKEY={API_KEY}",
        given=lambda _installed: "ibm_demo",
        stands_for="ibm_quebec",
        then=f"; export ibm_demo_QRMI_IBM_QCS_IAM_APIKEY={API_KEY}; srun --qpu=ibm_demo env",
        as_user=True,
    ),
    "journalctl -t qrmi-slurm-prolog": Step(OF_PROLOG, given=a_qpu_job),
    "journalctl -t qrmi-slurm-prolog -t qrmi-slurm-epilog": Step(rf"(?s){OF_PROLOG}.*{OF_EPILOG}", given=a_qpu_job),
    "journalctl -t qrmi-slurm-prolog -t qrmi-slurm-epilog --grep job=4711": Step(
        rf"(?s)\A{OF_PROLOG}[^\n]*\n{OF_EPILOG}[^\n]*\n\Z", given=a_qpu_job
    ),
    "make -B -C cli_filter install SLURM_PLUGIN_DIR=/usr/lib64/slurm": Step(
        "packaged/usr/lib64/slurm/spank_qrmi.so", env={"DESTDIR": "packaged"}
    ),
    "pip install 'qrmi[ibm]'": Step("already satisfied: qrmi", as_user=True),
    "qrmi-slurm --help": Step("validate-config"),
    "qrmi-slurm doctor --login-node": Step("--qpu +srun has the option"),
    "qrmi-slurm qpus": Step("ibm_demo +ibm-quantum-compute-service +yes"),
    "qrmi-slurm recover": Step(),
    "qrmi-slurm recover --dry-run": Step("ibm_demo", given=a_pending_release, then="; qrmi-slurm recover --now"),
    "qrmi-slurm recover --now": Step("released", given=a_pending_release),
    "qrmi-slurm recover --state-dir OLD": Step(given=lambda _installed: "/var/spool/qrmi-slurm", stands_for="OLD"),
    "qrmi-slurm release 4711": Step("released", given=a_pending_release),
    "qrmi-slurm release --forget JOBID": Step("released", given=a_pending_release, stands_for="JOBID"),
    "qrmi-slurm slurm-conf": Step("(?m)^Prolog=/opt/qrmi-slurm/bin/qrmi-slurm-prolog$"),
    "qrmi-slurm slurm-conf --existing-task-prolog /etc/slurm/task_prolog.sh": Step("(?m)^/etc/slurm/task_prolog.sh "),
    "sbatch --help": Step("--qpu=names +Comma-separated list of QPU resources to use.", as_user=True),
    "sbatch --qpu=ibm_quebec job.sh": Step(
        "Submitted", given=lambda _installed: "ibm_demo bell.sh", stands_for="ibm_quebec job.sh", as_user=True
    ),
    "scontrol --local show job": Step("JobId="),
    "scontrol release 4711": Step(given=a_held_job),
    "scontrol update NodeName=n1 State=RESUME": Step(given=a_drained_node, stands_for="n1"),
    "srun python3 program.py": Step("ran", given=a_program, stands_for="program.py", as_user=True),
    "systemctl edit qrmi-slurm-recover.service": Step(),
}


def typed_elsewhere() -> set[str]:
    """Return what the sections type that are followed as a whole, and what the tests of whole sessions type."""
    whole = {(ADMIN, section) for section in (*INSTALLING, UPGRADING, REMOVING)} | {(README, THE_EMULATOR)}
    found = {
        command
        for page in pages.pages()
        for block in pages.blocks(page)
        if block.is_typed and ((page, block.section) in whole or block.language == "console")
        for command in block.commands
    }
    return found | {"make demo KEEP=1", *GOING_BACK}


def commands_by_themselves() -> list[str]:
    """Return every other command of every page."""
    found = dict.fromkeys(command for page in pages.pages() for command in pages.commands(page))
    others = typed_elsewhere() | NOT_TYPED.keys()
    return [command for command in found if command not in others]


GOING_BACK = ("ln -sfn qrmi-slurm-0.1.0 /opt/qrmi-slurm",)


@pytest.mark.parametrize("command", commands_by_themselves())
def test_a_command_within_the_text(installed: Installed, command: str) -> None:
    """It ends well and shows what the page says; one that is new to the pages needs a line in STEPS."""
    step = STEPS[command]
    name = step.given(installed) if step.given else step.stands_for
    typed = command.replace(step.stands_for, name) + step.then
    printed = installed.type(typed, as_user=step.as_user, status=step.status, env=step.env)
    assert re.search(step.shows, printed), printed
    installed.machine.cluster.wait_nodes_idle()


def test_no_step_is_left_of_a_command_that_is_gone() -> None:
    """What STEPS and NOT_TYPED have stands in a page, but for what a whole section types now."""
    on_pages = {command for page in pages.pages() for command in pages.commands(page)}
    assert STEPS.keys() == set(commands_by_themselves())
    assert NOT_TYPED.keys() <= on_pages


@pytest.mark.parametrize("command", [command for command in NOT_TYPED if command.startswith("make ")])
def test_make_knows_what_takes_too_long_to_be_typed(command: str) -> None:
    """The target exists, and the program behind `make bench` has the options."""
    dry = command.replace("make", "make --dry-run", 1)
    done = subprocess.run(["bash", "-c", dry], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    bench: list[str | Path] = [sys.executable, "-P", ROOT / "tests" / "bench" / "bench.py", "--help"]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    options = subprocess.run(bench, env=env, capture_output=True, text=True)
    for option in re.findall(r"--(?:plugin|json|docs|quick)\b", command):
        assert option in options.stdout


# --- docs/admin.md, to its end: these change the installation, in this order ----------------------------------


def test_the_credentials_in_slurmds_log_that_the_page_warns_of(installed: Installed) -> None:
    """At SlurmdDebug=debug slurmstepd logs what TaskProlog exports; our own messages never have a value."""
    installed.output(installed.sbatch("true", "--qpu=ibm_demo", "--nodelist=n1"))
    assert API_KEY in installed.machine.cluster.slurmd_log("n1")
    assert API_KEY not in installed.machine.syslog.read_text()


def test_upgrading_while_jobs_run(installed: Installed) -> None:
    """One job after another meets the switch to the new version and back; none fails, no node drains."""
    machine = installed.machine
    project = machine.checkout / "pyproject.toml"
    project.write_text(re.sub("(?m)^version = .*$", 'version = "0.2.0"', project.read_text()))
    stop = machine.cluster.user.home / "stop"
    loop = f"until [ -e {stop} ]; do srun --qpu=ibm_demo --nodelist=n1 true || echo failed; echo done; done"
    with ThreadPoolExecutor() as side:
        jobs = side.submit(installed.type, loop, as_user=True)
        try:
            installed.follow(pages.block(ADMIN, UPGRADING, "sh"))
            assert installed.type("qrmi-slurm --version").startswith("qrmi-slurm 0.2.0 ")
            wait_some_jobs(installed)
            for command in GOING_BACK:
                installed.type(command)
            assert installed.type("qrmi-slurm --version").startswith("qrmi-slurm 0.1.0 ")
            wait_some_jobs(installed)
        finally:
            stop.touch()
    assert jobs.result().count("done") > 4
    assert "failed" not in jobs.result()
    machine.cluster.wait_nodes_idle()
    assert not machine.open_sessions()


def wait_some_jobs(installed: Installed) -> None:
    """Wait until two more jobs have opened their sessions."""
    now = len(installed.machine.emulator("GET", "sessions"))
    wait_for(lambda: len(installed.machine.emulator("GET", "sessions")) >= now + 2, "two more jobs", 20)


def test_removing_while_jobs_run(installed: Installed) -> None:
    """A job that holds a QPU ends well, one that waits for its start is told, no node drains, other jobs go on."""
    machine = installed.machine
    plugstack = machine.path("/etc/slurm/plugstack.conf")
    # An option of the site's own: the hooks have to find it until the last record is gone.
    plugstack.write_text(plugstack.read_text().replace("config.json", "config.json --state-dir=/var/spool/our-own"))
    go_on = machine.cluster.user.home / "go-on"
    script = f"until [ -e {go_on} ]; do sleep 0.1; done; srun env"
    holding = installed.sbatch(script, "--qpu=ibm_demo")
    machine.cluster.wait_job(holding, {"RUNNING"})
    waiting = installed.sbatch("srun env", "--qpu=ibm_demo", "--hold")
    first, second, last = (pages.block(ADMIN, REMOVING, "sh", number) for number in range(3))

    installed.follow(first)
    installed.type(f"scontrol release {waiting}")
    assert "not known at this site: ibm_demo" in installed.machine.cluster.job_output(wait_over(machine, waiting))
    go_on.touch()
    assert "\nQRMI_JOB_QPU_RESOURCES=ibm_demo\n" in installed.output(holding)
    assert machine.cluster.job(holding).state == "COMPLETED"
    assert not machine.open_sessions()

    read_before = times_read(machine)
    installed.follow(second)
    assert "no job holds a QPU" in installed.printed["qrmi-slurm status"]
    assert not re.search("(Prolog|Epilog)=", machine.path("/etc/slurm/slurm.conf").read_text())
    wait_for(lambda: all(now > read_before[node] for node, now in times_read(machine).items()), "slurmd to read it", 20)
    installed.follow(last)

    for node in machine.cluster.nodes:
        assert "QRMI" not in installed.output(installed.sbatch("srun env", f"--nodelist={node}"))
    assert "--qpu" not in installed.type("sbatch --help", as_user=True)
    left = [*machine.path("/opt/").glob("qrmi-slurm*"), *machine.path("/etc/systemd/system/").glob("qrmi-slurm*")]
    assert not [*left, *machine.path("/etc/slurm/").glob("qrmi*")]


def wait_over(machine: Machine, job_id: int) -> int:
    """Wait until a job has ended; others may run."""
    machine.cluster.wait_job(job_id)
    return job_id


def times_read(machine: Machine) -> dict[str, int]:
    """Return how often each slurmd has read its configuration again."""
    return {node: machine.cluster.slurmd_log(node).count("Log file re-opened") for node in machine.cluster.nodes}
