"""The usage: who held which QPU, and for how long, by the ledger's lines and by the records of what is held now."""

import gzip
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO, Any, Final

from qrmi_slurm.errors import QrmiSlurmError, RecordError
from qrmi_slurm.report.timespan import Timespan
from qrmi_slurm.secret import Secret
from qrmi_slurm.state import inventory, ledger
from qrmi_slurm.state.inventory import Item
from qrmi_slurm.state.ledger import LEDGER_VERSION
from qrmi_slurm.state.record import Ended, Entry, State

# A line has some 500 bytes. What is longer is none of ours, and is read past without being kept.
_MAX_LINE_BYTES: Final = 64 * 1024
_SUFFIXES: Final = (".jsonl", ".jsonl.gz")
_MAX_EPOCH_S: Final = 1e11  # the year 5138: a calendar has it
_MONTH: Final = re.compile(r"\.(\d{4})-(\d{2})\.jsonl(?:\.gz)?")

# What an acquisition is called that has not ended, beside the ledger's words for those that have.
HELD: Final = "held"
UNKNOWN: Final = "unknown"  # no answer came: a session may be open whose id nobody has

NOT_ACQUIRED: Final = frozenset({"failed", "expired", "forgotten", UNKNOWN})


@dataclass(frozen=True, slots=True)
class Acquisition:
    """One QPU that a job has asked for.

    Args:
        id: what no other one has.
        cluster: the cluster's name.
        job_id: Slurm's id of the job; of a task of an array, its own.
        array_job_id: the array's; None where there is none, or it is not known.
        array_task_id: the task's number in the array.
        het_job_id: of the heterogeneous job that it is a component of.
        restart: how often the job had been requeued.
        user: the owner's login name.
        account: the job's account; empty where it has none.
        node: the node that acquired.
        qpu: the resource's name.
        type: its type.
        token: the session's id; None where none came.
        result: the ledger's word, `held` or `unknown`.
        by: who ended it: `prolog`, `epilog`, `recover`, `release`; empty where it has not ended.
        reason: why it was not acquired.
        asked_s: when acquiring it began; seconds since the epoch.
        acquired_s: when it was held; None where it never was.
        ended_s: when it was given back or lost; now, where it is held.
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
        """Tell whether any of it lies in a timespan."""
        return self.asked_s < span.until_s and max(self.ended_s, self.asked_s) >= span.since_s


@dataclass(frozen=True, slots=True)
class Usage:
    """All acquisitions of some time.

    Args:
        span: from when to when.
        acquisitions: in the order in which they were asked for.
        capacities: how many jobs may hold a QPU at a time, by its name, for all that the config has.
        damaged: how many lines could not be read.
    """

    span: Timespan
    acquisitions: tuple[Acquisition, ...]
    capacities: Mapping[str, int]
    damaged: int = 0

    @property
    def qpus(self) -> list[str]:
        """The names of the QPUs: those of the config, then those that it no longer has."""
        return list(dict.fromkeys([*self.capacities, *sorted({one.qpu for one in self.acquisitions})]))

    def capacity(self, qpu: str) -> int:
        """Return how many jobs may hold a QPU at a time; 1 for one that the config does not have."""
        return self.capacities.get(qpu, 1)


@dataclass(slots=True)
class Row:
    """What acquisitions with something in common come to.

    Args:
        key: what they have in common, a text for each of the report's keys.
        jobs: the ids of their jobs.
        acquired: how many QPUs were acquired.
        failed: how many were not.
        held_s: for how long, in seconds within the report's timespan.
        utilisation: `held_s` as a part of what there was to be held, from 0 to 1; None where that has no meaning.
    """

    key: tuple[str, ...]
    jobs: set[tuple[str, int]] = field(default_factory=set)
    acquired: int = 0
    failed: int = 0
    held_s: float = 0.0
    utilisation: float | None = None

    def add(self, one: Acquisition, held_s: float) -> None:
        """Count an acquisition, of which so many seconds belong here."""
        self.jobs.add((one.cluster, one.job_id))
        self.acquired += one.acquired_s is not None
        self.failed += one.result in NOT_ACQUIRED
        self.held_s += held_s


# By what a report can be made, and the text of it.
KEYS: Final[Mapping[str, Callable[[Acquisition], str]]] = {
    "user": lambda one: one.user,
    "account": lambda one: one.account,
    "qpu": lambda one: one.qpu,
    "type": lambda one: one.type,
    "node": lambda one: one.node,
    "cluster": lambda one: one.cluster,
    "day": lambda one: _day(max(one.asked_s, 0)),
}


def read(state_dir: Path, span: Timespan, now_s: float) -> tuple[list[Acquisition], int]:
    """Return the acquisitions of some time by a site's ledger and records, and how many lines could not be read.

    Args:
        state_dir: the site's; nothing is there where it does not exist.
        span: what is asked for.
        now_s: until when what is held now counts; seconds since the epoch.

    Raises:
        RecordError: it cannot be read.
    """
    files: list[Path] = []
    for cluster in inventory.names_in(state_dir):
        place = state_dir / cluster / ledger.FOLDER
        files += [place / name for name in inventory.names_in(place) if name.endswith(_SUFFIXES)]
    return _collect(files, inventory.read(state_dir), span, now_s)


def read_from(paths: Sequence[Path], span: Timespan, now_s: float) -> tuple[list[Acquisition], int]:
    """Return the same by files and folders that an admin names: copies of ledgers, state directories of other nodes.

    Raises:
        RecordError: one is not there or cannot be read.
    """
    files: list[Path] = []
    items: list[Item] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        for folder, _, names in os.walk(path, onerror=_raise):
            files += [Path(folder, name) for name in sorted(names) if name.endswith(_SUFFIXES)]
        items += inventory.read(path)
    return _collect(files, items, span, now_s)


def _collect(
    files: Sequence[Path], items: Sequence[Item], span: Timespan, now_s: float
) -> tuple[list[Acquisition], int]:
    found: dict[str, Acquisition] = {}
    damaged = 0
    for path in files:
        if _is_too_old(path.name, span):
            continue
        for line in _lines(path):
            one = None if line is None else _decode(line)
            if one is None:
                damaged += 1
            # A crash between a line and the end of its record leaves another one: the first end is the end.
            elif one.id not in found or one.ended_s < found[one.id].ended_s:
                found[one.id] = one
    for one in _not_ended(items, now_s):
        found.setdefault(one.id, one)
    chosen = [one for one in found.values() if one.touches(span)]
    return sorted(chosen, key=lambda one: (one.asked_s, one.id)), damaged


def _is_too_old(name: str, span: Timespan) -> bool:
    """Tell whether a file was written before a timespan; a month more, for nodes whose clocks are wrong."""
    match = _MONTH.search(name)
    if match is None:
        return False
    since = datetime.fromtimestamp(span.since_s)
    return int(match[1]) * 12 + int(match[2]) < since.year * 12 + since.month - 1


def _lines(path: Path) -> Iterator[bytes | None]:
    """Yield the lines of a ledger's file; None for one that is too long, or in the part that cannot be read."""
    try:
        with _open(path) as file:
            while line := file.readline(_MAX_LINE_BYTES):
                if len(line) == _MAX_LINE_BYTES and not line.endswith(b"\n"):
                    while line and not line.endswith(b"\n"):
                        line = file.readline(_MAX_LINE_BYTES)
                    yield None
                elif line.strip():
                    yield line
    except (EOFError, zlib.error, gzip.BadGzipFile):  # an archive that was cut
        yield None
    except OSError as error:
        hint = "run this as root" if isinstance(error, PermissionError) else ""
        raise RecordError(f"cannot read {path}: {error.strerror}", hint) from error


def _open(path: Path) -> IO[bytes] | gzip.GzipFile:
    return gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb")


def _decode(line: bytes) -> Acquisition | None:
    """Return the acquisition that a line tells of; None where it is cut, foreign or of another version."""
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
    if not 0 <= seconds < _MAX_EPOCH_S:  # NaN is in no order
        raise ValueError("no time")
    return seconds


def _not_ended(items: Sequence[Item], now_s: float) -> Iterator[Acquisition]:
    """Yield what the records have: what is held, and what was refused a job that has not ended yet."""
    for item in items:
        for entry in item.record.entries if item.record is not None else ():
            result, ended_s = _standing(entry, now_s)
            if result and item.record is not None:
                ended = Ended(entry, "released", ended_s)
                line = ledger.line_of(item.record, ended, item.folder.array_ids(), "")
                one = _decode(json.dumps({**line, "result": result, "token": None}).encode())
                if one is not None:
                    yield one


def _standing(entry: Entry, now_s: float) -> tuple[str, float]:
    """Return what an entry of a record is called, and until when it counts; nothing while its answer is to come."""
    if entry.state is State.FAILED:
        return "failed", entry.since_s
    if entry.token is not None:
        return HELD, max(now_s, entry.asked_s)
    return (UNKNOWN, max(now_s, entry.asked_s)) if entry.state is State.INDETERMINATE else ("", 0.0)


def group(usage: Usage, keys: Sequence[str]) -> list[Row]:
    """Return what the acquisitions come to by one or more of `KEYS`; the one that held longest first, days in order."""
    rows: dict[tuple[str, ...], Row] = {}
    if list(keys) == ["qpu"]:  # one that nobody has used is the one to ask about
        rows = {(name,): Row((name,)) for name in usage.qpus}
    place = list(keys).index("day") if "day" in keys else None
    for one in usage.acquisitions:
        key = tuple(KEYS[name](one) for name in keys)
        held_s = one.held_s(usage.span)
        if place is None:
            rows.setdefault(key, Row(key)).add(one, held_s)
            continue
        first = _day(max(one.asked_s, usage.span.since_s))
        key = (*key[:place], first, *key[place + 1 :])
        rows.setdefault(key, Row(key)).add(one, 0.0)
        for day, seconds in _by_day(one, usage.span):
            key = (*key[:place], day, *key[place + 1 :])
            rows.setdefault(key, Row(key)).held_s += seconds
    if "qpu" in keys and place is None:
        at = list(keys).index("qpu")
        for row in rows.values():
            row.utilisation = row.held_s / (usage.span.length_s * usage.capacity(row.key[at]))
    if place is not None:
        return [rows[key] for key in sorted(rows, key=lambda key: (key[place], key))]
    return sorted(rows.values(), key=lambda row: (-row.held_s, row.key))


def total(usage: Usage) -> Row:
    """Return what all acquisitions come to."""
    row = Row(("total",))
    for one in usage.acquisitions:
        row.add(one, one.held_s(usage.span))
    capacity = sum(usage.capacity(name) for name in usage.qpus)
    row.utilisation = row.held_s / (usage.span.length_s * capacity) if capacity else None
    return row


def parse_keys(text: str) -> list[str]:
    """Return the keys of `--by`; `acquisition` alone stands for no keys: each one by itself.

    Raises:
        QrmiSlurmError: there is no such key, or it stands there twice.
    """
    keys = [word.strip().lower() for word in text.split(",")]
    if keys == ["acquisition"]:
        return []
    if len(set(keys)) < len(keys) or not set(keys) <= KEYS.keys():
        raise QrmiSlurmError(
            "--by is one or more of " + ", ".join(KEYS), "separated by commas, each once; or acquisition alone"
        )
    return keys


def _day(moment_s: float) -> str:
    return datetime.fromtimestamp(moment_s).date().isoformat()


def _by_day(one: Acquisition, span: Timespan) -> Iterator[tuple[str, float]]:
    """Yield for how many seconds an acquisition was held on each local day of a timespan."""
    if one.acquired_s is None:
        return
    at_s, end_s = max(one.acquired_s, span.since_s), min(one.ended_s, span.until_s)
    while at_s < end_s:
        day = datetime.fromtimestamp(at_s).date()
        next_s = datetime.combine(day + timedelta(days=1), datetime.min.time()).timestamp()
        yield day.isoformat(), min(next_s, end_s) - at_s
        at_s = next_s


def _raise(error: OSError) -> None:
    raise RecordError(f"cannot read {error.filename}: {error.strerror}", "run this as root") from error
