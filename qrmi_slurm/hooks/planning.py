"""Planning: from a job's `--qpu` to the QPUs that Prolog tries to acquire, in order."""

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from qrmi_slurm.calls import backend, environment, installed
from qrmi_slurm.calls.environment import ForJob
from qrmi_slurm.calls.places import Node
from qrmi_slurm.calls.protocol import Action, Answer, Availability, Call, Verdict
from qrmi_slurm.config import config_file
from qrmi_slurm.config.config_file import Resource
from qrmi_slurm.config.credentials import merge
from qrmi_slurm.errors import (
    BackendError,
    ConfigError,
    CredentialsError,
    ExportsError,
    QrmiSlurmError,
    SelectionError,
)
from qrmi_slurm.failure import Failure
from qrmi_slurm.hooks import choice
from qrmi_slurm.hooks.choice import Candidate, Slot
from qrmi_slurm.hooks.hook_run import HookRun
from qrmi_slurm.hooks.job_facts import JobFacts
from qrmi_slurm.names import QRMI_PREFIX, of_resource
from qrmi_slurm.slurm import selection
from qrmi_slurm.slurm.job_context import JobContext
from qrmi_slurm.state import exports, record
from qrmi_slurm.text import shown, unknown_names

_CONFIG_FAULT = "the site's QPU configuration cannot be used; please tell an admin (qrmi-slurm validate-config)"


class Plan(NamedTuple):
    """What a job may get.

    Args:
        slots: for each term of `--qpu` that something fits, what it may come to.
        problems: why others cannot be had, one sentence each.
        notes: what the user should know although the job can run.
        resources: of the config.
    """

    slots: list[Slot]
    problems: list[str]
    notes: list[str]
    resources: Mapping[str, Resource] = MappingProxyType({})


def make(job: JobContext, run: HookRun, facts: JobFacts) -> Plan:
    """Return the plan of a job; a fault in the config or in `--qpu` is one of its problems."""
    try:
        return _find(job, run, facts)
    except ConfigError as error:  # users cannot see the config
        run.log.error("refused", reason=error)
        return Plan([], [_CONFIG_FAULT], [])
    except QrmiSlurmError as error:
        run.log.error("refused", reason=error)
        return Plan([], [error.message], [])


def _find(job: JobContext, run: HookRun, facts: JobFacts) -> Plan:
    terms = selection.parse(job.selection_text)
    configured = config_file.load(run.options.config_path).resources
    resources = config_file.with_slots(configured, run.options.slots_licenses)
    found, unknown = choice.find(
        terms,
        resources,
        lambda needs_qos: facts.person(needs_qos=needs_qos),
        lambda chosen: _candidates(chosen, resources, job, run),
    )
    if len(unknown) == len(terms) or (unknown and run.options.require == "all"):
        raise SelectionError(unknown_names(unknown, resources))
    notes = [unknown_names(unknown, resources, are_ignored=True)] if unknown else []
    empty = {slot.term.text: slot.problem for slot in found if not slot.candidates}
    for text, problem in empty.items():
        run.log.error("not-found", term=text, reason=problem)
    return Plan([slot for slot in found if slot.candidates], [*empty.values()], notes, resources)


def _candidates(
    chosen: Sequence[Resource], known: Collection[str], job: JobContext, run: HookRun
) -> dict[str, Candidate | str]:
    """Return what QRMI is to be called with for each resource, by name; or why the job cannot have it."""
    members = installed.known_members()
    filled: Mapping[str, Resource | CredentialsError] = {resource.name: resource for resource in chosen}
    if any(resource.slurm.secrets for resource in chosen):
        from qrmi_slurm.config import stored_secrets  # only where the config names a place

        filled = stored_secrets.fill_all(chosen, run.deadline.call_s / 2)
    users = _by_resource(job.user_environment, known)
    found: dict[str, Candidate | str] = {}
    for resource in chosen:
        try:
            if resource.slurm.fault:
                raise CredentialsError(choice.FAULT, f"{resource.slurm.fault}; run: qrmi-slurm validate-config")
            found[resource.name] = _candidate(filled[resource.name], users.get(resource.name, {}), members)
        except (CredentialsError, BackendError, ExportsError) as error:
            # The log has the hint too: it is for the admin.
            run.log.error("not-acquired", qpu=resource.name, type=resource.type, reason=error)
            found[resource.name] = error.message
    return found


def _candidate(filled: Resource | CredentialsError, users: Mapping[str, str], members: Sequence[str]) -> Candidate:
    if isinstance(filled, CredentialsError):
        raise filled
    credentials = merge(filled, users)
    item = Candidate(filled, credentials, installed.installed_type(filled.type, members))
    # What no task's environment can hold is not acquired either.
    exports.export_lines(environment.with_name(filled.name, credentials.environment))
    return item


def _by_resource(user_environment: Mapping[str, str], known: Collection[str]) -> dict[str, dict[str, str]]:
    """Return the user's variables by the resource that they belong to; a user may set thousands, a site hundreds.

    `x_QRMI_QRMI_X` may be of `x` or of `x_QRMI`: of the resources in the config, it is that with the longest name.
    """
    prefixes = {of_resource(name, QRMI_PREFIX): name for name in known}
    lengths = sorted({len(prefix) for prefix in prefixes}, reverse=True)
    found: dict[str, dict[str, str]] = {}
    for full_name, value in user_environment.items():
        owner = next((prefixes[full_name[:length]] for length in lengths if full_name[:length] in prefixes), None)
        if owner is not None:
            found.setdefault(owner, {})[full_name] = value
    return found


def look_around(plan: Plan, job: JobContext, run: HookRun, facts: JobFacts, licensed: Sequence[str]) -> None:
    """Ask QRMI about every QPU that open slots may come to, and put each slot's candidates in order.

    Args:
        plan: its slots that leave open which QPU they get are looked at.
        job: the job.
        run: of the hook.
        facts: of the job.
        licensed: the licenses that the job has.
    """
    found: dict[str, Sequence[str] | Failure] = {}
    told: dict[str, Availability | Failure] = {}
    of_job = ForJob(job.job_id, job.uid, facts.time_limit_s(), job.user, job.gid)
    calls: dict[str, Call] = {}
    slots = [slot for slot in plan.slots if slot.is_open]
    items = {item.name: item for slot in slots for item in slot.candidates}
    for item in items.values():
        action: Action = "discover" if item.resource.is_dynamic else "check"
        variables = environment.for_call(item.name, item.credentials.environment, run.options.env, of_job)
        uid = job.uid if item.credentials.are_users else None
        calls[item.name] = Call(item.name, item.installed_type, action, variables, run_as_uid=uid)

    def on_answers(answers: Sequence[Answer]) -> None:
        for answer in answers:
            name = answer.call.resource
            secrets = record.secrets_in(answer.call.environment)
            run.log.hide(secrets)
            run.log.qrmi(name, answer.log)
            if answer.verdict is Verdict.UNASKED and answer.call.action == "check":
                told[name] = Availability("unknown")  # after those that were asked
            elif answer.verdict is not Verdict.DONE:
                from qrmi_slurm.calls import reasons  # only where something failed

                sentence = choice.not_acquired(name, shown(answer.reason, secrets) or "QRMI did not answer")
                was_called = answer.verdict is not Verdict.UNASKED
                failure = items[name].failed(reasons.kind(answer), sentence, was_called=was_called)
                found[name], told[name] = failure, failure
            elif answer.availability is not None:
                told[name] = answer.availability._replace(reason=shown(answer.availability.reason, secrets))
            else:
                found[name] = answer.found

    node = Node(run.options.state_dir, job.node, job.uid)
    backend.run(list(calls.values()), run.deadline.call_s / 2, on_answers, node=node)
    for slot in slots:
        choice.expand(slot, found, plan.resources, lambda needs_qos: facts.person(needs_qos=needs_qos))
        choice.rank(slot, told, licensed)
        run.log.info("choice", term=slot.term.text, order=",".join(item.name for item in slot.candidates))
