"""`qrmi-slurm release`: releases everything that a job holds."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qrmi_slurm.command import render, site
from qrmi_slurm.command.parameters import EXIT_PROBLEMS, StateDir
from qrmi_slurm.errors import QrmiSlurmError, RecordError
from qrmi_slurm.text import printable

if TYPE_CHECKING:
    from qrmi_slurm.state.inventory import Item

app = typer.Typer()


@app.command(
    short_help="Release everything that a job holds.",
    epilog="""Examples:

\b
  qrmi-slurm release 4711
  qrmi-slurm release 4711 --yes
  qrmi-slurm release 4711 --forget  first make sure that the service has no session open

Exit status: 0 released, 1 something is still held, 2 nothing was done.""",
)
def release(
    job_id: Annotated[int, typer.Argument(metavar="JOBID", min=1, help="Slurm's id of the job.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask, even if the job has not ended.")] = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="Also drop QPUs whose session id is unknown (indeterminate).")
    ] = False,
    cluster: Annotated[
        str | None,
        typer.Option("--cluster", show_default=False, help="The job's cluster, if this node has records of several."),
    ] = None,
    state_dir: StateDir = None,
) -> None:
    """Release everything that a job holds; asks first unless the job has ended."""
    from qrmi_slurm.hooks.recover import take_back

    options = site.options(state_dir)
    jobs = site.jobs([job_id])
    is_held = False
    for item in _find(options.state_dir, job_id, cluster):
        if item.fault is not None:
            raise item.fault
        if item.record is None:
            raise RecordError(f"job {job_id} has acquired nothing", "see: qrmi-slurm status")
        word = replace(site.here(), jobs=jobs).of(item.folder).living_word(item.record)
        if word and not yes:
            held = ", ".join(entry.name for entry in item.record.entries if entry.is_pending) or "nothing"
            _confirm(f"{word}. Release what it holds ({printable(held)})?")
        left = take_back(item, options, is_living=bool(word), forget=forget)
        for entry in left.entries if left is not None else ():
            line = f"job {job_id} {entry.name}: still held: {entry.reason}"
            sys.stdout.write(printable(line, render.MAX_LINE_CHARS) + "\n")
            is_held = True
    if is_held:
        raise typer.Exit(EXIT_PROBLEMS)
    sys.stdout.write(f"job {job_id}: released\n")


def _find(state_dir: Path, job_id: int, cluster: str | None) -> "list[Item]":
    """Return the records of a job: its own, and those of earlier runs and of earlier jobs with its number.

    Raises:
        RecordError: there is none, or several clusters have one.
    """
    from qrmi_slurm.state import inventory

    items = [item for item in inventory.of_job(state_dir, job_id) if cluster in (None, item.folder.cluster)]
    if not items:
        raise RecordError(f"there is no record of job {job_id} in {state_dir}", "see: qrmi-slurm status")
    clusters = list(dict.fromkeys(item.folder.cluster for item in items))
    if len(clusters) > 1:
        raise RecordError(f"several clusters have a job {job_id}: {', '.join(clusters)}", "choose one with --cluster")
    recorded = [item for item in items if item.record is not None or item.fault is not None]
    return recorded or items[:1]


def _confirm(question: str) -> None:
    """Return only if someone at a terminal answers yes.

    Raises:
        QrmiSlurmError: they do not, or there is no terminal.
    """
    if not sys.stdin.isatty():
        raise QrmiSlurmError(question.partition(".")[0], "run it at a terminal to confirm, or with --yes")
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise QrmiSlurmError("nothing was released")
