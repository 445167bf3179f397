"""The usage: who held which QPU, and for how long, added up by user, account, QPU, day and so on."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from qrmi_slurm.errors import QrmiSlurmError
from qrmi_slurm.report.acquisition import NOT_ACQUIRED, Acquisition
from qrmi_slurm.report.timespan import Timespan


@dataclass(frozen=True, slots=True)
class Usage:
    """All acquisitions in a timespan.

    Args:
        span: the timespan.
        acquisitions: in the order in which they were asked for.
        capacities: how many jobs may hold each QPU of the config at a time, by its name.
        damaged: how many lines of the ledger could not be read.
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

    def available_s(self, qpu: str) -> float:
        """Return for how many seconds a QPU could be held in the timespan, by all jobs together."""
        return self.span.length_s * self.capacity(qpu)


@dataclass(slots=True)
class Row:
    """What acquisitions with something in common add up to.

    Args:
        key: what they have in common: a text for each of the report's keys.
        jobs: the cluster and id of each of their jobs.
        acquired: how many of them were acquired.
        failed: how many were not.
        held_s: for how many seconds of the report's timespan QPUs were held.
        utilization: `held_s` as a share of the time for which they could be held, 0 to 1; None if that has no meaning.
    """

    key: tuple[str, ...]
    jobs: set[tuple[str, int]] = field(default_factory=set)
    acquired: int = 0
    failed: int = 0
    held_s: float = 0.0
    utilization: float | None = None

    def add(self, one: Acquisition, held_s: float) -> None:
        """Count an acquisition, with the seconds of it that belong to this row."""
        self.jobs.add((one.cluster, one.job_id))
        self.acquired += one.acquired_s is not None
        self.failed += one.result in NOT_ACQUIRED
        self.held_s += held_s


# The keys that a report can be grouped by, and an acquisition's text for each.
KEYS: Final[Mapping[str, Callable[[Acquisition], str]]] = {
    "user": lambda one: one.user,
    "account": lambda one: one.account,
    "qpu": lambda one: one.qpu,
    "type": lambda one: one.type,
    "node": lambda one: one.node,
    "cluster": lambda one: one.cluster,
    "day": lambda one: _day(max(one.asked_s, 0)),
}

# In place of keys: do not group.
UNGROUPED: Final = "acquisition"


def parse_keys(text: str) -> list[str]:
    """Return the keys of `--by`; none for `acquisition`.

    Raises:
        QrmiSlurmError: there is no such key, or one is given twice.
    """
    keys = [word.strip().lower() for word in text.split(",")]
    if keys == [UNGROUPED]:
        return []
    if len(set(keys)) < len(keys) or not set(keys) <= KEYS.keys():
        raise QrmiSlurmError(
            f"--by takes one or more of {', '.join(KEYS)}",
            f"separate them with commas, each at most once; or give {UNGROUPED} alone",
        )
    return keys


def group(usage: Usage, keys: Sequence[str]) -> list[Row]:
    """Return what the acquisitions add up to by one or more of `KEYS`; the longest held first, days in order."""
    return _by_day(usage, keys) if "day" in keys else _by_keys(usage, keys)


def total(usage: Usage) -> Row:
    """Return what all acquisitions add up to."""
    row = Row(("total",))
    for one in usage.acquisitions:
        row.add(one, one.held_s(usage.span))
    capacity = sum(usage.capacity(name) for name in usage.qpus)
    row.utilization = row.held_s / (usage.span.length_s * capacity) if capacity else None
    return row


def _by_keys(usage: Usage, keys: Sequence[str]) -> list[Row]:
    rows: dict[tuple[str, ...], Row] = {}
    if list(keys) == ["qpu"]:  # a QPU that nobody used is the one to ask about
        rows = {(name,): Row((name,)) for name in usage.qpus}
    for one in usage.acquisitions:
        key = tuple(KEYS[name](one) for name in keys)
        rows.setdefault(key, Row(key)).add(one, one.held_s(usage.span))
    if "qpu" in keys:
        place = list(keys).index("qpu")
        for row in rows.values():
            row.utilization = row.held_s / usage.available_s(row.key[place])
    return sorted(rows.values(), key=lambda row: (-row.held_s, row.key))


def _by_day(usage: Usage, keys: Sequence[str]) -> list[Row]:
    """Return rows of which one key is the day; an acquisition is counted on its first day and held on each of them."""
    place = list(keys).index("day")
    rows: dict[tuple[str, ...], Row] = {}

    def row_of(one: Acquisition, day: str) -> Row:
        key = tuple(day if name == "day" else KEYS[name](one) for name in keys)
        return rows.setdefault(key, Row(key))

    for one in usage.acquisitions:
        row_of(one, _day(max(one.asked_s, usage.span.since_s))).add(one, 0.0)
        for day, seconds in _days_held(one, usage.span):
            row_of(one, day).held_s += seconds
    return [rows[key] for key in sorted(rows, key=lambda key: (key[place], key))]


def _day(moment_s: float) -> str:
    return datetime.fromtimestamp(moment_s).date().isoformat()


def _days_held(one: Acquisition, span: Timespan) -> Iterator[tuple[str, float]]:
    """Yield each local day of a timespan on which an acquisition was held, and for how many seconds."""
    if one.acquired_s is None:
        return
    at_s, end_s = max(one.acquired_s, span.since_s), min(one.ended_s, span.until_s)
    while at_s < end_s:
        day = datetime.fromtimestamp(at_s).date()
        next_s = datetime.combine(day + timedelta(days=1), datetime.min.time()).timestamp()
        yield day.isoformat(), min(next_s, end_s) - at_s
        at_s = next_s
