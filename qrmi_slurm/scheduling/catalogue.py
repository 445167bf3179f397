"""The catalogue: what Slurm's controller and the login nodes may know about the config, as Lua tables without secrets.

cli_filter/qrmi_slurm.lua reads it while slurmctld waits, so it is an index: QPUs that are alike in all but name and
license stand on one shelf, each list is one text that Lua can search, and what messages say about rules is ready. The
first line changes whenever the rest does. The config itself is readable by root alone.
"""

import grp
import hashlib
import pwd
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple, TypeVar

from qrmi_slurm import files
from qrmi_slurm.config import access, resource_types
from qrmi_slurm.config.config_file import Resource
from qrmi_slurm.config.slurm_section import Access
from qrmi_slurm.errors import CatalogueError
from qrmi_slurm.text import known_names, listing

FILE_NAME: Final = "qrmi_catalogue.lua"
VERSION: Final = 2
MODE: Final = 0o644

_Value = TypeVar("_Value")

_HEAD: Final = "-- qrmi-slurm catalogue; made by `qrmi-slurm catalogue`, do not edit; sha256 {}\n"
# Tabs stay, for people who look into the file.
_ESCAPED: Final = re.compile(r'[\x00-\x08\x0a-\x1f\x7f"\\]')


class Group(NamedTuple):
    """What this node knows about a Unix group.

    Args:
        gid: its number; None if the node has no such group.
        members: their login names; None if unknown. A directory may hide its members (sssd's ignore_group_members),
            which looks like a group without members.
    """

    gid: int | None
    members: tuple[str, ...] | None


def group_of(name: str) -> Group:
    """Look up a group and its members on this node, including users whose primary group it is."""
    try:
        entry = grp.getgrnam(name)
    except KeyError:
        return Group(None, None)
    primary = [user.pw_name for user in pwd.getpwall() if user.pw_gid == entry.gr_gid]
    return Group(entry.gr_gid, tuple(sorted({*entry.gr_mem, *primary})) or None)


def path_beside(slurm_conf: Path) -> Path:
    """Return the path of the catalogue, unless the site keeps it elsewhere."""
    return slurm_conf.parent / FILE_NAME


def licenses(resources: Iterable[Resource], counted: Mapping[str, int] = MappingProxyType({})) -> dict[str, int]:
    """Return the count of each license, in the config's order: the lowest capacity of the resources that share it.

    Args:
        resources: of the config.
        counted: how many Slurm has; where the number follows a service, that is the most there can be, 1 by default.
    """
    found: dict[str, int] = {}
    for resource in resources:
        section = resource.slurm
        if section.license is not None:
            capacity = counted.get(section.license, 1) if section.follows_service else section.capacity
            found[section.license] = min(capacity, found.get(section.license, capacity))
    return found


def render(
    resources: Iterable[Resource], notices: Mapping[str, str], ask_group: Callable[[str], Group] = group_of
) -> str:
    """Return the catalogue's text.

    Args:
        resources: those of the config, in its order.
        notices: why resources are out of service, by name.
        ask_group: looks up a Unix group by its name.
    """
    body = f"return {_indented(_site(list(resources), notices, ask_group))}\n"
    return _HEAD.format(hashlib.sha256(body.encode()).hexdigest()) + body


def write(path: Path, resources: Iterable[Resource], notices: Mapping[str, str]) -> None:
    """Write the catalogue, so that a reader sees the old one or the new one, never a part.

    Raises:
        CatalogueError: it cannot be written.
    """
    content = render(resources, notices)
    try:
        files.replace(path, content.encode(), MODE)
    except OSError as error:
        raise CatalogueError(f"cannot write {path}: {error.strerror}", "run this as root") from error


def is_current(path: Path, resources: Iterable[Resource], notices: Mapping[str, str]) -> bool:
    """Tell whether the file agrees with the config and the notices; a missing one does not.

    Raises:
        CatalogueError: it exists but cannot be read.
    """
    try:
        return path.read_bytes() == render(resources, notices).encode()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise CatalogueError(f"cannot read {path}: {error.strerror}", "run this as root") from error


class _Shelf(NamedTuple):
    """What the QPUs on one shelf have in common.

    Args:
        is_licensed: whether Slurm counts their jobs.
        notice: why they are out of service; empty if they are not.
        type: their type, as configured.
        rules: who may use them.
        capacity: how many jobs may hold one at a time.
        is_dynamic: whether each stands for several QPUs, which QRMI finds.
        slots_license: the license that counts their slots; empty if they have none.
    """

    is_licensed: bool
    notice: str
    type: str
    rules: Access
    capacity: int
    is_dynamic: bool
    slots_license: str


def _site(
    resources: Sequence[Resource], notices: Mapping[str, str], ask_group: Callable[[str], Group]
) -> dict[str, str]:
    shelves = _shelves(resources, notices)
    types = _numbered(shelf.type for shelf in shelves)
    rules = _numbered(resource.slurm.access for resource in resources if not resource.slurm.access.is_open)
    groups = dict.fromkeys(name for rule in rules for name in rule.groups or ())
    rows, first = [], 1
    for shelf, members in shelves.items():
        rows.append(_table(_shelf(shelf, members, types, rules, first)))
        first += len(members)
    return {
        "version": str(VERSION),
        "count": str(len(resources)),
        "known": _string(known_names([resource.name for resource in resources])),
        "types": _rows(_words(types)),
        "groups": _rows({_key(name): _table(_group(ask_group(name))) for name in groups}),
        "rules": _rows(_table(_rule(rule)) for rule in rules),
        "shared": _rows(_shared(resources, rules)),
        "shelves": _rows(rows),
    }


def _numbered(values: Iterable[_Value]) -> dict[_Value, int]:
    """Return the numbers that Lua gives to different values, from 1 on."""
    return {value: number for number, value in enumerate(dict.fromkeys(values), 1)}


def _shelves(resources: Iterable[Resource], notices: Mapping[str, str]) -> dict[_Shelf, list[Resource]]:
    found: dict[_Shelf, list[Resource]] = {}
    for resource in resources:
        section = resource.slurm
        shelf = _Shelf(
            section.license is not None,
            notices.get(resource.name, ""),
            resource.type,
            section.access,
            section.capacity,
            resource.is_dynamic,
            section.slots_license or "",
        )
        found.setdefault(shelf, []).append(resource)
    return dict(sorted(found.items(), key=lambda item: (item[0].is_licensed, bool(item[0].notice))))


def _shelf(
    shelf: _Shelf, members: Sequence[Resource], types: Mapping[str, int], rules: Mapping[Access, int], first: int
) -> dict[str, str]:
    found = {"type": str(types[shelf.type]), "capacity": str(shelf.capacity)}
    if shelf.is_dynamic:
        found["dynamic"] = "true"
    if not shelf.rules.is_open:
        found["rule"] = str(rules[shelf.rules])
    if shelf.notice:
        found["notice"] = _string(shelf.notice)
    if shelf.slots_license:
        found["slots"] = _string(shelf.slots_license)
    # The number behind a name tells Lua which QPU it has found, since it cannot look backwards.
    found["names"] = _lines(f"{resource.name}\t{number}" for number, resource in enumerate(members, first))
    if shelf.is_licensed:
        found["licenses"] = _lines(resource.slurm.license or "" for resource in members)
    return found


def _words(types: Mapping[str, int]) -> dict[str, str]:
    """Return the numbers of the types that each spelling means, without case and punctuation, as Lua compares them."""
    found: dict[str, list[int]] = {}
    for type_name, number in types.items():
        for spelling in _spellings(type_name):
            found.setdefault(spelling, []).append(number)
    return {_key(spelling): f"{{{', '.join(map(str, numbers))}}}" for spelling, numbers in found.items()}


def _spellings(type_name: str) -> list[str]:
    """Return a type's names: the current one and the older ones, with and without the vendor in front."""
    known = resource_types.describe(type_name)
    if known.name not in resource_types.KNOWN:
        return [resource_types.canonical(type_name)]
    today = known.successor or known.name
    older = [other.name for other in resource_types.KNOWN.values() if other.successor == today]
    plain = [resource_types.canonical(name) for name in (today, *older)]
    return [*plain, *(f"ibm{name}" for name in plain)]


def _group(group: Group) -> dict[str, str]:
    found = {}
    if group.gid is not None:
        found["gid"] = str(group.gid)
    if group.members is not None:
        found["members"] = _lines(group.members)
    return found


def _rule(rules: Access) -> dict[str, str]:
    found = {}
    for rule in ("users", "partitions", "accounts", "qos"):
        names = getattr(rules, rule)
        groups = rules.groups if rule == "users" else None
        if names is None and groups is None:
            continue
        entry = {"names": _lines(names or ()), "whom": _string(access.whom(rules, rule))}
        if groups is not None:
            entry["groups"] = _list(groups)
        found[rule] = _table(entry)
    return found


def _shared(resources: Iterable[Resource], rules: Mapping[Access, int]) -> dict[str, str]:
    """Return the licenses that several QPUs share; `rules` has 0 for a QPU that everybody may use."""
    found: dict[str, list[Resource]] = {}
    for resource in resources:
        if resource.slurm.license is not None:
            found.setdefault(resource.slurm.license, []).append(resource)
    shared = {}
    for license, members in found.items():
        if len(members) < 2:
            continue
        open_to = dict.fromkeys(rules.get(item.slurm.access, 0) for item in members)
        entry = {
            "capacity": str(min(item.slurm.capacity for item in members)),
            "names": _string(listing([item.name for item in members])),
            "rules": f"{{{', '.join(map(str, open_to))}}}",
        }
        shared[_key(license)] = _table(entry)
    return shared


def _key(text: str) -> str:
    return f"[{_string(text)}]"


def _indented(entries: Mapping[str, str]) -> str:
    return "{\n" + "".join(f"{key} = {value},\n" for key, value in entries.items()) + "}"


def _rows(entries: Mapping[str, str] | Iterable[str]) -> str:
    """Return a table with one entry a line."""
    if isinstance(entries, Mapping):
        entries = [f"{key} = {value}" for key, value in entries.items()]
    rows = "".join(f"{entry},\n" for entry in entries)
    return f"{{\n{rows}}}" if rows else "{}"


def _table(entries: Mapping[str, str]) -> str:
    return f"{{ {', '.join(f'{key} = {value}' for key, value in entries.items())} }}"


def _list(texts: Iterable[str]) -> str:
    return f"{{{', '.join(map(_string, texts))}}}"


def _lines(texts: Iterable[str]) -> str:
    """Return a Lua string with a line break before and after each text, so that Lua can find a whole line."""
    return '"' + "".join(f"\\\n{_escaped(text)}" for text in texts) + '\\\n"'


def _string(text: str) -> str:
    return f'"{_escaped(text)}"'


def _escaped(text: str) -> str:
    """Return text for a Lua string: bytes escaped as a backslash and three digits, which every version of Lua reads."""
    return _ESCAPED.sub(lambda match: f"\\{ord(match[0]):03}", text)
