"""The check of a config: every fault of its text, against the schema, and of sense."""

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from qrmi_slurm.config import resource_types
from qrmi_slurm.config.config_file import MAX_CONFIG_BYTES
from qrmi_slurm.errors import ConfigError
from qrmi_slurm.text import printable
from qrmi_slurm.validation import json_text, resource_checks, rules, schema
from qrmi_slurm.validation.excerpt import masked_line
from qrmi_slurm.validation.json_text import Document, FaultKind
from qrmi_slurm.validation.rules import Diagnosis, Finding, Rule

_RULES: dict[FaultKind, Rule] = {
    FaultKind.SYNTAX: rules.SYNTAX,
    FaultKind.DUPLICATE_KEY: rules.DUPLICATE_KEY,
    FaultKind.ENCODING: rules.ENCODING,
}


def validate_file(path: Path, installed_members: Sequence[str] = ()) -> Diagnosis:
    """Check a config, and who may read and write it.

    Args:
        path: the file.
        installed_members: the members of the installed QRMI's `ResourceType`; empty: do not ask it.

    Raises:
        ConfigError: the file cannot be read.
    """
    shown = printable(str(path))
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        hint = "run the command as root: the file holds secrets" if isinstance(error, PermissionError) else ""
        raise ConfigError(f"cannot read {shown}: {error.strerror}", hint) from error
    if len(content) > MAX_CONFIG_BYTES:
        message = f"the file is larger than the {MAX_CONFIG_BYTES} bytes that the hooks read"
        return Diagnosis(shown, None, (Finding(rules.TOO_LARGE, None, "", message),))
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        column = error.start - (content.rfind(b"\n", 0, error.start) + 1) + 1
        fault = Finding(
            rules.ENCODING,
            json_text.Position(line, column),
            "",
            "the file is not UTF-8 from here on",
            "save it as UTF-8",
        )
        return Diagnosis(shown, None, (fault,))
    document = json_text.read(text)
    found = [*_of_mode(document, mode), *_of_document(text, document, installed_members)]
    return Diagnosis(shown, _count_resources(document), tuple(sorted(found, key=_order)))


def validate_text(text: str, file: str, installed_members: Sequence[str] = ()) -> Diagnosis:
    """Check the text of a config.

    Args:
        text: the whole text.
        file: what to call it in the findings.
        installed_members: the members of the installed QRMI's `ResourceType`; empty: do not ask it.
    """
    document = json_text.read(text)
    found = sorted(_of_document(text, document, installed_members), key=_order)
    return Diagnosis(printable(file), _count_resources(document), tuple(found))


def _of_document(text: str, document: Document, installed_members: Sequence[str]) -> Iterator[Finding]:
    for fault in document.faults:
        excerpt, caret = masked_line(text, fault.position) if fault.kind is FaultKind.SYNTAX else ("", 0)
        yield Finding(
            _RULES[fault.kind],
            fault.position,
            printable(json_text.describe_path(fault.path)),
            printable(fault.message),
            fault.hint,
            schema.resource_name(document, fault.path),
            excerpt=excerpt,
            caret=caret,
        )
    if document.complete:
        yield from schema.findings(document)
        yield from resource_checks.findings(document, installed_members)


def _of_mode(document: Document, mode: int) -> Iterator[Finding]:
    others = stat.S_IMODE(mode)
    if others & (stat.S_IRGRP | stat.S_IROTH) and _holds_secret(document):
        yield Finding(
            rules.READABLE_BY_OTHERS,
            None,
            "",
            f"users other than its owner can read the secrets in the file (mode {others:04o})",
            "chmod 600, owner root: users get the variables of their own job through the hooks",
        )
    if others & (stat.S_IWGRP | stat.S_IWOTH):
        yield Finding(
            rules.WRITABLE_BY_OTHERS,
            None,
            "",
            f"users other than its owner can change the file (mode {others:04o})",
            "chmod 600, owner root: the hooks act on it as root",
        )


def _holds_secret(document: Document) -> bool:
    """Tell whether a variable looks like a secret; a text that cannot be read on to its end may hold one."""
    if not document.complete:
        return True
    items = document.value.get("resources") if isinstance(document.value, dict) else None
    environments = (item.get("environment") for item in items or () if isinstance(item, dict))
    return any(
        isinstance(value, str) and bool(value) and not value.startswith("<") and resource_types.is_secret(variable)
        for environment in environments
        if isinstance(environment, dict)
        for variable, value in environment.items()
    )


def _count_resources(document: Document) -> int | None:
    items = document.value.get("resources") if isinstance(document.value, dict) else None
    return len(items) if isinstance(items, list) else None


def _order(finding: Finding) -> tuple[json_text.Position, str]:
    return finding.position or json_text.Position(0, 0), finding.rule.code
