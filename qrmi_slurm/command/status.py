"""`qrmi-slurm status`: shows which job holds which QPU."""

import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final, TextIO

import typer

from qrmi_slurm.command import render, site
from qrmi_slurm.command.parameters import Json, StateDir
from qrmi_slurm.command.render import STYLES
from qrmi_slurm.text import printable

if TYPE_CHECKING:
    from qrmi_slurm.command.holdings import Holding, Holdings

_WATCH_INTERVAL_S: Final = 2.0

# By what a Holding calls its state.
STATE_STYLES: Final = {
    "acquiring": "cyan",
    "acquired": "green",
    "expired": "bold yellow",
    "releasing": "yellow",
    "failed": "dim",
    "indeterminate": "bold red",
}

app = typer.Typer()


@app.command(
    short_help="Show which job holds which QPU.",
    epilog="""Examples:

\b
  qrmi-slurm status
  qrmi-slurm status --watch
  qrmi-slurm status --json

State "expired": the session has reached the end of its life, and the job goes on. Five minutes before that, the note of
state "acquired" says so where the job may run longer.

State "indeterminate": the acquire call got no answer, so a session may be open whose id is unknown. The service closes
it within the time shown; qrmi-slurm limits the life of a session to the job's time limit, with OverTimeLimit of
slurm.conf and --session-margin.

Exit status: 0, or 2 if the records cannot be read.""",
)
def status(
    as_json: Json = False,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh every two seconds until Ctrl-C.")] = False,
    state_dir: StateDir = None,
) -> None:
    """Show which job holds which QPU, from this node's records: state, age, release attempts, next attempt."""
    from qrmi_slurm.command import holdings

    place = site.options(state_dir).state_dir
    show = print_json if as_json else print_text
    if watch:
        render.watch(lambda: holdings.read(place, time.time()), show, _WATCH_INTERVAL_S)
    show(holdings.read(place, time.time()), sys.stdout)


def print_text(found: "Holdings", stream: TextIO) -> None:
    """Print a line for each QPU of each job, then the records that need an admin."""
    printer = render.Printer(stream)
    if found.qpus:
        heading = ("JOB", "QPU", "STATE", "FOR", "TRIES", "NEXT", "NODE", "NOTE")
        styles = [STATE_STYLES[one.state] for one in found.qpus]
        printer.table(heading, [_cells(one) for one in found.qpus], styles)
    else:
        printer.line(f"no job holds a QPU, according to the records in {found.state_dir}")
    for fault in found.faults:
        printer.line(("cannot be read", STYLES["error"]), f": {printable(fault)}")
    for path in found.set_aside:
        printer.line(("set aside", STYLES["warning"]), f": {printable(str(path))}")


def _cells(one: "Holding") -> tuple[str, ...]:
    wait = "-" if one.next_try_s is None else render.duration(one.next_try_s) if one.next_try_s else "now"
    age = render.duration(one.age_s)
    cells = (str(one.job_id), one.qpu, one.state, age, str(one.attempts), wait, one.node, _note(one))
    return tuple(map(printable, cells))


def _note(one: "Holding") -> str:
    from qrmi_slurm.command import holdings
    from qrmi_slurm.state.record import State

    if one.is_ending:
        ending = f"its session ends in {render.duration(one.ends_s or 0)}, and the job may run longer"
        return f"{ending}; {one.reason}" if one.reason else ending
    if one.state == holdings.EXPIRED:
        ended = "its session has ended"
        return f"{ended}: {one.reason}" if one.reason else ended
    if one.state != State.INDETERMINATE:
        return one.reason
    end = "with no known end" if one.ends_s is None else f"which ends by itself within {render.duration(one.ends_s)}"
    return f"a session may be open, {end}{': ' if one.reason else ''}{one.reason}"


def print_json(found: "Holdings", stream: TextIO) -> None:
    """Print one JSON object."""
    render.print_json(
        stream,
        state_dir=str(found.state_dir),
        qpus=[asdict(one) for one in found.qpus],
        faults=list(found.faults),
        set_aside=[str(path) for path in found.set_aside],
    )
