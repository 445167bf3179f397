"""The doctor: checks everything that the hooks depend on, as seen from this node.

It changes nothing, except that it creates and removes one file in the state directory.
"""

import os
import socket
import stat
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qrmi_slurm.checks import (
    config_checks,
    hook_checks,
    license_checks,
    plugin_checks,
    settings_checks,
    state_checks,
)
from qrmi_slurm.checks.installation import Installation
from qrmi_slurm.checks.result import Result, error, ok, warning
from qrmi_slurm.config import config_file
from qrmi_slurm.errors import ConfigError, SchedulerError
from qrmi_slurm.outages import outage, reservations
from qrmi_slurm.scheduling import memory
from qrmi_slurm.scheduling.memory import Memory
from qrmi_slurm.slurm import commands
from qrmi_slurm.slurm.plugstack import SiteOptions
from qrmi_slurm.slurm.settings import SlurmSettings, ask

_SYSLOG: Final = Path("/dev/log")

# For checks that need slurmctld's answer and do not have it.
_FIX_SLURM: Final = "fix the Slurm error above, then rerun"


@dataclass(frozen=True, slots=True)
class Patient:
    """What is examined.

    Args:
        slurm_conf: Slurm's configuration file.
        installation: the installation whose hooks Slurm should run.
        is_login_node: check only what login nodes need.
    """

    slurm_conf: Path
    installation: Installation
    is_login_node: bool = False


def examine(patient: Patient, tell: Callable[[str], None] = lambda what: None) -> list[Result]:
    """Run all checks.

    Args:
        patient: what is examined.
        tell: is called with what is being done, to show it on a terminal.
    """
    tell("asking Slurm")
    results = list(settings_checks.check_slurm_conf(patient.slurm_conf))
    settings, slurm_results = _ask_slurm(patient.slurm_conf)
    results += slurm_results
    tell("checking the plugin")
    options, plugin_results = plugin_checks.run(patient.slurm_conf, settings, _FIX_SLURM)
    results += plugin_results
    if patient.is_login_node:
        return results
    tell("checking the hooks")
    if settings is None:
        results.append(warning("hooks", "Prolog, TaskProlog and Epilog were not checked", _FIX_SLURM))
    else:
        results += hook_checks.run(settings, patient.installation, options.task_prolog if options is not None else None)
        results += settings_checks.check_prolog_flags(settings)
        if options is not None:
            results += settings_checks.check_timeouts(settings, options)
            results += settings_checks.check_requeue(settings, options)
    if options is not None:
        tell("checking the config and the state directory")
        results += _check_site(patient.slurm_conf, settings, options)
    results.append(check_syslog())
    if os.geteuid() != 0:
        results.append(warning("root", "this user cannot see everything that the hooks see", "run this as root"))
    return results


def _ask_slurm(slurm_conf: Path) -> tuple[SlurmSettings | None, list[Result]]:
    """Return Slurm's settings, None if slurmctld does not answer; and the results."""
    name = "Slurm"
    asked_s = time.time()
    try:
        settings = ask(slurm_conf)
    except SchedulerError as failure:
        return None, [error(name, f"cannot query slurmctld: {failure.message}", failure.hint)]
    version = ok(name, settings.text("SLURM_VERSION") or "unknown version")
    return settings, [version, *settings_checks.check_clock(settings, asked_s)]


def _check_site(slurm_conf: Path, settings: SlurmSettings | None, options: SiteOptions) -> Iterator[Result]:
    """Check what belongs to the site: config, licenses, state directory, sensor."""
    yield from config_checks.run(options)
    if settings is not None:
        yield from license_checks.run(settings, options, slurm_conf, _notices(options, slurm_conf))
    yield from state_checks.run(options, settings, slurm_conf, _node_count(slurm_conf))
    yield from check_sensor(memory.last_run(options.state_dir), time.time())


def _notices(options: SiteOptions, slurm_conf: Path) -> Mapping[str, str]:
    """Return why QPUs are out of service, by name; empty if that is unknown, which other results explain."""
    try:
        resources = config_file.load(options.config_path).resources.values()
        return outage.notices(resources, reservations.read(slurm_conf).outages)
    except (ConfigError, SchedulerError):
        return {}


def _node_count(slurm_conf: Path) -> int:
    """Return how many nodes the cluster has; 1 if that is unknown."""
    try:
        text = commands.run(["sinfo", "--noheader", "--Node", "--format=%N"], slurm_conf)
    except SchedulerError:
        return 1
    return len(set(text.split()))


def check_sensor(last: Memory | None, now_s: float) -> Iterator[Result]:
    """Check when the sensor last ran, on the node where it runs.

    Args:
        last: what its last run stored; None if it does not run on this node.
        now_s: seconds since the epoch.
    """
    if last is None:
        return
    age_s = now_s - last.ran_s
    if age_s > memory.FRESH_S:
        message = f"has not run for {age_s / 60:.0f} minutes: jobs fail when their QPU is offline"
        hint = "run systemctl status qrmi-slurm-sensor.timer; QPUs that it took out of service return within an hour"
        yield warning("sensor", message, hint)
    else:
        yield ok("sensor", f"ran {max(0.0, age_s):.0f} s ago")


def check_syslog(path: Path = _SYSLOG) -> Result:
    """Try to connect to the syslog daemon, which receives the hooks' log.

    Args:
        path: its socket.
    """
    name = "syslog"
    hint = "start journald or rsyslogd; the hooks log nowhere else"
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            return warning(name, f"{path} is not a socket", hint)
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            with socket.socket(socket.AF_UNIX, kind) as connection:
                try:
                    connection.connect(str(path))
                    return ok(name, f"listens at {path}")
                except OSError as failure:
                    last = failure
    except OSError as failure:
        last = failure
    return warning(name, f"no daemon listens at {path}: {last.strerror}", hint)
