"""The status: what the records say of each job's QPUs, a line each, for people and for programs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qrmi_slurm.broker import launch, process
from qrmi_slurm.hooks import recover
from qrmi_slurm.state import inventory
from qrmi_slurm.state.inventory import Item
from qrmi_slurm.state.record import Entry, Record, State


@dataclass(frozen=True, slots=True)
class Line:
    """One QPU of one job.

    Args:
        cluster: the cluster's name.
        job_id: Slurm's id.
        node: the node that acquired.
        uid: the job's owner.
        qpu: the resource's name.
        type: its type.
        state: where it stands.
        age_s: how long it has stood there, in seconds.
        attempts: how often its release was tried.
        next_try_s: seconds until recover may try again; None where nothing is to be tried.
        ends_s: seconds until the service ends the session by itself; None where that is not known.
        reason: why the last attempt failed, or what a held one lacks; masked.
    """

    cluster: str
    job_id: int
    node: str
    uid: int
    qpu: str
    type: str
    state: State
    age_s: float
    attempts: int
    next_try_s: float | None
    ends_s: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class Status:
    """All that a state directory holds.

    Args:
        state_dir: which.
        lines: the QPUs.
        faults: what is wrong with records that cannot be read.
        set_aside: the folders of records that nobody could read.
    """

    state_dir: Path
    lines: tuple[Line, ...]
    faults: tuple[str, ...]
    set_aside: tuple[Path, ...]


def read(state_dir: Path, now_s: float) -> Status:
    """Return what stands in a state directory just now.

    Args:
        state_dir: the site's.
        now_s: seconds since the epoch.

    Raises:
        RecordError: it is there and cannot be read.
    """
    items = inventory.read(state_dir)
    return Status(
        state_dir,
        tuple(_lines(items, now_s)),
        tuple(str(item.fault) for item in items if item.fault is not None),
        tuple(inventory.set_aside(state_dir)),
    )


def _lines(items: Sequence[Item], now_s: float) -> Iterator[Line]:
    for item in items:
        if item.record is not None:
            for entry in item.record.entries:
                yield _line(item.record, entry, now_s)


def _line(record: Record, entry: Entry, now_s: float) -> Line:
    is_due = entry.state is State.RELEASING and entry.token is not None
    return Line(
        cluster=record.cluster,
        job_id=record.job_id,
        node=record.node,
        uid=record.uid,
        qpu=entry.name,
        type=entry.type,
        state=entry.state,
        age_s=max(0.0, now_s - entry.since_s),
        attempts=entry.attempts,
        next_try_s=max(0.0, recover.next_try_s(entry, now_s) - now_s) if is_due else None,
        ends_s=None if entry.expires_s is None else max(0.0, entry.expires_s - now_s),
        reason=entry.reason or _of_broker(record, entry),
    )


def _of_broker(record: Record, entry: Entry) -> str:
    """Say where a living job's requests fail for want of its credential broker."""
    broker = record.broker
    if broker is None or entry.name not in broker.keys or entry.state is not State.ACQUIRED:
        return ""
    if not launch.is_here(record) or process.is_alive(broker):
        return ""
    return "its credential broker has ended; recover starts it again"
