"""The QPUs: which the site offers, whether each can be used now, and which jobs hold it.

Root asks QRMI, and leaves a list without secrets in the state directory, `qpus.json`, readable by all; everybody else
reads that list.
"""

import contextlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from qrmi_slurm.calls import probe
from qrmi_slurm.config.config_file import Resource
from qrmi_slurm.errors import RecordError
from qrmi_slurm.slurm.plugstack import SiteOptions
from qrmi_slurm.state import inventory
from qrmi_slurm.text import printable

LIST_FILE: Final = "qpus.json"
LIST_VERSION: Final = 1

_MAX_LIST_BYTES: Final = 16 * 1024 * 1024
_MAX_NOTICE_CHARS: Final = 300

# What a state that QRMI does not give is called: no answer; each job brings its own credentials; an admin's switch.
UNREACHABLE: Final = "unreachable"
USERS_OWN: Final = "users-own"
DRAINED: Final = "drained"


@dataclass(frozen=True, slots=True)
class Qpu:
    """One QPU.

    Args:
        name: as for `--qpu`.
        type: its type, as configured.
        state: QRMI's word, `unreachable` or `users-own`.
        is_usable: whether a job could use it now; None where that is not known.
        pending_jobs: how many jobs wait for it at the service; None where it does not tell.
        held_by: how many Slurm jobs hold it, by the records here.
        job_ids: which; None in the public list, since Slurm may keep jobs private.
        reason: the service's words; empty in the public list.
        notice: why jobs wait for it, in words for everybody (reservations.py); empty where they do not.
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

    @property
    def shown(self) -> "Qpu":
        """How people see it: one that is out of service cannot be used, whatever QRMI says of it."""
        if not self.notice:
            return self
        state = DRAINED if self.notice.startswith(f"{DRAINED}: ") else self.state
        return replace(self, state=state, is_usable=False)


@dataclass(frozen=True, slots=True)
class Listing:
    """All QPUs at one moment.

    Args:
        qpus: in the config's order.
        checked_s: when; seconds since the epoch.
        is_live: whether QRMI was asked just now.
    """

    qpus: tuple[Qpu, ...]
    checked_s: float
    is_live: bool


def ask(resources: Sequence[Resource], options: SiteOptions, timeout_s: float) -> Listing:
    """Ask QRMI for all resources side by side, and the records for the jobs that hold them.

    Args:
        resources: of the config.
        options: the site's.
        timeout_s: how long QRMI may take for all of them, in seconds.

    Raises:
        BackendError: QRMI cannot be imported.
        RecordError: the state directory is there and cannot be read.
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
    unknown = USERS_OWN if found.is_users else UNREACHABLE
    return Qpu(
        name=found.resource,
        type=found.type,
        state=said.state if said else unknown,
        is_usable=found.is_usable,
        pending_jobs=said.pending_jobs if said else None,
        held_by=len(job_ids),
        job_ids=tuple(job_ids),
        reason=said.reason if said else found.problem,
    )


def publish(listing: Listing, state_dir: Path) -> None:
    """Leave the list for everybody: names, types, states and counts, no job ids and no service's words.

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
            }
            for qpu in listing.qpus
        ],
    }
    leave(state_dir, LIST_FILE, document, 0o644)


def leave(state_dir: Path, name: str, document: Mapping[str, Any], mode: int) -> None:
    """Leave a JSON file in the state directory, whole or not at all.

    Args:
        state_dir: the site's; made where it is not there.
        name: the file's.
        document: what is in it.
        mode: the file's.

    Raises:
        RecordError: it cannot be written.
    """
    path = state_dir / name
    new = state_dir / f".{name}.{os.getpid()}"
    try:
        make_state_dir(state_dir)
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            os.fchmod(fd, mode)
            json.dump(document, file)
        new.rename(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink()
        raise RecordError(f"cannot write {path}: {error.strerror}", "see: qrmi-slurm doctor") from error


def make_state_dir(state_dir: Path) -> None:
    """Make the state directory where it is not there.

    Raises:
        OSError: it cannot be made.
    """
    with contextlib.suppress(FileExistsError):
        state_dir.mkdir(mode=0o711, parents=True)
        state_dir.chmod(0o711)  # whatever the umask: users pass through to their jobs' exports


def read_published(state_dir: Path) -> Listing:
    """Return the list that root's last run has left.

    Raises:
        RecordError: there is none, or none that can be read.
    """
    path = state_dir / LIST_FILE
    hint = "an admin can make it with: qrmi-slurm qpus; on other nodes only where --state-dir is shared"
    try:
        with path.open("rb") as file:
            document = json.loads(file.read(_MAX_LIST_BYTES))
        if document["version"] != LIST_VERSION:
            raise RecordError(f"{path} is of another version of qrmi-slurm", hint)
        found = tuple(_published(item) for item in document["qpus"])
        return Listing(found, float(document["checked_s"]), is_live=False)
    except FileNotFoundError:
        raise RecordError(f"there is no list of QPUs at {path}", hint) from None
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror}", hint) from error
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RecordError(f"{path} is no list of QPUs", hint) from None


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
    )


def with_notices(listing: Listing, notices: Mapping[str, str]) -> Listing:
    """Return the listing with why jobs wait for a QPU, by its name."""
    return replace(listing, qpus=tuple(replace(qpu, notice=notices.get(qpu.name, "")) for qpu in listing.qpus))


def only(listing: Listing, names: Sequence[str]) -> Listing:
    """Return the listing of some QPUs alone, in its order."""
    return replace(listing, qpus=tuple(qpu for qpu in listing.qpus if qpu.name in names)) if names else listing
