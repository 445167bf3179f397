"""Checks of the plugin: its line in plugstack.conf, its file, and whether srun has loaded it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from qrmi_slurm.checks import plugin_file
from qrmi_slurm.checks.result import Result, error, ok, warning
from qrmi_slurm.errors import PlugstackError, SchedulerError
from qrmi_slurm.slurm import commands, conf_file, plugstack
from qrmi_slurm.slurm.plugstack import PluginLine, SiteOptions
from qrmi_slurm.slurm.settings import SlurmSettings


def run(slurm_conf: Path, settings: SlurmSettings | None, unknown_hint: str) -> tuple[SiteOptions | None, list[Result]]:
    """Check the plugin.

    Args:
        slurm_conf: Slurm's configuration file.
        settings: Slurm's settings; None if slurmctld did not answer.
        unknown_hint: what to do if a check needs the settings and there are none.

    Returns:
        The site's options, None if they cannot be read; and the results.
    """
    name = "plugstack"
    try:
        path = plugstack.plugstack_path(slurm_conf)
        found = plugstack.plugin_lines(path)
    except PlugstackError as failure:
        return None, [error(name, failure.message, failure.hint)]
    if not found:
        fault = f"has no line for {plugstack.PLUGIN_FILE}" if path.exists() else "does not exist"
        hint = "add the line that qrmi-slurm slurm-conf prints"
        return plugstack.read(slurm_conf), [error(name, f"{path} {fault}, so there is no --qpu", hint)]
    results = []
    options: SiteOptions | None = None
    try:
        options = plugstack.parse_arguments(found[0], conf_file.local_folder(slurm_conf))
    except PlugstackError as failure:
        results.append(error(name, failure.message, failure.hint))
    results += _check_lines(name, found, plugstack.empty_includes(path))
    if not results:
        results.append(ok(name, found[0].source))
    results.append(_check_file(found[0], settings, unknown_hint))
    if settings is not None:
        results.append(_check_option(slurm_conf))
    return options, results


def _check_lines(name: str, found: Sequence[PluginLine], empty_includes: Sequence[str]) -> Iterator[Result]:
    first, *others = found
    if others:
        places = ", ".join(line.source for line in others)
        yield error(name, f"the plugin is also loaded in {places}", f"remove that; Slurm uses {first.source}")
    if first.is_required:
        hint = "with required, Slurm drains a node that cannot load the plugin; with optional, it still runs jobs"
        yield warning(name, f"{first.source} says required", hint)
    if empty_includes:
        hint = f"the line in use is {first.source}"
        yield warning(name, f"include matches no file: {', '.join(empty_includes)}", hint)


def _check_file(line: PluginLine, settings: SlurmSettings | None, unknown_hint: str) -> Result:
    name = "plugin"
    paths = [Path(line.path)]
    if not paths[0].is_absolute():  # Slurm looks in each folder of PluginDir
        folders = settings.text("PluginDir").split(":") if settings is not None else []
        paths = [Path(folder) / line.path for folder in folders if folder]
        if not paths:
            return warning(name, f"{line.path} is in PluginDir, which is unknown", unknown_hint)
    path = next((path for path in paths if path.exists()), paths[0])
    try:
        known = plugin_file.releases(path)
    except PlugstackError as failure:
        return error(name, failure.message, failure.hint)
    release = settings.version if settings is not None else None
    if release is not None and release not in known:
        running, first, last = (_release_name(one) for one in (release, min(known), max(known)))
        hint = (
            f"install a version of qrmi-slurm that knows Slurm {running}, with its plugin: make -C cli_filter install"
        )
        message = f"{path} is for Slurm {first} to {last}, so Slurm {running} does not load it, and there is no --qpu"
        return error(name, message, hint)
    return ok(name, f"{path}, for Slurm {_release_name(min(known))} to {_release_name(max(known))}")


def _release_name(release: tuple[int, int]) -> str:
    return f"{release[0]}.{release[1]:02}"


def _check_option(slurm_conf: Path) -> Result:
    """Ask srun itself whether it has the option, which proves that the plugin was loaded."""
    name = "--qpu"
    try:
        text = commands.run(["srun", "--help"], slurm_conf)
    except SchedulerError as failure:
        return warning(name, f"cannot run srun: {failure.message}", failure.hint)
    if "--qpu=" not in text:
        hint = "run srun -vvv --help and look for spank_qrmi.so; this user has to be able to read the file"
        return error(name, "srun does not have the option: it has not loaded the plugin", hint)
    return ok(name, "srun has the option")
