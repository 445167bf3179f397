"""Releasing: from a record to sessions that are proven closed, and then to no record."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from qrmi_slurm.calls import backend
from qrmi_slurm.calls.protocol import Answer, Call, Verdict
from qrmi_slurm.config.resource_types import describe, is_ours_alone, is_secret
from qrmi_slurm.deadline import MIN_CALL_S
from qrmi_slurm.errors import BackendError, ConfigError, CredentialsError, RecordError
from qrmi_slurm.hooks.hook_run import HookRun
from qrmi_slurm.log import HookLog
from qrmi_slurm.names import of_resource
from qrmi_slurm.state import record as records
from qrmi_slurm.state.record import Ended, Entry, Record, State
from qrmi_slurm.text import shown

if TYPE_CHECKING:
    from qrmi_slurm.config.config_file import Resource

# As long as a session of the IBM compute service may live; where a type does not tell when a user's session ends.
_USERS_LAST_TRY_S: Final = 28800.0


def release(
    record: Record,
    run: HookRun,
    *,
    keep_folder: bool = False,
    which: Callable[[Entry], bool] = lambda _entry: True,
) -> Record | None:
    """Release QPUs that a record holds, and remove the folder once nothing is left.

    Idempotent: a session that the service no longer knows counts as released. A full disk
    keeps no session open: the record on it is then out of date, and its QPUs are released again later.

    Args:
        record: the job's.
        run: of the hook; its deadline bounds the whole, and the folder's lock is held.
        keep_folder: leave the folder in place, for a job that goes on in it.
        which: the entries to release; the others stay as they are, and so do the job's exports.

    Returns:
        What is left of the record; None where nothing is.

    Raises:
        RecordError: the result could not be written.
    """
    run.log.hide(records.secrets_of(record.entries))
    chosen = frozenset(index for index, entry in enumerate(record.entries) if which(entry))
    is_all = len(chosen) == len(record.entries)
    if is_all and not keep_folder:
        _try_on_disk(run.folder.remove_exports, run.log)  # no task comes after this, and they hold credentials
    if is_all and record.broker is not None:
        from qrmi_slurm.broker import launch  # only where a resource has one

        # Before its session: a process that outlived the job can submit nothing more.
        record = launch.end(run.folder, record, run.log)  # with the sessions that it had opened until then
        run.log.hide(records.secrets_of(record.entries))
        chosen = frozenset(range(len(record.entries)))
    entries = [_to_release(entry) if index in chosen else entry for index, entry in enumerate(record.entries)]
    record = record._replace(entries=tuple(entries))
    pending = sorted(index for index in chosen if entries[index].state is State.RELEASING)
    calls = _ReleaseCalls(record, run)
    if pending:
        _try_on_disk(lambda: run.folder.write(record), run.log)
        calls.ask({index: entries[index] for index in pending})
        calls.ask(calls.with_new_secrets(pending))
    left, ended = _sort_out(calls.record.entries, calls.released, run.log)
    if any(item.entry.hold for item in ended):
        from qrmi_slurm.hooks import holds  # only where an earlier release had failed

        ended, stuck = holds.let_go(ended, run)
        left += stuck
    account(record, ended, run)
    if left:
        record = record._replace(entries=tuple(left))
        if any(entry.license for entry in left):
            from qrmi_slurm.hooks import holds  # only where a release has failed, and Slurm counts the QPU

            record = holds.keep(record, run)
        run.folder.write(record)
        return record
    if keep_folder:
        _try_on_disk(lambda: run.folder.write(record._replace(entries=())), run.log)
    else:
        run.folder.remove()
    return None


def forget(record: Record, run: HookRun) -> None:
    """Remove the folder of a job that holds nothing, and account for what it asked for.

    Raises:
        RecordError: something cannot be removed.
    """
    ended = []
    for entry in record.entries:
        if entry.is_pending:
            ended.append(Ended(entry, "expired", entry.since_s if entry.expires_s is None else entry.expires_s))
        else:
            ended.append(Ended(entry, "failed", entry.since_s))
    account(record, ended, run)
    run.folder.remove()


def forget_tokenless(record: Record, run: HookRun) -> Record:
    """Return a record without the QPUs whose token nobody has, and account for them; an admin has checked."""
    now_s = time.time()
    ended = [
        Ended(entry, "forgotten", now_s) if entry.is_pending else Ended(entry, "failed", entry.since_s)
        for entry in record.entries
        if entry.token is None
    ]
    account(record, ended, run)
    return record._replace(entries=tuple(entry for entry in record.entries if entry.token is not None))


def account(record: Record, ended: Sequence[Ended], run: HookRun) -> None:
    """Leave a line in the ledger for each acquisition that has ended.

    This comes before the record goes: a crash in between accounts for it twice, under one id. A disk that does not take
    the lines keeps nothing from being released; they are logged then, without the token.
    """
    if not ended:
        return
    from qrmi_slurm.state import ledger  # a Prolog that only acquires never needs it

    array_ids = run.folder.array_ids()
    lines = [ledger.line_of(record, item, array_ids, run.log.hook) for item in ended]
    try:
        ledger.write(run.folder, lines)
    except RecordError as error:
        for line in lines:
            told = " ".join(f"{name}={value}" for name, value in line.items() if name not in ("version", "token"))
            run.log.error("not-accounted", reason=error, line=told)


def to_be_released(record: Record, which: Callable[[Entry], bool] = lambda _entry: True) -> Record:
    """Return a record whose QPUs nobody uses any more: `recover` need not wait for the end of the job.

    Args:
        record: the job's.
        which: the entries that nobody uses.
    """
    entries = [
        entry.to(State.RELEASING) if entry.token is not None and which(entry) else entry for entry in record.entries
    ]
    return record._replace(entries=tuple(entries))


class _ReleaseCalls:
    """The calls to QRMI of one release: what was released so far, and the state of the others."""

    def __init__(self, record: Record, run: HookRun) -> None:
        self.record = record
        self.released: dict[int, Ended] = {}
        self._run = run

    def ask(self, entries: Mapping[int, Entry]) -> None:
        """Ask QRMI to release entries, by their place in the record, side by side in the time that is left."""
        if not entries:
            return
        place_of: dict[int, int] = {}  # by a call's id(): two calls may be equal

        def on_answers(answers: Sequence[Answer]) -> None:
            before = self.record
            for answer in answers:
                self._note(place_of[id(answer.call)], answer)
            if self.record is not before:
                _try_on_disk(lambda: self._run.folder.write(self.record), self._run.log)

        calls = []
        for index, entry in entries.items():
            call = Call(entry.name, entry.type, "release", entry.environment, entry.token, entry.run_as_uid)
            place_of[id(call)] = index
            calls.append(call)
        try:
            backend.run(calls, self._run.deadline.call_s, on_answers)
        except BackendError as error:
            on_answers([Answer(call, Verdict.REFUSED, None, str(error), 0.0, ()) for call in calls])

    def with_new_secrets(self, indexes: Sequence[int]) -> dict[int, Entry]:
        """Return the entries not released yet whose secrets are others in the config now: a key was rotated."""
        refused = [index for index in indexes if index not in self.released]
        if not refused or self._run.deadline.left_s < MIN_CALL_S:
            return {}
        try:
            from qrmi_slurm.config import config_file, stored_secrets  # only where something was refused

            resources = config_file.load(self._run.options.config_path).resources
        except ConfigError:
            return {}
        # A QPU that was discovered behind a dynamic resource has no entry of its own in the config.
        names = {self.record.entries[index].name for index in refused}
        needed = [resource for resource in resources.values() if resource.name in names or resource.is_dynamic]
        filled = stored_secrets.fill_all(needed, self._run.deadline.left_s / 2)
        renewed = {}
        for index in refused:
            entry = self.record.entries[index]
            of_config = [entry.name] if entry.name in resources else [item.name for item in needed if item.is_dynamic]
            for found in (filled[name] for name in of_config):
                if isinstance(found, CredentialsError):
                    self._run.log.error("no-new-secrets", qpu=entry.name, reason=found)
                    continue
                changed = _with_secrets_of(entry, found)
                if changed is not None:
                    self._run.log.hide(records.secrets_of([changed]))
                    self._run.log.info("again", qpu=entry.name, type=entry.type, why="the config has new secrets")
                    renewed[index] = changed
                    break
        return renewed

    def _note(self, index: int, answer: Answer) -> None:
        entry = self.record.entries[index]
        log = self._run.log
        details = {"qpu": entry.name, "type": entry.type, "seconds": answer.duration_s}
        log.qrmi(entry.name, answer.log)
        if answer.verdict in (Verdict.DONE, Verdict.GONE):
            log.info("released", **details, how=answer.verdict)
            self.released[index] = _ended(entry, answer.verdict)
            return
        reason = shown(answer.reason, records.secrets_of([entry]), 300)
        log.error("not-released", **details, reason=reason, hint="it stays recorded as pending")
        self.record = self.record.with_entry(index, entry.to(State.RELEASING, reason=reason))


def _try_on_disk(change: Callable[[], None], log: HookLog) -> None:
    """Change what is on disk; if that fails, releasing goes on."""
    try:
        change()
    except RecordError as error:
        log.error("not-recorded", reason=error)


def _with_secrets_of(entry: Entry, resource: "Resource") -> Entry | None:
    """Return an entry with the secrets that the config has now; None where they are the same, or not for it.

    What a user brought is the user's to change. Nothing but a secret, and what a user tuned, may differ: a new key must
    not go to an old address, nor to another instance of the service.
    """
    if entry.run_as_uid is not None:
        return None
    environment = dict(entry.environment)
    described = describe(resource.type)
    for variable, value in resource.variables.items():
        name = of_resource(entry.name, variable)
        if is_ours_alone(variable) or described.may_be_tuned(variable):
            continue
        if is_secret(variable):  # not `name`: the QPU's name may contain any word
            environment[name] = value
        elif environment.get(name) != value:
            return None
    return entry._replace(environment=environment) if environment != entry.environment else None


def _to_release(entry: Entry) -> Entry:
    """Return the entry as it is when its release begins."""
    if entry.token is not None and entry.is_pending:
        return entry.to(State.RELEASING, attempts=1)
    if entry.state is State.ACQUIRING:  # its child ended without a token: nobody knows what the service did
        state = State.INDETERMINATE if describe(entry.type).locks else State.FAILED
        return entry.to(state, reason="the hook ended before an answer came")
    return entry


def _ended(entry: Entry, verdict: Verdict) -> Ended:
    """Return an acquisition whose release has just been proven."""
    ends = [moment_s for moment_s in (entry.ends_s, entry.expires_s) if moment_s is not None]
    ended_s = min([time.time(), *ends])  # it may have ended by itself long before
    # Of one that is gone nobody knows since when.
    return Ended(entry, "gone" if verdict is Verdict.GONE else "released", ended_s)


def _sort_out(entries: Sequence[Entry], released: Mapping[int, Ended], log: HookLog) -> tuple[list[Entry], list[Ended]]:
    """Return the entries that may still be open at a service, and those that are not: released, refused or expired."""
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
        if entry.state is State.RELEASING and entry.run_as_uid is not None and _users_end_s(entry) <= now_s:
            log.warning("given-up", qpu=entry.name, type=entry.type, reason=entry.reason)
            ended.append(Ended(entry, "gone", _users_end_s(entry)))
            continue
        if entry.state is State.INDETERMINATE:
            ends = {"ends": _utc(entry.expires_s)} if entry.expires_s is not None else {}
            log.warning("indeterminate", qpu=entry.name, type=entry.type, reason=entry.reason, **ends)
        left.append(entry)
    return left, ended


def _users_end_s(entry: Entry) -> float:
    """Return until when releasing with a user's own credentials is tried; seconds since the epoch.

    The user may kill each attempt, or run a service that never answers; the session is theirs and ends by itself.
    """
    return entry.expires_s if entry.expires_s is not None else entry.asked_s + _USERS_LAST_TRY_S


def _utc(epoch_s: float) -> str:
    """Return a moment as text in UTC; one that no calendar has, as seconds since the epoch."""
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(epoch_s))
    except (OverflowError, ValueError, OSError):
        return f"{epoch_s:.0f}"
