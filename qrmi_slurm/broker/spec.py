"""What Prolog and a job's broker tell each other: the spec, and the broker's reply; both directions of each format.

The hooks import this module, so it stays cheap: named tuples, no `dataclasses`.
"""

import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from qrmi_slurm.errors import BrokerError
from qrmi_slurm.secret import Secret, masked_repr
from qrmi_slurm.text import printable

# The broker's descriptors: it reads its spec, answers with its port, and keeps its job's files open.
SPEC_FD: Final = 0
REPLY_FD: Final = 1
LIFE_FD: Final = 3
RENEWALS_FD: Final = 4

MAX_SPEC_BYTES: Final = 16 * 1024**2
MAX_REPLY_BYTES: Final = 4096


class Bucket(NamedTuple):
    """The S3 bucket that holds the inputs and results of an IBM Quantum System's jobs, and the site's key to it.

    Args:
        endpoint: URL of S3's API, as this node sees it.
        service_endpoint: the same as the service sees it.
        name: the bucket's name.
        region: the bucket's region.
        key_id: the site's access key id.
        secret: the site's secret access key.
        prefix: what the names of this job's objects begin with; ends in a slash.
    """

    endpoint: str
    service_endpoint: str
    name: str
    region: str
    key_id: Secret
    secret: Secret
    prefix: str


class Qpu(NamedTuple):
    """One QPU that the broker serves.

    Args:
        name: the backend's name at the service.
        key: the job's replacement for the site's key.
        session: the job's session; None where the service has no sessions.
        endpoint: URL of the service's API.
        iam_endpoint: URL of IAM.
        api_key: the site's key.
        crn: the service instance.
        bucket: its S3 bucket; None where it has none.
        session_ends_s: when that session ends; seconds since the epoch, None where that is not known.
        session_mode: the mode of its sessions; empty for the service's default.
        session_cap_s: to how many seconds the config or the user has limited its sessions; None where neither has.
    """

    name: str
    key: Secret
    session: str | None
    endpoint: str
    iam_endpoint: str
    api_key: Secret
    crn: str
    bucket: Bucket | None = None
    session_ends_s: float | None = None
    session_mode: str = ""
    session_cap_s: int | None = None

    @property
    def secrets(self) -> tuple[Secret, ...]:
        """The site's secrets, which must not reach the job; without the tokens that IAM issues for them."""
        of_bucket = (self.bucket.key_id, self.bucket.secret) if self.bucket is not None else ()
        return (self.api_key, *of_bucket)


class Spec(NamedTuple):
    """Everything that a broker has to know.

    Args:
        job_id: Slurm's id.
        uid: the only user who may connect.
        port: where to listen; 0 for any.
        ends_s: until when the job may run; seconds since the epoch.
        qpus: in the order of the broker's paths; None for one that the job no longer holds.
        env: the site's `--env:` variables, including proxies.
        session_margin_s: how much longer than the job a session may live, in seconds.
    """

    job_id: int
    uid: int
    port: int
    ends_s: float
    qpus: tuple[Qpu | None, ...]
    env: Mapping[str, str]
    session_margin_s: float = 0.0

    def __repr__(self) -> str:
        return masked_repr(self, "env")


def encode(spec: Spec) -> bytes:
    """Return a spec as one line of JSON, with its secrets."""
    qpus = [_encode_qpu(qpu) if qpu is not None else None for qpu in spec.qpus]
    return json.dumps({**spec._asdict(), "qpus": qpus, "env": dict(spec.env)}).encode() + b"\n"


def parse(line: bytes) -> Spec:
    """Return the spec in a line that `encode` wrote.

    Raises:
        ValueError: the line is truncated or incomplete.
    """
    if not line.endswith(b"\n"):
        raise ValueError("the spec is truncated")
    try:
        document = json.loads(line)
        return Spec(
            job_id=int(document["job_id"]),
            uid=int(document["uid"]),
            port=int(document["port"]),
            ends_s=float(document["ends_s"]),
            qpus=tuple(_parse_qpu(item) if item is not None else None for item in document["qpus"]),
            env={str(name): str(value) for name, value in document["env"].items()},
            session_margin_s=float(document["session_margin_s"]),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the spec is incomplete: {type(error).__name__}") from None


def _encode_qpu(qpu: Qpu) -> dict[str, Any]:
    bucket = _encode_bucket(qpu.bucket) if qpu.bucket is not None else None
    return {**qpu._asdict(), "key": qpu.key.reveal(), "api_key": qpu.api_key.reveal(), "bucket": bucket}


def _parse_qpu(item: Mapping[str, Any]) -> Qpu:
    bucket = _parse_bucket(item["bucket"]) if item["bucket"] is not None else None
    return Qpu(**{**item, "key": Secret(item["key"]), "api_key": Secret(item["api_key"]), "bucket": bucket})


def _encode_bucket(bucket: Bucket) -> dict[str, str]:
    return {**bucket._asdict(), "key_id": bucket.key_id.reveal(), "secret": bucket.secret.reveal()}


def _parse_bucket(item: Mapping[str, Any]) -> Bucket:
    return Bucket(**{**item, "key_id": Secret(item["key_id"]), "secret": Secret(item["secret"])})


def encode_port(port: int) -> bytes:
    """Return the reply of a broker that listens."""
    return json.dumps({"port": port}).encode() + b"\n"


def encode_error(reason: str) -> bytes:
    """Return the reply of a broker that cannot start."""
    return json.dumps({"error": reason}).encode() + b"\n"


def parse_reply(reply: bytes) -> int:
    """Return the port in a broker's reply.

    Raises:
        BrokerError: the broker could not start, or its reply is unreadable.
    """
    try:
        document = json.loads(reply)
        if "port" in document:
            return int(document["port"])
        reason = printable(str(document["error"]), 300)
    except (ValueError, KeyError, TypeError):
        reason = "it sent an unreadable reply"
    raise BrokerError(f"the credential broker cannot be started: {reason}")
