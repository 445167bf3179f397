"""Releasing: from a record to sessions that are proven closed, and then to no record."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from qrmi_slurm import backend, record
from qrmi_slurm.backend import Answer, Call, Verdict
from qrmi_slurm.errors import BackendError, ConfigError, CredentialsError, RecordError
from qrmi_slurm.logs import HookLog
from qrmi_slurm.names import of_resource
from qrmi_slurm.plugstack import SiteOptions
from qrmi_slurm.record import Ended, Entry, JobFolder, Record, State
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
    if current.broker is not None and len(chosen) == len(current.entries):
        from qrmi_slurm.broker import launch  # only where a resource has one

        # Before its session: what escaped the job's end submits nothing more.
        current = launch.end(folder, current, log)
    entries = [_to_release(entry) if index in chosen else entry for index, entry in enumerate(current.entries)]
    current = current._replace(entries=tuple(entries))
    held = [index for index in chosen if entries[index].state is State.RELEASING]
    if held:
        _try_on_disk(lambda: folder.write(current), log)
    run = _Release(folder, current, options, log)
    run.ask({index: entries[index] for index in sorted(held)})
    run.ask(run.with_the_sites_new_secrets(sorted(held)))
    left, ended = _sort_out(run.current.entries, run.released, log)
    account(folder, current, ended, log)
    if left:
        current = current._replace(entries=tuple(left))
        folder.write(current)
        return current
    if keep_folder:
        folder.write(current._replace(entries=()))
    else:
        folder.remove()
    return None


def forget(folder: JobFolder, current: Record, log: HookLog) -> None:
    """Remove the folder of a job that holds nothing, and account for what it asked for.

    Raises:
        RecordError: something cannot be removed.
    """
    ended = []
    for entry in current.entries:
        if entry.is_pending:
            ended.append(Ended(entry, "expired", entry.since_s if entry.expires_s is None else entry.expires_s))
        else:
            ended.append(Ended(entry, "failed", entry.since_s))
    account(folder, current, ended, log)
    folder.remove()


def forget_tokenless(folder: JobFolder, current: Record, log: HookLog) -> Record:
    """Return a record without the QPUs that no token is known of, and account for them; an admin has looked."""
    now_s = time.time()
    dropped = [entry for entry in current.entries if entry.token is None]
    ended = [
        Ended(entry, "forgotten", now_s) if entry.is_pending else Ended(entry, "failed", entry.since_s)
        for entry in dropped
    ]
    account(folder, current, ended, log)
    return current._replace(entries=tuple(entry for entry in current.entries if entry.token is not None))


def account(folder: JobFolder, current: Record, ended: Sequence[Ended], log: HookLog) -> None:
    """Leave a line in the ledger for each acquisition whose life has ended.

    Before the record goes: a crash in between accounts for it twice, under one id. A disk that does not take the lines
    keeps nothing from being released; they are logged then, without the token.
    """
    if not ended:
        return
    from qrmi_slurm import ledger  # a Prolog that only acquires need not pay for it

    array_ids = folder.array_ids()
    lines = [ledger.line_of(current, item, array_ids, log.hook) for item in ended]
    try:
        ledger.write(folder, lines)
    except RecordError as error:
        for line in lines:
            told = " ".join(f"{name}={value}" for name, value in line.items() if name not in ("version", "token"))
            log.error("not-accounted", reason=error, line=told)


def to_be_released(current: Record) -> Record:
    """Return a record whose QPUs nobody uses: `recover` need not wait for the end of the job."""
    entries = [entry.to(State.RELEASING) if entry.token is not None else entry for entry in current.entries]
    return current._replace(entries=tuple(entries))


class _Release:
    """One run of releasing: what was released so far, and how the others stand."""

    def __init__(self, folder: JobFolder, current: Record, options: SiteOptions, log: HookLog) -> None:
        self.current = current
        self.released: dict[int, Ended] = {}
        self._folder = folder
        self._options = options
        self._log = log
        self._deadline_s = time.monotonic() + options.release_timeout_s

    def ask(self, entries: dict[int, Entry]) -> None:
        """Ask QRMI to release entries, by their place in the record, side by side in the time that is left."""
        if not entries:
            return
        calls: dict[int, int] = {}  # a call's id() to its entry's place: two calls may be equal

        def on_answers(answers: Sequence[Answer]) -> None:
            before = self.current
            for answer in answers:
                self._note(calls[id(answer.call)], answer)
            if self.current is not before:
                _try_on_disk(lambda: self._folder.write(self.current), self._log)

        asked = []
        for index, entry in entries.items():
            call = Call(entry.name, entry.type, "release", entry.environment, entry.token, entry.run_as_uid)
            calls[id(call)] = index
            asked.append(call)
        try:
            backend.run(asked, max(self._deadline_s - time.monotonic(), _MIN_TRY_S), on_answers)
        except BackendError as error:
            on_answers([Answer(call, Verdict.REFUSED, None, str(error), 0.0, ()) for call in asked])

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
            self.released[index] = _ended(entry, answer.verdict)
            return
        reason = printable(mask(answer.reason, record.secrets_of([entry])), 300)
        self._log.error("not-released", **details, reason=reason, hint="it stays recorded as pending")
        self.current = self.current.with_entry(index, entry.to(State.RELEASING, reason=reason))


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


def _ended(entry: Entry, verdict: Verdict) -> Ended:
    """Return a QPU whose release has just been proven."""
    now_s = time.time()
    if verdict is Verdict.GONE:  # since when nobody can tell, but not for longer than it could live
        return Ended(entry, "gone", now_s if entry.expires_s is None else min(now_s, entry.expires_s))
    return Ended(entry, "released", now_s)


def _sort_out(entries: Sequence[Entry], released: Mapping[int, Ended], log: HookLog) -> tuple[list[Entry], list[Ended]]:
    """Return what may still be open at a service, and what is not: released, refused, or past its own end."""
    now_s = time.time()
    left: list[Entry] = []
    ended: list[Ended] = []
    for index, entry in enumerate(entries):
        if index in released:
            ended.append(released[index])
            continue
        if not entry.is_pending:
            ended.append(Ended(entry, "failed", entry.since_s))
            continue
        if entry.token is None and entry.expires_s is not None and entry.expires_s <= now_s:
            log.info("expired", qpu=entry.name, type=entry.type)
            ended.append(Ended(entry, "expired", entry.expires_s))
            continue
        if entry.state is State.INDETERMINATE:
            ends = {"ends": _utc(entry.expires_s)} if entry.expires_s is not None else {}
            log.warning("indeterminate", qpu=entry.name, type=entry.type, reason=entry.reason, **ends)
        left.append(entry)
    return left, ended


def _utc(epoch_s: float) -> str:
    """Return a moment as text in UTC; a moment that no calendar has, as seconds since the epoch."""
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(epoch_s))
    except (OverflowError, ValueError, OSError):
        return f"{epoch_s:.0f}"
