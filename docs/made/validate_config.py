"""docs/validate-config.md: what each code means, with an example and what the command prints for it."""

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from unittest import mock

from made.text import CHECKOUT, made_from, wrapped
from qrmi_slurm.command.validate_config import print_text
from qrmi_slurm.config.config_file import MAX_CONFIG_BYTES
from qrmi_slurm.validation import rules, validate
from qrmi_slurm.validation import schema as config_schema
from qrmi_slurm.validation.rules import Diagnosis, Rule

EXAMPLES: Final = CHECKOUT / "tests" / "fixtures" / "config" / "codes"

# The types of QRMI 0.26 without OQTOPUS, for an installed QRMI that lacks a type (QS308).
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
    "2": "Keys and the types of their values",
    "3": "Resources",
    "4": "Variables",
    "5": "Addresses",
}


def example_of(rule: Rule) -> Path:
    """Return the example of a rule."""
    return EXAMPLES / f"{rule.code}.json"


def diagnose(rule: Rule) -> Diagnosis:
    """Check the example of a rule, under the conditions in which the rule applies."""
    with _conditions(rule):
        path = example_of(rule)
        members = OLDER_MEMBERS if rule.code == "QS308" else _MEMBERS
        slots_licenses = {"ibm_qebec": "quebec_slots"} if rule.code == "QS314" else {}
        found = validate.validate_file(path, members, slots_licenses)
    return Diagnosis("qrmi_config.json", found.resources, found.findings)


@contextmanager
def _conditions(rule: Rule) -> Iterator[None]:
    """Give the example the file mode, size limit or schema that makes the rule apply."""
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


def page() -> str:
    """Return the page."""
    lines = [
        "# What `qrmi-slurm validate-config` finds",
        "",
        made_from("qrmi_slurm/validation/rules.py"),
        "",
        *wrapped(
            "Each finding has a code, and codes are never reused. **error**: the config is refused, or the resource "
            "cannot work. **warning**: it works, but probably not as intended; `--strict` counts it as an error. "
            "**note**: for information. Exit status: 0 the config can be used, 1 it has errors, 2 it cannot be read."
        ),
        "",
        "| code | | what it means |",
        "|---|---|---|",
        *(f"| [{rule.code}](#{rule.code.lower()}) | {rule.severity} | {rule.title} |" for rule in rules.RULES),
    ]
    chapter = ""
    for rule in rules.RULES:
        if rule.code[2] != chapter:
            chapter = rule.code[2]
            lines += ["", f"## {_CHAPTERS[chapter]}"]
        lines += ["", *_section(rule)]
    return "\n".join(lines) + "\n"


def _section(rule: Rule) -> list[str]:
    lines = [f"### {rule.code}", "", *wrapped(f"**{rule.severity}**: {rule.title}. {rule.why}")]
    if rule.code not in ("QS104", "QS110", "QS111", "QS299"):  # their files show nothing
        text = example_of(rule).read_bytes().decode("utf-8", "replace")
        lines += ["", "```json", *text.rstrip("\n").split("\n"), "```"]
    return [*lines, "", "```", *_finding(rule), "```"]


def _finding(rule: Rule) -> list[str]:
    """Return what the command prints for a rule's finding in its example."""
    found = diagnose(rule)
    finding = next(finding for finding in found.findings if finding.rule is rule)
    stream = io.StringIO()
    print_text(Diagnosis(found.file, found.resources, (finding,)), stream, strict=False)
    return stream.getvalue().rstrip("\n").split("\n")[:-1]
