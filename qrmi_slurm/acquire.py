"""Acquiring: from a job's selection to QPUs that are held, recorded and exported."""

import os
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from qrmi_slurm import backend, choice, config, exports, names, record, selection
from qrmi_slurm.backend import Action, Answer, Availability, Call, Verdict
from qrmi_slurm.choice import Candidate, Slot
from qrmi_slurm.config import Resource
from qrmi_slurm.context import JobContext
from qrmi_slurm.credentials import merge
from qrmi_slurm.draft import Draft
from qrmi_slurm.errors import BrokerError, ConfigError, ExportsError, QrmiSlurmError, RecordError, SelectionError
from qrmi_slurm.exports import Exports
from qrmi_slurm.logs import HookLog
from qrmi_slurm.names import of_resource
from qrmi_slurm.plugstack import SiteOptions
from qrmi_slurm.record import Broker, Entry, JobFolder, Record, State
from qrmi_slurm.resource_types import describe, with_successors
from qrmi_slurm.secret import Secret, mask
from qrmi_slurm.selection import Term, printable

if TYPE_CHECKING:
    from qrmi_slurm.access import Person
    from qrmi_slurm.licenses import JobLicenses
    from qrmi_slurm.scheduler import Allotment

# What the IBM compute service gives a session that asks for nothing, in seconds.
_DEFAULT_SESSION_TTL_S: Final = 28800

# QRMI parses a session's life as an i32, and takes its default where that fails.
_MAX_SESSION_TTL_S: Final = 2**31 - 1

# How much longer than --acquire-timeout the whole of a Prolog may take: for what comes before and after QRMI's calls.
_GRACE_S: Final = 1.0

# With less time than this left, what is to be given back is left to Epilog, and to recover where no task comes.
_MIN_GIVE_BACK_S: Final = 0.2

# What of a service's answer stands in a job's output and in the record.
_MAX_REASON_CHARS: Final = 400


def acquire(context: JobContext, options: SiteOptions, folder: JobFolder, log: HookLog) -> Exports | None:
    """Acquire the QPUs that a job asked for, and return what its tasks get.

    The folder is created and its lock held by the caller. A fault of a QPU, the config or the selection is in the
    exports; one of the state directory is raised, since then nothing may be acquired.

    Args:
        context: the job.
        options: the site's.
        folder: where the record goes.
        log: of the hook.

    Returns:
        What the job's tasks get; None where an earlier Prolog of this very run has seen to it.

    Raises:
        RecordError: what is acquired cannot be put on disk.
    """
    deadline_s = time.monotonic() + options.acquire_timeout_s + _GRACE_S
    earlier, fault = folder.read_or_set_aside()
    if fault is not None:
        log.error("record-set-aside", reason=fault)
    if earlier is not None and _is_this_run(earlier, context, folder):
        log.info("already-acquired", restart=earlier.restart_count)
        if earlier.broker is not None:
            _revive_broker(folder, earlier, log)
        return None
    folder.remove_exports()
    if earlier is not None:
        log.warning("earlier-run", restart=earlier.restart_count, entries=len(earlier.entries))
        from qrmi_slurm import release  # only where a job was requeued

        # Half of the time at the most: a service that hangs at one will hang at the other, and Prolog has one bound.
        half = options._replace(release_timeout_s=min(options.release_timeout_s, _left_s(deadline_s) / 2))
        earlier = release.release(folder, earlier, half, log, keep_folder=True)
    return _Acquisition(context, options, folder, log, deadline_s).run(earlier)


def _revive_broker(folder: JobFolder, earlier: Record, log: HookLog) -> None:
    from qrmi_slurm.broker import launch  # only where a resource has one

    try:
        launch.revive(folder, earlier, log)
    except BrokerError as error:
        log.error("no-broker", reason=error)


def failed(context: JobContext, reason: str) -> Exports:
    """Return the exports of a job whose QPUs are not there for a reason that lies outside of them."""
    note = f"{exports.PREFIX}: job {context.job_id} has no QPU: {reason}"
    return Exports(context.job_id, context.restart_count, is_ready=False, notes=(note,))


def _left_s(deadline_s: float) -> float:
    """Return the seconds until a moment of the monotonic clock, at least some that a call can end in."""
    return max(deadline_s - time.monotonic(), 0.1)


def _is_this_run(earlier: Record, context: JobContext, folder: JobFolder) -> bool:
    """Tell whether a record is this run's own: a restarted slurmd may run Prolog again under a running job."""
    if earlier.restart_count != context.restart_count or earlier.boot_id != record.boot_id():
        return False
    if not any(entry.state is State.ACQUIRED for entry in earlier.entries):
        return False
    try:
        return exports.read(folder.exports_path, context.uid, context.job_id).is_ready
    except (FileNotFoundError, ExportsError):
        return False


class _Acquisition:
    """One run of a job's acquiring: what it knows, and what has come of it so far."""

    def __init__(
        self, context: JobContext, options: SiteOptions, folder: JobFolder, log: HookLog, deadline_s: float
    ) -> None:
        self._deadline_s = deadline_s
        self._context = context
        self._options = options
        self._folder = folder
        self._log = log
        self._time_limit_s = names.UNLIMITED_TIMEOUT_S
        self._notes: list[str] = []
        self._problems: list[str] = []
        self._tokens: dict[str, str] = {}
        self._record_fault: RecordError | None = None
        self._person: Person | None = None
        self._allotment: Allotment | None = None
        self._broker: Broker | None = None

    def run(self, earlier: Record | None) -> Exports:
        """Acquire, and return what the tasks get; `earlier` is what of an earlier run is still to be released."""
        slots: list[Slot] = []
        try:
            slots = self._find(selection.parse(self._context.selection_text))
        except ConfigError as error:
            self._log.error("refused", reason=error)
            self._problems.append(
                "the site's QPU configuration cannot be used; please tell an admin (qrmi-slurm validate-config)"
            )
        except QrmiSlurmError as error:
            self._log.error("refused", reason=error)
            self._problems.append(error.message)
        if slots and not (self._problems and self._options.require == "all"):
            self._time_limit_s = self._ask_time_limit_s()
            self._acquire_all(slots, earlier.entries if earlier else ())
        result = self._exports(slots)
        if not result.is_ready:
            self._log.warning("job-fails", reason="; ".join(result.notes))
        return result

    def _find(self, terms: Sequence[Term]) -> list[Slot]:
        """Return what can be asked for of a selection; note of the rest why not."""
        resources = config.load(self._options.config_path).resources
        members = backend.known_members()

        def prepare(resource: Resource) -> Candidate:
            try:
                return self._candidate(resource, members)
            except QrmiSlurmError as error:  # the job's output has no hint: that is the admin's
                self._log.error("not-acquired", qpu=resource.name, type=resource.type, reason=error)
                raise

        slots, unknown = choice.find(terms, resources, self._ask_person, prepare)
        if len(unknown) == len(terms) or (unknown and self._options.require == "all"):
            raise SelectionError(choice.not_known(unknown, resources))
        if unknown:
            self._notes.append(choice.not_known(unknown, resources, ", ignored"))
        for slot in slots:
            if not slot.candidates:
                self._problems.append(slot.problem)
                self._log.error("not-found", term=slot.term.text, reason=slot.problem)
        return [slot for slot in slots if slot.candidates]

    def _candidate(self, resource: Resource, members: Sequence[str]) -> Candidate:
        """Return what QRMI is to be called with for a resource; raise where the job cannot have it."""
        if "secrets" in resource.slurm:
            from qrmi_slurm import stored_secrets  # only where the config names a place

            resource = stored_secrets.fill(resource, _left_s(self._deadline_s) / 2)
        item = Candidate(
            resource,
            merge(resource, self._context.user_environment),
            backend.installed_type(resource.type, members),
            resource.name,
        )
        exports.export_lines(_prefixed(item))  # what no task can get is not acquired either
        return item

    def _ask_person(self, needs_qos: bool) -> "Person":
        """Return who asks; slurmctld is asked for the job's QOS only where a rule is about it and Slurm is older."""
        if self._person is None:
            from qrmi_slurm import access  # only where there is a rule

            job = self._context
            self._person = access.person_of(job.uid)._replace(account=job.account, partition=job.partition, qos=job.qos)
        if needs_qos and self._person.qos is None:
            self._person = self._person._replace(qos=self._ask_allotment().qos)
        return self._person

    def _ask_allotment(self) -> "Allotment":
        """Return the job's licenses and QOS; none of either where slurmctld does not tell."""
        if self._allotment is None:
            from qrmi_slurm import scheduler  # subprocess costs 5 ms that most jobs need not pay

            told = scheduler.allotment(self._context.job_id, self._context.slurm_conf, self._ask_timeout_s())
            if told is None:
                self._log.warning("allotment-unknown", hint="squeue tells neither the job's licenses nor its QOS")
            self._allotment = told or scheduler.Allotment({}, "")
        return self._allotment

    def _acquire_all(self, slots: Sequence[Slot], earlier: Sequence[Entry]) -> None:
        """Acquire for each slot what it comes to; one that cannot be had is tried again with its next candidate."""
        current = Record(
            cluster=self._context.cluster,
            job_id=self._context.job_id,
            uid=self._context.uid,
            node=self._context.node,
            boot_id=record.boot_id(),
            restart_count=self._context.restart_count,
            created_s=time.time(),
            entries=tuple(earlier),
            user=self._context.user,
            account=self._context.account or "",
            het_job_id=self._context.het_job_id,
        )
        licenses = self._licenses_for(slots)
        draft = Draft(slots, licenses, self._ask_timeout_s)
        self._look_around([slot for slot in slots if slot.is_open], licenses.held if licenses is not None else {})
        while chosen := draft.next_round(self._tokens):
            has_more = any(slot.candidates for slot, _ in chosen)
            current = self._acquire_round({item.name: slot for slot, item in chosen}, current, has_more=has_more)
        for slot in slots:
            if slot.chosen is None or slot.chosen.name not in self._tokens:
                self._problems.append(slot.problem)
        if self._record_fault is not None:
            raise self._record_fault
        current = self._with_broker(slots, current)
        if self._problems and (self._options.require == "all" or not self._tokens):
            self._give_back(current)

    def _with_broker(self, slots: Sequence[Slot], current: Record) -> Record:
        """Start the broker of the QPUs that need one; without it the job does not have them."""
        items = [slot.chosen for slot in slots if slot.chosen is not None and slot.chosen.name in self._tokens]
        brokered = [item.name for item in items if item.credentials.need_broker]
        if not brokered:
            return current
        from qrmi_slurm.broker import launch  # only where a resource has one

        try:
            ends_s = time.time() + self._time_limit_s
            current = launch.start(self._folder, current, brokered, ends_s, _left_s(self._deadline_s), self._log)
        except BrokerError as error:
            self._log.error("no-broker", qpus=",".join(brokered), reason=error)
            self._problems.append(f"{printable(', '.join(brokered))}: {error.message}")
            for name in brokered:
                del self._tokens[name]
        self._broker = current.broker
        return current

    def _acquire_round(self, slots: Mapping[str, Slot], current: Record, *, has_more: bool) -> Record:
        """Acquire QPUs side by side; what comes of each goes to disk as soon as it is known, of several at once.

        Args:
            slots: by the QPU's name, the slot that it was chosen for.
            current: the record so far.
            has_more: whether another QPU can still be tried, so that time has to be left for it.
        """
        now_s = time.time()
        first = len(current.entries)
        for slot in slots.values():
            if slot.chosen is not None:
                current = current.with_another(self._entry(slot.chosen, current.next_journal, now_s))
        self._log.hide(record.secrets_of(current.entries))
        self._folder.write(current)
        places = {entry.name: index for index, entry in enumerate(current.entries) if index >= first}
        journals: list[int] = []

        def on_answers(answers: Sequence[Answer]) -> None:
            nonlocal current
            for answer in answers:
                index = places[answer.call.resource]
                entry = self._answered(current.entries[index], answer, slots[answer.call.resource])
                current = current.with_entry(index, entry)
            try:
                self._folder.write(current)
            except RecordError as error:  # the journals still have the tokens; the other QPUs' calls go on
                self._record_fault = error
                return
            for answer in answers:
                self._folder.drop_journal(current.entries[places[answer.call.resource]].journal)

        try:
            calls = []
            for index in places.values():
                entry = current.entries[index]
                journals.append(self._folder.open_journal(entry.journal))
                call = Call(entry.name, entry.type, "acquire", entry.environment, None, entry.run_as_uid, journals[-1])
                calls.append(call)
            left_s = _left_s(self._deadline_s)
            backend.run(calls, min(self._options.acquire_timeout_s, left_s / 2 if has_more else left_s), on_answers)
        finally:
            for fd in journals:
                os.close(fd)
        return current

    def _look_around(self, slots: Sequence[Slot], licenses: Mapping[str, int]) -> None:
        """Ask QRMI for the state of all that open slots may come to, and put it into order.

        Args:
            slots: those that are open.
            licenses: the job's.
        """
        found: dict[str, Sequence[str] | str] = {}
        told: dict[str, Availability | str] = {}
        calls: dict[str, Call] = {}
        for item in [item for slot in slots for item in slot.candidates]:
            entry = self._entry(item, 0, time.time())
            action: Action = "discover" if item.resource.is_dynamic else "check"
            calls[item.name] = Call(item.name, entry.type, action, entry.environment, None, entry.run_as_uid)

        def on_answers(answers: Sequence[Answer]) -> None:
            for answer in answers:
                note(answer)

        def note(answer: Answer) -> None:
            name = answer.call.resource
            secrets = record.secrets_in(answer.call.environment)
            self._log.hide(secrets)
            self._log.qrmi(name, answer.log)
            if answer.verdict is not Verdict.DONE:
                problem = _shown(answer.reason, secrets) or "QRMI gave no answer"
                found[name], told[name] = problem, problem
            elif answer.availability is not None:
                said = answer.availability
                told[name] = said._replace(reason=_shown(said.reason, secrets))
            else:
                found[name] = answer.found

        backend.run(list(calls.values()), _left_s(self._deadline_s) / 2, on_answers)
        for slot in slots:
            choice.expand(slot, found)
            choice.rank(slot, told, licenses)
            self._log.info("choice", term=slot.term.text, order=",".join(item.name for item in slot.candidates))

    def _licenses_for(self, slots: Sequence[Slot]) -> "JobLicenses | None":
        """Return the job's licenses where the choice of a QPU may change them."""
        if all(len({item.license for item in slot.candidates}) < 2 for slot in slots):
            return None
        from qrmi_slurm import licenses, scheduler

        text = self._context.licenses_text
        held = scheduler.parse_licenses(text) if text is not None else self._ask_allotment().licenses
        return licenses.JobLicenses(self._context.job_id, held, self._context.slurm_conf, self._log) if held else None

    def _ask_timeout_s(self) -> float:
        """Return how long one more question to slurmctld may take, in seconds."""
        return _left_s(self._deadline_s) / 4

    def _give_back(self, current: Record) -> None:
        """Release what the job cannot use without the rest; what time is lacking for, Epilog and recover release."""
        from qrmi_slurm import release  # only where another QPU cannot be had

        self._tokens.clear()
        left_s = self._deadline_s - time.monotonic()
        if left_s < _MIN_GIVE_BACK_S:
            self._folder.write(release.to_be_released(current))
            return
        options = self._options._replace(release_timeout_s=min(self._options.release_timeout_s, left_s))
        release.release(self._folder, current, options, self._log, keep_folder=True)

    def _answered(self, entry: Entry, answer: Answer, slot: Slot) -> Entry:
        """Return where a QPU stands after its call; note the token or the reason."""
        # A child that was killed just after its answer came has still left the token behind.
        token = answer.token or self._folder.journaled_token(entry.journal)
        if token is not None:
            self._log.hide([token])
        self._log.qrmi(entry.name, answer.log)
        details = {"qpu": entry.name, "type": entry.type, "seconds": answer.duration_s}
        if token is not None and selection.is_one_line(token.reveal()):
            self._log.info("acquired", **details)
            self._tokens[entry.name] = token.reveal()
            return entry.to(State.ACQUIRED, token=token)
        reason = _shown(answer.reason, record.secrets_of([entry]))
        reason = reason or "QRMI returned a token that is empty or not one line"
        state = _state_without_token(entry, answer, token)
        self._log.error("not-acquired", **details, state=state, reason=reason)
        from qrmi_slurm import reasons  # only where something failed

        slot.failures.append(choice.not_acquired(entry.name, reasons.plain(reason)))
        return entry.to(state, token=token, reason=reason)

    def _entry(self, item: Candidate, journal: int, now_s: float) -> Entry:
        """Return the intent to acquire a QPU, with the whole environment that QRMI is called in."""
        name = item.resource.name
        variables = with_successors(item.credentials.environment)
        expires_s = None
        max_ttl = describe(item.installed_type).session_max_ttl
        if max_ttl:
            ttl_s = _session_ttl_s(variables.get(max_ttl), self._time_limit_s)
            variables[max_ttl] = str(ttl_s)
            # Its life begins at the service, which may be as late as the call's own end.
            expires_s = now_s + ttl_s + self._options.acquire_timeout_s + _GRACE_S
        variables[names.TIMEOUT_SECONDS] = str(self._time_limit_s)
        environment = dict(self._options.env)
        environment |= {of_resource(name, variable): value for variable, value in variables.items()}
        environment[names.QRMI_JOB_ID] = str(self._context.job_id)
        environment[names.QRMI_JOB_UID] = str(self._context.uid)
        return Entry(
            name=name,
            type=item.installed_type,
            environment=environment,
            run_as_uid=self._context.uid if item.credentials.are_users else None,
            since_s=now_s,
            asked_s=now_s,
            restart_count=self._context.restart_count,
            journal=journal,
            expires_s=expires_s,
        )

    def _exports(self, slots: Sequence[Slot]) -> Exports:
        job_id, restart_count = self._context.job_id, self._context.restart_count
        held = {slot: slot.chosen for slot in slots if slot.chosen is not None and slot.chosen.name in self._tokens}
        if not held:
            sentence = f"{exports.PREFIX}: job {job_id} has no QPU"
            notes = tuple(f"{sentence}: {reason}" for reason in (*self._problems, *self._notes))
            return Exports(job_id, restart_count, is_ready=False, notes=notes)
        chosen = [(slot.term.text, item.name) for slot, item in held.items() if slot.is_choice_of(item)]
        said = [f"{printable(text)} is {printable(name)}" for text, name in chosen]
        notes = tuple(f"{exports.PREFIX}: {note}" for note in (*said, *self._notes, *self._problems))
        variables = self._variables(list(held.values()))
        if chosen:
            variables[names.QRMI_SLURM_CHOICES] = ",".join(f"{text}={name}" for text, name in chosen)
        return Exports(job_id, restart_count, is_ready=True, notes=notes, variables=variables)

    def _variables(self, held: Sequence[Candidate]) -> dict[str, str]:
        resource_names = ",".join(item.name for item in held)
        variables = dict(self._options.env)
        for item in held:
            variables |= _prefixed(item) if not item.credentials.need_broker else self._brokered(item)
            variables[of_resource(item.name, names.ACQUISITION_TOKEN)] = self._tokens[item.name]
            variables[of_resource(item.name, names.TIMEOUT_SECONDS)] = str(self._time_limit_s)
        variables |= {
            names.QRMI_JOB_QPU_RESOURCES: resource_names,
            names.QRMI_JOB_QPU_TYPES: ",".join(item.installed_type for item in held),
            names.SLURM_JOB_QPU_RESOURCES: resource_names,
            names.SLURM_JOB_QPU_TYPES: ",".join(item.resource.type for item in held),
            names.QRMI_JOB_ID: str(self._context.job_id),
            names.QRMI_JOB_UID: str(self._context.uid),
        }
        return variables

    def _brokered(self, item: Candidate) -> dict[str, str]:
        """Return the variables of a QPU that the job reaches through its broker: none of the site's secrets."""
        from qrmi_slurm.broker import variables

        assert self._broker is not None  # noqa: S101 without it the job does not hold this one
        seen = variables.for_job(self._broker, item.name, item.resource.type, item.credentials.environment)
        found = {of_resource(item.name, variable): value for variable, value in seen.items()}
        return {**found, names.QRMI_SLURM_BROKER: self._context.node}

    def _ask_time_limit_s(self) -> int:
        """Return the job's time limit in seconds, from Slurm's environment or, before 23.02, from scontrol."""
        if self._context.time_limit_s is not None:
            return min(self._context.time_limit_s, names.UNLIMITED_TIMEOUT_S)
        from qrmi_slurm import scheduler  # subprocess costs 5 ms that newer Slurm versions need not pay

        half_s = _left_s(self._deadline_s) / 2
        seconds = scheduler.time_limit_s(self._context.job_id, self._context.slurm_conf, half_s)
        if seconds is None:
            self._log.warning("time-limit-unknown", hint="neither Slurm's environment nor scontrol tells it")
            return names.UNLIMITED_TIMEOUT_S
        return min(seconds, names.UNLIMITED_TIMEOUT_S)


def _shown(text: str, secrets: Sequence[Secret]) -> str:
    """Return a service's words fit for a job's output."""
    return printable(mask(text, secrets), _MAX_REASON_CHARS)


def _prefixed(item: Candidate) -> dict[str, str]:
    """Return a QPU's variables as its tasks get them: under the resource's name, the renamed ones under both names."""
    variables = with_successors(item.credentials.environment)
    return {of_resource(item.resource.name, variable): value for variable, value in variables.items()}


def _state_without_token(entry: Entry, answer: Answer, token: Secret | None) -> State:
    """Return where a QPU stands that the job cannot have."""
    if token is not None:  # acquired, but nothing that an environment can carry: to be released
        return State.ACQUIRED
    if answer.verdict is Verdict.UNANSWERED and describe(entry.type).locks:
        return State.INDETERMINATE
    return State.FAILED


def _session_ttl_s(configured: str | None, time_limit_s: int) -> int:
    """Return how long a session may live, in seconds: what is configured, or as long as the job at the most."""
    if configured is not None and configured.isascii() and configured.isdecimal() and len(configured) <= 10:
        return max(1, min(int(configured), _MAX_SESSION_TTL_S))
    return min(_DEFAULT_SESSION_TTL_S, time_limit_s)
