"""Checks a config file: its encoding and mode, its JSON, the schema, and what a schema cannot express."""

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from qrmi_slurm import files
from qrmi_slurm.config import resource_types
from qrmi_slurm.config.config_file import MAX_CONFIG_BYTES
from qrmi_slurm.errors import ConfigError
from qrmi_slurm.text import printable
from qrmi_slurm.validation import json_text, resource_checks, rules, schema
from qrmi_slurm.validation.excerpt import masked_line
from qrmi_slurm.validation.json_text import Document, FaultKind, Position
from qrmi_slurm.validation.rules import Diagnosis, Finding, Rule

_RULES: dict[FaultKind, Rule] = {
    FaultKind.SYNTAX: rules.SYNTAX,
    FaultKind.DUPLICATE_KEY: rules.DUPLICATE_KEY,
    FaultKind.ENCODING: rules.ENCODING,
}


def validate_file(
    path: Path, installed_members: Sequence[str] = (), slots_licenses: Mapping[str, str] = MappingProxyType({})
) -> Diagnosis:
    """Check a config, and who may read and write it.

    Args:
        path: the file.
        installed_members: the members of the installed QRMI's `ResourceType`; empty to leave QRMI out of the check.
        slots_licenses: the licenses that count the resources' slots, from the plugin's line.

    Raises:
        ConfigError: the file cannot be read.
    """
    shown = printable(str(path))
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            content = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        hint = "run the command as root: the file contains secrets" if isinstance(error, PermissionError) else ""
        raise ConfigError(f"cannot read {shown}: {error.strerror}", hint) from error
    if len(content) > MAX_CONFIG_BYTES:
        message = f"the file is larger than the {MAX_CONFIG_BYTES} bytes that the hooks accept"
        return Diagnosis(shown, None, (Finding(rules.TOO_LARGE, None, "", message),))
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        return Diagnosis(shown, None, (_not_utf8(content, error.start),))
    document = json_text.read(text)
    found = [*_check_trust(document, status), *_check_document(text, document, installed_members)]
    if document.complete:
        found += resource_checks.findings_of_slots(document, slots_licenses)
    return Diagnosis(shown, _count_resources(document), tuple(sorted(found, key=_order)))


def _not_utf8(content: bytes, offset: int) -> Finding:
    line_start = content.rfind(b"\n", 0, offset) + 1
    position = Position(content.count(b"\n", 0, offset) + 1, offset - line_start + 1)
    return Finding(rules.ENCODING, position, "", "the file is not valid UTF-8 from here on", "save it as UTF-8")


def _check_document(text: str, document: Document, installed_members: Sequence[str]) -> Iterator[Finding]:
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


def _check_trust(document: Document, status: os.stat_result) -> Iterator[Finding]:
    """Check who else can read or change the file, as config_file.load() does."""
    others = stat.S_IMODE(status.st_mode)
    if others & (stat.S_IRGRP | stat.S_IROTH) and _has_secret(document):
        yield Finding(
            rules.READABLE_BY_OTHERS,
            None,
            "",
            f"users other than the owner can read the secrets in the file (mode {others:04o})",
            "set owner root and mode 0600; jobs receive their variables from the hooks",
        )
    if files.is_weak(status):
        yield Finding(
            rules.WRITABLE_BY_OTHERS,
            None,
            "",
            f"users other than root can change the file (owner uid {status.st_uid}, mode {others:04o})",
            "run: chown root:root FILE && chmod 0600 FILE; until then the hooks refuse the file",
        )


def _has_secret(document: Document) -> bool:
    """Tell whether a variable looks like a secret; a text that could not be read to its end may contain one."""
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


def _order(finding: Finding) -> tuple[Position, str]:
    return finding.position or Position(0, 0), finding.rule.code
