"""A job's folder in the state directory: `<state dir>/<cluster>/<job id>/`, root's, `0711`.

In it are `record.json` (`0600`), `lock`, a `token-<n>` for each QPU (journal.py), `exports`, owned by the job's user,
`array`, which the plugin writes for a task of a job array, `looked`, which recover writes for a job that goes on,
`renewed`, the user's, which it writes with a new session, and `broker` (broker/launch.py). A record that cannot be
read is moved to `<state dir>/<cluster>/.set-aside/`, where it blocks no job. One of an earlier run, or of another job
that had the same number, is in a folder of its own, `<job id>.<time>`.
"""

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from qrmi_slurm import files, names
from qrmi_slurm.errors import RecordBusyError, RecordError, RecordFormatError
from qrmi_slurm.state import record as records
from qrmi_slurm.state.journal import Journals
from qrmi_slurm.state.record import Entry, Record, State

if TYPE_CHECKING:
    from qrmi_slurm.state.renewals import Renewal

# Where a cluster's unreadable records go; on the same file system, and not a job's id.
SET_ASIDE: Final = ".set-aside"

_LOCK_FILE: Final = "lock"

# Which node has last looked for the job; recover.
_SIGNED_FILE: Final = "looked"
_SIGNING: Final = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_NODE_BYTES: Final = 256

# A broker waits this long for its service's answer, in seconds (broker/upstream.py); a session may be as late.
_MAX_OPENING_S: Final = 330.0

_LOOK_HINT: Final = "an admin has to check --state-dir: space, owner, read-only?"

_SET_ASIDE_HINT: Final = (
    "an admin has to check at the service whether the job still has a session open, close it, and remove that folder"
)


class JobFolder:
    """A job's folder.

    Args:
        state_dir: the site's `--state-dir`.
        cluster: the cluster's name; one path component.
        job_id: Slurm's id.
        name: the folder's name, where it is that of an earlier run.
    """

    def __init__(self, state_dir: Path, cluster: str, job_id: int, name: str = "") -> None:
        self.state_dir = state_dir
        self.cluster = cluster
        self.job_id = job_id
        self.is_aside = bool(name) and name != str(job_id)
        self._place = f"{state_dir}/{cluster}/{name or job_id}"

    # Made when they are needed: an inventory may have thousands of folders, and a path takes microseconds to make.

    @cached_property
    def path(self) -> Path:
        """The folder's path."""
        return Path(self._place)

    @cached_property
    def exports_path(self) -> Path:
        """The file of its exports."""
        return self.path / names.EXPORTS_FILE

    @cached_property
    def broker_path(self) -> Path:
        """The file without which its credential broker ends."""
        return self.path / "broker"

    @cached_property
    def journals(self) -> Journals:
        """Its journals."""
        return Journals(self._place)

    @cached_property
    def _record_path(self) -> Path:
        return self.path / names.RECORD_FILE

    # --- the folder itself ----------------------------------------------------------------------------------

    def create(self) -> None:
        """Make the folder and those above it.

        Raises:
            RecordError: it cannot be made, or another user could write to it.
        """
        self._require_trust()
        try:
            for path in (self.state_dir, self.path.parent, self.path):
                files.make_folder(path)
                _require_own(path)
        except OSError as error:
            raise RecordError(f"cannot create {error.filename or self.path}: {error.strerror}", _LOOK_HINT) from error

    def put_aside(self) -> "JobFolder":
        """Move all that is in the folder to one of its own, and leave an empty one; return the folder that has it now.

        The lock goes with it: whoever holds it holds that of the folder that is returned.

        Raises:
            RecordError: it cannot be moved.
        """
        aside = self.beside()
        try:
            self.path.rename(aside.path)  # at once: a journal must never be without its record
        except OSError as error:
            raise RecordError(f"cannot move {self.path}: {error.strerror}", _LOOK_HINT) from error
        self.create()
        return aside

    def beside(self) -> "JobFolder":
        """Return another folder for the same job id, which does not exist yet."""
        return JobFolder(self.state_dir, self.cluster, self.job_id, f"{self.job_id}.{time.time_ns()}")

    def exists(self) -> bool:
        """Tell whether the folder exists."""
        return self.path.is_dir()

    def looked_at_s(self) -> float:
        """Return when the folder was last changed or looked at; seconds since the epoch, 0 where it is gone."""
        try:
            return self.path.stat().st_mtime
        except OSError:
            return 0.0

    def look_at(self) -> None:
        """Note that the folder was looked at now."""
        with contextlib.suppress(OSError):
            os.utime(self.path)

    def sign(self, node: str) -> None:
        """Note that a node has just found out that the job lives."""
        with contextlib.suppress(OSError):
            fd = os.open(self.path / _SIGNED_FILE, _SIGNING, 0o600)
            try:
                os.write(fd, node.encode())
            finally:
                os.close(fd)

    def signed_by(self, now_s: float, within_s: float) -> str | None:
        """Return the node that has last found out that the job lives; None where none has within so many seconds.

        Args:
            now_s: seconds since the epoch.
            within_s: in seconds, in either direction: clocks differ.
        """
        file = self.path / _SIGNED_FILE
        try:
            if abs(now_s - file.stat().st_mtime) >= within_s:
                return None
            return files.read(file, _MAX_NODE_BYTES).decode()
        except (OSError, ValueError):
            return None

    @contextlib.contextmanager
    def locked(self, timeout_s: float, *, make: bool = False) -> Iterator[None]:
        """Hold the record's lock, so that Prolog, Epilog and recover never change it at the same time.

        Args:
            timeout_s: how long to wait for another holder, in seconds.
            make: make the folder again where the lock's last holder has removed it.

        Raises:
            RecordBusyError: another process held the lock all that time.
            RecordError: the folder is gone, or cannot be locked.
        """
        with contextlib.ExitStack() as stack:
            lock = files.locked(self.path / _LOCK_FILE, timeout_s, make_again=self.create if make else None)
            try:
                is_held = stack.enter_context(lock)
            except FileNotFoundError as error:
                raise RecordError(f"cannot lock {self.path}: it is gone") from error
            except OSError as error:
                raise RecordError(f"cannot lock {self.path}: {error.strerror}") from error
            if not is_held:
                raise RecordBusyError(f"another process has held {self.path} for over {timeout_s:.3g} s")
            yield

    def remove(self) -> None:
        """Remove the folder; of what is in it the record goes last but the lock, so that a crash leaves it readable.

        Raises:
            RecordError: something cannot be removed.
        """
        try:
            found = set(os.listdir(self.path))
            last = [name for name in (names.RECORD_FILE, _LOCK_FILE) if name in found]
            for name in sorted(found - set(last)) + last:
                (self.path / name).unlink(missing_ok=True)
            self.path.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            raise RecordError(f"cannot remove {self.path}: {error.strerror}", _LOOK_HINT) from error

    def remove_if_empty(self) -> None:
        """Remove the folder if nothing is in it."""
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def _require_trust(self) -> None:
        """Raise where another user could put a folder in this place: root acts on what a record says."""
        try:
            weak = files.weak_place(self.path)
        except OSError as error:
            raise RecordError(f"cannot look at {self.path}: {error.strerror}", _LOOK_HINT) from error
        if weak is not None:
            raise RecordError(
                f"{_owner_and_mode(weak)}, so others could replace {self.path}",
                f"an admin has to run: chown root {weak} && chmod go-w {weak}, or choose another --state-dir",
            )

    # --- the record -----------------------------------------------------------------------------------------

    def read(self) -> Record | None:
        """Return the record, with tokens that are only in journals so far; None where there is none.

        Raises:
            RecordError: it cannot be read; a RecordFormatError where it is not one of ours.
        """
        self._require_trust()
        try:
            content = files.read(self._record_path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RecordError(f"cannot read {self._record_path}: {error.strerror}") from error
        return self.decoded(content)

    def decoded(self, content: bytes) -> Record:
        """Return the record that its file's content is, with tokens that are only in journals so far.

        Raises:
            RecordFormatError: it is not one of ours.
        """
        file = f"{self._place}/{names.RECORD_FILE}"
        record = records.decode(content, file)
        if (record.cluster, record.job_id) != (self.cluster, self.job_id):
            raise RecordFormatError(f"{file} belongs to job {record.job_id}, which has another folder")
        return self.with_renewals(self._with_journaled_tokens(record))

    def read_or_set_aside(self) -> tuple[Record | None, RecordError | None]:
        """Return the record; move one that cannot be understood out of the way.

        Returns:
            The record, or None; and what was wrong with one that was set aside.

        Raises:
            RecordError: it cannot be read just now, or cannot be moved.
        """
        try:
            return self.read(), None
        except RecordFormatError as error:
            place = self.path.parent / SET_ASIDE / f"{self.job_id}-{time.time_ns()}"
            try:
                files.make_folder(place.parent, 0o700)
                place.mkdir(mode=0o700)
                # The journals too: what a child wrote, or is still writing, may be the only trace of a token.
                for path in (*self.journals.paths(), self._record_path):
                    path.rename(place / path.name)
            except OSError as move_error:
                raise RecordError(f"{error.message}; cannot move it: {move_error.strerror}", _LOOK_HINT) from error
            return None, RecordError(f"{error.message}; moved to {place}", error.hint or _SET_ASIDE_HINT)

    def write(self, record: Record) -> None:
        """Write the record, and sync it to disk.

        Raises:
            RecordError: it could not be written.
        """
        try:
            files.replace(self._record_path, records.encode(record), 0o600)
        except OSError as error:
            raise RecordError(f"cannot write {self._record_path}: {error.strerror}", _LOOK_HINT) from error

    def with_renewals(self, record: Record) -> Record:
        """Return the record with the sessions that the job's credential broker has opened, or may have."""
        broker = record.broker
        if broker is None:
            return record
        from qrmi_slurm.state import renewals  # only where a resource has one

        names_ = list(broker.keys)
        for one in renewals.read(self.path / names.SESSIONS_FILE).asked:
            places = [
                place
                for place, entry in enumerate(record.entries)
                if one.place < len(names_)
                and (entry.name, entry.restart_count) == (names_[one.place], broker.restart_count)
            ]
            known = next((place for place in places if record.entries[place].renewal == one.number), None)
            if known is not None and record.entries[known].state is State.ACQUIRING:
                record = record.with_entry(known, _renewed(record.entries[known], one))
            elif known is None and one.number > broker.renewals and places:
                record = record.with_another(
                    _renewed(record.entries[places[-1]], one)._replace(journal=record.next_journal)
                )
            broker = broker._replace(renewals=max(broker.renewals, one.number))
        return record._replace(broker=broker)

    def _with_journaled_tokens(self, record: Record) -> Record:
        for index, entry in enumerate(record.entries):
            token = self.journals.token(entry.journal) if entry.token is None else None
            if token is not None:
                # A late answer: its hook has given it up, and told the job that it has no such QPU.
                is_late = entry.state is State.INDETERMINATE
                held = entry.to(State.RELEASING if is_late else State.ACQUIRED, token=token)
                # Held since its child wrote the token, not since now.
                acquired_s = self.journals.written_s(entry.journal) or held.acquired_s
                record = record.with_entry(index, held._replace(acquired_s=acquired_s))
        return record

    # --- what others read and write -------------------------------------------------------------------------

    def write_exports(self, content: str, uid: int) -> None:
        """Write the exports, readable only by the job's user; they need not survive a crash.

        Where they say that the job has no QPU, that is kept beyond the end of the folder as well, and if they cannot be
        written, too.

        Raises:
            RecordError: they could not be written.
        """
        if " outcome=failed\n" in content[:200]:
            from qrmi_slurm.state import failures  # most jobs get their QPUs

            with contextlib.suppress(OSError):
                failures.keep(self.path.parent, self.job_id, content, uid)
        try:
            files.replace(
                self.exports_path, content.encode("utf-8", "surrogateescape"), 0o400, uid=uid, is_durable=False
            )
        except OSError as error:
            raise RecordError(f"cannot write {self.exports_path}: {error.strerror}") from error
        except UnicodeEncodeError:
            raise RecordError(f"cannot write {self.exports_path}: a value is not valid text") from None

    def write_renewed(self, content: str, uid: int) -> None:
        """Write what the job's next step prints, now that the exports have other tokens than those before it.

        It is the user's own file, so that TaskProlog can note that it was printed; while it is there, steps of a batch
        job do not keep the tokens that they inherited.

        Raises:
            RecordError: it could not be written.
        """
        path = self.path / names.RENEWED_FILE
        try:
            files.replace(path, content.encode("utf-8", "surrogateescape"), 0o600, uid=uid, is_durable=False)
        except OSError as error:
            raise RecordError(f"cannot write {path}: {error.strerror}") from error

    def remove_exports(self) -> None:
        """Remove the exports: no task may start with them any more.

        Raises:
            RecordError: they could not be removed.
        """
        try:
            self.exports_path.unlink(missing_ok=True)
        except OSError as error:
            raise RecordError(f"cannot remove {self.exports_path}: {error.strerror}", _LOOK_HINT) from error

    def array_ids(self) -> tuple[int, int] | None:
        """Return the ids of the job array and of the task in it; None where the plugin wrote none."""
        try:
            array, _, task = files.read(self.path / "array").decode().strip().partition("_")
            return int(array), int(task)
        except (OSError, ValueError):
            return None


def _renewed(entry: Entry, renewal: "Renewal") -> Entry:
    """Return the entry of a session that the broker has asked for, from an earlier one of the QPU."""
    state = State.FAILED if renewal.is_refused else State.ACQUIRING if renewal.token is None else State.ACQUIRED
    return entry._replace(
        state=state,
        since_s=renewal.asked_s if renewal.opened_s is None else renewal.opened_s,
        asked_s=renewal.asked_s,
        acquired_s=renewal.opened_s,
        token=renewal.token,
        attempts=0,
        reason="the service refused another session" if renewal.is_refused else "",
        ends_s=renewal.asked_s + renewal.ttl_s,
        expires_s=renewal.asked_s + renewal.ttl_s + _MAX_OPENING_S,
        hold="",
        renewal=renewal.number,
    )


def _require_own(path: Path) -> None:
    """Raise where a folder of the state is a link, another user's, or writable by others."""
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise RecordError(f"{path} is not a folder", "an admin has to remove it, or choose another --state-dir")
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise RecordError(_owner_and_mode(path), f"an admin has to run: chown root {path} && chmod 0711 {path}")


def _owner_and_mode(path: Path) -> str:
    status = path.lstat()
    return f"{path} is owned by uid {status.st_uid} with mode {stat.S_IMODE(status.st_mode):04o}"
