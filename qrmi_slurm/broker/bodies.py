"""The bodies: which jobs and session changes a broker lets through, and what is left of a service's lists.

A body is passed on only if the service cannot read it differently, such as by taking the other one of two equal keys.
"""

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from qrmi_slurm.broker.refusal import Refusal
from qrmi_slurm.broker.rules import JOB_ID, require_backend
from qrmi_slurm.broker.spec import Bucket, Qpu
from qrmi_slurm.text import printable

# What a job for the compute service may say (https://quantum.cloud.ibm.com/docs/api/qiskit-runtime-rest/tags/jobs). Not
# `start_session`, `runtime` or `remote_storage`: another session, another image, another place.
_JOB_KEYS: Final = frozenset(
    {
        "program_id",
        "backend",
        "session_id",
        "params",
        "tags",
        "log_level",
        "cost",
        "calibration_id",
        "private",
        "version",
    }
)
_SYSTEM_JOB_KEYS: Final = frozenset({"id", "backend", "program_id", "log_level", "timeout_secs", "storage"})

# What a Quantum System does with each object of a job.
STORAGE: Final = {"input": "GET", "results": "PUT", "logs": "PUT"}


def read_object(body: bytes) -> dict[str, Any]:
    """Return a JSON object that every reader understands in the same way.

    Raises:
        Refusal: it is none, or a key occurs twice in it.
    """
    try:
        document = json.loads(body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise Refusal("the body is not a JSON object, or a key occurs twice in it", 400) from None
    except MemoryError:
        raise Refusal("the body is too large", 413) from None
    if not isinstance(document, dict):
        raise Refusal("the body is not a JSON object", 400)
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate key")
    return found


def _refuse_constant(name: str) -> None:
    """Refuse NaN and Infinity, which Python reads and JSON does not have."""
    raise ValueError(name)


def check_job(qpu: Qpu, body: bytes) -> None:
    """Raise unless a job for the compute service is on this job's backend and in its session.

    Raises:
        Refusal: it is not.
    """
    document = read_object(body)
    _require_keys(document, _JOB_KEYS)
    require_backend(qpu, document.get("backend"))
    if document.get("session_id") != qpu.session:
        raise Refusal("a job must run in this job's session: session_id")


def check_close(body: bytes) -> None:
    """Raise unless a change of a session only closes it for further jobs.

    Raises:
        Refusal: it changes something else.
    """
    document = read_object(body)
    if document != {"accepting_jobs": False} or document["accepting_jobs"] is not False:  # 0 == False
        raise Refusal('a session may only be closed: {"accepting_jobs": false}')


def system_job(qpu: Qpu, body: bytes, url_of: Callable[[Bucket, str, str, int], str]) -> tuple[str, bytes]:
    """Return the id of a Quantum System's job, and its body with URLs that the site's key has signed.

    Args:
        qpu: the QPU.
        body: the job's body; its URLs are signed with the job's key, and open nothing.
        url_of: returns the URL for a bucket, a method, an object and a life in seconds.

    Raises:
        Refusal: it is for another backend, or its objects are elsewhere.
    """
    document = read_object(body)
    _require_keys(document, _SYSTEM_JOB_KEYS)
    require_backend(qpu, document.get("backend"))
    job, life_s = _id_of(document), _life_s(document)
    storage = document.get("storage")
    if qpu.bucket is None or not isinstance(storage, dict) or storage.keys() != STORAGE.keys():
        raise Refusal("a job's input, results and logs must be in the site's S3 bucket")
    signed = {}
    for kind, method in STORAGE.items():
        name = f"{kind}_{job}.json"
        _require_place(storage[kind], f"/{qpu.bucket.name}/{name}")
        signed[kind] = {"presigned_url": url_of(qpu.bucket, method, name, life_s), "type": "s3_compatible"}
    return job, json.dumps({**document, "storage": signed}).encode()


def _id_of(document: Mapping[str, Any]) -> str:
    job = document.get("id")
    if not isinstance(job, str) or not JOB_ID.fullmatch(job):
        raise Refusal("the job's id is not valid", 400)
    return job


def _life_s(document: Mapping[str, Any]) -> int:
    life_s = document.get("timeout_secs")
    if isinstance(life_s, bool) or not isinstance(life_s, int) or life_s < 1:
        raise Refusal("timeout_secs is not a number of seconds", 400)
    return life_s


def _require_place(item: Any, place: str) -> None:
    """Raise unless a URL of the job's leads to where QRMI puts an object of that kind."""
    if not isinstance(item, dict) or item.keys() != {"presigned_url", "type"} or item["type"] != "s3_compatible":
        raise Refusal("a job's input, results and logs must be in the site's S3 bucket")
    url = item["presigned_url"]
    if not isinstance(url, str) or not url.partition("?")[0].endswith(place):
        raise Refusal(
            "a job's input, results and logs must have the names that QRMI gives them in the site's S3 bucket"
        )


def _require_keys(document: Mapping[str, Any], allowed: Collection[str]) -> None:
    unknown = sorted(document.keys() - set(allowed))
    if unknown:
        raise Refusal(f"a job may not set {printable(', '.join(unknown), 100)}")


def only_own(body: bytes, kind: str, qpu: Qpu, own_jobs: Collection[str]) -> bytes:
    """Return a service's list without other users' jobs or other backends.

    Args:
        body: the service's answer.
        kind: the list in it: `jobs` or `devices`.
        qpu: the QPU.
        own_jobs: the ids of the jobs that are kept.

    Raises:
        Refusal: the list cannot be read; status 502.
    """
    try:
        items = json.loads(body)[kind]
        if kind == "jobs":
            kept = [item for item in items if item["id"] in own_jobs]
        else:
            kept = [item for item in items if item["name"] == qpu.name]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Refusal("the service sent an unreadable list", 502) from None
    return json.dumps({kind: kept}).encode()


def job_of(body: bytes) -> str:
    """Return the id of the job that a service's answer says it has made; empty where it says none."""
    try:
        job = json.loads(body)["id"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return job if isinstance(job, str) and JOB_ID.fullmatch(job) else ""
