"""What a schema cannot say of resources: clashing names, types that nobody knows, keys that nobody reads."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from qrmi_slurm.config import resource_types, slurm_section, stored_secrets
from qrmi_slurm.config.slurm_section import SlurmSection
from qrmi_slurm.slurm.selection import MAX_SELECTION_BYTES
from qrmi_slurm.text import is_one_line, near_match, printable
from qrmi_slurm.validation import rules, variable_checks
from qrmi_slurm.validation.json_text import Document, Path, describe_path
from qrmi_slurm.validation.rules import Finding, Rule

_TOP_KEYS: Final = ("$schema", "resources")
_RESOURCE_KEYS: Final = ("name", "type", "environment", "is_dynamic", "slurm")
_SLURM_KEYS: Final = ("license", "capacity", "allow", "secrets", "broker")

# Keys that say themselves that no program reads them: JSON's substitute for comments.
_COMMENT_KEYS: Final = ("_", "//", "$", "x-")

# What POSIX calls a name: dash, the /bin/sh of Debian and Ubuntu, drops other variables from its environment.
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
        installed_members: the members of the installed QRMI's `ResourceType`; empty: do not ask it.
    """
    if not isinstance(document.value, dict):
        return
    yield from _unknown_keys(_Place(document, ()), document.value, _TOP_KEYS)
    items = document.value.get("resources")
    if not isinstance(items, list):
        return
    if not items:
        yield _Place(document, ()).finding(
            rules.NO_RESOURCES, "resources", "the list is empty", "no name in a job's --qpu will be found"
        )
    config = _Config(document, tuple(installed_members), {}, {})
    for index, item in enumerate(items):
        if isinstance(item, dict):
            yield from _of_resource(config, index, item)


@dataclass(frozen=True, slots=True)
class _Config:
    """What the checks of one resource need to know of the whole.

    Args:
        document: the config.
        installed_members: as for `findings`.
        first_lines: for each name met so far, the line that gave it first.
        licenses: for each license met so far, the resource that has it first, and whether it names it.
    """

    document: Document
    installed_members: tuple[str, ...]
    first_lines: dict[str, int]
    licenses: dict[str, tuple[str, SlurmSection, bool]]


def _of_resource(config: _Config, index: int, item: dict[str, Any]) -> Iterator[Finding]:
    document = config.document
    name = item.get("name")
    name = name if isinstance(name, str) else ""
    place = _Place(document, ("resources", index), printable(name))
    yield from _unknown_keys(place, item, _RESOURCE_KEYS)
    if name:
        yield from _of_name(place, name, config.first_lines)
    type_name = item.get("type")
    known: resource_types.ResourceType | None = None
    if isinstance(type_name, str) and type_name and is_one_line(type_name):
        yield from _of_type(place, type_name, config.installed_members)
        described = resource_types.describe(type_name)
        known = described if described.name in resource_types.KNOWN else None
    environment = item.get("environment")
    slurm = item.get("slurm")
    is_shared_well = isinstance(slurm, dict | None) and not slurm_section.fault(slurm or {})
    stored = slurm.get("secrets", {}) if isinstance(slurm, dict) and is_shared_well else {}
    if isinstance(environment, dict):
        # What is kept elsewhere is there, whatever it is.
        for fault in variable_checks.faults(name, known, environment | dict.fromkeys(stored)):
            path: Path = (*place.path, "environment")
            if fault.variable:
                path = (*(path if fault.variable in environment else (*place.path, "slurm", "secrets")), fault.variable)
            yield Finding(
                fault.rule,
                document.position(path, of_key=fault.of_name),
                printable(describe_path(path)),
                fault.message,
                fault.hint,
                place.resource,
            )
        yield from _of_stored(place.within("slurm", "secrets"), environment, stored)
    if isinstance(slurm, dict):
        yield from _unknown_keys(place.within("slurm"), slurm, _SLURM_KEYS)
    if name and is_shared_well:
        yield from _of_sharing(place, name, slurm or {}, config.licenses)
        if (slurm or {}).get("broker") and isinstance(type_name, str) and isinstance(environment, dict):
            yield from _of_broker(place.within("slurm"), type_name, {*environment, *stored})


def _of_stored(place: _Place, environment: dict[str, Any], stored: dict[str, Any]) -> Iterator[Finding]:
    for variable, source in stored.items():
        if variable in environment:
            yield place.finding(
                rules.STORED_TWICE,
                variable,
                f"{printable(variable)} has a value in the environment as well",
                "remove it there",
                of_key=True,
            )
        # A command is not run for a look at the config, and who is not root cannot read what is root's.
        problem = stored_secrets.file_fault(source["file"]) if "file" in source and os.geteuid() == 0 else ""
        if problem:
            yield place.finding(
                rules.UNREADABLE_SECRET,
                variable,
                f"{printable(source['file'])}: {problem}",
                "chmod 600, owner root, one line",
            )


def _of_sharing(
    place: _Place, name: str, slurm: dict[str, Any], licenses: dict[str, tuple[str, SlurmSection, bool]]
) -> Iterator[Finding]:
    shared = slurm_section.parse(name, slurm)
    is_named = "license" in slurm
    if shared.license is None and "capacity" in slurm:
        yield place.within("slurm").finding(
            rules.UNCOUNTED_CAPACITY,
            "capacity",
            "the capacity holds for no job, since the license is null",
            "name a license, or leave out the capacity",
        )
    for rule, names in shared.access._asdict().items():
        if names == ():
            yield place.within("slurm", "allow").finding(
                rules.NOBODY, rule, "the list is empty, so that nobody may use it", "remove the rule, or name one"
            )
    if shared.license is None:
        return
    other, before, other_is_named = licenses.setdefault(shared.license, (name, shared, is_named))
    if other != name and (before.capacity != shared.capacity or not (is_named and other_is_named)):
        yield place.finding(
            rules.SHARED_LICENSE,
            "slurm" if slurm else "name",
            f"the license {shared.license} counts the jobs of {printable(other)} as well",
            'name another license under "slurm", or this one under both with the same capacity',
        )


def _of_broker(place: _Place, type_name: str, variables: Iterable[str]) -> Iterator[Finding]:
    described = resource_types.describe(type_name)
    if not described.can_have_broker:
        yield place.finding(
            rules.BROKER_OF_NO_USE,
            "broker",
            f"there is no credential broker for {printable(type_name)}",
            "remove the key: jobs get the credentials of this resource",
        )
    elif not _has_key(described, variables):
        yield place.finding(
            rules.BROKER_WITHOUT_KEY,
            "broker",
            "the environment has no key of the site's",
            "write the key, or remove the broker where users bring their own",
        )


def _has_key(described: resource_types.ResourceType, variables: Iterable[str]) -> bool:
    """Tell whether one of the secrets that QRMI cannot do without is among variables."""
    own = {resource_types.successor_variable(name) or name for name in variables}
    needed = {resource_types.successor_variable(name) or name for name in described.required & described.secrets}
    return bool(own & needed)


def _unknown_keys(place: _Place, found: Iterable[str], known: Sequence[str]) -> Iterator[Finding]:
    for key in found:
        if key in known or key.startswith(_COMMENT_KEYS):
            continue
        near = near_match(key, known)
        yield place.finding(
            rules.UNKNOWN_KEY,
            key,
            f'nobody reads the key "{printable(key)}"',
            f'did you mean "{near}"?' if near else f"known here: {', '.join(known)}",
            of_key=True,
        )


def _of_name(place: _Place, name: str, first_lines: dict[str, int]) -> Iterator[Finding]:
    line = place.document.position((*place.path, "name")).line
    if name in first_lines:
        yield place.finding(
            rules.DUPLICATE_NAME,
            "name",
            f"the name {printable(name)} is taken already, by the resource of line {first_lines[name]}",
            "give each resource a name of its own: of two the last one counts",
        )
    first_lines.setdefault(name, line)
    if "," in name:
        yield place.finding(
            rules.UNSELECTABLE_NAME,
            "name",
            "a comma separates two names in --qpu, so that no job can ask for this one",
            "leave out the comma; of an IQM name, with what stands behind it",
        )
    elif name != name.strip(" "):
        yield place.finding(
            rules.UNSELECTABLE_NAME,
            "name",
            "the name begins or ends with a blank, which --qpu takes away",
            "remove the blank",
        )
    elif len(name.encode("utf-8", "surrogatepass")) > MAX_SELECTION_BYTES:
        message = f"the name is longer than the {MAX_SELECTION_BYTES} bytes of a --qpu list"
        yield place.finding(rules.UNSELECTABLE_NAME, "name", message, "choose a shorter one")
    elif is_one_line(name) and "=" not in name and not _SHELL_NAME.fullmatch(name):
        yield place.finding(
            rules.AWKWARD_NAME,
            "name",
            "dash, the /bin/sh of Debian and Ubuntu, drops variables with this name in front",
            "use letters, digits and underscores, or tell users to begin job scripts with #!/bin/bash",
        )


@cache
def _is_installed(type_name: str, members: tuple[str, ...]) -> bool:
    return resource_types.matching_member(type_name, members) is not None


def _of_type(place: _Place, type_name: str, members: tuple[str, ...]) -> Iterator[Finding]:
    known = resource_types.KNOWN.get(type_name)
    if known is None:
        described = resource_types.describe(type_name)
        if described.name in resource_types.KNOWN:
            yield place.finding(
                rules.TYPE_SPELLING,
                "type",
                f"QRMI itself does not read the type as {printable(type_name)}",
                f"write {described.name}",
            )
        elif not _is_installed(type_name, members):
            near = near_match(type_name, resource_types.KNOWN)
            current = [name for name, known in resource_types.KNOWN.items() if not known.successor]
            yield place.finding(
                rules.UNKNOWN_TYPE,
                "type",
                f"the type {printable(type_name)} is unknown",
                f"did you mean {near}?" if near else f"known are {', '.join(sorted(current))}",
            )
        return
    if known.successor:
        new = resource_types.KNOWN[known.successor]
        yield place.finding(
            rules.DEPRECATED_TYPE,
            "type",
            f"{type_name} is an older name of {new.name}",
            f"write {new.name}, and {new.prefix} instead of {known.prefix} in front of its variables",
        )
    if members and not any(_is_installed(name, members) for name in (known.name, known.successor) if name):
        yield place.finding(
            rules.TYPE_NOT_INSTALLED,
            "type",
            f"the QRMI that is installed here does not know the type {type_name}",
            "pip install --upgrade qrmi, in the venv of qrmi-slurm",
        )
