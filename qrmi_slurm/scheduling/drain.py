"""The switch: an admin takes QPUs out of service with a reason, and puts them back; running jobs keep theirs."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from qrmi_slurm.config.config_file import Resource
from qrmi_slurm.errors import QrmiSlurmError, SchedulerError
from qrmi_slurm.outages import outage, reservations
from qrmi_slurm.outages.outage import Outage
from qrmi_slurm.outages.reservations import Reservations
from qrmi_slurm.scheduling import memory
from qrmi_slurm.scheduling.site import Site, announce, by_license, changing
from qrmi_slurm.slurm import licenses
from qrmi_slurm.slurm.licenses import License
from qrmi_slurm.text import printable, unknown_names

_MAX_MESSAGE_CHARS: Final = 400


@dataclass(frozen=True, slots=True)
class Order:
    """What an admin wants.

    Args:
        names: the QPUs; at least one.
        reason: why they go out of service; None to put them back.
        by: the admin's login name.
        with_others: go on although QPUs that were not named share a license with these.
    """

    names: tuple[str, ...]
    reason: str | None
    by: str = ""
    with_others: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """What an order did to one license.

    Args:
        qpus: the QPUs behind it.
        license: its name.
        is_changed: whether anything changed.
        notice: why it is out of service now; empty if it is in service.
        running: how many of it running jobs have, which keep them.
        fault: why Slurm did not do it; empty if it did.
    """

    qpus: tuple[str, ...]
    license: str
    is_changed: bool
    notice: str
    running: int
    fault: str = ""


def carry_out(order: Order, resources: Sequence[Resource], site: Site) -> list[Result]:
    """Take QPUs out of service, or put them back.

    Args:
        order: what the admin wants.
        resources: those of the config.
        site: where.

    Returns:
        A result for each license.

    Raises:
        QrmiSlurmError: a name cannot be switched, or Slurm cannot be asked; nothing was changed.
    """
    named = _named(order.names, resources, site)
    known = licenses.read(site.slurm_conf)
    behind = by_license(resources, known)
    wanted = dict.fromkeys(_license_of(resource, known, site) for resource in named)
    for license in wanted:
        _check_others(order, license, behind[license])
    with changing(site):
        found = reservations.read(site.slurm_conf)
        results = [_switch(order, known[license], behind[license], found, site) for license in wanted]
        outages = reservations.read(site.slurm_conf).outages
    announce(resources, site, None, outage.notices(resources, outages))
    return results


def _named(names: Sequence[str], resources: Sequence[Resource], site: Site) -> list[Resource]:
    """Return the resources that an order names, each once."""
    by_name = {resource.name: resource for resource in resources}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise QrmiSlurmError(unknown_names(unknown, by_name), f"see: {site.options.config_path}")
    return [by_name[name] for name in dict.fromkeys(names)]


def _license_of(resource: Resource, known: Mapping[str, License], site: Site) -> str:
    """Return the license of a resource, if Slurm has it."""
    license = resource.slurm.license
    if license is None:
        raise QrmiSlurmError(
            f'{resource.name} has "license": null, so its jobs have no license to wait for',
            f"give it a license in {site.options.config_path}, and add that to Licenses= in slurm.conf",
        )
    if license not in known:
        raise QrmiSlurmError(
            f"Slurm has no license {license}, so jobs of {resource.name} have nothing to wait for",
            "add it to Licenses= in slurm.conf (see: qrmi-slurm slurm-conf), then run: scontrol reconfigure",
        )
    return license


def _check_others(order: Order, license: str, behind: Sequence[str]) -> None:
    """Refuse an order that would switch QPUs it does not name, unless the admin has agreed to that."""
    others = [name for name in behind if name not in order.names]
    if not others or order.with_others:
        return
    mine = ", ".join(name for name in behind if name in order.names)
    together = "go out of service" if order.reason is not None else "come back"
    message = f"{mine} and {', '.join(others)} share the license {license}: they {together} together"
    raise QrmiSlurmError(printable(message, _MAX_MESSAGE_CHARS), "name them all, or add --yes")


def _switch(order: Order, license: License, names: Sequence[str], found: Reservations, site: Site) -> Result:
    """Switch one license.

    Args:
        order: what the admin wants.
        license: the license, as Slurm has it.
        names: the QPUs behind it.
        found: Slurm's reservations now.
        site: where.
    """
    before = found.outages.get(license.name)
    now_s = time.time()
    wanted = _wanted(order, license, before, site, now_s)
    fault, is_changed = "", False
    try:
        if wanted is not None:
            is_changed = reservations.put(wanted, found, site.slurm_conf, now_s)
        elif before is not None:
            reservations.remove(license.name, site.slurm_conf)
            is_changed = True
    except SchedulerError as error:
        wanted, fault = before, reservations.explain(error)
    return Result(tuple(names), license.name, is_changed, wanted.notice if wanted else "", license.used, fault)


def _wanted(order: Order, license: License, before: Outage | None, site: Site, now_s: float) -> Outage | None:
    """Return the outage that a license is to have; None for in service.

    Resuming a license that an admin or a failed start has taken out of service, and whose service the sensor last saw
    offline, leaves it out of service for the sensor's reason: jobs that started before its next run would fail.
    """
    if order.reason is not None:
        since = time.strftime("%Y-%m-%dT%H:%M", time.localtime(now_s))
        return Outage(license.name, license.total, True, order.reason, order.by, since)
    if before is None:
        return None
    is_sensors = not (before.is_drained or before.is_of_job)
    state = before.reason if is_sensors else memory.recall(site.state_dir, now_s).offline.get(license.name)
    return Outage(license.name, license.total, False, state) if state else None
