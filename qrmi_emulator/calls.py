"""The service's API: which call a request is, and how it is answered."""

import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, Rule
from werkzeug.wrappers import Request, Response

from qrmi_emulator import wire
from qrmi_emulator.devices import Device
from qrmi_emulator.iam import IamError, TokenIssuer
from qrmi_emulator.service import COMPLETED, Job, Service, ServiceError

# QRMI's documentation has both .../api and .../api/v1 as the endpoint; users also write it without either.
PREFIXES = ("/api/v1", "/api")
IAM_TOKEN = "iam_token"  # noqa: S105 the name of a call

_DEFAULT_LIMIT, _MAX_LIMIT = 10, 200
# QRMI reads results and logs as text; it would refuse a JSON object.
_TEXT = "text/plain; charset=utf-8"

URLS = Map(
    [
        Rule("/identity/token", endpoint=IAM_TOKEN, methods=["POST"]),
        Rule("/backends", endpoint="list_backends", methods=["GET"]),
        Rule("/backends/<name>/status", endpoint="backend_status", methods=["GET"]),
        Rule("/backends/<name>/configuration", endpoint="backend_configuration", methods=["GET"]),
        Rule("/backends/<name>/properties", endpoint="backend_properties", methods=["GET"]),
        Rule("/backends/<name>/defaults", endpoint="backend_defaults", methods=["GET"]),
        Rule("/sessions", endpoint="create_session", methods=["POST"]),
        Rule("/sessions/<id>", endpoint="get_session", methods=["GET"]),
        Rule("/sessions/<id>", endpoint="update_session", methods=["PATCH"]),
        Rule("/sessions/<id>/close", endpoint="close_session", methods=["DELETE"]),
        Rule("/jobs", endpoint="create_job", methods=["POST"]),
        Rule("/jobs", endpoint="list_jobs", methods=["GET"]),
        Rule("/jobs/<id>", endpoint="get_job", methods=["GET"]),
        Rule("/jobs/<id>", endpoint="delete_job", methods=["DELETE"]),
        Rule("/jobs/<id>/cancel", endpoint="cancel_job", methods=["POST"]),
        Rule("/jobs/<id>/results", endpoint="job_results", methods=["GET"]),
        Rule("/jobs/<id>/interim_results", endpoint="job_interim_results", methods=["GET"]),
        Rule("/jobs/<id>/logs", endpoint="job_logs", methods=["GET"]),
        Rule("/jobs/<id>/metrics", endpoint="job_metrics", methods=["GET"]),
    ],
    strict_slashes=False,
    merge_slashes=False,
)
NAMES = tuple(sorted({rule.endpoint for rule in URLS.iter_rules()}))


@dataclass(frozen=True, slots=True)
class Call:
    """A recognized request.

    Args:
        name: the call's stable name.
        arguments: the variable parts of its path.
    """

    name: str
    arguments: Mapping[str, Any]


def service_path(path: str) -> str:
    """Return a path without the endpoint's prefix: `/api/v1/jobs` is `/jobs`."""
    for prefix in PREFIXES:
        if path.startswith(f"{prefix}/"):
            return path.removeprefix(prefix)
    return path


def recognize(method: str, path: str) -> Call | None:
    """Return the call that a request makes; None if the service has no such call."""
    try:
        name, arguments = URLS.bind("").match(service_path(path), method)
    except HTTPException:
        return None
    return Call(str(name), arguments)


class Calls:
    """Answers calls.

    Args:
        service: the service's state.
        issuer: issues and checks bearer tokens.
        devices: configuration and properties of each served backend.
        crn: the service instance that is accepted.
    """

    def __init__(self, service: Service, issuer: TokenIssuer, devices: Mapping[str, Device], crn: str) -> None:
        self._service = service
        self._issuer = issuer
        self._devices = devices
        self._crn = crn
        self._handlers: dict[str, Callable[[Request, Mapping[str, Any]], Response]] = {
            "list_backends": self._list_backends,
            "backend_status": self._backend_status,
            "backend_configuration": lambda _, url: _json(self._device(url["name"]).configuration),
            "backend_properties": lambda _, url: _json(self._device(url["name"]).properties),
            "backend_defaults": self._backend_defaults,
            "create_session": self._create_session,
            "get_session": lambda _, url: self._session(url["id"]),
            "update_session": self._update_session,
            "close_session": self._close_session,
            "create_job": self._create_job,
            "list_jobs": self._list_jobs,
            "get_job": self._get_job,
            "delete_job": self._delete_job,
            "cancel_job": self._cancel_job,
            "job_results": self._job_results,
            "job_interim_results": lambda _, url: self._text(url["id"], ""),
            "job_logs": self._job_logs,
            "job_metrics": self._job_metrics,
        }

    def answer(self, call: Call | None, request: Request) -> Response:
        """Carry out a call and return its answer, which may be a refusal."""
        if call is not None and call.name == IAM_TOKEN:
            return self._token(request)
        try:
            self._check_caller(request)
            if call is None:
                raise ServiceError(404, f"There is no {request.method} {request.path}.")
            return self._handlers[call.name](request, call.arguments)
        except ServiceError as error:
            return _json(wire.error_body(error, uuid.uuid4().hex), error.status)

    def _check_caller(self, request: Request) -> None:
        if not self._issuer.accepts(request.headers.get("Authorization")):
            raise ServiceError(401, "Invalid credentials.", 1201)
        if request.headers.get("Service-CRN") != self._crn:
            raise ServiceError(401, "These credentials do not give access to the instance in Service-CRN.", 1201)

    def _token(self, request: Request) -> Response:
        form = request.form
        try:
            token = self._issuer.issue(form.get("grant_type"), form.get("apikey"))
        except IamError as error:
            body = {"errorCode": error.code, "errorMessage": error.message, "context": {"requestId": "emulator"}}
            return _json(body, 400)
        return _json(
            {
                "access_token": token.text,
                "refresh_token": "not_supported",
                "token_type": "Bearer",
                "expires_in": self._issuer.lifetime_s,
                "expiration": int(token.expires_s),
                "scope": "ibm openid",
            }
        )

    def _device(self, name: str) -> Device:
        self._service.backend(name)
        return self._devices[name]

    def _list_backends(self, _: Request, url: Mapping[str, Any]) -> Response:
        entries = [
            wire.backend_entry(
                backend,
                self._service.queue_length(backend.name),
                self._devices[backend.name].configuration,
            )
            for backend in self._service.backends()
        ]
        return _json({"devices": entries})

    def _backend_status(self, _: Request, url: Mapping[str, Any]) -> Response:
        backend = self._service.backend(url["name"])
        version = str(self._devices[backend.name].configuration.get("backend_version", "1.0.0"))
        return _json(wire.backend_status(backend, self._service.queue_length(backend.name), version))

    def _backend_defaults(self, _: Request, url: Mapping[str, Any]) -> Response:
        self._service.backend(url["name"])
        raise ServiceError(404, f"Backend {url['name']} has no pulse defaults.")

    def _create_session(self, request: Request, _: Mapping[str, Any]) -> Response:
        body = _object(request)
        backend = body.get("backend") or body.get("backend_name")
        session = self._service.create_session(backend, body.get("mode", "dedicated"), body.get("max_ttl"))
        return self._session(session.id)

    def _session(self, session_id: str) -> Response:
        session = self._service.session(session_id)
        return _json(wire.session_body(session, self._service.active_ttl_s(session)))

    def _update_session(self, request: Request, url: Mapping[str, Any]) -> Response:
        accepting = _object(request).get("accepting_jobs")
        if not isinstance(accepting, bool):
            raise ServiceError(400, "accepting_jobs must be true or false")
        self._service.accept_jobs(url["id"], accepting)
        return Response(status=204)

    def _close_session(self, _: Request, url: Mapping[str, Any]) -> Response:
        self._service.cancel_session(url["id"])
        return Response(status=204)

    def _create_job(self, request: Request, _: Mapping[str, Any]) -> Response:
        body = _object(request)
        job = self._service.create_job(
            body.get("backend"),
            body.get("program_id"),
            body.get("params"),
            body.get("session_id"),
            body.get("cost"),
        )
        answer = {"id": job.id, "backend": job.backend, "private": False}
        if job.session_id is not None:
            answer["session_id"] = job.session_id
        return _json(answer)

    def _list_jobs(self, request: Request, _: Mapping[str, Any]) -> Response:
        query = request.args
        limit = min(query.get("limit", _DEFAULT_LIMIT, type=int), _MAX_LIMIT)
        offset = max(query.get("offset", 0, type=int), 0)
        jobs = self._service.jobs(
            pending=_flag(query.get("pending")),
            session_id=query.get("session_id"),
            backend=query.get("backend"),
            program=query.get("program"),
        )
        with_params = not _flag(query.get("exclude_params"))
        shown = [wire.job_body(job, with_params) for job in jobs[offset : offset + max(limit, 0)]]
        return _json({"jobs": shown, "count": len(jobs), "offset": offset, "limit": limit})

    def _get_job(self, request: Request, url: Mapping[str, Any]) -> Response:
        return _json(wire.job_body(self._service.job(url["id"]), not _flag(request.args.get("exclude_params"))))

    def _delete_job(self, _: Request, url: Mapping[str, Any]) -> Response:
        self._service.delete_job(url["id"])
        return Response(status=204)

    def _cancel_job(self, _: Request, url: Mapping[str, Any]) -> Response:
        self._service.cancel_job(url["id"])
        return Response(status=204)

    def _job_results(self, _: Request, url: Mapping[str, Any]) -> Response:
        job = self._service.job(url["id"])
        if job.status != COMPLETED or job.result is None:
            raise ServiceError(404, f"Job {job.id} has no results: it is {job.status}.")
        return Response(job.result, content_type=_TEXT)

    def _job_logs(self, _: Request, url: Mapping[str, Any]) -> Response:
        return self._text(url["id"], "".join(f"{line}\n" for line in self._service.job(url["id"]).logs))

    def _text(self, job_id: str, text: str) -> Response:
        self._service.job(job_id)
        return Response(text, content_type=_TEXT)

    def _job_metrics(self, _: Request, url: Mapping[str, Any]) -> Response:
        job: Job = self._service.job(url["id"])
        return _json(wire.job_metrics(job, _qiskit_version()))


def _object(request: Request) -> dict[str, Any]:
    """Return a request's JSON object.

    Raises:
        ServiceError: 400.
    """
    try:
        body = json.loads(request.get_data())
    except ValueError as error:
        raise ServiceError(400, "The body is not JSON.") from error
    if not isinstance(body, dict):
        raise ServiceError(400, "The body is not a JSON object.")
    return body


def _flag(text: str | None) -> bool | None:
    return None if text is None else text.lower() == "true"


def _json(body: object, status: int = 200) -> Response:
    return Response(json.dumps(body), status, content_type="application/json")


def _qiskit_version() -> str:
    try:
        return version("qiskit")
    except PackageNotFoundError:
        return ""
