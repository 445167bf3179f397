"""Acquiring: from a job's selection to QPUs that are held, recorded and exported."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from qrmi_slurm import backend, config, exports, names, record, release, selection
from qrmi_slurm.backend import Answer, Call, Verdict
from qrmi_slurm.config import Resource
from qrmi_slurm.context import JobContext
from qrmi_slurm.credentials import Credentials, merge
from qrmi_slurm.errors import BackendError, ConfigError, CredentialsError, QrmiSlurmError, SelectionError
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


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One QPU that is to be acquired."""

    resource: Resource
    credentials: Credentials
    installed_type: str


@dataclass(slots=True)
class _Outcome:
    """What came of the selection so far, for the user."""

    notes: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)


def acquire(context: JobContext, options: SiteOptions, folder: JobFolder, log: HookLog) -> Exports:
    """Acquire the QPUs that a job asked for, and return what its tasks get.

    The folder is created and its lock held by the caller. A fault of a QPU, the config or the selection is in
    the exports; one of the state directory is raised, since then nothing may be acquired.

    Args:
        context: the job.
        options: the site's.
        folder: where the record goes.
        log: of the hook.

    Raises:
        RecordError: the intent cannot be put on disk.
    """
    outcome = _Outcome()
    earlier = _release_earlier_run(context, options, folder, log)
    wanted: list[_Wanted] = []
    time_limit_s = names.UNLIMITED_TIMEOUT_S
    try:
        selected = selection.parse(context.selection_text)
        wanted = _find(selected, context, options, outcome)
        time_limit_s = _time_limit_s(context, log) if wanted else time_limit_s
    except QrmiSlurmError as error:
        outcome.failures[""] = _for_user(error)
        log.error("refused", reason=error)
    if wanted and not (outcome.failures and options.require == "all"):
        _acquire_all(wanted, time_limit_s, context, options, folder, earlier, outcome, log)
    result = _exports(wanted, time_limit_s, context, options, outcome)
    if not result.is_ready:
        log.warning("job-fails", reason="; ".join(result.notes))
    return result


def _find(selected: Sequence[str], context: JobContext, options: SiteOptions, outcome: _Outcome) -> list[_Wanted]:
    """Return what can be asked for of a selection; say of the rest why not."""
    resources = config.load(options.config_path).resources
    unknown = [name for name in selected if name not in resources]
    if len(unknown) == len(selected) or (unknown and options.require == "all"):
        raise SelectionError(f"not known at this site: {', '.join(map(printable, unknown))}")
    if unknown:
        outcome.notes.append(f"not known at this site, ignored: {', '.join(map(printable, unknown))}")
    members = backend.known_members()
    wanted = []
    for name in selected:
        resource = resources.get(name)
        if resource is None:
            continue
        try:
            credentials = merge(resource, context.user_environment)
            wanted.append(_Wanted(resource, credentials, backend.installed_type(resource.type, members)))
        except (CredentialsError, BackendError) as error:
            outcome.failures[name] = error.message
    return wanted


def _acquire_all(
    wanted: Sequence[_Wanted],
    time_limit_s: int,
    context: JobContext,
    options: SiteOptions,
    folder: JobFolder,
    earlier: Sequence[Entry],
    outcome: _Outcome,
    log: HookLog,
) -> None:
    now_s = time.time()
    new = [_entry(item, time_limit_s, context, options, now_s) for item in wanted]
    current = Record(
        cluster=context.cluster,
        job_id=context.job_id,
        uid=context.uid,
        node=context.node,
        boot_id=record.boot_id(),
        restart_count=context.restart_count,
        created_s=now_s,
        entries=(*earlier, *new),
    )
    log.hide(record.secrets_of(new))
    journals: dict[int, int] = {}
    places: dict[str, int] = {}

    def on_answer(answer: Answer) -> None:
        nonlocal current
        index = places[answer.call.resource]
        entry = current.entries[index]
        log.qrmi(entry.name, answer.log)
        # A child that was killed just after its answer came has still left the token behind.
        token = answer.token or folder.journaled_token(index)
        reason = printable(mask(answer.reason, record.secrets_of([entry])), 300)
        if token and selection.is_one_line(token.reveal()):
            log.hide([token])
            log.info("acquired", qpu=entry.name, type=entry.type, seconds=answer.duration_s)
            outcome.tokens[entry.name] = token.reveal()
            entry = entry.to(State.ACQUIRED, token=token)
        else:
            reason = reason or "QRMI returned a token that is empty or not one line"
            entry = entry.to(_state_without_token(entry, answer, token), token=token, reason=reason)
            details = {
                "qpu": entry.name,
                "type": entry.type,
                "seconds": answer.duration_s,
                "state": entry.state,
            }
            log.error("not-acquired", **details, reason=reason)
            outcome.failures[entry.name] = reason
        current = current.with_entry(index, entry)
        folder.write(current)
        folder.drop_journal(index)

    folder.write(current)
    try:
        calls = []
        for index, entry in enumerate(new, start=len(earlier)):
            places[entry.name] = index
            journals[index] = folder.open_journal(index)
            calls.append(
                Call(
                    entry.name,
                    entry.type,
                    "acquire",
                    entry.environment,
                    run_as_uid=entry.run_as_uid,
                    journal_fd=journals[index],
                )
            )
        backend.run(calls, options.acquire_timeout_s, on_answer)
    finally:
        for fd in journals.values():
            os.close(fd)
    if outcome.failures and (options.require == "all" or not outcome.tokens):
        release.release(folder, current, options, log, keep_folder=True)
        outcome.tokens.clear()


def _state_without_token(entry: Entry, answer: Answer, token: Secret | None) -> State:
    """Return where a QPU stands that the job cannot have."""
    if token:  # acquired, but nothing that an environment can carry: to be released
        return State.ACQUIRED
    if answer.verdict is Verdict.UNANSWERED and describe(entry.type).locks:
        return State.INDETERMINATE
    return State.FAILED


def _entry(item: _Wanted, time_limit_s: int, context: JobContext, options: SiteOptions, now_s: float) -> Entry:
    """Return the intent to acquire a QPU, with the whole environment that QRMI is called in."""
    resource, known = item.resource, describe(item.installed_type)
    variables = with_successors(item.credentials.environment)
    expires_s = None
    if known.session_max_ttl:
        configured = variables.get(known.session_max_ttl, "")
        ttl_s = int(configured) if configured.isdecimal() else min(_DEFAULT_SESSION_TTL_S, time_limit_s)
        variables.setdefault(known.session_max_ttl, str(ttl_s))
        expires_s = now_s + ttl_s
    variables[names.TIMEOUT_SECONDS] = str(time_limit_s)
    environment = {of_resource(resource.name, name): value for name, value in variables.items()}
    environment |= options.env
    environment[names.QRMI_JOB_ID] = str(context.job_id)
    environment[names.QRMI_JOB_UID] = str(context.uid)
    return Entry(
        name=resource.name,
        type=item.installed_type,
        environment=environment,
        run_as_uid=context.uid if item.credentials.are_users else None,
        since_s=now_s,
        restart_count=context.restart_count,
        expires_s=expires_s,
    )


def _exports(
    wanted: Sequence[_Wanted],
    time_limit_s: int,
    context: JobContext,
    options: SiteOptions,
    outcome: _Outcome,
) -> Exports:
    held = [item for item in wanted if item.resource.name in outcome.tokens]
    problems = [
        f"{printable(name)} could not be acquired: {reason}" if name else reason
        for name, reason in outcome.failures.items()
    ]
    if not held:
        sentence = f"{exports.PREFIX}: job {context.job_id} has no QPU"
        reasons = [*problems, *outcome.notes]
        notes = tuple(f"{sentence}: {reason}" for reason in reasons)
        return Exports(context.job_id, context.restart_count, is_ready=False, notes=notes)
    variables = _variables(held, time_limit_s, context, options, outcome.tokens)
    notes = tuple(f"{exports.PREFIX}: {note}" for note in (*outcome.notes, *problems))
    ready = Exports(context.job_id, context.restart_count, is_ready=True, notes=notes, variables=variables)
    exports.render(ready)  # what cannot be written must be found here, where it still can be released
    return ready


def _variables(
    held: Sequence[_Wanted],
    time_limit_s: int,
    context: JobContext,
    options: SiteOptions,
    tokens: Mapping[str, str],
) -> dict[str, str]:
    resource_names = ",".join(item.resource.name for item in held)
    variables = dict(options.env)
    for item in held:
        name = item.resource.name
        for variable, value in with_successors(item.credentials.environment).items():
            variables[of_resource(name, variable)] = value
        variables[of_resource(name, names.ACQUISITION_TOKEN)] = tokens[name]
        variables[of_resource(name, names.TIMEOUT_SECONDS)] = str(time_limit_s)
    variables |= {
        names.QRMI_JOB_QPU_RESOURCES: resource_names,
        names.QRMI_JOB_QPU_TYPES: ",".join(item.installed_type for item in held),
        names.SLURM_JOB_QPU_RESOURCES: resource_names,
        names.SLURM_JOB_QPU_TYPES: ",".join(item.resource.type for item in held),
        names.QRMI_JOB_ID: str(context.job_id),
        names.QRMI_JOB_UID: str(context.uid),
    }
    return variables


def _release_earlier_run(
    context: JobContext, options: SiteOptions, folder: JobFolder, log: HookLog
) -> tuple[Entry, ...]:
    """Release what an earlier run of a requeued job left, and return what of it is still pending."""
    earlier, fault = folder.read_or_set_aside()
    if fault is not None:
        log.error("record-set-aside", reason=fault)
    if earlier is None:
        return ()
    log.warning("earlier-run", restart=earlier.restart_count, entries=len(earlier.entries))
    folder.remove_exports()
    left = release.release(folder, earlier, options, log, keep_folder=True)
    return left.entries if left else ()


def _time_limit_s(context: JobContext, log: HookLog) -> int:
    """Return the job's time limit in seconds, from Slurm's environment or, before 23.02, from scontrol."""
    if context.time_limit_s is not None:
        return min(context.time_limit_s, names.UNLIMITED_TIMEOUT_S)
    from qrmi_slurm import scontrol  # subprocess costs 5 ms that newer Slurm versions need not pay

    seconds = scontrol.time_limit_s(context.job_id, context.slurm_conf)
    if seconds is None:
        log.warning("time-limit-unknown", hint="neither Slurm's environment nor scontrol tells it")
        return names.UNLIMITED_TIMEOUT_S
    return min(seconds, names.UNLIMITED_TIMEOUT_S)


def _for_user(error: QrmiSlurmError) -> str:
    """Return an error's sentence as a user may read it: the reason, without what only an admin can look at."""
    if isinstance(error, ConfigError):
        return "the site's QPU configuration cannot be used; please tell an admin (qrmi-slurm validate-config)"
    return error.message


def failed(context: JobContext, reason: str) -> Exports:
    """Return the exports of a job whose QPUs are not there for a reason that lies outside of them."""
    note = f"{exports.PREFIX}: job {context.job_id} has no QPU: {reason}"
    return Exports(context.job_id, context.restart_count, is_ready=False, notes=(note,))
