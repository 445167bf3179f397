"""The known resource types: their variables, whether acquiring locks the QPU, and their former names.

From QRMI's documentation and its releases 0.24 to 0.26. Unknown types are accepted: `describe` gives a type of a newer
QRMI generic rules.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final, NamedTuple

from qrmi_slurm.names import JOB_PREFIX, QRMI_PREFIX, SLURM_PREFIX

# QRMI 0.23 renamed two families of variables; a program reads those of its own QRMI version.
PREFIX_SUCCESSORS: Final[Mapping[str, str]] = {
    "QRMI_IBM_DA_": "QRMI_IBM_QS_",
    "QRMI_IBM_QRS_": "QRMI_IBM_QCS_",
}

# One variable got a new ending as well: the address of S3 as the service sees it.
_VARIABLE_SUCCESSORS: Final[Mapping[str, str]] = {
    "QRMI_IBM_DA_S3_ENDPOINT_FOR_DAAPI": "QRMI_IBM_QS_S3_ENDPOINT_FOR_QSAPI",
}

# This job's calls must never reuse or close a session that somebody else opened.
STALE_SESSION_VARIABLES: Final = frozenset({"QRMI_IBM_QCS_SESSION_ID", "QRMI_IBM_QRS_SESSION_ID"})

# The modes of a session; the service refuses others when the session is opened.
SESSION_MODES: Final = ("dedicated", "batch")


class ResourceType(NamedTuple):
    """One resource type of QRMI.

    Args:
        name: as written in `type`.
        prefix: the beginning of its variables' names.
        required: variables that QRMI cannot create the resource without.
        optional: other variables that QRMI reads.
        secrets: the variables whose values must never be shown.
        endpoints: the variables that decide where requests, and credentials with them, are sent.
        successor: the type that replaced this one; empty if it is current.
        locks: whether acquire locks the QPU at the service. If not, acquire sends no request at all.
        asks_access: whether `is_accessible` is asked before acquiring. It takes one request where the status takes two,
            which then only has the words for a QPU that is not accessible.
        session_max_ttl: the variable that limits a session's lifetime in seconds; empty if there is none.
        note: what QRMI expects of such a resource, and what an admin would not guess; for docs/environment.md.
        can_have_broker: whether a credential broker can relay requests between a job and the service.
        tunable: the variables that users may set beside the site's secrets: a session's mode, or a time in seconds.
    """

    name: str
    prefix: str
    required: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    secrets: frozenset[str] = frozenset()
    endpoints: frozenset[str] = frozenset()
    successor: str = ""
    locks: bool = False
    asks_access: bool = False
    session_max_ttl: str = ""
    note: str = ""
    can_have_broker: bool = False
    tunable: frozenset[str] = frozenset()

    @property
    def variables(self) -> frozenset[str]:
        """All variables that QRMI reads for this type, without the resource's name."""
        return self.required | self.optional

    def knows(self, variable: str) -> bool:
        """Tell whether QRMI reads a variable for this type, under its present name or a former one."""
        return present_name(variable) in map(present_name, self.variables)

    def may_be_tuned(self, variable: str) -> bool:
        """Tell whether users may set a variable beside the site's secrets, under whichever of its names."""
        return present_name(variable) in map(present_name, self.tunable)


def _ibm_compute_service(name: str, prefix: str, successor: str = "") -> ResourceType:
    return ResourceType(
        name=name,
        prefix=prefix,
        required=frozenset(
            {f"{prefix}ENDPOINT", f"{prefix}IAM_ENDPOINT", f"{prefix}IAM_APIKEY", f"{prefix}SERVICE_CRN"}
        ),
        optional=frozenset(
            {
                f"{prefix}SESSION_MODE",
                f"{prefix}SESSION_MAX_TTL",
                f"{prefix}TIMEOUT_SECONDS",
                f"{prefix}SESSION_ID",
            }
        ),
        secrets=frozenset({f"{prefix}IAM_APIKEY"}),
        endpoints=frozenset({f"{prefix}ENDPOINT", f"{prefix}IAM_ENDPOINT"}),
        successor=successor,
        locks=True,
        asks_access=True,
        session_max_ttl=f"{prefix}SESSION_MAX_TTL",
        can_have_broker=True,
        tunable=frozenset({f"{prefix}SESSION_MODE", f"{prefix}SESSION_MAX_TTL", f"{prefix}TIMEOUT_SECONDS"}),
    )


def _ibm_quantum_system(name: str, prefix: str, s3_for_service: str, successor: str = "") -> ResourceType:
    return ResourceType(
        name=name,
        prefix=prefix,
        required=frozenset(
            {f"{prefix}ENDPOINT", f"{prefix}IAM_ENDPOINT", f"{prefix}IAM_APIKEY", f"{prefix}SERVICE_CRN"}
        ),
        optional=frozenset(
            {
                f"{prefix}AWS_ACCESS_KEY_ID",
                f"{prefix}AWS_SECRET_ACCESS_KEY",
                f"{prefix}S3_ENDPOINT",
                f"{prefix}{s3_for_service}",
                f"{prefix}S3_BUCKET",
                f"{prefix}S3_REGION",
            }
        ),
        secrets=frozenset({f"{prefix}IAM_APIKEY", f"{prefix}AWS_ACCESS_KEY_ID", f"{prefix}AWS_SECRET_ACCESS_KEY"}),
        endpoints=frozenset(
            {
                f"{prefix}ENDPOINT",
                f"{prefix}IAM_ENDPOINT",
                f"{prefix}S3_ENDPOINT",
                f"{prefix}{s3_for_service}",
            }
        ),
        successor=successor,
        note="QRMI retries a failed request for about 11 s; keep `--acquire-timeout` above 15.",
        can_have_broker=True,
    )


KNOWN: Final[Mapping[str, ResourceType]] = {
    t.name: t
    for t in (
        _ibm_compute_service("ibm-quantum-compute-service", "QRMI_IBM_QCS_"),
        _ibm_compute_service("qiskit-runtime-service", "QRMI_IBM_QRS_", "ibm-quantum-compute-service"),
        _ibm_quantum_system("ibm-quantum-system", "QRMI_IBM_QS_", "S3_ENDPOINT_FOR_QSAPI"),
        _ibm_quantum_system("direct-access", "QRMI_IBM_DA_", "S3_ENDPOINT_FOR_DAAPI", "ibm-quantum-system"),
        ResourceType(
            name="pasqal-cloud",
            prefix="QRMI_PASQAL_CLOUD_",
            optional=frozenset(
                {
                    "QRMI_PASQAL_CLOUD_PROJECT_ID",
                    "QRMI_PASQAL_CLOUD_AUTH_TOKEN",
                    "QRMI_PASQAL_CLOUD_CLIENT_ID",
                    "QRMI_PASQAL_CLOUD_CLIENT_SECRET",
                    "QRMI_PASQAL_CLOUD_AUTH_ENDPOINT",
                    "QRMI_PASQAL_CLOUD_BASE_URL",
                    "PASQAL_CONFIG_ROOT",
                }
            ),
            secrets=frozenset({"QRMI_PASQAL_CLOUD_AUTH_TOKEN", "QRMI_PASQAL_CLOUD_CLIENT_SECRET"}),
            endpoints=frozenset({"QRMI_PASQAL_CLOUD_AUTH_ENDPOINT", "QRMI_PASQAL_CLOUD_BASE_URL"}),
            note="The resource's name must be QRMI's name for the device (`FRESNEL`, `EMU_MPS`, ...).",
        ),
        ResourceType(
            name="pasqal-local",
            prefix="QRMI_",
            optional=frozenset({"QRMI_WARDEN_URL", "QRMI_URL"}),  # one of the two; the second is the older name
            endpoints=frozenset({"QRMI_WARDEN_URL", "QRMI_URL"}),
            locks=True,
            note="One of the two must be set. It needs QRMI 0.26.1 or newer, libmunge, and munge at its usual socket "
            "on the compute node. The Warden sees root, or the user if they supplied variables.",
        ),
        ResourceType(
            name="iqm-server",
            prefix="QRMI_IQM_ISA_",
            required=frozenset({"QRMI_IQM_ISA_ENDPOINT", "QRMI_IQM_ISA_TOKEN"}),
            secrets=frozenset({"QRMI_IQM_ISA_TOKEN"}),
            endpoints=frozenset({"QRMI_IQM_ISA_ENDPOINT"}),
            note="QRMI changes the last `_` of the name to `:`.",
        ),
        ResourceType(
            name="alice-bob-felis",
            prefix="QRMI_AB_FELIS_",
            required=frozenset({"QRMI_AB_FELIS_API_KEY", "QRMI_AB_FELIS_BASE_ENDPOINT"}),
            secrets=frozenset({"QRMI_AB_FELIS_API_KEY"}),
            endpoints=frozenset({"QRMI_AB_FELIS_BASE_ENDPOINT"}),
            note="The key is the base64 of `user:password`; a wrong key fails only in the first task, as QRMI sends no "
            "request before.",
        ),
        ResourceType(
            name="oqtopus",
            prefix="QRMI_OQTOPUS_",
            optional=frozenset(
                {
                    "QRMI_OQTOPUS_URL",
                    "QRMI_OQTOPUS_API_TOKEN",
                    "QRMI_OQTOPUS_PROXY",
                    "QRMI_OQTOPUS_TIMEOUT",
                    "QRMI_OQTOPUS_RETRY_MAX_ATTEMPTS",
                    "QRMI_OQTOPUS_RETRY_BACKOFF_SECONDS",
                    "QRMI_OQTOPUS_RETRY_STATUS_CODES",
                    "QRMI_OQTOPUS_RETRY_METHODS",
                }
            ),
            secrets=frozenset({"QRMI_OQTOPUS_API_TOKEN"}),
            endpoints=frozenset({"QRMI_OQTOPUS_URL", "QRMI_OQTOPUS_PROXY"}),
            note="QRMI loads a bridge library; set its path with `--env:PY_BRIDGE_PATH=...`.",
        ),
    )
}


def describe(type_name: str) -> ResourceType:
    """Return what is known about a type; for an unknown name, generic rules under that name."""
    spelled = canonical(type_name)
    for known in KNOWN.values():
        if spelled in (canonical(known.name), f"ibm{canonical(known.name)}"):
            return known
    return ResourceType(name=type_name, prefix="QRMI_")


def are_one(first: str, second: str) -> bool:
    """Tell whether two names mean the same type, in another spelling or by a former name."""
    return _current(first) == _current(second)


def _current(type_name: str) -> str:
    known = describe(type_name)
    return canonical(known.successor or known.name)


@lru_cache(maxsize=256)  # `describe` needs every known type's
def canonical(type_name: str) -> str:
    """Return the name in lower case with only its letters and digits: the same for all spellings of a type."""
    return "".join(char for char in type_name.lower() if char.isalnum())


def matching_member(type_name: str, members: Iterable[str]) -> str | None:
    """Return the member of QRMI's `ResourceType` for a type name of the config.

    QRMI spells a type one way in the config (`qiskit-runtime-service`) and another in its class
    (`IBMQiskitRuntimeService`); apart from case and hyphens, only the vendor's name in front may differ.

    Args:
        type_name: the type in the config.
        members: the names of the installed QRMI's `ResourceType` members.

    Returns:
        The member's name, or None if this QRMI does not know the type.
    """
    wanted = canonical(type_name)
    for member in members:
        if canonical(member) in (wanted, f"ibm{wanted}"):
            return member
    return None


@lru_cache(maxsize=256)
def successor_variable(variable: str) -> str | None:
    """Return the current name of a renamed variable, or None if it was not renamed."""
    if variable in _VARIABLE_SUCCESSORS:
        return _VARIABLE_SUCCESSORS[variable]
    for old, new in PREFIX_SUCCESSORS.items():
        if variable.startswith(old):
            return new + variable.removeprefix(old)
    return None


def present_name(variable: str) -> str:
    """Return the current name of a variable, which is its own unless it was renamed."""
    return successor_variable(variable) or variable


def with_successors(environment: Mapping[str, str]) -> dict[str, str]:
    """Return `environment` with each renamed variable also under its current name, unless that is already set."""
    result = dict(environment)
    for variable, value in environment.items():
        successor = successor_variable(variable)
        if successor is not None:
            result.setdefault(successor, value)
    return result


def overlaid(environment: Mapping[str, str], over: Mapping[str, str]) -> dict[str, str]:
    """Return `environment` with other values over it, each in place of the same variable's under all of its names."""
    over = with_successors(over)
    result = {**environment, **over}
    for variable in environment.keys() - over.keys():
        present = present_name(variable)
        if present in over:
            result[variable] = over[present]
    return result


@lru_cache(maxsize=256)
def is_endpoint(variable: str) -> bool:
    """Tell whether a variable decides where requests are sent, for known and unknown types."""
    if any(variable in known.endpoints for known in KNOWN.values()):
        return True
    words = set(variable.upper().split("_"))
    return not words.isdisjoint(_ENDPOINT_WORDS)


# Words in the name of a variable that decides where requests are sent; for types that are not in the table.
_ENDPOINT_WORDS: Final = frozenset(
    {"ENDPOINT", "ENDPOINTS", "URL", "URLS", "URI", "HOST", "HOSTNAME", "PROXY", "SERVER", "ADDRESS", "PORT"}
)

# Words in the name of a variable whose value is secret; for types that are not in the table.
_SECRET_WORDS: Final = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL")


def is_secret(variable: str) -> bool:
    """Tell whether a variable's value must be masked, for known and unknown types, with or without the QPU's name."""
    # The QPU's name in front may contain any word.
    return _is_secret(variable[variable.find(QRMI_PREFIX) :] if QRMI_PREFIX in variable else variable)


@lru_cache(maxsize=256)  # a job's QPUs have the same variables
def _is_secret(own: str) -> bool:
    return any(own in known.secrets for known in KNOWN.values()) or any(word in own.upper() for word in _SECRET_WORDS)


def is_ours_alone(variable: str) -> bool:
    """Tell whether only the suite may set a variable: a token, a time limit, an open session, a mark of its own."""
    return variable.startswith((JOB_PREFIX, SLURM_PREFIX)) or variable in STALE_SESSION_VARIABLES


def is_session_mode(variable: str) -> bool:
    """Tell whether a variable is a session's mode; any other that users may tune is a time in seconds."""
    return variable.endswith("_SESSION_MODE")


def tuned_fault(variable: str, value: str) -> str:
    """Say what is wrong with the value of a variable that users may tune; empty where nothing is."""
    if is_session_mode(variable):
        return "" if value in SESSION_MODES else f"is neither {' nor '.join(SESSION_MODES)}"
    return "" if value.isascii() and value.isdecimal() else "is not a whole number of seconds"
