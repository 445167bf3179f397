"""`qrmi-slurm qpus`: lists the site's QPUs; root asks QRMI, everyone else reads what root's last run published."""

import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TextIO

import typer

from qrmi_slurm.command import render, site
from qrmi_slurm.command.parameters import Json, QrmiTimeout, StateDir
from qrmi_slurm.errors import RecordError
from qrmi_slurm.text import printable

if TYPE_CHECKING:
    from qrmi_slurm.scheduling.qpus import Listing, Qpu
    from qrmi_slurm.slurm.plugstack import SiteOptions

_ASK_INTERVAL_S: Final = 30.0  # each round logs in at every service
_READ_INTERVAL_S: Final = 2.0
_USABLE_WORDS: Final = {True: "yes", False: "no", None: "?"}
_USABLE_STYLES: Final = {True: "green", False: "bold red", None: "dim"}

app = typer.Typer()


@app.command(
    short_help="List the site's QPUs.",
    epilog="""Examples:

\b
  qrmi-slurm qpus
  qrmi-slurm qpus --watch
  qrmi-slurm qpus --json ibm_quebec

Columns:

\b
  USABLE  whether a job could use the QPU now
  STATE   what its service reports; drained: an admin took it out of service
  QUEUE   jobs waiting at the service, if it reports them
  JOBS    Slurm jobs that hold it; root sees their ids, from this node's records
  CAPACITY, USED, FREE
          how many jobs may hold it, do, and still could, if Slurm counts them
  NOTE    why jobs wait for it

Users other than root see the list of root's last run on this node. qrmi-slurm-sensor.timer or qrmi-slurm-qpus.timer
keeps it fresh; qrmi-slurm slurm-conf prints both.

Exit status: 0, or 2 if there is neither a readable config nor a readable list.""",
)
def qpus(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", show_default=False, help="Only these QPUs.")
    ] = None,
    as_json: Json = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Refresh until Ctrl-C: every 30 seconds as root, every 2 otherwise.")
    ] = False,
    state_dir: StateDir = None,
    timeout_s: QrmiTimeout = 20.0,
) -> None:
    """List the site's QPUs: type, whether each can be used now, queue length, and which jobs hold it."""
    from qrmi_slurm.scheduling.qpus import only, read_published

    options = site.options(state_dir)
    is_root = os.geteuid() == 0

    def read() -> "Listing":
        listing = _ask(options, timeout_s) if is_root else read_published(options.state_dir)
        return only(listing, names or [])

    def show(listing: "Listing", stream: TextIO) -> None:
        if as_json:
            print_json(listing, stream)
        else:
            print_text(listing, stream, time.time())

    if watch:
        render.watch(read, show, _ASK_INTERVAL_S if is_root else _READ_INTERVAL_S)
    show(read(), sys.stdout)


def _ask(options: "SiteOptions", timeout_s: float) -> "Listing":
    """Ask QRMI for all QPUs, and publish the list for users."""
    from qrmi_slurm.scheduling.qpus import ask, with_counts, with_notices

    resources = site.resources(options.config_path, options.slots_licenses)
    with render.progress(sys.stderr) as tell:
        tell(f"asking QRMI for {render.counted(len(resources), 'QPU')}")
        listing = ask(resources, options, timeout_s)
    listing = with_notices(listing, site.notices(resources))
    if any(resource.slurm.license is not None for resource in resources):
        listing = with_counts(listing, resources, *site.counts())
    _publish(listing, options.state_dir)
    return listing


def _publish(listing: "Listing", state_dir: Path) -> None:
    """Publish the list for users; if that fails, print a warning, as root can still see the list."""
    from qrmi_slurm.scheduling.qpus import publish

    try:
        publish(listing, state_dir)
    except RecordError as error:
        sys.stderr.write(f"warning: users do not see this list: {error}\n")


def print_text(listing: "Listing", stream: TextIO, now_s: float) -> None:
    """Print a line for each QPU; below them the age of the list, unless it is fresh."""
    printer = render.Printer(stream)
    if listing.qpus:
        found = [qpu.shown for qpu in listing.qpus]
        has_notes = listing.is_live or any(qpu.notice for qpu in found)
        has_counts = any(qpu.capacity is not None for qpu in found)
        heading = ["QPU", "TYPE", "USABLE", "STATE", "QUEUE", "JOBS"]
        heading += ["CAPACITY", "USED", "FREE"] if has_counts else []
        heading += ["NOTE"] if has_notes else []
        rows = [_cells(qpu, has_counts=has_counts)[: len(heading)] for qpu in found]
        printer.table(heading, rows, [_USABLE_STYLES[qpu.is_usable] for qpu in found])
    else:
        printer.line("there are no QPUs")
    if not listing.is_live:
        age = render.duration(max(0.0, now_s - listing.checked_s))
        printer.line((f"as of {age} ago", "dim"))


def _cells(qpu: "Qpu", *, has_counts: bool) -> tuple[str, ...]:
    pending = "-" if qpu.pending_jobs is None else str(qpu.pending_jobs)
    jobs = str(qpu.held_by) if qpu.job_ids is None else ",".join(map(str, qpu.job_ids)) or "-"
    note = "; ".join(text for text in (qpu.notice, qpu.reason) if text)
    counts = ["-" if count is None else str(count) for count in (qpu.capacity, qpu.used, qpu.free)]
    cells = (qpu.name, qpu.type, _USABLE_WORDS[qpu.is_usable], qpu.state, pending, jobs)
    cells += (*(counts if has_counts else ()), note)
    return tuple(printable(cell, render.MAX_CELL_CHARS) for cell in cells)


def print_json(listing: "Listing", stream: TextIO) -> None:
    """Print one JSON object."""
    render.print_json(
        stream,
        is_live=listing.is_live,
        checked_s=listing.checked_s,
        qpus=[{name: value for name, value in asdict(qpu.shown).items() if name != "slots"} for qpu in listing.qpus],
    )
