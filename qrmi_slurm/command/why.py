"""`qrmi-slurm why`: says why a job waits, runs or has failed, and what to do."""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final, TextIO

import typer

from qrmi_slurm.command import render, site
from qrmi_slurm.command.parameters import EXIT_PROBLEMS, Json, StateDir
from qrmi_slurm.command.render import STYLES
from qrmi_slurm.errors import QrmiSlurmError
from qrmi_slurm.text import printable

if TYPE_CHECKING:
    from qrmi_slurm.command.explanation import Explanation

# One screen: of an array with many tasks, so many answers that differ.
_MAX_ANSWERS: Final = 6

app = typer.Typer()


@app.command(
    short_help="Say why a job waits or has failed.",
    epilog="""Examples:

\b
  qrmi-slurm why 4711
  qrmi-slurm why 4711_3                             a task of a job array
  qrmi-slurm why 4711+1                             a component of a heterogeneous job
  qrmi-slurm why --json 4711

The answer is the first line. Slurm is asked first, then this node's state directory, which knows most about jobs that
run or ran on this node. The last lines say what could not be seen from here. Users see their own jobs, and what Slurm
shows them of others.

Exit status: 0; 1 if no such job is known; 2 if the id is none, or Slurm cannot be asked.""",
)
def why(
    job: Annotated[str, typer.Argument(metavar="JOBID", show_default=False, help="The job's id.")],
    as_json: Json = False,
    state_dir: StateDir = None,
) -> None:
    """Say why a job waits, runs or has failed: for which QPU, who has it and until when, and what to do."""
    from qrmi_slurm.command import evidence, explanation
    from qrmi_slurm.slurm import job_details

    wanted = job_details.parse_id(job)
    if wanted is None:
        raise QrmiSlurmError(f"{printable(job, 40)} is not a job's id", "write it as squeue does: 4711, 4711_3, 4711+1")
    found = [explanation.explain(one) for one in evidence.gather(wanted, site.options(state_dir))]
    if as_json:
        render.print_json(sys.stdout, jobs=[asdict(one) for one in found])
    elif found:
        print_text(found, sys.stdout)
    else:
        render.print_error(_unknown(str(wanted)), sys.stderr)
    if not found:
        raise typer.Exit(EXIT_PROBLEMS)


def _unknown(job: str) -> QrmiSlurmError:
    return QrmiSlurmError(
        f"Slurm shows no job {job}: there was none, it ended some time ago, or it is another user's",
        "slurmctld forgets jobs after MinJobAge (five minutes by default); its output and sacct have the rest",
    )


def print_text(found: "Sequence[Explanation]", stream: TextIO) -> None:
    """Print the answer, details, what to do, and what could not be seen; of several jobs, each different answer."""
    printer = render.Printer(stream)
    if len(found) > 1:
        states = Counter(one.state for one in found)
        said = ", ".join(f"{count} {state}" for state, count in states.items())
        printer.line((f"{len(found)} jobs: {said}", "bold"))
    different: dict[tuple[str, str], list[Explanation]] = {}
    for one in found:
        different.setdefault((one.state, one.answer.replace(one.job, "", 1)), []).append(one)
    for alike in list(different.values())[:_MAX_ANSWERS]:
        _print_one(alike[0], len(alike) - 1, printer)
    if len(different) > _MAX_ANSWERS:
        printer.line(f"and {len(different) - _MAX_ANSWERS} other answers; --json has all")


def _print_one(one: "Explanation", more: int, printer: render.Printer) -> None:
    style = STYLES["error" if one.cause == "no-qpu" else "ok" if one.cause in ("runs", "starts") else "warning"]
    others = f" (and {render.counted(more, 'job')} likewise)" if more else ""
    printer.line((printable(one.answer, render.MAX_LINE_CHARS), style), others)
    for detail in one.details:
        printer.line(f"  {printable(detail, render.MAX_CELL_CHARS)}")
    for head, lines in (("to do", one.advice), ("not seen", one.unseen)):
        for line in lines:
            printer.line((f"  {head}: {printable(line, render.MAX_CELL_CHARS)}", "dim"))
