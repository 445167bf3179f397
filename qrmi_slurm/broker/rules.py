"""The rules: which requests a job's broker lets through. They are a list of what may pass; anything else is refused.

The target for the service is rebuilt from what was recognized here, so that no spelling of a path or a query means
something else to the service.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from urllib.parse import parse_qsl, quote, unquote, urlencode

from qrmi_slurm.broker.refusal import Refusal
from qrmi_slurm.broker.spec import Qpu
from qrmi_slurm.names import BROKER_MARK
from qrmi_slurm.text import printable

# Printable ASCII except `#`, which a request's target cannot hold (RFC 9112, 3.2).
_TARGET: Final = re.compile(r"/[!\"$-~]*")

# Ids of jobs at the service: only what has a single meaning in a path.
JOB_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")

_OBJECT: Final = re.compile(r"(input|results|logs)_([A-Za-z0-9_-]{1,128})\.json")

NOTHING_HERE: Final = "there is nothing at this path"


class Service(StrEnum):
    """The services that a request may go to."""

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


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a request's target leads.

    Args:
        index: the QPU's place among the broker's.
        service: `api`, `iam` or `s3`.
        path: the rest of the path, beginning with a slash; percent-encoded.
        query: the query; percent-encoded.
    """

    index: int
    service: str
    path: str
    query: str


@dataclass(frozen=True, slots=True)
class Permit:
    """What a request may ask of a service.

    Args:
        call: the call's name, for the log.
        service: the service to ask.
        target: path and query there, below the endpoint's own path.
        body: what the request's body has to be.
        name: the object's name, for S3.
        makes_job: whether the answer holds the id of a new job, which is this job's own from then on.
        filters: the list in the answer that is cut down to this job's own, `jobs` or `devices`; empty for none.
    """

    call: str
    service: Service
    target: str
    body: Body = Body.NONE
    name: str = ""
    makes_job: bool = False
    filters: str = ""


def destination(target: str) -> Destination:
    """Return where a request's target leads.

    Raises:
        Refusal: it does not have the form of the addresses in the job's environment.
    """
    if not _TARGET.fullmatch(target):  # also `http://elsewhere/`, `*`, and what CONNECT names
        raise Refusal("the request target is not a path", 400)
    path, _, query = target.partition("?")
    parts = path.split("/", 4)
    if len(parts) != 5 or parts[1] != BROKER_MARK or not re.fullmatch(r"[0-9]{1,3}", parts[2]):
        raise Refusal(NOTHING_HERE)
    if parts[3] not in ("api", "iam", "s3"):
        raise Refusal(NOTHING_HERE)
    return Destination(int(parts[2]), parts[3], f"/{parts[4]}", query)


def permit(qpu: Qpu, own_jobs: Collection[str], method: str, at: Destination) -> Permit:
    """Return what a request may ask of its service.

    Args:
        qpu: the QPU that it is for.
        own_jobs: the ids of jobs that were submitted through this broker.
        method: GET, POST, ...
        at: where it leads.

    Raises:
        Refusal: it must not pass.
    """
    if at.service == "iam":
        if (method, at.path, at.query) != ("POST", "/identity/token", ""):
            raise Refusal("IAM may only be asked for a token: POST /identity/token")
        return Permit("login", Service.IAM, "", Body.LOGIN)
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


def require_backend(qpu: Qpu, name: object) -> None:
    """Raise unless a backend is the job's.

    Raises:
        Refusal: it is another one.
    """
    if name != qpu.name:
        raise Refusal(f"this job may only use the backend {printable(qpu.name)}")


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
    filters: str = ""

    @property
    def segments(self) -> list[str]:
        return self.path.split("/")[1:]


def _rules(service: Service, lines: str) -> tuple[_Rule, ...]:
    """Return the rules in a table: method, path, call, then options for the query's names, the body and the answer."""
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
                filters=options.get("filters", ""),
            )
        )
    return tuple(found)


# https://quantum.cloud.ibm.com/docs/api/qiskit-runtime-rest: what QRMI asks, and what else concerns only a job's own.
_COMPUTE_SERVICE: Final = _rules(
    Service.COMPUTE_SERVICE,
    """
    GET    /backends                          list_backends          filters=devices
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
    GET    /v1/jobs                              list_jobs              filters=jobs
    GET    /v1/jobs/{job}                        get_job
    DELETE /v1/jobs/{job}                        delete_job
    POST   /v1/jobs/{job}/cancel                 cancel_job
    """,
)


def _match(rule: _Rule, segments: list[str]) -> dict[str, str] | None:
    """Return what a path has for a rule's braces; None where the path does not match."""
    found = {}
    for wanted, segment in zip(rule.segments, segments, strict=True):
        if wanted.startswith("{"):
            found[wanted[1:-1]] = segment
        elif wanted != segment:
            return None
    return found


def _allowed(rule: _Rule, found: Mapping[str, str], qpu: Qpu, own_jobs: Collection[str], query: str) -> Permit:
    if "backend" in found:
        require_backend(qpu, unquote(found["backend"]))
    if found.get("session", qpu.session) != qpu.session:
        raise Refusal("this is not this job's session")
    job = found.get("job", "")
    if "job" in found and (not JOB_ID.fullmatch(job) or job not in own_jobs):
        raise Refusal("this job was not submitted by this Slurm job")
    path = rule.path
    for name, value in (("backend", qpu.name), ("session", qpu.session or ""), ("job", job)):
        path = path.replace(f"{{{name}}}", quote(value, safe=""))
    target = path + _query(rule, query, qpu)
    return Permit(rule.call, rule.service, target, rule.body, makes_job=rule.makes_job, filters=rule.filters)


def _query(rule: _Rule, query: str, qpu: Qpu) -> str:
    """Return the query for the service with its question mark; empty where there is none."""
    values = _parse_query(query)
    unknown = sorted(values.keys() - set(rule.query))
    if unknown:
        raise Refusal(f"the query may not contain {printable(', '.join(unknown), 100)}")
    # QRMI's status asks for all pending jobs of a backend: it is answered with the session's.
    if "session_id" in rule.query and values.setdefault("session_id", qpu.session or "") != qpu.session:
        raise Refusal("only the jobs of this job's session may be listed: session_id")
    require_backend(qpu, values.get("backend", qpu.name))
    return f"?{urlencode(values)}" if values else ""


def _parse_query(query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query), errors="strict", max_num_fields=32)
    except ValueError:
        raise Refusal("the query cannot be parsed", 400) from None
    values = dict(pairs)
    if len(values) != len(pairs):
        raise Refusal("a name occurs twice in the query", 400)
    return values


def _of_s3(qpu: Qpu, method: str, at: Destination) -> Permit:
    if qpu.bucket is None:
        raise Refusal("this QPU has no S3 bucket")
    # The AWS library puts the name of its call into the query; S3 ignores it.
    if at.query not in ("", "x-id=PutObject", "x-id=GetObject"):
        raise Refusal("an object's URL may not have this query")
    bucket, _, name = at.path[1:].partition("/")
    found = _OBJECT.fullmatch(name)
    if bucket != qpu.bucket.name or found is None:
        raise Refusal("this is not an object of this job")
    if (method, found[1]) == ("PUT", "input"):
        return Permit("put_object", Service.S3, "", Body.OBJECT, name)
    if method == "GET":
        return Permit("get_object", Service.S3, "", name=name)
    raise Refusal(f"a job may not {printable(method, 20)} this object")
