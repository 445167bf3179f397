"""Every command in the admin pages does what its page says, typed verbatim on a machine of its own."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from slurm import pages
from slurm.admin import NOT_TYPED, Admin, masked, renamed, shows
from slurm.cluster import stop_left_up
from slurm.emulator import API_KEY
from slurm.machine import BASE_PACKAGES, Machine
from slurm.pages import ROOT
from slurm.polling import wait_for

ADMIN, README = "docs/admin.md", "README.md"
# The fixture `admin` follows these from the first line to the last.
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
DEMO = "qrmi-slurm"  # the README section that shows it
INSTALL_IN_README = "Install it on a cluster"

Given = Callable[[Admin], str]


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A cluster without the suite, and a user with the example."""
    with Machine() as machine:
        for name in ("bell.sh", "bell.py"):
            shutil.copy(ROOT / "examples" / name, machine.cluster.user.home)
        yield machine


@pytest.fixture(scope="module")
def admin(machine: Machine) -> Admin:
    """Follow docs/admin.md from the first package to the last timer, with README's emulator as the service."""
    found = Admin(machine)
    assert found.output(found.sbatch("echo a job before")) == "a job before\n"
    machine.path("/etc/systemd/system").mkdir(parents=True, exist_ok=True)
    machine.path("/opt/slurm").mkdir()
    machine.path("/opt/slurm/include").symlink_to("/usr/include")  # as if Slurm had been built from source
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


def start_emulator(admin: Admin) -> None:
    """Install and start what README says; Qiskit is already there."""
    install, serve = pages.block(README, THE_EMULATOR, "sh").commands
    env = {"PYTHONPATH": str(BASE_PACKAGES), "PIP_NO_COMPILE": "1"}
    admin.type(install, env=env)
    admin.machine.start("emulator", serve, env)
    log = admin.machine.cluster.log("emulator").with_suffix(".out")
    wait_for(lambda: "listening on http://127.0.0.1:8290" in log.read_text(), "the emulator to listen", 60)
    admin.printed[serve] = log.read_text()


# --- docs/admin.md, from its top ---------------------------------------------------------------------------


def test_following_the_page_ends_in_a_running_job(admin: Admin) -> None:
    """The doctor finds no error, the job sees what the page shows, and a job without a QPU is unaffected."""
    assert "error" not in admin.printed["qrmi-slurm doctor"]
    [(command, shown)] = pages.block(ADMIN, INSTALLING[6], "console").session
    assert masked(admin.printed[command].splitlines()) == masked(shown)
    assert "QRMI" not in admin.output(admin.sbatch("env"))
    assert not admin.machine.open_sessions()


def test_wheels_suffice_for_a_node_without_an_index(admin: Admin) -> None:
    """`pip download` fetches everything `pip install` needs elsewhere, here from the tests' own wheel folder."""
    assert any("pip download --dest wheels" in command for command in admin.printed)
    downloaded = {path.name for path in (admin.machine.checkout / "wheels").glob("*.whl")}
    assert {path.name for path in admin.machine.wheels.glob("*.whl")} <= downloaded


def test_readme_says_the_same_in_short(admin: Admin) -> None:
    """The page types every install command of README, and the slurm.conf lines are identical."""
    blocks = [block for block in pages.blocks(README) if (block.section, block.language) == (INSTALL_IN_README, "sh")]
    assert len(blocks) > 1
    for command in [command for block in blocks for command in block.commands]:
        assert command in admin.printed
    lines = pages.block(README, INSTALL_IN_README, "").text
    assert lines == pages.block(ADMIN, INSTALLING[4], "").text


# --- what the pages show ------------------------------------------------------------------------------------


def test_what_validate_config_shows_about_the_example(admin: Admin) -> None:
    """README's example of a config is the file in examples/, and the command prints what the page shows."""
    example = pages.block(README, INSTALL_IN_README, "json").text
    assert example == (ROOT / "examples" / "qrmi_config.json").read_text()
    [(command, shown)] = pages.block(ADMIN, "What validate-config says about the example", "console").session
    config = admin.machine.path("/etc/slurm/qrmi_config.json")
    before = config.read_text()
    try:
        config.write_text(example)
        assert admin.type(command, status=1).splitlines() == shown
    finally:
        config.write_text(before)


def test_the_refusal_in_readme(admin: Admin) -> None:
    """A mistyped QPU name: the output matches README, under this cluster's own job id."""
    (submit, shown), (look, reason) = pages.block(README, DEMO, "console", 1).session
    printed = admin.type(submit, as_user=True)
    assert masked(printed.splitlines()) == masked(shown)
    job_id = int(printed.split()[-1])
    admin.machine.cluster.wait_job_over(job_id)
    printed = admin.type(look.replace("-2.", f"-{job_id}."), as_user=True)
    assert masked(printed.splitlines()) == masked(reason)


def test_the_demo_in_readme() -> None:
    """`make demo KEEP=1` prints what README shows for `make demo`, then how to continue."""
    [(command, shown)] = pages.block(README, DEMO, "console").session
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        [*command.split(), "KEEP=1"], cwd=ROOT, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    left_up = re.search(r"^ *source (\S+)/env\.sh$", done.stdout, re.MULTILINE)
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        lines = [line for line in done.stdout.splitlines() if not line.startswith(("  tidy", "  setup"))]
        until = next(place for place, line in enumerate(lines) if line.startswith("  passed"))
        assert shows(lines[: until + 1], shown), done.stdout
        assert left_up is not None
    finally:
        if left_up:
            stop_left_up(Path(left_up[1]))


# --- every command outside the sections above and below -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Step:
    """How one of a page's commands is typed.

    Args:
        given: sets up what the command is about, and returns its name here, which replaces `stands_for`.
        stands_for: the name the page uses.
        shows: what the command prints, as a regular expression.
        then: words to append to the command.
        as_user: whether a user types it.
        status: its exit status.
        env: variables the page does not mention.
    """

    shows: str = ""
    given: Given | None = None
    stands_for: str = "4711"
    then: str = ""
    as_user: bool = False
    status: int = 0
    env: Mapping[str, str] = field(default_factory=dict)


def a_pending_release(admin: Admin) -> str:
    """End a job while the service refuses to close its session, and return its id."""
    fault = admin.machine.emulator("POST", "faults", {"call": "update_session", "kind": "error", "status": 500})
    job_id = admin.sbatch("true", "--qpu=ibm_demo", "--nodelist=n1")
    admin.output(job_id)
    admin.machine.emulator("DELETE", f"faults/{fault['id']}")
    assert str(job_id) in admin.type("qrmi-slurm status")
    return str(job_id)


def a_held_job(admin: Admin) -> str:
    """Submit a held job, and return its id."""
    return str(admin.sbatch("true", "--hold"))


def a_drained_node(admin: Admin) -> str:
    """Drain n1, as a missing Prolog would."""
    admin.type("scontrol update NodeName=n1 State=DRAIN Reason=test")
    return "n1"


def a_qpu_job(admin: Admin) -> str:
    """Run a job with a QPU to its end, and return its id."""
    job_id = admin.sbatch("true", "--qpu=ibm_demo")
    admin.output(job_id)
    return str(job_id)


def a_running_qpu_job(admin: Admin) -> str:
    """Start a job that holds a QPU, and return its id."""
    job_id = admin.sbatch("sleep 600", "--qpu=ibm_demo")
    admin.machine.cluster.wait_job(job_id, {"RUNNING"})
    return str(job_id)


def a_drained_qpu(admin: Admin) -> str:
    """Take ibm_demo out of service, and return root's command to try it."""
    admin.type("qrmi-slurm drain ibm_demo --reason test")
    return "--wait --wrap true"


def a_course(admin: Admin) -> str:
    """Create the people of the course, and return its time."""
    make_people(admin)
    return "tomorrow"


def make_people(admin: Admin) -> None:
    """Create the people the page mentions. Only this machine knows them, and nothing runs as them."""
    admin.type(
        "groupadd --force quantum; for name in alice bob; do id -u $name || useradd --groups quantum $name; done"
    )


def a_waiting_choice(admin: Admin) -> str:
    """Submit a job with a choice of QPUs, and return the values for `scontrol update`."""
    return f"{admin.sbatch('true', '--qpu=any:ibm_demo', '--hold')} Licenses=qpu_ibm_demo"


def the_sensors_units(admin: Admin) -> str:
    """Install the units."""
    admin.type("install -m 0644 systemd/qrmi-slurm-sensor.* /etc/systemd/system/")
    return "4711"


def a_program(admin: Admin) -> str:
    """Write a program into the user's home."""
    (admin.machine.cluster.user.home / "program.py").write_text("print('ran')\n")
    return "program.py"


SLOTS = ",quebec_slots:8", " --qpu-slots-license:ibm_demo=quebec_slots"
WITHOUT_SLOTS = (
    f"; status=$?; sed -i 's/{SLOTS[0]}//' /etc/slurm/slurm.conf; sed -i 's/{SLOTS[1]}//' /etc/slurm/plugstack.conf; "
    "scontrol reconfigure; qrmi-slurm catalogue; exit $status"
)


def a_license_of_slots(admin: Admin) -> str:
    """Let ibm_demo be shared by slots, and return what to run with some."""
    for name, pattern, added in (("slurm", "^Licenses=.*$", SLOTS[0]), ("plugstack", "^optional .*$", SLOTS[1])):
        conf = admin.machine.path(f"/etc/slurm/{name}.conf")
        conf.write_text(re.sub(pattern, rf"\g<0>{added}", conf.read_text(), flags=re.MULTILINE))
    admin.type("scontrol reconfigure; qrmi-slurm catalogue")
    return "--wait --wrap true"


SCHEDULING, ACCOUNTING = "docs/scheduling.md", "docs/accounting.md"
SETTING_IT_UP, SWITCH = "Setting it up", "Taking a QPU out of service"
# Names in the pages, and their counterparts here.
NAMES = {", ibm_kingston": "", "ibm_quebec": "ibm_demo", "ibm_qebec": "ibm_dmeo"}
ACCOUNTING_TITLE = "Accounting: who held which QPU, and for how long"
COLLECTING = "Collecting ledgers from the nodes"
OF_PROLOG, OF_EPILOG = r"qrmi-slurm-prolog info: acquired: job=\d+", r"qrmi-slurm-epilog info: released: job=\d+"
STEPS = {
    "/opt/qrmi-emulator/bin/qrmi-slurm emulator --help": Step("--backend", env={"PYTHONPATH": str(BASE_PACKAGES)}),
    "/opt/qrmi-slurm/bin/pip install qrmi": Step("already satisfied: qrmi"),
    "export ibm_quebec_QRMI_IBM_QCS_IAM_APIKEY=...": Step(
        f"ibm_demo_QRMI_IBM_QCS_IAM_APIKEY={API_KEY}",
        given=lambda _admin: API_KEY,
        stands_for="...",
        then="; srun --qpu=ibm_demo env",
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
    "env -u SLURM_SPANK__SLURM_SPANK_OPTION_spank_qrmi_qpu": Step(),
    "make -C cli_filter install": Step("packaged/usr/lib64/slurm/spank_qrmi.so", env={"DESTDIR": "packaged"}),
    "make -C cli_filter install-lua SLURM_PLUGIN_DIR=/opt/qrmi-slurm/lib": Step("lua"),
    "qrmi-slurm report --by account": Step("ACCOUNT +JOBS", given=a_qpu_job),
    "qrmi-slurm report --by acquisition": Step("ibm_demo", given=a_qpu_job),
    "qrmi-slurm report --since 30d --by account": Step("ACCOUNT +JOBS", given=a_qpu_job),
    "qrmi-slurm recover": Step(),
    "qrmi-slurm recover --dry-run": Step("ibm_demo", given=a_pending_release, then="; qrmi-slurm recover --now"),
    "qrmi-slurm recover --now": Step("released", given=a_pending_release),
    "qrmi-slurm recover --state-dir OLD": Step(given=lambda _installed: "/var/spool/qrmi-slurm", stands_for="OLD"),
    "qrmi-slurm release 4711": Step("released", given=a_pending_release),
    "qrmi-slurm release --forget JOBID": Step("released", given=a_pending_release, stands_for="JOBID"),
    "qrmi-slurm slurm-conf --existing-task-prolog /etc/slurm/task_prolog.sh": Step("(?m)^/etc/slurm/task_prolog.sh "),
    "sbatch --help": Step("--qpu=names +Comma-separated list of QPU resources to use.", as_user=True),
    "scontrol --local show job": Step("JobId="),
    "scontrol show lic": Step(),
    "scontrol show licenses": Step(),
    "scontrol show reservations": Step(),
    "scontrol release 4711": Step(given=a_held_job),
    "qrmi-slurm why 4711": Step(
        "(?m)^Job [0-9]+ (runs with ibm_demo|is starting)",
        given=a_running_qpu_job,
        then="; status=$?; scancel --me; exit $status",
        as_user=True,
    ),
    "srun --jobid=4711 --overlap env": Step(
        "(?m)^QRMI_JOB_QPU_RESOURCES=ibm_demo$",
        given=a_running_qpu_job,
        then="; status=$?; scancel --me; exit $status",
        as_user=True,
    ),
    "scontrol update NodeName=n1 State=RESUME": Step(given=a_drained_node, stands_for="n1"),
    "srun python3 program.py": Step("ran", given=a_program, stands_for="program.py", as_user=True),
    "systemctl edit qrmi-slurm-recover.service": Step(),
}


# These need QPUs as licenses, which the fixture `scheduled` sets up.
SCHEDULED_STEPS = {
    'qrmi-slurm drain ibm_quebec --reason "..."': Step("ibm_demo: drained", then="; qrmi-slurm resume ibm_demo"),
    "qrmi-slurm catalogue --check": Step(),
    "qrmi-slurm catalogue --output /shared/qrmi_catalogue.lua": Step(
        given=lambda _admin: "/srv",
        stands_for="/shared",
        then="; cmp /srv/qrmi_catalogue.lua /etc/slurm/qrmi_catalogue.lua",
    ),
    "qrmi-slurm sensor": Step(),
    "sbatch --reservation=qpu_out_qpu_ibm_quebec --qpu=ibm_quebec ...": Step(
        "Submitted", given=a_drained_qpu, stands_for="...", then="; qrmi-slurm resume ibm_demo"
    ),
    "sbatch --qpu=ibm_quebec --licenses=quebec_slots:3 job.sh": Step(
        "Submitted", given=a_license_of_slots, stands_for="job.sh", then=WITHOUT_SLOTS
    ),
    "scontrol create reservation ReservationName=course StartTime=2027-03-05T10:00:00 Duration=60 "
    "Users=alice,bob Flags=LICENSE_ONLY Licenses=qpu_ibm_quebec:1": Step(
        "Reservation created: course",
        given=a_course,
        stands_for="2027-03-05T10:00:00",
        then="; scontrol delete ReservationName=course",
    ),
    "scontrol update JobId=... Licenses=qpu_b": Step(
        given=a_waiting_choice, stands_for="... Licenses=qpu_b", then="; scancel --user=$(id -un)"
    ),
    "systemctl enable --now qrmi-slurm-sensor.timer": Step(given=the_sensors_units),
    "touch /etc/slurm/job_submit.lua": Step(),
}


def typed_elsewhere() -> set[str]:
    """Return the commands of sections followed as a whole, and of sessions typed by the tests of whole sections."""
    whole = {(ADMIN, section) for section in (*INSTALLING, UPGRADING, REMOVING)} | {(README, THE_EMULATOR)}
    whole |= {(ACCOUNTING, COLLECTING)}
    found = {
        command
        for page in pages.pages()
        for block in pages.blocks(page)
        if block.is_typed and ((page, block.section) in whole or block.language == "console")
        for command in block.commands
    }
    by_slurmdbd = {command for page in pages.pages() for command in pages.commands(page)}
    found |= {command for command in by_slurmdbd if command.startswith(pages.OF_SLURMDBD)}
    return found | {"make demo KEEP=1", *GOING_BACK, *TO_SET_UP}


def other_commands() -> list[str]:
    """Return all other commands of all pages."""
    found = dict.fromkeys(command for page in pages.pages() for command in pages.commands(page))
    others = typed_elsewhere() | NOT_TYPED.keys()
    return [command for command in found if command not in others]


# The steps of docs/scheduling.md's section SETTING_IT_UP.
TO_SET_UP = (
    "make -C cli_filter install SLURM_PLUGIN_DIR=/opt/qrmi-slurm/lib",
    "install -m 0644 /opt/qrmi-slurm/lib/lua/job_submit.lua /etc/slurm/",
    "qrmi-slurm catalogue",
)
GOING_BACK = ("ln -sfn qrmi-slurm-0.1.0 /opt/qrmi-slurm",)


@pytest.mark.parametrize("command", [command for command in other_commands() if command not in SCHEDULED_STEPS])
def test_a_command_in_the_text(admin: Admin, command: str) -> None:
    """It exits as expected and prints what the page says. A command new to the pages needs a line in STEPS."""
    take(admin, command, STEPS[command])


def take(admin: Admin, command: str, step: Step) -> None:
    """Type a command as its step says."""
    name = step.given(admin) if step.given else step.stands_for
    typed = renamed(command, NAMES).replace(step.stands_for, name) + step.then
    printed = admin.type(typed, as_user=step.as_user, status=step.status, env=step.env)
    assert re.search(step.shows, printed), printed
    admin.machine.cluster.wait_nodes_idle()


def test_every_step_belongs_to_a_command_in_the_pages() -> None:
    """Every entry of STEPS and NOT_TYPED is still in a page, and not in a section that is typed as a whole."""
    on_pages = {command for page in pages.pages() for command in pages.commands(page)}
    assert STEPS.keys() | SCHEDULED_STEPS.keys() == set(other_commands())
    assert NOT_TYPED.keys() <= on_pages


@pytest.mark.parametrize("command", [command for command in NOT_TYPED if command.startswith("make ")])
def test_make_targets_too_slow_to_type_exist(command: str) -> None:
    """The target exists, and the program behind `make bench` has the options shown."""
    dry = command.replace("make", "make --dry-run", 1)
    done = subprocess.run(["bash", "-c", dry], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    bench: list[str | Path] = [sys.executable, "-P", ROOT / "tests" / "bench" / "bench.py", "--help"]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    options = subprocess.run(bench, env=env, capture_output=True, text=True)
    for option in re.findall(r"--(?:plugin|json|docs|quick)\b", command):
        assert option in options.stdout


# --- docs/scheduling.md and docs/accounting.md ----------------------------------------------------------------


@pytest.fixture(scope="module")
def scheduled(admin: Admin) -> Admin:
    """Follow the setup section of docs/scheduling.md without cli_filter.lua, on a site that already has a license."""
    machine = admin.machine
    conf = machine.path("/etc/slurm/slurm.conf")
    before = conf.read_text()
    conf.write_text(before + "Licenses=matlab:4\n")
    for command in TO_SET_UP:
        admin.type(command)
    admin.play(pages.block(SCHEDULING, SETTING_IT_UP, "console"), NAMES)
    printed = next(text for command, text in admin.printed.items() if command == "qrmi-slurm slurm-conf")
    lines = printed.partition("to let jobs wait for QPUs")[2].partition("\n\n")[0].partition("\n")[2]
    conf.write_text(f"{before}{lines}\n".replace("CliFilterPlugins=lua\n", ""))
    restart_slurmctld(machine)
    (machine.cluster.user.home / "job.sh").write_text("#!/bin/sh\ntrue\n")
    return admin


def restart_slurmctld(machine: Machine) -> None:
    """Restart the controller, as systemctl would."""
    machine.cluster.slurm("scontrol", "shutdown", "slurmctld")
    wait_for(lambda: not machine.cluster.is_alive("slurmctld"), "slurmctld to end", 20)
    machine.cluster.kill_daemon("slurmctld")
    machine.cluster.start_daemon("slurmctld", ["slurmctld", "-D"], {})
    wait_for(lambda: "UP" in (machine.cluster.try_slurm("scontrol", "ping") or ""), "slurmctld", 20)
    machine.cluster.wait_nodes_idle()


@contextmanager
def another_holds_the_qpu(admin: Admin) -> Iterator[None]:
    """Let another job hold ibm_demo until the block ends, and end all other jobs with it."""
    cluster = admin.machine.cluster
    # As root, so that it is not in the user's own list.
    holding = int(admin.type("sbatch --parsable --qpu=ibm_demo --nodelist=n1 --output=/dev/null --wrap 'sleep 600'"))
    cluster.wait_job(holding, {"RUNNING"})
    try:
        yield
    finally:
        admin.type(f"scancel {holding}; scancel --user={cluster.user.name}")
        cluster.wait_nodes_idle()


def test_what_users_see_with_licenses(scheduled: Admin) -> None:
    """A job waits for the QPU another job holds, and a mistyped QPU name is refused at submission."""
    user = scheduled.machine.cluster.user.name
    with another_holds_the_qpu(scheduled):
        scheduled.play(pages.block(SCHEDULING, "What users see", "console"), {**NAMES, "alice": user[:8]})


def test_the_switch_in_the_page(scheduled: Admin) -> None:
    """A QPU is drained under a running job, another job waits and is told why, and the QPU returns to service."""
    with another_holds_the_qpu(scheduled):
        scheduled.play(pages.block(SCHEDULING, SWITCH, "console"), NAMES)


def test_the_refusal_by_an_access_rule_in_the_page(scheduled: Admin) -> None:
    """With the page's rules, under this user's name."""
    config = scheduled.machine.path("/etc/slurm/qrmi_config.json")
    before = config.read_text()
    make_people(scheduled)
    content = json.loads(before)
    content["resources"][0]["slurm"] = {"allow": {"users": ["bob"], "groups": ["quantum"]}}
    try:
        config.write_text(json.dumps(content))
        scheduled.type("qrmi-slurm catalogue")
        names = {**NAMES, "alice": scheduled.machine.cluster.user.name}
        scheduled.play(pages.block(SCHEDULING, "Access rules", "console"), names)
    finally:
        config.write_text(before)
        scheduled.type("qrmi-slurm catalogue")


@pytest.mark.parametrize("command", SCHEDULED_STEPS)
def test_a_command_about_licenses(scheduled: Admin, command: str) -> None:
    """It succeeds and prints what the page says."""
    take(scheduled, command, SCHEDULED_STEPS[command])


def test_the_report_in_the_page(admin: Admin) -> None:
    """The same columns, for this cluster's jobs."""
    a_qpu_job(admin)
    [(command, shown)] = pages.block(ACCOUNTING, ACCOUNTING_TITLE, "console").session
    printed = admin.type(command.replace("--since 2026-01 --until 2026-02", "--since today")).splitlines()
    assert shown[1].split() == printed[1].split()
    assert [line.split()[0] for line in printed].count("total") == 1


def test_collecting_the_ledgers_as_the_page_says(admin: Admin) -> None:
    """Fetched from each node by ssh, and readable in the folder it was copied to."""
    a_qpu_job(admin)
    admin.machine.path("/srv/www").mkdir(exist_ok=True)
    admin.follow(pages.block(ACCOUNTING, COLLECTING, "sh"))
    assert list(admin.machine.path("/srv/qpu-accounting").glob("n1/*/.accounting/*.jsonl"))
    assert "<svg" in admin.machine.path("/srv/www/qpus.html").read_text()


# --- the rest of docs/admin.md: these change the installation, in this order -----------------------------------


def test_slurmds_debug_log_shows_credentials_as_the_page_warns(admin: Admin) -> None:
    """At SlurmdDebug=debug slurmstepd logs what TaskProlog exports; our own messages never contain a value."""
    admin.output(admin.sbatch("true", "--qpu=ibm_demo", "--nodelist=n1"))
    assert API_KEY in admin.machine.cluster.slurmd_log("n1")
    assert API_KEY not in admin.machine.syslog.read_text()


def test_upgrading_while_jobs_run(admin: Admin) -> None:
    """One job after another runs through the switch to the new version and back; none fails, no node drains."""
    machine = admin.machine
    project = machine.checkout / "pyproject.toml"
    project.write_text(re.sub("(?m)^version = .*$", 'version = "0.2.0"', project.read_text()))
    stop = machine.cluster.user.home / "stop"
    loop = f"until [ -e {stop} ]; do srun --qpu=ibm_demo --nodelist=n1 true || echo failed; echo done; done"
    with ThreadPoolExecutor() as side:
        jobs = side.submit(admin.type, loop, as_user=True)
        try:
            admin.follow(pages.block(ADMIN, UPGRADING, "sh"))
            assert admin.type("qrmi-slurm --version").startswith("qrmi-slurm 0.2.0 ")
            wait_some_jobs(admin)
            for command in GOING_BACK:
                admin.type(command)
            assert admin.type("qrmi-slurm --version").startswith("qrmi-slurm 0.1.0 ")
            wait_some_jobs(admin)
        finally:
            stop.touch()
    assert jobs.result().count("done") > 4
    assert "failed" not in jobs.result()
    machine.cluster.wait_nodes_idle()
    assert not machine.open_sessions()


def wait_some_jobs(admin: Admin) -> None:
    """Wait until two more jobs have opened their sessions."""
    now = len(admin.machine.emulator("GET", "sessions"))
    wait_for(lambda: len(admin.machine.emulator("GET", "sessions")) >= now + 2, "two more jobs", 20)


def test_removing_while_jobs_run(admin: Admin) -> None:
    """A running QPU job finishes, a job about to start is told, no node drains, and other jobs go on."""
    machine = admin.machine
    plugstack = machine.path("/etc/slurm/plugstack.conf")
    # A site option that the hooks need until the last record is gone.
    plugstack.write_text(plugstack.read_text().replace("config.json", "config.json --state-dir=/var/spool/our-own"))
    go_on = machine.cluster.user.home / "go-on"
    script = f"until [ -e {go_on} ]; do sleep 0.1; done; srun env"
    holding = admin.sbatch(script, "--qpu=ibm_demo")
    machine.cluster.wait_job(holding, {"RUNNING"})
    waiting = admin.sbatch("srun env", "--qpu=ibm_demo", "--hold")
    first, second, last = (pages.block(ADMIN, REMOVING, "sh", number) for number in range(3))

    admin.follow(first)
    admin.type(f"scontrol release {waiting}")
    go_on.touch()
    machine.cluster.wait_job(holding)
    assert "unknown QPU: ibm_demo" in admin.output(waiting)
    assert "\nQRMI_JOB_QPU_RESOURCES=ibm_demo\n" in admin.output(holding)
    assert machine.cluster.job(holding).state == "COMPLETED"
    assert not machine.open_sessions()

    read_before = times_read(machine)
    admin.follow(second)
    assert "no job holds a QPU" in admin.printed["qrmi-slurm status"]
    assert not re.search("(Prolog|Epilog)=", machine.path("/etc/slurm/slurm.conf").read_text())
    wait_for(lambda: all(now > read_before[node] for node, now in times_read(machine).items()), "slurmd to read it", 20)
    remove_licenses(machine)
    admin.follow(last)

    for node in machine.cluster.nodes:
        assert "QRMI" not in admin.output(admin.sbatch("srun env", f"--nodelist={node}"))
    assert "--qpu" not in admin.type("sbatch --help", as_user=True)
    left = [*machine.path("/opt/").glob("qrmi-slurm*"), *machine.path("/etc/systemd/system/").glob("qrmi-slurm*")]
    assert not [*left, *machine.path("/etc/slurm/").glob("qrmi*")]


def remove_licenses(machine: Machine) -> None:
    """Do what the page describes in words about licenses."""
    conf = machine.path("/etc/slurm/slurm.conf")
    conf.write_text(re.sub("(?m)^(JobSubmitPlugins|CliFilterPlugins|Licenses)=.*\n", "", conf.read_text()))
    for name in ("job_submit.lua", "cli_filter.lua", "qrmi_catalogue.lua"):
        (conf.parent / name).unlink(missing_ok=True)
    restart_slurmctld(machine)


def times_read(machine: Machine) -> dict[str, int]:
    """Return how often each slurmd has reread its configuration."""
    return {node: machine.cluster.slurmd_log(node).count("Log file re-opened") for node in machine.cluster.nodes}
