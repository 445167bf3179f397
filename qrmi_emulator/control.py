"""The control interface under `/_emulator/`: lets tests look into the emulator and steer it."""

import json
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, Rule
from werkzeug.wrappers import Request, Response

from qrmi_emulator import calls, wire
from qrmi_emulator.faults import FaultBook, FaultError, fault_from_json, fault_to_json
from qrmi_emulator.service import Service, ServiceError

PREFIX = "/_emulator"
_MAX_REQUESTS = 20_000
_LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})

_URLS = Map(
    [
        Rule(f"{PREFIX}/sessions", endpoint="sessions", methods=["GET"]),
        Rule(f"{PREFIX}/requests", endpoint="requests", methods=["GET"]),
        Rule(f"{PREFIX}/requests", endpoint="forget_requests", methods=["DELETE"]),
        Rule(f"{PREFIX}/counts", endpoint="counts", methods=["GET"]),
        Rule(f"{PREFIX}/calls", endpoint="calls", methods=["GET"]),
        Rule(f"{PREFIX}/faults", endpoint="faults", methods=["GET"]),
        Rule(f"{PREFIX}/faults", endpoint="add_fault", methods=["POST"]),
        Rule(f"{PREFIX}/faults", endpoint="remove_faults", methods=["DELETE"]),
        Rule(f"{PREFIX}/faults/<id>", endpoint="remove_fault", methods=["DELETE"]),
        Rule(f"{PREFIX}/release/<id>", endpoint="release", methods=["POST"]),
        Rule(f"{PREFIX}/backends", endpoint="backends", methods=["GET"]),
        Rule(f"{PREFIX}/backends/<name>", endpoint="set_backend", methods=["POST"]),
    ],
    strict_slashes=False,
)


@dataclass(slots=True)
class RequestRecord:
    """A request that was received.

    Args:
        method: HTTP method.
        path: as received, without the query.
        call: the call's name; empty if the service has no such call.
        status: HTTP status; None until it is answered.
        fault: kinds of the faults that hit it.
    """

    method: str
    path: str
    call: str
    status: int | None = None
    fault: str = ""


class RequestBook:
    """The most recent requests."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._records: deque[RequestRecord] = deque(maxlen=_MAX_REQUESTS)

    def add(self, record: RequestRecord) -> None:
        """Record a request; its `status` may be set later."""
        with self._lock:
            self._records.append(record)

    def clear(self) -> None:
        """Forget all requests."""
        with self._lock:
            self._records.clear()

    def to_json(self) -> list[dict[str, Any]]:
        """Return the requests, oldest first."""
        with self._lock:
            return [
                {"method": r.method, "path": r.path, "call": r.call, "status": r.status, "fault": r.fault}
                for r in self._records
            ]

    def counts(self) -> dict[str, int]:
        """Return how often each call was made."""
        with self._lock:
            return dict(sorted(Counter(record.call for record in self._records).items()))


class Control:
    """Answers requests to the control interface.

    Args:
        service: the service's state.
        faults: the faults that are set.
        requests: the requests that were received.
    """

    def __init__(self, service: Service, faults: FaultBook, requests: RequestBook) -> None:
        self._service = service
        self._faults = faults
        self._requests = requests

    def answer(self, request: Request) -> Response:
        """Carry out a request and return its answer, which may be a refusal."""
        refusal = _refusal(request)
        if refusal:
            return _json({"error": refusal}, 403)
        try:
            name, url = _URLS.bind("").match(request.path, request.method)
            if request.method == "POST" and request.mimetype != "application/json":
                return _json({"error": "the content type must be application/json"}, 415)
            return self._dispatch(str(name), url, _body(request) if request.method == "POST" else {})
        except HTTPException as error:
            return _json({"error": f"there is no {request.method} {request.path}"}, error.code or 404)
        except ServiceError as error:
            return _json({"error": error.message}, error.status)
        except FaultError as error:
            return _json({"error": str(error)}, 400)

    def _dispatch(self, name: str, url: Mapping[str, Any], body: Any) -> Response:
        match name:
            case "sessions":
                return _json([wire.session_summary(session) for session in self._service.sessions()])
            case "requests":
                return _json(self._requests.to_json())
            case "forget_requests":
                self._requests.clear()
                return Response(status=204)
            case "counts":
                return _json(self._requests.counts())
            case "calls":
                return _json(calls.NAMES)
            case "faults":
                return _json(self._faults.to_json())
            case "add_fault":
                spec = fault_from_json(body)
                if spec.call != "*" and spec.call not in calls.NAMES:
                    raise FaultError(f"there is no call {spec.call}", f"calls: {', '.join(calls.NAMES)}")
                return _json(fault_to_json(self._faults.add(spec)), 201)
            case "remove_faults":
                self._faults.remove()
                return Response(status=204)
            case "remove_fault":
                return _found(self._faults.remove(url["id"]), url["id"])
            case "release":
                return _found(self._faults.release(url["id"]), url["id"])
            case "backends":
                return _json([self._backend(backend.name) for backend in self._service.backends()])
            case _:
                return self._set_backend(url["name"], body)

    def _set_backend(self, name: str, body: Any) -> Response:
        if not isinstance(body, dict) or not set(body) <= {"status", "queue"}:
            raise ServiceError(400, "the body must be an object with status, queue or both")
        queue = body.get("queue")
        if queue is not None and (isinstance(queue, bool) or not isinstance(queue, int)):
            raise ServiceError(400, "queue must be a number")
        status = body.get("status")
        self._service.set_backend(name, None if status is None else str(status), queue)
        return _json(self._backend(name))

    def _backend(self, name: str) -> dict[str, Any]:
        backend = self._service.backend(name)
        return {"name": backend.name, "status": backend.status, "queue": backend.queue}


def _refusal(request: Request) -> str:
    """Return why a request may not control the emulator; empty if it may.

    A web page can make a browser on this machine send requests here, but those carry an Origin or the page's own Host.
    """
    host = request.host.rpartition(":")[0] if request.host.rpartition(":")[2].isdigit() else request.host
    if request.remote_addr not in {"127.0.0.1", "::1"} or host not in _LOOPBACK_NAMES:
        return "the control interface only answers requests from this machine"
    return "" if "Origin" not in request.headers else "the control interface does not answer requests from web pages"


def _body(request: Request) -> Any:
    data = request.get_data()
    try:
        return json.loads(data) if data else {}
    except ValueError as error:
        raise ServiceError(400, "the body is not JSON") from error


def _found(found: bool, fault_id: str) -> Response:
    return Response(status=204) if found else _json({"error": f"there is no fault {fault_id}"}, 404)


def _json(body: object, status: int = 200) -> Response:
    return Response(json.dumps(body), status, content_type="application/json")
