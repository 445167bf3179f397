"""The record: what was acquired for a job, on disk before QRMI is called, so that nothing is lost with a process.

One folder a job, `<state dir>/<cluster>/<job id>/`: root's, `0711`. In it `record.json` (`0600`), `lock`, one
`token-<n>` a QPU that the acquiring child writes by itself, `array`, which the plugin leaves there for a task of a job
array, `broker` (`broker/`), and `exports`, the job's user's. What nobody can read goes into a folder of its own below
`<state dir>/<cluster>/.set-aside/`.
"""

import contextlib
import errno
import fcntl
import json
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, Self

from qrmi_slurm import names, trust
from qrmi_slurm.errors import RecordBusyError, RecordError, RecordFormatError
from qrmi_slurm.resource_types import is_secret
from qrmi_slurm.secret import Secret, masked_repr

RECORD_VERSION: Final = 1

# How long a hook waits for another one (or for recover) that holds the record, on top of its own deadline.
_LOCK_POLL_S: Final = 0.02

# Where a cluster's records go that nobody can read; on the same file system as they are, and no job's id.
SET_ASIDE: Final = ".set-aside"

_LOOK_HINT: Final = "an admin has to look at --state-dir: space, owner, read-only?"

_SET_ASIDE_HINT: Final = (
    "an admin has to see at the service whether a session of that job is open, close it, and remove that folder"
)

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class State(StrEnum):
    """Where one QPU of a job stands."""

    ACQUIRING = "acquiring"  # the intent: QRMI may have been called, its answer is not known yet
    ACQUIRED = "acquired"
    RELEASING = "releasing"  # a release was begun and is not proven yet
    FAILED = "failed"  # QRMI refused: nothing is held
    INDETERMINATE = "indeterminate"  # no answer came: a session may exist that nobody has the token of


class Entry(NamedTuple):
    """One QPU of a job.

    Args:
        name: the resource's name.
        type: its type, as the installed QRMI calls it.
        environment: the child's environment to call QRMI with again; secrets in it, so never in a repr.
        run_as_uid: the user to call as, where the user supplied variables; None is root.
        state: where it stands.
        since_s: when it came to stand there; seconds since the epoch.
        token: what acquire returned; None until then.
        restart_count: which run of the job acquired it.
        journal: the number of the journal that its child writes a token to.
        attempts: how often its release was tried.
        reason: why it failed, or why the last release did; masked.
        expires_s: when the service ends the session by itself, where that is known; seconds since the epoch.
        asked_s: when acquiring it began; seconds since the epoch.
        acquired_s: when the token came; None until then.
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

    def __repr__(self) -> str:
        return masked_repr(self, "environment")

    @property
    def is_pending(self) -> bool:
        """Whether a session of it is, or may be, open."""
        return self.state is not State.FAILED

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


# How an acquisition's life ended:
#   released    given back, confirmed by the service
#   gone        the service no longer knew it: it had ended by itself, or by somebody else's hand
#   failed      never acquired
#   expired     no answer came to acquiring it; what there was has ended by itself
#   forgotten   as `expired`, but dropped before that by an admin: `qrmi-slurm release --forget`
Result = Literal["released", "gone", "failed", "expired", "forgotten"]


class Ended(NamedTuple):
    """A QPU of a job whose life there has ended.

    Args:
        entry: the QPU.
        result: how it ended.
        ended_s: when; seconds since the epoch.
    """

    entry: Entry
    result: Result
    ended_s: float


class Broker(NamedTuple):
    """The process that keeps the site's key from a job, and speaks for it.

    Args:
        pid: its process id on the node that acquired.
        start_ticks: when it started, in clock ticks since boot; with the pid that names one process for good.
        port: where it listens on loopback.
        restart_count: which run of the job it serves.
        keys: by the QPU's name, what the job's environment has instead of the site's key.
        space: what the names of the job's objects in S3 begin with.
        ends_s: until when the job may run; seconds since the epoch.
    """

    pid: int
    start_ticks: int
    port: int
    restart_count: int
    keys: Mapping[str, Secret]
    space: str
    ends_s: float


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
        entries: the QPUs; those of an earlier run of a requeued job first.
        user: the owner's login name; empty where Slurm did not say.
        account: the job's account; empty where it has none.
        het_job_id: the id of the heterogeneous job that it is a component of; None where it is of none.
        broker: the job's credential broker; None where it has none.
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

    @property
    def next_journal(self) -> int:
        """A number that no entry's journal has."""
        return max((entry.journal for entry in self.entries), default=-1) + 1

    def with_another(self, entry: Entry) -> Self:
        """Return the record with one entry more."""
        return self._replace(entries=(*self.entries, entry))

    def with_entry(self, index: int, entry: Entry) -> Self:
        """Return the record with one entry replaced."""
        entries = (*self.entries[:index], entry, *self.entries[index + 1 :])
        return self._replace(entries=entries)


def boot_id() -> str:
    """Return the running kernel's boot id; empty where it has none to tell."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


class JobFolder:
    """A job's folder in the state directory.

    Args:
        state_dir: the site's `--state-dir`.
        cluster: the cluster's name; one path component.
        job_id: Slurm's id.
    """

    def __init__(self, state_dir: Path, cluster: str, job_id: int) -> None:
        self.state_dir = state_dir
        self.cluster = cluster
        self.job_id = job_id
        self.path = state_dir / cluster / str(job_id)
        self.exports_path = self.path / names.EXPORTS_FILE
        self.broker_path = self.path / "broker"
        self._record_path = self.path / names.RECORD_FILE

    def create(self) -> None:
        """Make the folder and those above it, `0711` and this user's.

        Raises:
            RecordError: it cannot be made, or somebody else could write in it.
        """
        self._require_trust()
        try:
            for path in (self.state_dir, self.path.parent, self.path):
                _make_folder(path)
                _require_own(path)
        except OSError as error:
            raise RecordError(
                f"cannot make {error.filename or self.path}: {error.strerror}",
                _LOOK_HINT,
            ) from error

    def exists(self) -> bool:
        """Tell whether the folder is there."""
        return self.path.is_dir()

    def _require_trust(self) -> None:
        """Raise where another user could put another folder in this place: root does what stands in a record."""
        try:
            weak = trust.weak_place(self.path)
        except OSError as error:
            raise RecordError(f"cannot look at {self.path}: {error.strerror}", _LOOK_HINT) from error
        if weak is not None:
            status = weak.lstat()
            raise RecordError(
                f"{weak} is owned by uid {status.st_uid} with mode {stat.S_IMODE(status.st_mode):04o}, so that others "
                f"could take the place of {self.path}",
                f"an admin has to run: chown root {weak} && chmod go-w {weak}, or choose another --state-dir",
            )

    @contextlib.contextmanager
    def locked(self, timeout_s: float, *, make: bool = False) -> Iterator[None]:
        """Hold the record's lock, so that Epilog and recover do not meet in it.

        Args:
            timeout_s: how long to wait for another holder, in seconds.
            make: make the folder again where the one that held the lock has removed it.

        Raises:
            RecordBusyError: the lock was not to be had in that time.
            RecordError: the folder is gone, or is none to lock in.
        """
        deadline_s = time.monotonic() + timeout_s
        while (fd := self._try_lock(make=make)) is None:
            if make:
                self.create()
            if time.monotonic() >= deadline_s:
                raise RecordBusyError(f"{self.path} is held by another process for over {timeout_s:.3g} s")
            time.sleep(_LOCK_POLL_S)
        try:
            yield
        finally:
            os.close(fd)

    def _try_lock(self, *, make: bool) -> int | None:
        """Return the descriptor that holds the lock; None where another process has it, or had it and removed it."""
        path = self.path / "lock"
        fd = None
        try:
            fd = _open_lock(path)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(fd), path.stat()):
                held, fd = fd, None
                return held
        except BlockingIOError:
            pass
        except FileNotFoundError as error:
            if not self.exists() and not make:
                raise RecordError(f"cannot lock {self.path}: it is gone") from error
        except OSError as error:
            raise RecordError(f"cannot lock {self.path}: {error.strerror}") from error
        finally:
            if fd is not None:
                os.close(fd)
        return None

    def read(self) -> Record | None:
        """Return the record, tokens that children left behind included; None where there is none.

        Raises:
            RecordError: it cannot be read; a RecordFormatError where it is not one of ours.
        """
        self._require_trust()
        try:
            content = _read_own(self._record_path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RecordError(f"cannot read {self._record_path}: {error.strerror}") from error
        record = _decode(content, self._record_path)
        if (record.cluster, record.job_id) != (self.cluster, self.job_id):
            raise RecordFormatError(f"{self._record_path} is of job {record.job_id} of another folder")
        return self._with_journaled_tokens(record)

    def read_or_set_aside(self) -> tuple[Record | None, RecordError | None]:
        """Read the record, and move one that nobody can understand out of the way, where it blocks no job.

        Returns:
            The record, None where there is none to be used; and what was wrong with one set aside.

        Raises:
            RecordError: it cannot be read just now, or not be moved.
        """
        try:
            return self.read(), None
        except RecordFormatError as error:
            place = self.path.parent / SET_ASIDE / f"{self.job_id}-{time.time_ns()}"
            try:
                place.parent.mkdir(mode=0o700, exist_ok=True)
                place.mkdir(mode=0o700)
                # The journals as well: what a child has written or still writes there may be a token's only trace.
                for path in (*self.path.glob("token-*"), self._record_path):
                    path.rename(place / path.name)
            except OSError as move_error:
                raise RecordError(f"{error.message}; it cannot be moved: {move_error.strerror}", _LOOK_HINT) from error
            return None, RecordError(f"{error.message}; moved to {place}", error.hint or _SET_ASIDE_HINT)

    def write(self, record: Record) -> None:
        """Put the record on disk for good: written beside, synced, renamed, the folder synced.

        Raises:
            RecordError: the disk did not take it.
        """
        content = json.dumps(_encode(record), ensure_ascii=True).encode()
        try:
            _replace(self._record_path, content, mode=0o600)
        except OSError as error:
            raise RecordError(
                f"cannot write {self._record_path}: {error.strerror}",
                _LOOK_HINT,
            ) from error

    def write_exports(self, content: str, uid: int) -> None:
        """Put the exports in place, readable by the job's user alone, and not for longer than this boot.

        Raises:
            RecordError: the disk did not take them.
        """
        try:
            _replace(self.exports_path, content.encode("utf-8", "surrogateescape"), 0o400, uid=uid, is_durable=False)
        except OSError as error:
            raise RecordError(f"cannot write {self.exports_path}: {error.strerror}") from error
        except UnicodeEncodeError:
            raise RecordError(f"cannot write {self.exports_path}: a value is no text") from None

    def remove_exports(self) -> None:
        """Take the exports away: no task may begin with them any more.

        Raises:
            RecordError: the disk did not let them go.
        """
        try:
            self.exports_path.unlink(missing_ok=True)
        except OSError as error:
            raise RecordError(f"cannot remove {self.exports_path}: {error.strerror}", _LOOK_HINT) from error

    def open_journal(self, number: int) -> int:
        """Return a descriptor of the journal that an entry's child writes its token to.

        Raises:
            RecordError: it cannot be made.
        """
        path = self._journal_path(number)
        try:
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise RecordError(f"cannot make {path}: {error.strerror}") from error

    def journaled_token(self, number: int) -> Secret | None:
        """Return the token that a child left in a journal; None where it left none."""
        try:
            content = _read_own(self._journal_path(number))
        except OSError:
            return None
        return Secret(content.decode("utf-8", "surrogateescape")) if content else None

    def array_ids(self) -> tuple[int, int] | None:
        """Return the ids of the job array and of the job in it; None where the plugin has left none."""
        try:
            array, _, task = _read_own(self.path / "array").decode().strip().partition("_")
            return int(array), int(task)
        except (OSError, ValueError):
            return None

    def drop_journal(self, number: int) -> None:
        """Remove the journal of an entry whose token the record has; one that stays does no harm."""
        with contextlib.suppress(OSError):
            self._journal_path(number).unlink()

    def remove(self) -> None:
        """Remove the folder and all in it; the record goes last but the lock, so that a crash leaves it readable.

        Raises:
            RecordError: something cannot be removed.
        """
        try:
            found = set(os.listdir(self.path))
            last = [name for name in (names.RECORD_FILE, "lock") if name in found]
            for name in sorted(found - set(last)) + last:
                (self.path / name).unlink(missing_ok=True)
            self.path.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            raise RecordError(f"cannot remove {self.path}: {error.strerror}", _LOOK_HINT) from error

    def remove_if_empty(self) -> None:
        """Remove a folder in which nothing is, or that is gone."""
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def _journal_path(self, number: int) -> Path:
        return self.path / f"token-{number}"

    def _with_journaled_tokens(self, record: Record) -> Record:
        for index, entry in enumerate(record.entries):
            token = self.journaled_token(entry.journal) if entry.token is None else None
            if token is not None:
                held = entry.to(State.ACQUIRED, token=token)
                with contextlib.suppress(OSError):  # it is held since its child has said so
                    held = held._replace(acquired_s=self._journal_path(entry.journal).stat().st_mtime)
                record = record.with_entry(index, held)
        return record


def _encode(record: Record) -> dict[str, Any]:
    return {
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
        "entries": [
            {
                "name": entry.name,
                "type": entry.type,
                "environment": dict(entry.environment),
                "run_as_uid": entry.run_as_uid,
                "state": entry.state,
                "since_s": entry.since_s,
                "token": entry.token.reveal() if entry.token else None,
                "restart_count": entry.restart_count,
                "journal": entry.journal,
                "attempts": entry.attempts,
                "reason": entry.reason,
                "expires_s": entry.expires_s,
                "asked_s": entry.asked_s,
                "acquired_s": entry.acquired_s,
            }
            for entry in record.entries
        ],
        "broker": _encode_broker(record.broker) if record.broker is not None else None,
    }


def _encode_broker(broker: Broker) -> dict[str, Any]:
    return {**broker._asdict(), "keys": {name: key.reveal() for name, key in broker.keys.items()}}


def _decode(content: bytes, path: Path) -> Record:
    try:
        document = json.loads(content)
        version = document["version"]
        if version != RECORD_VERSION:
            raise RecordFormatError(
                f"{path} is of version {str(version)[:20]!r}, this program reads {RECORD_VERSION}",
                "an admin can move it back and let the qrmi-slurm that wrote it run: qrmi-slurm recover",
            )
        created_s = float(document["created_s"])
        het_job_id = document.get("het_job_id")
        return Record(
            cluster=str(document["cluster"]),
            job_id=int(document["job_id"]),
            uid=int(document["uid"]),
            node=str(document["node"]),
            boot_id=str(document["boot_id"]),
            restart_count=int(document["restart_count"]),
            created_s=created_s,
            entries=tuple(_decode_entry(item, created_s) for item in document["entries"]),
            # What accounting needs was added later: an older record lacks it, and an older program reads past it.
            user=str(document.get("user", "")),
            account=str(document.get("account", "")),
            het_job_id=None if het_job_id is None else int(het_job_id),
            broker=_decode_broker(document["broker"]) if document.get("broker") is not None else None,
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise RecordFormatError(f"{path} is not a record: {type(error).__name__}") from None


def _decode_entry(item: Mapping[str, Any], created_s: float) -> Entry:
    environment = item["environment"]
    if not all(isinstance(part, str) for pair in environment.items() for part in pair):
        raise ValueError("environment")
    state = State(item["state"])
    acquired_s = item.get("acquired_s", item["since_s"] if state is State.ACQUIRED else None)
    return Entry(
        name=str(item["name"]),
        type=str(item["type"]),
        environment=environment,
        run_as_uid=None if item["run_as_uid"] is None else int(item["run_as_uid"]),
        state=state,
        since_s=float(item["since_s"]),
        token=None if item["token"] is None else Secret(str(item["token"])),
        restart_count=int(item["restart_count"]),
        journal=int(item["journal"]),
        attempts=int(item["attempts"]),
        reason=str(item["reason"]),
        expires_s=None if item["expires_s"] is None else float(item["expires_s"]),
        asked_s=float(item.get("asked_s", created_s)),
        acquired_s=None if acquired_s is None else float(acquired_s),
    )


def _decode_broker(item: Mapping[str, Any]) -> Broker:
    return Broker(
        pid=int(item["pid"]),
        start_ticks=int(item["start_ticks"]),
        port=int(item["port"]),
        restart_count=int(item["restart_count"]),
        keys={str(name): Secret(str(key)) for name, key in item["keys"].items()},
        space=str(item["space"]),
        ends_s=float(item["ends_s"]),
    )


def _make_folder(path: Path) -> None:
    """Make a folder and what is missing above it, so that job users can pass through, whatever the umask."""
    if not path.parent.exists():
        _make_folder(path.parent)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o711)
        path.chmod(0o711)


def _require_own(path: Path) -> None:
    """Raise where a folder of the state is a link, somebody else's, or open to others' writing."""
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise RecordError(f"{path} is not a folder", "an admin has to remove it, or choose another --state-dir")
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise RecordError(
            f"{path} is owned by uid {status.st_uid} with mode {stat.S_IMODE(status.st_mode):04o}",
            f"an admin has to run: chown root {path} && chmod 0711 {path}",
        )


def _open_lock(path: Path) -> int:
    """Open the lock's file; where the file system has become read-only, as it is there: flock(2) needs no writing."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _read_own(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        return file.read()


def _replace(path: Path, content: bytes, mode: int, *, uid: int | None = None, is_durable: bool = True) -> None:
    """Put a file in the place of another, or of none, at once; a durable one is there after a crash of the machine."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(fd, mode)
            if uid is not None:
                os.fchown(fd, uid, -1)
            if is_durable:
                os.fsync(fd)
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    if not is_durable:
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def secrets_of(entries: Sequence[Entry]) -> list[Secret]:
    """Return every secret that entries hold, for masking what is said about them."""
    tokens = [entry.token for entry in entries if entry.token]
    return tokens + [secret for entry in entries for secret in secrets_in(entry.environment)]


def secrets_in(environment: Mapping[str, str]) -> list[Secret]:
    """Return every secret of an environment; a proxy's URL from `--env:` counts where it carries a password."""
    return [Secret(value) for variable, value in environment.items() if is_secret(variable) or "@" in value]
