"""`qrmi-slurm recover`: releases what the hooks could not."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from qrmi_slurm.command import render, site
from qrmi_slurm.command.parameters import EXIT_PROBLEMS, Json, StateDir
from qrmi_slurm.command.render import STYLES
from qrmi_slurm.text import printable

if TYPE_CHECKING:
    from qrmi_slurm.hooks.recover import Result

app = typer.Typer()


@app.command(
    short_help="Release what the hooks could not.",
    epilog="""Examples:

\b
  qrmi-slurm recover
  qrmi-slurm recover --dry-run
  qrmi-slurm recover --now          retry at once what failed before

It is safe to run at any time, alongside jobs, hooks and other runs of itself; records that another process has locked
are skipped. qrmi-slurm-recover.timer runs it at boot and once a minute. If Slurm's name for the node is not its short
host name, set SLURMD_NODENAME.

Exit status: 0 nothing is left over, 1 something that no job uses is still held, 2 the records cannot be read.""",
)
def recover(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Do nothing; print what would be done about each record.")
    ] = False,
    now: Annotated[bool, typer.Option("--now", help="Retry even if the next attempt is not due yet.")] = False,
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Release what the hooks could not: failed releases, and QPUs of jobs that have ended.

    A job that goes on after its session's end gets a new one, for steps that start later: where it was extended or
    resumed, or the session lived as long as the service allows.

    Slurm is asked about jobs that hold a QPU, and once an hour about others that have a folder.
    """
    from qrmi_slurm.hooks.recover import Mode, run

    results = run(site.options(state_dir), site.here(), site.jobs, Mode(dry_run=dry_run, now=now))
    show = print_json if as_json else print_text
    show(results, sys.stdout, dry_run=dry_run)
    if any(result.is_left for result in results):
        raise typer.Exit(EXIT_PROBLEMS)


def print_text(results: "Sequence[Result]", stream: TextIO, *, dry_run: bool) -> None:
    """Print a line for each job whose record needed something; in a dry run, for every job."""
    from qrmi_slurm.hooks.recover import Step

    printer = render.Printer(stream)
    for result in results:
        is_nothing = result.plan.step is Step.LEAVE and not result.outcome and not result.is_left
        if is_nothing and not result.plan.is_fault and not dry_run:
            continue
        what = result.outcome or ("would " if dry_run else "") + result.plan.step.value
        style = STYLES["error"] if result.is_left else STYLES["ok"] if result.outcome else ""
        qpus = f" {','.join(result.qpus)}" if result.qpus else ""
        head = printable(f"job {result.job_id}{qpus}")
        reason = printable(result.plan.reason, render.MAX_LINE_CHARS)
        printer.line(f"{head}: ", (printable(what, render.MAX_LINE_CHARS), style), f" ({reason})")


def print_json(results: "Sequence[Result]", stream: TextIO, *, dry_run: bool) -> None:
    """Print one JSON object; the exit status is 0 if its `left` is."""
    render.print_json(
        stream,
        dry_run=dry_run,
        left=sum(result.is_left for result in results),
        jobs=[
            {
                "cluster": result.cluster,
                "job_id": result.job_id,
                "qpus": list(result.qpus),
                "step": result.plan.step.value,
                "reason": result.plan.reason,
                "outcome": result.outcome or None,
                "is_left": result.is_left,
            }
            for result in results
        ],
    )
