"""The service's JSON for sessions, jobs, backends and errors."""

from datetime import UTC, datetime
from typing import Any

from qrmi_emulator.service import (
    CANCELLED,
    ONLINE,
    QUEUED,
    RUNNING,
    TOO_LONG,
    Backend,
    Job,
    ServiceError,
    Session,
)

# The service has one page for all errors.
_MORE_INFO = "https://quantum.cloud.ibm.com/docs/errors"


def time_text(seconds: float | None) -> str | None:
    """Return a time as the service writes it: ISO 8601 in UTC with milliseconds."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def error_body(error: ServiceError, trace: str) -> dict[str, Any]:
    """Return the body of a refusal."""
    entry: dict[str, Any] = {"message": error.message, "more_info": _MORE_INFO}
    if error.code:
        entry["code"] = error.code
    return {"errors": [entry], "trace": trace}


def session_body(session: Session, active_ttl_s: int) -> dict[str, Any]:
    """Return the answer to `GET /sessions/{id}`."""
    state = "closed" if session.end else session.state
    times = [
        ("open", session.created_s),
        ("active", session.activated_s),
        ("closed", session.ended_s),
    ]
    return {
        "id": session.id,
        "backend_name": session.backend,
        "mode": session.mode,
        "state": state,
        "state_reason": f"Session was {session.end}." if session.end else "",
        "accepting_jobs": session.accepting,
        "max_ttl": session.max_ttl_s,
        "active_ttl": active_ttl_s,
        "interactive_ttl": min(60, session.max_ttl_s),
        "started_at": time_text(session.created_s),
        "activated_at": time_text(session.activated_s),
        "closed_at": time_text(session.ended_s),
        "timestamps": [{"status": name, "timestamp": time_text(at)} for name, at in times if at is not None],
        "user_id": "emulator",
        "elapsed_time": 0.0,
    }


def session_summary(session: Session) -> dict[str, Any]:
    """Return a session as the control interface shows it."""
    return {
        "id": session.id,
        "backend": session.backend,
        "state": session.state,
        "mode": session.mode,
        "max_ttl": session.max_ttl_s,
        "created": time_text(session.created_s),
        "closed": time_text(session.ended_s),
        "by": session.by or None,
    }


def job_body(job: Job, with_params: bool) -> dict[str, Any]:
    """Return the answer to `GET /jobs/{id}`."""
    state: dict[str, Any] = {"status": CANCELLED if job.status == TOO_LONG else job.status}
    if job.reason:
        state["reason"] = job.reason
    body: dict[str, Any] = {
        "id": job.id,
        "backend": job.backend,
        "state": state,
        "status": job.status,
        "program": {"id": job.program},
        "created": time_text(job.created_s),
        "cost": job.cost_s,
        "tags": [],
        "user_id": "emulator",
        "private": False,
        "usage": {"seconds": run_seconds(job)},
    }
    if job.session_id is not None:
        body["session_id"] = job.session_id
    if with_params:
        body["params"] = job.params
    return body


def job_metrics(job: Job, qiskit_version: str) -> dict[str, Any]:
    """Return the answer to `GET /jobs/{id}/metrics`."""
    seconds = run_seconds(job)
    times = {"created": job.created_s, "running": job.started_s, "finished": job.finished_s}
    return {
        "timestamps": {name: time_text(at) for name, at in times.items()},
        "usage": {"quantum_seconds": round(seconds), "seconds": round(seconds)},
        "bss": {"seconds": round(seconds)},
        "qiskit_version": qiskit_version,
    }


def run_seconds(job: Job) -> float:
    """Return how many seconds a job ran; 0 until it has ended."""
    if job.started_s is None or job.finished_s is None or job.status in {QUEUED, RUNNING}:
        return 0.0
    return round(job.finished_s - job.started_s, 3)


def backend_status(backend: Backend, queue: int, version: str) -> dict[str, Any]:
    """Return the answer to `GET /backends/{id}/status`."""
    online = backend.status == ONLINE
    return {
        "state": online,
        "status": "active" if online else backend.status,
        "message": "available" if online else f"The backend is {backend.status}.",
        "length_queue": queue,
        "backend_version": version,
    }


def backend_entry(backend: Backend, queue: int, configuration: dict[str, Any]) -> dict[str, Any]:
    """Return a backend's entry in the answer to `GET /backends`."""
    entry: dict[str, Any] = {
        "name": backend.name,
        "status": {"name": backend.status},
        "is_simulator": False,
        "qubits": configuration["n_qubits"],
        "queue_length": queue,
    }
    processor = configuration.get("processor_type")
    if isinstance(processor, dict):
        entry["processor_type"] = {key: str(value) for key, value in processor.items()}
    return entry
