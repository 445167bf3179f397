"""Releasing: from a record to sessions that are proven closed, and then to no record."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

from qrmi_slurm import backend, record
from qrmi_slurm.backend import Answer, Call, Verdict
from qrmi_slurm.errors import BackendError, ConfigError, CredentialsError, RecordError
from qrmi_slurm.logs import HookLog
from qrmi_slurm.names import of_resource
from qrmi_slurm.plugstack import SiteOptions
from qrmi_slurm.record import Entry, JobFolder, Record, State
from qrmi_slurm.resource_types import describe, is_ours_alone, is_secret, with_successors
from qrmi_slurm.secret import mask
from qrmi_slurm.selection import printable

if TYPE_CHECKING:
    from qrmi_slurm.config import Resource

# With less time than this left, a second try would only be killed.
_MIN_TRY_S: Final = 0.1


def release(
    folder: JobFolder,
    current: Record,
    options: SiteOptions,
    log: HookLog,
    *,
    keep_folder: bool = False,
    which: Callable[[Entry], bool] = lambda _entry: True,
) -> Record | None:
    """Release QPUs that a record holds, and remove the folder once nothing is left.

    Idempotent: a session that the service no longer knows is released. The caller holds the folder's lock. A disk that
    takes nothing keeps no session open: what stands on it is then older than the truth, and released again later.

    Args:
        folder: the job's.
        current: its record.
        options: the site's; `release_timeout_s` bounds the whole.
        log: of the hook.
        keep_folder: leave the folder in place, for a job that goes on in it.
        which: the entries to release; the others stay as they are, and the job's exports with them.

    Returns:
        What is left of the record; None where nothing is.

    Raises:
        RecordError: the disk did not take what happened.
    """
    log.hide(record.secrets_of(current.entries))
    chosen = frozenset(index for index, entry in enumerate(current.entries) if which(entry))
    if not keep_folder and len(chosen) == len(current.entries):
        _try_on_disk(folder.remove_exports, log)  # no task comes after this, and they hold credentials
    entries = [_to_release(entry) if index in chosen else entry for index, entry in enumerate(current.entries)]
    current = current._replace(entries=tuple(entries))
    held = [index for index in chosen if entries[index].state is State.RELEASING]
    if held:
        _try_on_disk(lambda: folder.write(current), log)
    run = _Release(folder, current, options, log)
    run.ask({index: entries[index] for index in sorted(held)})
    run.ask(run.with_the_sites_new_secrets(sorted(held)))
    left = _left(run.current.entries, run.released, log)
    if left:
        current = current._replace(entries=tuple(left))
        folder.write(current)
        return current
    if keep_folder:
        folder.write(current._replace(entries=()))
    else:
        folder.remove()
    return None


def to_be_released(current: Record) -> Record:
    """Return a record whose QPUs nobody uses: `recover` need not wait for the end of the job."""
    entries = [entry.to(State.RELEASING) if entry.token is not None else entry for entry in current.entries]
    return current._replace(entries=tuple(entries))


class _Release:
    """One run of releasing: what was released so far, and how the others stand."""

    def __init__(self, folder: JobFolder, current: Record, options: SiteOptions, log: HookLog) -> None:
        self.current = current
        self.released: set[int] = set()
        self._folder = folder
        self._options = options
        self._log = log
        self._deadline_s = time.monotonic() + options.release_timeout_s

    def ask(self, entries: dict[int, Entry]) -> None:
        """Ask QRMI to release entries, by their place in the record, side by side in the time that is left."""
        if not entries:
            return
        calls: dict[int, int] = {}  # a call's id() to its entry's place: two calls may be equal

        def on_answer(answer: Answer) -> None:
            self._note(calls[id(answer.call)], answer)

        asked = []
        for index, entry in entries.items():
            call = Call(entry.name, entry.type, "release", entry.environment, entry.token, entry.run_as_uid)
            calls[id(call)] = index
            asked.append(call)
        try:
            backend.run(asked, max(self._deadline_s - time.monotonic(), _MIN_TRY_S), on_answer)
        except BackendError as error:
            for call in asked:
                on_answer(Answer(call, Verdict.REFUSED, None, str(error), 0.0, ()))

    def with_the_sites_new_secrets(self, indexes: Sequence[int]) -> dict[int, Entry]:
        """Return what is not released yet and has other secrets in the config now: a key was rotated under the job."""
        refused = [index for index in indexes if index not in self.released]
        if not refused or self._deadline_s - time.monotonic() < _MIN_TRY_S:
            return {}
        try:
            from qrmi_slurm import config, stored_secrets  # only where something was refused

            resources = config.load(self._options.config_path).resources
        except ConfigError:
            return {}
        renewed = {}
        left_s = (self._deadline_s - time.monotonic()) / 2
        for index in refused:
            entry = self.current.entries[index]
            # A QPU that was found behind a dynamic resource has no entry of its own.
            of_config = [resources[entry.name]] if entry.name in resources else _dynamic(resources.values())
            renewals = (_with_secrets_of(entry, stored_secrets.fill(resource, left_s)) for resource in of_config)
            try:
                changed = next(filter(None, renewals), None)
            except CredentialsError as error:
                self._log.error("no-new-secrets", qpu=entry.name, reason=error)
                continue
            if changed is not None:
                self._log.hide(record.secrets_of([changed]))
                self._log.info("again", qpu=entry.name, type=entry.type, why="the config has new secrets")
                renewed[index] = changed
        return renewed

    def _note(self, index: int, answer: Answer) -> None:
        entry = self.current.entries[index]
        details = {"qpu": entry.name, "type": entry.type, "seconds": answer.duration_s}
        self._log.qrmi(entry.name, answer.log)
        if answer.verdict in (Verdict.DONE, Verdict.GONE):
            self._log.info("released", **details, how=answer.verdict)
            self.released.add(index)
            return
        reason = printable(mask(answer.reason, record.secrets_of([entry])), 300)
        self._log.error("not-released", **details, reason=reason, hint="it stays recorded as pending")
        self.current = self.current.with_entry(index, entry.to(State.RELEASING, reason=reason))
        _try_on_disk(lambda: self._folder.write(self.current), self._log)


def _try_on_disk(change: Callable[[], None], log: HookLog) -> None:
    """Change what is on disk; where the disk does not take it, releasing goes on."""
    try:
        change()
    except RecordError as error:
        log.error("not-recorded", reason=error)


def _dynamic(resources: "Iterable[Resource]") -> "list[Resource]":
    return [resource for resource in resources if resource.is_dynamic]


def _with_secrets_of(entry: Entry, resource: "Resource") -> Entry | None:
    """Return an entry with the secrets that the config has now; None where they are the same, or not for it.

    What a user supplied is the user's to change. Nothing but a secret may differ: a new key must not go to an old
    address, nor to another instance of the service.
    """
    if entry.run_as_uid is not None:
        return None
    environment = dict(entry.environment)
    for variable, value in with_successors(resource.environment).items():
        name = of_resource(entry.name, variable)
        if is_ours_alone(variable):
            continue
        if is_secret(variable):
            environment[name] = value
        elif environment.get(name) != value:
            return None
    return entry._replace(environment=environment) if environment != entry.environment else None


def _to_release(entry: Entry) -> Entry:
    """Return the entry as it stands when its release begins."""
    if entry.token is not None and entry.is_pending:
        return entry.to(State.RELEASING, attempts=1)
    if entry.state is State.ACQUIRING:  # its child ended without a token: nobody can tell what the service did
        state = State.INDETERMINATE if describe(entry.type).locks else State.FAILED
        return entry.to(state, reason="the hook ended before an answer came")
    return entry


def _left(entries: Sequence[Entry], released: set[int], log: HookLog) -> list[Entry]:
    """Return what may still be open at a service: not released, not refused, not past its own end."""
    now_s = time.time()
    left = []
    for index, entry in enumerate(entries):
        if index in released or not entry.is_pending:
            continue
        if entry.token is None and entry.expires_s is not None and entry.expires_s <= now_s:
            log.info("expired", qpu=entry.name, type=entry.type)
            continue
        if entry.state is State.INDETERMINATE:
            ends = {"ends": _utc(entry.expires_s)} if entry.expires_s is not None else {}
            log.warning("indeterminate", qpu=entry.name, type=entry.type, reason=entry.reason, **ends)
        left.append(entry)
    return left


def _utc(epoch_s: float) -> str:
    """Return a moment as text in UTC; a moment that no calendar has, as seconds since the epoch."""
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(epoch_s))
    except (OverflowError, ValueError, OSError):
        return f"{epoch_s:.0f}"
