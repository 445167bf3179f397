"""The online check: each hop between this node and a resource's service, tried one after the other.

QRMI says of a failed request that it failed. Here each step names the hop: proxy, name, TCP, TLS, endpoint, credential.
What the hooks would use is used here: the config's variables and those of `--env:`, never a shell's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from qrmi_slurm.calls import probe
from qrmi_slurm.checks.online import hop, service_check, targets
from qrmi_slurm.checks.online.bounded import side_by_side
from qrmi_slurm.checks.result import Line, error, has_errors, ok, warning
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
    """What was seen on the way to one resource.

    Args:
        resource: its name.
        type: its type, as configured.
        lines: the steps, in their order.
    """

    resource: str
    type: str
    lines: tuple[Line, ...]

    @property
    def has_errors(self) -> bool:
        """Whether a step failed."""
        return has_errors(self.lines)


def check(
    resources: Sequence[Resource],
    options: SiteOptions,
    limits: Limits,
    shell: Mapping[str, str],
    tell: Callable[[str], None] = lambda what: None,
) -> list[Report]:
    """Go the way to each resource's service.

    Args:
        resources: of the config.
        options: the site's.
        limits: how long it may take.
        shell: the environment of whoever runs this; only to say that the hooks do not see its proxies.
        tell: gets what is being done, for a terminal.

    Raises:
        BackendError: QRMI cannot be imported.
    """
    # First of all: it forks, and threads that a deadline left behind are better not there then.
    tell(f"QRMI is asked for {len(resources)} resources")
    answers = probe.ask(resources, options, limits.qrmi_s)
    resources = [_with_stored_secrets(resource) for resource in resources]
    targets_of = {resource.name: targets.of_resource(resource, options) for resource in resources}
    tell("the services' addresses are tried")
    # Ten QPUs of one service share the way there.
    ways = {target.hop: target for found in targets_of.values() for target in found.values()}
    seen = side_by_side([partial(hop.lines, target, limits.step_s, shell) for target in ways.values()])
    hops = dict(zip(ways, seen, strict=True))
    tell("endpoints and credentials are tried")
    asked = side_by_side(
        [partial(service_check.lines, item, targets_of[item.name], hops, limits.step_s) for item in resources]
    )
    reports = []
    for resource, lines, answer in zip(resources, asked, answers, strict=True):
        secrets = probe.secrets_of(resource, options)
        masked = (replace(line, message=mask(line.message, secrets)) for line in [*lines, _line_of(answer)])
        reports.append(Report(resource.name, resource.type, tuple(masked)))
    return reports


def _with_stored_secrets(resource: Resource) -> Resource:
    """Return the resource as jobs get it; where a secret cannot be had, QRMI's line says why."""
    try:
        return stored_secrets.fill(resource)
    except CredentialsError:
        return resource


def _line_of(finding: probe.Finding) -> Line:
    """Return QRMI's own word as the last step."""
    said = finding.availability
    if finding.is_users:
        line = ok("qrmi", f"not asked: {finding.problem}")
    elif said is None:
        line = error("qrmi", finding.problem, "where the steps above are ok: is the installed QRMI current?")
    elif said.state == "online":
        waiting = "" if said.pending_jobs is None else f", jobs waiting: {said.pending_jobs}"
        line = ok("qrmi", f"the QPU is online{waiting}")
    elif said.state == "unknown":
        line = warning("qrmi", "QRMI cannot tell for this type", "a job is the only proof")
    else:
        reason = f": {said.reason}" if said.reason else ""
        line = warning("qrmi", f"the QPU is {said.state}{reason}", "so says the service; jobs wait or fail")
    return replace(line, duration_s=None if finding.is_users else finding.duration_s)
