"""The catalogue: what Slurm's controller and the login nodes may know about the config, as a Lua table without secrets.

cli_filter/qrmi_slurm.lua reads it for each job with `--qpu`. The config itself is readable by root alone.
"""

import grp
import pwd
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from qrmi_slurm import files
from qrmi_slurm.config import resource_types
from qrmi_slurm.config.config_file import Resource
from qrmi_slurm.config.slurm_section import Access
from qrmi_slurm.errors import CatalogueError

FILE_NAME: Final = "qrmi_catalogue.lua"
VERSION: Final = 1
MODE: Final = 0o644

_HEAD: Final = "-- qrmi-slurm catalogue; made by `qrmi-slurm catalogue`, do not edit\n"
_ESCAPED: Final = re.compile(r'[\x00-\x1f\x7f"\\]')


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


def licenses(resources: Iterable[Resource]) -> dict[str, int]:
    """Return the count of each license, in the config's order: the lowest capacity of the resources that share it."""
    found: dict[str, int] = {}
    for resource in resources:
        section = resource.slurm
        if section.license is not None:
            found[section.license] = min(section.capacity, found.get(section.license, section.capacity))
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
    entries = [f"  {_table(_qpu(resource, notices, ask_group))},\n" for resource in resources]
    return f"{_HEAD}return {{ version = {VERSION}, qpus = {{\n{''.join(entries)}}} }}\n"


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


def _qpu(resource: Resource, notices: Mapping[str, str], ask_group: Callable[[str], Group]) -> dict[str, str]:
    section = resource.slurm
    found = {"name": _string(resource.name), "types": _list(_type_names(resource.type))}
    if section.license is not None:
        found["license"] = _string(section.license)
    found["capacity"] = str(section.capacity)
    if resource.is_dynamic:
        found["dynamic"] = "true"
    if not section.access.is_open:
        found["allow"] = _table(_rules(section.access, ask_group))
    if resource.name in notices:
        found["notice"] = _string(notices[resource.name])
    return found


def _type_names(type_name: str) -> list[str]:
    """Return a type as configured, then its other names: the current one and the older ones."""
    known = resource_types.describe(type_name)
    today = known.successor or known.name
    older = [other.name for other in resource_types.KNOWN.values() if other.successor == today]
    return list(dict.fromkeys([type_name, today, *older]))


def _rules(access: Access, ask_group: Callable[[str], Group]) -> dict[str, str]:
    rules: dict[str, str] = {}
    for rule, names in access._asdict().items():
        if names is None:
            continue
        rules[rule] = _list(names) if rule != "groups" else _group_list(names, ask_group)
    return rules


def _group_list(names: Iterable[str], ask_group: Callable[[str], Group]) -> str:
    tables = []
    for name in names:
        group = ask_group(name)
        entry = {"name": _string(name)}
        if group.gid is not None:
            entry["gid"] = str(group.gid)
        if group.members is not None:
            entry["members"] = _list(group.members)
        tables.append(_table(entry))
    return f"{{ {', '.join(tables)} }}" if tables else "{}"


def _table(entries: Mapping[str, str]) -> str:
    return f"{{ {', '.join(f'{key} = {value}' for key, value in entries.items())} }}"


def _list(texts: Iterable[str]) -> str:
    return f"{{{', '.join(map(_string, texts))}}}"


def _string(text: str) -> str:
    """Return a Lua string; bytes are escaped as a backslash and three digits, which every version of Lua reads."""
    return '"' + _ESCAPED.sub(lambda match: f"\\{ord(match[0]):03}", text) + '"'
