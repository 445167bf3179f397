"""What the command prints: rich on a terminal, plain and unwrapped elsewhere; data is never read as markup.

Results go to the stream that is passed in, usually standard output. rich honours NO_COLOR by itself.
"""

import json
from typing import Any, Final, TextIO

from rich.console import Console
from rich.text import Text

from qrmi_slurm.diagnosis import Diagnosis, Finding, Severity
from qrmi_slurm.errors import QrmiSlurmError

# Grows by one when a field of the JSON output is renamed, removed or changes its meaning; new fields may come.
JSON_VERSION: Final = 1

_STYLES: Final = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}
_INDENT: Final = "    "


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


def diagnosis_json(diagnosis: Diagnosis, *, strict: bool) -> str:
    """Return a diagnosis as one JSON object; `valid` says what the exit status says."""
    document = {
        "version": JSON_VERSION,
        "file": diagnosis.file,
        "valid": diagnosis.is_valid(strict=strict),
        "resources": diagnosis.resources,
        **{f"{severity.value}s": diagnosis.count(severity) for severity in Severity},
        "findings": [_finding_json(finding) for finding in diagnosis.findings],
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


def print_error(error: QrmiSlurmError, stream: TextIO) -> None:
    """Print what is wrong, then what to do."""
    printer = Printer(stream)
    printer.line(Text.assemble(("error", _STYLES[Severity.ERROR]), f": {error.message}"))
    if error.hint:
        printer.line(Text(f"hint: {error.hint}"))
