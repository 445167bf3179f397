"""What is known of each resource type: its variables, what locks, and what names it had before.

From QRMI's documentation and its 0.24 to 0.26 releases. Nothing here keeps an unknown type out: a type that
only a newer QRMI has goes through with the generic rules of `UNKNOWN`.
"""

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

from qrmi_slurm.names import JOB_PREFIX, QRMI_PREFIX

# QRMI 0.23 renamed two families of variables; a program reads those that its QRMI version knows.
PREFIX_SUCCESSORS: Final[Mapping[str, str]] = {
    "QRMI_IBM_DA_": "QRMI_IBM_QS_",
    "QRMI_IBM_QRS_": "QRMI_IBM_QCS_",
}

# One member of a family was not only moved: the address of S3 as the service sees it.
_VARIABLE_SUCCESSORS: Final[Mapping[str, str]] = {
    "QRMI_IBM_DA_S3_ENDPOINT_FOR_DAAPI": "QRMI_IBM_QS_S3_ENDPOINT_FOR_QSAPI",
}

# A session that somebody else opened must never be reused or closed by this job's calls.
STALE_SESSION_VARIABLES: Final = frozenset({"QRMI_IBM_QCS_SESSION_ID", "QRMI_IBM_QRS_SESSION_ID"})


class ResourceType(NamedTuple):
    """One resource type of QRMI.

    Args:
        name: as written in `type`.
        prefix: what the names of its variables begin with.
        required: variables without which QRMI cannot make the resource.
        optional: variables that QRMI reads as well.
        secrets: those among them that must never be seen.
        endpoints: those that say where requests, and with them credentials, go.
        successor: the type that took this one's place; empty where it is current.
        locks: whether acquire takes the QPU at the service. Where it does not, acquire asks nobody.
        asks_status: whether the QPU's status is asked for before it is acquired. Where acquire asks nobody, only that
            tells whether the service answers; a Warden that is down has opened nothing, which a lost answer to
            acquire does not say. IBM's opens sessions on a QPU that is offline too, and their jobs wait.
        session_max_ttl: the variable that bounds a session's life in seconds; empty where there is none.
        note: what QRMI expects of such a resource, and what an admin would not guess; for docs/environment.md.
        can_have_broker: whether a credential broker can stand between a job and the service.
        tunable: the variables of a resource with a broker that a user may set beside the site's key.
    """

    name: str
    prefix: str
    required: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()
    secrets: frozenset[str] = frozenset()
    endpoints: frozenset[str] = frozenset()
    successor: str = ""
    locks: bool = False
    asks_status: bool = True
    session_max_ttl: str = ""
    note: str = ""
    can_have_broker: bool = False
    tunable: frozenset[str] = frozenset()

    @property
    def variables(self) -> frozenset[str]:
        """All variables that QRMI reads for this type, without the resource's name."""
        return self.required | self.optional


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
        asks_status=False,
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
        note="QRMI repeats a failed request for about 11 s; keep `--acquire-timeout` above 15.",
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
            note="The resource's name has to be QRMI's name of the device (`FRESNEL`, `EMU_MPS`, ...).",
        ),
        ResourceType(
            name="pasqal-local",
            prefix="QRMI_",
            optional=frozenset({"QRMI_WARDEN_URL", "QRMI_URL"}),  # one of the two; the second is older
            endpoints=frozenset({"QRMI_WARDEN_URL", "QRMI_URL"}),
            locks=True,
            note="One of the two has to be set. It needs QRMI 0.26.1 or newer, libmunge, and munge at its usual socket "
            "on the compute node. The Warden sees root, or the user where the user supplied variables.",
        ),
        ResourceType(
            name="iqm-server",
            prefix="QRMI_IQM_ISA_",
            required=frozenset({"QRMI_IQM_ISA_ENDPOINT", "QRMI_IQM_ISA_TOKEN"}),
            secrets=frozenset({"QRMI_IQM_ISA_TOKEN"}),
            endpoints=frozenset({"QRMI_IQM_ISA_ENDPOINT"}),
            note="QRMI turns the last `_` of the name into `:`.",
        ),
        ResourceType(
            name="alice-bob-felis",
            prefix="QRMI_AB_FELIS_",
            required=frozenset({"QRMI_AB_FELIS_API_KEY", "QRMI_AB_FELIS_BASE_ENDPOINT"}),
            secrets=frozenset({"QRMI_AB_FELIS_API_KEY"}),
            endpoints=frozenset({"QRMI_AB_FELIS_BASE_ENDPOINT"}),
            note="The key is the base64 of `user:password`; a wrong one shows in the first task only, since QRMI asks "
            "nobody before.",
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
            note="QRMI loads a bridge library; `--env:PY_BRIDGE_PATH=...` names it.",
        ),
    )
}


def describe(type_name: str) -> ResourceType:
    """Return what is known of a type; for a name nobody told us of, the generic rules under that name."""
    spelled = canonical(type_name)
    for known in KNOWN.values():
        if spelled in (canonical(known.name), f"ibm{canonical(known.name)}"):
            return known
    return ResourceType(name=type_name, prefix="QRMI_")


def are_one(first: str, second: str) -> bool:
    """Tell whether two type names mean one type: in another spelling, or by its name of before."""
    return _current(first) == _current(second)


def _current(type_name: str) -> str:
    known = describe(type_name)
    return canonical(known.successor or known.name)


def canonical(type_name: str) -> str:
    """Return the name reduced to its letters and digits, as `IBMQuantumSystem` and `ibm-quantum-system` share."""
    return "".join(char for char in type_name.lower() if char.isalnum())


def matching_member(type_name: str, members: Iterable[str]) -> str | None:
    """Return which of QRMI's `ResourceType` members stands for a type name of the config.

    QRMI spells a type one way in the config (`qiskit-runtime-service`) and another in its class
    (`IBMQiskitRuntimeService`); the vendor in front is the only part that differs.

    Args:
        type_name: as configured.
        members: the names that the installed QRMI's `ResourceType` has.

    Returns:
        The member's name, or None where this QRMI does not know the type.
    """
    wanted = canonical(type_name)
    for member in members:
        if canonical(member) in (wanted, f"ibm{wanted}"):
            return member
    return None


def successor_variable(variable: str) -> str | None:
    """Return the name that a variable of a renamed family has today, or None where it kept its name."""
    if variable in _VARIABLE_SUCCESSORS:
        return _VARIABLE_SUCCESSORS[variable]
    for old, new in PREFIX_SUCCESSORS.items():
        if variable.startswith(old):
            return new + variable.removeprefix(old)
    return None


def with_successors(environment: Mapping[str, str]) -> dict[str, str]:
    """Return `environment` with each renamed variable under its present name too, unless that is set already."""
    result = dict(environment)
    for variable, value in environment.items():
        successor = successor_variable(variable)
        if successor is not None:
            result.setdefault(successor, value)
    return result


def is_endpoint(variable: str) -> bool:
    """Tell whether a variable says where requests go, for known and for unknown types."""
    if any(variable in known.endpoints for known in KNOWN.values()):
        return True
    words = set(variable.upper().split("_"))
    return not words.isdisjoint(_ENDPOINT_WORDS)


# Words in a variable's name that say: requests go there. Used for types that the table does not know.
_ENDPOINT_WORDS: Final = frozenset(
    {"ENDPOINT", "ENDPOINTS", "URL", "URLS", "URI", "HOST", "HOSTNAME", "PROXY", "SERVER", "ADDRESS", "PORT"}
)

# Words in a variable's name that say: not for other eyes. Used for types that the table does not know.
_SECRET_WORDS: Final = ("KEY", "TOKEN", "SECRET", "PASSWORD", "CREDENTIAL")


def is_secret(variable: str) -> bool:
    """Tell whether a variable's value must be masked, for known and for unknown types, a QPU's name in front or not."""
    # A QPU's name may stand in front, and may hold any word.
    own = variable[variable.find(QRMI_PREFIX) :] if QRMI_PREFIX in variable else variable
    return any(own in known.secrets for known in KNOWN.values()) or any(word in own.upper() for word in _SECRET_WORDS)


def is_ours_alone(variable: str) -> bool:
    """Tell whether only the suite may set a variable: a token, a time limit, a session that somebody opened."""
    return variable.startswith(JOB_PREFIX) or variable in STALE_SESSION_VARIABLES
