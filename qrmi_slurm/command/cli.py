"""The command `qrmi-slurm`: one sub-command for each question of an admin.

Exit status: 0 all is well; 1 the command did its work and found faults; 2 it could not do its work, or was
called wrongly. Results go to standard output, all else to standard error.
"""

import os
import platform
import pwd
import re
import sys
import time
import traceback
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from qrmi_slurm.command import render
from qrmi_slurm.errors import BackendError, ConfigError, QrmiSlurmError, RecordError, SchedulerError
from qrmi_slurm.names import SLURM_CONF, SLURMD_NODENAME
from qrmi_slurm.slurm import plugstack
from qrmi_slurm.text import printable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qrmi_slurm.checks.online.check import Report
    from qrmi_slurm.config.config_file import Resource
    from qrmi_slurm.hooks.recover import World
    from qrmi_slurm.report.usage import Usage
    from qrmi_slurm.scheduling.qpus import Listing

_EXIT_FAULTS: Final = 1
_EXIT_FAILED: Final = 2
_WATCH_INTERVAL_S: Final = 2.0
_NOTICES_TIMEOUT_S: Final = 3.0  # scontrol itself tries for 9 s where slurmctld is down
_ASK_INTERVAL_S: Final = 30.0  # each time is a login and a request at every service

_EXAMPLES: Final = """Examples:

\b
  qrmi-slurm validate-config                        check the config that plugstack.conf names
  qrmi-slurm validate-config --strict qrmi_config.json
  qrmi-slurm status                                 which job holds which QPU
  qrmi-slurm recover                                release what the hooks could not
  qrmi-slurm doctor                                 is everything around the hooks as it should be?
  qrmi-slurm qpus                                   which QPUs there are, and whether they can be used now
  qrmi-slurm report --by account                    who held which QPU, and for how long
  qrmi-slurm drain ibm_quebec --reason "..."        its jobs wait, until: qrmi-slurm resume ibm_quebec
  qrmi-slurm sensor                                 jobs of a QPU that is offline wait; for a timer
  qrmi-slurm slurm-conf                             the lines for slurm.conf, plugstack.conf and systemd
  qrmi-slurm catalogue                              tell Slurm's controller of the QPUs, for scheduling by licenses
  qrmi-slurm COMMAND --help                         what a command does, with examples
"""

# rich_markup_mode=None: help is plain text, and nothing in it is read as markup.
app = typer.Typer(
    name="qrmi-slurm",
    help="Quantum computers for Slurm jobs: checks and mends what the hooks of qrmi-slurm use.",
    epilog=_EXAMPLES,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Format(StrEnum):
    """In which form a command prints its result."""

    TEXT = "text"
    JSON = "json"
    GITHUB = "github"


def _show_version(wanted: bool) -> None:
    if wanted:
        python = ".".join(str(number) for number in sys.version_info[:3])
        typer.echo(f"qrmi-slurm {_version('qrmi-slurm')} (qrmi {_version('qrmi')}, Python {python})")
        raise typer.Exit


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the versions and exit."),
    ] = False,
) -> None:
    pass


@app.command(
    "validate-config",
    short_help="Report every fault of qrmi_config.json.",
    epilog="""Examples:

\b
  qrmi-slurm validate-config
  qrmi-slurm validate-config /etc/slurm/qrmi_config.json
  qrmi-slurm validate-config --strict --format json new_config.json
  qrmi-slurm validate-config --format github examples/qrmi_config.json
  qrmi-slurm validate-config --online               as root, on a compute node

--online goes the way that the hooks' requests go, step by step: proxy, name, TCP, TLS, endpoint, credential, and asks
QRMI at last. It opens no session. The proxy is that of --env: on the plugin's line; a shell's is not the hooks'.

Exit status: 0 the config can be used, 1 it has errors or --online met one, 2 it cannot be read.""",
)
def validate_config(
    path: Annotated[
        Path | None,
        typer.Argument(
            show_default=False,
            help="The config to check. Default: the one that the plugin's line in plugstack.conf names.",
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Count warnings as errors.")] = False,
    output: Annotated[
        Format,
        typer.Option(
            "--format", metavar="text|json|github", help="For people, for programs, or for GitHub's pull requests."
        ),
    ] = Format.TEXT,
    online: Annotated[
        bool, typer.Option("--online", help="Try the way to each resource's service as well, and its credentials.")
    ] = False,
    resource: Annotated[
        list[str] | None,
        typer.Option(
            "--resource", metavar="NAME", show_default=False, help="With --online: only this one; repeatable."
        ),
    ] = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0.1, max=600, help="With --online: for each step.")
    ] = 10.0,
) -> None:
    """Report every fault of a qrmi_config.json: where it stands, what is wrong, what to write instead.

    Values of variables are never shown.
    """
    from qrmi_slurm.validation import validate  # jsonschema costs 60 ms, which other commands need not pay

    where = ""
    if path is None:
        options = plugstack.read(_slurm_conf())
        path = options.config_path
        where = f"{options.source} names it" if options.source else "no line in plugstack.conf names another"
    try:
        diagnosis = validate.validate_file(path, _installed_members())
    except ConfigError as error:
        hint = f"{where}; the file is needed on compute nodes only" if where else ""
        raise ConfigError(error.message, error.hint or hint) from error
    reports = _go_online(path, resource or [], timeout_s) if online else []
    if output is Format.JSON:
        sys.stdout.write(render.diagnosis_json(diagnosis, reports if online else None, strict=strict) + "\n")
    elif output is Format.GITHUB:
        sys.stdout.write(render.diagnosis_github(diagnosis))
    else:
        render.print_diagnosis(diagnosis, sys.stdout, strict=strict)
        render.print_reports(reports, sys.stdout)
    if not diagnosis.is_valid(strict=strict) or any(report.has_errors for report in reports):
        raise typer.Exit(_EXIT_FAULTS)


def _go_online(path: Path, names: list[str], timeout_s: float) -> "list[Report]":
    """Try the way to each resource of a config; none of them where the config cannot be loaded, which is said."""
    from qrmi_slurm.checks.online import check
    from qrmi_slurm.config import config_file  # requests costs 80 ms, which other commands need not pay

    try:
        resources = config_file.load(path).resources
    except ConfigError as error:
        sys.stderr.write(f"warning: --online tried nothing: {error.message}\n")
        return []
    unknown = [name for name in names if name not in resources]
    if unknown:
        raise ConfigError(f"{path} has no resource {', '.join(map(printable, unknown))}")
    chosen = [item for item in resources.values() if not names or item.name in names]
    limits = check.Limits(step_s=timeout_s, qrmi_s=max(timeout_s, check.DEFAULT_QRMI_TIMEOUT_S))
    with render.progress(sys.stderr) as tell:
        return check.run(chosen, plugstack.read(_slurm_conf()), limits, os.environ, tell)


_StateDir = Annotated[
    Path | None,
    typer.Option(
        "--state-dir",
        show_default=False,
        help="Where the records are. Default: what the plugin's line in plugstack.conf says.",
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


@app.command(
    short_help="Show what each job holds.",
    epilog="""Examples:

\b
  qrmi-slurm status
  qrmi-slurm status --watch
  qrmi-slurm status --json

A state of indeterminate: no answer came to an acquire, so a session may be open whose id nobody has. The service ends
it by itself at the time shown; the suite capped its life at the job's time limit.

Exit status: 0, or 2 where the records cannot be read.""",
)
def status(
    as_json: _Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Print it again every two seconds, until Ctrl-C.")] = False,
    state_dir: _StateDir = None,
) -> None:
    """Show what each job holds by this node's records: QPUs, states, age, attempts to release, the next one."""
    from qrmi_slurm.command import status as status_

    place = _site(state_dir).state_dir
    while True:
        shown = status_.read(place, time.time())
        if watch and sys.stdout.isatty():
            sys.stdout.write("\x1b[H\x1b[2J")  # cursor home, erase all
        if as_json:
            sys.stdout.write(render.status_json(shown) + "\n")
        else:
            render.print_status(shown, sys.stdout)
        if not watch:
            return
        sys.stdout.flush()
        time.sleep(_WATCH_INTERVAL_S)


@app.command(
    short_help="Release what the hooks could not.",
    epilog="""Examples:

\b
  qrmi-slurm recover
  qrmi-slurm recover --dry-run
  qrmi-slurm recover --now          do not wait for the next attempt's time

It may run at any time, beside jobs, hooks and itself: a record that another process holds is left to that one.
qrmi-slurm-recover.timer runs it at boot and once a minute. Where a node's name in Slurm is not its short host name, set
SLURMD_NODENAME.

Exit status: 0 nothing is held that no job uses, 1 something still is, 2 the records cannot be read.""",
)
def recover(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done, for every record.")] = False,
    now: Annotated[bool, typer.Option("--now", help="Try again even where the next attempt is not due.")] = False,
    as_json: _Json = False,
    state_dir: _StateDir = None,
) -> None:
    """Release what the hooks could not: releases that failed, and QPUs of jobs that no longer live.

    Slurm is asked once which jobs live, and only where there is a record.
    """
    from qrmi_slurm.hooks import recover as recover_

    results = recover_.run(_site(state_dir), _world, recover_.Mode(dry_run=dry_run, now=now))
    if as_json:
        sys.stdout.write(render.recovery_json(results, dry_run=dry_run) + "\n")
    else:
        render.print_recovery(results, sys.stdout, dry_run=dry_run)
    if any(result.is_left for result in results):
        raise typer.Exit(_EXIT_FAULTS)


@app.command(
    short_help="Release all that a job holds.",
    epilog="""Examples:

\b
  qrmi-slurm release 4711
  qrmi-slurm release 4711 --yes
  qrmi-slurm release 4711 --forget  after a look at the service: no session is open there

Exit status: 0 released, 1 something is still held, 2 nothing was done.""",
)
def release(
    job_id: Annotated[int, typer.Argument(metavar="JOBID", min=1, help="The job, as Slurm numbers it.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask, even where the job lives.")] = False,
    forget: Annotated[bool, typer.Option("--forget", help="Drop what no token is known of, as well.")] = False,
    cluster: Annotated[
        str | None, typer.Option("--cluster", show_default=False, help="Where records of more than one are here.")
    ] = None,
    state_dir: _StateDir = None,
) -> None:
    """Release all that a job holds; asks first where the job lives or Slurm cannot tell."""
    from qrmi_slurm.hooks import recover as recover_
    from qrmi_slurm.state import inventory

    options = _site(state_dir)
    items = [item for item in inventory.read(options.state_dir) if item.folder.job_id == job_id]
    items = [item for item in items if cluster in (None, item.folder.cluster)]
    if not items:
        raise RecordError(f"nothing is recorded of job {job_id} in {options.state_dir}", "see: qrmi-slurm status")
    if len(items) > 1:
        names = ", ".join(item.folder.cluster for item in items)
        raise RecordError(f"there is a job {job_id} of more than one cluster: {names}", "choose with --cluster")
    (item,) = items
    if item.fault is not None:
        raise item.fault
    if item.record is None:
        raise RecordError(f"job {job_id} has acquired nothing", "see: qrmi-slurm status")
    word = _world().living_word(item.record)
    if word and not yes:
        held = ", ".join(entry.name for entry in item.record.entries if entry.is_pending) or "nothing"
        _ask(f"{word}. Release what it holds ({printable(held)})?")
    left = recover_.take_back(item, options, is_living=bool(word), forget=forget)
    for entry in left.entries if left is not None else ():
        sys.stdout.write(printable(f"job {job_id} {entry.name}: still held: {entry.reason}", 1000) + "\n")
    if left is not None:
        raise typer.Exit(_EXIT_FAULTS)
    sys.stdout.write(f"job {job_id}: released\n")


def _ask(question: str) -> None:
    """Go on only where somebody at a terminal says yes."""
    if not sys.stdin.isatty():
        raise QrmiSlurmError(
            question.partition(".")[0], "nobody is here to be asked: say --yes to release all the same"
        )
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise QrmiSlurmError("nothing was released", "")


def _site(state_dir: Path | None) -> plugstack.SiteOptions:
    """Return the site's options, with another state directory where one is named."""
    options = plugstack.read(_slurm_conf())
    return options if state_dir is None else options._replace(state_dir=state_dir.absolute())


def _world() -> "World":
    """Ask Slurm for its jobs, and the kernel for its boot id."""
    from qrmi_slurm.hooks.recover import World
    from qrmi_slurm.slurm import jobs
    from qrmi_slurm.state import record

    slurm_conf = _slurm_conf()
    node = os.environ.get(SLURMD_NODENAME) or platform.node().partition(".")[0]
    return World(plugstack.cluster_name(slurm_conf), jobs.jobs(slurm_conf), {node: record.boot_id()})


@app.command(
    short_help="Look at all that the hooks need.",
    epilog="""Examples:

\b
  qrmi-slurm doctor
  qrmi-slurm doctor --login-node    what a login node needs: Slurm, plugstack.conf, the plugin
  qrmi-slurm doctor --json

Run it as root on each kind of node. It changes nothing.

Exit status: 0 no error (warnings allowed), 1 an error, 2 it could not look.""",
)
def doctor(
    login_node: Annotated[bool, typer.Option("--login-node", help="Look only at what a login node needs.")] = False,
    as_json: _Json = False,
) -> None:
    """Look at all that has to be right around the hooks, one line each: ok, warning or error, with the remedy."""
    from qrmi_slurm.checks import doctor as doctor_
    from qrmi_slurm.checks import installation, result

    patient = doctor_.Patient(_slurm_conf(), installation.this_one(), login_node)
    with render.progress(sys.stderr) as tell:
        lines = doctor_.examine(patient, tell)
    if as_json:
        sys.stdout.write(render.checkup_json(lines) + "\n")
    else:
        render.print_checkup(lines, sys.stdout)
    if result.has_errors(lines):
        raise typer.Exit(_EXIT_FAULTS)


@app.command(
    "slurm-conf",
    short_help="Print lines for Slurm and systemd.",
    epilog="""Examples:

\b
  qrmi-slurm slurm-conf
  qrmi-slurm slurm-conf --existing-task-prolog /etc/slurm/task_prolog.sh

A site's own TaskProlog keeps running: the script that is printed for it runs both, and Slurm reads the lines of both.
The last part is optional: the QPUs as licenses, for which jobs wait in the queue. As root it has the config's counts.

Exit status: 0, or 2 where a path cannot stand in Slurm's files.""",
)
def slurm_conf(
    existing_task_prolog: Annotated[
        Path | None,
        typer.Option("--existing-task-prolog", metavar="PATH", show_default=False, help="The site's own TaskProlog."),
    ] = None,
) -> None:
    """Print the lines for slurm.conf, plugstack.conf and systemd, with the paths of this installation."""
    from qrmi_slurm.checks import installation
    from qrmi_slurm.checks import setup_lines as slurm_conf_
    from qrmi_slurm.config import config_file
    from qrmi_slurm.scheduling import catalogue

    existing = existing_task_prolog.absolute() if existing_task_prolog is not None else None
    where = _slurm_conf()
    ours, options = installation.this_one(), plugstack.read(where)
    found = slurm_conf_.parts(ours, options, where, existing)
    licenses, fault = None, ""
    try:
        licenses = catalogue.licenses(config_file.load(options.config_path).resources.values())
    except ConfigError as error:
        fault = error.message
    sys.stdout.write(slurm_conf_.render([*found, slurm_conf_.license_part(ours, where, licenses, fault)]))


@app.command(
    short_help="List the site's QPUs.",
    epilog="""Examples:

\b
  qrmi-slurm qpus
  qrmi-slurm qpus --watch
  qrmi-slurm qpus --json ibm_quebec

USABLE: whether a job could use it now. STATE: what its service says, or drained, where an admin has taken it out of
service. QUEUE: jobs that wait at the service, where it tells. JOBS: Slurm jobs that hold it; for root their ids, by the
records on this node. NOTE: why jobs wait for it. For others than root the list is that of root's last run here;
qrmi-slurm-sensor.timer or qrmi-slurm-qpus.timer (qrmi-slurm slurm-conf prints both) keeps it fresh.

Exit status: 0, or 2 where there is neither a config nor a list that can be read.""",
)
def qpus(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", show_default=False, help="Only these QPUs.")
    ] = None,
    as_json: _Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Print it again and again, until Ctrl-C.")] = False,
    state_dir: _StateDir = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0.1, max=600, help="How long QRMI may take for all.")
    ] = 20.0,
) -> None:
    """List the site's QPUs: type, whether each can be used now, how many jobs wait for it, and which hold it."""
    from qrmi_slurm.config import config_file
    from qrmi_slurm.scheduling import qpus as qpus_

    options = _site(state_dir)
    is_root = os.geteuid() == 0
    while True:
        if is_root:
            resources = list(config_file.load(options.config_path).resources.values())
            with render.progress(sys.stderr) as tell:
                tell(f"QRMI is asked for {len(resources)} QPUs")
                listing = qpus_.ask(resources, options, timeout_s)
            listing = qpus_.with_notices(listing, _notices(resources))
            _publish(listing, options.state_dir)
        else:
            listing = qpus_.read_published(options.state_dir)
        listing = qpus_.only(listing, names or [])
        if watch and sys.stdout.isatty():
            sys.stdout.write("\x1b[H\x1b[2J")  # cursor home, erase all
        if as_json:
            sys.stdout.write(render.qpus_json(listing) + "\n")
        else:
            render.print_qpus(listing, sys.stdout, time.time())
        if not watch:
            return
        sys.stdout.flush()
        time.sleep(_ASK_INTERVAL_S if is_root else _WATCH_INTERVAL_S)


@app.command(
    short_help="Write what Slurm's Lua plugins know of the QPUs.",
    epilog="""Examples:

\b
  qrmi-slurm catalogue
  qrmi-slurm catalogue --check
  qrmi-slurm catalogue --output /shared/etc/slurm/qrmi_catalogue.lua

Run it as root, where the config is, after each change of it. job_submit.lua on the controller and cli_filter.lua on
login nodes read it at the next job; it holds names, licenses and access rules, and no secret.

Exit status: 0, 1 where --check finds it missing or out of date, 2 where it cannot be read or written.""",
)
def catalogue(
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", metavar="PATH", show_default=False, help="Default: qrmi_catalogue.lua beside slurm.conf."
        ),
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; say whether the file is as the config is now.")
    ] = False,
) -> None:
    """Write the catalogue: the QPUs, their licenses and who may use them, for job_submit.lua and cli_filter.lua."""
    from qrmi_slurm.config import config_file
    from qrmi_slurm.scheduling import catalogue as catalogue_

    where = _slurm_conf()
    path = output or catalogue_.path_beside(where)
    resources = list(config_file.load(plugstack.read(where).config_path).resources.values())
    notices = _notices(resources)
    if not check:
        catalogue_.write(path, resources, notices)
        sys.stdout.write(f"{path}: {len(resources)} QPU{'s' if len(resources) != 1 else ''}\n")
    elif catalogue_.is_current(path, resources, notices):
        sys.stdout.write(f"{path}: up to date\n")
    else:
        sys.stdout.write(f"{path}: missing or out of date; run: qrmi-slurm catalogue\n")
        raise typer.Exit(_EXIT_FAULTS)


def _publish(listing: "Listing", state_dir: Path) -> None:
    """Leave the list for users; where that fails, the admin still gets an answer."""
    from qrmi_slurm.scheduling import qpus as qpus_

    try:
        qpus_.publish(listing, state_dir)
    except RecordError as error:
        sys.stderr.write(f"warning: users do not see this: {error}\n")


def _notices(resources: "Sequence[Resource]") -> dict[str, str]:
    """Return why QPUs are out of service; where Slurm cannot be asked that is said, and none is known to be."""
    from qrmi_slurm.outages import reservations

    try:
        return reservations.notices(resources, reservations.read(_slurm_conf(), _NOTICES_TIMEOUT_S).outages)
    except SchedulerError as error:
        sys.stderr.write(f"warning: which QPUs are drained is not known: {error.message}\n")
        return {}


@app.command(
    short_help="Take QPUs out of service.",
    epilog="""Examples:

\b
  qrmi-slurm drain ibm_quebec --reason "maintenance until Friday"
  qrmi-slurm drain ibm_quebec ibm_sherbrooke --reason "new keys" --json
  scontrol show reservations                        what Slurm knows of it

Jobs that ask for it wait in Slurm's queue, and users read the reason where they submit and in qrmi-slurm qpus. Running
jobs keep it. The same again, with another reason, changes the reason. Slurm keeps it, as a reservation of the QPU's
license, for a year at the most. To try the QPU meanwhile, as root: sbatch --reservation=qpu_out_LICENSE ...

Exit status: 0 done, 1 Slurm refused one, 2 nothing was done.""",
)
def drain(
    names: Annotated[list[str], typer.Argument(metavar="QPU...", show_default=False, help="Which, as in --qpu.")],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", show_default=False, help="Why; users read it.")],
    yes: Annotated[bool, typer.Option("--yes", help="Also where other QPUs share the license.")] = False,
    as_json: _Json = False,
) -> None:
    """Take QPUs out of service, with a reason for users: jobs that ask for them wait."""
    from qrmi_slurm.outages import reservations

    checked = reservations.checked_reason(reason)
    if checked is None:
        raise QrmiSlurmError(
            "the reason is empty, of several lines, or too long",
            f"one line of 1 to {reservations.MAX_REASON_CHARS} characters",
        )
    _switch(names, checked, yes=yes, as_json=as_json)


@app.command(
    short_help="Put QPUs back into service.",
    epilog="""Examples:

\b
  qrmi-slurm resume ibm_quebec

Jobs that waited start by themselves. One whose service was offline when the sensor looked last stays out of service
until the sensor sees it online.

Exit status: 0 done, 1 Slurm refused one, 2 nothing was done.""",
)
def resume(
    names: Annotated[list[str], typer.Argument(metavar="QPU...", show_default=False, help="Which, as in --qpu.")],
    yes: Annotated[bool, typer.Option("--yes", help="Also where other QPUs share the license.")] = False,
    as_json: _Json = False,
) -> None:
    """Put QPUs back into service that `qrmi-slurm drain` has taken out."""
    _switch(names, None, yes=yes, as_json=as_json)


def _switch(names: list[str], reason: str | None, *, yes: bool, as_json: bool) -> None:
    from qrmi_slurm.config import config_file
    from qrmi_slurm.scheduling import drain as drain_
    from qrmi_slurm.scheduling.sensor import Place

    options = _site(None)
    resources = list(config_file.load(options.config_path).resources.values())
    order = drain_.Order(tuple(names), reason, _caller(), with_others=yes)
    results = drain_.carry_out(order, resources, Place(options, _slurm_conf()))
    if as_json:
        sys.stdout.write(render.switched_json(results) + "\n")
    else:
        render.print_switched(results, sys.stdout)
    if any(result.fault for result in results):
        raise typer.Exit(_EXIT_FAULTS)


def _caller() -> str:
    """Return the login name of whoever calls, behind sudo; empty where it cannot be told."""
    name = os.environ.get("SUDO_USER", "")
    if not name:
        try:
            name = pwd.getpwuid(os.getuid()).pw_name
        except KeyError:
            return ""
    return name if re.fullmatch(r"[A-Za-z0-9_.@\\-]{1,64}", name) else ""


@app.command(
    short_help="Let jobs wait for QPUs that are offline.",
    epilog="""Examples:

\b
  qrmi-slurm sensor
  qrmi-slurm sensor --json

For qrmi-slurm-sensor.timer, once a minute, on one node that can read the config and ask Slurm: best slurmctld's. A QPU
is taken out of service when its service says that it is offline or paused, or gives no answer two times in a row; it is
back when its service says online. What an admin has drained stays so, and a QPU whose users bring the credentials is
left alone. Jobs that left open which QPU they get (--qpu='any:...') are moved to one that is free. The lists that users
see, in qrmi-slurm qpus and where they submit, are written.

What it takes out of service is back by itself an hour after its last run.

Exit status: 0, 1 Slurm refused something, 2 nothing was done: QRMI, Slurm or the state directory cannot be used.""",
)
def sensor(
    as_json: _Json = False,
    state_dir: _StateDir = None,
    timeout_s: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0.1, max=600, help="How long QRMI may take for all.")
    ] = 20.0,
) -> None:
    """Bring Slurm in line with the QPUs' state, once: jobs of a QPU that is offline wait, and do not fail."""
    from qrmi_slurm.config import config_file
    from qrmi_slurm.scheduling import sensor as sensor_

    options = _site(state_dir)
    resources = list(config_file.load(options.config_path).resources.values())
    report = sensor_.run(resources, sensor_.Place(options, _slurm_conf()), timeout_s)
    if as_json:
        sys.stdout.write(render.sensed_json(report) + "\n")
    else:
        render.print_sensed(report, sys.stdout)
    for fault in report.faults:
        sys.stderr.write(printable(f"error: {fault}", 1000) + "\n")
    if report.faults:
        raise typer.Exit(_EXIT_FAULTS)


@app.command(
    short_help="Say who held which QPU, and for how long.",
    epilog="""Examples:

\b
  qrmi-slurm report                                  the last seven days, by user
  qrmi-slurm report --since 2026-01 --until 2026-02 --by account
  qrmi-slurm report --since 30d --by account,qpu --csv >month.csv
  qrmi-slurm report --since today --by acquisition   each one in a line
  qrmi-slurm report --since 7d --html /tmp/qpus.html
  qrmi-slurm report --from n1.jsonl --from n2.jsonl  ledgers copied from nodes that share no --state-dir

A time is today, yesterday, now, an amount that lies back (90m, 12h, 7d, 4w), a month, a date (its first moment) or a
date with a time of day, as 2026-01-31T12:00; local, where no zone stands there.

--by is one or more of user, account, qpu, type, node, cluster and day, separated by commas; or acquisition alone.

HELD: for how long QPUs were held within that time, as Slurm writes times. SHARE: of all that was held. USED: of what
there was to be held; a QPU's capacity is the config's. FAILED: what could not be acquired. What is held now counts up
to now, by the records. The picture is one file that needs nothing else; in it are users, accounts and jobs, but no
session's id: that stands in the JSON of --by acquisition alone.

Exit status: 0, or 2 where the ledger cannot be read or the file not be written.""",
)
def report(
    since: Annotated[str, typer.Option("--since", metavar="TIME", help="From when on.")] = "7d",
    until: Annotated[str, typer.Option("--until", metavar="TIME", help="Until when.")] = "now",
    by: Annotated[str, typer.Option("--by", metavar="KEY[,KEY]...", help="What the lines are made by.")] = "user",
    as_json: _Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print comma-separated values instead of text.")] = False,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="PATH", show_default=False, help="Write a page with picture and tables there."),
    ] = None,
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="PATH", show_default=False, help="Write the picture alone there.")
    ] = None,
    from_: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            metavar="PATH",
            show_default=False,
            help="A ledger's file, or a folder with some, instead of this node's; repeatable.",
        ),
    ] = None,
    state_dir: _StateDir = None,
) -> None:
    """Say who held which QPU, and for how long: by user, account, QPU or day, as a table, JSON, CSV or a picture.

    Each acquisition leaves a line in the ledger below the state directory when it ends; this adds them up.
    """
    from qrmi_slurm.report import page, timeline, usage

    keys = usage.parse_keys(by)
    found = _usage(since, until, from_ or [], state_dir)
    if found.damaged:
        sys.stderr.write(f"warning: {found.damaged} lines of the ledger cannot be read, and are left out\n")
    who = usage.KEYS[next((key for key in keys if key in ("user", "account", "type")), "user")]
    if html is not None:
        _write(html, page.render(found, keys, who))
    if svg is not None:
        _write(svg, timeline.svg(found, who, is_alone=True))
    if as_json:
        sys.stdout.write(render.usage_json(found, keys) + "\n")
    elif as_csv:
        sys.stdout.write(render.usage_csv(found, keys))
    elif html is None and svg is None:
        render.print_usage(found, keys, sys.stdout)


def _usage(since: str, until: str, sources: list[Path], state_dir: Path | None) -> "Usage":
    """Read what there is of some time: this site's, or what the admin names."""
    from qrmi_slurm.config import config_file
    from qrmi_slurm.report import timespan, usage

    now_s = time.time()
    span = timespan.parse(since, until, now_s)
    options = _site(state_dir)
    acquisitions, damaged = (
        usage.read_from(sources, span, now_s) if sources else usage.read(options.state_dir, span, now_s)
    )
    try:
        resources = config_file.load(options.config_path).resources
        capacities = {name: resource.sharing.capacity for name, resource in resources.items()}
    except ConfigError:  # not root, or not a node that has it
        capacities = {}
    return usage.Usage(span, tuple(acquisitions), capacities, damaged)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise QrmiSlurmError(f"cannot write {printable(str(path))}: {error.strerror}") from error


@app.command(
    short_help="Serve emulated quantum services.",
    # Its options are its own: the emulator reads them, --help among them.
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)
def emulator(context: typer.Context) -> None:
    """Serve emulated quantum services, for trying jobs and configs without a quantum computer."""
    # Its server, Qiskit and Aer are an extra: nobody needs them on a compute node.
    try:
        from qrmi_slurm.emulator import command
    except ModuleNotFoundError as error:
        raise QrmiSlurmError(
            f"the emulator needs {error.name}, which is not installed", "pip install 'qrmi-slurm[emulator]'"
        ) from error
    raise typer.Exit(command.main(context.args))


def _slurm_conf() -> Path:
    """Return Slurm's configuration file: where the environment says, where it usually is, or slurmd's copy of it."""
    candidates = (plugstack.DEFAULT_SLURM_CONF, plugstack.CONFIGLESS_SLURM_CONF)
    found = next((path for path in candidates if path.exists()), plugstack.DEFAULT_SLURM_CONF)
    return Path(os.environ.get(SLURM_CONF) or found)


def _installed_members() -> tuple[str, ...]:
    """Return the types that the installed QRMI knows; none where it cannot be asked, which is said."""
    from qrmi_slurm.calls import backend  # imports QRMI when asked

    try:
        return backend.known_members()
    except BackendError as error:
        sys.stderr.write(f"warning: {error}; types are checked against those known to qrmi-slurm alone\n")
        return ()


def main() -> None:
    """Run the command; the console script's entry point."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # a name in a config may have letters that the locale has not
            reconfigure(errors="backslashreplace")
    try:
        app(prog_name="qrmi-slurm")
    except BrokenPipeError:  # `qrmi-slurm status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_EXIT_FAILED)
    except QrmiSlurmError as error:
        render.print_error(error, sys.stderr)
        sys.exit(_EXIT_FAILED)
    except Exception as error:  # noqa: BLE001 the last line: a surprise becomes one sentence, without its data
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}:{last.lineno}"
        render.print_error(
            QrmiSlurmError(
                f"internal error: {type(error).__name__} at {place}",
                f"please report it, with the command and the output of: qrmi-slurm --version ({place})",
            ),
            sys.stderr,
        )
        sys.exit(_EXIT_FAILED)


if __name__ == "__main__":
    main()
