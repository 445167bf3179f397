"""Renewing: another session for a job that goes on after its session's end, without a credential broker; for recover.

It is opened where the job was extended or resumed after its start, and where the session lived as long as the service
allows. A shorter time that the config or the user has set is kept, and renewed only for a job whose end has moved.
"""

import os
import time
from collections.abc import Mapping, Sequence
from typing import Final

from qrmi_slurm import names
from qrmi_slurm.calls import backend, environment
from qrmi_slurm.calls.places import Node
from qrmi_slurm.calls.protocol import Answer, Call, Verdict
from qrmi_slurm.config.resource_types import describe
from qrmi_slurm.deadline import HOOK_GRACE_S
from qrmi_slurm.errors import ExportsError, RecordError
from qrmi_slurm.hooks.hook_run import HookRun
from qrmi_slurm.names import of_resource
from qrmi_slurm.slurm.jobs import Job
from qrmi_slurm.state import exports
from qrmi_slurm.state import record as records
from qrmi_slurm.state.record import Entry, Record, State
from qrmi_slurm.text import is_one_line, printable, shown

# How much more than its limit slurmctld may show for a job that nobody has extended, in seconds: it rounds.
_MOVED_S: Final = 5

# How much a job's end has to move until that is noted, in seconds: what Prolog has noted is a little late.
_TELL_S: Final = 30

_RUNNING: Final = "RUNNING"


def due(record: Record, job: Job, now_s: float) -> dict[int, int | None]:
    """Return the places in a record of the sessions that a running job has to get anew.

    Args:
        record: the job's.
        job: what Slurm says of it.
        now_s: seconds since the epoch.

    Returns:
        By each place that of the last attempt, which failed; None where none has.
    """
    if job.state != _RUNNING or not job.is_living_run(record.restart_count):
        return {}
    if job.end_s is not None and job.end_s <= now_s:
        return {}
    brokered = record.broker.keys if record.broker is not None else ()
    found: dict[int, int | None] = {}
    for name, places in _places(record).items():
        entries = [record.entries[place] for place in places]
        held = _held(record, places)
        if name in brokered or not held or not record.entries[held[-1]].has_expired(now_s):
            continue
        if any(_may_be_open(entry, now_s) for entry in entries) or not _has_a_reason(record.entries[held[-1]], job):
            continue
        failed = [place for place in places if place > held[-1] and record.entries[place].state is State.FAILED]
        found[held[-1]] = failed[-1] if failed else None
    return found


def is_unfinished(record: Record) -> bool:
    """Tell whether a QPU has two sessions, and the earlier one is still to be given back.

    The job's credential broker has opened the later one; or recover has, and was ended then.
    """
    held = [entry.name for entry in record.held]
    return len(held) > len(set(held))


def renew(record: Record, places: Mapping[int, int | None], job: Job, run: HookRun) -> Record:
    """Open new sessions, tell the job's next steps, and leave the old ones for a release.

    Args:
        record: the job's; what is opened goes into it before QRMI is called, and each result on arrival.
        places: as of `due`.
        job: what Slurm says of it.
        run: of recover; its deadline bounds the calls, and the folder's lock is held.

    Returns:
        The record, as it is on disk.

    Raises:
        RecordError: it cannot be written.
        BackendError: QRMI cannot be loaded.
    """
    new_places = []
    for place, failed in places.items():
        intent = _intent(record, record.entries[place], failed, job, run)
        at = failed if failed is not None else len(record.entries)
        record = record.with_entry(at, intent) if failed is not None else record.with_another(intent)
        new_places.append(at)
    run.log.hide(records.secrets_of(record.entries))
    if new_places:
        record = record._replace(job_ends_s=_ends_s(record, job))
        run.folder.write(record)
        record = _Opening(record, run).open(new_places)
    earlier = {place for places in _places(record).values() for place in _held(record, places)[:-1]}
    if not earlier:
        return record
    brokered = record.broker.keys if record.broker is not None else ()
    told = {record.entries[place].name for place in earlier}.difference(brokered)
    if told:
        _tell_tasks(record, told, run)
    entries = [entry.to(State.RELEASING) if at in earlier else entry for at, entry in enumerate(record.entries)]
    record = record._replace(entries=tuple(entries))
    run.folder.write(record)
    return record


def moved_end_s(record: Record, job: Job) -> float | None:
    """Return until when Slurm lets a running job with sessions run, where that is not what its record says; else None.

    Args:
        record: the job's.
        job: what Slurm says of it.
    """
    has_sessions = any(entry.ends_s is not None for entry in record.held)
    if record.job_ends_s is None or not has_sessions or job.state != _RUNNING:
        return None
    if job.end_s is None:
        ends_s = record.created_s + names.UNLIMITED_TIMEOUT_S
    else:
        ends_s = min(job.end_s + record.over_s, record.created_s + names.UNLIMITED_TIMEOUT_S)
    return ends_s if abs(ends_s - record.job_ends_s) > _TELL_S else None


def _places(record: Record) -> dict[str, list[int]]:
    """Return the places of each QPU's entries of this run of the job."""
    found: dict[str, list[int]] = {}
    for place, entry in enumerate(record.entries):
        if entry.restart_count == record.restart_count:
            found.setdefault(entry.name, []).append(place)
    return found


def _held(record: Record, places: Sequence[int]) -> list[int]:
    return [place for place in places if record.entries[place].state is State.ACQUIRED]


def _may_be_open(entry: Entry, now_s: float) -> bool:
    """Tell whether an attempt may have opened a session whose token nobody has."""
    is_unknown = entry.state in (State.ACQUIRING, State.INDETERMINATE)
    return is_unknown and (entry.expires_s is None or entry.expires_s > now_s)


def _has_a_reason(entry: Entry, job: Job) -> bool:
    """Tell whether a job may have another session after the one that has ended."""
    if _longest_of_service(entry):
        return True
    limit = entry.environment.get(of_resource(entry.name, names.TIMEOUT_SECONDS), "")
    return limit.isdecimal() and _limit_s(job) > int(limit) + _MOVED_S


def _longest_of_service(entry: Entry) -> bool:
    ttl = entry.environment.get(of_resource(entry.name, describe(entry.type).session_max_ttl))
    return ttl == str(environment.SERVICE_MAX_TTL_S)


def _limit_s(job: Job) -> int:
    """Return a running job's time limit, in seconds, with the time that it was suspended; 2147483647 without one."""
    if job.end_s is None or job.start_s is None:
        return names.UNLIMITED_TIMEOUT_S
    return min(max(0, job.end_s - job.start_s), names.UNLIMITED_TIMEOUT_S)


def _ends_s(record: Record, job: Job) -> float | None:
    """Return until when Slurm lets a job run; seconds since the epoch."""
    return record.job_ends_s if job.end_s is None else job.end_s + record.over_s


def _intent(record: Record, old: Entry, failed: int | None, job: Job, run: HookRun) -> Entry:
    """Return the intent to open a session in place of one that has ended, with what is left of the job as its life."""
    now_s = time.time()
    left_s = names.UNLIMITED_TIMEOUT_S if job.end_s is None else job.end_s - int(now_s) + record.over_s
    lasts_s = environment.with_margin(left_s, run.options.session_margin_s)
    ttl_s = environment.longest_s(lasts_s)
    if old.session_cap_s is not None:
        ttl_s = min(ttl_s, old.session_cap_s)
    variables = {
        describe(old.type).session_max_ttl: str(ttl_s),
        names.TIMEOUT_SECONDS: str(_limit_s(job)),
    }
    return old._replace(
        environment={**old.environment, **environment.with_name(old.name, variables)},
        state=State.ACQUIRING,
        since_s=now_s,
        asked_s=now_s,
        acquired_s=None,
        token=None,
        journal=record.next_journal,
        attempts=0 if failed is None else record.entries[failed].attempts,
        reason="",
        ends_s=now_s + ttl_s,
        expires_s=now_s + ttl_s + run.options.acquire_timeout_s + HOOK_GRACE_S,
        hold="",
    )


class _Opening:
    """The calls that open sessions, and the record with what has come of them."""

    def __init__(self, record: Record, run: HookRun) -> None:
        self._record = record
        self._run = run

    def open(self, places: Sequence[int]) -> Record:
        """Call QRMI for entries of the record; return the record with the results, as it is on disk."""
        record, run = self._record, self._run
        at = {record.entries[place].name: place for place in places}
        fds: list[int] = []
        try:
            calls = []
            for place in places:
                entry = record.entries[place]
                fds.append(run.folder.journals.open(entry.journal))
                uid, fd = entry.run_as_uid, fds[-1]
                calls.append(Call(entry.name, entry.type, "acquire", entry.environment, run_as_uid=uid, journal_fd=fd))

            def on_answers(answers: Sequence[Answer]) -> None:
                for answer in answers:
                    place = at[answer.call.resource]
                    self._record = self._record.with_entry(place, self._answered(self._record.entries[place], answer))
                run.folder.write(self._record)
                for answer in answers:
                    run.folder.journals.drop(self._record.entries[at[answer.call.resource]].journal)

            node = Node(run.options.state_dir, record.node, record.uid)
            backend.run(calls, run.deadline.call_s, on_answers, node=node)
        finally:
            for fd in fds:
                os.close(fd)
        return self._record

    def _answered(self, entry: Entry, answer: Answer) -> Entry:
        log = self._run.log
        token = answer.token or self._run.folder.journals.token(entry.journal)
        if token is not None:
            log.hide([token])
        log.qrmi(entry.name, answer.log)
        details = {"qpu": entry.name, "type": entry.type, "seconds": answer.duration_s}
        if token is not None and is_one_line(token.reveal()):
            log.info("renewed", **details)
            return entry.to(State.ACQUIRED, token=token)._replace(attempts=0)
        reason = shown(answer.reason, records.secrets_of([entry]), 300) or "QRMI returned no usable token"
        state = State.FAILED
        if token is not None:
            state = State.RELEASING
        elif answer.verdict is Verdict.UNANSWERED:
            state = State.INDETERMINATE
        log.error("not-renewed", **details, state=state, reason=reason)
        return entry.to(state, token=token, reason=reason, attempts=1)


def _tell_tasks(record: Record, renewed: set[str], run: HookRun) -> None:
    """Write the exports again with the new tokens, and what the next step prints.

    The file is the user's, who may have changed it: that costs their steps the new session, and nobody else anything.
    """
    try:
        found = exports.read(run.folder.exports_path, record.uid, record.job_id)
        if found.is_ready and found.restart_count == record.restart_count:
            told, notes = _told(found, record, renewed)
            run.folder.write_exports(exports.render(told), record.uid)
            run.folder.write_renewed(notes, record.uid)
    except (FileNotFoundError, ExportsError, RecordError) as error:
        run.log.error("tasks-not-told", reason=error)


def _told(found: exports.Exports, record: Record, renewed: set[str]) -> tuple[exports.Exports, str]:
    """Return the exports with the tokens of the new sessions, and what is to be printed about these."""
    variables, ends_s = dict(found.variables), dict(found.ends_s)
    for entry in record.held:  # the newest of a QPU comes last
        if entry.name in renewed and entry.token is not None:
            variables[of_resource(entry.name, names.ACQUISITION_TOKEN)] = entry.token.reveal()
            limit = of_resource(entry.name, names.TIMEOUT_SECONDS)
            variables[limit] = entry.environment.get(limit, variables.get(limit, ""))
            if entry.ends_s is not None:
                ends_s[entry.name] = entry.ends_s
    lines = []
    for name in sorted(renewed):
        until = f", which ends at {exports.moment(ends_s[name])}" if name in ends_s else ""
        lines.append(f"{exports.PREFIX}: the session on {printable(name)} had ended; this step has a new one{until}\n")
    kept = tuple(note for note in found.notes if not note.startswith(exports.EARLY_END))
    return found._replace(variables=variables, ends_s=ends_s, notes=kept), "".join(lines)
