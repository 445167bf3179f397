"""The record: what a job has acquired. It is on disk before QRMI is called, so that no session is lost with a process.

job_folder.py puts it there, as `record.json`.
"""

import json
import time
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, Self

from qrmi_slurm.config.resource_types import is_secret
from qrmi_slurm.errors import NewerRecordError, RecordFormatError
from qrmi_slurm.secret import Secret, masked_repr

# Goes up by one when an older version would do harm with a record: a field is renamed, removed or changes its meaning.
# A newer version's record is left alone. New fields may be added without: versions that do not know them keep them.
RECORD_VERSION: Final = 1

_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class State(StrEnum):
    """The state of one of a job's QPUs."""

    ACQUIRING = "acquiring"  # the intent: QRMI may have been called, and has not answered yet
    ACQUIRED = "acquired"  # the job has it
    RELEASING = "releasing"  # the job does not have it any more; its release is not proven yet
    FAILED = "failed"  # QRMI refused: nothing is held
    INDETERMINATE = "indeterminate"  # no answer came: a session may exist whose token nobody has


class Entry(NamedTuple):
    """One of a job's QPUs.

    Args:
        name: the resource's name.
        type: its type, as the installed QRMI calls it.
        environment: the environment to call QRMI with again; it holds secrets, so it is never in a repr.
        run_as_uid: the user to call QRMI as, where the user brought credentials or addresses; None is root.
        state: its state.
        since_s: since when it has been in that state; seconds since the epoch.
        token: what acquire returned; None until then.
        restart_count: the run of the job that acquired it.
        journal: the number of the journal that its child writes the token to.
        attempts: how often its release was tried.
        reason: why acquiring it, or its last release, failed; masked.
        ends_s: when its session ends, where that is known: its time to live after acquiring began; seconds since the
            epoch.
        session_cap_s: to how many seconds the config or the user has limited its session; None where neither has.
        renewal: the number under which the job's credential broker has opened it; 0 where it has not.
        expires_s: when no session of it can be open any more, whenever the service opened it; the same.
        asked_s: when acquiring it began; seconds since the epoch.
        acquired_s: when the token arrived; None until then.
        license: the Slurm license that counts it; empty where Slurm counts none.
        hold: the reservation that keeps its license from other jobs while its release is not proven; empty where there
            is none.
        others: fields that a newer version has added, as they are; never in a repr.
    """

    name: str
    type: str
    environment: Mapping[str, str]
    run_as_uid: int | None = None
    state: State = State.ACQUIRING
    since_s: float = 0.0
    token: Secret | None = None
    restart_count: int = 0
    journal: int = 0
    attempts: int = 0
    reason: str = ""
    expires_s: float | None = None
    asked_s: float = 0.0
    acquired_s: float | None = None
    license: str = ""
    hold: str = ""
    others: Mapping[str, Any] = _NOTHING
    ends_s: float | None = None
    session_cap_s: int | None = None
    renewal: int = 0

    def __repr__(self) -> str:
        return masked_repr(self, "environment", "others")

    @property
    def is_pending(self) -> bool:
        """Whether a session of it is open, or may be."""
        return self.state is not State.FAILED

    def left_s(self, now_s: float) -> float | None:
        """Return how much longer its session lives, in seconds; 0 once it has ended, None if unknown.

        Never more than its time to live: the clock may have been set back since it was opened.

        Args:
            now_s: seconds since the epoch.
        """
        return None if self.ends_s is None else max(0.0, self.ends_s - max(now_s, self.asked_s))

    def has_expired(self, now_s: float) -> bool:
        """Tell whether the job has it, and its session has reached its end."""
        return self.state is State.ACQUIRED and self.left_s(now_s) == 0

    def to(self, state: State, *, token: Secret | None = None, reason: str = "", attempts: int = 0) -> Self:
        """Return the entry in another state, from now."""
        now_s = time.time()
        return self._replace(
            state=state,
            since_s=now_s,
            acquired_s=now_s if state is State.ACQUIRED else self.acquired_s,
            token=token or self.token,
            reason=reason,
            attempts=self.attempts + attempts,
        )


# How an acquisition ended:
#   released    given back, confirmed by the service
#   gone        the service no longer knew it: it expired, or somebody else closed it; or, with credentials of the
#               user's, it expired before a release was confirmed
#   failed      never acquired
#   expired     acquire got no answer; a session, if there was one, has expired
#   forgotten   as `expired`, but an admin dropped it before that: `qrmi-slurm release --forget`
Result = Literal["released", "gone", "failed", "expired", "forgotten"]


class Ended(NamedTuple):
    """An acquisition that has ended.

    Args:
        entry: the QPU.
        result: how it ended.
        ended_s: when; seconds since the epoch.
    """

    entry: Entry
    result: Result
    ended_s: float


class Broker(NamedTuple):
    """A job's credential broker: the process that keeps the site's key from the job and adds it to its requests.

    Args:
        pid: its process id on the node that acquired.
        start_ticks: when it started, in clock ticks since boot; together with the pid it identifies one process.
        port: the loopback port that it listens on.
        restart_count: the run of the job that it serves.
        keys: by the QPU's name, the key that the job has instead of the site's.
        space: the prefix of the job's object names in S3.
        ends_s: until when the job may run; seconds since the epoch.
        sessions: by the QPU's name, the session that the job knows; the broker may have opened another in its place.
        margin_s: how much longer than the job a session may live, in seconds.
        renewals: the number of the last session of the broker's own that has been put among the entries.
        others: fields that a newer version has added, as they are; never in a repr.
    """

    pid: int
    start_ticks: int
    port: int
    restart_count: int
    keys: Mapping[str, Secret]
    space: str
    ends_s: float
    others: Mapping[str, Any] = _NOTHING
    sessions: Mapping[str, Secret] = MappingProxyType({})
    margin_s: float = 0.0
    renewals: int = 0

    def __repr__(self) -> str:
        return masked_repr(self, "others")


class Record(NamedTuple):
    """What was acquired for a job, and by whom.

    Args:
        cluster: the cluster's name.
        job_id: Slurm's id.
        uid: the job's owner.
        node: the node that acquires and releases.
        boot_id: the kernel's boot id there at that time.
        restart_count: how often the job had been requeued.
        created_s: seconds since the epoch.
        entries: the QPUs.
        user: the owner's login name; empty where Slurm did not say.
        account: the job's account; empty where it has none.
        het_job_id: the heterogeneous job that it is a component of; None where it is not one.
        broker: the job's credential broker; None where it has none.
        start_s: when the job started, by slurmctld's clock, in seconds since the epoch; None if slurmctld did not say.
            With cluster, id and restart count it identifies one run of one job: Slurm may use an id again.
        selection: the value of its `--qpu`.
        node_count: how many nodes it had when it started.
        has_left: whether its node was taken from the job, so that the job's first node releases.
        job_ends_s: until when Slurm lets the job run, as far as known: its time limit and OverTimeLimit; seconds since
            the epoch.
        over_s: how much longer than its time limit Slurm lets it run, in seconds.
        others: fields that a newer version has added, as they are; never in a repr.
    """

    cluster: str
    job_id: int
    uid: int
    node: str
    boot_id: str
    restart_count: int
    created_s: float
    entries: tuple[Entry, ...] = ()
    user: str = ""
    account: str = ""
    het_job_id: int | None = None
    broker: Broker | None = None
    start_s: int | None = None
    selection: str = ""
    node_count: int = 1
    has_left: bool = False
    others: Mapping[str, Any] = _NOTHING
    job_ends_s: float | None = None
    over_s: int = 0

    def __repr__(self) -> str:
        return masked_repr(self, "others")

    @property
    def identity(self) -> tuple[str, int, int, int | None, float, str]:
        """What distinguishes one run of a job, and its Prolog, from any other."""
        return self.cluster, self.job_id, self.restart_count, self.start_s, self.created_s, self.boot_id

    @property
    def held(self) -> tuple[Entry, ...]:
        """The QPUs that this run of the job has: the one place that says so."""
        return tuple(
            entry
            for entry in self.entries
            if entry.state is State.ACQUIRED and entry.restart_count == self.restart_count
        )

    def ends_before_job(self, entry: Entry) -> bool:
        """Tell whether a QPU's session ends before the job has to."""
        return None not in (entry.ends_s, self.job_ends_s) and (entry.ends_s or 0) < (self.job_ends_s or 0)

    @property
    def next_journal(self) -> int:
        """A journal number that no entry has yet."""
        return max((entry.journal for entry in self.entries), default=-1) + 1

    def with_another(self, entry: Entry) -> Self:
        """Return the record with another entry."""
        return self._replace(entries=(*self.entries, entry))

    def with_entry(self, index: int, entry: Entry) -> Self:
        """Return the record with one entry replaced."""
        entries = (*self.entries[:index], entry, *self.entries[index + 1 :])
        return self._replace(entries=entries)


def boot_id() -> str:
    """Return the running kernel's boot id; empty where it has none."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


_RECORD_FIELDS: Final = frozenset({*Record._fields, "version"})
_ENTRY_FIELDS: Final = frozenset({*Entry._fields, "is_users"})
_BROKER_FIELDS: Final = frozenset(Broker._fields)


def _others(fields: Mapping[str, Any], known: frozenset[str]) -> Mapping[str, Any]:
    """Return the fields that this version does not know."""
    names = fields.keys() - known
    return {name: fields[name] for name in names} if names else _NOTHING


def encode(record: Record) -> bytes:
    """Return the text of a record's file; secrets in it."""
    document = {
        **record.others,
        "version": RECORD_VERSION,
        "cluster": record.cluster,
        "job_id": record.job_id,
        "uid": record.uid,
        "node": record.node,
        "boot_id": record.boot_id,
        "restart_count": record.restart_count,
        "created_s": record.created_s,
        "user": record.user,
        "account": record.account,
        "het_job_id": record.het_job_id,
        "start_s": record.start_s,
        "selection": record.selection,
        "node_count": record.node_count,
        "has_left": record.has_left,
        "job_ends_s": record.job_ends_s,
        "over_s": record.over_s,
        "entries": [
            {
                **entry.others,
                "name": entry.name,
                "type": entry.type,
                "environment": dict(entry.environment),
                "run_as_uid": entry.run_as_uid,
                "is_users": entry.run_as_uid is not None,
                "state": entry.state,
                "since_s": entry.since_s,
                "token": entry.token.reveal() if entry.token else None,
                "restart_count": entry.restart_count,
                "journal": entry.journal,
                "attempts": entry.attempts,
                "reason": entry.reason,
                "ends_s": entry.ends_s,
                "session_cap_s": entry.session_cap_s,
                "renewal": entry.renewal,
                "expires_s": entry.expires_s,
                "asked_s": entry.asked_s,
                "acquired_s": entry.acquired_s,
                "license": entry.license,
                "hold": entry.hold,
            }
            for entry in record.entries
        ],
        "broker": _encode_broker(record.broker) if record.broker is not None else None,
    }
    return json.dumps(document, ensure_ascii=True).encode()


def _encode_broker(broker: Broker) -> dict[str, Any]:
    revealed = {
        of: {name: secret.reveal() for name, secret in secrets.items()}
        for of, secrets in (("keys", broker.keys), ("sessions", broker.sessions))
    }
    fields = {**broker.others, **broker._asdict(), **revealed}
    del fields["others"]
    return fields


def decode(content: bytes, path: Path | str) -> Record:
    """Return the record that a file's text holds.

    Args:
        content: the text.
        path: the file; for messages.

    Raises:
        NewerRecordError: a newer version wrote it.
        RecordFormatError: it is not in a format this version understands.
    """
    try:
        document = json.loads(content)
        version = document["version"]
        if type(version) is int and version > RECORD_VERSION:
            raise NewerRecordError(
                f"{path} has version {str(version)[:20]} of a newer qrmi-slurm, and is left alone; this one writes "
                f"version {RECORD_VERSION}",
                "an admin can run the recover command of the newer qrmi-slurm",
            )
        if version != RECORD_VERSION:
            raise RecordFormatError(f"{path} has version {str(version)[:20]!r}, this program reads {RECORD_VERSION}")
        created_s = float(document["created_s"])
        het_job_id = document.get("het_job_id")
        start_s = document.get("start_s")
        return Record(
            cluster=str(document["cluster"]),
            job_id=int(document["job_id"]),
            uid=int(document["uid"]),
            node=str(document["node"]),
            boot_id=str(document["boot_id"]),
            restart_count=int(document["restart_count"]),
            created_s=created_s,
            entries=tuple(_decode_entry(item, created_s) for item in document["entries"]),
            # Added later, for accounting: older records lack these, and older versions ignore them.
            user=str(document.get("user", "")),
            account=str(document.get("account", "")),
            het_job_id=None if het_job_id is None else int(het_job_id),
            broker=_decode_broker(document["broker"]) if document.get("broker") is not None else None,
            start_s=None if start_s is None else int(start_s),
            selection=str(document.get("selection", "")),
            node_count=int(document.get("node_count", 1)),
            has_left=bool(document.get("has_left", False)),
            job_ends_s=_float_or_none(document.get("job_ends_s")),
            over_s=int(document.get("over_s", 0)),
            others=_others(document, _RECORD_FIELDS),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise RecordFormatError(f"{path} is not a record: {type(error).__name__}") from None


def _decode_entry(item: Mapping[str, Any], created_s: float) -> Entry:
    environment = item["environment"]
    if not {str}.issuperset(map(type, environment.values())):  # the names are strings: it is JSON
        raise ValueError("environment")
    state = State(item["state"])
    acquired_s = item.get("acquired_s", item["since_s"] if state is State.ACQUIRED else None)
    return Entry(
        name=str(item["name"]),
        type=str(item["type"]),
        environment=environment,
        # Older versions called QRMI as the user with the site's secrets, too, where the user had only tuned a value.
        run_as_uid=int(item["run_as_uid"]) if item.get("is_users") else None,
        state=state,
        since_s=float(item["since_s"]),
        token=None if item["token"] is None else Secret(str(item["token"])),
        restart_count=int(item["restart_count"]),
        journal=int(item["journal"]),
        attempts=int(item["attempts"]),
        reason=str(item["reason"]),
        ends_s=_float_or_none(item.get("ends_s")),
        renewal=int(item.get("renewal", 0)),
        session_cap_s=None if item.get("session_cap_s") is None else int(item["session_cap_s"]),
        expires_s=_float_or_none(item["expires_s"]),
        asked_s=float(item.get("asked_s", created_s)),
        acquired_s=_float_or_none(acquired_s),
        license=str(item.get("license", "")),
        hold=str(item.get("hold", "")),
        others=_others(item, _ENTRY_FIELDS),
    )


def _float_or_none(value: Any) -> float | None:
    return None if value is None else float(value)


def _decode_broker(item: Mapping[str, Any]) -> Broker:
    return Broker(
        pid=int(item["pid"]),
        start_ticks=int(item["start_ticks"]),
        port=int(item["port"]),
        restart_count=int(item["restart_count"]),
        keys={str(name): Secret(str(key)) for name, key in item["keys"].items()},
        space=str(item["space"]),
        ends_s=float(item["ends_s"]),
        others=_others(item, _BROKER_FIELDS),
        sessions={str(name): Secret(str(token)) for name, token in item.get("sessions", {}).items()},
        margin_s=float(item.get("margin_s", 0.0)),
        renewals=int(item.get("renewals", 0)),
    )


def secrets_of(entries: Sequence[Entry]) -> list[Secret]:
    """Return every secret in the entries, for masking messages about them."""
    tokens = [entry.token for entry in entries if entry.token]
    return tokens + [secret for entry in entries for secret in secrets_in(entry.environment)]


def secrets_in(environment: Mapping[str, str]) -> list[Secret]:
    """Return every secret in an environment; a proxy URL from `--env:` counts where it has a password."""
    return [Secret(value) for variable, value in environment.items() if is_secret(variable) or "@" in value]
