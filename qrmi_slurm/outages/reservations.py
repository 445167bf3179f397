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
admin's lasts as long as Slurm allows, a year.

A session whose release has failed is still open at the service, and its job has given its license back. So the hooks
keep one of the license from other jobs with a reservation of its own, `qpu_held_<license>_...` (`hold`), until the
release is proven or the session has ended by itself.

Never send an update that Slurm could refuse: slurmctld, 22.05 to 26.05, then restores the reservation's licenses from a
copy that has lost their counts, and reserves none of them until it is restarted (_list_dup()).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qrmi_slurm.errors import SchedulerError
from qrmi_slurm.outages import outage
from qrmi_slurm.outages.outage import Outage
from qrmi_slurm.slurm import commands, licenses
from qrmi_slurm.slurm.commands import RefusedError

PREFIX: Final = "qpu_out_"
HOLD_PREFIX: Final = "qpu_held_"

_SENSORS_MINUTES: Final = 60
_RENEWED_BELOW_S: Final = 30 * 60.0

# LICENSE_ONLY: no nodes are reserved. IGNORE_JOBS: running jobs keep their licenses.
_FLAGS: Final = "Flags=LICENSE_ONLY,IGNORE_JOBS"
_FOR_ROOT: Final = "Users=root"
_FROM_NOW: Final = "StartTime=now"
_FOR_A_YEAR: Final = "Duration=UNLIMITED"
_FOR_AN_HOUR: Final = f"EndTime=now+{_SENSORS_MINUTES}minutes"
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
class Reservations:
    """Slurm's reservations of licenses.

    Args:
        outages: ours, by license.
        busy_until_s: when the last of the other reservations ends, by license; seconds since the epoch.
    """

    outages: Mapping[str, Outage]
    busy_until_s: Mapping[str, float]


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
    for line in text.splitlines():
        head, held = _HEAD.match(line), _LICENSES.search(line)
        counts = licenses.parse_counts(held[1]) if held else None
        if head is None or not counts:
            continue
        name, ends_s = head[1], float(head[3])
        license = name.removeprefix(PREFIX)
        if license != name and list(counts) == [license]:
            said = _COMMENT.search(line) or _FEATURES.search(line)
            outages[license] = outage.from_text(license, counts[license], said[1] if said else "", ends_s)
        else:
            for held_license in counts:
                busy_until_s[held_license] = max(busy_until_s.get(held_license, 0.0), ends_s)
    return Reservations(outages, busy_until_s)


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
    if before is not None:
        # For some milliseconds a job could start; slurmctld looks for one once a second at most.
        remove(wanted.license, slurm_conf)
    try:
        _create(wanted, [_FROM_NOW, _lifetime(wanted)], slurm_conf)
    except RefusedError as error:
        busy_s = found.busy_until_s.get(wanted.license, 0.0) - now_s
        if _ALL_RESERVED not in error.stderr or busy_s < 0:
            raise
        _create_behind_others(wanted, busy_s, slurm_conf)
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


def let_go(name: str, slurm_conf: Path, timeout_s: float) -> None:
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
    """Extend a reservation of the sensor's that ends soon; tell whether that was so."""
    ends_soon = not before.is_drained and before.ends_s - now_s < _RENEWED_BELOW_S
    if ends_soon:
        _scontrol(["update", _name_word(before.license), _lifetime(before)], slurm_conf)
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


def _create_behind_others(wanted: Outage, busy_s: float, slurm_conf: Path) -> None:
    """Create a reservation for a time at which nobody else has the license, then move it to now.

    Args:
        wanted: the outage.
        busy_s: in how many seconds the last other reservation ends.
        slurm_conf: Slurm's configuration file.
    """
    _create(wanted, [f"StartTime=now+{busy_s + _GAP_S:.0f}", _FOR_A_MINUTE], slurm_conf)
    try:
        _scontrol(["update", _name_word(wanted.license), _FROM_NOW, _lifetime(wanted)], slurm_conf)
    except SchedulerError:
        remove(wanted.license, slurm_conf)
        raise


def _create(wanted: Outage, times: list[str], slurm_conf: Path) -> None:
    words = [_name_word(wanted.license), f"Licenses={wanted.license}:{wanted.count}", _FOR_ROOT, _FLAGS, *times]
    _create_with_text(words, wanted.text, slurm_conf)


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
    return _FOR_A_YEAR if wanted.is_drained else _FOR_AN_HOUR


def _scontrol(words: list[str], slurm_conf: Path, timeout_s: float | None = None) -> None:
    commands.run(["scontrol", *words], slurm_conf, timeout_s)
