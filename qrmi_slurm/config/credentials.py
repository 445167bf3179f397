"""The credentials: the variables that QRMI is called with for a job's QPU, merged from the config and the user's own.

The user's value wins over the config's. Where the user changes an endpoint, nothing from the config is used: a key of
the site must not reach an address that a user chose.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from qrmi_slurm.config.config_file import Resource
from qrmi_slurm.config.resource_types import describe, is_endpoint, is_ours_alone, is_secret, with_successors
from qrmi_slurm.errors import CredentialsError
from qrmi_slurm.names import BROKER_MARK, QRMI_PREFIX, of_resource
from qrmi_slurm.secret import masked_repr
from qrmi_slurm.text import is_one_line, printable

# The stub refuses longer values at submission, and execve() takes no longer one (MAX_ARG_STRLEN).
MAX_VALUE_BYTES: Final = 128 * 1024


class Credentials(NamedTuple):
    """The variables of one QPU for one job, without the resource's name in front.

    Args:
        environment: what QRMI reads, renamed variables under both names; secrets in it, so never in a repr.
        are_users: whether the user supplied any of them, so that QRMI is called as the user.
        need_broker: whether they include a key of the site that the job must not see.
    """

    environment: Mapping[str, str]
    are_users: bool
    need_broker: bool = False

    def __repr__(self) -> str:
        return masked_repr(self, "environment")


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
    users = _users_own(resource, user_environment)
    changed_endpoints = [name for name in users if is_endpoint(name)]
    sites = {name: value for name, value in resource.variables.items() if not is_ours_alone(name)}
    # Under both names: the user's value under an older name wins over the site's under the newer one.
    environment = with_successors(users) if changed_endpoints else {**sites, **with_successors(users)}
    missing = sorted(describe(resource.type).required - environment.keys())
    if missing:
        raise CredentialsError(_missing_message(resource, missing, changed_endpoints))
    need_broker = resource.slurm.broker and _holds_secret_of(resource, environment)
    if need_broker:
        _require_broker(resource, users)
    return Credentials(environment, are_users=bool(users), need_broker=need_broker)


def _holds_secret_of(resource: Resource, environment: Mapping[str, str]) -> bool:
    sites = {value for name, value in resource.environment.items() if is_secret(name)}
    return any(is_secret(name) and value in sites for name, value in environment.items())


def _require_broker(resource: Resource, users: Mapping[str, str]) -> None:
    """Raise where no broker can keep the site's key, or the user's variables would redirect it."""
    described = describe(resource.type)
    if not described.can_have_broker:
        raise CredentialsError(
            f"the config asks for a credential broker, and {resource.type} cannot have one",
            "an admin has to remove the broker from the config: qrmi-slurm validate-config",
        )
    foreign = sorted(of_resource(resource.name, name) for name in users.keys() - described.tunable)
    if foreign:
        raise CredentialsError(
            f"you set {', '.join(map(printable, foreign))}, which cannot be combined with the site's credentials: "
            "unset it, or bring credentials of your own"
        )


def _users_own(resource: Resource, user_environment: Mapping[str, str]) -> dict[str, str]:
    prefix = of_resource(resource.name, QRMI_PREFIX)
    users = {}
    for full_name, value in user_environment.items():
        variable = full_name.removeprefix(of_resource(resource.name, ""))
        if not full_name.startswith(prefix) or is_ours_alone(variable):
            continue
        if resource.environment.get(variable) == value or BROKER_MARK in value:  # inherited from a surrounding job
            continue
        if "=" in variable or not is_one_line(variable):
            raise CredentialsError(f"{printable(full_name)} is not a valid variable name")
        if not is_one_line(value):
            raise CredentialsError(f"the value of {printable(full_name)} contains a line break or control character")
        if len(value.encode("utf-8", "surrogateescape")) > MAX_VALUE_BYTES:
            raise CredentialsError(f"the value of {printable(full_name)} is longer than {MAX_VALUE_BYTES} bytes")
        users[variable] = value
    return users


def _missing_message(resource: Resource, missing: list[str], changed_endpoints: list[str]) -> str:
    names = ", ".join(of_resource(resource.name, variable) for variable in missing)
    if changed_endpoints:
        changed = ", ".join(of_resource(resource.name, variable) for variable in changed_endpoints)
        return f"you set {changed}, so the site's credentials are not used: also set {names}"
    return f"{names} not set: export it before you submit, or ask an admin to set it in the config"
