"""`qrmi-slurm sensor`: makes jobs wait for QPUs that are offline."""

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, TextIO

import typer

from qrmi_slurm.command import render, site
from qrmi_slurm.command.parameters import EXIT_PROBLEMS, Json, QrmiTimeout, StateDir
from qrmi_slurm.command.render import STYLES
from qrmi_slurm.text import printable

if TYPE_CHECKING:
    from qrmi_slurm.scheduling.sensor import Report

app = typer.Typer()


@app.command(
    short_help="Make jobs wait for QPUs that are offline.",
    epilog="""Examples:

\b
  qrmi-slurm sensor
  qrmi-slurm sensor --json

qrmi-slurm-sensor.timer runs it once a minute, on one node that can read the config and reach Slurm, preferably
slurmctld's. A QPU goes out of service when its service reports it offline or paused, or gives no answer twice in a row;
it is back when its service reports it online. QPUs that an admin drained stay drained, and QPUs for which users bring
their own credentials are left alone. Waiting jobs that take any of several QPUs (--qpu='any:...') move to a free one.
The lists that users see in qrmi-slurm qpus and when they submit are updated.

If the sensor stops running, the QPUs it took out of service are back an hour after its last run.

Exit status: 0, 1 Slurm refused something, 2 nothing was done: QRMI, Slurm or the state directory cannot be used.""",
)
def sensor(as_json: Json = False, state_dir: StateDir = None, timeout_s: QrmiTimeout = 20.0) -> None:
    """Update Slurm once from the state of the QPUs: jobs for a QPU that is offline wait instead of failing."""
    from qrmi_slurm.scheduling.sensor import run
    from qrmi_slurm.scheduling.site import Site

    options = site.options(state_dir)
    resources = site.resources(options.config_path, options.slots_licenses)
    report = run(resources, Site(options, site.slurm_conf()), timeout_s)
    show = print_json if as_json else print_text
    show(report, sys.stdout)
    for fault in report.faults:
        sys.stderr.write(printable(f"error: {fault}", render.MAX_LINE_CHARS) + "\n")
    if report.faults:
        raise typer.Exit(EXIT_PROBLEMS)


def print_text(report: "Report", stream: TextIO) -> None:
    """Print what a run has changed, if anything."""
    printer = render.Printer(stream)
    if report.is_skipped:
        printer.line("nothing was done: another run is in progress")
    for change in report.changes:
        head = printable(", ".join(change.qpus), render.MAX_CELL_CHARS)
        style = STYLES["warning" if change.notice else "ok"]
        printer.line(f"{head}: ", (printable(change.notice or "back in service"), style))
    for capacity in report.capacities:
        printer.line(printable(f"license {capacity.license}: {capacity.capacity} can be had", render.MAX_CELL_CHARS))
    for move in report.moves:
        before, after = ",".join(move.before), ",".join(move.after)
        printer.line(printable(f"job {move.job}: moved from {before} to {after}", render.MAX_CELL_CHARS))


def print_json(report: "Report", stream: TextIO) -> None:
    """Print one JSON object."""
    render.print_json(
        stream,
        is_skipped=report.is_skipped,
        changes=[asdict(change) for change in report.changes],
        capacities=[asdict(capacity) for capacity in report.capacities],
        out=dict(report.out),
        uncounted=list(report.uncounted),
        moves=[{"job": move.job, "before": dict(move.before), "after": dict(move.after)} for move in report.moves],
        faults=list(report.faults),
    )
