"""The rounds: acquires a job's QPUs side by side, and tries the next candidate of each slot that got none."""

import os
import time
from collections.abc import Mapping, Sequence
from typing import Final

from qrmi_slurm.calls import backend, environment
from qrmi_slurm.calls.backend import Child
from qrmi_slurm.calls.environment import ForJob
from qrmi_slurm.calls.places import Node
from qrmi_slurm.calls.protocol import Answer, Call, Verdict
from qrmi_slurm.config.resource_types import describe
from qrmi_slurm.deadline import HOOK_GRACE_S
from qrmi_slurm.errors import RecordError
from qrmi_slurm.failure import Kind
from qrmi_slurm.hooks import choice
from qrmi_slurm.hooks.assignment import Assignment
from qrmi_slurm.hooks.choice import Candidate, Slot
from qrmi_slurm.hooks.hook_run import HookRun
from qrmi_slurm.hooks.job_facts import JobFacts
from qrmi_slurm.secret import Secret
from qrmi_slurm.slurm.job_context import JobContext
from qrmi_slurm.state import record as records
from qrmi_slurm.state.record import Entry, Record, State
from qrmi_slurm.text import is_one_line, printable, shown

_NO_TOKEN: Final = "QRMI returned a token that is empty or not one line"  # noqa: S105


class Rounds:
    """Acquires QPUs until every slot has one, or nothing is left to try.

    Args:
        job: the job.
        run: of the hook.
        facts: of the job.
        record: the job's; the intent goes into it before QRMI is called, each result on arrival.
    """

    def __init__(self, job: JobContext, run: HookRun, facts: JobFacts, record: Record) -> None:
        self._job = job
        self._run = run
        self._for_job = ForJob(job.job_id, job.uid, facts.time_limit_s(), job.user, job.gid)
        self._lasts_s = facts.lasts_s()
        self._node = Node(run.options.state_dir, job.node, job.uid)
        self._record = record
        self._fault: RecordError | None = None
        self._licenses: Mapping[str, str] = {}
        self._qpu_slots: Mapping[str, int | None] = {}
        # The grace is for what comes before and after QRMI's calls.
        self._calls_s = run.deadline.length_s - HOOK_GRACE_S

    def acquire(self, assignment: Assignment) -> Record:
        """Return the record with what was acquired.

        Args:
            assignment: gives each slot its next candidate.

        Raises:
            RecordError: the record could not be written; what was acquired has been given back.
        """
        while chosen := assignment.next_round({entry.name for entry in self._record.held}):
            has_more = any(slot.candidates for slot, _ in chosen)
            self._licenses = {item.name: assignment.license_of(slot) for slot, item in chosen}
            self._qpu_slots = {item.name: assignment.qpu_slots_of(item) for _, item in chosen}
            self._round({item.name: (slot, item) for slot, item in chosen}, has_more=has_more)
            if self._fault is not None:
                raise self._without(self._fault)
        return self._record

    def _without(self, fault: RecordError) -> RecordError:
        """Give back at once what no disk remembers; return the error that says so."""
        pending = [entry.name for entry in self._record.entries if entry.token is not None]
        if not pending:
            return fault
        from qrmi_slurm.hooks import late, release  # only where a disk is full

        names = ", ".join(map(printable, pending))
        self._run.log.error("given-back", qpus=names, reason=fault)
        limit_s = min(self._run.options.release_timeout_s, self._run.deadline.call_s)
        try:
            left = release.release(self._record, self._run.within(limit_s), keep_folder=True)
        except RecordError:
            late.give_back(self._record, self._run)
            return RecordError(f"{fault.message}; {names} is being released again", fault.hint)
        word = "is being" if left is not None else "was"
        return RecordError(f"{fault.message}; {names} {word} released again", fault.hint)

    def _round(self, chosen: Mapping[str, tuple[Slot, Candidate]], *, has_more: bool) -> None:
        """Acquire QPUs side by side.

        Args:
            chosen: by the QPU's name, its slot and the candidate.
            has_more: whether others can still be tried, so that time has to be left for them.
        """
        now_s = time.time()
        first = len(self._record.entries)
        for _, item in chosen.values():
            self._record = self._record.with_another(self._intent(item, self._record.next_journal, now_s))
        entries = self._record.entries[first:]
        self._run.log.hide(records.secrets_of(entries))
        self._run.folder.write(self._record)
        places = {entry.name: first + place for place, entry in enumerate(entries)}

        def on_answers(answers: Sequence[Answer]) -> None:
            for answer in answers:
                index = places[answer.call.resource]
                entry = self._answered(self._record.entries[index], answer, *chosen[answer.call.resource])
                self._record = self._record.with_entry(index, entry)
            try:  # each result is written on arrival; simultaneous ones share a write
                self._run.folder.write(self._record)
            except RecordError as error:  # the other QPUs' calls go on
                self._fault = error
                return
            self._fault = None  # of an earlier write: now the record has everything
            for answer in answers:
                if not answer.is_awaited:
                    self._run.folder.journals.drop(self._record.entries[places[answer.call.resource]].journal)

        def on_late(children: Sequence[Child]) -> None:
            from qrmi_slurm.hooks import late  # only where a service has not answered in time

            of_calls = {child.call.resource: self._record.entries[places[child.call.resource]] for child in children}
            late.go_on(children, of_calls, self._record, self._run, self._node)

        journal_fds: list[int] = []
        try:
            calls = []
            for entry in entries:
                journal_fds.append(self._run.folder.journals.open(entry.journal))
                environment_, uid, fd = entry.environment, entry.run_as_uid, journal_fds[-1]
                calls.append(Call(entry.name, entry.type, "acquire", environment_, run_as_uid=uid, journal_fd=fd))
            left_s = self._run.deadline.call_s
            timeout_s = min(self._calls_s, left_s / 2 if has_more else left_s)
            backend.run(calls, timeout_s, on_answers, node=self._node, on_late=on_late)
        finally:
            for fd in journal_fds:
                os.close(fd)

    def _intent(self, item: Candidate, journal: int, now_s: float) -> Entry:
        """Return the intent to acquire a QPU, with the whole environment that QRMI is called with."""
        variables, qpu_slots = dict(item.credentials.environment), self._qpu_slots.get(item.name)
        ends_s = expires_s = cap_s = None
        max_ttl = describe(item.installed_type).session_max_ttl
        if max_ttl:
            ttl_s = environment.session_ttl_s(variables.get(max_ttl), self._lasts_s)
            variables[max_ttl] = str(ttl_s)
            ends_s = now_s + ttl_s
            cap_s = ttl_s if max_ttl in item.credentials.environment else None
            # The service counts from when it opens the session, which may be as late as the call's end.
            expires_s = ends_s + self._run.options.acquire_timeout_s + HOOK_GRACE_S
        return Entry(
            name=item.name,
            type=item.installed_type,
            environment=environment.for_call(item.name, variables, self._run.options.env, self._for_job, qpu_slots),
            run_as_uid=self._job.uid if item.credentials.are_users else None,
            since_s=now_s,
            asked_s=now_s,
            restart_count=self._job.restart_count,
            journal=journal,
            ends_s=ends_s,
            session_cap_s=cap_s,
            expires_s=expires_s,
            license=self._licenses.get(item.name, ""),
        )

    def _answered(self, entry: Entry, answer: Answer, slot: Slot, item: Candidate) -> Entry:
        """Return a QPU's entry after its call; a failure goes into the slot."""
        # A child that was killed just after QRMI answered has still written the token.
        token = answer.token or self._run.folder.journals.token(entry.journal)
        if token is not None:
            self._run.log.hide([token])
        if answer.unjournaled:
            self._run.log.error("not-journaled", qpu=entry.name, type=entry.type, reason=answer.unjournaled)
        self._run.log.qrmi(entry.name, answer.log)
        details = {"qpu": entry.name, "type": entry.type, "seconds": answer.duration_s}
        if token is not None and is_one_line(token.reveal()):
            self._run.log.info("acquired", **details)
            return entry.to(State.ACQUIRED, token=token)
        reason = shown(answer.reason, records.secrets_of([entry])) or _NO_TOKEN
        state = _state_without(entry, answer, token)
        self._run.log.error("not-acquired", **details, state=state, reason=reason)
        from qrmi_slurm.calls import reasons  # only where something failed

        kind = reasons.kind(answer) if token is None else Kind.PERMANENT
        sentence = choice.not_acquired(entry.name, reasons.plain(reason))
        slot.failures.append(item.failed(kind, sentence, was_called=answer.verdict is not Verdict.UNASKED))
        if answer.is_awaited:
            self._run.log.warning("awaited", qpu=entry.name, type=entry.type, seconds=backend.LATE_S)
            reason = f"{reason}; the answer is awaited for another {backend.LATE_S:.0f} s, to release what it brings"
        return entry.to(state, token=token, reason=reason)


def _state_without(entry: Entry, answer: Answer, token: Secret | None) -> State:
    """Return the state of a QPU that the job cannot have."""
    if token is not None:  # acquired, but with a token that no environment can hold
        return State.RELEASING
    if answer.verdict is Verdict.UNANSWERED and describe(entry.type).locks:
        return State.INDETERMINATE
    return State.FAILED
