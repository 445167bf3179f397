"""The licenses' part of a doctor's visit: does Slurm count the QPUs, and does job_submit.lua know them?"""

import platform
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from qrmi_slurm.checks import setup_lines
from qrmi_slurm.checks.result import Line, error, ok, warning
from qrmi_slurm.config import config_file
from qrmi_slurm.config.config_file import Resource
from qrmi_slurm.errors import CatalogueError, ConfigError
from qrmi_slurm.scheduling import catalogue
from qrmi_slurm.slurm import licenses, prolog_flags
from qrmi_slurm.slurm.plugstack import SiteOptions
from qrmi_slurm.slurm.settings import SlurmSettings

SCRIPT: Final = "job_submit.lua"
_MODULE: Final = b"qrmi_slurm"
_REMEDY: Final = "see: qrmi-slurm slurm-conf, and docs/scheduling.md"


def lines(settings: SlurmSettings, options: SiteOptions, path: Path, notices: Mapping[str, str]) -> Iterator[Line]:
    """Check what lets jobs wait for QPUs; one line where a site does not want that.

    Args:
        settings: Slurm's.
        options: the site's.
        path: slurm.conf.
        notices: why QPUs are out of service, by name.
    """
    try:
        resources = list(config_file.load(options.config_path).resources.values())
    except ConfigError:
        return  # the config's own line says so
    wanted = catalogue.licenses(resources)
    counted = licenses.parse_counts(settings.text("Licenses")) or {}
    script, file = path.parent / SCRIPT, catalogue.path_beside(path)
    plugins = {word.removeprefix("job_submit/") for word in settings.flags("JobSubmitPlugins")}
    is_ours = _uses_us(script)
    if "lua" not in plugins:
        if wanted.keys() & counted.keys():
            message = "without lua no job gets the licenses that Licenses= counts"
            yield warning("JobSubmitPlugins", message, _REMEDY)
        else:
            yield ok("licenses", "not used: jobs start whether their QPUs are free or not")
        return
    if not is_ours and not file.exists() and not wanted.keys() & counted.keys():
        yield ok("licenses", f"not used; JobSubmitPlugins=lua is for {script.name} of the site")
        return
    yield _job_submit(script, is_ours, _is_controller(settings))
    if file.exists() or _is_controller(settings):
        yield _catalogue(file, resources, notices)
    yield _counts(settings, wanted, counted)
    if not prolog_flags.runs_at_start(settings.flags("PrologFlags")):
        # slurmd/req.c, _rpc_launch_tasks(): where Prolog runs at the first step, srun says what it sees.
        message = "without PrologFlags=Alloc a user's own srun can ask Prolog for a QPU that its job has no license for"
        yield error("licenses", message, "PrologFlags=Alloc; then: scontrol reconfigure")


def _uses_us(script: Path) -> bool | None:
    """Tell whether a script names our module; None where it cannot be read."""
    try:
        code = [line for line in script.read_bytes().splitlines() if not line.lstrip().startswith(b"--")]
    except OSError:
        return None
    return any(_MODULE in line for line in code)


def _is_controller(settings: SlurmSettings) -> bool:
    hosts = {host.partition("(")[0].partition(".")[0] for host in settings.all("SlurmctldHost")}
    return platform.node().partition(".")[0] in hosts


def _job_submit(script: Path, is_ours: bool | None, is_controller: bool) -> Line:
    name = "JobSubmitPlugins"
    if is_ours:
        return ok(name, f"lua, and {script} uses ours")
    if is_ours is not None:
        return warning(name, f"{script} does not use ours: jobs get no licenses", _REMEDY)
    if is_controller:
        return error(name, f"{script} cannot be read: slurmctld will not start again", _REMEDY)
    return ok(name, "lua; its files are looked at on the controller")


def _catalogue(file: Path, resources: list[Resource], notices: Mapping[str, str]) -> Line:
    name = "catalogue"
    remedy = "run: qrmi-slurm catalogue"
    try:
        status = file.stat()
    except FileNotFoundError:
        return error(name, f"{file} is not there: jobs with --qpu are refused", remedy)
    except OSError as failure:
        return warning(name, f"{file}: {failure.strerror}", "run this as root")
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != 0:
        return error(name, f"{file} belongs to uid {status.st_uid}", f"chown root:root {file}")
    if mode & 0o022:
        return error(name, f"{file} can be changed by others (mode {mode:04o})", f"chmod 0644 {file}")
    if not mode & 0o004:
        message = f"{file} can be read by root alone (mode {mode:04o}), not by SlurmUser and on login nodes"
        return warning(name, message, f"chmod 0644 {file}")
    try:
        if not catalogue.is_current(file, resources, notices):
            return warning(name, f"{file} is out of date", remedy)
    except CatalogueError as failure:
        return warning(name, failure.message, failure.hint)
    return ok(name, f"{file} is up to date")


def _counts(settings: SlurmSettings, wanted: Mapping[str, int], counted: Mapping[str, int]) -> Line:
    name = "Licenses"
    before = settings.text("Licenses")
    remedy = f"Licenses={setup_lines.with_counts(before, wanted)}; then: scontrol reconfigure"
    missing = [license for license in wanted if license not in counted]
    if missing:
        return error(name, f"{', '.join(missing)}: not there, so that Slurm refuses the QPU's jobs", remedy)
    other = [
        f"{license} ({counted[license]}, not {count})" for license, count in wanted.items() if counted[license] != count
    ]
    if other:
        return warning(name, f"another count than the config: {', '.join(other)}", remedy)
    return ok(name, ", ".join(f"{license}:{count}" for license, count in wanted.items()) or "no QPU has one")
