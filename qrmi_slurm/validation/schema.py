"""The config's JSON Schema, and its violations in words that an admin can act on.

jsonschema's own messages quote the rejected value, which may be a secret, so they are never shown.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from qrmi_slurm.config import slurm_section
from qrmi_slurm.errors import QrmiSlurmError
from qrmi_slurm.text import near_match, printable
from qrmi_slurm.validation import json_text, rules
from qrmi_slurm.validation.json_text import Document
from qrmi_slurm.validation.rules import Finding, Rule

if TYPE_CHECKING:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import ValidationError

SCHEMA_FILE: Final = "qrmi_config.schema.json"

_TYPE_WORDS: Final = {
    "object": "an object {...}",
    "array": "a list [...]",
    "string": "a string",
    "integer": "a whole number",
    "boolean": "true or false",
    "null": "null",
}
_MISSING_KEY_HINTS: Final = {
    "resources": 'add "resources": [...] at the top level',
    "name": 'add "name": "NAME", the name that users give to --qpu',
    "type": 'add "type": "TYPE", for example "ibm-quantum-compute-service"',
    "environment": 'add "environment": {...}, or {} if users bring all variables themselves',
}

# A rule, what is wrong, and what to do.
_Words = tuple[Rule, str, str]


def schema_text() -> str:
    """Return the schema, from the installed package or from the checkout that the package is in.

    Raises:
        QrmiSlurmError: it is in neither place, so the installation is broken.
    """
    package = resources.files("qrmi_slurm")
    in_tree = Path(str(package)).parent / "schema"
    for folder in (package, in_tree):
        try:
            return folder.joinpath(SCHEMA_FILE).read_text(encoding="utf-8")
        except FileNotFoundError:
            continue
    raise QrmiSlurmError(f"{SCHEMA_FILE} is missing from the installation", "reinstall qrmi-slurm")


@cache
def validator() -> "Draft202012Validator":
    """Return the schema's validator, created once."""
    from jsonschema import Draft202012Validator  # takes 60 ms, so only when a config is checked

    return Draft202012Validator(json.loads(schema_text()))


@dataclass(frozen=True, slots=True)
class _Violation:
    """One jsonschema error, without its message.

    Args:
        path: where in the document.
        keyword: the schema keyword that is violated.
        allowed: that keyword's value in the schema.
        found: the rejected value; for `propertyNames` the rejected key.
        of_key: whether a key is rejected, not a value.
    """

    path: json_text.Path
    keyword: str
    allowed: Any
    found: Any
    of_key: bool


def _violation(error: "ValidationError") -> _Violation:
    return _Violation(
        path=tuple(error.absolute_path),
        keyword=str(error.validator),
        allowed=error.validator_value,
        found=error.instance,
        of_key="propertyNames" in error.absolute_schema_path,
    )


def findings(document: Document) -> Iterator[Finding]:
    """Yield each violation of the schema once."""
    incomplete: set[json_text.Path] = set()
    for violation in map(_violation, validator().iter_errors(document.value)):
        if violation.keyword != "required":
            yield _finding(violation, document)
        elif violation.path not in incomplete:
            # jsonschema reports `required` once per missing key, each time with the full list.
            incomplete.add(violation.path)
            yield from _missing_keys(violation, document)


def resource_name(document: Document, path: json_text.Path) -> str:
    """Return the name of the resource that contains `path`; empty if it is not in a resource or has no name."""
    match path:
        case ("resources", int(index), *_) if isinstance(document.value, dict):
            items = document.value.get("resources")
            item = items[index] if isinstance(items, list) and index < len(items) else None
            name = item.get("name") if isinstance(item, dict) else None
            return printable(name) if isinstance(name, str) else ""
    return ""


def _missing_keys(violation: _Violation, document: Document) -> Iterator[Finding]:
    for key in violation.allowed:
        if key not in violation.found:
            yield Finding(
                rules.MISSING_KEY,
                document.position(violation.path),
                json_text.describe_path(violation.path),
                f'the key "{key}" is missing',
                _MISSING_KEY_HINTS.get(key, ""),
                resource_name(document, violation.path),
            )


def _finding(violation: _Violation, document: Document) -> Finding:
    rule, message, hint = _words(violation)
    path = (*violation.path, violation.found) if violation.of_key else violation.path
    position = document.position(path, of_key=violation.of_key)
    place = printable(json_text.describe_path(path))
    return Finding(rule, position, place, message, hint, resource_name(document, path))


def _words(violation: _Violation) -> _Words:
    keyword, path = violation.keyword, violation.path
    last = path[-1] if path else ""
    if "secrets" in path and keyword != "type" and (not violation.of_key or last != "secrets"):
        hint = 'write {"file": "/etc/qrmi/ibm.key"} or {"command": ["/usr/bin/vault", "kv", "get", ...]}'
        return rules.BAD_SOURCE, "expected one file or one command, with an absolute path", hint
    if violation.of_key and last == "slurm":
        return _unknown_slurm_key(str(violation.found))
    if violation.of_key:
        return _bad_access_rule(str(violation.found)) if last == "allow" else _BAD_VARIABLE_NAME
    if keyword == "type":
        expected = [violation.allowed] if isinstance(violation.allowed, str) else violation.allowed
        return _wrong_type(expected, violation.found, last)
    if keyword == "anyOf":  # the type: known names for editors, any other text for newer versions of QRMI
        return _BAD_TYPE_NAME if isinstance(violation.found, str) else _wrong_type(["string"], violation.found, last)
    if keyword == "minimum":
        return rules.OUT_OF_RANGE, f"the number is less than {violation.allowed}", ""
    if last == "capacity":
        return rules.OUT_OF_RANGE, "the capacity is neither a whole number nor auto", 'write 1, or "auto"'
    words = _bad_text(path) if keyword == "pattern" else None
    return words or (rules.SCHEMA, f"the value violates the schema's rule {keyword}", f"see {SCHEMA_FILE}")


_BAD_VARIABLE_NAME: Final[_Words] = (
    rules.BAD_VARIABLE_NAME,
    "the variable name is empty, ends with a space, or contains = or a control character",
    "use letters, digits and underscores",
)
_BAD_TYPE_NAME: Final[_Words] = (
    rules.BAD_TYPE_NAME,
    "the type is empty or contains a control character",
    "write one of QRMI's types",
)


def _unknown_slurm_key(found: str) -> _Words:
    near = near_match(found, slurm_section.KEYS)
    hint = f'did you mean "{near}"?' if near else f"the known keys are {', '.join(slurm_section.KEYS)}"
    return rules.UNKNOWN_ACCESS_KEY, f'unknown key "{printable(found)}" in "slurm"', hint


def _bad_access_rule(found: str) -> _Words:
    near = near_match(found, slurm_section.RULES)
    hint = f'did you mean "{near}"?' if near else f"the access rules are {', '.join(slurm_section.RULES)}"
    return rules.BAD_ACCESS_RULE, f'unknown access rule "{printable(found)}"', hint


def _bad_text(path: json_text.Path) -> _Words | None:
    """Return the words for a string that does not match its pattern; None for a pattern that is not known here."""
    last = path[-1] if path else ""
    if last == "name":
        return (
            rules.BAD_NAME,
            "the name is empty, or contains = or a control character",
            "letters, digits and underscores work everywhere",
        )
    if "allow" in path:
        return rules.BAD_ACCESS_RULE, "the name is empty or contains a control character", "write one name per item"
    if "environment" in path:
        return (
            rules.BAD_VALUE,
            "the value contains a line break, a NUL or another control character",
            "a value is one line of text; a trailing \\n often comes from pasting a whole file",
        )
    if last == "license":
        return (
            rules.OUT_OF_RANGE,
            "this is not a valid name for a Slurm license",
            "write one name as in Licenses= of slurm.conf, without a count",
        )
    return None


def _wrong_type(expected: list[str], found: Any, last: str | int) -> _Words:
    wanted = " or ".join(_TYPE_WORDS.get(name, name) for name in expected)
    hint = ""
    if expected[0] == "string" and isinstance(found, int | float):
        hint = "put the value in double quotes"
    elif expected == ["boolean"] and isinstance(found, str):
        hint = "write true or false without quotes"
    elif expected[0] == "integer" and isinstance(found, str):
        hint = "write the number without quotes"
    elif last == "environment":
        hint = 'write "environment": {"NAME": "value"}, or {} if users bring all variables themselves'
    elif found is None:
        hint = "write a value, or remove the key"
    return rules.WRONG_TYPE, f"expected {wanted}, found {_json_type(found)}", hint


def _json_type(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "a list" if isinstance(value, list) else "an object"
