"""Checks of the licenses: whether Slurm counts the QPUs, and whether job_submit.lua and its catalogue are in place."""

import platform
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from qrmi_slurm.checks import setup_lines
from qrmi_slurm.checks.installation import LUA_MODULE
from qrmi_slurm.checks.result import Result, error, ok, warning
from qrmi_slurm.config import config_file
from qrmi_slurm.config.config_file import Resource
from qrmi_slurm.errors import CatalogueError, ConfigError, SchedulerError
from qrmi_slurm.scheduling import catalogue
from qrmi_slurm.slurm import licenses, prolog_flags, requeue
from qrmi_slurm.slurm.plugstack import SiteOptions
from qrmi_slurm.slurm.settings import SlurmSettings

_SCRIPT: Final = "job_submit.lua"
_MODULE: Final = LUA_MODULE.removesuffix(".lua").encode()
_SETUP_HINT: Final = "see qrmi-slurm slurm-conf and docs/scheduling.md"


def run(
    settings: SlurmSettings, options: SiteOptions, slurm_conf: Path, notices: Mapping[str, str]
) -> Iterator[Result]:
    """Check what lets jobs wait for QPUs; a single result if the site does not use licenses.

    Args:
        settings: Slurm's settings.
        options: the site's options.
        slurm_conf: Slurm's configuration file.
        notices: why QPUs are out of service, by name.
    """
    try:
        configured = config_file.load(options.config_path).resources
    except ConfigError:
        return  # the config's own result says so
    resources = list(config_file.with_slots(configured, options.slots_licenses).values())
    yield from _check_slots(resources, slurm_conf)
    counted = licenses.granted_counts(settings.text("Licenses"))
    wanted = catalogue.licenses(resources, counted)
    script, file = slurm_conf.parent / _SCRIPT, catalogue.path_beside(slurm_conf)
    uses_module = _uses_module(script)
    if "lua" not in {word.removeprefix("job_submit/") for word in settings.flags("JobSubmitPlugins")}:
        if wanted.keys() & counted.keys():
            message = "without lua no job gets the licenses that Licenses= defines"
            yield warning("JobSubmitPlugins", message, _SETUP_HINT)
        else:
            yield ok("licenses", "not used: jobs start whether their QPUs are free or not")
        return
    if not uses_module and not file.exists() and not wanted.keys() & counted.keys():
        yield ok("licenses", f"not used; JobSubmitPlugins=lua runs the site's own {script.name}")
        return
    is_controller = _is_controller(settings)
    yield _check_job_submit(script, uses_module, is_controller)
    if file.exists() or is_controller:
        yield _check_catalogue(file, resources, notices)
    yield _check_counts(settings, wanted, counted)
    if wanted.keys() & counted.keys() and requeue.loses_licenses(settings.text("SLURM_VERSION")):
        message = "this Slurm drops a job's licenses in a requeue: jobs with licenses do not wait for a QPU, they fail"
        yield warning("licenses", message, "upgrade Slurm to 25.11.7 or newer")
    if not prolog_flags.runs_at_start(settings.flags("PrologFlags")):
        # slurmd/req.c, _rpc_launch_tasks(): at a job's first step Prolog's SPANK variables come from srun.
        message = "without PrologFlags=Alloc a user's own srun can ask Prolog for a QPU that its job has no license for"
        yield error("licenses", message, "set PrologFlags=Alloc and run scontrol reconfigure")


def _check_slots(resources: Sequence[Resource], slurm_conf: Path) -> Iterator[Result]:
    """Check that Slurm has the licenses that count slots; whether they fit the config is the config's own result."""
    wanted = {item.name: item.slurm.slots_license for item in resources if item.slurm.slots_license is not None}
    if not wanted:
        return
    name = "slots"
    try:
        known = licenses.read(slurm_conf)
    except SchedulerError as failure:
        yield warning(name, f"cannot ask slurmctld for its licenses: {failure.message}", failure.hint)
        return
    missing = [f"{license} ({qpu})" for qpu, license in wanted.items() if license not in known]
    if missing:
        message = f"Slurm has no license {', '.join(missing)}, so no job can have slots"
        hint = "add it to Licenses= in slurm.conf and run scontrol reconfigure; NAME@SERVER: sacctmgr add resource"
        yield error(name, message, hint)
        return
    yield ok(name, ", ".join(f"{qpu}: {license}, {known[license].total}" for qpu, license in wanted.items()))


def _uses_module(script: Path) -> bool | None:
    """Tell whether a script uses our Lua module; None if it cannot be read."""
    try:
        code = [line for line in script.read_bytes().splitlines() if not line.lstrip().startswith(b"--")]
    except OSError:
        return None
    return any(_MODULE in line for line in code)


def _is_controller(settings: SlurmSettings) -> bool:
    hosts = {host.partition("(")[0].partition(".")[0] for host in settings.all("SlurmctldHost")}
    return platform.node().partition(".")[0] in hosts


def _check_job_submit(script: Path, uses_module: bool | None, is_controller: bool) -> Result:
    name = "JobSubmitPlugins"
    if uses_module:
        return ok(name, f"lua, and {script} uses {LUA_MODULE}")
    if uses_module is not None:
        return warning(name, f"{script} does not use {LUA_MODULE}: jobs get no licenses", _SETUP_HINT)
    if is_controller:
        return error(name, f"{script} cannot be read: slurmctld will not start again", _SETUP_HINT)
    return ok(name, "lua; its files are checked on the controller")


def _check_catalogue(file: Path, resources: list[Resource], notices: Mapping[str, str]) -> Result:
    name = "catalogue"
    hint = "run qrmi-slurm catalogue"
    try:
        status = file.stat()
    except FileNotFoundError:
        return error(name, f"{file} does not exist: jobs with --qpu are refused", hint)
    except OSError as failure:
        return warning(name, f"{file}: {failure.strerror}", "run this as root")
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != 0:
        return error(name, f"{file} belongs to uid {status.st_uid}", f"chown root:root {file}")
    if mode & 0o022:
        return error(name, f"{file} can be changed by others (mode {mode:04o})", f"chmod 0644 {file}")
    if not mode & 0o004:
        message = f"only root can read {file} (mode {mode:04o}); SlurmUser and users on login nodes have to as well"
        return warning(name, message, f"chmod 0644 {file}")
    try:
        if not catalogue.is_current(file, resources, notices):
            return warning(name, f"{file} is out of date", hint)
    except CatalogueError as failure:
        return warning(name, failure.message, failure.hint)
    return ok(name, f"{file} is up to date")


def _check_counts(settings: SlurmSettings, wanted: Mapping[str, int], counted: Mapping[str, int]) -> Result:
    name = "Licenses"
    value = setup_lines.with_counts(settings.text("Licenses"), wanted)
    hint = f"set Licenses={value} and run scontrol reconfigure"
    missing = [license for license in wanted if license not in counted]
    if missing:
        return error(name, f"Slurm has no license {', '.join(missing)}, so it refuses jobs for these QPUs", hint)
    other = [
        f"{license} ({counted[license]}, not {count})" for license, count in wanted.items() if counted[license] != count
    ]
    if other:
        return warning(name, f"not the counts of the config: {', '.join(other)}", hint)
    return ok(name, ", ".join(f"{license}:{count}" for license, count in wanted.items()) or "no QPU has a license")
