"""`qrmi-slurm report`: adds up who held which QPU, and for how long."""

import csv
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from qrmi_slurm.command import render, site
from qrmi_slurm.command.parameters import Json, StateDir
from qrmi_slurm.errors import ConfigError, QrmiSlurmError
from qrmi_slurm.text import printable

if TYPE_CHECKING:
    from qrmi_slurm.report.acquisition import Acquisition
    from qrmi_slurm.report.usage import Row, Usage

app = typer.Typer()


@app.command(
    short_help="Report who held which QPU, and for how long.",
    epilog="""Examples:

\b
  qrmi-slurm report                                  the last seven days, by user
  qrmi-slurm report --since 2026-01 --until 2026-02 --by account
  qrmi-slurm report --since 30d --by account,qpu --csv >month.csv
  qrmi-slurm report --since today --by acquisition   one line for each acquisition
  qrmi-slurm report --since 7d --html /tmp/qpus.html
  qrmi-slurm report --from n1.jsonl --from n2.jsonl  ledgers copied from nodes without a shared --state-dir

TIME is now, today, yesterday or one of these; local unless it has a time zone:

\b
  90m, 12h, 7d, 4w      that long ago
  2026-01, 2026-01-31   the beginning of that month or day
  2026-01-31T12:00      that moment

KEY is user, account, qpu, type, node, cluster or day; or acquisition, on its own.

Columns:

\b
  FAILED  failed acquisitions
  HELD    how long QPUs were held in the period, as Slurm writes times
  SHARE   of the total held
  USED    of the time available, given the QPU's capacity in the config

QPUs that are held now count up to now, from this node's records. The chart is one self-contained file. It names users,
accounts and jobs, but no session ids: only the JSON of --by acquisition has those.

Exit status: 0, or 2 if the ledger cannot be read or a file cannot be written.""",
)
def report(
    since: Annotated[str, typer.Option("--since", metavar="TIME", help="Beginning of the period.")] = "7d",
    until: Annotated[str, typer.Option("--until", metavar="TIME", help="End of the period.")] = "now",
    by: Annotated[str, typer.Option("--by", metavar="KEY[,KEY]...", help="What to group by.")] = "user",
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print comma-separated values instead of text.")] = False,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="PATH", show_default=False, help="Write a page with chart and tables to PATH."),
    ] = None,
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="PATH", show_default=False, help="Write the chart alone to PATH.")
    ] = None,
    from_: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            metavar="PATH",
            show_default=False,
            help="Read this ledger file, or the ones in this folder, instead of this node's; repeatable.",
        ),
    ] = None,
    state_dir: StateDir = None,
) -> None:
    """Report who held which QPU, and for how long: by user, account, QPU or day, as a table, JSON, CSV or a chart.

    Each acquisition adds a line to the ledger in the state directory when it ends; the report adds them up.
    """
    from qrmi_slurm.report import usage

    keys = usage.parse_keys(by)
    found = _usage(since, until, from_ or [], state_dir)
    if found.damaged:
        lines = render.counted(found.damaged, "unreadable line")
        sys.stderr.write(f"warning: skipped {lines} of the ledger\n")
    _write_charts(found, keys, html, svg)
    sums = Sums(found, keys, usage.group(found, keys) if keys else [], usage.total(found))
    if as_json:
        print_json(sums, sys.stdout)
    elif as_csv:
        print_csv(sums, sys.stdout)
    elif html is None and svg is None:
        print_text(sums, sys.stdout)


@dataclass(frozen=True, slots=True)
class Sums:
    """What is printed.

    Args:
        usage: the acquisitions of a period.
        keys: what they are grouped by; without keys each acquisition has its own line.
        rows: a sum for each group; empty without keys.
        total: the sum of all.
    """

    usage: "Usage"
    keys: Sequence[str]
    rows: "Sequence[Row]"
    total: "Row"


def _usage(since: str, until: str, sources: list[Path], state_dir: Path | None) -> "Usage":
    """Read the acquisitions of a period: this site's, or those of the files and folders that the admin names."""
    from qrmi_slurm.report import ledgers, timespan, usage

    now_s = time.time()
    span = timespan.parse(since, until, now_s)
    options = site.options(state_dir)
    acquisitions, damaged = (
        ledgers.read_from(sources, span, now_s) if sources else ledgers.read(options.state_dir, span, now_s)
    )
    try:
        resources = site.resources(options.config_path)
        # One that follows the service is not known for the past.
        fixed = [resource for resource in resources if not resource.slurm.follows_service]
        capacities = {resource.name: resource.slurm.capacity for resource in fixed}
    except ConfigError:  # not root, or a node without the config
        capacities = {}
    return usage.Usage(span, tuple(acquisitions), capacities, damaged)


def _write_charts(found: "Usage", keys: Sequence[str], html: Path | None, svg: Path | None) -> None:
    """Write the files of `--html` and `--svg`; their colors tell apart users, or what else is grouped by."""
    from qrmi_slurm.report import page, timeline, usage

    who = usage.KEYS[next((key for key in keys if key in ("user", "account", "type")), "user")]
    if html is not None:
        _write(html, page.render(found, keys, who))
    if svg is not None:
        _write(svg, timeline.svg(found, who, is_alone=True))


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise QrmiSlurmError(f"cannot write {printable(str(path))}: {error.strerror}") from error


def print_text(sums: Sums, stream: TextIO) -> None:
    """Print the period and a table."""
    printer = render.Printer(stream)
    span = sums.usage.span
    printer.line((f"{_local(span.since_s)} to {_local(span.until_s)}", "dim"))
    heading, rows = _groups(sums) if sums.keys else _acquisitions(sums.usage)
    if len(rows) > 1 or not sums.keys:
        printer.table(heading, [tuple(map(printable, row)) for row in rows], [""] * len(rows))
    else:
        printer.line("no QPU was requested")


def _groups(sums: Sums) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return heading and rows, a row for each group; the last one is the total."""
    from qrmi_slurm.report import figures

    def cells(row: "Row") -> tuple[str, ...]:
        share = row.held_s / sums.total.held_s if sums.total.held_s else 0.0
        used = "-" if row.utilization is None else figures.percent(row.utilization)
        counts = (len(row.jobs), row.acquired, row.failed)
        return (*map(str, counts), figures.duration(row.held_s), figures.percent(share), used)

    rows = [(*(word or "-" for word in row.key), *cells(row)) for row in sums.rows]
    rows.append(("total", *[""] * (len(sums.keys) - 1), *cells(sums.total)))
    return (*map(str.upper, sums.keys), "JOBS", "ACQUIRED", "FAILED", "HELD", "SHARE", "USED"), rows


def _acquisitions(usage: "Usage") -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return heading and rows, a row for each acquisition."""
    from qrmi_slurm.report import figures

    def cells(one: "Acquisition") -> tuple[str, ...]:
        held = "-" if one.acquired_s is None else figures.duration(one.held_s(usage.span))
        who = (one.user, one.account or "-")
        return (_local(one.asked_s), one.job, *who, one.qpu, held, one.result, one.by or "-", one.node)

    heading = ("ASKED", "JOB", "USER", "ACCOUNT", "QPU", "HELD", "RESULT", "BY", "NODE")
    return heading, [cells(one) for one in usage.acquisitions]


def _local(epoch_s: float) -> str:
    """Return a moment as Slurm's commands write it: local time without a zone."""
    return datetime.fromtimestamp(epoch_s).isoformat(timespec="seconds")


def print_json(sums: Sums, stream: TextIO) -> None:
    """Print one JSON object; acquisitions have their token in it, groups do not."""
    usage, keys = sums.usage, sums.keys
    if keys:
        rows = [{**dict(zip(keys, row.key, strict=True)), **_row_json(row)} for row in sums.rows]
    else:
        rows = [_acquisition_json(one, usage) for one in usage.acquisitions]
    render.print_json(
        stream,
        since_s=round(usage.span.since_s, 3),
        until_s=round(usage.span.until_s, 3),
        by=list(keys) or ["acquisition"],
        damaged_lines=usage.damaged,
        total=_row_json(sums.total),
        rows=rows,
    )


def _row_json(row: "Row") -> dict[str, Any]:
    return {
        "jobs": len(row.jobs),
        "acquired": row.acquired,
        "failed": row.failed,
        "held_s": round(row.held_s, 3),
        "utilization": None if row.utilization is None else round(row.utilization, 6),
    }


def _acquisition_json(one: "Acquisition", usage: "Usage") -> dict[str, Any]:
    token = one.token.reveal() if one.token is not None else None
    return {**asdict(one), "token": token, "held_s": round(one.held_s(usage.span), 3)}


def print_csv(sums: Sums, stream: TextIO) -> None:
    """Print comma-separated values (RFC 4180 except for the line ends), for spreadsheets."""
    writer = csv.writer(stream, lineterminator="\n")
    if sums.keys:
        writer.writerow([*sums.keys, "jobs", "acquired", "failed", "held_s", "utilization"])
        writer.writerows([*map(_cell, row.key), *_row_json(row).values()] for row in sums.rows)
        return
    words = ["asked", "acquired", "ended", "cluster", "job_id", "array_job_id", "array_task_id", "het_job_id"]
    writer.writerow([*words, "restart", "user", "account", "node", "qpu", "type", "result", "by", "held_s"])
    writer.writerows(_acquisition_cells(one, sums.usage) for one in sums.usage.acquisitions)


def _acquisition_cells(one: "Acquisition", usage: "Usage") -> list[Any]:
    times = ("" if at_s is None else _zoned(at_s) for at_s in (one.asked_s, one.acquired_s, one.ended_s))
    ids = (one.job_id, one.array_job_id, one.array_task_id, one.het_job_id, one.restart)
    texts = (one.user, one.account, one.node, one.qpu, one.type, one.result, one.by)
    return [*times, _cell(one.cluster), *ids, *map(_cell, texts), round(one.held_s(usage.span), 3)]


def _zoned(epoch_s: float) -> str:
    return datetime.fromtimestamp(epoch_s).astimezone().isoformat(timespec="seconds")


def _cell(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula."""
    text = printable(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text
