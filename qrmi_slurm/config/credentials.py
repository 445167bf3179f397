"""The credentials: the variables that QRMI is called with for a job's QPU, merged from the config and the user's own.

Either they have the site's secrets, and of the user's values only the tuned ones: a session's mode and times. QRMI is
then called with root's uid, so that no process of the user's can look into the call, stop it or kill it. Or the user
brings credentials or addresses of their own. QRMI is then called as the user, and has none of the site's secrets: with
an address of the user's nothing of the site's at all, else those of its values that are known to be no secrets.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from qrmi_slurm.config.config_file import Resource
from qrmi_slurm.config.resource_types import (
    describe,
    is_endpoint,
    is_ours_alone,
    is_secret,
    is_session_mode,
    overlaid,
    present_name,
    tuned_fault,
)
from qrmi_slurm.errors import CredentialsError
from qrmi_slurm.names import BROKER_MARK, QRMI_PREFIX, QRMI_SLURM_CAPPED_AT, of_resource
from qrmi_slurm.secret import masked_repr
from qrmi_slurm.text import is_one_line, printable

# The stub refuses longer values at submission, and execve() takes no longer one (MAX_ARG_STRLEN).
MAX_VALUE_BYTES: Final = 128 * 1024


class Credentials(NamedTuple):
    """The variables of one QPU for one job, without the resource's name in front.

    Args:
        environment: what QRMI reads, renamed variables under both names; secrets in it, so never in a repr.
        are_users: whether the user brought credentials or addresses, so that QRMI is called as the user; no secret of
            the site is among them.
        need_broker: whether they include a key of the site that the job must not see.
        tuned: the variables of `environment` that the user tuned.
        capped_at_s: the number of seconds to which the user's times were capped; None where none was longer.
    """

    environment: Mapping[str, str]
    are_users: bool
    need_broker: bool = False
    tuned: frozenset[str] = frozenset()
    capped_at_s: int | None = None

    def __repr__(self) -> str:
        return masked_repr(self, "environment")

    def capped(self, longest_s: int) -> "Credentials":
        """Return them with no time of the user's longer than so many seconds."""
        if not self.tuned:
            return self
        own = {name: self.environment[name] for name in self.tuned if not is_session_mode(name)}
        times = {name: str(max(1, min(_seconds(value), longest_s))) for name, value in own.items()}
        is_shorter = any(_seconds(value) > longest_s for value in own.values())
        return self._replace(environment={**self.environment, **times}, capped_at_s=longest_s if is_shorter else None)


def merge(resource: Resource, user_environment: Mapping[str, str]) -> Credentials:
    """Return the variables to call a QPU with.

    Args:
        resource: what the config says.
        user_environment: the job's variables that the stub passed on, with the resource's name in front. A
            value that equals the config's is not the user's: a job submitted from within a QPU job passes on
            what it inherited.

    Raises:
        CredentialsError: a value cannot be used, or variables are missing; it names them and shows no value.
    """
    described = describe(resource.type)
    users = _users_own(resource, user_environment)
    brought = {name: value for name, value in users.items() if not described.may_be_tuned(name)}
    sites = {name: value for name, value in resource.variables.items() if not is_ours_alone(name)}
    kept = _beside(resource, sites, brought) if brought else sites
    by_user = {present_name(name) for name in users}
    environment = {
        name: value for name, value in overlaid(sites, users).items() if name in kept or present_name(name) in by_user
    }
    missing = sorted(described.required - environment.keys())
    if missing:
        raise CredentialsError(_missing_message(resource, missing, brought if sites.keys() & missing else {}))
    need_broker = resource.slurm.broker and not brought and any(map(is_secret, environment))
    if need_broker and not described.can_have_broker:
        raise CredentialsError(
            f"the config asks for a credential broker, and {resource.type} cannot have one",
            "an admin has to remove the broker from the config: qrmi-slurm validate-config",
        )
    tuned = frozenset(name for name in environment if described.may_be_tuned(name) and present_name(name) in by_user)
    return Credentials(environment, are_users=bool(brought), need_broker=need_broker, tuned=tuned)


def _beside(resource: Resource, sites: Mapping[str, str], brought: Mapping[str, str]) -> dict[str, str]:
    """Return the site's values that are used beside what a user brought: none of its secrets.

    Raises:
        CredentialsError: the user brought neither a secret nor an address, and would redirect the site's secrets.
    """
    if any(map(is_endpoint, brought)):
        return {}
    public = {name: value for name, value in sites.items() if _is_public(resource, name, value)}
    if len(public) < len(sites) and not any(map(is_secret, brought)):
        names = sorted(of_resource(resource.name, name) for name in brought)
        raise CredentialsError(
            f"you set {', '.join(map(printable, names))}, which cannot be combined with the site's credentials: "
            "unset it, or bring credentials of your own"
        )
    return public


def _is_public(resource: Resource, variable: str, value: str) -> bool:
    """Tell whether a value of the site is known to be no secret. Of a type that we do not know, only addresses are."""
    described = describe(resource.type)
    stored = {present_name(name) for name in resource.slurm.secrets}
    if is_secret(variable) or present_name(variable) in stored or "@" in value:  # user:password@host
        return False
    return described.knows(variable) if described.variables else is_endpoint(variable)


def _users_own(resource: Resource, user_environment: Mapping[str, str]) -> dict[str, str]:
    prefix = of_resource(resource.name, QRMI_PREFIX)
    described = describe(resource.type)
    sites = resource.variables  # under both names, as a surrounding job has them
    capped_at = user_environment.get(of_resource(resource.name, QRMI_SLURM_CAPPED_AT))
    users = {}
    for full_name, value in user_environment.items():
        variable = full_name.removeprefix(of_resource(resource.name, ""))
        if not full_name.startswith(prefix) or is_ours_alone(variable):
            continue
        is_tuned = described.may_be_tuned(variable)
        # Inherited from a surrounding job.
        if sites.get(variable) == value or BROKER_MARK in value or (is_tuned and value == capped_at):
            continue
        if "=" in variable or not is_one_line(variable):
            raise CredentialsError(f"{printable(full_name)} is not a valid variable name")
        if not is_one_line(value):
            raise CredentialsError(f"the value of {printable(full_name)} contains a line break or control character")
        if len(value.encode("utf-8", "surrogateescape")) > MAX_VALUE_BYTES:
            raise CredentialsError(f"the value of {printable(full_name)} is longer than {MAX_VALUE_BYTES} bytes")
        if is_tuned and (fault := tuned_fault(variable, value)):
            raise CredentialsError(f"{printable(full_name)} {fault}")
        users[variable] = value
    return users


def _seconds(value: str) -> int:
    """Return a number of seconds; of one with thousands of digits, one that is larger than any limit."""
    return int((value.lstrip("0") or "0")[:12])


def _missing_message(resource: Resource, missing: list[str], brought: Mapping[str, str]) -> str:
    names = ", ".join(of_resource(resource.name, variable) for variable in missing)
    if brought:
        changed = [name for name in brought if is_endpoint(name)] or brought
        own = ", ".join(printable(of_resource(resource.name, variable)) for variable in changed)
        return f"you set {own}, so the site's credentials are not used: also set {names}"
    return f"{names} not set: export it before you submit, or ask an admin to set it in the config"
