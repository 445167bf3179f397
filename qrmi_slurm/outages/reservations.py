"""The reservations that take a QPU's license out of service, so that jobs wait for it: Slurm keeps them, we do not.

One reservation a license, `qpu_out_<license>`, with all that there is of the license. Slurm makes none that would
reserve more than there is at any time (src/slurmctld/reservation.c, _license_validate2(), 22.05 to 26.05). So the
admin's switch and the sensor share one, and where the site has reserved the license for a course on Friday ours is made
for a minute after that, and then moved to begin now: a change of its times alone is not compared with others. Its text
says whose it is:

    drained by root at 2026-11-23T06:30: maintenance until Friday
    offline: paused

The text is the reservation's Comment; 22.05 has none, and there it is its Features, which nobody reads where a
reservation has no nodes. The sensor's end after an hour unless it is renewed, so that one that died keeps no QPU away
from jobs; an admin's last as long as Slurm has them last, a year.

What an update may not contain is anything that can fail: slurmctld, 22.05 to 26.05, then takes the reservation's
licenses from a copy that has lost how many they are, and reserves none until it is restarted (_list_dup()).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from qrmi_slurm.config.config_file import Resource
from qrmi_slurm.errors import SchedulerError
from qrmi_slurm.slurm import commands, licenses
from qrmi_slurm.slurm.commands import RefusedError
from qrmi_slurm.text import printable

PREFIX: Final = "qpu_out_"

MAX_REASON_CHARS: Final = 200

_LASTS_MINUTES: Final = 60
_RENEWED_BELOW_S: Final = 30 * 60.0

# Between the last of other reservations and the minute that ours is made for.
_APART_S: Final = 120.0

# src/api/reservation_info.c, 22.05 to 26.05. Ours has no blank or `=` in any value but Features and Comment, and
# no `=` there either (_written()).
_HEAD: Final = re.compile(r"ReservationName=(\S+) StartTime=(\d+) EndTime=(\d+) ")
_FEATURES: Final = re.compile(r" Features=(.*?) PartitionName=")
_LICENSES: Final = re.compile(r" Licenses=(\S+) State=")
_COMMENT: Final = re.compile(r" MaxStartDelay=\S+ Comment=(.*)$")

_DRAINED: Final = re.compile(r"drained by (\S+) at (\S+): (.*)")
_OFFLINE: Final = re.compile(r"offline: ([a-z0-9_-]{1,40})")
_STATE: Final = re.compile(r"[a-z0-9_-]{1,40}")
_NO_COMMENT: Final = "Unknown parameter Comment="
_NOT_TO_BE_HAD: Final = "Invalid license specification"
_IS_GONE: Final = "Requested reservation is invalid"


@dataclass(frozen=True, slots=True)
class Outage:
    """A license that is out of service.

    Args:
        license: its name.
        count: how many are.
        is_drained: whether an admin said so; otherwise the sensor did.
        reason: the admin's, or the state that QRMI tells.
        by: the admin's login name; empty where it is not known.
        since: when, as the admin's clock said; empty likewise.
        ends_s: when Slurm ends it by itself; seconds since the epoch, 0 where that is not known.
    """

    license: str
    count: int
    is_drained: bool
    reason: str
    by: str = ""
    since: str = ""
    ends_s: float = 0.0

    @property
    def name(self) -> str:
        """The reservation's."""
        return PREFIX + self.license

    @property
    def notice(self) -> str:
        """What everybody may read of it."""
        if self.is_drained:
            return f"drained: {self.reason}"
        return "offline" if self.reason == "offline" else f"offline: {self.reason}"

    @property
    def text(self) -> str:
        """What stands in the reservation."""
        if self.is_drained:
            return (
                f"drained by {_written(self.by) or 'somebody'} at {self.since or 'some time'}: {_written(self.reason)}"
            )
        return f"offline: {self.reason if _STATE.fullmatch(self.reason) else 'offline'}"

    def says_as(self, other: "Outage") -> bool:
        """Tell whether another one is the same for jobs and readers, whoever said so and when."""
        mine = (self.license, self.count, self.is_drained, self.reason)
        return mine == (other.license, other.count, other.is_drained, other.reason)


@dataclass(frozen=True, slots=True)
class Reservations:
    """Slurm's reservations of licenses.

    Args:
        outages: ours, by license.
        busy_until_s: when the last of all others ends, by license; seconds since the epoch.
    """

    outages: Mapping[str, Outage]
    busy_until_s: Mapping[str, float]


def read(slurm_conf: Path, timeout_s: float = 10.0) -> Reservations:
    """Return Slurm's reservations of licenses.

    Args:
        slurm_conf: Slurm's configuration file.
        timeout_s: how long that may take, in seconds.

    Raises:
        SchedulerError: slurmctld cannot be asked.
    """
    command = ["scontrol", "show", "reservations", "--oneliner"]
    return parse(commands.run(command, slurm_conf, timeout_s, time_format="%s"))


def parse(text: str) -> Reservations:
    """Return what scontrol has printed, with times in seconds since the epoch."""
    outages: dict[str, Outage] = {}
    busy_until_s: dict[str, float] = {}
    for line in text.splitlines():
        head, held = _HEAD.match(line), _LICENSES.search(line)
        counts = licenses.parse_counts(held[1]) if held else None
        if head is None or not counts:
            continue
        name = head[1]
        license = name.removeprefix(PREFIX)
        if license != name and list(counts) == [license]:
            comment, features = _COMMENT.search(line), _FEATURES.search(line)
            said = comment or features
            outages[license] = _outage(license, counts[license], said[1] if said else "", float(head[3]))
        else:
            for held_license in counts:
                busy_until_s[held_license] = max(busy_until_s.get(held_license, 0.0), float(head[3]))
    return Reservations(outages, busy_until_s)


def _outage(license: str, count: int, text: str, ends_s: float) -> Outage:
    if match := _OFFLINE.fullmatch(text):
        return Outage(license, count, is_drained=False, reason=match[1], ends_s=ends_s)
    if match := _DRAINED.fullmatch(text):
        by, since, reason = _read(match[1]), match[2], _read(match[3])
    else:  # somebody made or changed it by hand
        by, since, reason = "", "", _read(text)
    reason = reason if reason not in ("", "(null)") else "no reason given"
    return Outage(license, count, is_drained=True, reason=reason, by=by, since=since, ends_s=ends_s)


def put(wanted: Outage, found: Reservations, slurm_conf: Path, now_s: float) -> bool:
    """Let a license be out of service, or be so for another reason; running jobs keep what they have.

    Args:
        wanted: how it is to be.
        found: how things are.
        slurm_conf: Slurm's configuration file.
        now_s: seconds since the epoch.

    Returns:
        Whether there was anything to do.

    Raises:
        SchedulerError: Slurm refused, or cannot be asked.
    """
    before = found.outages.get(wanted.license)
    lasts = "Duration=UNLIMITED" if wanted.is_drained else f"EndTime=now+{_LASTS_MINUTES}minutes"
    if before is not None and before.count == wanted.count:
        if before.says_as(wanted):
            is_short = not wanted.is_drained and before.ends_s - now_s < _RENEWED_BELOW_S
            if is_short:
                _scontrol(["update", f"ReservationName={wanted.name}", lasts], slurm_conf)
            return is_short
        try:
            _scontrol(["update", f"ReservationName={wanted.name}", f"Comment={wanted.text}", lasts], slurm_conf)
            return True
        except RefusedError as error:
            if _NO_COMMENT not in error.stderr:  # said by scontrol itself: slurmctld has not heard of it
                raise
    if before is not None:
        # Within these milliseconds a job could begin; slurmctld looks for one once a second at the most.
        remove(wanted.license, slurm_conf)
    try:
        _create(wanted, ["StartTime=now", lasts], slurm_conf)
    except RefusedError as error:
        busy_s = found.busy_until_s.get(wanted.license, 0.0) - now_s
        if _NOT_TO_BE_HAD not in error.stderr or busy_s < 0:
            raise
        _create(wanted, [f"StartTime=now+{busy_s + _APART_S:.0f}", "Duration=1"], slurm_conf)
        try:
            _scontrol(["update", f"ReservationName={wanted.name}", "StartTime=now", lasts], slurm_conf)
        except SchedulerError:
            remove(wanted.license, slurm_conf)
            raise
    return True


def _create(wanted: Outage, times: list[str], slurm_conf: Path) -> None:
    words = [f"ReservationName={wanted.name}", f"Licenses={wanted.license}:{wanted.count}", "Users=root"]
    words += ["Flags=LICENSE_ONLY,IGNORE_JOBS", *times]
    try:
        _scontrol(["create", "reservation", *words, f"Comment={wanted.text}"], slurm_conf)
    except RefusedError as error:
        if _NO_COMMENT not in error.stderr:
            raise
        _scontrol(["create", "reservation", *words, f"Features={wanted.text}"], slurm_conf)


def remove(license: str, slurm_conf: Path) -> None:
    """Let a license be in service again; harmless where it is.

    Raises:
        SchedulerError: Slurm refused, or cannot be asked.
    """
    try:
        _scontrol(["delete", f"ReservationName={PREFIX}{license}"], slurm_conf)
    except RefusedError as error:
        if _IS_GONE not in error.stderr:
            raise


def notices(resources: Iterable[Resource], outages: Mapping[str, Outage]) -> dict[str, str]:
    """Return why each resource that is out of service is so, by name, in words for everybody."""
    found = {}
    for resource in resources:
        license = resource.slurm.license
        if license is not None and license in outages:
            found[resource.name] = printable(outages[license].notice, MAX_REASON_CHARS + 20)
    return found


def in_words(error: SchedulerError) -> str:
    """Return what an error of `put` says; where Slurm has answered, without a hint to see whether it runs."""
    is_answer = isinstance(error, RefusedError) and "Unable to contact" not in error.stderr
    return error.message if is_answer else str(error)


def checked_reason(text: str) -> str | None:
    """Return a reason as it can be kept, blanks at its ends taken off; None where it cannot be one."""
    text = text.strip()
    is_plain = all(char.isprintable() for char in text) and len(text) <= MAX_REASON_CHARS
    return text if text and is_plain else None


def with_count(outage: Outage, count: int) -> Outage:
    """Return an outage of another number of licenses."""
    return replace(outage, count=count)


def _written(text: str) -> str:
    """Return a text as it stands in the reservation: without `=`, so that it can look like no field of scontrol's."""
    return text.replace("%", "%25").replace("=", "%3D")


def _read(text: str) -> str:
    return text.replace("%3D", "=").replace("%25", "%")


def _scontrol(words: list[str], slurm_conf: Path) -> None:
    commands.run(["scontrol", *words], slurm_conf)
