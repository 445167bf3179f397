"""The spec: what Prolog hands a job's broker through a pipe."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qrmi_slurm.secret import Secret


@dataclass(frozen=True, slots=True)
class Bucket:
    """Where the inputs and results of an IBM Quantum System's jobs lie, and the site's key to it.

    Args:
        endpoint: URL of S3's API, as this node sees it.
        service_endpoint: the same as the service sees it.
        name: the bucket's.
        region: the bucket's.
        key_id: the site's access key id.
        secret: its secret.
        prefix: what the names of this job's objects begin with; ends in a slash.
    """

    endpoint: str
    service_endpoint: str
    name: str
    region: str
    key_id: Secret
    secret: Secret
    prefix: str


@dataclass(frozen=True, slots=True)
class Qpu:
    """One QPU that the broker speaks for.

    Args:
        name: the backend's, at the service.
        key: what the job has instead of the site's key.
        session: the job's session; None where the service has no sessions.
        endpoint: URL of the service's API.
        iam_endpoint: URL of IAM.
        api_key: the site's key.
        crn: the service's instance.
        bucket: its S3; None where it has none.
    """

    name: str
    key: Secret
    session: str | None
    endpoint: str
    iam_endpoint: str
    api_key: Secret
    crn: str
    bucket: Bucket | None = None

    @property
    def secrets(self) -> tuple[Secret, ...]:
        """What must reach no job, the tokens that IAM gives for it aside."""
        of_bucket = (self.bucket.key_id, self.bucket.secret) if self.bucket is not None else ()
        return (self.api_key, *of_bucket)


@dataclass(frozen=True, slots=True)
class Spec:
    """All that a broker has to know.

    Args:
        job_id: Slurm's id.
        uid: who may connect.
        port: where to listen; 0 for any.
        ends_s: until when the job may run; seconds since the epoch.
        qpus: by their place in the broker's paths; None for one that the job does not hold any more.
        env: the site's `--env:` variables, proxies among them.
    """

    job_id: int
    uid: int
    port: int
    ends_s: float
    qpus: tuple[Qpu | None, ...]
    env: Mapping[str, str] = field(repr=False)


def parse(text: bytes) -> Spec:
    """Return the spec that Prolog wrote (`brokerage._spec`).

    Raises:
        ValueError: it is cut off, or none of ours.
    """
    if not text.endswith(b"\n"):
        raise ValueError("the spec is cut off")
    try:
        document = json.loads(text)
        return Spec(
            job_id=int(document["job_id"]),
            uid=int(document["uid"]),
            port=int(document["port"]),
            ends_s=float(document["ends_s"]),
            qpus=tuple(_qpu(item) if item is not None else None for item in document["qpus"]),
            env={str(name): str(value) for name, value in document["env"].items()},
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the spec lacks something: {type(error).__name__}") from None


def _qpu(item: Mapping[str, Any]) -> Qpu:
    s3 = item["s3"]
    bucket = None
    if s3 is not None:
        bucket = Bucket(
            endpoint=s3["s3_endpoint"],
            service_endpoint=s3["service_endpoint"],
            name=s3["s3_bucket"],
            region=s3["s3_region"],
            key_id=Secret(s3["aws_access_key_id"]),
            secret=Secret(s3["aws_secret_access_key"]),
            prefix=s3["prefix"],
        )
    return Qpu(
        name=item["name"],
        key=Secret(item["key"]),
        session=item["session"],
        endpoint=item["endpoint"],
        iam_endpoint=item["iam_endpoint"],
        api_key=Secret(item["apikey"]),
        crn=item["crn"],
        bucket=bucket,
    )
