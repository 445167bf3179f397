"""Checks of resources that a schema cannot express: clashing names and licenses, unknown types, unknown keys."""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from qrmi_slurm.config import resource_types, slurm_section, stored_secrets
from qrmi_slurm.config.slurm_section import SlurmSection
from qrmi_slurm.slurm.plugstack import SLOTS_LICENSE
from qrmi_slurm.slurm.selection import MAX_SELECTION_BYTES
from qrmi_slurm.text import is_one_line, near_match, printable
from qrmi_slurm.validation import rules, variable_checks
from qrmi_slurm.validation.json_text import Document, Path, describe_path
from qrmi_slurm.validation.rules import Finding, Rule

_TOP_KEYS: Final = ("$schema", "resources")
_RESOURCE_KEYS: Final = ("name", "type", "environment", "is_dynamic", "slurm")

# A name as POSIX defines it; dash, the /bin/sh of Debian and Ubuntu, drops variables with any other.
_SHELL_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class _Place:
    """An object in the document, for findings about its keys and values."""

    document: Document
    path: Path
    resource: str = ""

    def finding(self, rule: Rule, key: str, message: str, hint: str = "", *, of_key: bool = False) -> Finding:
        path = (*self.path, key) if key else self.path
        position = self.document.position(path, of_key=of_key)
        return Finding(rule, position, printable(describe_path(path)), message, hint, self.resource)

    def within(self, *keys: str) -> "_Place":
        return _Place(self.document, (*self.path, *keys), self.resource)


def findings(document: Document, installed_members: Sequence[str]) -> Iterator[Finding]:
    """Yield what is wrong with the resources of a document, whether or not the schema accepts it.

    Args:
        document: the config.
        installed_members: the members of the installed QRMI's `ResourceType`; empty to leave QRMI out of the check.
    """
    if not isinstance(document.value, dict):
        return
    top = _Place(document, ())
    yield from _check_keys(top, document.value, _TOP_KEYS)
    items = document.value.get("resources")
    if not isinstance(items, list):
        return
    if not items:
        hint = "add a resource; until then every job with --qpu fails"
        yield top.finding(rules.NO_RESOURCES, "resources", "the list of resources is empty", hint)
    context = _Context(document, tuple(installed_members), {}, {})
    for index, item in enumerate(items):
        if isinstance(item, dict):
            yield from _check_resource(context, index, item)


def findings_of_slots(document: Document, slots_licenses: Mapping[str, str]) -> Iterator[Finding]:
    """Yield what of `--qpu-slots-license:` on the plugin's line does not fit the document.

    Args:
        document: the config.
        slots_licenses: the licenses that count the resources' slots, by the resource's name.
    """
    items = document.value.get("resources") if isinstance(document.value, dict) else None
    own: dict[str, str | None] = {}
    for index, item in enumerate(items if isinstance(items, list) else ()):
        if isinstance(item, dict) and isinstance(item.get("name"), str):
            slurm = item.get("slurm")
            if _follows_nothing(slurm) and item["name"] not in slots_licenses:
                place = _Place(document, ("resources", index, "slurm"), printable(item["name"]))
                message = "the capacity has no effect because the license is null, and the resource has no slots"
                yield place.finding(
                    rules.UNCOUNTED_CAPACITY, "capacity", message, "name a license, or remove the capacity"
                )
            named = slurm.get("license", "") if isinstance(slurm, dict) else ""
            own[item["name"]] = named if named != "" else slurm_section.default_license(item["name"])
    counted = {license: name for name, license in own.items() if isinstance(license, str)}
    for name, license in slots_licenses.items():
        option = f"{SLOTS_LICENSE}:{printable(name)}={license}"
        if name not in own:
            near = near_match(name, tuple(own))
            hint = f"did you mean {printable(near)}?" if near else "name a resource of this file"
            message = f"the plugin's line has {option}, and no resource here has that name"
            yield Finding(rules.UNFIT_SLOTS_LICENSE, None, "", message, hint)
        elif license in counted:
            message = f"the plugin's line has {option}, but {license} counts the jobs of {printable(counted[license])}"
            yield Finding(rules.UNFIT_SLOTS_LICENSE, None, "", message, "use another license for the slots")


def _follows_nothing(slurm: Any) -> bool:
    return isinstance(slurm, dict) and slurm.get("capacity") == slurm_section.AUTO and slurm.get("license", "") is None


@dataclass(frozen=True, slots=True)
class _Context:
    """What the check of one resource needs to know about the whole config.

    Args:
        document: the config.
        installed_members: as in `findings`.
        first_lines: the line on which each name so far was used first.
        licenses: for each license so far, the first resource with it, its sharing, and whether it names the license.
    """

    document: Document
    installed_members: tuple[str, ...]
    first_lines: dict[str, int]
    licenses: dict[str, tuple[str, SlurmSection, bool]]


def _check_resource(context: _Context, index: int, item: dict[str, Any]) -> Iterator[Finding]:
    name = item.get("name")
    name = name if isinstance(name, str) else ""
    place = _Place(context.document, ("resources", index), printable(name))
    yield from _check_keys(place, item, _RESOURCE_KEYS)
    if name:
        yield from _check_name(place, name, context.first_lines)
    type_name = item.get("type")
    if isinstance(type_name, str) and type_name and is_one_line(type_name):
        yield from _check_type(place, type_name, context.installed_members)
    slurm = item.get("slurm")
    is_slurm_sound = isinstance(slurm, dict | None) and not slurm_section.fault_of_values(slurm or {})
    stored = slurm.get("secrets", {}) if isinstance(slurm, dict) and is_slurm_sound else {}
    environment = item.get("environment")
    if isinstance(environment, dict):
        yield from _check_environment(place, name, type_name, environment, stored)
        yield from _check_stored_secrets(place.within("slurm", "secrets"), environment, stored)
    if name and is_slurm_sound:
        yield from _check_sharing(place, name, slurm or {}, context.licenses)
        if (slurm or {}).get("broker") and isinstance(type_name, str) and isinstance(environment, dict):
            yield from _check_broker(place.within("slurm"), type_name, {*environment, *stored})


def _check_keys(place: _Place, found: Iterable[str], known: Sequence[str]) -> Iterator[Finding]:
    for key in found:
        if key in known or key.startswith(slurm_section.COMMENT_PREFIXES):
            continue
        if meant := slurm_section.meant_by(key):
            message = f'unknown key "{printable(key)}"'
            inside = 'inside of the resource\'s "slurm"'
            hint = f'did you mean "{meant}"{"" if meant == "slurm" else f", {inside}"}?'
            yield place.finding(rules.UNKNOWN_ACCESS_KEY, key, message, hint, of_key=True)
            continue
        near = near_match(key, known)
        hint = f'did you mean "{near}"?' if near else f"the known keys are {', '.join(known)}"
        yield place.finding(rules.UNKNOWN_KEY, key, f'unknown key "{printable(key)}"', hint, of_key=True)


def _check_name(place: _Place, name: str, first_lines: dict[str, int]) -> Iterator[Finding]:
    line = place.document.position((*place.path, "name")).line
    if name in first_lines:
        message = f"the name {printable(name)} is already used by the resource on line {first_lines[name]}"
        hint = "give each resource its own name; the hooks refuse both"
        yield place.finding(rules.DUPLICATE_NAME, "name", message, hint)
    first_lines.setdefault(name, line)
    if "," in name:
        message = "the name contains a comma, which separates names in --qpu, so no job can ask for it"
        hint = "remove the comma; for an IQM name, remove what follows it as well"
        yield place.finding(rules.UNSELECTABLE_NAME, "name", message, hint)
    elif name != name.strip(" "):
        message = "the name begins or ends with a space, which --qpu drops"
        yield place.finding(rules.UNSELECTABLE_NAME, "name", message, "remove the space")
    elif len(name.encode("utf-8", "surrogatepass")) > MAX_SELECTION_BYTES:
        message = f"the name is longer than the {MAX_SELECTION_BYTES} bytes of a --qpu list"
        yield place.finding(rules.UNSELECTABLE_NAME, "name", message, "choose a shorter one")
    elif is_one_line(name) and "=" not in name and not _SHELL_NAME.fullmatch(name):
        message = "dash, the /bin/sh of Debian and Ubuntu, drops variables that begin with this name"
        hint = "use letters, digits and underscores, or tell users to begin job scripts with #!/bin/bash"
        yield place.finding(rules.AWKWARD_NAME, "name", message, hint)


def _check_type(place: _Place, type_name: str, members: tuple[str, ...]) -> Iterator[Finding]:
    known = resource_types.KNOWN.get(type_name)
    if known is None:
        yield from _check_unlisted_type(place, type_name, members)
        return
    if known.successor:
        new = resource_types.KNOWN[known.successor]
        message = f"{type_name} is the old name of {new.name}"
        hint = f"write {new.name}, and {new.prefix} instead of {known.prefix} in its variables' names"
        yield place.finding(rules.DEPRECATED_TYPE, "type", message, hint)
    if members and not any(_is_installed(name, members) for name in (known.name, known.successor) if name):
        message = f"the installed QRMI does not know the type {type_name}"
        hint = "run pip install --upgrade qrmi in qrmi-slurm's venv"
        yield place.finding(rules.TYPE_NOT_INSTALLED, "type", message, hint)


def _check_unlisted_type(place: _Place, type_name: str, members: tuple[str, ...]) -> Iterator[Finding]:
    described = resource_types.describe(type_name)
    if described.name in resource_types.KNOWN:
        message = f"QRMI does not accept the spelling {printable(type_name)}"
        yield place.finding(rules.TYPE_SPELLING, "type", message, f"write {described.name}")
    elif not _is_installed(type_name, members):
        near = near_match(type_name, resource_types.KNOWN)
        current = sorted(name for name, known in resource_types.KNOWN.items() if not known.successor)
        hint = f"did you mean {near}?" if near else f"the known types are {', '.join(current)}"
        yield place.finding(rules.UNKNOWN_TYPE, "type", f"the type {printable(type_name)} is unknown", hint)


@cache
def _is_installed(type_name: str, members: tuple[str, ...]) -> bool:
    return resource_types.matching_member(type_name, members) is not None


def _check_environment(
    place: _Place, name: str, type_name: Any, environment: dict[str, Any], stored: Mapping[str, Any]
) -> Iterator[Finding]:
    known: resource_types.ResourceType | None = None
    if isinstance(type_name, str) and type_name and is_one_line(type_name):
        described = resource_types.describe(type_name)
        known = described if described.name in resource_types.KNOWN else None
    inside, secrets = place.within("environment"), place.within("slurm", "secrets")
    # A stored secret counts as present; its value is not looked at here.
    for fault in variable_checks.faults(name, known, environment | dict.fromkeys(stored)):
        where = secrets if fault.variable and fault.variable not in environment else inside
        yield where.finding(fault.rule, fault.variable, fault.message, fault.hint, of_key=fault.of_name)


def _check_stored_secrets(place: _Place, environment: dict[str, Any], stored: Mapping[str, Any]) -> Iterator[Finding]:
    for variable, source in stored.items():
        if variable in environment:
            message = f"{printable(variable)} also has a value in environment"
            yield place.finding(rules.STORED_TWICE, variable, message, "remove it from environment", of_key=True)
        # A check runs no commands, and only root can read root's files.
        problem = stored_secrets.file_fault(source["file"]) if "file" in source and os.geteuid() == 0 else ""
        if problem:
            message = f"{printable(source['file'])}: {problem}"
            hint = "the file has to hold one line, with owner root and mode 0600"
            yield place.finding(rules.UNREADABLE_SECRET, variable, message, hint)


def _check_sharing(
    place: _Place, name: str, slurm: dict[str, Any], licenses: dict[str, tuple[str, SlurmSection, bool]]
) -> Iterator[Finding]:
    sharing = slurm_section.parse(name, slurm)
    is_named = "license" in slurm
    if sharing.license is None and "capacity" in slurm and not sharing.follows_service:  # its slots may have a license
        message = "the capacity has no effect because the license is null"
        hint = "name a license, or remove the capacity"
        yield place.within("slurm").finding(rules.UNCOUNTED_CAPACITY, "capacity", message, hint)
    for rule, names in sharing.access._asdict().items():
        if names == ():
            message = "the list is empty, so nobody may use the resource"
            yield place.within("slurm", "allow").finding(rules.NOBODY, rule, message, "remove the rule, or add a name")
    if sharing.license is None:
        return
    other, before, other_is_named = licenses.setdefault(sharing.license, (name, sharing, is_named))
    if other != name and (before.capacity != sharing.capacity or not (is_named and other_is_named)):
        message = f"the license {sharing.license} also counts the jobs of {printable(other)}"
        hint = 'name another license under "slurm", or name this one in both resources with the same capacity'
        yield place.finding(rules.SHARED_LICENSE, "slurm" if slurm else "name", message, hint)


def _check_broker(place: _Place, type_name: str, variables: Iterable[str]) -> Iterator[Finding]:
    described = resource_types.describe(type_name)
    if not described.can_have_broker:
        message = f"there is no credential broker for {printable(type_name)}"
        hint = 'remove "broker"; jobs then receive the credentials of this resource'
        yield place.finding(rules.BROKER_UNSUPPORTED, "broker", message, hint)
    elif not _has_key(described, variables):
        message = "the config has no key for this resource"
        hint = 'add the key, or remove "broker" if users bring their own'
        yield place.finding(rules.BROKER_WITHOUT_KEY, "broker", message, hint)


def _has_key(described: resource_types.ResourceType, variables: Iterable[str]) -> bool:
    """Tell whether the variables include one of the secrets that QRMI requires."""
    own = {resource_types.successor_variable(name) or name for name in variables}
    needed = {resource_types.successor_variable(name) or name for name in described.required & described.secrets}
    return bool(own & needed)
