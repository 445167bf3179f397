"""The backend: QRMI itself, called in one child process per QPU so that its faults cost one QPU and no hook.

QRMI reads its variables from the process environment, has no time limit on a request, and may panic or crash
in native code. Hence each call gets a child with a clean environment, its own session (a signal to the
hook's process group does not reach it half-way through a request) and an alarm that ends it at the deadline
even where the hook itself is gone. The children are forked, not started: importing QRMI costs 13 ms once. Only one
that becomes a user starts anew: in a fork's memory are the credentials of every QPU.
"""

import contextlib
import json
import os
import pwd
import re
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any, Final, Literal, NamedTuple, NoReturn

from qrmi_slurm.calls import ca_bundle, confinement
from qrmi_slurm.config.resource_types import describe, matching_member
from qrmi_slurm.errors import BackendError
from qrmi_slurm.names import ACQUISITION_TOKEN, RUST_LOG, of_resource
from qrmi_slurm.secret import Secret, masked_repr
from qrmi_slurm.slurm.selection import name_fault

Action = Literal["acquire", "release", "check", "discover"]

# What a child may say in answer and in log lines before the rest is thrown away. A token is some 40 bytes, an
# error repeats at most the service's answer.
_MAX_ANSWER_BYTES: Final = 64 * 1024
_MAX_LOG_BYTES: Final = 256 * 1024

# QRMI logs little at `info`; at `trace`, with all of its HTTP client's, a few hundred lines. Each is one of syslog, and
# what a service answers may have as many line breaks as bytes.
_MAX_LOG_LINES: Final = 1000

# A refusal repeats what the service or a proxy answered, which may be a page; far below _MAX_ANSWER_BYTES when escaped.
_MAX_REASON_CHARS: Final = 4096

# How many QPUs behind one dynamic resource are looked at.
_MAX_FOUND: Final = 100

# QRMI's words for a login at IAM that failed (ibm/quantum_compute_service.rs), after which it goes on without one.
_LOGIN_FAILED: Final = "Token renewal failed"

# QRMI's exceptions that come before a request, or stand for an answer of the service that says no (from 0.26).
_REFUSALS: Final = frozenset(
    {
        "AuthenticationFailedError",
        "ConfigError",
        "EnvVarNotSetError",
        "InvalidInputError",
        "ResourceNotFoundError",
        "TaskNotFoundError",
        "UnsupportedFunctionError",
    }
)

# How long poll(2) is asked to wait at once; it takes no more than 24 days.
_MAX_POLL_MS: Final = 60_000

# How much later than the hook's own deadline the child's alarm goes off: it is for the case without a hook.
_ALARM_GRACE_S: Final = 1.0

# QRMI's log level in hooks, where the admin set none with --env:RUST_LOG.
_HOOK_LOG_LEVEL: Final = "info"


class Verdict(StrEnum):
    """How a call ended."""

    DONE = "done"
    GONE = "gone"  # release only: the service does not know the session any more, so nothing is held
    REFUSED = "refused"  # the service said no, or was not asked: nothing was acquired
    UNANSWERED = "unanswered"  # no answer, or none that says so: what the service did is not known


class Call(NamedTuple):
    """One thing to ask QRMI.

    Args:
        resource: the resource's name.
        type: its type as configured.
        action: acquire it, release what was acquired, only check whether it can be used, or discover the QPUs
            behind it.
        environment: the child's whole environment; secrets in it, so never in a repr.
        token: what acquire returned; for release.
        run_as_uid: the user to run as, where the user supplied any of the variables; None is root.
        journal_fd: an open file that the child writes an acquired token to before it answers, so that a token
            outlives the hook; None where nothing is acquired.
    """

    resource: str
    type: str
    action: Action
    environment: Mapping[str, str]
    token: Secret | None = None
    run_as_uid: int | None = None
    journal_fd: int | None = None

    def __repr__(self) -> str:
        return masked_repr(self, "environment")


class Availability(NamedTuple):
    """What QRMI says of a QPU that is checked.

    Args:
        state: `online`, `offline`, `paused`, or what a newer QRMI calls it; `unknown` where the type cannot tell.
        reason: the service's words for it; may be empty. Mask before showing.
        pending_jobs: how many jobs wait for it; None where the service does not tell.
    """

    state: str
    reason: str = ""
    pending_jobs: int | None = None


class Answer(NamedTuple):
    """What came of a call.

    Args:
        call: the call.
        verdict: how it ended.
        token: what acquire returned, where it is done.
        reason: why it did not end well; empty otherwise. May hold what the service said: mask before showing.
        duration_s: how long it took, in seconds.
        log: QRMI's own log records, a line each. Mask before showing.
        availability: what a check was told, where it is done.
        found: the online QPUs that were discovered, the least busy first.
    """

    call: Call
    verdict: Verdict
    token: Secret | None
    reason: str
    duration_s: float
    log: tuple[str, ...]
    availability: Availability | None = None
    found: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return masked_repr(self, "reason", "log")


class _Child(NamedTuple):
    """A running call, and what it has written so far."""

    call: Call
    pid: int
    started_s: float
    answer_fd: int
    log_fd: int
    answer: bytearray
    log: bytearray


def known_members() -> tuple[str, ...]:
    """Return the resource types that the installed QRMI knows, by the names of its `ResourceType` members.

    Raises:
        BackendError: QRMI cannot be imported.
    """
    qrmi = _import_qrmi()
    return tuple(name for name in dir(qrmi.ResourceType) if name[0].isalpha())


def installed_type(type_name: str, members: Sequence[str]) -> str:
    """Return the type name under which the installed QRMI serves a configured one: itself, or its successor.

    In the spelling that QRMI's own QRMIService knows, which takes `OQTOPUS` or `IBMQuantumSystem` for no type.

    Args:
        type_name: as configured.
        members: from `known_members`.

    Raises:
        BackendError: this QRMI knows neither.
    """
    known = describe(type_name)
    for candidate in (known.name, known.successor):
        if candidate and matching_member(candidate, members):
            return candidate
    raise BackendError(
        f"the installed QRMI does not know the resource type {type_name}",
        f"it knows {', '.join(members)}; an admin can install another version of qrmi",
    )


def run(calls: Sequence[Call], timeout_s: float, on_answers: Callable[[Sequence[Answer]], None]) -> None:
    """Run calls side by side, and report each soon after it ends.

    Args:
        calls: what to ask.
        timeout_s: how long all of them together may take, in seconds; then what still runs is killed.
        on_answers: gets each answer once, in the order of their ends; those that came while it was busy, together.

    Raises:
        BackendError: QRMI cannot be imported.
    """
    if not calls:
        return
    _import_qrmi()  # once, before the forks: the children share its pages
    deadline_s = time.monotonic() + timeout_s
    believed = ca_bundle.variables()
    children: list[_Child] = []
    try:
        for call in calls:
            try:
                children.append(_start(call, believed, timeout_s + _ALARM_GRACE_S))
            except OSError as error:  # out of processes or descriptors: this one was not asked
                reason = f"no process for QRMI could be started: {error.strerror}"
                on_answers([Answer(call, Verdict.REFUSED, None, reason, 0.0, ())])
        pipes = _Pipes(children)
        while children and (left_s := deadline_s - time.monotonic()) > 0:
            ended = pipes.read(left_s)
            for child in ended:
                children.remove(child)
            if ended:
                on_answers([_finish(child, killed_after_s=None) for child in ended])
    finally:
        for child in children:
            os.kill(child.pid, signal.SIGKILL)
    if children:
        on_answers([_finish(child, killed_after_s=timeout_s) for child in children])


class _Pipes:
    """What children write in answer and as log, read as it comes."""

    def __init__(self, children: Sequence[_Child]) -> None:
        self._child_of = {fd: child for child in children for fd in (child.answer_fd, child.log_fd)}
        self._poll = select.poll()  # selectors takes 0.4 ms to load
        for fd in self._child_of:
            self._poll.register(fd, select.POLLIN)

    def read(self, wait_s: float) -> list[_Child]:
        """Read what there is, and return the children that have ended; wait for something, but not for longer."""
        ended = []
        for fd, _ in self._poll.poll(min(int(wait_s * 1000) + 1, _MAX_POLL_MS)):
            child = self._child_of.get(fd)
            if child is None:  # its log, and it has ended
                continue
            is_answer = fd == child.answer_fd
            buffer, bound = (child.answer, _MAX_ANSWER_BYTES) if is_answer else (child.log, _MAX_LOG_BYTES)
            chunk = os.read(fd, 65536)
            buffer += chunk[: bound - len(buffer)]
            if not chunk:
                self._drop(fd)
                if is_answer:
                    self._drop(child.log_fd)
                    ended.append(child)
        return ended

    def _drop(self, fd: int) -> None:
        if self._child_of.pop(fd, None) is not None:
            self._poll.unregister(fd)


def _start(call: Call, believed: Mapping[str, str], alarm_s: float) -> _Child:
    pipes: list[int] = []
    try:
        pipes += os.pipe()
        pipes += os.pipe()
        started_s = time.monotonic()
        pid = os.fork()
    except OSError:
        for fd in pipes:
            os.close(fd)
        raise
    answer_read, answer_write, log_read, log_write = pipes
    if pid == 0:
        _be_child(call, believed, answer_write, log_write, alarm_s)
    os.close(answer_write)
    os.close(log_write)
    return _Child(call, pid, started_s, answer_read, log_read, bytearray(), bytearray())


def _finish(child: _Child, *, killed_after_s: float | None) -> Answer:
    _, status = os.waitpid(child.pid, 0)
    duration_s = time.monotonic() - child.started_s
    _drain_log(child)
    os.close(child.answer_fd)
    os.close(child.log_fd)
    lines = tuple(child.log.decode("utf-8", "replace").splitlines()[:_MAX_LOG_LINES])
    if killed_after_s is not None:
        verdict, token, reason = Verdict.UNANSWERED, None, f"no answer within {max(round(killed_after_s, 1), 0.1):g} s"
    else:
        verdict, token, reason = _read_answer(bytes(child.answer), os.waitstatus_to_exitcode(status))
    login_failure = next((line for line in lines if _LOGIN_FAILED in line), "")
    if login_failure and verdict is not Verdict.DONE:
        # QRMI goes on without a token, is refused, and reports that; the cause stands in its log alone. Not even a
        # 404 tells anything of a session then: it may be a gateway's.
        reason = f"{reason}; {login_failure[login_failure.index(_LOGIN_FAILED) :]}"
        if child.answer:
            verdict = Verdict.REFUSED  # without a login the service has done nothing
    told = json.loads(child.answer) if verdict is Verdict.DONE else {}
    return Answer(child.call, verdict, token, reason, duration_s, lines, _availability_of(told), _found_of(told))


def _drain_log(child: _Child) -> None:
    """Read what the pipe still holds of a child that has ended."""
    os.set_blocking(child.log_fd, False)
    with contextlib.suppress(BlockingIOError):
        while chunk := os.read(child.log_fd, 65536):
            child.log.extend(chunk[: _MAX_LOG_BYTES - len(child.log)])


def _read_answer(content: bytes, exit_code: int) -> tuple[Verdict, Secret | None, str]:
    try:
        answer = json.loads(content)
        verdict = Verdict(answer["verdict"])
    except (ValueError, KeyError, TypeError, RecursionError):
        if exit_code < 0:
            return Verdict.UNANSWERED, None, f"QRMI was ended by signal {-exit_code}"
        return Verdict.UNANSWERED, None, f"QRMI ended without an answer, with exit status {exit_code}"
    token = answer.get("token")
    return verdict, Secret(token) if isinstance(token, str) and token else None, str(answer.get("reason", ""))


def _availability_of(answer: Mapping[str, Any]) -> Availability | None:
    told = answer.get("availability")
    if not isinstance(told, dict):
        return None
    pending = told.get("pending_jobs")
    return Availability(
        str(told.get("state", "unknown")), str(told.get("reason", "")), pending if isinstance(pending, int) else None
    )


def _found_of(answer: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what was discovered; a name that no variable can begin with is left out."""
    found = answer.get("found")
    return tuple(name for name in found if not name_fault(name)) if isinstance(found, list) else ()


# --- In the child ------------------------------------------------------------------------------------------


def _be_child(call: Call, believed: Mapping[str, str], answer_fd: int, log_fd: int, alarm_s: float) -> NoReturn:
    """Ask QRMI, write the answer as JSON, and end without unwinding the hook's frames."""
    exit_code = 1
    try:
        _write_all(answer_fd, json.dumps(_prepare_and_ask(call, believed, answer_fd, log_fd, alarm_s)).encode())
        exit_code = 0
    finally:
        # The hook's own finally blocks, locks and buffers are the parent's: nothing of them may run here.
        os._exit(exit_code)


def _prepare_and_ask(
    call: Call, believed: Mapping[str, str], answer_fd: int, log_fd: int, alarm_s: float
) -> dict[str, Any]:
    try:
        os.setsid()
        for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, alarm_s)
        _keep_only(answer_fd, log_fd, call.journal_fd)
        os.environ.clear()
        os.environ.update(call.environment)
        os.environ.setdefault(RUST_LOG, _HOOK_LOG_LEVEL)
        # Not where the site has said what to believe, nor to a client that is not QRMI's own.
        if not believed.keys() & call.environment.keys() and describe(call.type).name != "oqtopus":
            os.environ.update(believed)
        if call.action == "release" and call.token:
            os.environ[of_resource(call.resource, ACQUISITION_TOKEN)] = call.token.reveal()
        os.chdir("/")
        os.umask(0o077)
        if call.run_as_uid is not None:
            _become(call.run_as_uid)
            _start_anew(call, answer_fd, alarm_s)
        confinement.confine(alarm_s)
    except (OSError, ValueError, KeyError) as error:
        return {"verdict": Verdict.REFUSED, "reason": f"QRMI could not be called: {error}"}
    return _ask(call)


def _start_anew(call: Call, answer_fd: int, alarm_s: float) -> NoReturn:
    """Become a Python that knows of this one call: what QRMI loads as a user may be the user's own.

    The call goes along in a file that has no name. Limits, alarm, session and standard files stay as they are.
    """
    token = call.token.reveal() if call.token else None
    told = [*call._replace(environment=dict(os.environ), token=None), token, answer_fd]
    call_fd = os.memfd_create("call", 0)
    _write_all(call_fd, json.dumps(told).encode())
    for fd in (answer_fd, call.journal_fd):
        if fd is not None:
            os.set_inheritable(fd, True)
    confinement.confine(alarm_s, begins_anew=True)
    python = [sys.executable, "-I", "-X", "utf8", "-c", _ANEW, str(call_fd), *sys.path]
    os.execve(python[0], python, {})  # noqa: S606


# Nobody but root may look into it from here on. Whose library it takes is the hook's word, not that of the environment.
_ANEW: Final = """
import sys
sys.path[:] = sys.argv[2:]
from qrmi_slurm.calls import confinement
confinement.hide_memory()
from qrmi_slurm.calls import backend
backend.go_on(int(sys.argv[1]))
"""


def go_on(call_fd: int) -> NoReturn:
    """Ask QRMI what a file says, in a process that has begun anew for it."""
    exit_code = 1
    try:
        os.lseek(call_fd, 0, os.SEEK_SET)
        with os.fdopen(call_fd, "rb") as file:
            *fields, token, answer_fd = json.loads(file.read())
        call = Call(*fields)._replace(token=Secret(token) if token is not None else None)
        os.environ.update(call.environment)
        _write_all(answer_fd, json.dumps(_ask(call)).encode())
        exit_code = 0
    finally:
        os._exit(exit_code)


def _keep_only(answer_fd: int, log_fd: int, journal_fd: int | None) -> None:
    """Close every inherited file but ours; standard output and error go into the log."""
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    # Not os.closerange(): before Linux 5.9 it would try each of a daemon's million possible descriptors.
    for fd in [int(name) for name in os.listdir("/proc/self/fd")]:
        if fd > 2 and fd not in (answer_fd, journal_fd):
            with contextlib.suppress(OSError):
                os.close(fd)


def _become(uid: int) -> None:
    """Become the job's user for good, so that what the user supplied is used with the user's rights."""
    try:
        user = pwd.getpwuid(uid)
    except KeyError:
        raise ValueError(f"this node does not know the user with uid {uid}") from None
    os.initgroups(user.pw_name, user.pw_gid)
    os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
    os.setresuid(uid, uid, uid)
    os.environ["HOME"] = user.pw_dir  # pasqal-cloud reads the user's ~/.pasqal/config


def _ask(call: Call) -> dict[str, Any]:
    asked = False
    try:
        qrmi = _import_qrmi()
        if hasattr(qrmi, "set_log_callback"):
            qrmi.set_log_callback(None)  # from 0.22: to stderr, as before it, and not through Python's logging
        member = matching_member(installed_type(call.type, known_members()), known_members())
        if call.action == "discover":
            return {"verdict": Verdict.DONE, "found": _discover(qrmi, call, str(member))}
        resource = qrmi.QuantumResource(call.resource, getattr(qrmi.ResourceType, str(member)))
        if call.action == "release":
            resource.release(call.token.reveal() if call.token else "")
            return {"verdict": Verdict.DONE}
        if call.action == "check":
            return {"verdict": Verdict.DONE, "availability": _availability(resource)}
        if describe(call.type).asks_status:
            _require_service(resource)
        asked = True
        token = str(resource.acquire())
        if call.journal_fd is not None:
            _write_all(call.journal_fd, token.encode("utf-8", "surrogateescape"))
            os.fsync(call.journal_fd)
        return {"verdict": Verdict.DONE, "token": token}
    except BaseException as error:  # noqa: BLE001 a Rust panic is a BaseException; the child's last line
        reason = _text(error)
        verdict = Verdict.REFUSED
        if call.action == "release" and _says_gone(reason):
            verdict = Verdict.GONE
        elif asked and not _says_no(error, reason):
            verdict = Verdict.UNANSWERED
        return {"verdict": verdict, "reason": reason}


def _discover(qrmi: Any, call: Call, member: str) -> list[str]:
    """Return the names of the online QPUs that QRMI finds behind a dynamic resource, the least busy first."""
    prefix = of_resource(call.resource, "")
    environment = {name.removeprefix(prefix): value for name, value in os.environ.items() if name.startswith(prefix)}
    provider = qrmi.ResourceProvider(getattr(qrmi.ResourceType, member), environment)
    return [str(resource.resource_id()) for resource in provider.resources("status=online")][:_MAX_FOUND]


def _require_service(resource: Any) -> None:
    """Raise where a QPU is not online, or nobody answers for it; before anything is acquired.

    QRMI's status asks an IBM Quantum System for more than its state, and an older one does not have that; the
    simpler `is_accessible` is all that QRMI before 0.25 has.
    """
    if not hasattr(resource, "status"):
        _require_access(resource)
        return
    try:
        status = resource.status()
    except BaseException as error:
        if type(error).__name__ == "UnsupportedFunctionError":
            return
        if type(error).__name__ != "ResourceNotFoundError":
            raise BackendError(f"QRMI cannot tell the QPU's status: {_text(error)}") from error
        _require_access(resource)
        return
    code = str(status.status).rpartition(".")[2]
    if code != "Online":
        raise BackendError(f"the QPU is {code.lower()}" + (f": {status.status_reason}" if status.status_reason else ""))


def _availability(resource: Any) -> dict[str, Any]:
    """Return what `Availability` holds, from the richest answer that this QRMI has."""
    if hasattr(resource, "status"):
        try:
            status = resource.status()
        except BaseException as error:
            if type(error).__name__ not in ("UnsupportedFunctionError", "ResourceNotFoundError"):
                raise
        else:
            pending = getattr(status, "pending_job_count", None)
            return {
                "state": str(status.status).rpartition(".")[2].lower(),
                "reason": str(status.status_reason or "")[:_MAX_REASON_CHARS],
                "pending_jobs": int(pending) if pending is not None else None,
            }
    try:
        with warnings.catch_warnings(action="ignore"):  # deprecated from 0.25
            return {"state": "online" if resource.is_accessible() else "offline"}
    except BaseException as error:
        if type(error).__name__ == "UnsupportedFunctionError":
            return {"state": "unknown"}
        raise


def _require_access(resource: Any) -> None:
    try:
        with warnings.catch_warnings(action="ignore"):  # deprecated from 0.25
            is_accessible = resource.is_accessible()
    except BaseException as error:
        raise BackendError(f"QRMI cannot tell whether the QPU is accessible: {_text(error)}") from error
    if not is_accessible:
        raise BackendError("the QPU is not accessible")


def _text(error: BaseException) -> str:
    return str(error)[:_MAX_REASON_CHARS] or type(error).__name__


def _says_gone(reason: str) -> bool:
    """Tell whether a refusal to release means that there is nothing left to release.

    QRMI hands the service's answer on in words. 404 with a JSON object is what services say of a session that they do
    not know; a page of HTML comes from something in between.
    """
    return re.search(r"(404 Not Found|404 Not Found, Fail|not found:)\s*\{", reason) is not None


def _says_no(error: BaseException, reason: str) -> bool:
    """Tell whether a failed acquire means that the service has refused, so that no session can have been opened.

    After a 5xx, a broken answer or a lost connection it may have been opened all the same. A Warden's caller is
    named by munge, without which nothing is sent to it.
    """
    if reason.lower().startswith("munge "):  # ... encode failed, ... unavailable, ... support is disabled
        return True
    if type(error).__name__ in _REFUSALS or re.search(r"(response body|^Status): 4\d\d ", reason):
        return True
    return isinstance(error, BackendError)


def _write_all(fd: int, content: bytes) -> None:
    while content:
        content = content[os.write(fd, content) :]


def _import_qrmi() -> Any:
    try:
        import qrmi
    except ImportError as error:
        raise BackendError(
            f"QRMI cannot be imported: {error}", "an admin can run the venv's: pip install qrmi"
        ) from error
    return qrmi
