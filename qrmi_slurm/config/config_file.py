"""The config file, `qrmi_config.json`: which QPUs the site offers, and with which variables.

This is the hooks' loader: no schema, no third-party import. It refuses what `schema/qrmi_config.schema.json` refuses;
`qrmi-slurm validate-config` tells admins where and how to fix it.
"""

import json
import os
import stat
from collections.abc import Mapping
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
    """All resources of the site, by name. Of two with the same name the last one counts, as in QRMI."""

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
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"not valid JSON at line {error.lineno} column {error.colno}: {error.msg}", _CHECK_HINT
        ) from None
    except (ValueError, RecursionError):  # thousands of digits or brackets
        raise ConfigError("not valid JSON: it is nested too deeply, or has too long a number", _CHECK_HINT) from None
    if not isinstance(document, dict) or not isinstance(document.get("resources"), list):
        raise ConfigError('not of the form {"resources": [...]}', _CHECK_HINT)
    resources = [_resource(item, index) for index, item in enumerate(document["resources"])]
    return Config({resource.name: resource for resource in resources})


def _resource(item: Any, index: int) -> Resource:
    place = f"resources[{index}]"
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
    slurm = item.get("slurm", {})
    if not isinstance(slurm, dict):
        raise ConfigError(f"{place}.slurm is not an object", _CHECK_HINT)
    if fault := slurm_section.fault(slurm):
        raise ConfigError(f"{place}.slurm{fault}", _CHECK_HINT)
    section = slurm_section.parse(name, slurm)
    return Resource(name, _text(item, "type", place), environment, is_dynamic, section)


def _text(item: dict[str, Any], key: str, place: str) -> str:
    value = item.get(key)
    if not isinstance(value, str) or not value or not is_plain(value):
        raise ConfigError(f"{place}.{key} is not a non-empty line of text", _CHECK_HINT)
    return value
