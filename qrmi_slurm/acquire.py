"""Acquiring: from a job's selection to QPUs that are held, recorded and exported."""

import os
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from qrmi_slurm import backend, config, exports, names, record, release, selection
from qrmi_slurm.backend import Answer, Call, Verdict
from qrmi_slurm.config import Resource
from qrmi_slurm.context import JobContext
from qrmi_slurm.credentials import Credentials, merge
from qrmi_slurm.errors import (
    BackendError,
    ConfigError,
    CredentialsError,
    ExportsError,
    QrmiSlurmError,
    RecordError,
    SelectionError,
)
from qrmi_slurm.exports import Exports
from qrmi_slurm.logs import HookLog
from qrmi_slurm.names import of_resource
from qrmi_slurm.plugstack import SiteOptions
from qrmi_slurm.record import Entry, JobFolder, Record, State
from qrmi_slurm.resource_types import describe, with_successors
from qrmi_slurm.secret import Secret, mask
from qrmi_slurm.selection import printable

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


class _Wanted(NamedTuple):
    """One QPU that is to be acquired."""

    resource: Resource
    credentials: Credentials
    installed_type: str


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
        return None
    folder.remove_exports()
    if earlier is not None:
        log.warning("earlier-run", restart=earlier.restart_count, entries=len(earlier.entries))
        # Half of the time at the most: a service that hangs at one will hang at the other, and Prolog has one bound.
        half = options._replace(release_timeout_s=min(options.release_timeout_s, _left_s(deadline_s) / 2))
        earlier = release.release(folder, earlier, half, log, keep_folder=True)
    return _Acquisition(context, options, folder, log, deadline_s).run(earlier)


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

    def run(self, earlier: Record | None) -> Exports:
        """Acquire, and return what the tasks get; `earlier` is what of an earlier run is still to be released."""
        wanted: list[_Wanted] = []
        try:
            wanted = self._find(selection.parse(self._context.selection_text))
        except ConfigError as error:
            self._log.error("refused", reason=error)
            self._problems.append(
                "the site's QPU configuration cannot be used; please tell an admin (qrmi-slurm validate-config)"
            )
        except QrmiSlurmError as error:
            self._log.error("refused", reason=error)
            self._problems.append(error.message)
        if wanted and not (self._problems and self._options.require == "all"):
            self._time_limit_s = self._ask_time_limit_s()
            self._acquire_all(wanted, earlier.entries if earlier else ())
        result = self._exports([item for item in wanted if item.resource.name in self._tokens])
        if not result.is_ready:
            self._log.warning("job-fails", reason="; ".join(result.notes))
        return result

    def _find(self, selected: Sequence[str]) -> list[_Wanted]:
        """Return what can be asked for of a selection; note of the rest why not."""
        resources = config.load(self._options.config_path).resources
        unknown = [name for name in selected if name not in resources]
        text = f"not known at this site{{}}: {', '.join(map(printable, unknown))}"
        if len(unknown) == len(selected) or (unknown and self._options.require == "all"):
            raise SelectionError(text.format(""))
        if unknown:
            self._notes.append(text.format(", ignored"))
        members = backend.known_members()
        wanted = []
        for resource in [resources[name] for name in selected if name in resources]:
            try:
                item = _Wanted(
                    resource,
                    merge(resource, self._context.user_environment),
                    backend.installed_type(resource.type, members),
                )
                exports.export_lines(_prefixed(item))  # what no task can get is not acquired either
                wanted.append(item)
            except (CredentialsError, BackendError, ExportsError) as error:
                self._note_failure(resource.name, error.message)
                self._log.error("not-acquired", qpu=resource.name, type=resource.type, reason=error)
        return wanted

    def _note_failure(self, name: str, reason: str) -> None:
        self._problems.append(f"{printable(name)} could not be acquired: {reason}")

    def _acquire_all(self, wanted: Sequence[_Wanted], earlier: Sequence[Entry]) -> None:
        now_s = time.time()
        current = Record(
            cluster=self._context.cluster,
            job_id=self._context.job_id,
            uid=self._context.uid,
            node=self._context.node,
            boot_id=record.boot_id(),
            restart_count=self._context.restart_count,
            created_s=now_s,
            entries=tuple(earlier),
        )
        for item in wanted:
            current = current.with_another(self._entry(item, current.next_journal, now_s))
        self._log.hide(record.secrets_of(current.entries))
        self._folder.write(current)
        places = {entry.name: index for index, entry in enumerate(current.entries) if index >= len(earlier)}
        journals: list[int] = []

        def on_answer(answer: Answer) -> None:
            nonlocal current
            index = places[answer.call.resource]
            current = current.with_entry(index, self._answered(current.entries[index], answer))
            try:
                self._folder.write(current)
                self._folder.drop_journal(current.entries[index].journal)
            except RecordError as error:  # the journal still has the token; the other QPUs' calls go on
                self._record_fault = error

        try:
            calls = []
            for index in places.values():
                entry = current.entries[index]
                journals.append(self._folder.open_journal(entry.journal))
                call = Call(entry.name, entry.type, "acquire", entry.environment, None, entry.run_as_uid, journals[-1])
                calls.append(call)
            backend.run(calls, min(self._options.acquire_timeout_s, _left_s(self._deadline_s)), on_answer)
        finally:
            for fd in journals:
                os.close(fd)
        if self._record_fault is not None:
            raise self._record_fault
        if self._problems and (self._options.require == "all" or not self._tokens):
            self._give_back(current)

    def _give_back(self, current: Record) -> None:
        """Release what the job cannot use without the rest; what time is lacking for, Epilog and recover release."""
        self._tokens.clear()
        left_s = self._deadline_s - time.monotonic()
        if left_s < _MIN_GIVE_BACK_S:
            self._folder.write(release.to_be_released(current))
            return
        options = self._options._replace(release_timeout_s=min(self._options.release_timeout_s, left_s))
        release.release(self._folder, current, options, self._log, keep_folder=True)

    def _answered(self, entry: Entry, answer: Answer) -> Entry:
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
        reason = printable(mask(answer.reason, record.secrets_of([entry])), _MAX_REASON_CHARS)
        reason = reason or "QRMI returned a token that is empty or not one line"
        state = _state_without_token(entry, answer, token)
        self._log.error("not-acquired", **details, state=state, reason=reason)
        from qrmi_slurm import reasons  # only where something failed

        self._note_failure(entry.name, reasons.plain(reason))
        return entry.to(state, token=token, reason=reason)

    def _entry(self, item: _Wanted, journal: int, now_s: float) -> Entry:
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
            restart_count=self._context.restart_count,
            journal=journal,
            expires_s=expires_s,
        )

    def _exports(self, held: Sequence[_Wanted]) -> Exports:
        job_id, restart_count = self._context.job_id, self._context.restart_count
        if not held:
            sentence = f"{exports.PREFIX}: job {job_id} has no QPU"
            notes = tuple(f"{sentence}: {reason}" for reason in (*self._problems, *self._notes))
            return Exports(job_id, restart_count, is_ready=False, notes=notes)
        notes = tuple(f"{exports.PREFIX}: {note}" for note in (*self._notes, *self._problems))
        return Exports(job_id, restart_count, is_ready=True, notes=notes, variables=self._variables(held))

    def _variables(self, held: Sequence[_Wanted]) -> dict[str, str]:
        resource_names = ",".join(item.resource.name for item in held)
        variables = dict(self._options.env)
        for item in held:
            name = item.resource.name
            variables |= _prefixed(item)
            variables[of_resource(name, names.ACQUISITION_TOKEN)] = self._tokens[name]
            variables[of_resource(name, names.TIMEOUT_SECONDS)] = str(self._time_limit_s)
        variables |= {
            names.QRMI_JOB_QPU_RESOURCES: resource_names,
            names.QRMI_JOB_QPU_TYPES: ",".join(item.installed_type for item in held),
            names.SLURM_JOB_QPU_RESOURCES: resource_names,
            names.SLURM_JOB_QPU_TYPES: ",".join(item.resource.type for item in held),
            names.QRMI_JOB_ID: str(self._context.job_id),
            names.QRMI_JOB_UID: str(self._context.uid),
        }
        return variables

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


def _prefixed(item: _Wanted) -> dict[str, str]:
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
