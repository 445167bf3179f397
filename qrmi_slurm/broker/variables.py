"""A QPU's variables where its job has a broker: what the job gets, and what only the broker gets."""

from collections.abc import Iterable, Mapping
from typing import Final

from qrmi_slurm.broker.spec import Bucket, Qpu
from qrmi_slurm.config.resource_types import describe
from qrmi_slurm.names import ACQUISITION_TOKEN, BROKER_MARK, JOB_PREFIX, QRMI_PREFIX, of_resource
from qrmi_slurm.secret import Secret
from qrmi_slurm.state.record import Broker, Entry

# The prefixes of the families that a broker serves, today's and those of before QRMI 0.23.
_PREFIXES: Final = ("QRMI_IBM_QCS_", "QRMI_IBM_QRS_", "QRMI_IBM_QS_", "QRMI_IBM_DA_")

# The only variables of a resource that reach a job with a broker, without their family's prefix.
_UNCHANGED: Final = frozenset({"SERVICE_CRN", "SESSION_MODE", "SESSION_MAX_TTL", "TIMEOUT_SECONDS"})
_S3_UNCHANGED: Final = frozenset({"S3_BUCKET", "S3_REGION"})
_S3_KEYS: Final = frozenset({"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"})
_S3_ENDPOINTS: Final = frozenset({"S3_ENDPOINT", "S3_ENDPOINT_FOR_QSAPI", "S3_ENDPOINT_FOR_DAAPI"})

# Without any one of these QRMI does not use S3 (quantum_system.rs).
_S3_REQUIRED: Final = frozenset({"S3_ENDPOINT", *_S3_KEYS, *_S3_UNCHANGED})


def for_job(broker: Broker, name: str, type_name: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Return what the tasks get for a QPU behind a broker, without the resource's name in front.

    Args:
        broker: the job's broker.
        name: the resource's name.
        type_name: the resource's type.
        environment: the variables that the hooks call QRMI with, renamed ones under both names; secrets among them.
    """
    index = list(broker.keys).index(name)
    base = f"http://127.0.0.1:{broker.port}/{BROKER_MARK}/{index}"
    visible = _visible(base, broker.keys[name].reveal(), has_s3=_has_s3(type_name, environment))
    found = {}
    for variable, value in environment.items():
        short = _without_prefix(variable)
        if short in visible:
            replacement = visible[short]
            found[variable] = value if replacement is None else replacement
    return found


def _visible(base: str, key: str, *, has_s3: bool) -> dict[str, str | None]:
    """Return what a job may see, by its name without a prefix: the replacement, or None where the value stays."""
    visible: dict[str, str | None] = dict.fromkeys(_UNCHANGED)
    visible |= {"ENDPOINT": f"{base}/api", "IAM_ENDPOINT": f"{base}/iam", "IAM_APIKEY": key}
    if has_s3:
        visible |= dict.fromkeys(_S3_UNCHANGED)
        visible |= dict.fromkeys(_S3_KEYS, key)
        visible |= dict.fromkeys(_S3_ENDPOINTS, f"{base}/s3/")  # the AWS library appends the bucket's name to it
    return visible


def for_broker(entry: Entry, broker: Broker) -> Qpu:
    """Return what the broker gets for a QPU.

    Args:
        entry: the QPU's entry in the job's record.
        broker: the broker's.
    """
    own = of_resource(entry.name, "")
    environment = {name.removeprefix(own): value for name, value in entry.environment.items() if name.startswith(own)}
    has_sessions = describe(entry.type).locks
    session = broker.sessions.get(entry.name, entry.token)  # the job's first one: it knows no other
    return Qpu(
        name=entry.name,
        key=broker.keys[entry.name],
        session=session.reveal() if has_sessions and session is not None else None,
        endpoint=_value(entry.type, environment, "ENDPOINT"),
        iam_endpoint=_value(entry.type, environment, "IAM_ENDPOINT"),
        api_key=Secret(_value(entry.type, environment, "IAM_APIKEY")),
        crn=_value(entry.type, environment, "SERVICE_CRN"),
        bucket=None if has_sessions else _bucket(entry.type, environment, f"{BROKER_MARK}/{broker.space}/"),
        session_ends_s=entry.ends_s,
        session_mode=_value(entry.type, environment, "SESSION_MODE"),
        session_cap_s=entry.session_cap_s,
    )


def _bucket(type_name: str, environment: Mapping[str, str], prefix: str) -> Bucket | None:
    if not _has_s3(type_name, environment):
        return None
    endpoint = _value(type_name, environment, "S3_ENDPOINT")
    return Bucket(
        endpoint=endpoint,
        service_endpoint=_value(type_name, environment, "S3_ENDPOINT_FOR_QSAPI") or endpoint,
        name=_value(type_name, environment, "S3_BUCKET"),
        region=_value(type_name, environment, "S3_REGION"),
        key_id=Secret(_value(type_name, environment, "AWS_ACCESS_KEY_ID")),
        secret=Secret(_value(type_name, environment, "AWS_SECRET_ACCESS_KEY")),
        prefix=prefix,
    )


def of_site(entries: Iterable[Entry]) -> dict[str, str]:
    """Return the site's own variables (`--env:`), including proxies: those that belong to no QPU and no job."""
    found = {}
    for entry in entries:
        for name, value in entry.environment.items():
            is_of_job = name.startswith(JOB_PREFIX) or name.endswith(ACQUISITION_TOKEN)
            if not is_of_job and f"_{QRMI_PREFIX}" not in name:
                found[name] = value
    return found


def _has_s3(type_name: str, environment: Mapping[str, str]) -> bool:
    prefix = _prefix(type_name)
    return all(f"{prefix}{name}" in environment for name in _S3_REQUIRED)


def _value(type_name: str, environment: Mapping[str, str], name: str) -> str:
    return environment.get(f"{_prefix(type_name)}{name}", "")


def _prefix(type_name: str) -> str:
    """Return the prefix of a type's variables under their present names."""
    described = describe(type_name)
    return describe(described.successor or described.name).prefix


def _without_prefix(variable: str) -> str:
    for prefix in _PREFIXES:
        if variable.startswith(prefix):
            return variable.removeprefix(prefix)
    return ""
