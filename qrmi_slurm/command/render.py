"""What the command prints: rich on a terminal, plain and unwrapped elsewhere; data is never read as markup.

Results go to the stream that is passed in, usually standard output. rich honours NO_COLOR by itself.
"""

import contextlib
import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TextIO

from rich.console import Console
from rich.text import Text

from qrmi_slurm.checks import result as checked
from qrmi_slurm.checks.result import Level
from qrmi_slurm.command.status import Line, Status
from qrmi_slurm.errors import QrmiSlurmError
from qrmi_slurm.hooks.recover import Result, Step
from qrmi_slurm.report import timeline
from qrmi_slurm.report import usage as usage_
from qrmi_slurm.state.record import State
from qrmi_slurm.text import printable
from qrmi_slurm.validation.rules import Diagnosis, Finding, Severity

if TYPE_CHECKING:
    from qrmi_slurm.checks.online.check import Report
    from qrmi_slurm.report.usage import Acquisition, Row, Usage
    from qrmi_slurm.scheduling.drain import Result as Switched
    from qrmi_slurm.scheduling.qpus import Listing, Qpu
    from qrmi_slurm.scheduling.sensor import Report as Sensed

# Grows by one when a field of the JSON output is renamed, removed or changes its meaning; new fields may come.
JSON_VERSION: Final = 1

_STYLES: Final = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}
_STATE_STYLES: Final = {
    State.ACQUIRING: "cyan",
    State.ACQUIRED: "green",
    State.RELEASING: "yellow",
    State.FAILED: "dim",
    State.INDETERMINATE: "bold red",
}
_LEVEL_STYLES: Final = {Level.OK: "green", Level.WARNING: "yellow", Level.ERROR: "bold red"}
_USABLE_STYLES: Final = {True: "green", False: "bold red", None: "dim"}
_GITHUB_COMMANDS: Final = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "notice"}
_INDENT: Final = "    "

# A service may answer with a page; an admin reads a line.
_MAX_CELL_CHARS: Final = 400


class Printer:
    """Prints lines to one stream: styled on a terminal, otherwise as they are.

    Args:
        stream: where to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._console = Console(file=stream, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def line(self, text: Text) -> None:
        """Print one line."""
        if self._console.is_terminal:
            self._console.print(text)
        else:
            self._stream.write(text.plain + "\n")


def print_diagnosis(diagnosis: Diagnosis, stream: TextIO, *, strict: bool) -> None:
    """Print each finding with its place, its reason and its remedy, then one line that sums up."""
    printer = Printer(stream)
    for finding in diagnosis.findings:
        for line in _finding_lines(diagnosis.file, finding):
            printer.line(line)
    printer.line(_summary(diagnosis, strict=strict))


def _finding_lines(file: str, finding: Finding) -> list[Text]:
    rule = finding.rule
    place = file
    if finding.position is not None:
        place = f"{file}:{finding.position.line}:{finding.position.column}"
    lines = [
        Text.assemble(
            (place, "bold"), ": ", (f"{rule.severity} {rule.code}", _STYLES[rule.severity]), f": {finding.message}"
        )
    ]
    if finding.path:
        resource = f" (resource {finding.resource})" if finding.resource else ""
        lines.append(Text(f"{_INDENT}at {finding.path}{resource}"))
    if finding.excerpt:
        lines.append(Text(_INDENT + finding.excerpt))
        lines.append(Text(_INDENT + " " * finding.caret + "^", style=_STYLES[rule.severity]))
    if finding.hint:
        lines.append(Text(f"{_INDENT}hint: {finding.hint}", style="dim"))
    return lines


def _summary(diagnosis: Diagnosis, *, strict: bool) -> Text:
    counts = [(severity, diagnosis.count(severity)) for severity in Severity]
    found = ", ".join(_counted(number, severity.value) for severity, number in counts if number)
    if not diagnosis.is_valid(strict=strict):
        why = "" if diagnosis.count(Severity.ERROR) else "; --strict counts warnings as errors"
        return Text(f"{found} in {diagnosis.file}{why}", style="bold")
    resources = _counted(diagnosis.resources or 0, "resource")
    return Text(f"ok: {resources}, {found}" if found else f"ok: {resources}", style="bold")


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def diagnosis_json(diagnosis: Diagnosis, reports: "Sequence[Report] | None" = None, *, strict: bool) -> str:
    """Return a diagnosis as one JSON object; `valid` says what the exit status says, of the text alone."""
    document = {
        "version": JSON_VERSION,
        "file": diagnosis.file,
        "valid": diagnosis.is_valid(strict=strict),
        "resources": diagnosis.resources,
        **{f"{severity.value}s": diagnosis.count(severity) for severity in Severity},
        "findings": [_finding_json(finding) for finding in diagnosis.findings],
        **({"online": _reports_json(reports)} if reports is not None else {}),
    }
    return json.dumps(document, indent=2)


def _finding_json(finding: Finding) -> dict[str, Any]:
    position = finding.position
    return {
        "code": finding.rule.code,
        "severity": finding.rule.severity.value,
        "title": finding.rule.title,
        "line": position.line if position else None,
        "column": position.column if position else None,
        "path": finding.path or None,
        "resource": finding.resource or None,
        "message": finding.message,
        "hint": finding.hint or None,
    }


def _print_table(
    printer: Printer, heading: Sequence[str], rows: Sequence[Sequence[str]], styles: Sequence[str]
) -> None:
    """Print rows in columns under their heading; each row's third cell in that row's style."""
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    printer.line(Text("  ".join(map(str.ljust, heading, widths)).rstrip(), style="bold"))
    for cells, style in zip(rows, styles, strict=True):
        padded = list(map(str.ljust, cells, widths))
        text = Text.assemble("  ".join(padded[:2]), "  ", (padded[2], style), "  ", "  ".join(padded[3:]))
        text.rstrip()
        printer.line(text)


def print_status(status: Status, stream: TextIO) -> None:
    """Print a line for each QPU of each job, under a heading, then what an admin has to look at."""
    printer = Printer(stream)
    if status.lines:
        heading = ("JOB", "QPU", "STATE", "FOR", "TRIES", "NEXT", "NODE", "NOTE")
        styles = [_STATE_STYLES[line.state] for line in status.lines]
        _print_table(printer, heading, [_status_cells(line) for line in status.lines], styles)
    else:
        printer.line(Text(f"no job holds a QPU, by the records in {status.state_dir}"))
    for fault in status.faults:
        printer.line(Text.assemble(("cannot be read", _STYLES[Severity.ERROR]), f": {printable(fault)}"))
    for path in status.set_aside:
        printer.line(Text.assemble(("set aside", _STYLES[Severity.WARNING]), f": {printable(str(path))}"))


def _status_cells(line: Line) -> tuple[str, ...]:
    note = line.reason
    if line.state is State.INDETERMINATE:
        ends = "its end is not known" if line.ends_s is None else f"ends by itself within {_duration(line.ends_s)}"
        note = f"a session may be open, {ends}{': ' if note else ''}{note}"
    wait = "-" if line.next_try_s is None else _duration(line.next_try_s) if line.next_try_s else "now"
    cells = (str(line.job_id), line.qpu, line.state.value, _duration(line.age_s), str(line.attempts), wait, line.node)
    return tuple(printable(cell) for cell in (*cells, note))


def _duration(seconds: float) -> str:
    """Return seconds as people say them: `45s`, `12m`, `3h05m`, `2d04h`."""
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if seconds < 60:
        return f"{seconds:.0f}s"
    if minutes < 60:
        return f"{minutes}m{int(seconds) % 60:02}s"
    return f"{hours}h{minutes % 60:02}m" if hours < 24 else f"{days}d{hours % 24:02}h"


def status_json(status: Status) -> str:
    """Return a status as one JSON object."""
    document = {
        "version": JSON_VERSION,
        "state_dir": str(status.state_dir),
        "qpus": [asdict(line) for line in status.lines],
        "faults": list(status.faults),
        "set_aside": [str(path) for path in status.set_aside],
    }
    return json.dumps(document, indent=2)


def print_recovery(results: Sequence[Result], stream: TextIO, *, dry_run: bool) -> None:
    """Print a line for each job that something was or is to be done about; in a dry run, for every one."""
    printer = Printer(stream)
    for result in results:
        if not dry_run and result.plan.step is Step.LEAVE and not result.is_left:
            continue
        what = result.outcome or ("would " if dry_run else "") + result.plan.step.value
        style = _STYLES[Severity.ERROR] if result.is_left else "green" if result.outcome else ""
        qpus = f" {','.join(result.qpus)}" if result.qpus else ""
        head = printable(f"job {result.job_id}{qpus}")
        printer.line(
            Text.assemble(f"{head}: ", (printable(what, 1000), style), f" ({printable(result.plan.reason, 1000)})")
        )


def recovery_json(results: Sequence[Result], *, dry_run: bool) -> str:
    """Return what recover did as one JSON object; `left` says what the exit status says."""
    document = {
        "version": JSON_VERSION,
        "dry_run": dry_run,
        "left": sum(result.is_left for result in results),
        "jobs": [
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
    }
    return json.dumps(document, indent=2)


def print_lines(lines: Sequence[checked.Result], stream: TextIO, indent: str = "") -> None:
    """Print a line for each thing that was looked at, and what to do under those that are not well."""
    printer = Printer(stream)
    width = max((len(line.name) for line in lines), default=0)
    for line in lines:
        took = "" if line.duration_s is None else f" ({line.duration_s * 1000:.0f} ms)"
        head = (f"{line.level.value:<7}", _LEVEL_STYLES[line.level])
        message = printable(line.message, _MAX_CELL_CHARS)
        printer.line(Text.assemble(indent, head, f"  {line.name:<{width}}  {message}", (took, "dim")))
        if line.hint:
            printer.line(Text(f"{indent}{'':<{width + 11}}{printable(line.hint, _MAX_CELL_CHARS)}", style="dim"))


def print_checkup(lines: Sequence[checked.Result], stream: TextIO) -> None:
    """Print a checkup, and a line that sums up."""
    print_lines(lines, stream)
    counts = [(level, sum(line.level is level for line in lines)) for level in (Level.ERROR, Level.WARNING)]
    found = ", ".join(_counted(number, level.value) for level, number in counts if number)
    Printer(stream).line(Text(found or "all is well", style="bold"))


def checkup_json(lines: Sequence[checked.Result]) -> str:
    """Return a checkup as one JSON object; `healthy` says what the exit status says."""
    document = {"version": JSON_VERSION, "healthy": not checked.has_errors(lines), "lines": _lines_json(lines)}
    return json.dumps(document, indent=2)


def _lines_json(lines: Sequence[checked.Result]) -> list[dict[str, Any]]:
    return [
        {
            "name": line.name,
            "level": line.level.value,
            "message": line.message,
            "hint": line.hint or None,
            "duration_ms": None if line.duration_s is None else round(line.duration_s * 1000, 1),
        }
        for line in lines
    ]


def print_reports(reports: "Sequence[Report]", stream: TextIO) -> None:
    """Print the way to each resource, step by step."""
    printer = Printer(stream)
    for report in reports:
        printer.line(Text(f"{printable(report.resource)} ({printable(report.type)})", style="bold"))
        print_lines(report.steps, stream, "  ")


def _reports_json(reports: "Sequence[Report]") -> list[dict[str, Any]]:
    """Return the ways to all resources, for a JSON document."""
    return [
        {
            "resource": report.resource,
            "type": report.type,
            "reached": not report.has_errors,
            "steps": _lines_json(report.steps),
        }
        for report in reports
    ]


def diagnosis_github(diagnosis: Diagnosis) -> str:
    """Return a diagnosis as GitHub's workflow commands, which show each finding at its line of a pull request."""
    # https://docs.github.com/actions/reference/workflow-commands-for-github-actions
    lines = []
    for finding in diagnosis.findings:
        position = finding.position
        place = {"file": diagnosis.file}
        if position is not None:
            place |= {"line": str(position.line), "col": str(position.column)}
        place["title"] = f"{finding.rule.code}: {finding.rule.title}"
        properties = ",".join(f"{name}={_github(value, ':,')}" for name, value in place.items())
        where = f" (at {finding.path})" if finding.path else ""
        hint = f"\n{finding.hint}" if finding.hint else ""
        command = _GITHUB_COMMANDS[finding.rule.severity]
        lines.append(f"::{command} {properties}::{_github(f'{finding.message}{where}{hint}')}\n")
    return "".join(lines)


def _github(text: str, further: str = "") -> str:
    return "".join(f"%{ord(char):02X}" if char in f"%\r\n{further}" else char for char in text)


def print_qpus(listing: "Listing", stream: TextIO, now_s: float) -> None:
    """Print a line for each QPU under a heading; below, how old a list is that was not asked for just now."""
    printer = Printer(stream)
    if listing.qpus:
        qpus = [qpu.shown for qpu in listing.qpus]
        has_notes = listing.is_live or any(qpu.notice for qpu in qpus)
        heading = ("QPU", "TYPE", "USABLE", "STATE", "QUEUE", "JOBS", *(("NOTE",) if has_notes else ()))
        rows = [_qpu_cells(qpu)[: len(heading)] for qpu in qpus]
        _print_table(printer, heading, rows, [_USABLE_STYLES[qpu.is_usable] for qpu in qpus])
    else:
        printer.line(Text("there is no QPU"))
    if not listing.is_live:
        age = _duration(max(0.0, now_s - listing.checked_s))
        printer.line(Text(f"as of {age} ago", style="dim"))


def _qpu_cells(qpu: "Qpu") -> tuple[str, ...]:
    usable = {True: "yes", False: "no", None: "?"}[qpu.is_usable]
    pending = "-" if qpu.pending_jobs is None else str(qpu.pending_jobs)
    jobs = str(qpu.held_by) if qpu.job_ids is None else ",".join(map(str, qpu.job_ids)) or "-"
    note = "; ".join(text for text in (qpu.notice, qpu.reason) if text)
    cells = (qpu.name, qpu.type, usable, qpu.state, pending, jobs, note)
    return tuple(printable(cell, _MAX_CELL_CHARS) for cell in cells)


def qpus_json(listing: "Listing") -> str:
    """Return a listing as one JSON object."""
    document = {
        "version": JSON_VERSION,
        "is_live": listing.is_live,
        "checked_s": listing.checked_s,
        "qpus": [asdict(qpu.shown) for qpu in listing.qpus],
    }
    return json.dumps(document, indent=2)


def print_switched(results: "Sequence[Switched]", stream: TextIO) -> None:
    """Print what came of draining or resuming: a line for each license."""
    printer = Printer(stream)
    for result in results:
        said = result.fault or result.notice or "in service"
        if not result.fault and not result.is_changed:
            said = f"unchanged: {said}"
        kept = f" ({_counted(result.running, 'running job')} keep it)" if result.running > 1 else ""
        kept = " (1 running job keeps it)" if result.running == 1 else kept
        style = _STYLES[Severity.ERROR] if result.fault else "yellow" if result.notice else "green"
        head = printable(", ".join(result.qpus), _MAX_CELL_CHARS)
        shown = printable(said, _MAX_CELL_CHARS)
        printer.line(Text.assemble(f"{head}: ", (shown, style), kept if result.notice else ""))


def switched_json(results: "Sequence[Switched]") -> str:
    """Return what came of draining or resuming as one JSON object."""
    return json.dumps({"version": JSON_VERSION, "licenses": [asdict(result) for result in results]}, indent=2)


def print_sensed(report: "Sensed", stream: TextIO) -> None:
    """Print what a run of the sensor has changed; nothing where nothing has."""
    printer = Printer(stream)
    if report.is_skipped:
        printer.line(Text("another run has not ended: nothing was done"))
    for change in report.changes:
        head = printable(", ".join(change.qpus), _MAX_CELL_CHARS)
        style = "yellow" if change.notice else "green"
        printer.line(Text.assemble(f"{head}: ", (printable(change.notice or "back in service"), style)))
    for move in report.moves:
        before, after = (",".join(counts) for counts in (move.before, move.after))
        printer.line(Text(printable(f"job {move.job}: moved from {before} to {after}", _MAX_CELL_CHARS)))


def sensed_json(report: "Sensed") -> str:
    """Return a run of the sensor as one JSON object."""
    document = {
        "version": JSON_VERSION,
        "is_skipped": report.is_skipped,
        "changes": [asdict(change) for change in report.changes],
        "out": dict(report.out),
        "uncounted": list(report.uncounted),
        "moves": [{"job": move.job, "before": dict(move.before), "after": dict(move.after)} for move in report.moves],
        "faults": list(report.faults),
    }
    return json.dumps(document, indent=2)


def print_usage(usage: "Usage", keys: Sequence[str], stream: TextIO) -> None:
    """Print a line for each group of acquisitions, and what they come to; without keys, one for each acquisition."""
    printer = Printer(stream)
    heading, rows = _usage_table(usage, keys)
    printer.line(Text(f"{_local(usage.span.since_s)} to {_local(usage.span.until_s)}", style="dim"))
    if len(rows) > 1 or not keys:
        _print_table(printer, heading, [tuple(map(printable, row)) for row in rows], [""] * len(rows))
    else:
        printer.line(Text("no QPU was asked for"))


def _usage_table(usage: "Usage", keys: Sequence[str]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return heading and cells; the last row is the total."""
    all_of_it = usage_.total(usage)
    if not keys:
        heading = ("ASKED", "JOB", "USER", "ACCOUNT", "QPU", "HELD", "RESULT", "BY", "NODE")
        return heading, [_acquisition_cells(one, usage) for one in usage.acquisitions]
    rows = [(*(word or "-" for word in row.key), *_row_cells(row, all_of_it)) for row in usage_.group(usage, keys)]
    rows.append(("total", *[""] * (len(keys) - 1), *_row_cells(all_of_it, all_of_it)))
    return (*map(str.upper, keys), "JOBS", "ACQUIRED", "FAILED", "HELD", "SHARE", "USED"), rows


def _acquisition_cells(one: "Acquisition", usage: "Usage") -> tuple[str, ...]:
    held = "-" if one.acquired_s is None else timeline.duration(one.held_s(usage.span))
    cells = (_local(one.asked_s), one.job, one.user, one.account or "-", one.qpu, held, one.result, one.by or "-")
    return (*cells, one.node)


def _row_cells(row: "Row", all_of_it: "Row") -> tuple[str, ...]:
    share = row.held_s / all_of_it.held_s if all_of_it.held_s else 0.0
    used = "-" if row.utilisation is None else timeline.percent(row.utilisation)
    counts = (len(row.jobs), row.acquired, row.failed)
    return (*map(str, counts), timeline.duration(row.held_s), timeline.percent(share), used)


def _local(epoch_s: float) -> str:
    """Return a moment as Slurm's commands write it: local time, without a zone."""
    return datetime.fromtimestamp(epoch_s).isoformat(timespec="seconds")


def usage_json(usage: "Usage", keys: Sequence[str]) -> str:
    """Return a report as one JSON object; without keys, with each acquisition and its token."""
    document: dict[str, Any] = {
        "version": JSON_VERSION,
        "since_s": round(usage.span.since_s, 3),
        "until_s": round(usage.span.until_s, 3),
        "by": list(keys) or ["acquisition"],
        "damaged_lines": usage.damaged,
        "total": _row_json(usage_.total(usage)),
    }
    if keys:
        found = usage_.group(usage, keys)
        document["rows"] = [{**dict(zip(keys, row.key, strict=True)), **_row_json(row)} for row in found]
    else:
        document["rows"] = [_acquisition_json(one, usage) for one in usage.acquisitions]
    return json.dumps(document, indent=2)


def _row_json(row: "Row") -> dict[str, Any]:
    return {
        "jobs": len(row.jobs),
        "acquired": row.acquired,
        "failed": row.failed,
        "held_s": round(row.held_s, 3),
        "utilisation": None if row.utilisation is None else round(row.utilisation, 6),
    }


def _acquisition_json(one: "Acquisition", usage: "Usage") -> dict[str, Any]:
    token = one.token.reveal() if one.token is not None else None
    return {**asdict(one), "token": token, "held_s": round(one.held_s(usage.span), 3)}


def usage_csv(usage: "Usage", keys: Sequence[str]) -> str:
    """Return a report as comma-separated values (RFC 4180 but for its line ends), for a table of other programs."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    if keys:
        writer.writerow([*keys, "jobs", "acquired", "failed", "held_s", "utilisation"])
        for row in usage_.group(usage, keys):
            writer.writerow([*map(_cell, row.key), *_row_json(row).values()])
        return stream.getvalue()
    words = ["asked", "acquired", "ended", "cluster", "job_id", "array_job_id", "array_task_id", "het_job_id"]
    writer.writerow([*words, "restart", "user", "account", "node", "qpu", "type", "result", "by", "held_s"])
    for one in usage.acquisitions:
        times = (one.asked_s, one.acquired_s, one.ended_s)
        ids = (one.job_id, one.array_job_id, one.array_task_id, one.het_job_id, one.restart)
        texts = (one.user, one.account, one.node, one.qpu, one.type, one.result, one.by)
        held_s = round(one.held_s(usage.span), 3)
        cells = ["" if at_s is None else _zoned(at_s) for at_s in times]
        writer.writerow([*cells, _cell(one.cluster), *ids, *map(_cell, texts), held_s])
    return stream.getvalue()


def _zoned(epoch_s: float) -> str:
    return datetime.fromtimestamp(epoch_s).astimezone().isoformat(timespec="seconds")


def _cell(text: str) -> str:
    """Return a text for a table of other programs, some of which would take one that begins so for a formula."""
    text = printable(text)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


@contextlib.contextmanager
def progress(stream: TextIO) -> Iterator[Callable[[str], None]]:
    """Show what is being done while it lasts, on a terminal; nothing anywhere else.

    Args:
        stream: standard error, usually: the result is standard output's.
    """
    with Console(file=stream, highlight=False, markup=False, emoji=False).status("") as status:
        yield lambda what: status.update(Text(what))


def print_error(error: QrmiSlurmError, stream: TextIO) -> None:
    """Print what is wrong, then what to do."""
    printer = Printer(stream)
    printer.line(Text.assemble(("error", _STYLES[Severity.ERROR]), f": {error.message}"))
    if error.hint:
        printer.line(Text(f"hint: {error.hint}"))
