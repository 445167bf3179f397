"""Releasing: from a record to sessions that are proven closed, and then to no record."""

import time
from collections.abc import Sequence
from dataclasses import replace

from qrmi_slurm import backend, record
from qrmi_slurm.backend import Answer, Call, Verdict
from qrmi_slurm.logs import HookLog
from qrmi_slurm.plugstack import SiteOptions
from qrmi_slurm.record import Entry, JobFolder, Record, State
from qrmi_slurm.resource_types import describe
from qrmi_slurm.secret import mask
from qrmi_slurm.selection import printable


def release(
    folder: JobFolder, current: Record, options: SiteOptions, log: HookLog, *, keep_folder: bool = False
) -> Record | None:
    """Release every QPU that a record holds, and remove the folder once nothing is left.

    Idempotent: a session that the service no longer knows is released. The caller holds the folder's lock.

    Args:
        folder: the job's.
        current: its record.
        options: the site's; `release_timeout_s` bounds the whole.
        log: of the hook.
        keep_folder: leave the folder in place, for a job that goes on in it.

    Returns:
        What is left of the record; None where nothing is.

    Raises:
        RecordError: the disk did not take what happened.
    """
    log.hide(record.secrets_of(current.entries))
    entries = [_to_release(entry) for entry in current.entries]
    current = replace(current, entries=tuple(entries))
    places = {index: entry for index, entry in enumerate(entries) if entry.state is State.RELEASING}
    if places:
        folder.write(current)
    released: set[int] = set()
    by_call: dict[int, int] = {}

    def on_answer(answer: Answer) -> None:
        nonlocal current
        index = by_call[id(answer.call)]
        entry = current.entries[index]
        log.qrmi(entry.name, answer.log)
        if answer.verdict in (Verdict.DONE, Verdict.GONE):
            log.info("released", qpu=entry.name, type=entry.type, seconds=answer.duration_s, how=answer.verdict)
            released.add(index)
            return
        reason = printable(mask(answer.reason, record.secrets_of([entry])), 300)
        log.error(
            "not-released",
            qpu=entry.name,
            type=entry.type,
            seconds=answer.duration_s,
            reason=reason,
            hint="it stays recorded as pending",
        )
        current = current.with_entry(index, entry.to(State.RELEASING, reason=reason))
        folder.write(current)

    calls = []
    for index, entry in places.items():
        call = Call(
            entry.name,
            entry.type,
            "release",
            entry.environment,
            token=entry.token,
            run_as_uid=entry.run_as_uid,
        )
        by_call[id(call)] = index
        calls.append(call)
    backend.run(calls, options.release_timeout_s, on_answer)
    left = _left(current.entries, released, log)
    if left:
        current = replace(current, entries=tuple(left))
        folder.write(current)
        folder.remove_exports()  # no task comes after this, and they hold credentials
        return current
    if keep_folder:
        folder.write(replace(current, entries=()))
    else:
        folder.remove()
    return None


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
