"""Checks of the config: its owner and mode, its text, and its types against the installed QRMI."""

import os
import stat
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from qrmi_slurm.calls import installed
from qrmi_slurm.checks.result import Result, error, ok, warning
from qrmi_slurm.config import config_file
from qrmi_slurm.config.config_file import Resource
from qrmi_slurm.errors import BackendError, ConfigError
from qrmi_slurm.slurm.plugstack import SiteOptions
from qrmi_slurm.validation import validate
from qrmi_slurm.validation.rules import Severity

_NAME = "config"
_QRMI = "QRMI"
_MAX_NAMES = 5


def run(options: SiteOptions) -> list[Result]:
    """Check the config that the plugin's line names."""
    path = options.config_path
    try:
        status = path.stat()
    except PermissionError:
        return [warning(_NAME, f"this user cannot access {path}", "run this as root")]
    except OSError as failure:
        hint = "compute nodes need it; qrmi-slurm slurm-conf shows where, and README has an example"
        return [error(_NAME, f"{path}: {failure.strerror}", hint)]
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != 0:
        message = f"{path} belongs to uid {status.st_uid}: the hooks refuse it"
        return [error(_NAME, message, f"chown root:root {path}")]
    if mode & 0o022:
        message = f"{path} can be changed by others (mode {mode:04o}): the hooks refuse it"
        return [error(_NAME, message, f"chmod 0600 {path}")]
    found = []
    if mode & 0o044:
        found.append(warning(_NAME, f"{path} can be read by others (mode {mode:04o})", f"chmod 0600 {path}"))
    if not os.access(path, os.R_OK):
        return [*found, warning(_NAME, f"this user cannot read {path}", "run this as root")]
    return [*found, *_check_text(path, options.slots_licenses)]


def _check_text(path: Path, slots_licenses: Mapping[str, str]) -> list[Result]:
    try:
        members = installed.known_members()
    except BackendError as failure:
        return [error(_QRMI, failure.message, failure.hint)]
    try:
        diagnosis = validate.validate_file(path, members, slots_licenses)
        resources = list(config_file.load(path).resources.values()) if diagnosis.is_valid() else []
    except ConfigError as failure:
        return [error(_NAME, failure.message, failure.hint), _check_types([], members)]
    qrmi = _check_types(resources, members)
    hint = f"run qrmi-slurm validate-config {path}"
    errors, warnings = diagnosis.count(Severity.ERROR), diagnosis.count(Severity.WARNING)
    if errors:
        return [error(_NAME, f"{path} has {errors} {'error' if errors == 1 else 'errors'}", hint), qrmi]
    if warnings:
        return [warning(_NAME, f"{path} has {warnings} {'warning' if warnings == 1 else 'warnings'}", hint), qrmi]
    names = ", ".join(resource.name for resource in resources[:_MAX_NAMES])
    more = ", ..." if len(resources) > _MAX_NAMES else ""
    return [ok(_NAME, f"{path}: {names}{more}" if names else f"{path} has no resources"), qrmi]


def _check_types(resources: Sequence[Resource], members: Sequence[str]) -> Result:
    """Check that the installed QRMI knows the type of each resource."""
    version = _qrmi_version()
    unknown = []
    for resource in resources:
        try:
            installed.installed_type(resource.type, members)
        except BackendError:
            unknown.append(f"{resource.name} ({resource.type})")
    if unknown:
        message = f"the installed QRMI {version} does not know the type of {', '.join(unknown)}"
        return error(_QRMI, message, "install another version of qrmi in qrmi-slurm's venv")
    return ok(_QRMI, f"version {version} knows the type of every resource")


def _qrmi_version() -> str:
    try:
        return metadata.version("qrmi")
    except metadata.PackageNotFoundError:
        return "unknown"
