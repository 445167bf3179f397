"""The QPUs: which ones the site has, whether each can be used now, and which jobs hold it.

Root asks QRMI and publishes a list without secrets, `qpus.json` in the state directory; everybody else reads that list.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from qrmi_slurm.calls import probe
from qrmi_slurm.calls.protocol import Capacity
from qrmi_slurm.config.config_file import Resource
from qrmi_slurm.errors import RecordError
from qrmi_slurm.outages.reservations import Less
from qrmi_slurm.scheduling import state_files
from qrmi_slurm.slurm.licenses import License
from qrmi_slurm.slurm.plugstack import SiteOptions
from qrmi_slurm.state import inventory
from qrmi_slurm.text import printable

LIST_FILE: Final = "qpus.json"
LIST_VERSION: Final = 1

_MAX_LIST_BYTES: Final = 16 * 1024 * 1024
_MAX_NOTICE_CHARS: Final = 300

# States of our own, beside QRMI's.
UNREACHABLE: Final = "unreachable"  # no answer
NOT_ASKED: Final = "not-asked"  # no time to ask, though its service answers
USERS_OWN: Final = "users-own"  # each job brings its own credentials, so nothing was asked
DRAINED: Final = "drained"  # by an admin


@dataclass(frozen=True, slots=True)
class Qpu:
    """One QPU.

    Args:
        name: as for `--qpu`.
        type: its type, as configured.
        state: QRMI's word, or one of our own.
        is_usable: whether a job could use it now; None if unknown.
        pending_jobs: how many jobs are queued for it at the service; None if the service does not say.
        held_by: how many Slurm jobs hold it, according to the records in this state directory.
        job_ids: the ids of those jobs; None in the public list, since Slurm may keep jobs private.
        reason: the service's words; empty in the public list.
        notice: why it is out of service, for users to read (outage.py); empty if it is in service.
        slots: how many the service reports; None where it does not, and in the public list.
        capacity: how many jobs may hold it at a time; None where Slurm counts none. So are the next two.
        used: how many do.
        free: how many more could.
    """

    name: str
    type: str
    state: str
    is_usable: bool | None
    pending_jobs: int | None
    held_by: int
    job_ids: tuple[int, ...] | None
    reason: str = ""
    notice: str = ""
    slots: Capacity | None = None
    capacity: int | None = None
    used: int | None = None
    free: int | None = None

    @property
    def shown(self) -> "Qpu":
        """The QPU as people see it: out of service means not usable, whatever QRMI says."""
        if not self.notice:
            return self
        state = DRAINED if self.notice.startswith(f"{DRAINED}: ") else self.state
        return replace(self, state=state, is_usable=False)


@dataclass(frozen=True, slots=True)
class Listing:
    """All QPUs at one moment.

    Args:
        qpus: in the config's order.
        checked_s: when QRMI was asked; seconds since the epoch.
        is_live: whether that was just now.
    """

    qpus: tuple[Qpu, ...]
    checked_s: float
    is_live: bool


def ask(resources: Sequence[Resource], options: SiteOptions, timeout_s: float) -> Listing:
    """Ask QRMI about all resources side by side, and look up in the records which jobs hold them.

    Args:
        resources: those of the config.
        options: the site's.
        timeout_s: how long QRMI may take for all of them, in seconds.

    Raises:
        BackendError: QRMI cannot be imported.
        RecordError: the state directory exists but cannot be read.
    """
    holders: dict[str, list[int]] = {}
    for item in inventory.read(options.state_dir):
        for entry in item.record.entries if item.record is not None else ():
            if entry.is_pending:
                holders.setdefault(entry.name, []).append(item.folder.job_id)
    findings = probe.ask(resources, options, timeout_s)
    return Listing(tuple(_qpu(found, holders.get(found.resource, [])) for found in findings), time.time(), is_live=True)


def _qpu(found: probe.Finding, job_ids: Sequence[int]) -> Qpu:
    said = found.availability
    unknown = USERS_OWN if found.is_users else NOT_ASKED if found.is_unasked else UNREACHABLE
    return Qpu(
        name=found.resource,
        type=found.type,
        state=said.state if said else unknown,
        is_usable=found.is_usable,
        pending_jobs=said.pending_jobs if said else None,
        held_by=len(job_ids),
        job_ids=tuple(job_ids),
        reason=said.reason if said else found.problem,
        slots=said.capacity if said else None,
    )


def publish(listing: Listing, state_dir: Path) -> None:
    """Publish the list for everybody: names, types, states and counts, without job ids and the services' words.

    Raises:
        RecordError: it cannot be written.
    """
    document = {
        "version": LIST_VERSION,
        "checked_s": listing.checked_s,
        "qpus": [
            {
                "name": qpu.name,
                "type": qpu.type,
                "state": qpu.state,
                "is_usable": qpu.is_usable,
                "pending_jobs": qpu.pending_jobs,
                "held_by": qpu.held_by,
                "notice": qpu.notice,
                "capacity": qpu.capacity,
                "used": qpu.used,
                "free": qpu.free,
            }
            for qpu in listing.qpus
        ],
    }
    state_files.write_json(state_dir, LIST_FILE, document)


def read_published(state_dir: Path) -> Listing:
    """Return the list that root's last run published.

    Raises:
        RecordError: there is no list, or it cannot be read.
    """
    path = state_dir / LIST_FILE
    hint = "an admin creates it with: qrmi-slurm qpus (on each node, unless --state-dir is shared)"
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(_MAX_LIST_BYTES))
        if document["version"] != LIST_VERSION:
            raise RecordError(f"{path} was written by another version of qrmi-slurm", hint)
        found = tuple(_published(item) for item in document["qpus"])
        return Listing(found, float(document["checked_s"]), is_live=False)
    except FileNotFoundError:
        raise RecordError(f"there is no list of QPUs at {path}", hint) from None
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror}", hint) from error
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RecordError(f"{path} is not a list of QPUs", hint) from None


def _published(item: Mapping[str, Any]) -> Qpu:
    usable, pending = item["is_usable"], item["pending_jobs"]
    return Qpu(
        name=printable(str(item["name"])),
        type=printable(str(item["type"])),
        state=printable(str(item["state"])),
        is_usable=usable if isinstance(usable, bool) else None,
        pending_jobs=pending if isinstance(pending, int) else None,
        held_by=int(item["held_by"]),
        job_ids=None,
        notice=printable(str(item.get("notice", "")), _MAX_NOTICE_CHARS),
        capacity=_number(item.get("capacity")),
        used=_number(item.get("used")),
        free=_number(item.get("free")),
    )


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def with_counts(
    listing: Listing, resources: Sequence[Resource], known: Mapping[str, License], less: Mapping[str, Sequence[Less]]
) -> Listing:
    """Return the listing with how many jobs may hold each QPU, do, and still could.

    Args:
        listing: the listing.
        resources: those of the config.
        known: Slurm's licenses, by name.
        less: how many of them the services do not have.
    """
    names = {item.name: item.slurm.following_license or item.slurm.license or "" for item in resources}
    counted = tuple(_counted(qpu, known.get(names.get(qpu.name, "")), less) for qpu in listing.qpus)
    return replace(listing, qpus=counted)


def _counted(qpu: Qpu, license: License | None, less: Mapping[str, Sequence[Less]]) -> Qpu:
    if license is None:
        return qpu
    kept_back = max((one.count for one in less.get(license.name, ())), default=0)
    return replace(qpu, capacity=max(0, license.total - kept_back), used=license.used, free=license.free)


def with_notices(listing: Listing, notices: Mapping[str, str]) -> Listing:
    """Return the listing with the reasons why QPUs are out of service, by name."""
    return replace(listing, qpus=tuple(replace(qpu, notice=notices.get(qpu.name, "")) for qpu in listing.qpus))


def only(listing: Listing, names: Sequence[str]) -> Listing:
    """Return the listing with only these QPUs, in its own order; without names, all of it."""
    return replace(listing, qpus=tuple(qpu for qpu in listing.qpus if qpu.name in names)) if names else listing
