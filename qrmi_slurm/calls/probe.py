"""The probe: asking QRMI, as root and with the config alone, whether the site's QPUs can be used just now."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from qrmi_slurm import names
from qrmi_slurm.calls import backend
from qrmi_slurm.calls.backend import Action, Answer, Availability, Call, Verdict
from qrmi_slurm.config import stored_secrets
from qrmi_slurm.config.config_file import Resource
from qrmi_slurm.config.resource_types import describe, is_ours_alone, is_secret, with_successors
from qrmi_slurm.errors import BackendError, CredentialsError
from qrmi_slurm.names import of_resource
from qrmi_slurm.secret import Secret, mask
from qrmi_slurm.slurm.plugstack import SiteOptions
from qrmi_slurm.text import printable

# What of a service's answer is shown.
_MAX_REASON_CHARS = 400

# A job's variables, without which QRMI does not make every type; there is no job here.
_NO_JOB = "0"


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of asking for one QPU.

    Args:
        resource: its name.
        type: its type, as configured.
        availability: what QRMI says; None where it could not be asked, or got no answer.
        problem: why there is no answer; empty otherwise. Masked.
        is_users: whether nothing was asked because each job brings the variables itself.
        duration_s: how long it took, in seconds.
    """

    resource: str
    type: str
    availability: Availability | None
    problem: str = ""
    is_users: bool = False
    duration_s: float = 0.0

    @property
    def is_usable(self) -> bool | None:
        """Whether a job could use it now; None where that is not known."""
        if self.is_users or (self.availability is not None and self.availability.state == "unknown"):
            return None
        return self.availability is not None and self.availability.state == "online"


@dataclass(slots=True)
class _Answers:
    by_name: dict[str, Answer] = field(default_factory=dict)

    def take(self, answers: Sequence[Answer]) -> None:
        self.by_name |= {answer.call.resource: answer for answer in answers}


def missing_variables(resource: Resource) -> list[str]:
    """Return the variables that a job has to bring before QRMI can make the resource."""
    return sorted(describe(resource.type).required - with_successors(resource.environment).keys())


def secrets_of(resource: Resource, options: SiteOptions) -> list[Secret]:
    """Return what must not be seen of a resource's variables and of the site's own."""
    of_config = [Secret(value) for variable, value in resource.environment.items() if is_secret(variable)]
    return of_config + [Secret(value) for name, value in options.env.items() if is_secret(name) or "@" in value]


def ask(resources: Sequence[Resource], options: SiteOptions, timeout_s: float) -> list[Finding]:
    """Ask QRMI for all resources side by side.

    Args:
        resources: of the config.
        options: the site's.
        timeout_s: how long all of it may take, in seconds.

    Returns:
        What came of it, in the order of `resources`.

    Raises:
        BackendError: QRMI cannot be imported.
    """
    members = backend.known_members()
    findings: dict[str, Finding] = {}
    calls = []
    filled = {}
    for resource in map(_filled, resources):
        if isinstance(resource, Finding):
            findings[resource.resource] = resource
            continue
        filled[resource.name] = resource
        missing = missing_variables(resource)
        try:
            installed = backend.installed_type(resource.type, members)
        except BackendError as error:
            findings[resource.name] = Finding(resource.name, resource.type, None, error.message)
            continue
        if missing or not resource.environment:
            problem = f"every job brings {', '.join(missing) or 'its own variables'}"
            findings[resource.name] = Finding(resource.name, resource.type, None, problem, is_users=True)
            continue
        action: Action = "discover" if resource.is_dynamic else "check"
        calls.append(Call(resource.name, installed, action, _environment(resource, options)))
    answers = _Answers()
    backend.run(calls, timeout_s, answers.take)
    for resource in filled.values():
        if resource.name in answers.by_name:
            findings[resource.name] = _finding(resource, options, answers.by_name[resource.name])
    return [findings[resource.name] for resource in resources]


def _filled(resource: Resource) -> Resource | Finding:
    try:
        return stored_secrets.fill(resource)
    except CredentialsError as error:
        return Finding(resource.name, resource.type, None, error.hint)


def _environment(resource: Resource, options: SiteOptions) -> Mapping[str, str]:
    """Return what the hooks would call QRMI with, but for what only a job has."""
    own = {name: value for name, value in resource.environment.items() if not is_ours_alone(name)}
    environment = dict(options.env)
    environment |= {of_resource(resource.name, name): value for name, value in with_successors(own).items()}
    environment[names.QRMI_JOB_ID] = _NO_JOB
    environment[names.QRMI_JOB_UID] = str(os.getuid())
    return environment


def _finding(resource: Resource, options: SiteOptions, answer: Answer) -> Finding:
    secrets = secrets_of(resource, options)

    def shown(text: str) -> str:
        return printable(mask(text, secrets), _MAX_REASON_CHARS)

    if answer.verdict is Verdict.DONE and answer.availability is not None:
        said = answer.availability
        availability = Availability(shown(said.state), shown(said.reason), said.pending_jobs)
        return Finding(resource.name, resource.type, availability, duration_s=answer.duration_s)
    if answer.verdict is Verdict.DONE and resource.is_dynamic:
        state = "online" if answer.found else "offline"
        reason = shown(f"QRMI finds {', '.join(answer.found) or 'no online QPU'}")
        return Finding(resource.name, resource.type, Availability(state, reason), duration_s=answer.duration_s)
    problem = shown(answer.reason) or "QRMI gave no answer"
    return Finding(resource.name, resource.type, None, problem, duration_s=answer.duration_s)
