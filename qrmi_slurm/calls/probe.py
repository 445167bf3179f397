"""The probe: asks QRMI, as root and with the config alone, whether the site's QPUs can be used right now."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from qrmi_slurm.calls import backend, environment, installed
from qrmi_slurm.calls.places import service_of
from qrmi_slurm.calls.protocol import Action, Answer, Availability, Call, Verdict
from qrmi_slurm.config import stored_secrets
from qrmi_slurm.config.config_file import Resource
from qrmi_slurm.config.resource_types import describe, is_ours_alone, is_secret
from qrmi_slurm.errors import BackendError, CredentialsError
from qrmi_slurm.secret import Secret
from qrmi_slurm.slurm.plugstack import SiteOptions
from qrmi_slurm.text import shown

# How many QPUs are asked about at a time. Each service gets its share, so one that hangs does not hold up the others.
_AT_ONCE: Final = 32

# The state of a QPU that the hooks refuse, beside QRMI's words; nobody is asked about it.
MISCONFIGURED: Final = "misconfigured"


@dataclass(frozen=True, slots=True)
class Finding:
    """What QRMI said about one QPU.

    Args:
        resource: its name.
        type: its type, as configured.
        availability: QRMI's answer; None where it could not be asked, or did not answer.
        problem: why there is no answer; empty otherwise. Masked.
        is_users: whether nothing was asked because each job brings the variables itself.
        is_unasked: whether there was no time to ask, though its service does answer.
        duration_s: how long it took, in seconds.
    """

    resource: str
    type: str
    availability: Availability | None
    problem: str = ""
    is_users: bool = False
    is_unasked: bool = False
    duration_s: float = 0.0

    @property
    def is_usable(self) -> bool | None:
        """Whether a job could use it now; None where that is not known."""
        if self.is_users or self.is_unasked or (self.availability is not None and self.availability.state == "unknown"):
            return None
        return self.availability is not None and self.availability.state == "online"


@dataclass(slots=True)
class _Answers:
    by_name: dict[str, Answer] = field(default_factory=dict)

    def take(self, answers: Sequence[Answer]) -> None:
        self.by_name |= {answer.call.resource: answer for answer in answers}

    def silent_services(self) -> set[tuple[str, ...]]:
        """Return the services that were asked and answered nothing."""
        found: dict[tuple[str, ...], bool] = {}
        for answer in self.by_name.values():
            if answer.verdict is not Verdict.UNASKED:
                service = _service_of(answer)
                found[service] = found.get(service, True) and answer.verdict is Verdict.UNANSWERED
        return {service for service, is_silent in found.items() if is_silent}


def missing_variables(resource: Resource) -> list[str]:
    """Return the variables that a job has to bring before QRMI can create the resource."""
    return sorted(describe(resource.type).required - resource.variables.keys())


def secrets_of(resource: Resource, options: SiteOptions) -> list[Secret]:
    """Return the secrets among a resource's variables and the site's own."""
    of_config = [Secret(value) for variable, value in resource.environment.items() if is_secret(variable)]
    return of_config + [Secret(value) for name, value in options.env.items() if is_secret(name) or "@" in value]


def ask(resources: Sequence[Resource], options: SiteOptions, timeout_s: float) -> list[Finding]:
    """Ask QRMI about all resources side by side.

    Args:
        resources: of the config.
        options: the site's.
        timeout_s: how long all of it may take, in seconds.

    Returns:
        What it said, in the order of `resources`.

    Raises:
        BackendError: QRMI cannot be imported.
    """
    members = installed.known_members()
    findings: dict[str, Finding] = {}
    calls = []
    filled = {}
    stored = stored_secrets.fill_all(resources)
    for configured in resources:
        if configured.slurm.fault:
            said = Availability(MISCONFIGURED, configured.slurm.fault)
            findings[configured.name] = Finding(configured.name, configured.type, said)
            continue
        resource = stored[configured.name]
        if isinstance(resource, CredentialsError):
            findings[configured.name] = Finding(configured.name, configured.type, None, resource.hint)
            continue
        filled[resource.name] = resource
        missing = missing_variables(resource)
        try:
            installed_type = installed.installed_type(resource.type, members)
        except BackendError as error:
            findings[resource.name] = Finding(resource.name, resource.type, None, error.message)
            continue
        if missing or not resource.environment:
            problem = f"each job brings {', '.join(missing) or 'its own variables'}"
            findings[resource.name] = Finding(resource.name, resource.type, None, problem, is_users=True)
            continue
        action: Action = "discover" if resource.is_dynamic else "check"
        own = {name: value for name, value in resource.variables.items() if not is_ours_alone(name)}
        calls.append(Call(resource.name, installed_type, action, environment.for_call(resource.name, own, options.env)))
    answers = _Answers()
    backend.run(calls, timeout_s, answers.take, at_once=_AT_ONCE)
    silent = answers.silent_services()
    for resource in filled.values():
        answer = answers.by_name.get(resource.name)
        if answer is not None:
            is_unasked = answer.verdict is Verdict.UNASKED and _service_of(answer) not in silent
            findings[resource.name] = replace(_finding(resource, options, answer), is_unasked=is_unasked)
    return [findings[resource.name] for resource in resources]


def _service_of(answer: Answer) -> tuple[str, ...]:
    return service_of(answer.call.resource, answer.call.environment)


def _finding(resource: Resource, options: SiteOptions, answer: Answer) -> Finding:
    secrets = secrets_of(resource, options)
    availability = None
    if answer.verdict is Verdict.DONE and answer.availability is not None:
        said = answer.availability
        availability = said._replace(state=shown(said.state, secrets), reason=shown(said.reason, secrets))
        if said.capacity is not None:
            capacity = said.capacity._replace(fault=shown(said.capacity.fault, secrets))
            availability = availability._replace(capacity=capacity)
    elif answer.verdict is Verdict.DONE and resource.is_dynamic:
        reason = f"QRMI finds {', '.join(answer.found) or 'no online QPU'}"
        availability = Availability("online" if answer.found else "offline", shown(reason, secrets))
    problem = "" if availability is not None else shown(answer.reason, secrets) or "QRMI did not answer"
    return Finding(resource.name, resource.type, availability, problem, duration_s=answer.duration_s)
