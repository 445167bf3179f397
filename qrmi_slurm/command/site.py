"""The site that a sub-command works on: slurm.conf, the plugin's options, the config's resources, Slurm's jobs."""

import os
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from qrmi_slurm.errors import SchedulerError
from qrmi_slurm.names import SLURM_CONF, SLURMD_NODENAME
from qrmi_slurm.slurm import conf_file, plugstack

if TYPE_CHECKING:
    from qrmi_slurm.config.config_file import Resource
    from qrmi_slurm.hooks.recover import World
    from qrmi_slurm.outages.reservations import Less
    from qrmi_slurm.slurm.jobs import Job
    from qrmi_slurm.slurm.licenses import License

_NOTICES_TIMEOUT_S: Final = 3.0  # scontrol itself retries for 9 s when slurmctld is down


def slurm_conf() -> Path:
    """Return the path of slurm.conf: from the environment, the usual one, or slurmd's copy on a configless node."""
    return Path(os.environ.get(SLURM_CONF) or conf_file.on_this_node() or conf_file.DEFAULT_SLURM_CONF)


def options(state_dir: Path | None = None) -> plugstack.SiteOptions:
    """Return the options of the plugin's line; if there is no slurm.conf, print a warning and return their defaults.

    Args:
        state_dir: overrides the state directory; relative to the working directory.
    """
    found = plugstack.read(slurm_conf())
    if not os.environ.get(SLURM_CONF) and conf_file.on_this_node() is None:
        what = "there is no slurm.conf on this node, so the defaults of all options apply"
        sys.stderr.write(f"warning: {what}; on a configless node, slurmd has to be running\n")
    return found if state_dir is None else found._replace(state_dir=state_dir.absolute())


def resources(config_path: Path, slots_licenses: Mapping[str, str] = MappingProxyType({})) -> "list[Resource]":
    """Return the resources of a config.

    Args:
        config_path: the config.
        slots_licenses: the licenses that count the resources' slots, from the plugin's line.

    Raises:
        ConfigError: the config cannot be used.
    """
    from qrmi_slurm.config import config_file

    return list(config_file.with_slots(config_file.load(config_path).resources, slots_licenses).values())


def here() -> "World":
    """Return what is known without asking Slurm: its cluster's name, and this node's boot id."""
    from qrmi_slurm.hooks.recover import World
    from qrmi_slurm.state import record

    node = os.environ.get(SLURMD_NODENAME) or os.uname().nodename.partition(".")[0]
    return World(conf_file.cluster_name(slurm_conf()), {}, {node: record.boot_id()})


def jobs(job_ids: Collection[int]) -> "Mapping[int, Job] | None":
    """Ask Slurm for jobs; None if it cannot be asked."""
    from qrmi_slurm.slurm import jobs

    return jobs.jobs(job_ids, slurm_conf())


def counts() -> "tuple[Mapping[str, License], Mapping[str, Sequence[Less]]]":
    """Return Slurm's licenses, and how many of them the services do not have; nothing if Slurm does not answer."""
    from qrmi_slurm.outages import reservations
    from qrmi_slurm.slurm import licenses

    try:
        known = licenses.read(slurm_conf(), _NOTICES_TIMEOUT_S)
        return known, reservations.read(slurm_conf(), _NOTICES_TIMEOUT_S).less
    except SchedulerError:  # `notices` has said so
        return {}, {}


def notices(found: "Sequence[Resource]") -> dict[str, str]:
    """Return why QPUs are out of service, by name; if Slurm does not answer, print a warning and return nothing."""
    from qrmi_slurm.outages import outage, reservations

    try:
        return outage.notices(found, reservations.read(slurm_conf(), _NOTICES_TIMEOUT_S).outages)
    except SchedulerError as error:
        sys.stderr.write(f"warning: cannot tell which QPUs are drained: {error.message}\n")
        return {}
