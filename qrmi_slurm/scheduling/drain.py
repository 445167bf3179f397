"""The admin's switch: takes QPUs out of service with a reason, and puts them back; running jobs keep theirs."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from qrmi_slurm.config.config_file import Resource
from qrmi_slurm.errors import QrmiSlurmError, SchedulerError
from qrmi_slurm.outages import reservations
from qrmi_slurm.outages.reservations import Outage
from qrmi_slurm.scheduling import sensor
from qrmi_slurm.scheduling.sensor import Place
from qrmi_slurm.slurm import licenses
from qrmi_slurm.slurm.licenses import License
from qrmi_slurm.text import near_match, printable

_MAX_NAMES: Final = 20
_MAX_MESSAGE_CHARS: Final = 400


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one license.

    Args:
        qpus: the QPUs behind it.
        license: its name.
        is_changed: whether anything was done.
        notice: why it is out of service now; empty where it is in service.
        running: how many of it running jobs have, which they keep.
        fault: why it could not be done; empty where it was.
    """

    qpus: tuple[str, ...]
    license: str
    is_changed: bool
    notice: str
    running: int
    fault: str = ""


@dataclass(frozen=True, slots=True)
class Order:
    """What an admin wants.

    Args:
        names: of QPUs; at least one.
        reason: why they go out of service; None, and they are put back.
        by: the admin's login name.
        with_others: also where others share the license that were not named.
    """

    names: tuple[str, ...]
    reason: str | None
    by: str = ""
    with_others: bool = False


def carry_out(order: Order, resources: Sequence[Resource], place: Place) -> list[Result]:
    """Take QPUs out of service, or put them back.

    Args:
        order: what is wanted.
        resources: of the config.
        place: where.

    Returns:
        What came of each license.

    Raises:
        QrmiSlurmError: the order cannot be carried out at all, or Slurm cannot be asked; nothing was done.
    """
    named = _named(order.names, resources, place)
    known = licenses.read(place.slurm_conf)
    behind = sensor.by_license(resources, known)
    wanted = dict.fromkeys(_license_of(resource, known, place) for resource in named)
    for license in wanted:
        others = [name for name in behind[license] if name not in order.names]
        if others and not order.with_others:
            together = "go out of service" if order.reason is not None else "are put back"
            mine = ", ".join(name for name in behind[license] if name in order.names)
            message = f"{mine} and {', '.join(others)} share the license {license}: they {together} together"
            raise QrmiSlurmError(printable(message, _MAX_MESSAGE_CHARS), "name them all, or say --yes")
    with sensor.changing(place.state_dir):
        found = reservations.read(place.slurm_conf)
        results = [_one(order, known[license], behind[license], found, place) for license in wanted]
        outages = reservations.read(place.slurm_conf).outages
    sensor.announce(resources, place, None, reservations.notices(resources, outages))
    return results


def _license_of(resource: Resource, known: Mapping[str, License], place: Place) -> str:
    license = resource.slurm.license
    if license is None:
        raise QrmiSlurmError(
            f'{resource.name} has "license": null, so there is nothing that its jobs could wait for',
            f"let it have one in {place.options.config_path}, and add it to Licenses= in slurm.conf",
        )
    if license not in known:
        raise QrmiSlurmError(
            f"Slurm has no license {license}, so there is nothing that the jobs of {resource.name} could wait for",
            "add it to Licenses= in slurm.conf (see: qrmi-slurm slurm-conf), then: scontrol reconfigure",
        )
    return license


def _one(
    order: Order, license: License, names: Sequence[str], found: reservations.Reservations, place: Place
) -> Result:
    before = found.outages.get(license.name)
    now_s = time.time()
    wanted: Outage | None = None
    if order.reason is not None:
        since = time.strftime("%Y-%m-%dT%H:%M", time.localtime(now_s))
        wanted = Outage(license.name, license.total, True, order.reason, order.by, since)
    elif before is not None:
        # What was drained may be offline by now: jobs that began before the sensor's next run would fail.
        state = sensor.recall(place.state_dir, now_s).offline.get(license.name) if before.is_drained else before.reason
        wanted = Outage(license.name, license.total, False, state) if state else None
    fault, is_changed = "", False
    try:
        if wanted is not None:
            is_changed = reservations.put(wanted, found, place.slurm_conf, now_s)
        elif before is not None:
            reservations.remove(license.name, place.slurm_conf)
            is_changed = True
    except SchedulerError as error:
        wanted, fault = before, reservations.in_words(error)
    return Result(tuple(names), license.name, is_changed, wanted.notice if wanted else "", license.used, fault)


def _named(names: Sequence[str], resources: Sequence[Resource], place: Place) -> list[Resource]:
    by_name = {resource.name: resource for resource in resources}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        shown = []
        for name in unknown:
            near = near_match(name, by_name)
            shown.append(printable(name) + (f" (did you mean {printable(near)}?)" if near else ""))
        known = [printable(name) for name in list(by_name)[:_MAX_NAMES]]
        more = f", ... and {len(by_name) - _MAX_NAMES} more" if len(by_name) > _MAX_NAMES else ""
        raise QrmiSlurmError(
            f"not known at this site: {', '.join(shown)}; known are: {', '.join(known)}{more}",
            f"see: {place.options.config_path}",
        )
    return [by_name[name] for name in dict.fromkeys(names)]
