"""`qrmi-slurm drain` and `qrmi-slurm resume`: take QPUs out of service and put them back."""

import os
import pwd
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from qrmi_slurm.command import render, site
from qrmi_slurm.command.parameters import EXIT_PROBLEMS, Json
from qrmi_slurm.command.render import STYLES
from qrmi_slurm.errors import QrmiSlurmError
from qrmi_slurm.text import printable

if TYPE_CHECKING:
    from qrmi_slurm.scheduling.drain import Result

_Names = Annotated[
    list[str], typer.Argument(metavar="QPU...", show_default=False, help="The QPUs, named as for --qpu.")
]
_Yes = Annotated[bool, typer.Option("--yes", help="Include all other QPUs that share the license.")]

app = typer.Typer()


@app.command(
    short_help="Take QPUs out of service.",
    epilog="""Examples:

\b
  qrmi-slurm drain ibm_quebec --reason "maintenance until Friday"
  qrmi-slurm drain ibm_quebec ibm_sherbrooke --reason "new keys" --json
  scontrol show reservations                        see it in Slurm

Jobs that ask for the QPU wait in Slurm's queue; users see the reason when they submit and in qrmi-slurm qpus. Running
jobs keep the QPU. To change the reason, drain again with another one. A QPU stays drained for up to a year: Slurm keeps
it as a reservation of the QPU's license. To try the QPU meanwhile, as root: sbatch --reservation=qpu_out_LICENSE ...

Exit status: 0 done, 1 Slurm refused at least one, 2 nothing was done.""",
)
def drain(
    names: _Names,
    reason: Annotated[
        str, typer.Option("--reason", metavar="TEXT", show_default=False, help="The reason, shown to users.")
    ],
    yes: _Yes = False,
    as_json: Json = False,
) -> None:
    """Take QPUs out of service, with a reason for users: jobs that ask for them wait."""
    from qrmi_slurm.outages import outage

    checked = outage.checked_reason(reason)
    if checked is None:
        raise QrmiSlurmError(
            "the reason is empty, too long, or more than one line",
            f"give one line of 1 to {outage.MAX_REASON_CHARS} characters",
        )
    _switch(names, checked, yes=yes, as_json=as_json)


@app.command(
    short_help="Put QPUs back into service.",
    epilog="""Examples:

\b
  qrmi-slurm resume ibm_quebec

Waiting jobs start by themselves. A QPU that the sensor last saw offline stays out of service until the sensor sees it
online.

Exit status: 0 done, 1 Slurm refused at least one, 2 nothing was done.""",
)
def resume(names: _Names, yes: _Yes = False, as_json: Json = False) -> None:
    """Put QPUs back into service after `qrmi-slurm drain`."""
    _switch(names, None, yes=yes, as_json=as_json)


def _switch(names: list[str], reason: str | None, *, yes: bool, as_json: bool) -> None:
    """Drain QPUs for a reason, or resume them without one."""
    from qrmi_slurm.scheduling.drain import Order, carry_out
    from qrmi_slurm.scheduling.site import Site

    options = site.options()
    order = Order(tuple(names), reason, _caller(), with_others=yes)
    resources = site.resources(options.config_path, options.slots_licenses)
    results = carry_out(order, resources, Site(options, site.slurm_conf()))
    show = print_json if as_json else print_text
    show(results, sys.stdout)
    if any(result.fault for result in results):
        raise typer.Exit(EXIT_PROBLEMS)


def _caller() -> str:
    """Return the login name of the person at the keyboard, also under sudo; empty if unknown."""
    name = os.environ.get("SUDO_USER", "")
    if not name:
        try:
            name = pwd.getpwuid(os.getuid()).pw_name
        except KeyError:
            return ""
    return name if re.fullmatch(r"[A-Za-z0-9_.@\\-]{1,64}", name) else ""


def print_text(results: "Sequence[Result]", stream: TextIO) -> None:
    """Print a line for each license."""
    printer = render.Printer(stream)
    for result in results:
        said = result.fault or result.notice or "in service"
        if not result.fault and not result.is_changed:
            said = f"unchanged: {said}"
        style = STYLES["error" if result.fault else "warning" if result.notice else "ok"]
        head = printable(", ".join(result.qpus), render.MAX_CELL_CHARS)
        shown = printable(said, render.MAX_CELL_CHARS)
        printer.line(f"{head}: ", (shown, style), _kept(result))


def _kept(result: "Result") -> str:
    """Say how many running jobs keep a QPU that is out of service; empty for none."""
    if not result.notice or not result.running:
        return ""
    return f" ({render.counted(result.running, 'running job')} {'keeps' if result.running == 1 else 'keep'} it)"


def print_json(results: "Sequence[Result]", stream: TextIO) -> None:
    """Print one JSON object."""
    render.print_json(stream, licenses=[asdict(result) for result in results])
