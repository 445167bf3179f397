"""What the jobs of a state directory hold, according to their records: one value for each QPU of each job."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qrmi_slurm.broker import launch, process
from qrmi_slurm.command.explanation import ENDING_SOON_S
from qrmi_slurm.hooks import recover
from qrmi_slurm.state import inventory
from qrmi_slurm.state.inventory import Item
from qrmi_slurm.state.record import Entry, Record, State

# What `status` says of a QPU that a job has, and whose session has ended: no State, since nothing changes on disk.
EXPIRED: Final = "expired"


@dataclass(frozen=True, slots=True)
class Holding:
    """One QPU of one job.

    Args:
        cluster: the cluster's name.
        job_id: Slurm's id.
        node: the node that acquired.
        uid: the job's owner.
        qpu: the resource's name.
        type: its type.
        state: its state; `expired` where the job has it, and its session has reached its end.
        age_s: how long it has been in that state, in seconds.
        attempts: how often its release was tried.
        next_try_s: seconds until recover tries again; None if no release is pending.
        ends_s: seconds until the service ends the session by itself; None if unknown.
        is_ending: whether that is in less than five minutes, and the job may run longer.
        reason: why the last attempt failed, or why the job cannot use the QPU; masked.
    """

    cluster: str
    job_id: int
    node: str
    uid: int
    qpu: str
    type: str
    state: str
    age_s: float
    attempts: int
    next_try_s: float | None
    ends_s: float | None
    is_ending: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Holdings:
    """All that a state directory holds.

    Args:
        state_dir: the state directory.
        qpus: the QPUs.
        faults: what is wrong with records that cannot be read.
        set_aside: folders of unreadable records that were moved out of the way.
    """

    state_dir: Path
    qpus: tuple[Holding, ...]
    faults: tuple[str, ...]
    set_aside: tuple[Path, ...]


def read(state_dir: Path, now_s: float) -> Holdings:
    """Return what a state directory holds now.

    Args:
        state_dir: the site's.
        now_s: seconds since the epoch.

    Raises:
        RecordError: the directory exists and cannot be read.
    """
    items = inventory.read(state_dir)
    return Holdings(
        state_dir,
        tuple(_holdings(items, now_s)),
        tuple(str(item.fault) for item in items if item.fault is not None),
        tuple(inventory.set_aside(state_dir)),
    )


def _holdings(items: Sequence[Item], now_s: float) -> Iterator[Holding]:
    for item in items:
        if item.record is not None:
            for entry in item.record.entries:
                yield _holding(item.record, entry, now_s)


def _holding(record: Record, entry: Entry, now_s: float) -> Holding:
    is_due = entry.state is State.RELEASING and entry.token is not None
    return Holding(
        cluster=record.cluster,
        job_id=record.job_id,
        node=record.node,
        uid=record.uid,
        qpu=entry.name,
        type=entry.type,
        state=EXPIRED if entry.has_expired(now_s) else entry.state.value,
        age_s=max(0.0, now_s - entry.since_s),
        attempts=entry.attempts,
        next_try_s=max(0.0, recover.next_try_s(entry, now_s) - now_s) if is_due else None,
        ends_s=_ends_s(entry, now_s),
        is_ending=is_ending(record, entry, now_s),
        reason=entry.reason or broker_fault(record, entry),
    )


def _ends_s(entry: Entry, now_s: float) -> float | None:
    """Return in how many seconds a session ends by itself; one that may be open, at the latest."""
    if entry.state in (State.ACQUIRED, State.RELEASING) and entry.ends_s is not None:
        return entry.left_s(now_s)
    return None if entry.expires_s is None else max(0.0, entry.expires_s - now_s)


def is_ending(record: Record, entry: Entry, now_s: float) -> bool:
    """Tell whether a running job's session ends soon, and the job may run longer."""
    left_s = entry.left_s(now_s)
    is_soon = left_s is not None and 0 < left_s < ENDING_SOON_S
    return is_soon and entry.state is State.ACQUIRED and record.ends_before_job(entry)


def broker_fault(record: Record, entry: Entry) -> str:
    """Say that a running job's credential broker has died, so that its requests fail; empty otherwise."""
    broker = record.broker
    if broker is None or entry.name not in broker.keys or entry.state is not State.ACQUIRED:
        return ""
    if not launch.is_here(record) or process.is_alive(broker):
        return ""
    return "its credential broker has ended; recover starts it again"
