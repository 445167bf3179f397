"""The rules: which requests a job's broker lets through. A list of what may pass; all else is refused.

What goes on to the service is written anew from what was recognised, so that no spelling of a path or a query, no key
that stands twice in a body, is read by the service otherwise than here.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote, urlencode

from qrmi_slurm.broker.spec import Qpu
from qrmi_slurm.names import BROKER_MARK
from qrmi_slurm.text import printable

# Ids of jobs and sessions: what a path can hold without a second meaning.
_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")

# Printable ASCII but `#`, which has no place in a request's target (RFC 9112, 3.2).
_TARGET: Final = re.compile(r"/[!\"$-~]*")

_OBJECT: Final = re.compile(r"(input|results|logs)_([A-Za-z0-9_-]{1,128})\.json")


class Service(StrEnum):
    """Who is asked."""

    IAM = "iam"
    COMPUTE_SERVICE = "api"
    QUANTUM_SYSTEM = "qs"
    S3 = "s3"


class Body(StrEnum):
    """What a request's body has to be."""

    NONE = "none"
    LOGIN = "login"
    JOB = "job"
    CLOSE = "close"
    OBJECT = "object"


class Refusal(Exception):
    """A request that goes no further; the message is for the job.

    Args:
        message: what is not allowed.
        status: HTTP status.
    """

    def __init__(self, message: str, status: int = 403) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


@dataclass(frozen=True, slots=True)
class Address:
    """What stands in front of a path: which QPU, which of its services.

    Args:
        place: of the QPU among those of the broker.
        service: `api`, `iam` or `s3`.
        path: the rest, beginning with a slash; still percent-encoded.
        query: behind the question mark; still percent-encoded.
    """

    place: int
    service: str
    path: str
    query: str


@dataclass(frozen=True, slots=True)
class Passage:
    """A request that may go on.

    Args:
        call: its name, for the log.
        service: who is asked.
        target: path and query there, behind the endpoint's own path.
        body: what its body has to be.
        name: of the object, for S3.
        makes_job: whether its answer names a job, which is this job's own then.
        keeps: which list of its answer, where it has what is not this job's, is cut down: `jobs` or `devices`.
    """

    call: str
    service: Service
    target: str
    body: Body = Body.NONE
    name: str = ""
    makes_job: bool = False
    keeps: str = ""


def address(target: str) -> Address:
    """Return what a request's target says.

    Raises:
        Refusal: it is not of the form that the job's environment has.
    """
    if not _TARGET.fullmatch(target):  # also `http://elsewhere/`, `*`, and what CONNECT names
        raise Refusal("the request's target is no path", 400)
    path, _, query = target.partition("?")
    parts = path.split("/", 4)
    if len(parts) != 5 or parts[1] != BROKER_MARK or not re.fullmatch(r"[0-9]{1,3}", parts[2]):
        raise Refusal("there is nothing at this path")
    if parts[3] not in ("api", "iam", "s3"):
        raise Refusal("there is nothing at this path")
    return Address(int(parts[2]), parts[3], f"/{parts[4]}", query)


def passage(qpu: Qpu, own_jobs: Collection[str], method: str, at: Address) -> Passage:
    """Return how a request goes on.

    Args:
        qpu: which it is addressed to.
        own_jobs: the ids of jobs that were made through this broker.
        method: GET, POST, ...
        at: where it is addressed to.

    Raises:
        Refusal: it may not.
    """
    if at.service == "iam":
        if (method, at.path, at.query) != ("POST", "/identity/token", ""):
            raise Refusal("of IAM there is a token to be had, and nothing else")
        return Passage("login", Service.IAM, "", Body.LOGIN)
    if at.service == "s3":
        return _of_s3(qpu, method, at)
    rules = _COMPUTE_SERVICE if qpu.session is not None else _QUANTUM_SYSTEM
    segments = at.path.split("/")[1:]
    for rule in rules:
        if rule.method == method and len(rule.segments) == len(segments):
            found = _match(rule, segments)
            if found is not None:
                return _allowed(rule, found, qpu, own_jobs, at.query)
    raise Refusal(f"a job with a broker may not {printable(method, 20)} {printable(at.path, 200)}")


@dataclass(frozen=True, slots=True)
class _Rule:
    """One call that may pass; `{backend}`, `{session}` and `{job}` are the job's own."""

    method: str
    path: str
    call: str
    service: Service
    query: tuple[str, ...] = ()
    body: Body = Body.NONE
    makes_job: bool = False
    keeps: str = ""

    @property
    def segments(self) -> list[str]:
        return self.path.split("/")[1:]


def _rules(service: Service, lines: str) -> tuple[_Rule, ...]:
    """Return the rules that a table says: method, path, call, then the query's names, the body, flags."""
    found = []
    for line in lines.split("\n"):
        words = line.split()
        if not words:
            continue
        method, path, call, *more = words
        options = dict(word.split("=", 1) for word in more)
        found.append(
            _Rule(
                method,
                path,
                call,
                service,
                query=tuple(options.get("query", "").split(",")) if "query" in options else (),
                body=Body(options.get("body", "none")),
                makes_job=options.get("makes") == "job",
                keeps=options.get("keeps", ""),
            )
        )
    return tuple(found)


# https://quantum.cloud.ibm.com/docs/api/qiskit-runtime-rest: what QRMI asks, and what stands beside it of a job's own.
_COMPUTE_SERVICE: Final = _rules(
    Service.COMPUTE_SERVICE,
    """
    GET    /backends                          list_backends          keeps=devices
    GET    /backends/{backend}/status         backend_status
    GET    /backends/{backend}/configuration  backend_configuration  query=calibration_id
    GET    /backends/{backend}/properties     backend_properties     query=updated_before,calibration_id
    GET    /backends/{backend}/defaults       backend_defaults
    GET    /sessions/{session}                get_session
    PATCH  /sessions/{session}                update_session         body=close
    DELETE /sessions/{session}/close          close_session
    POST   /jobs                              create_job             body=job makes=job
    GET    /jobs                              list_jobs              query=session_id,limit,offset,pending,program,backend,created_after,created_before,sort,exclude_params
    GET    /jobs/{job}                        get_job                query=exclude_params
    DELETE /jobs/{job}                        delete_job
    POST   /jobs/{job}/cancel                 cancel_job
    GET    /jobs/{job}/results                job_results
    GET    /jobs/{job}/interim_results        job_interim_results
    GET    /jobs/{job}/logs                   job_logs
    GET    /jobs/{job}/metrics                job_metrics
    GET    /jobs/{job}/transpiled_circuits    job_transpiled_circuits
    """,  # noqa: E501
)

_QUANTUM_SYSTEM: Final = _rules(
    Service.QUANTUM_SYSTEM,
    """
    GET    /v1/backends/{backend}                backend
    GET    /v1/backends/{backend}/configuration  backend_configuration
    GET    /v1/backends/{backend}/properties     backend_properties
    GET    /v1/backends/{backend}/defaults       backend_defaults
    GET    /v1/backends/{backend}/lanes          backend_lanes
    POST   /v1/jobs                              create_job             body=job makes=job
    GET    /v1/jobs                              list_jobs              keeps=jobs
    GET    /v1/jobs/{job}                        get_job
    DELETE /v1/jobs/{job}                        delete_job
    POST   /v1/jobs/{job}/cancel                 cancel_job
    """,
)


def _match(rule: _Rule, segments: list[str]) -> dict[str, str] | None:
    """Return what stands for the braces of a rule; None where the path is another one's."""
    found = {}
    for wanted, segment in zip(rule.segments, segments, strict=True):
        if wanted.startswith("{"):
            found[wanted[1:-1]] = segment
        elif wanted != segment:
            return None
    return found


def _allowed(rule: _Rule, found: Mapping[str, str], qpu: Qpu, own_jobs: Collection[str], query: str) -> Passage:
    backend = found.get("backend")
    if backend is not None and unquote(backend) != qpu.name:
        raise Refusal(f"this job's backend is {printable(qpu.name)}, and no other")
    session = found.get("session")
    if session is not None and session != qpu.session:
        raise Refusal("this session is not this job's")
    job = found.get("job")
    if job is not None and (not _ID.fullmatch(job) or job not in own_jobs):
        raise Refusal("this job was not made by this Slurm job")
    path = rule.path
    for name, value in (("backend", qpu.name), ("session", qpu.session or ""), ("job", job or "")):
        path = path.replace(f"{{{name}}}", quote(value, safe=""))
    return Passage(
        rule.call,
        rule.service,
        path + _query(rule, query, qpu),
        rule.body,
        makes_job=rule.makes_job,
        keeps=rule.keeps,
    )


def _query(rule: _Rule, query: str, qpu: Qpu) -> str:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), errors="strict", max_num_fields=32)
    except ValueError:
        raise Refusal("the query is none", 400) from None
    values = dict(pairs)
    if len(values) != len(pairs):
        raise Refusal("a name stands twice in the query", 400)
    unknown = sorted(values.keys() - set(rule.query))
    if unknown:
        raise Refusal(f"the query may not have {printable(', '.join(unknown), 100)}")
    # QRMI's status asks for all pending jobs of a backend: it is told of its own.
    if "session_id" in rule.query and values.setdefault("session_id", qpu.session or "") != qpu.session:
        raise Refusal("the jobs of this job's session may be listed, and no others: session_id")
    if values.get("backend", qpu.name) != qpu.name:
        raise Refusal(f"this job's backend is {printable(qpu.name)}, and no other")
    return f"?{urlencode(values)}" if values else ""


def _of_s3(qpu: Qpu, method: str, at: Address) -> Passage:
    if qpu.bucket is None:
        raise Refusal("this QPU has no S3")
    # The AWS library says in the query which call it makes; S3 ignores it.
    if at.query not in ("", "x-id=PutObject", "x-id=GetObject"):
        raise Refusal("the query may not be there")
    bucket, _, name = at.path[1:].partition("/")
    found = _OBJECT.fullmatch(name)
    if bucket != qpu.bucket.name or found is None:
        raise Refusal("this object is not this job's")
    if (method, found[1]) == ("PUT", "input"):
        return Passage("put_object", Service.S3, "", Body.OBJECT, name)
    if method == "GET":
        return Passage("get_object", Service.S3, "", name=name)
    raise Refusal(f"this object may not be had by {printable(method, 20)}")


# --- Bodies ------------------------------------------------------------------------------------------------

# What a request for a job may say, behind https://quantum.cloud.ibm.com/docs/api/qiskit-runtime-rest/tags/jobs. Not
# `start_session`, `runtime`, `remote_storage`: another session, another image, another place.
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
_STORAGE: Final = {"input": "GET", "results": "PUT", "logs": "PUT"}


def read_object(body: bytes) -> dict[str, Any]:
    """Return a JSON object each of whose keys stands once.

    Raises:
        Refusal: it is none; of two readers each could see another one.
    """
    try:
        document = json.loads(body.decode("utf-8"), object_pairs_hook=_without_twins, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Refusal("the body is no JSON object, or a key stands twice in it", 400) from None
    except MemoryError:
        raise Refusal("the body is too large", 413) from None
    if not isinstance(document, dict):
        raise Refusal("the body is no JSON object", 400)
    return document


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("twins")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(name)


def check_job(qpu: Qpu, body: bytes) -> None:
    """Raise unless a job is for the compute service, on this job's backend and in its session.

    Raises:
        Refusal: it is not.
    """
    document = read_object(body)
    _only(document, _JOB_KEYS)
    if document.get("backend") != qpu.name:
        raise Refusal(f"this job's backend is {printable(qpu.name)}, and no other")
    if document.get("session_id") != qpu.session:
        raise Refusal("a job has to run in this job's session: session_id")


def check_close(body: bytes) -> None:
    """Raise unless a session is to take no more jobs, and nothing else.

    Raises:
        Refusal: something else is asked.
    """
    document = read_object(body)
    if document != {"accepting_jobs": False} or document["accepting_jobs"] is not False:
        raise Refusal("of a session only its end may be asked")


def system_job(qpu: Qpu, body: bytes, url_of: Callable[[str, str, int], str]) -> tuple[str, bytes]:
    """Return a Quantum System job's id, and its request with URLs that the site's key has signed.

    Args:
        qpu: which.
        body: the request, with URLs that were signed with the job's key and open nothing.
        url_of: gives the URL for a method, an object and a life in seconds.

    Raises:
        Refusal: it is for another backend, or for objects elsewhere.
    """
    document = read_object(body)
    _only(document, _SYSTEM_JOB_KEYS)
    if document.get("backend") != qpu.name:
        raise Refusal(f"this job's backend is {printable(qpu.name)}, and no other")
    job, life_s, storage = document.get("id"), document.get("timeout_secs"), document.get("storage")
    if not isinstance(job, str) or not _ID.fullmatch(job):
        raise Refusal("the job's id is none", 400)
    if isinstance(life_s, bool) or not isinstance(life_s, int) or life_s < 1:
        raise Refusal("timeout_secs is no number of seconds", 400)
    if qpu.bucket is None or not isinstance(storage, dict) or storage.keys() != _STORAGE.keys():
        raise Refusal("a job's input, results and logs have to lie in the site's S3")
    written = {}
    for kind, method in _STORAGE.items():
        _require_place(storage[kind], f"/{qpu.bucket.name}/{kind}_{job}.json")
        written[kind] = {
            "presigned_url": url_of(method, f"{kind}_{job}.json", life_s),
            "type": "s3_compatible",
        }
    return job, json.dumps({**document, "storage": written}).encode()


def _require_place(item: Any, place: str) -> None:
    """Raise unless a URL of the job's leads to where QRMI puts an object of that kind."""
    if not isinstance(item, dict) or item.keys() != {"presigned_url", "type"} or item["type"] != "s3_compatible":
        raise Refusal("a job's input, results and logs have to lie in the site's S3")
    url = item["presigned_url"]
    if not isinstance(url, str) or not url.partition("?")[0].endswith(place):
        raise Refusal("a job's input, results and logs have to lie in the site's S3, under QRMI's names")


def _only(document: Mapping[str, Any], allowed: Collection[str]) -> None:
    unknown = sorted(document.keys() - set(allowed))
    if unknown:
        raise Refusal(f"a job may not have {printable(', '.join(unknown), 100)}")


def only_own(body: bytes, passage: Passage, qpu: Qpu, own_jobs: Collection[str]) -> bytes:
    """Return an answer with a list in it that has nothing of others: other users' jobs, other backends.

    Raises:
        Refusal: the service's list cannot be read; status 502.
    """
    try:
        items = json.loads(body)[passage.keeps]
        if passage.keeps == "jobs":
            kept = [item for item in items if item["id"] in own_jobs]
        else:
            kept = [item for item in items if item["name"] == qpu.name]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Refusal("the service's list cannot be read", 502) from None
    return json.dumps({passage.keeps: kept}).encode()


def job_of(body: bytes) -> str:
    """Return the id of the job that the service says it has made; empty where it says none."""
    try:
        job = json.loads(body)["id"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return job if isinstance(job, str) and _ID.fullmatch(job) else ""
