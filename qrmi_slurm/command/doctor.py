"""`qrmi-slurm doctor`: checks a node's setup."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from qrmi_slurm.command import render, site
from qrmi_slurm.command.parameters import EXIT_PROBLEMS, Json

if TYPE_CHECKING:
    from qrmi_slurm.checks.result import Result

app = typer.Typer()


@app.command(
    short_help="Check this node's setup.",
    epilog="""Examples:

\b
  qrmi-slurm doctor
  qrmi-slurm doctor --login-node    only what a login node needs: Slurm, plugstack.conf, the plugin
  qrmi-slurm doctor --json

Run it as root on each kind of node. It changes nothing.

Exit status: 0 no error (there may be warnings), 1 an error, 2 the checks could not run.""",
)
def doctor(
    login_node: Annotated[bool, typer.Option("--login-node", help="Check only what a login node needs.")] = False,
    as_json: Json = False,
) -> None:
    """Check everything that the hooks need on this node: one line each, ok, warning or error, with a hint."""
    from qrmi_slurm.checks import installation, result
    from qrmi_slurm.checks.doctor import Patient, examine

    patient = Patient(site.slurm_conf(), installation.this_one(), login_node)
    with render.progress(sys.stderr) as tell:
        lines = examine(patient, tell)
    show = print_json if as_json else print_text
    show(lines, sys.stdout)
    if result.has_errors(lines):
        raise typer.Exit(EXIT_PROBLEMS)


def print_text(lines: "Sequence[Result]", stream: TextIO) -> None:
    """Print the checks, then a summary line."""
    from qrmi_slurm.checks.result import Level

    render.print_checks(lines, stream)
    counts = [(level, sum(line.level is level for line in lines)) for level in (Level.ERROR, Level.WARNING)]
    found = ", ".join(render.counted(number, level.value) for level, number in counts if number)
    render.Printer(stream).line((found or "all is well", "bold"))


def print_json(lines: "Sequence[Result]", stream: TextIO) -> None:
    """Print one JSON object; the exit status is 0 if it is `healthy`."""
    from qrmi_slurm.checks import result

    render.print_json(stream, healthy=not result.has_errors(lines), lines=render.checks_json(lines))
