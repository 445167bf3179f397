"""The config's JSON Schema: where it is, and what it refuses, in words that an admin can act on.

jsonschema's own messages quote the value that they refuse, which may be a secret: none of them gets out.
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
_NEEDED_AT: Final = {
    "resources": 'write "resources": [...] at the top',
    "name": 'write "name": "NAME", which users give to --qpu',
    "type": 'write "type": "TYPE", for example "ibm-quantum-compute-service"',
    "environment": 'write "environment": {...}; {} where users bring all variables themselves',
}


def schema_text() -> str:
    """Return the schema: from the installed package, or from the tree that the package stands in.

    Raises:
        QrmiSlurmError: it is in neither place; the installation is broken.
    """
    package = resources.files("qrmi_slurm")
    in_tree = Path(str(package)).parent / "schema"
    for folder in (package, in_tree):
        try:
            return folder.joinpath(SCHEMA_FILE).read_text(encoding="utf-8")
        except FileNotFoundError:
            continue
    raise QrmiSlurmError(f"{SCHEMA_FILE} is missing from the installation", "install qrmi-slurm again")


@cache
def validator() -> "Draft202012Validator":
    """Return the schema's validator, made once."""
    from jsonschema import Draft202012Validator  # 60 ms: only where a config is checked

    return Draft202012Validator(json.loads(schema_text()))


@dataclass(frozen=True, slots=True)
class _Refusal:
    """What jsonschema says of one fault, without its message.

    Args:
        path: where in the document.
        keyword: the schema's keyword that refuses.
        allowed: that keyword's value in the schema.
        found: the refused value; for `propertyNames` the refused key.
        of_key: whether a key is refused, and not a value.
    """

    path: json_text.Path
    keyword: str
    allowed: Any
    found: Any
    of_key: bool


def _refusal(error: "ValidationError") -> _Refusal:
    return _Refusal(
        path=tuple(error.absolute_path),
        keyword=str(error.validator),
        allowed=error.validator_value,
        found=error.instance,
        of_key="propertyNames" in error.absolute_schema_path,
    )


def findings(document: Document) -> Iterator[Finding]:
    """Yield what the schema refuses in a document, each fault once."""
    incomplete: set[json_text.Path] = set()
    for refusal in map(_refusal, validator().iter_errors(document.value)):
        if refusal.keyword != "required":
            yield _finding(refusal, document)
        elif refusal.path not in incomplete:
            # `required` is reported once for each missing key, and each report knows all of them.
            incomplete.add(refusal.path)
            yield from _missing(refusal, document)


def resource_name(document: Document, path: json_text.Path) -> str:
    """Return the name of the resource that `path` leads into; empty where there is none."""
    match path:
        case ("resources", int(index), *_) if isinstance(document.value, dict):
            items = document.value.get("resources")
            item = items[index] if isinstance(items, list) and index < len(items) else None
            name = item.get("name") if isinstance(item, dict) else None
            return printable(name) if isinstance(name, str) else ""
    return ""


def _missing(refusal: _Refusal, document: Document) -> Iterator[Finding]:
    for key in refusal.allowed:
        if key not in refusal.found:
            yield Finding(
                rules.MISSING_KEY,
                document.position(refusal.path),
                json_text.describe_path(refusal.path),
                f'the key "{key}" is missing',
                _NEEDED_AT.get(key, ""),
                resource_name(document, refusal.path),
            )


def _finding(refusal: _Refusal, document: Document) -> Finding:
    rule, message, hint = _words(refusal)
    path = (*refusal.path, refusal.found) if refusal.of_key else refusal.path
    position = document.position(path, of_key=refusal.of_key)
    place = printable(json_text.describe_path(path))
    return Finding(rule, position, place, message, hint, resource_name(document, path))


def _words(refusal: _Refusal) -> tuple[Rule, str, str]:
    """Return the rule that is broken, what is wrong, and what to do."""
    keyword, path = refusal.keyword, refusal.path
    last = path[-1] if path else ""
    if "secrets" in path and keyword != "type" and (not refusal.of_key or last != "secrets"):
        hint = 'write {"file": "/etc/qrmi/ibm.key"} or {"command": ["/usr/bin/vault", "kv", "get", ...]}'
        return rules.BAD_SOURCE, "this is no absolute path to one file or one command", hint
    if refusal.of_key and last == "allow":
        near = near_match(str(refusal.found), slurm_section.RULES)
        hint = f'did you mean "{near}"?' if near else f"known here: {', '.join(slurm_section.RULES)}"
        return rules.BAD_ACCESS_RULE, f'there is no access rule "{printable(str(refusal.found))}"', hint
    if refusal.of_key:
        return (
            rules.BAD_VARIABLE_NAME,
            "a variable's name is empty, or holds a = or a control character",
            "names have letters, digits and underscores",
        )
    if keyword == "anyOf":  # the type: known names for editors, any other text for newer versions of QRMI
        if not isinstance(refusal.found, str):
            return _wrong_type(["string"], refusal.found, last)
        return (
            rules.BAD_TYPE_NAME,
            "the type is empty or holds a control character",
            "write one of QRMI's types",
        )
    if keyword == "type":
        expected = [refusal.allowed] if isinstance(refusal.allowed, str) else refusal.allowed
        return _wrong_type(expected, refusal.found, last)
    if keyword == "pattern" and last == "name":
        return (
            rules.BAD_NAME,
            "the name is empty, or holds a = or a control character",
            "letters, digits and underscores pass everywhere",
        )
    if keyword == "pattern" and "allow" in path:
        return rules.BAD_ACCESS_RULE, "the name is empty, or holds a control character", "write one name in a line"
    if keyword == "pattern" and "environment" in path:
        return (
            rules.BAD_VALUE,
            "the value holds a line break, a NUL or another control character",
            "a value is one line of text: a trailing \\n often comes from a file that was pasted",
        )
    if keyword == "pattern" and last == "license":
        return (
            rules.OUT_OF_RANGE,
            "this cannot be the name of a Slurm license",
            "write one name as in Licenses= of slurm.conf, without a count",
        )
    if keyword == "minimum":
        return rules.OUT_OF_RANGE, f"the number is less than {refusal.allowed}", ""
    return rules.SCHEMA, f"the value breaks the schema's rule {keyword}", f"see {SCHEMA_FILE}"


def _wrong_type(expected: list[str], found: Any, last: str | int) -> tuple[Rule, str, str]:
    wanted = " or ".join(_TYPE_WORDS.get(name, name) for name in expected)
    hint = ""
    if expected[0] == "string" and isinstance(found, int | float):
        hint = "write the value in double quotes"
    elif expected == ["boolean"] and isinstance(found, str):
        hint = "write true or false without quotes"
    elif expected[0] == "integer" and isinstance(found, str):
        hint = "write the number without quotes"
    elif last == "environment":
        hint = 'write "environment": {"NAME": "value"}; {} where users bring all variables themselves'
    elif found is None:
        hint = "write a value, or remove the key"
    return rules.WRONG_TYPE, f"{wanted} is expected, found {_json_type(found)}", hint


def _json_type(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a string"
    return "a list" if isinstance(value, list) else "an object"
