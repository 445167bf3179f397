"""The reservations that keep licenses out of service: reading, creating, changing and deleting them in Slurm.

Slurm keeps them and we keep nothing, so they outlive everything of ours. A license that is out of service has one
reservation, `qpu_out_<license>`, of all that Slurm has of the license. The admin's switch and the sensor share it, and
its text (outage.py) says which of them made it. The text is the reservation's Comment; 22.05 has no Comment, so there
the text is in Features, which a reservation without nodes does not use.

Slurm refuses a reservation that would, at any time, reserve more of a license than exists
(src/slurmctld/reservation.c, _license_validate2(), 22.05 to 26.05). So there is one for both, and where the site has
reserved the license itself, for a course on Friday, ours is created for a minute after the course and then moved to
start now: Slurm does not compare an update of the times alone with other reservations.

The sensor's reservation ends after an hour unless it is renewed, so that a dead sensor keeps no QPU from jobs. An
admin's lasts as long as Slurm allows, a year. One that a failed start has made lasts five minutes, in which the sensor
looks at the QPU several times: it ends it, or renews it as its own. Without a sensor, the next job tries after that.

A session whose release has failed is still open at the service, and its job has given its license back. So the hooks
keep one of the license from other jobs with a reservation of its own, `qpu_held_<license>_...` (`hold`), until the
release is proven or the session has ended by itself.

A service may have fewer slots than Slurm has of its license (`"capacity": "auto"`). The sensor keeps the difference
from jobs with `qpu_less_<license>`, for a day, so that while nobody renews it no more jobs start than the service
takes. One of another number is created behind it, under another name, moved to now like an outage, and only then the
former one is deleted: in between, even for some milliseconds, no job too many may start.

Never send an update that Slurm could refuse: slurmctld, 22.05 to 26.05, then restores the reservation's licenses from a
copy that has lost their counts, and reserves none of them until it is restarted (_list_dup()).
"""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from qrmi_slurm.deadline import Deadline
from qrmi_slurm.errors import SchedulerError
from qrmi_slurm.outages import outage
from qrmi_slurm.outages.outage import Outage
from qrmi_slurm.slurm import commands, licenses
from qrmi_slurm.slurm.commands import RefusedError

PREFIX: Final = "qpu_out_"
HOLD_PREFIX: Final = "qpu_held_"
LESS_PREFIXES: Final = ("qpu_less_", "qpu_fewer_")

_SENSORS_MINUTES: Final = 60
_FAILED_STARTS_MINUTES: Final = 5
_LESS_MINUTES: Final = 24 * 60
_FOR_A_DAY: Final = f"EndTime=now+{_LESS_MINUTES}minutes"
_RENEWED_BELOW_S: Final = 30 * 60.0

# LICENSE_ONLY: no nodes are reserved. IGNORE_JOBS: running jobs keep their licenses.
_FLAGS: Final = "Flags=LICENSE_ONLY,IGNORE_JOBS"
_FOR_ROOT: Final = "Users=root"
_FROM_NOW: Final = "StartTime=now"
_FOR_A_YEAR: Final = "Duration=UNLIMITED"
_FOR_AN_HOUR: Final = f"EndTime=now+{_SENSORS_MINUTES}minutes"
_FOR_SOME_MINUTES: Final = f"EndTime=now+{_FAILED_STARTS_MINUTES}minutes"
_FOR_A_MINUTE: Final = "Duration=1"

# Between the end of the last other reservation and the minute for which ours is created.
_GAP_S: Final = 120.0

# scontrol's line for a reservation (src/api/reservation_info.c, 22.05 to 26.05). In ours no value but Features and
# Comment has a blank, and those two have no `=` (Outage.text).
_HEAD: Final = re.compile(r"ReservationName=(\S+) StartTime=(\d+) EndTime=(\d+) ")
_FEATURES: Final = re.compile(r" Features=(.*?) PartitionName=")
_LICENSES: Final = re.compile(r" Licenses=(\S+) State=")
_COMMENT: Final = re.compile(r" MaxStartDelay=\S+ Comment=(.*)$")

# scontrol's answers. The first is its own, on 22.05: slurmctld has not been asked then.
_NO_COMMENT: Final = "Unknown parameter Comment="
_ALL_RESERVED: Final = "Invalid license specification"
_NO_SUCH_RESERVATION: Final = "Requested reservation is invalid"
_EXISTS: Final = "Duplicate reservation name"
_NO_CONTROLLER: Final = "Unable to contact"


@dataclass(frozen=True, slots=True)
class Other:
    """A reservation that takes some of a license, other than for an outage: a site's own, or a hold.

    Args:
        name: the reservation's.
        begins_s: when it begins or has begun, in seconds since the epoch.
        ends_s: when it ends.
        text: its comment; empty if it has none. Users may have written it.
    """

    name: str
    begins_s: float
    ends_s: float
    text: str


@dataclass(frozen=True, slots=True)
class Less:
    """How many of a license are kept from jobs, because the service does not have them.

    Args:
        name: the reservation's.
        count: how many.
        ends_s: when Slurm ends the reservation by itself, in seconds since the epoch.
    """

    name: str
    count: int
    ends_s: float


@dataclass(frozen=True, slots=True)
class Reservations:
    """Slurm's reservations of licenses.

    Args:
        outages: ours, by license.
        less: those of licenses of which the service has fewer, by license; one each, unless one is being replaced.
        busy_until_s: when the last of the other reservations ends, by license; seconds since the epoch.
        others: those, by license.
    """

    outages: Mapping[str, Outage]
    busy_until_s: Mapping[str, float]
    others: Mapping[str, Sequence[Other]] = field(default_factory=dict)
    less: Mapping[str, Sequence[Less]] = field(default_factory=dict)


def read(slurm_conf: Path, timeout_s: float = 10.0) -> Reservations:
    """Return Slurm's reservations of licenses.

    Args:
        slurm_conf: Slurm's configuration file.
        timeout_s: how long slurmctld may take, in seconds.

    Raises:
        SchedulerError: slurmctld cannot be asked.
    """
    command = ["scontrol", "show", "reservations", "--oneliner"]
    return parse(commands.run(command, slurm_conf, timeout_s, time_format="%s"))


def parse(text: str) -> Reservations:
    """Return the reservations in scontrol's output, which has its times in seconds since the epoch."""
    outages: dict[str, Outage] = {}
    busy_until_s: dict[str, float] = {}
    others: dict[str, list[Other]] = {}
    less: dict[str, list[Less]] = {}
    for line in text.splitlines():
        head, held = _HEAD.match(line), _LICENSES.search(line)
        counts = licenses.parse_counts(held[1]) if held else None
        if head is None or not counts:
            continue
        name, begins_s, ends_s = head[1], float(head[2]), float(head[3])
        said = _COMMENT.search(line) or _FEATURES.search(line)
        text = said[1] if said else ""
        license = name.removeprefix(PREFIX)
        if license != name and list(counts) == [license]:
            outages[license] = outage.from_text(license, counts[license], text, ends_s, begins_s)
        else:
            prefix = next((prefix for prefix in LESS_PREFIXES if name.startswith(prefix)), None)
            if prefix is not None and list(counts) == [name.removeprefix(prefix)]:
                less.setdefault(name.removeprefix(prefix), []).append(Less(name, sum(counts.values()), ends_s))
            other = Other(name, begins_s, ends_s, "" if text == outage.NO_VALUE else text)
            for held_license in counts:
                busy_until_s[held_license] = max(busy_until_s.get(held_license, 0.0), ends_s)
                others.setdefault(held_license, []).append(other)
    return Reservations(outages, busy_until_s, others, less)


def put(wanted: Outage, found: Reservations, slurm_conf: Path, now_s: float) -> bool:
    """Take a license out of service, or change why it is; running jobs keep what they have.

    Args:
        wanted: the outage as it is to be.
        found: Slurm's reservations now.
        slurm_conf: Slurm's configuration file.
        now_s: seconds since the epoch.

    Returns:
        Whether anything had to be done.

    Raises:
        SchedulerError: Slurm refused, or cannot be asked.
    """
    before = found.outages.get(wanted.license)
    if before is not None and before.count == wanted.count:
        if before.matches(wanted):
            return _renew(before, slurm_conf, now_s)
        if _change_text(wanted, slurm_conf):
            return True
        if before.is_of_job and not wanted.is_drained:  # 22.05: the gap below is not worth another word for it
            return _renew(before, slurm_conf, now_s)
    if before is not None:
        # For some milliseconds a job could start; slurmctld looks for one once a second at most.
        remove(wanted.license, slurm_conf)
    try:
        _make(wanted, found, slurm_conf, now_s)
    except RefusedError:
        found = read(slurm_conf)
        if before is not None or wanted.license not in found.outages:
            raise
        return put(wanted, found, slurm_conf, now_s)  # the Prolog of a job has just made one
    return True


def put_new(wanted: Outage, found: Reservations, slurm_conf: Path, deadline: Deadline) -> bool:
    """Take a license out of service unless it is already, whoever has done so: nothing that exists is changed.

    Any number of nodes may do so at the same time: Slurm makes one of their reservations and refuses the others.

    Args:
        wanted: the outage.
        found: Slurm's reservations a moment ago.
        slurm_conf: Slurm's configuration file.
        deadline: slurmctld has to have answered by then.

    Returns:
        Whether this call did it.

    Raises:
        SchedulerError: Slurm refused, or cannot be asked.
    """
    if wanted.license in found.outages:
        return False
    try:
        _make(wanted, found, slurm_conf, time.time(), deadline)
    except RefusedError as error:
        if _EXISTS not in error.stderr and wanted.license not in read(slurm_conf, deadline.call_s).outages:
            raise
        return False
    return True


def remove(license: str, slurm_conf: Path) -> None:
    """Put a license back into service; does nothing if it is in service.

    Raises:
        SchedulerError: Slurm refused, or cannot be asked.
    """
    try:
        _scontrol(["delete", _name_word(license)], slurm_conf)
    except RefusedError as error:
        if _NO_SUCH_RESERVATION not in error.stderr:
            raise


def keep_back(license: str, count: int, found: Reservations, text: str, slurm_conf: Path, now_s: float) -> bool:
    """Keep some of a license from jobs because the service has fewer; running jobs keep what they have.

    Args:
        license: the license.
        count: how many; 0 for none.
        found: Slurm's reservations now.
        text: why; without `=`.
        slurm_conf: Slurm's configuration file.
        now_s: seconds since the epoch.

    Returns:
        Whether the number has changed.

    Raises:
        SchedulerError: Slurm refused, or cannot be asked.
    """
    before = found.less.get(license, ())
    kept = next((one for one in before if one.count == count), None)
    if kept is not None and kept.ends_s - now_s < _LESS_MINUTES * 30:
        _scontrol(["update", f"ReservationName={kept.name}", _FOR_A_DAY], slurm_conf)
    elif kept is None and count:
        if len(before) == len(LESS_PREFIXES):  # a run has ended between the two
            let_go(before[0].name, slurm_conf, None)
        taken = {one.name for one in before[-1:]}
        name = next(name for name in (f"{prefix}{license}" for prefix in LESS_PREFIXES) if name not in taken)
        _create_less(name, license, count, found.busy_until_s.get(license, 0.0) - now_s, text, slurm_conf)
        before = before[-1:]
    for one in before:
        if one is not kept:
            let_go(one.name, slurm_conf, None)
    return bool(before or count) and (kept is None or len(before) > 1)


def _create_less(name: str, license: str, count: int, busy_s: float, text: str, slurm_conf: Path) -> None:
    """Create a reservation that begins now, whatever others there are; the one before is among them."""
    words = [f"ReservationName={name}", f"Licenses={license}:{count}", _FOR_ROOT, _FLAGS]
    try:
        _create_with_text([*words, _FROM_NOW, _FOR_A_DAY], text, slurm_conf)
    except RefusedError as error:
        if _ALL_RESERVED not in error.stderr or busy_s < 0:
            raise
        _create_with_text([*words, f"StartTime=now+{busy_s + _GAP_S:.0f}", _FOR_A_MINUTE], text, slurm_conf)
        _scontrol(["update", f"ReservationName={name}", _FROM_NOW, _FOR_A_DAY], slurm_conf)


def hold(name: str, license: str, seconds: float, text: str, slurm_conf: Path, timeout_s: float) -> bool:
    """Keep one of a license from jobs, or go on doing so, by a reservation of its own.

    Args:
        name: the reservation's, which begins with HOLD_PREFIX.
        license: the license.
        seconds: for how long from now; then Slurm ends it by itself.
        text: why; without `=`.
        slurm_conf: Slurm's configuration file.
        timeout_s: how long slurmctld may take for each answer, in seconds.

    Returns:
        Whether that is done; False where all that Slurm has of the license is out of service anyway.

    Raises:
        SchedulerError: Slurm refused, or cannot be asked.
    """
    end = f"EndTime=now+{max(seconds, 60.0):.0f}seconds"
    words = [f"ReservationName={name}", f"Licenses={license}:1", _FOR_ROOT, _FLAGS, _FROM_NOW, end]
    try:
        _create_with_text(words, text, slurm_conf, timeout_s)
    except RefusedError as error:
        if _EXISTS in error.stderr:
            _scontrol(["update", f"ReservationName={name}", end], slurm_conf, timeout_s)
            return True
        if _ALL_RESERVED not in error.stderr:
            raise
        return False
    return True


def let_go(name: str, slurm_conf: Path, timeout_s: float | None) -> None:
    """End a hold; does nothing if it has ended.

    Raises:
        SchedulerError: Slurm refused, or cannot be asked.
    """
    try:
        _scontrol(["delete", f"ReservationName={name}"], slurm_conf, timeout_s)
    except RefusedError as error:
        if _NO_SUCH_RESERVATION not in error.stderr:
            raise


def explain(error: SchedulerError) -> str:
    """Return the sentence for an error of `put` or `remove`.

    The hint, to see whether slurmctld is running, is left out where slurmctld has answered.
    """
    is_answer = isinstance(error, RefusedError) and _NO_CONTROLLER not in error.stderr
    return error.message if is_answer else str(error)


def _renew(before: Outage, slurm_conf: Path, now_s: float) -> bool:
    """Extend a reservation of the sensor's, or of a failed start, that ends soon; tell whether that was so."""
    ends_soon = not before.is_drained and before.ends_s - now_s < _RENEWED_BELOW_S
    if ends_soon:
        _scontrol(["update", _name_word(before.license), _FOR_AN_HOUR], slurm_conf)
    return ends_soon


def _change_text(wanted: Outage, slurm_conf: Path) -> bool:
    """Give a reservation another text and lifetime; tell whether this Slurm can, which 22.05 cannot."""
    words = [_name_word(wanted.license), f"Comment={wanted.text}", _lifetime(wanted)]
    try:
        _scontrol(["update", *words], slurm_conf)
    except RefusedError as error:
        if _NO_COMMENT not in error.stderr:
            raise
        return False
    return True


def _make(
    wanted: Outage, found: Reservations, slurm_conf: Path, now_s: float, deadline: Deadline | None = None
) -> None:
    """Create a reservation that begins now.

    Args:
        wanted: the outage.
        found: Slurm's reservations now.
        slurm_conf: Slurm's configuration file.
        now_s: seconds since the epoch.
        deadline: slurmctld has to have answered by then; None for the usual time per answer.
    """
    try:
        _create(wanted, [_FROM_NOW, _lifetime(wanted)], slurm_conf, deadline)
    except RefusedError as error:
        busy_s = found.busy_until_s.get(wanted.license, 0.0) - now_s
        if _ALL_RESERVED not in error.stderr or busy_s < 0:
            raise
        _create_behind_others(wanted, busy_s, slurm_conf, deadline)


def _create_behind_others(wanted: Outage, busy_s: float, slurm_conf: Path, deadline: Deadline | None) -> None:
    """Create a reservation for a time at which nobody else has the license, then move it to now.

    Args:
        wanted: the outage.
        busy_s: in how many seconds the last other reservation ends.
        slurm_conf: Slurm's configuration file.
        deadline: as for `_make`.
    """
    _create(wanted, [f"StartTime=now+{busy_s + _GAP_S:.0f}", _FOR_A_MINUTE], slurm_conf, deadline)
    try:
        words = ["update", _name_word(wanted.license), _FROM_NOW, _lifetime(wanted)]
        _scontrol(words, slurm_conf, _timeout_s(deadline))
    except SchedulerError:
        remove(wanted.license, slurm_conf)
        raise


def _create(wanted: Outage, times: list[str], slurm_conf: Path, deadline: Deadline | None) -> None:
    words = [_name_word(wanted.license), f"Licenses={wanted.license}:{wanted.count}", _FOR_ROOT, _FLAGS, *times]
    _create_with_text(words, wanted.text, slurm_conf, _timeout_s(deadline))


def _create_with_text(words: list[str], text: str, slurm_conf: Path, timeout_s: float | None = None) -> None:
    try:
        _scontrol(["create", "reservation", *words, f"Comment={text}"], slurm_conf, timeout_s)
    except RefusedError as error:
        if _NO_COMMENT not in error.stderr:
            raise
        _scontrol(["create", "reservation", *words, f"Features={text}"], slurm_conf, timeout_s)


def _name_word(license: str) -> str:
    return f"ReservationName={PREFIX}{license}"


def _lifetime(wanted: Outage) -> str:
    if wanted.is_drained:
        return _FOR_A_YEAR
    return _FOR_SOME_MINUTES if wanted.is_of_job else _FOR_AN_HOUR


def _timeout_s(deadline: Deadline | None) -> float | None:
    return deadline.call_s if deadline is not None else None


def _scontrol(words: list[str], slurm_conf: Path, timeout_s: float | None = None) -> None:
    commands.run(["scontrol", *words], slurm_conf, timeout_s)
