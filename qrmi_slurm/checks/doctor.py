"""The doctor: all that has to be right around the hooks, looked at from this node, one line each.

It changes nothing but for a file that it makes and removes in the state directory.
"""

import os
import socket
import stat
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from qrmi_slurm.checks import hook_checks, license_checks, plugin_file, state_checks
from qrmi_slurm.checks.installation import Installation
from qrmi_slurm.checks.result import Line, error, ok, warning
from qrmi_slurm.config import config_file
from qrmi_slurm.errors import ConfigError, PlugstackError, SchedulerError
from qrmi_slurm.outages import outage, reservations
from qrmi_slurm.scheduling import memory
from qrmi_slurm.scheduling.memory import Memory
from qrmi_slurm.slurm import commands, plugstack
from qrmi_slurm.slurm import prolog_flags as flags_
from qrmi_slurm.slurm.plugstack import PluginLine, SiteOptions
from qrmi_slurm.slurm.settings import SlurmSettings, ask

# slurmd tells waiting users that Prolog hangs this long before MessageTimeout (slurmd/req.c).
_HUNG_BEFORE_S: Final = 2.0

# MUNGE_DEFAULT_TTL, beyond which Slurm's messages are refused; and what makes logs of two nodes hard to compare.
_CLOCK_ERROR_S: Final = 300.0
_CLOCK_WARNING_S: Final = 30.0

_SYSLOG: Final = Path("/dev/log")

_ASK_SLURM: Final = "mend what the line on Slurm says, then run this again"


@dataclass(frozen=True, slots=True)
class Patient:
    """What is looked at.

    Args:
        slurm_conf: Slurm's configuration file.
        installation: whose hooks they should be.
        is_login_node: look only at what login nodes need.
    """

    slurm_conf: Path
    installation: Installation
    is_login_node: bool = False


def examine(patient: Patient, tell: Callable[[str], None] = lambda what: None) -> list[Line]:
    """Look at everything.

    Args:
        patient: what is looked at.
        tell: gets what is being done, for a terminal.
    """
    lines: list[Line] = []
    tell("Slurm is asked")
    settings: SlurmSettings | None = None
    try:
        asked_s = time.time()
        settings = ask(patient.slurm_conf)
        lines.append(ok("Slurm", settings.text("SLURM_VERSION") or "of a version that it does not tell"))
        lines += clock(settings, asked_s)
    except SchedulerError as failure:
        lines.append(error("Slurm", f"slurmctld cannot be asked: {failure.message}", failure.hint))
    tell("the plugin is looked at")
    options, plugin_lines = _plugin(patient, settings)
    lines += plugin_lines
    if patient.is_login_node:
        return lines
    tell("the hooks are looked at")
    if settings is None:
        lines.append(warning("hooks", "Prolog, TaskProlog and Epilog were not looked at", _ASK_SLURM))
    else:
        lines += hook_checks.lines(settings, patient.installation)
        lines += prolog_flags(settings)
        if options is not None:
            lines += timeouts(settings, options)
    if options is not None:
        tell("the config and the state directory are looked at")
        lines += state_checks.config_lines(options)
        if settings is not None:
            lines += license_checks.lines(settings, options, patient.slurm_conf, _notices(options, patient.slurm_conf))
        lines += state_checks.state_lines(options, settings, patient.slurm_conf, _node_count(patient.slurm_conf))
        lines += sensor_line(memory.last_run(options.state_dir), time.time())
    lines.append(syslog())
    if os.geteuid() != 0:
        lines.append(warning("root", "this user cannot see all that the hooks see", "run this as root"))
    return lines


# --- the plugin --------------------------------------------------------------------------------------------


def _plugin(patient: Patient, settings: SlurmSettings | None) -> tuple[SiteOptions | None, list[Line]]:
    """Return the site's options, where they can be read, and the lines on plugstack.conf and the plugin's file."""
    name = "plugstack"
    wanted = "see: qrmi-slurm slurm-conf"
    try:
        path = plugstack.plugstack_path(patient.slurm_conf)
        found = plugstack.plugin_lines(path)
    except PlugstackError as failure:
        return None, [error(name, failure.message, failure.hint)]
    if not found:
        where = f"{path} has no line for {plugstack.PLUGIN_FILE}" if path.exists() else f"{path} is not there"
        return plugstack.read(patient.slurm_conf), [error(name, f"{where}: no --qpu", wanted)]
    first = found[0]
    lines = []
    options: SiteOptions | None = None
    try:
        options = plugstack.parse_arguments(first, patient.slurm_conf.parent)
    except PlugstackError as failure:
        lines.append(error(name, failure.message, failure.hint))
    if len(found) > 1:
        others = ", ".join(line.source for line in found[1:])
        lines.append(error(name, f"the plugin is named again in {others}", f"keep one line: {first.source} counts"))
    if first.is_required:
        hint = "write optional: with required, no job at all starts on a node where the plugin cannot be loaded"
        lines.append(warning(name, f"{first.source} says required", hint))
    empty = plugstack.empty_includes(path)
    if empty:
        hint = f"the lines in use: {first.source}"
        lines.append(warning(name, f"include matches no file: {', '.join(empty)}", hint))
    if not lines:
        lines.append(ok(name, first.source))
    lines.append(_plugin_file(first, settings))
    if lines[-1].name == "plugin" and settings is not None:
        lines.append(_option(patient))
    return options, lines


def _plugin_file(line: PluginLine, settings: SlurmSettings | None) -> Line:
    name = "plugin"
    paths = [Path(line.path)]
    if not paths[0].is_absolute():  # Slurm looks in each folder of PluginDir
        folders = settings.text("PluginDir").split(":") if settings is not None else []
        paths = [Path(folder) / line.path for folder in folders if folder]
        if not paths:
            return warning(name, f"{line.path} stands in PluginDir, which is not known", _ASK_SLURM)
    path = next((path for path in paths if path.exists()), paths[0])
    try:
        major, minor, _ = plugin_file.slurm_version(path)
    except PlugstackError as failure:
        return error(name, failure.message, failure.hint)
    built_for = f"{major}.{minor:02}"
    release = settings.version if settings is not None else None
    if release is not None and (major, minor) != release:
        running = f"{release[0]}.{release[1]:02}"
        hint = f"build it with the headers of {running}: make -C cli_filter clean install"
        return error(name, f"{path} is built for Slurm {built_for}, and {running} runs: it is not loaded", hint)
    return ok(name, f"{path}, for Slurm {built_for}")


def _option(patient: Patient) -> Line:
    """Ask srun itself whether it has the option: the proof that the plugin was loaded."""
    try:
        text = commands.run(["srun", "--help"], patient.slurm_conf)
    except SchedulerError as failure:
        return warning("--qpu", f"srun cannot be asked: {failure.message}", failure.hint)
    if "--qpu=" not in text:
        hint = "what does `srun -vvv --help` say of spank_qrmi.so? Can this user read it?"
        return error("--qpu", "srun does not know the option: it has not loaded the plugin", hint)
    return ok("--qpu", "srun has the option")


# --- Slurm's settings --------------------------------------------------------------------------------------


def clock(settings: SlurmSettings, asked_s: float) -> Iterable[Line]:
    """Compare this node's clock with slurmctld's.

    Args:
        settings: slurmctld's, with its time.
        asked_s: when it was asked by this clock; seconds since the epoch.
    """
    if settings.as_of is None:
        return
    apart_s = abs((settings.as_of - datetime.fromtimestamp(asked_s)).total_seconds())
    hint = "let chrony or systemd-timesyncd run on both"
    if apart_s >= _CLOCK_ERROR_S:
        yield error("clock", f"{apart_s:.0f} s apart from slurmctld's: munge refuses messages", hint)
    elif apart_s >= _CLOCK_WARNING_S:
        yield warning("clock", f"{apart_s:.0f} s apart from slurmctld's", hint)
    else:
        yield ok("clock", "as slurmctld's")


def prolog_flags(settings: SlurmSettings) -> Iterable[Line]:
    """Look at PrologFlags."""
    name = "PrologFlags"
    flags = settings.flags(name)
    shown = settings.text(name) or "not set"
    if not flags_.runs_at_start(flags):
        wanted = ",".join(flags_.wanted_flags(sorted(flags)))
        hint = f"PrologFlags={wanted}: else salloc holds no QPU before its first srun"
        yield warning(name, f"{shown}: Prolog runs at a job's first step on a node", hint)
    elif "serial" in flags:
        yield warning(name, f"{shown}: one Prolog at a time on a node", "leave Serial out: a QPU may take seconds")
    else:
        yield ok(name, shown)


def timeouts(settings: SlurmSettings, options: SiteOptions) -> Iterable[Line]:
    """Compare Slurm's times with ours: what Slurm kills at its time drains the node."""
    both = settings.seconds("PrologEpilogTimeout")
    acquire_s, release_s = options.acquire_timeout_s, options.release_timeout_s
    for setting, option, ours_s in (
        ("PrologTimeout", "--acquire-timeout", acquire_s),
        ("EpilogTimeout", "--release-timeout", release_s),
    ):
        limit_s = settings.seconds(setting) if settings.text(setting) else both
        used = setting if settings.text(setting) else f"PrologEpilogTimeout (for {setting.removesuffix('Timeout')})"
        if limit_s is None:
            yield ok(used, f"none; {option} is {ours_s:g} s")
        elif limit_s < (wanted_s := ours_s + flags_.GRACE_S):
            hint = f"{used.split()[0]}={wanted_s:.0f} or more, or a lower {option} on the plugin's line"
            message = f"{limit_s} s, and {option} is {ours_s:g} s: slurmd kills the hook and drains the node"
            yield error(used, message, hint)
        else:
            yield ok(used, f"{limit_s} s; {option} is {ours_s:g} s")
    message_s = settings.seconds("MessageTimeout")
    if message_s is not None:
        if message_s - _HUNG_BEFORE_S < acquire_s:
            hint = f"MessageTimeout={acquire_s + _HUNG_BEFORE_S + 1:.0f}, if that troubles users; it does no other harm"
            told_s = message_s - _HUNG_BEFORE_S
            yield warning("MessageTimeout", f"{message_s} s: users read `Prolog hung` after {told_s:g} s", hint)
        else:
            yield ok("MessageTimeout", f"{message_s} s; --acquire-timeout is {acquire_s:g} s")
    yield from _batch_start(settings, acquire_s)


def _batch_start(settings: SlurmSettings, acquire_s: float) -> Iterable[Line]:
    name = "BatchStartTimeout"
    limit_s = settings.seconds(name)
    if limit_s is None:
        return
    # slurmctld/job_mgr.c, _purge_missing_jobs(): a job in its Prolog is CONFIGURING with Alloc, and is passed over.
    wanted_s = flags_.start_timeout_s(acquire_s)
    if not flags_.step_waits(settings.flags("PrologFlags")):
        yield ok(name, f"{limit_s} s; with PrologFlags={settings.text('PrologFlags')} it does not count Prolog")
    elif limit_s < wanted_s:
        message = f"{limit_s} s: with a longer Prolog srun gives its step up, and a batch job may be taken for lost"
        yield warning(name, message, f"{name}={wanted_s} or more, in slurm.conf on all nodes")
    else:
        yield ok(name, f"{limit_s} s; --acquire-timeout is {acquire_s:g} s")


def _notices(options: SiteOptions, slurm_conf: Path) -> Mapping[str, str]:
    """Return why QPUs are out of service, by name; where it cannot be told, other lines say why."""
    try:
        resources = config_file.load(options.config_path).resources.values()
        return outage.notices(resources, reservations.read(slurm_conf).outages)
    except (ConfigError, SchedulerError):
        return {}


def sensor_line(last: Memory | None, now_s: float) -> Iterable[Line]:
    """Look at when the sensor ran last, on the node where it runs.

    Args:
        last: what its last run has left; None where it runs elsewhere, or nowhere.
        now_s: seconds since the epoch.
    """
    if last is None:
        return
    age_s = now_s - last.ran_s
    if age_s > memory.FRESH_S:
        hint = "systemctl status qrmi-slurm-sensor.timer; what it took out of service is back within an hour"
        yield warning("sensor", f"has not run for {age_s / 60:.0f} minutes: jobs of a QPU that is offline fail", hint)
    else:
        yield ok("sensor", f"ran {max(0.0, age_s):.0f} s ago")


def _node_count(slurm_conf: Path) -> int:
    try:
        text = commands.run(["sinfo", "--noheader", "--Node", "--format=%N"], slurm_conf)
    except SchedulerError:
        return 1
    return len(set(text.split()))


# --- the node ----------------------------------------------------------------------------------------------


def syslog(path: Path = _SYSLOG) -> Line:
    """Try to reach the syslog daemon, where the hooks' log goes.

    Args:
        path: its socket.
    """
    hint = "let journald or rsyslogd run: what the hooks did stands nowhere else"
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            return warning("syslog", f"{path} is no socket", hint)
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            with socket.socket(socket.AF_UNIX, kind) as connection:
                try:
                    connection.connect(str(path))
                    return ok("syslog", f"listens at {path}")
                except OSError as failure:
                    last = failure
    except OSError as failure:
        last = failure
    return warning("syslog", f"nobody listens at {path}: {last.strerror}", hint)
