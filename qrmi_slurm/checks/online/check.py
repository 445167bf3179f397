"""The online check: tries each step between this node and a resource's service, in order.

QRMI only says that a request failed. The steps show where: proxy, name, TCP, TLS, endpoint, credential. They use what
the hooks would use, the config's variables and those of `--env:`, never a shell's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from qrmi_slurm.calls import probe
from qrmi_slurm.checks.online import hop, service_check, targets
from qrmi_slurm.checks.online.bounded import side_by_side
from qrmi_slurm.checks.online.targets import Target
from qrmi_slurm.checks.result import Result, error, has_errors, ok, warning
from qrmi_slurm.config import stored_secrets
from qrmi_slurm.config.config_file import Resource
from qrmi_slurm.errors import CredentialsError
from qrmi_slurm.secret import mask
from qrmi_slurm.slurm.plugstack import SiteOptions

DEFAULT_STEP_TIMEOUT_S: Final = 10.0
DEFAULT_QRMI_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Limits:
    """How long the check may take.

    Args:
        step_s: each network step, in seconds.
        qrmi_s: QRMI's answers for all resources together, in seconds.
    """

    step_s: float = DEFAULT_STEP_TIMEOUT_S
    qrmi_s: float = DEFAULT_QRMI_TIMEOUT_S


@dataclass(frozen=True, slots=True)
class Report:
    """The steps to one resource's service.

    Args:
        resource: the resource's name.
        type: its type, as configured.
        steps: the result of each step, in order.
    """

    resource: str
    type: str
    steps: tuple[Result, ...]

    @property
    def has_errors(self) -> bool:
        """Whether a step failed."""
        return has_errors(self.steps)


def run(
    resources: Sequence[Resource],
    options: SiteOptions,
    limits: Limits,
    shell: Mapping[str, str],
    tell: Callable[[str], None] = lambda what: None,
) -> list[Report]:
    """Try the way to each resource's service.

    Args:
        resources: the config's resources.
        options: the site's options.
        limits: how long the check may take.
        shell: the environment of whoever runs this, only to warn that the hooks do not see its proxies.
        tell: is called with what is being done, to show it on a terminal.

    Raises:
        BackendError: QRMI cannot be imported.
    """
    # QRMI comes first because asking it forks, which should not happen beside threads that a deadline left behind.
    tell(f"asking QRMI about {len(resources)} {'resource' if len(resources) == 1 else 'resources'}")
    findings = probe.ask(resources, options, limits.qrmi_s)
    resources = _with_stored_secrets(resources)
    targets_of = {resource.name: targets.of_resource(resource, options) for resource in resources}
    tell("trying the services' addresses")
    hops = _try_hops([target for found in targets_of.values() for target in found.values()], limits, shell)
    tell("trying endpoints and credentials")
    steps = side_by_side(
        [partial(service_check.run, item, targets_of[item.name], hops, limits.step_s) for item in resources]
    )
    reports = []
    for resource, before, finding in zip(resources, steps, findings, strict=True):
        secrets = probe.secrets_of(resource, options)
        masked = (replace(step, message=mask(step.message, secrets)) for step in [*before, _qrmi_step(finding)])
        reports.append(Report(resource.name, resource.type, tuple(masked)))
    return reports


def _with_stored_secrets(resources: Sequence[Resource]) -> list[Resource]:
    """Return the resources as jobs receive them; if a secret cannot be read, QRMI's step says why."""
    filled = stored_secrets.fill_all(resources)
    pairs = [(resource, filled[resource.name]) for resource in resources]
    return [resource if isinstance(found, CredentialsError) else found for resource, found in pairs]


def _try_hops(found: Sequence[Target], limits: Limits, shell: Mapping[str, str]) -> dict[str, list[Result]]:
    """Try each hop once, however many resources share it, and return the results by `Target.hop`."""
    by_hop = {target.hop: target for target in found}
    results = side_by_side([partial(hop.lines, target, limits.step_s, shell) for target in by_hop.values()])
    return dict(zip(by_hop, results, strict=True))


def _qrmi_step(finding: probe.Finding) -> Result:
    """Return what QRMI says about the resource, as the last step."""
    name = "qrmi"
    said = finding.availability
    if finding.is_users:
        return ok(name, f"not asked: {finding.problem}")
    if said is None:
        step = error(name, finding.problem, "if the steps above are ok, check that the installed QRMI is up to date")
    elif said.state == "online":
        waiting = "" if said.pending_jobs is None else f", jobs waiting: {said.pending_jobs}"
        step = ok(name, f"the QPU is online{waiting}")
    elif said.state == "unknown":
        step = warning(name, "QRMI does not report the state of this type", "submit a job to find out")
    else:
        reason = f": {said.reason}" if said.reason else ""
        step = warning(
            name, f"the QPU is {said.state}{reason}", "the service says so; until it is online, jobs wait or fail"
        )
    return replace(step, duration_s=finding.duration_s)
