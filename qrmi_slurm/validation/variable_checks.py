"""Checks of a resource's variables without asking the service; faults never contain a value."""

import base64
import binascii
import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from qrmi_slurm.config import resource_types
from qrmi_slurm.config.resource_types import ResourceType
from qrmi_slurm.text import is_one_line, near_match, printable
from qrmi_slurm.validation import rules
from qrmi_slurm.validation.rules import Rule

# Angle brackets, or a variable that a shell or a template should have replaced.
_PLACEHOLDER: Final = re.compile(r"<[^<>]*>|.*<\s*your\b.*|\$\{?[A-Za-z_][A-Za-z0-9_]*\}?|\{\{.*\}\}", re.IGNORECASE)

_HTTP: Final = ("http", "https")
_PROXY_SCHEMES: Final = (*_HTTP, "socks5", "socks5h")

# QRMI adds https:// itself (the default in its PasqalConfig has no scheme).
_SCHEME_OPTIONAL: Final = "QRMI_PASQAL_CLOUD_AUTH_ENDPOINT"

# Old names that QRMI itself still reads.
_RENAMED: Final = {"QRMI_URL": "QRMI_WARDEN_URL"}

_SESSION_VARIABLES: Final = ("QRMI_IBM_QCS_", "QRMI_IBM_QRS_")
_SECONDS: Final = re.compile(r"[0-9]{1,10}")
_MAX_SECONDS: Final = 2**31 - 1  # QRMI parses an i32, and uses its default if that fails

# QRMI uses S3 only if all of these are set, and says nothing otherwise.
_S3_SUFFIXES: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "S3_ENDPOINT", "S3_BUCKET", "S3_REGION")
_S3_TYPES: Final = ("ibm-quantum-system", "direct-access")

_PASQAL_SERVICE_ACCOUNT: Final = ("QRMI_PASQAL_CLOUD_CLIENT_ID", "QRMI_PASQAL_CLOUD_CLIENT_SECRET")
_PASQAL_TOKEN: Final = "QRMI_PASQAL_CLOUD_AUTH_TOKEN"  # noqa: S105 (the name of a variable)


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong with a variable, or with the environment as a whole.

    Args:
        rule: the rule that is violated.
        variable: its name; empty for the environment as a whole.
        message: what is wrong, without any value.
        hint: what to do instead.
        of_name: whether the fault is in the variable's name, not its value.
    """

    rule: Rule
    variable: str
    message: str
    hint: str = ""
    of_name: bool = False


def faults(resource_name: str, known: ResourceType | None, environment: Mapping[str, Any]) -> Iterator[Fault]:
    """Yield what is wrong with a resource's variables.

    Args:
        resource_name: the resource's name; empty if it has none.
        known: its type; None if that is unknown, so that any variable may be right.
        environment: its variables without the resource's name in front. Values that are not strings, or not on one
            line, are left to the schema.
    """
    for variable, value in environment.items():
        yield from _check_name(resource_name, known, variable)
        if isinstance(value, str) and is_one_line(value):
            yield from _check_value(variable, value)
    if known is not None:
        yield from _check_set(known, environment)


def _check_name(resource_name: str, known: ResourceType | None, variable: str) -> Iterator[Fault]:
    shown = printable(variable)
    if resource_types.is_ours_alone(variable):
        yield Fault(
            rules.RESERVED_VARIABLE,
            variable,
            f"{shown} belongs to one job, and the hooks set it when the job starts",
            "remove it: every job would share, or close, a session named here",
            of_name=True,
        )
    elif resource_name and variable.startswith(f"{resource_name}_QRMI_"):
        yield Fault(
            rules.PREFIXED_VARIABLE,
            variable,
            "the variable already begins with the resource's name, which the hooks add when a job starts",
            f"write {printable(variable.removeprefix(f'{resource_name}_'))}",
            of_name=True,
        )
    elif variable in _RENAMED:
        yield _deprecated(variable, _RENAMED[variable])
    elif known is not None and variable not in known.variables:
        yield from _check_belonging(known, variable)


def _check_belonging(known: ResourceType, variable: str) -> Iterator[Fault]:
    successor = resource_types.successor_variable(variable)
    if successor is not None and successor in known.variables:
        yield _deprecated(variable, successor)
        return
    shown = printable(variable)
    owners = [other for other in resource_types.KNOWN.values() if variable in other.variables]
    if owners:
        own = known.prefix + variable.removeprefix(owners[0].prefix)
        yield Fault(
            rules.FOREIGN_VARIABLE,
            variable,
            f"{shown} is a variable of {owners[0].name}, not of {known.name}",
            f"write {own}" if own in known.variables else "remove it, or change the type",
            of_name=True,
        )
        return
    near = near_match(variable, known.variables)
    if near:
        hint = f"did you mean {near}?"
    elif variable.lower().endswith("_proxy"):
        hint = f"for a proxy, add --env:{shown}=URL to the plugin's line in plugstack.conf"
    else:
        hint = f"the variables of this type begin with {known.prefix}"
    message = f"QRMI does not read {shown} for the type {known.name}"
    yield Fault(rules.UNKNOWN_VARIABLE, variable, message, hint, of_name=True)


def _deprecated(variable: str, successor: str) -> Fault:
    return Fault(
        rules.DEPRECATED_VARIABLE,
        variable,
        f"{variable} is the old name of {successor}",
        f"write {successor}",
        of_name=True,
    )


def _check_value(variable: str, value: str) -> Iterator[Fault]:
    text = value.strip()
    if not text:
        yield Fault(
            rules.EMPTY_VALUE,
            variable,
            "the value is empty, which counts as set",
            "write the value, or remove the variable where users bring their own",
        )
        return
    if _PLACEHOLDER.fullmatch(text):
        yield Fault(
            rules.PLACEHOLDER,
            variable,
            "the value is still a placeholder",
            "write the value, or remove the variable where users bring their own",
        )
        return
    if text != value:
        yield Fault(
            rules.OUTER_SPACES,
            variable,
            "the value begins or ends with a space, and Slurm strips leading ones",
            "remove the spaces",
        )
    if resource_types.is_endpoint(variable):
        yield from _check_endpoint(variable, text)
    yield from _check_known_format(variable, text)


def _check_known_format(variable: str, text: str) -> Iterator[Fault]:
    def unusable(message: str, hint: str) -> Fault:
        return Fault(rules.UNUSABLE_VALUE, variable, message, hint)

    if variable.startswith(_SESSION_VARIABLES):
        if variable.endswith("_SESSION_MODE") and text not in resource_types.SESSION_MODES:
            yield unusable("the session mode is neither dedicated nor batch", "write one of the two")
        if variable.endswith(("_SESSION_MAX_TTL", "_TIMEOUT_SECONDS")) and not (
            _SECONDS.fullmatch(text) and 0 < int(text) <= _MAX_SECONDS
        ):
            yield unusable(
                "the value is not a number of seconds, so QRMI would silently use its default",
                'write whole seconds, for example "28800"',
            )
    if variable.endswith("_IAM_APIKEY") and text.startswith("crn:"):
        service_crn = variable.removesuffix("IAM_APIKEY") + "SERVICE_CRN"
        yield unusable("the value is a CRN, not an API key", f"move the CRN to {service_crn}")
    if variable == "QRMI_AB_FELIS_API_KEY" and not _is_felis_key(text):
        yield unusable("the value is not user:password in base64", "copy the whole key from the console")


def _is_felis_key(text: str) -> bool:
    try:
        return ":" in base64.b64decode(text, validate=True).decode("utf-8")
    except (binascii.Error, ValueError):
        return False


def _check_endpoint(variable: str, text: str) -> Iterator[Fault]:
    is_proxy = variable.endswith("_PROXY")
    schemes = _PROXY_SCHEMES if is_proxy else _HTTP
    if variable == _SCHEME_OPTIONAL and "://" not in text:
        text = f"https://{text}"
    try:
        url = urlsplit(text)
        host, _ = url.hostname, url.port  # either raises for malformed text
    except ValueError:
        host = None
    if not host or url.scheme not in schemes or any(char.isspace() for char in text):
        yield Fault(
            rules.NOT_A_URL,
            variable,
            "the value is not a URL with a scheme and a host",
            "write it as https://HOST or https://HOST:PORT/PATH",
        )
        return
    if url.username is not None or url.password is not None:
        yield Fault(
            rules.SECRET_IN_URL,
            variable,
            "the URL contains a user name or a password, and URLs appear in logs",
            "remove them; credentials have their own variables",
        )
    if url.scheme == "http" and not is_proxy and not _is_loopback(host):
        yield Fault(
            rules.PLAIN_HTTP,
            variable,
            "requests, and the credentials in them, cross the network unencrypted",
            "write https:// if the service supports it",
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_set(known: ResourceType, environment: Iterable[str]) -> Iterator[Fault]:
    """Check the variables as a set: which are missing, and what follows from that."""
    there = frozenset(resource_types.with_successors(dict.fromkeys(environment, "")))
    required = set(known.required)
    if known.name == "pasqal-local" and "QRMI_URL" not in there:
        required.add("QRMI_WARDEN_URL")
    missing = sorted(required - there)
    if missing:
        yield _missing(known, missing, there)
    if known.name == "pasqal-cloud":
        yield from _check_pasqal_cloud(there)
    if known.name in _S3_TYPES:
        s3 = {known.prefix + suffix for suffix in _S3_SUFFIXES}
        if s3 & there and s3 - there:
            yield Fault(
                rules.INCOMPLETE,
                "",
                f"without {', '.join(sorted(s3 - there))} QRMI does not use S3 at all",
                "set all five S3 variables, or none",
            )


def _missing(known: ResourceType, missing: list[str], there: frozenset[str]) -> Fault:
    names = ", ".join(missing)
    if known.endpoints.intersection(missing) and known.secrets & there:
        return Fault(
            rules.INCOMPLETE,
            "",
            f"without {names} the secrets here are never used: they are not sent to an endpoint that a job brings",
            "add the endpoint, or let users bring everything",
        )
    return Fault(
        rules.USERS_BRING,
        "",
        f"every job has to bring {names}",
        "this is right if users have their own; otherwise add them here",
    )


def _check_pasqal_cloud(there: frozenset[str]) -> Iterator[Fault]:
    account = [variable for variable in _PASQAL_SERVICE_ACCOUNT if variable in there]
    if len(account) == 1:
        lacking = next(variable for variable in _PASQAL_SERVICE_ACCOUNT if variable not in there)
        yield Fault(
            rules.INCOMPLETE,
            "",
            f"{account[0]} is not used without {lacking}",
            "set both, or neither",
        )
    elif not account and _PASQAL_TOKEN not in there:
        yield Fault(
            rules.USERS_BRING,
            "",
            f"every job has to bring {_PASQAL_TOKEN}, or {' and '.join(_PASQAL_SERVICE_ACCOUNT)}",
            "this is right if users have their own; otherwise add them here",
        )
