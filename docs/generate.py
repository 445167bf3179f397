"""Writes the pages that are made from the code: docs/validate-config.md and docs/man/.

    generate.py            write them
    generate.py --check    say which are not as the code has them, and exit with 1

A man page is made of what `--help` shows: docstring, parameters, examples, exit status.
"""

import io
import re
import sys
import textwrap
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from unittest import mock

from qrmi_slurm import config_schema, diagnosis, render, validate
from qrmi_slurm.cli import app
from qrmi_slurm.config import MAX_CONFIG_BYTES
from qrmi_slurm.diagnosis import Diagnosis, Rule

DOCS: Final = Path(__file__).resolve().parent
CHECKOUT: Final = DOCS.parent
EXAMPLES: Final = CHECKOUT / "tests" / "fixtures" / "config" / "codes"

# The members of QRMI 0.26, but for OQTOPUS: an installed QRMI that lacks a type (QS308).
OLDER_MEMBERS: Final = (
    "AliceBobFelis",
    "IBMQuantumComputeService",
    "IBMQuantumSystem",
    "IQMServer",
    "PasqalCloud",
    "PasqalLocal",
)
_MEMBERS: Final = (*OLDER_MEMBERS, "OQTOPUS")
_FILE_MODES: Final = {"QS110": 0o644, "QS111": 0o622}
_CHAPTERS: Final = {
    "1": "The file and its text",
    "2": "Keys and the kinds of their values",
    "3": "Resources",
    "4": "Variables",
    "5": "Addresses",
}
_COLUMNS: Final = 128
_MADE: Final = "<!-- Made by docs/generate.py from qrmi_slurm/diagnosis.py: change it there. -->"

# What concerns all commands; the rest of a page is the command's own.
_EXIT_STATUS: Final = """\
0: all is well. 1: the command did its work and found faults. 2: it could not do its work, or was called wrongly."""
_ENVIRONMENT: Final = {
    "SLURM_CONF": "Slurm's configuration file, with plugstack.conf beside it; /etc/slurm/slurm.conf by default.",
    "SLURMD_NODENAME": "This node's name in Slurm, where it is not its short host name.",
    "NO_COLOR": "No colours, on a terminal either.",
}
_FILES: Final = {
    "/etc/slurm/plugstack.conf": "The plugin's line, with the site's options.",
    "/etc/slurm/qrmi_config.json": "The resources; root's alone (mode 0600).",
    "/var/spool/qrmi-slurm": "The records of what jobs hold, and qpus.json, the list for users.",
    "/var/spool/qrmi-slurm/<cluster>/.accounting": "The ledger: a line for each acquisition; root's alone.",
}


# --- docs/validate-config.md ------------------------------------------------------------------------------


def example_of(rule: Rule) -> Path:
    """Return the example of a rule."""
    return EXAMPLES / f"{rule.code}.json"


def diagnose(rule: Rule) -> Diagnosis:
    """Check the example of a rule, under the conditions that it is an example for."""
    with _conditions(rule):
        path = example_of(rule)
        members = OLDER_MEMBERS if rule.code == "QS308" else _MEMBERS
        found = validate.validate_file(path, members)
    return Diagnosis("qrmi_config.json", found.resources, found.findings)


@contextmanager
def _conditions(rule: Rule) -> Iterator[None]:
    """Let the example's file be one of root's, or of another mode, too large, or held against a stricter schema."""
    path = example_of(rule)
    before = path.stat().st_mode & 0o7777
    schema = {"properties": {"resources": {"minItems": 2}}}
    try:
        path.chmod(_FILE_MODES.get(rule.code, 0o600))
        with (
            mock.patch.object(validate, "MAX_CONFIG_BYTES", 10 if rule.code == "QS104" else MAX_CONFIG_BYTES),
            mock.patch.object(
                config_schema,
                "validator",
                (lambda: _validator(schema)) if rule.code == "QS299" else config_schema.validator,
            ),
        ):
            yield
    finally:
        path.chmod(before)


def _validator(schema: Mapping[str, Any]) -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator(schema)


def validate_config_page() -> str:
    """Return the page of the codes."""
    lines = [
        "# What `qrmi-slurm validate-config` finds",
        "",
        _MADE,
        "",
        *_wrapped(
            "Each finding has a code that never stands for anything else. **error**: the config is refused, or the "
            "resource cannot work. **warning**: it works, but hardly as meant; `--strict` counts it as an error. "
            "**note**: good to know. Exit status: 0 the config can be used, 1 it has errors, 2 it cannot be read."
        ),
        "",
        "| code | | what |",
        "|---|---|---|",
        *(f"| [{rule.code}](#{rule.code.lower()}) | {rule.severity} | {rule.title} |" for rule in diagnosis.RULES),
    ]
    chapter = ""
    for rule in diagnosis.RULES:
        if rule.code[2] != chapter:
            chapter = rule.code[2]
            lines += ["", f"## {_CHAPTERS[chapter]}"]
        lines += ["", *_section(rule)]
    return "\n".join(lines) + "\n"


def _section(rule: Rule) -> list[str]:
    lines = [f"### {rule.code}", "", *_wrapped(f"**{rule.severity}**: {rule.title}. {rule.why}")]
    if rule.code not in ("QS104", "QS110", "QS111", "QS299"):  # there is nothing to see in the file itself
        text = example_of(rule).read_bytes().decode("utf-8", "replace")
        lines += ["", "```json", *text.rstrip("\n").split("\n"), "```"]
    return [*lines, "", "```", *_finding(rule), "```"]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, width=_COLUMNS, break_long_words=False, break_on_hyphens=False)


def _finding(rule: Rule) -> list[str]:
    """Return what the command prints of a rule's finding in its example."""
    found = diagnose(rule)
    finding = next(finding for finding in found.findings if finding.rule is rule)
    stream = io.StringIO()
    render.print_diagnosis(Diagnosis(found.file, found.resources, (finding,)), stream, strict=False)
    return stream.getvalue().rstrip("\n").split("\n")[:-1]


# --- docs/man ---------------------------------------------------------------------------------------------


def man_pages() -> dict[str, str]:
    """Return the man pages by their file names."""
    from typer.main import get_command

    root: Any = get_command(app)
    version = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["version"]
    pages = {"qrmi-slurm.1": _man_page("qrmi-slurm", root, version, commands=root.commands)}
    for name, command in root.commands.items():
        pages[f"qrmi-slurm-{name}.1"] = _man_page(f"qrmi-slurm {name}", command, version)
    return pages


def _man_page(invocation: str, command: Any, version: str, commands: Mapping[str, Any] | None = None) -> str:
    title = invocation.replace(" ", "-")
    help_text = command.help or ""
    summary = help_text.split("\n")[0].rstrip(".")
    lines = [
        '.\\" Made by docs/generate.py from qrmi_slurm/cli.py: change it there.',
        f'.TH {title.upper()} 1 "" "qrmi-slurm {version}" "User Commands"',
        ".SH NAME",
        f"{_roff(title)} \\- {_roff(summary)}",
        ".SH SYNOPSIS",
        f".B {_roff(invocation)}",
        _roff(_synopsis(command, has_commands=commands is not None)),
        ".SH DESCRIPTION",
        *_paragraphs(help_text),
    ]
    options = [parameter for parameter in command.params if _is_option(parameter)]
    arguments = [parameter for parameter in command.params if not _is_option(parameter)]
    if arguments:
        lines += [
            ".SH ARGUMENTS",
            *(line for argument in arguments for line in _item(_metavar(argument), argument.help)),
        ]
    if options:
        lines += [".SH OPTIONS", *(line for option in options for line in _item(_option_words(option), option.help))]
    if commands is not None:
        lines.append(".SH COMMANDS")
        for name, sub in commands.items():
            lines += _item(f"qrmi-slurm-{name}(1)", (sub.help or "").split("\n")[0])
    examples, text = _epilog(command.epilog or "")
    if examples:
        lines += [".SH EXAMPLES", ".nf", *map(_roff, examples), ".fi"]
    status = next((part for part in text if part.startswith("Exit status:")), f"Exit status: {_EXIT_STATUS}")
    notes = [part for part in text if not part.startswith("Exit status:")]
    lines += [".SH NOTES", *(line for note in notes for line in (".PP", _roff(note)))] if notes else []
    lines += [".SH EXIT STATUS", _roff(status.removeprefix("Exit status:").strip())]
    lines += [".SH ENVIRONMENT", *(line for name, what in _ENVIRONMENT.items() for line in _item(name, what))]
    lines += [".SH FILES", *(line for name, what in _FILES.items() for line in _item(name, what))]
    others = ["qrmi-slurm(1)"] if commands is None else [f"qrmi-slurm-{name}(1)" for name in commands]
    lines += [".SH SEE ALSO", _roff(", ".join([*others, "sbatch(1)", "slurm.conf(5)", "spank(7)"]))]
    return "\n".join(lines) + "\n"


def _is_option(parameter: Any) -> bool:
    return bool(parameter.opts) and str(parameter.opts[0]).startswith("-")


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())


def _takes_value(option: Any) -> bool:
    return not getattr(option, "is_flag", False)


def _option_words(option: Any) -> str:
    words = ", ".join(option.opts)
    return f"{words} {_metavar(option)}" if _takes_value(option) else words


def _synopsis(command: Any, *, has_commands: bool) -> str:
    words = []
    for parameter in command.params:
        if _is_option(parameter):
            words.append(f"[{parameter.opts[-1]}{f' {_metavar(parameter)}' if _takes_value(parameter) else ''}]")
        else:
            name = _metavar(parameter)
            words.append(name if parameter.required or name.startswith("[") else f"[{name}]")
    return " ".join([*words, *(["COMMAND [ARGUMENT]..."] if has_commands else [])]) or "[OPTION]..."


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        yield ".PP"
        yield _roff(" ".join(paragraph.split()))


def _epilog(text: str) -> tuple[list[str], list[str]]:
    """Return the lines of the examples, and the paragraphs behind them."""
    examples: list[str] = []
    others: list[str] = []
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        lines = [line.rstrip() for line in paragraph.split("\n")]
        if lines[0].strip("\b").strip() == "":
            examples += [line.strip() for line in lines[1:]]
        elif lines[0] != "Examples:":
            others.append(" ".join(" ".join(lines).split()))
    return examples, others


def _item(head: str, text: str | None) -> list[str]:
    return [".TP", f".B {_roff(head)}", _roff(" ".join((text or "").split()))]


def _roff(text: str) -> str:
    """Return text that groff prints as it stands."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped[:1] in (".", "'") else escaped


# --- all pages --------------------------------------------------------------------------------------------


def pages() -> dict[Path, str]:
    """Return every page that is made, by its path."""
    found = {DOCS / "validate-config.md": validate_config_page()}
    return found | {DOCS / "man" / name: text for name, text in man_pages().items()}


def main(arguments: Sequence[str]) -> int:
    """Write the pages, or with `--check` compare them.

    Returns:
        The exit status: 0, or 1 where a page is not as the code has it.
    """
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text() != text]
    for path in stale:
        if "--check" in arguments:
            print(f"{path.relative_to(CHECKOUT)} is not as the code has it: run make docs", file=sys.stderr)
        else:
            path.parent.mkdir(exist_ok=True)
            path.write_text(pages()[path])
            print(f"wrote {path.relative_to(CHECKOUT)}")
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
