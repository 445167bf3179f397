"""The man pages, docs/man/, made from what `--help` shows: docstring, parameters, examples, notes and exit status."""

import re
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any, Final

from made.text import CHECKOUT
from qrmi_slurm.command.cli import app

# The same on every page; the rest is the command's own.
_EXIT_STATUS: Final = "0: success. 1: the command ran and found problems. 2: it could not run, or was called wrongly."
_ENVIRONMENT: Final = {
    "SLURM_CONF": "Path of slurm.conf; plugstack.conf is in the same folder. Default: /etc/slurm/slurm.conf.",
    "SLURMD_NODENAME": "Slurm's name for this node, if it is not its short host name.",
    "NO_COLOR": "If set, no colors, not even on a terminal.",
}
_FILES: Final = {
    "/etc/slurm/plugstack.conf": "The plugin's line, with the site's options.",
    "/etc/slurm/qrmi_config.json": "The resources; only root can read it (mode 0600).",
    "/var/spool/qrmi-slurm": "The records of what jobs hold, and qpus.json, the list for users.",
    "/var/spool/qrmi-slurm/<cluster>/.accounting": "The ledger, a line for each acquisition; only root can read it.",
}


def pages() -> dict[str, str]:
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
        f'.\\" Made by docs/generate.py from {_source(command)}: change it there.',
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
    examples, notes, status = _epilog(command.epilog or "")
    lines += [".SH EXAMPLES", ".nf", *map(_roff, examples), ".fi"] if examples else []
    lines += [".SH NOTES", *notes] if notes else []
    lines += [".SH EXIT STATUS", _roff(status or _EXIT_STATUS)]
    lines += [".SH ENVIRONMENT", *(line for name, what in _ENVIRONMENT.items() for line in _item(name, what))]
    lines += [".SH FILES", *(line for name, what in _FILES.items() for line in _item(name, what))]
    others = ["qrmi-slurm(1)"] if commands is None else [f"qrmi-slurm-{name}(1)" for name in commands]
    lines += [".SH SEE ALSO", _roff(", ".join([*others, "sbatch(1)", "slurm.conf(5)", "spank(7)"]))]
    return "\n".join(lines) + "\n"


def _source(command: Any) -> str:
    return f"{command.callback.__module__.replace('.', '/')}.py"


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


def _epilog(text: str) -> tuple[list[str], list[str], str]:
    """Return the lines of the examples, the lines of the notes in roff, and the exit status.

    A paragraph that begins with a backspace is a list for `--help`, whose lines are not to be joined.
    """
    examples: list[str] = []
    notes: list[str] = []
    status = heading = ""
    for paragraph in re.split(r"\n\s*\n", text.strip()):
        lines = [line.strip() for line in paragraph.split("\n")]
        joined = " ".join(" ".join(lines).split())
        if lines[0].strip("\b").strip() == "" and heading == "Examples:":
            examples += lines[1:]
        elif lines[0].strip("\b").strip() == "":
            for line in lines[1:]:
                head, _, what = line.partition("  ")
                notes += _item(head, what)
        elif joined.startswith("Exit status:"):
            status = joined.removeprefix("Exit status:").strip()
        elif joined != "Examples:":
            notes += [".PP", _roff(joined)]
        heading = joined
    return examples, notes, status


def _item(head: str, text: str | None) -> list[str]:
    return [".TP", f".B {_roff(head)}", _roff(" ".join((text or "").split()))]


def _roff(text: str) -> str:
    """Return text that groff prints as it stands."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped[:1] in (".", "'") else escaped
