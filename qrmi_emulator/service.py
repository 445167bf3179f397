"""The service's state: backends, sessions with their time to live, and jobs with their results."""

import threading
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

ONLINE, PAUSED, OFFLINE = "online", "paused", "offline"
BACKEND_STATUSES = frozenset({ONLINE, PAUSED, OFFLINE})
PROGRAMS = frozenset({"sampler", "estimator", "noiselearner"})
MODES = frozenset({"dedicated", "batch"})

QUEUED, RUNNING, COMPLETED = "Queued", "Running", "Completed"
CANCELLED, TOO_LONG, FAILED = "Cancelled", "Cancelled - Ran too long", "Failed"
PENDING = frozenset({QUEUED, RUNNING})

DEFAULT_MAX_TTL_S = 28800  # the service's: eight hours
_MAX_TTL_S = 2**31 - 1  # QRMI parses an i32
_MAX_FINISHED_JOBS = 500  # input and result of a wide job take half a MB
_MAX_ENDED_SESSIONS = 20_000


_T = TypeVar("_T")


class ServiceError(Exception):
    """The service refuses a call.

    Args:
        status: HTTP status.
        message: what is wrong.
        code: the service's error code; 0 if none is documented.
    """

    def __init__(self, status: int, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code


@dataclass(frozen=True, slots=True)
class Backend:
    """A backend and what it reports.

    Args:
        name: the name that it is served as.
        status: `online`, `paused` or `offline`; jobs only run while it is online.
        queue: waiting jobs that it reports in addition to the real ones.
    """

    name: str
    status: str = ONLINE
    queue: int = 0


@dataclass(frozen=True, slots=True)
class Session:
    """A session; times are seconds since the epoch.

    Args:
        id: its id.
        backend: the backend's name.
        mode: `dedicated` or `batch`.
        max_ttl_s: it expires this long after it was created.
        created_s: when it was created.
        activated_s: when its first job started; None before.
        accepting: whether it accepts jobs.
        ended_s: when it ended; None before.
        end: `closed`, `cancelled` or `expired`; empty until it has ended.
        by: the call that ended it, or `ttl`; empty until it has ended.
    """

    id: str
    backend: str
    mode: str
    max_ttl_s: int
    created_s: float
    activated_s: float | None = None
    accepting: bool = True
    ended_s: float | None = None
    end: str = ""
    by: str = ""

    @property
    def state(self) -> str:
        """`open`, `active`, `closed`, `cancelled` or `expired`."""
        return self.end or ("open" if self.activated_s is None else "active")


@dataclass(frozen=True, slots=True)
class Job:
    """A job; times are seconds since the epoch.

    Args:
        id: its id.
        backend: the backend's name.
        program: `sampler`, `estimator` or `noiselearner`.
        params: the program's input.
        session_id: its session; None outside a session.
        cost_s: seconds that it may run; 0 without a limit of its own.
        created_s: when it was created.
        started_s: when it started; None before.
        finished_s: when it ended; None before.
        status: as the service spells it.
        reason: why it failed or was cancelled.
        logs: its log lines.
        result: its results as JSON text; None unless it completed.
    """

    id: str
    backend: str
    program: str
    params: dict[str, Any]
    session_id: str | None
    cost_s: int
    created_s: float
    started_s: float | None = None
    finished_s: float | None = None
    status: str = QUEUED
    reason: str = ""
    logs: tuple[str, ...] = ()
    result: str | None = None

    @property
    def is_pending(self) -> bool:
        """Whether it is waiting or running."""
        return self.status in PENDING


class Service:
    """The service's state; all methods are thread-safe.

    Args:
        backends: names of the backends.
        clock: returns seconds since the epoch.
        new_id: returns an unused id.
    """

    def __init__(
        self,
        backends: Iterable[str],
        clock: Callable[[], float],
        new_id: Callable[[], str] = lambda: str(uuid.uuid4()),
    ) -> None:
        self._clock = clock
        self._new_id = new_id
        self._changed = threading.Condition(threading.RLock())
        self._backends = {name: Backend(name) for name in backends}
        self._sessions: dict[str, Session] = {}
        self._live: dict[str, float] = {}  # when each session that has not ended expires
        self._jobs: dict[str, Job] = {}

    # Backends

    def backends(self) -> tuple[Backend, ...]:
        """Return all backends, in the order in which they were given."""
        with self._changed:
            return tuple(self._backends.values())

    def backend(self, name: str) -> Backend:
        """Return one backend.

        Raises:
            ServiceError: 404.
        """
        with self._changed:
            if name not in self._backends:
                raise ServiceError(404, f"Backend {name} not found.", 1007)
            return self._backends[name]

    def set_backend(self, name: str, status: str | None, queue: int | None) -> Backend:
        """Change what a backend reports; None leaves a value unchanged.

        Raises:
            ServiceError: 404, or 400 for an unknown status or a negative queue.
        """
        if (status is not None and status not in BACKEND_STATUSES) or (queue or 0) < 0:
            raise ServiceError(400, f"status must be one of {', '.join(sorted(BACKEND_STATUSES))}, and queue 0 or more")
        with self._changed:
            old = self.backend(name)
            new = Backend(name, old.status if status is None else status, old.queue if queue is None else queue)
            self._backends[name] = new
            self._changed.notify_all()
            return new

    def queue_length(self, name: str) -> int:
        """Return how many waiting jobs a backend reports."""
        with self._changed:
            waiting = sum(job.backend == name and job.is_pending for job in self._jobs.values())
            return self.backend(name).queue + waiting

    # Sessions

    def create_session(self, backend: object, mode: object, max_ttl_s: object) -> Session:
        """Open a session; its time to live starts now.

        Raises:
            ServiceError: 404 for an unknown backend, 400 for an invalid mode or time to live.
        """
        if not isinstance(mode, str) or mode not in MODES:
            raise ServiceError(400, "mode must be one of dedicated, batch")
        ttl_s = DEFAULT_MAX_TTL_S if max_ttl_s is None else max_ttl_s
        if isinstance(ttl_s, bool) or not isinstance(ttl_s, int) or not 1 <= ttl_s <= _MAX_TTL_S:
            raise ServiceError(400, "max_ttl must be a number of seconds greater than 0")
        with self._changed:
            if not isinstance(backend, str):
                raise ServiceError(400, "backend is required")
            self.backend(backend)
            session = Session(self._new_id(), backend, mode, ttl_s, self._clock())
            self._sessions[session.id] = session
            self._live[session.id] = session.created_s + session.max_ttl_s
            _forget(self._sessions, _MAX_ENDED_SESSIONS, lambda old: bool(old.end))
            return session

    def session(self, session_id: str) -> Session:
        """Return a session.

        Raises:
            ServiceError: 404.
        """
        with self._changed:
            self._expire()
            if session_id not in self._sessions:
                raise ServiceError(404, f"Session {session_id} not found.")
            return self._sessions[session_id]

    def sessions(self) -> tuple[Session, ...]:
        """Return all sessions, oldest first."""
        with self._changed:
            self._expire()
            return tuple(self._sessions.values())

    def active_ttl_s(self, session: Session) -> int:
        """Return how many seconds a session has left, rounded down."""
        if session.end:
            return 0
        return max(0, int(session.created_s + session.max_ttl_s - self._clock()))

    def accept_jobs(self, session_id: str, accepting: bool) -> None:
        """Let a session accept jobs or not; a session that does not ends after its last job.

        Raises:
            ServiceError: 404, or 409 if an ended session should accept jobs again.
        """
        with self._changed:
            session = self.session(session_id)
            if session.end:
                if accepting:
                    raise ServiceError(409, f"Session {session_id} has been closed.")
                return
            self._sessions[session_id] = replace(session, accepting=accepting)
            self._settle(session_id)

    def cancel_session(self, session_id: str) -> None:
        """End a session: cancel its waiting jobs and let a running one finish. An ended session is left unchanged.

        Raises:
            ServiceError: 404.
        """
        with self._changed:
            if not self.session(session_id).end:
                self._end_session(session_id, "cancelled", "close_session", self._clock())

    # Jobs

    def create_job(self, backend: object, program: object, params: object, session_id: object, cost_s: object) -> Job:
        """Put a job in the queue.

        Raises:
            ServiceError: 404 for an unknown backend, program or session, 400 for a session that is closed or on
                another backend, or for invalid values.
        """
        if not isinstance(params, dict):
            raise ServiceError(400, "params must be an object")
        if session_id is not None and not isinstance(session_id, str):
            raise ServiceError(400, "session_id must be a string")
        cost = cost_s if isinstance(cost_s, int) and 0 < cost_s <= _MAX_TTL_S else 0
        with self._changed:
            if not isinstance(backend, str):
                raise ServiceError(400, "backend is required")
            self.backend(backend)
            if not isinstance(program, str) or program not in PROGRAMS:
                raise ServiceError(404, f"Program {program} not found.")
            if session_id is not None:
                session = self.session(session_id)
                if session.end or not session.accepting:
                    raise ServiceError(400, f"Session {session_id} has been closed.")
                if session.backend != backend:
                    raise ServiceError(400, f"Session {session_id} is for {session.backend}, not {backend}.")
            job = Job(self._new_id(), backend, program, params, session_id, cost, self._clock())
            self._jobs[job.id] = job
            _forget(self._jobs, _MAX_FINISHED_JOBS, lambda old: not old.is_pending)
            self._changed.notify_all()
            return job

    def job(self, job_id: str) -> Job:
        """Return a job.

        Raises:
            ServiceError: 404.
        """
        with self._changed:
            self._expire()
            if job_id not in self._jobs:
                raise ServiceError(404, f"Job {job_id} not found.")
            return self._jobs[job_id]

    def jobs(
        self,
        pending: bool | None = None,
        session_id: str | None = None,
        backend: str | None = None,
        program: str | None = None,
    ) -> tuple[Job, ...]:
        """Return the jobs that match every argument that is not None, newest first."""
        with self._changed:
            self._expire()
            return tuple(
                job
                for job in reversed(self._jobs.values())
                if (pending is None or job.is_pending == pending)
                and session_id in {None, job.session_id}
                and backend in {None, job.backend}
                and program in {None, job.program}
            )

    def cancel_job(self, job_id: str) -> None:
        """Cancel a waiting or running job.

        Raises:
            ServiceError: 404, or 409 if it has ended.
        """
        with self._changed:
            if not self.job(job_id).is_pending:
                raise ServiceError(409, f"Job {job_id} has already ended.")
            self._end_job(job_id, CANCELLED, "The job was cancelled by its user.")

    def delete_job(self, job_id: str) -> None:
        """Delete a job, and cancel it if it is waiting or running.

        Raises:
            ServiceError: 404.
        """
        with self._changed:
            if self.job(job_id).is_pending:
                self.cancel_job(job_id)
            del self._jobs[job_id]

    # For the workers

    def take_job(self, timeout_s: float) -> Job | None:
        """Mark the oldest job that can run as running and return it; None if there is none within `timeout_s`."""
        with self._changed:
            job = self._next_job()
            if job is None:
                self._changed.wait(timeout_s)
                job = self._next_job()
            if job is None:
                return None
            now = self._clock()
            job = self._jobs[job.id] = replace(job, status=RUNNING, started_s=now)
            if job.session_id in self._sessions:
                session = self._sessions[job.session_id]
                if session.activated_s is None:
                    self._sessions[session.id] = replace(session, activated_s=now)
            return job

    def is_running(self, job_id: str) -> bool:
        """Tell whether a job is still running, that is, neither cancelled nor deleted."""
        with self._changed:
            job = self._jobs.get(job_id)
            return job is not None and job.status == RUNNING

    def log(self, job_id: str, line: str) -> None:
        """Add a line to a job's log, unless the job was deleted."""
        with self._changed:
            if job_id in self._jobs:
                job = self._jobs[job_id]
                self._jobs[job_id] = replace(job, logs=(*job.logs, line))

    def complete_job(self, job_id: str, result: str) -> None:
        """Store a job's result, unless the job was cancelled meanwhile."""
        with self._changed:
            if self.is_running(job_id):
                self._end_job(job_id, COMPLETED, "", result)

    def fail_job(self, job_id: str, reason: str, status: str = FAILED) -> None:
        """Store why a job failed, in its state and its log, unless the job was cancelled meanwhile."""
        with self._changed:
            if self.is_running(job_id):
                self.log(job_id, reason)
                self._end_job(job_id, status, reason)

    def _next_job(self) -> Job | None:
        self._expire()
        for job in self._jobs.values():
            if job.status == QUEUED and self._backends[job.backend].status == ONLINE:
                return job
        return None

    def _end_job(self, job_id: str, status: str, reason: str, result: str | None = None) -> None:
        job = self._jobs[job_id]
        self._jobs[job_id] = replace(job, status=status, reason=reason, result=result, finished_s=self._clock())
        if job.session_id is not None:
            self._settle(job.session_id)

    def _settle(self, session_id: str) -> None:
        """End a session that accepts no jobs and has none left."""
        session = self._sessions.get(session_id)
        if session is None or session.end or session.accepting:
            return
        if not any(job.is_pending for job in self._jobs.values() if job.session_id == session_id):
            self._end_session(session_id, "closed", "update_session", self._clock())

    def _end_session(self, session_id: str, end: str, by: str, ended_s: float) -> None:
        del self._live[session_id]
        session = self._sessions[session_id]
        self._sessions[session_id] = replace(session, accepting=False, ended_s=ended_s, end=end, by=by)
        for job in list(self._jobs.values()):
            if job.session_id == session_id and job.status == QUEUED:
                self._end_job(job.id, CANCELLED, f"Its session was {end} before it ran.")

    def _expire(self) -> None:
        now = self._clock()
        for session_id, ends_s in list(self._live.items()):
            if ends_s <= now:
                self._end_session(session_id, "expired", "ttl", ends_s)


def _forget(items: dict[str, _T], most: int, may_go: Callable[[_T], bool]) -> None:
    """Drop the oldest items that may be dropped until `most` are left."""
    if len(items) <= most:
        return
    for name in [name for name, item in items.items() if may_go(item)][: len(items) - most]:
        del items[name]
