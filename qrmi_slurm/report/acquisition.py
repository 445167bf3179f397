"""An acquisition: one QPU that one job asked for, as a line of the ledger or an entry of a record has it."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from qrmi_slurm.report.timespan import Timespan
from qrmi_slurm.secret import Secret
from qrmi_slurm.state import ledger
from qrmi_slurm.state.inventory import Item
from qrmi_slurm.state.ledger import LEDGER_VERSION
from qrmi_slurm.state.record import Ended, Entry, State

_MAX_EPOCH_S: Final = 1e11  # the year 5138, which calendars still have

# Results of acquisitions that have not ended, beside the ledger's words for those that have.
HELD: Final = "held"
UNKNOWN: Final = "unknown"  # no answer came: a session may be open whose id nobody has

NOT_ACQUIRED: Final = frozenset({"failed", "expired", "forgotten", UNKNOWN})


@dataclass(frozen=True, slots=True)
class Acquisition:
    """One QPU that a job has asked for.

    Args:
        id: its id in the ledger, which no other acquisition has.
        cluster: the cluster's name.
        job_id: the job's Slurm id; for a task of an array, its own.
        array_job_id: the array's id; None if there is no array, or it is unknown.
        array_task_id: the task's number in the array.
        het_job_id: the id of the heterogeneous job that the job is a component of.
        restart: how many times the job had been requeued.
        user: the owner's login name.
        account: the job's account; empty if it has none.
        node: the node that acquired.
        qpu: the resource's name.
        type: its type.
        token: the session's id; None if there is none.
        result: the ledger's word, `held` or `unknown`.
        by: who ended it: `prolog`, `epilog`, `recover`, `release`; empty if it has not ended.
        reason: why it was not acquired.
        asked_s: when it was asked for; seconds since the epoch.
        acquired_s: since when it was held; None if it never was.
        ended_s: when it was released or lost; the present, while it is held.
    """

    id: str
    cluster: str
    job_id: int
    array_job_id: int | None
    array_task_id: int | None
    het_job_id: int | None
    restart: int
    user: str
    account: str
    node: str
    qpu: str
    type: str
    token: Secret | None
    result: str
    by: str
    reason: str
    asked_s: float
    acquired_s: float | None
    ended_s: float

    @property
    def job(self) -> str:
        """The job's id as Slurm's commands show it: `4711`, or `4700_11` for a task of an array."""
        return str(self.job_id) if self.array_job_id is None else f"{self.array_job_id}_{self.array_task_id}"

    def held_s(self, span: Timespan) -> float:
        """Return for how many seconds of a timespan it was held."""
        return 0.0 if self.acquired_s is None else span.overlap_s(self.acquired_s, self.ended_s)

    def touches(self, span: Timespan) -> bool:
        """Tell whether any part of it is in a timespan."""
        return self.asked_s < span.until_s and max(self.ended_s, self.asked_s) >= span.since_s


def from_line(line: bytes) -> Acquisition | None:
    """Return the acquisition in a ledger's line; None if the line is cut, foreign or of another version."""
    try:
        item = json.loads(line)
        if item["version"] != LEDGER_VERSION:
            return None
        return Acquisition(
            id=str(item["id"]),
            cluster=str(item["cluster"]),
            job_id=int(item["job_id"]),
            array_job_id=_int_or_none(item["array_job_id"]),
            array_task_id=_int_or_none(item["array_task_id"]),
            het_job_id=_int_or_none(item["het_job_id"]),
            restart=int(item["restart"]),
            user=str(item["user"]) or f"uid {int(item['uid'])}",
            account=str(item["account"]),
            node=str(item["node"]),
            qpu=str(item["qpu"]),
            type=str(item["type"]),
            token=None if item["token"] is None else Secret(str(item["token"])),
            result=str(item["result"]),
            by=str(item["by"]),
            reason=str(item["reason"]),
            asked_s=_seconds(item["asked_s"]),
            acquired_s=None if item["acquired_s"] is None else _seconds(item["acquired_s"]),
            ended_s=_seconds(item["ended_s"]),
        )
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _int_or_none(value: Any) -> int | None:
    return None if value is None else int(value)


def _seconds(value: Any) -> float:
    seconds = float(value)
    if not 0 <= seconds < _MAX_EPOCH_S:  # NaN fails every comparison
        raise ValueError("not a time")
    return seconds


def from_records(items: Sequence[Item], now_s: float) -> Iterator[Acquisition]:
    """Yield what the records say: what is held, and what was refused to jobs that have not ended yet.

    Args:
        items: the records.
        now_s: until when what is held counts; seconds since the epoch.
    """
    for item in items:
        for entry in item.record.entries if item.record is not None else ():
            result, ended_s = _standing(entry, now_s)
            if result and item.record is not None:
                ended = Ended(entry, "released", ended_s)
                line = ledger.line_of(item.record, ended, item.folder.array_ids(), "")
                one = from_line(json.dumps({**line, "result": result, "token": None}).encode())
                if one is not None:
                    yield one


def _standing(entry: Entry, now_s: float) -> tuple[str, float]:
    """Return the result of a record's entry, and until when it counts; an empty result while no answer has come."""
    if entry.state is State.FAILED:
        return "failed", entry.since_s
    if entry.token is not None:
        return HELD, max(now_s, entry.asked_s)
    return (UNKNOWN, max(now_s, entry.asked_s)) if entry.state is State.INDETERMINATE else ("", 0.0)
