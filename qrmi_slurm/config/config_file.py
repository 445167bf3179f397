"""The config file, `qrmi_config.json`: which QPUs the site offers, and with which variables.

This is the hooks' loader: no schema, no third-party import. It refuses what `schema/qrmi_config.schema.json` refuses;
`qrmi-slurm validate-config` tells admins where and how to fix it. Where a fault is in what decides who may use a
resource, only that resource is refused, and nobody may use it.
"""

import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from qrmi_slurm import files
from qrmi_slurm.config import slurm_section
from qrmi_slurm.config.resource_types import with_successors
from qrmi_slurm.config.slurm_section import SlurmSection
from qrmi_slurm.errors import ConfigError
from qrmi_slurm.secret import masked_repr
from qrmi_slurm.text import is_plain, printable

_CHECK_HINT: Final = "run: qrmi-slurm validate-config"

_KEYS: Final = ("$schema", "resources")
_RESOURCE_KEYS: Final = ("name", "type", "environment", "is_dynamic", "slurm")

# The file is read as root at each QPU job's start. 10,000 resources take about 6 MB.
MAX_CONFIG_BYTES: Final = 64 * 1024 * 1024


class Resource(NamedTuple):
    """One quantum resource of the site.

    Args:
        name: as users write it in `--qpu`.
        type: QRMI's name of its type, as configured.
        environment: its variables without the resource's name in front; secrets among them, so never in a repr.
        is_dynamic: whether QRMI discovers the devices behind it.
        slurm: its `slurm` key.
    """

    name: str
    type: str
    environment: Mapping[str, str]
    is_dynamic: bool = False
    slurm: SlurmSection = SlurmSection()

    def __repr__(self) -> str:
        return masked_repr(self, "environment")

    @property
    def variables(self) -> dict[str, str]:
        """Its variables, those with a newer name under both names."""
        return with_successors(self.environment)


class Config(NamedTuple):
    """All resources of the site, by name. Nobody may use one whose name is there twice: they may differ in access."""

    resources: Mapping[str, Resource]


def load(path: Path) -> Config:
    """Read the config.

    Raises:
        ConfigError: it cannot be read, is not JSON, or is not a config; the message has no value in it.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            content = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", _CHECK_HINT) from error
    if files.is_weak(status):  # it says where keys are sent, and which programs run
        mode = stat.S_IMODE(status.st_mode)
        raise ConfigError(
            f"users other than root can change {path} (owner uid {status.st_uid}, mode {mode:04o})", _CHECK_HINT
        )
    if len(content) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{path} is larger than {MAX_CONFIG_BYTES} bytes", _CHECK_HINT)
    try:
        return parse(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 (byte {error.start})", _CHECK_HINT) from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", error.hint) from None


def parse(text: str) -> Config:
    """Return the config that `text` holds.

    Raises:
        ConfigError: it is not JSON, or is not a config; the message names the place, never a value.
    """
    try:
        document = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"not valid JSON at line {error.lineno} column {error.colno}: {error.msg}", _CHECK_HINT
        ) from None
    except (ValueError, RecursionError):  # thousands of digits or brackets
        raise ConfigError("not valid JSON: it is nested too deeply, or has too long a number", _CHECK_HINT) from None
    if not isinstance(document, dict) or not isinstance(document.get("resources"), list):
        raise ConfigError('not of the form {"resources": [...]}', _CHECK_HINT)
    if fault := _fault_of_keys(document, _KEYS):
        raise ConfigError(fault, _CHECK_HINT)
    items = document["resources"]
    known: set[str] = set()
    for index, item in enumerate(items):
        if not _is_sound(item, known):
            known |= _checked(item, f"resources[{index}]").keys()
    return Config(_Resources(items))


class _Resources(Mapping[str, Resource]):
    """The resources of a config, which has been checked; each is made when it is asked for.

    A job needs a few of a thousand, and making one takes longer than checking it.
    """

    def __init__(self, items: list[dict[str, Any]]) -> None:
        self._items = items
        self._index_of = {item["name"]: index for index, item in enumerate(items)}
        self._made: dict[str, Resource] = {}

    def __getitem__(self, name: str) -> Resource:
        resource = self._made.get(name)
        if resource is None:
            resource = self._made[name] = self._make(self._index_of[name])
        return resource

    def __iter__(self) -> Iterator[str]:
        return iter(self._index_of)

    def __len__(self) -> int:
        return len(self._index_of)

    def __contains__(self, name: object) -> bool:
        return name in self._index_of

    def _make(self, index: int) -> Resource:
        item, place = self._items[index], f"resources[{index}]"
        name = item["name"]
        is_repeated = len(self._items) > len(self._index_of) and [one["name"] for one in self._items].count(name) > 1
        section = (
            slurm_section.closed(name, item.get("slurm"), f"{place}.name is the name of another resource, too")
            if is_repeated
            else _slurm_section(name, item, place)
        )
        return Resource(name, item["type"], item["environment"], item.get("is_dynamic", False), section)


def _is_sound(item: Any, known: set[str]) -> bool:
    """Tell quickly that a resource can be read, apart from its `slurm` key; where not, `_checked` says what is wrong.

    Args:
        item: the resource.
        known: variables whose names are valid. Those of one type have the same ones.
    """
    try:
        environment = item["environment"]
        return (
            environment.keys() <= known
            and "=" not in item["name"]
            and item["name"] != ""
            and item["type"] != ""
            and type(item.get("is_dynamic", False)) is bool
            and "".join((item["name"], item["type"], *environment.values())).isprintable()
        )
    except (KeyError, TypeError, AttributeError):
        return False


def with_slots(resources: Mapping[str, Resource], licenses: Mapping[str, str]) -> Mapping[str, Resource]:
    """Return resources with the licenses that count their slots.

    Args:
        resources: of the config, by name.
        licenses: by the resource's name, from the plugin's line.
    """
    known = licenses.keys() & resources.keys()
    if not known:
        return resources
    slotted = {
        name: resources[name]._replace(slurm=resources[name].slurm._replace(slots_license=licenses[name]))
        for name in known
    }
    return {**resources, **slotted}


class _Repeating(dict[str, Any]):
    """An object of the file that has a key twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else _Repeating(found)


def _fault_of_keys(item: dict[str, Any], known: tuple[str, ...]) -> str:
    """Say which key of an object outside of `slurm` may have been meant to decide who may use what."""
    if isinstance(item, _Repeating):
        return "an object has the same key twice"
    for key in item:
        if key not in known and not key.startswith(slurm_section.COMMENT_PREFIXES):
            meant = slurm_section.meant_by(key)
            if meant:
                return f"{printable(key)} is not a key that belongs there; {meant} may have been meant"
    return ""


def _has_repeating(value: Any) -> bool:
    """Tell whether an object, or one in it, has a key twice."""
    if isinstance(value, dict):
        return isinstance(value, _Repeating) or any(map(_has_repeating, value.values()))
    return isinstance(value, list) and any(map(_has_repeating, value))


def _slurm_section(name: str, item: dict[str, Any], place: str) -> SlurmSection:
    slurm = item.get("slurm", {})
    if fault := _fault_of_keys(item, _RESOURCE_KEYS):
        return slurm_section.closed(name, slurm, f"{place}: {fault}")
    if _has_repeating(item):
        return slurm_section.closed(name, slurm, f"{place}: an object has the same key twice")
    if not isinstance(slurm, dict):
        return slurm_section.closed(name, slurm, f"{place}.slurm is not an object")
    if fault := slurm_section.fault(slurm):
        return slurm_section.closed(name, slurm, f"{place}.slurm{fault}")
    return slurm_section.parse(name, slurm)


def _checked(item: Any, place: str) -> dict[str, str]:
    """Return a resource's environment.

    Raises:
        ConfigError: the resource cannot be read, apart from its `slurm` key.
    """
    if not isinstance(item, dict):
        raise ConfigError(f"{place} is not an object", _CHECK_HINT)
    name = _text(item, "name", place)
    environment = item.get("environment")
    if not isinstance(environment, dict):
        raise ConfigError(f"{place}.environment is not an object ({{}} where users bring their own)", _CHECK_HINT)
    for variable, value in environment.items():
        # slurmstepd drops a blank at the end of a name: tasks would get another name than QRMI in the hooks.
        if not variable or "=" in variable or variable.endswith(" ") or not is_plain(variable):
            raise ConfigError(f"{place}.environment: {printable(variable)!r} is not a valid variable name", _CHECK_HINT)
        if not isinstance(value, str):
            raise ConfigError(f"{place}.environment.{printable(variable)} is not a string", _CHECK_HINT)
        if not is_plain(value):
            raise ConfigError(
                f"{place}.environment.{printable(variable)} contains a line break or another control character",
                _CHECK_HINT,
            )
    if "=" in name:
        raise ConfigError(f"{place}.name contains a '='", _CHECK_HINT)
    is_dynamic = item.get("is_dynamic", False)
    if not isinstance(is_dynamic, bool):
        raise ConfigError(f"{place}.is_dynamic is neither true nor false", _CHECK_HINT)
    _text(item, "type", place)
    return environment


def _text(item: dict[str, Any], key: str, place: str) -> str:
    value = item.get(key)
    if not isinstance(value, str) or not value or not is_plain(value):
        raise ConfigError(f"{place}.{key} is not a non-empty line of text", _CHECK_HINT)
    return value
