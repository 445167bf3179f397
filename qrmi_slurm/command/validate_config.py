"""`qrmi-slurm validate-config`: checks a qrmi_config.json, and on request the way to each resource's service."""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TextIO

import typer

from qrmi_slurm.command import render, site
from qrmi_slurm.command.parameters import EXIT_PROBLEMS
from qrmi_slurm.command.render import STYLES
from qrmi_slurm.errors import BackendError, ConfigError
from qrmi_slurm.text import printable

if TYPE_CHECKING:
    from qrmi_slurm.checks.online.check import Report
    from qrmi_slurm.validation.rules import Diagnosis, Finding

_GITHUB_COMMANDS: Final = {"error": "error", "warning": "warning", "note": "notice"}
_INDENT: Final = "    "

app = typer.Typer()


class Format(StrEnum):
    """In which form the result is printed."""

    TEXT = "text"
    JSON = "json"
    GITHUB = "github"


@app.command(
    "validate-config",
    short_help="Check qrmi_config.json and report every problem.",
    epilog="""Examples:

\b
  qrmi-slurm validate-config
  qrmi-slurm validate-config /etc/slurm/qrmi_config.json
  qrmi-slurm validate-config --strict --format json new_config.json
  qrmi-slurm validate-config --format github examples/qrmi_config.json
  qrmi-slurm validate-config --online               as root, on a compute node

--online follows the path of the hooks' requests, step by step: proxy, DNS, TCP, TLS, endpoint, credential, and finally
QRMI itself. It opens no session. It uses the proxy that --env: sets on the plugin's line, not your shell's.

Exit status: 0 the config can be used, 1 it has errors or --online found one, 2 it cannot be read.""",
)
def validate_config(
    path: Annotated[
        Path | None,
        typer.Argument(
            show_default=False,
            help="Config to check. Default: the one named by the plugin's line in plugstack.conf.",
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Count warnings as errors.")] = False,
    output: Annotated[
        Format,
        typer.Option(
            "--format",
            metavar="text|json|github",
            help="Output for people, for programs, or as annotations on a GitHub pull request.",
        ),
    ] = Format.TEXT,
    online: Annotated[
        bool,
        typer.Option("--online", help="Also check the network path to each resource's service, and its credentials."),
    ] = False,
    resource: Annotated[
        list[str] | None,
        typer.Option(
            "--resource",
            metavar="NAME",
            show_default=False,
            help="With --online: only this resource; repeatable.",
        ),
    ] = None,
    timeout_s: Annotated[
        float,
        typer.Option("--timeout", metavar="SECONDS", min=0.1, max=600, help="With --online: time limit for each step."),
    ] = 10.0,
) -> None:
    """Check a qrmi_config.json and report every problem: where it is, what is wrong, what to write instead.

    Values of variables are never shown.
    """
    from qrmi_slurm.validation import validate  # loads jsonschema, 60 ms

    hint = ""
    slots_licenses: Mapping[str, str] = {}
    if path is None:
        path, hint, slots_licenses = _default_config()
    try:
        diagnosis = validate.validate_file(path, _installed_members(), slots_licenses)
    except ConfigError as error:
        raise ConfigError(error.message, error.hint or hint) from error
    reports = _check_online(path, resource or [], timeout_s) if online else None
    if output is Format.JSON:
        print_json(diagnosis, sys.stdout, strict=strict, reports=reports)
    elif output is Format.GITHUB:
        print_github(diagnosis, sys.stdout)
    else:
        print_text(diagnosis, sys.stdout, strict=strict)
        print_reports(reports or [], sys.stdout)
    if not diagnosis.is_valid(strict=strict) or any(report.has_errors for report in reports or []):
        raise typer.Exit(EXIT_PROBLEMS)


def _default_config() -> tuple[Path, str, Mapping[str, str]]:
    """Return the config of the plugin's line, a hint in case it cannot be read, and the line's licenses of slots."""
    options = site.options()
    origin = f"named in {options.source}" if options.source else "the default; no line in plugstack.conf names another"
    return options.config_path, f"{origin}; only compute nodes need the file", options.slots_licenses


def _installed_members() -> tuple[str, ...]:
    """Return the types that the installed QRMI knows; without QRMI, print a warning and return none."""
    from qrmi_slurm.calls import installed

    try:
        return installed.known_members()
    except BackendError as error:
        sys.stderr.write(f"warning: {error}; types are checked only against those that qrmi-slurm knows\n")
        return ()


def _check_online(path: Path, names: list[str], timeout_s: float) -> "list[Report]":
    """Check the way to each resource of a config; if it cannot be loaded, print a warning and check none."""
    from qrmi_slurm.checks.online import check  # loads requests, 80 ms

    try:
        resources = site.resources(path)
    except ConfigError as error:
        sys.stderr.write(f"warning: --online skipped: {error.message}\n")
        return []
    unknown = set(names) - {resource.name for resource in resources}
    if unknown:
        raise ConfigError(f"{path} has no resource {', '.join(printable(name) for name in names if name in unknown)}")
    chosen = [resource for resource in resources if not names or resource.name in names]
    limits = check.Limits(step_s=timeout_s, qrmi_s=max(timeout_s, check.DEFAULT_QRMI_TIMEOUT_S))
    with render.progress(sys.stderr) as tell:
        return check.run(chosen, site.options(), limits, os.environ, tell)


def print_text(diagnosis: "Diagnosis", stream: TextIO, *, strict: bool) -> None:
    """Print each finding with its place, reason and hint, then a summary line."""
    printer = render.Printer(stream)
    for finding in diagnosis.findings:
        for line in _finding_lines(diagnosis.file, finding):
            printer.line(*line)
    printer.line((_summary(diagnosis, strict=strict), "bold"))


def _finding_lines(file: str, finding: "Finding") -> Iterator[list[str | tuple[str, str]]]:
    rule, position = finding.rule, finding.position
    style = STYLES[rule.severity]
    place = file if position is None else f"{file}:{position.line}:{position.column}"
    yield [(place, "bold"), ": ", (f"{rule.severity} {rule.code}", style), f": {finding.message}"]
    if finding.path:
        resource = f" (resource {finding.resource})" if finding.resource else ""
        yield [f"{_INDENT}at {finding.path}{resource}"]
    if finding.excerpt:
        yield [_INDENT + finding.excerpt]
        yield [(_INDENT + " " * finding.caret + "^", style)]
    if finding.hint:
        yield [(f"{_INDENT}hint: {finding.hint}", "dim")]


def _summary(diagnosis: "Diagnosis", *, strict: bool) -> str:
    from qrmi_slurm.validation.rules import Severity

    counts = [(severity, diagnosis.count(severity)) for severity in Severity]
    found = ", ".join(render.counted(number, severity.value) for severity, number in counts if number)
    if not diagnosis.is_valid(strict=strict):
        why = "" if diagnosis.count(Severity.ERROR) else "; --strict counts warnings as errors"
        return f"{found} in {diagnosis.file}{why}"
    resources = render.counted(diagnosis.resources or 0, "resource")
    return f"ok: {resources}, {found}" if found else f"ok: {resources}"


def print_reports(reports: "Sequence[Report]", stream: TextIO) -> None:
    """Print what `--online` found, step by step for each resource."""
    printer = render.Printer(stream)
    for report in reports:
        printer.line((f"{printable(report.resource)} ({printable(report.type)})", "bold"))
        render.print_checks(report.steps, stream, "  ")


def print_json(
    diagnosis: "Diagnosis", stream: TextIO, *, strict: bool, reports: "Sequence[Report] | None" = None
) -> None:
    """Print one JSON object.

    `valid` agrees with the exit status without `--online`; `online` is there only with `--online`.
    """
    from qrmi_slurm.validation.rules import Severity

    render.print_json(
        stream,
        file=diagnosis.file,
        valid=diagnosis.is_valid(strict=strict),
        resources=diagnosis.resources,
        **{f"{severity.value}s": diagnosis.count(severity) for severity in Severity},
        findings=[_finding_json(finding) for finding in diagnosis.findings],
        **({} if reports is None else {"online": [_report_json(report) for report in reports]}),
    )


def _finding_json(finding: "Finding") -> dict[str, Any]:
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


def _report_json(report: "Report") -> dict[str, Any]:
    return {
        "resource": report.resource,
        "type": report.type,
        "reached": not report.has_errors,
        "steps": render.checks_json(report.steps),
    }


def print_github(diagnosis: "Diagnosis", stream: TextIO) -> None:
    """Print GitHub workflow commands, which show each finding at its line of a pull request."""
    # https://docs.github.com/actions/reference/workflow-commands-for-github-actions
    for finding in diagnosis.findings:
        position = finding.position
        place = {"file": diagnosis.file}
        if position is not None:
            place |= {"line": str(position.line), "col": str(position.column)}
        place["title"] = f"{finding.rule.code}: {finding.rule.title}"
        properties = ",".join(f"{name}={_github_escaped(value, ':,')}" for name, value in place.items())
        where = f" (at {finding.path})" if finding.path else ""
        hint = f"\n{finding.hint}" if finding.hint else ""
        command = _GITHUB_COMMANDS[finding.rule.severity]
        stream.write(f"::{command} {properties}::{_github_escaped(f'{finding.message}{where}{hint}')}\n")


def _github_escaped(text: str, also: str = "") -> str:
    """Escape what would end a workflow command, and the characters of `also`."""
    return "".join(f"%{ord(char):02X}" if char in f"%\r\n{also}" else char for char in text)
