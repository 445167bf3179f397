"""An outage: a Slurm license that is out of service, and the text that says why.

The text is kept in Slurm, with the license's reservation, and names who took the license out of service: an admin, the
sensor, or the Prolog of a job that could not acquire the QPU:

    drained by root at 2026-11-23T06:30: maintenance until Friday
    offline: paused
    offline: no-answer since 2026-11-23T06:30, says job 4711 on n1
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from qrmi_slurm.config.config_file import Resource
from qrmi_slurm.text import printable

MAX_REASON_CHARS: Final = 200
_MAX_NOTICE_CHARS: Final = MAX_REASON_CHARS + 20  # a reason behind "drained: "

# The state in which a notice says nothing but that.
_OFFLINE: Final = "offline"
_STATE: Final = re.compile(r"[a-z0-9_-]{1,40}")

_OFFLINE_TEXT: Final = re.compile(rf"offline: ({_STATE.pattern})(?: since (\S+), says (job \d+ on \S+))?")
_DRAINED_TEXT: Final = re.compile(r"drained by (\S+) at (\S+): (.*)")

# What scontrol prints for a field without a value.
NO_VALUE: Final = "(null)"
_NO_REASON: Final = "no reason given"
_UNKNOWN: Final = "unknown"  # in place of the admin or the time; one word, as _DRAINED_TEXT needs it


@dataclass(frozen=True, slots=True)
class Outage:
    """A license that is out of service.

    Args:
        license: its name.
        count: how many of it are out of service.
        is_drained: whether an admin took it out of service; otherwise the sensor or a failed start did.
        reason: the admin's reason, or the state that QRMI reports, or how the start failed.
        by: the admin's login name, or the job that could not start (`job 12 on n1`); empty if unknown, or the sensor.
        since: when they did so, by the clock of their machine; empty if unknown.
        ends_s: when Slurm ends it by itself, in seconds since the epoch; 0 if unknown.
        began_s: when its reservation began, by slurmctld's clock, in seconds since the epoch; 0 if unknown.
    """

    license: str
    count: int
    is_drained: bool
    reason: str
    by: str = ""
    since: str = ""
    ends_s: float = 0.0
    began_s: float = 0.0

    @property
    def is_of_job(self) -> bool:
        """Whether a job's Prolog took it out of service, because it could not acquire the QPU."""
        return bool(self.by) and not self.is_drained

    @property
    def notice(self) -> str:
        """What users read."""
        if self.is_drained:
            return f"drained: {self.reason}"
        return _OFFLINE if self.reason == _OFFLINE else f"offline: {self.reason}"

    @property
    def text(self) -> str:
        """What the reservation says; `from_text` reads it."""
        if self.is_drained:
            return f"drained by {_escaped(self.by) or _UNKNOWN} at {self.since or _UNKNOWN}: {_escaped(self.reason)}"
        said = f" since {self.since or _UNKNOWN}, says {_escaped(self.by)}" if self.by else ""
        return f"offline: {self.reason if _STATE.fullmatch(self.reason) else _OFFLINE}{said}"

    def matches(self, other: "Outage") -> bool:
        """Tell whether another one is the same to jobs and users, whoever caused it and when."""
        mine = (self.license, self.count, self.is_drained, self.reason)
        return mine == (other.license, other.count, other.is_drained, other.reason)


def from_text(license: str, count: int, text: str, ends_s: float, began_s: float = 0.0) -> Outage:
    """Return the outage that a reservation's text describes.

    Args:
        license: the reservation's license.
        count: how many of it are reserved.
        text: the text. One that we have not written is an admin's own: it counts as the reason for a drain.
        ends_s: when the reservation ends, in seconds since the epoch.
        began_s: when it began, or will.
    """
    if match := _OFFLINE_TEXT.fullmatch(text):
        by, since = _unescaped(match[3] or ""), _known(match[2] or "")
        return Outage(license, count, False, match[1], by, since, ends_s, began_s)
    by, since, reason = "", "", text
    if match := _DRAINED_TEXT.fullmatch(text):
        by, since, reason = _known(match[1]), _known(match[2]), match[3]
    reason = _unescaped(reason) if reason not in ("", NO_VALUE) else _NO_REASON
    return Outage(license, count, True, reason, by, since, ends_s, began_s)


def checked_reason(text: str) -> str | None:
    """Return an admin's reason without surrounding blanks; None if it is empty, too long or not one printable line."""
    text = text.strip()
    is_plain = all(char.isprintable() for char in text) and len(text) <= MAX_REASON_CHARS
    return text if text and is_plain else None


def notices(resources: Iterable[Resource], outages: Mapping[str, Outage]) -> dict[str, str]:
    """Return what users read about each resource that is out of service, by its name.

    Args:
        resources: those of the config.
        outages: by license.
    """
    found = {}
    for resource in resources:
        license = resource.slurm.license
        if license is not None and license in outages:
            found[resource.name] = printable(outages[license].notice, _MAX_NOTICE_CHARS)
    return found


def _escaped(text: str) -> str:
    """Return a text without `=`, so that no part of it can look like a field of scontrol's output."""
    return text.replace("%", "%25").replace("=", "%3D")


def _unescaped(text: str) -> str:
    return text.replace("%3D", "=").replace("%25", "%")


def _known(word: str) -> str:
    return "" if word == _UNKNOWN else _unescaped(word)
