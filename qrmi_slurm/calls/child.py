"""The child that calls QRMI: forked from the hook for one call, confined, and gone after its answer.

A call with credentials of the job's user runs as that user, and whatever QRMI loads then may be the user's own code.
That child starts Python again with only this call in its memory, since a fork has the credentials of every QPU, and
only then becomes the user: a user's processes may look into each other from the moment of an exec on.
"""

import _signal as signal  # type: ignore[import-not-found]  # `signal` adds enums of the numbers, which takes 0.7 ms
import contextlib
import json
import os
import pwd
import re
import sys
import warnings
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, NoReturn

from qrmi_slurm.calls import confinement
from qrmi_slurm.calls.installed import import_qrmi, installed_type, known_members
from qrmi_slurm.calls.protocol import Call, Verdict
from qrmi_slurm.config.resource_types import describe, matching_member
from qrmi_slurm.config.slurm_section import AUTO_CAPACITY
from qrmi_slurm.errors import BackendError
from qrmi_slurm.names import ACQUISITION_TOKEN, RUST_LOG, SLURM_JOB_GID, SLURM_JOB_USER, of_resource
from qrmi_slurm.secret import Secret

# A refusal repeats the service's or a proxy's answer, which may be a page; escaped, it is far below the answer's bound.
_MAX_REASON_CHARS: Final = 4096

# The longest number of slots that is shown.
_MAX_NUMBER_CHARS: Final = 20

# How many QPUs behind one dynamic resource are looked at.
MAX_FOUND: Final = 100

# QRMI's exceptions that are raised before a request, or when the service says no (from 0.26).
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

# The last byte of an answer; JSON escapes line breaks.
ANSWER_END: Final = b"\n"

# QRMI's log level in hooks, unless the admin sets --env:RUST_LOG.
_HOOK_LOG_LEVEL: Final = "info"


# passwd(5): the home of a user without one.
_NO_HOME: Final = "/nonexistent"


class Terms(NamedTuple):
    """What a child gets besides its call.

    Args:
        answer_fd: where it writes its answer.
        log_fd: its standard output and error: QRMI's log.
        alarm_s: after how long it ends itself, in seconds, even where the hook is gone.
        ca_variables: what makes QRMI read one bundle of certificates (ca_bundle.py).
    """

    answer_fd: int
    log_fd: int
    alarm_s: float
    ca_variables: Mapping[str, str]


def answer_and_exit(call: Call, terms: Terms) -> NoReturn:
    """Call QRMI, write the answer, and end without unwinding the hook's frames."""
    exit_code = 1
    try:
        _deliver(call, terms.answer_fd, _prepare_and_ask(call, terms))
        exit_code = 0
    finally:
        # The hook's finally blocks, locks and buffers belong to the parent: none of them may run here.
        os._exit(exit_code)


def write_all(fd: int, content: bytes) -> None:
    """Write all of `content`, however much the file takes at once."""
    while content:
        content = content[os.write(fd, content) :]


def _prepare_and_ask(call: Call, terms: Terms) -> dict[str, Any]:
    try:
        os.setsid()
        for number in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, terms.alarm_s)
        _keep_only(terms.answer_fd, terms.log_fd, call.journal_fd)
        _take_environment(call, terms.ca_variables)
        os.chdir("/")
        os.umask(0o077)
        if call.run_as_uid is not None:
            _start_again(call, terms)
        confinement.confine(terms.alarm_s)
    except (OSError, ValueError, KeyError) as error:
        return _not_called(error)
    return _ask(call)


def _deliver(call: Call, fd: int, answer: Mapping[str, Any]) -> None:
    """Write an answer; a token that is in no journal, and that nobody takes, is released by this process itself."""
    try:
        _write_answer(fd, answer)
    except OSError:
        if "unjournaled" in answer:
            _give_back(call, str(answer["token"]))


def _write_answer(fd: int, answer: Mapping[str, Any]) -> None:
    """Write an answer as one line of JSON: its end shows that it is complete, even if the pipe stays open."""
    write_all(fd, json.dumps(answer).encode() + ANSWER_END)


def _not_called(error: Exception) -> dict[str, Any]:
    return {"verdict": Verdict.REFUSED, "reason": f"QRMI could not be called: {error}"}


def _take_environment(call: Call, ca_variables: Mapping[str, str]) -> None:
    os.environ.clear()
    os.environ.update(call.environment)
    os.environ.setdefault(RUST_LOG, _HOOK_LOG_LEVEL)
    # Not where the site says what to trust, nor for OQTOPUS's client, which is not QRMI's own.
    if not ca_variables.keys() & call.environment.keys() and describe(call.type).name != "oqtopus":
        os.environ.update(ca_variables)
    if call.action == "release" and call.token:
        os.environ[of_resource(call.resource, ACQUISITION_TOKEN)] = call.token.reveal()


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


# --- a call as the user ---------------------------------------------------------------------------------------


def _start_again(call: Call, terms: Terms) -> NoReturn:
    """Re-exec Python with only this call in memory, still as root.

    The call is passed in an unnamed file. Limits, alarm, session and standard files stay as they are.
    """
    token = call.token.reveal() if call.token else None
    told = [*call._replace(environment=dict(os.environ), token=None), token, terms.answer_fd, terms.alarm_s]
    call_fd = os.memfd_create("call", 0)
    write_all(call_fd, json.dumps(told).encode())
    for fd in (terms.answer_fd, call.journal_fd):
        if fd is not None:
            os.set_inheritable(fd, True)
    # The hook sets sys.path, not the environment.
    python = [sys.executable, "-I", "-X", "utf8", "-c", _START_AGAIN, str(call_fd), *sys.path]
    os.execve(python[0], python, {})  # noqa: S606


_START_AGAIN: Final = """
import sys
sys.path[:] = sys.argv[2:]
from qrmi_slurm import stand_ins
stand_ins.install()
from qrmi_slurm.calls import child
child.go_on(int(sys.argv[1]))
"""


def go_on(call_fd: int) -> NoReturn:
    """Become the user, and make the call that a file describes, in a process that was started again for it."""
    exit_code = 1
    try:
        os.lseek(call_fd, 0, os.SEEK_SET)
        with os.fdopen(call_fd, "rb") as file:
            *fields, token, answer_fd, alarm_s = json.loads(file.read())
        call = Call(*fields)._replace(token=Secret(token) if token is not None else None)
        _deliver(call, answer_fd, _become_and_ask(call, alarm_s))
        exit_code = 0
    finally:
        os._exit(exit_code)


def _become_and_ask(call: Call, alarm_s: float) -> dict[str, Any]:
    assert call.run_as_uid is not None  # noqa: S101 or Python would not have been started again
    try:
        os.environ.update(call.environment)
        _become(call.run_as_uid)
        confinement.confine(alarm_s)
    except (OSError, ValueError, KeyError) as error:
        return _not_called(error)
    return _ask(call)


def _become(uid: int) -> None:
    """Become the job's user for good, so that what the user supplied is used with the user's rights."""
    try:
        entry = pwd.getpwuid(uid)
        user, gid, home = entry.pw_name, entry.pw_gid, entry.pw_dir
    except KeyError:
        if SLURM_JOB_GID not in os.environ:
            raise ValueError(f"this node does not know the user with uid {uid}") from None
        user, gid, home = os.environ[SLURM_JOB_USER], int(os.environ[SLURM_JOB_GID]), _NO_HOME
    confinement.become(uid, gid, os.getgrouplist(user, gid))
    os.environ["HOME"] = home  # pasqal-cloud reads the user's ~/.pasqal/config


# --- QRMI -----------------------------------------------------------------------------------------------------


def _ask(call: Call) -> dict[str, Any]:
    """Call QRMI, and return the answer as JSON has it."""
    is_acquiring = False
    try:
        qrmi = import_qrmi()
        if hasattr(qrmi, "set_log_callback"):
            qrmi.set_log_callback(None)  # from 0.22: to stderr, as before it, and not through Python's logging
        members = known_members()
        member = str(matching_member(installed_type(call.type, members), members))
        if call.action == "discover":
            return {"verdict": Verdict.DONE, "found": _discover(qrmi, call, member)}
        resource = qrmi.QuantumResource(call.resource, getattr(qrmi.ResourceType, member))
        if call.action == "release":
            resource.release(call.token.reveal() if call.token else "")
            return {"verdict": Verdict.DONE}
        if call.action == "check":
            return {"verdict": Verdict.DONE, "availability": _availability(resource)}
        # A session can be opened on a QPU that is paused or offline, and a program then finds no QPU.
        is_accessible = describe(call.type).asks_access and hasattr(resource, "is_accessible") and _has_access(resource)
        if not is_accessible:
            _require_online(resource)
        is_acquiring = True
        token = str(resource.acquire())
        answer = {"verdict": Verdict.DONE, "token": token}
        try:
            if call.journal_fd is not None:
                write_all(call.journal_fd, token.encode("utf-8", "surrogateescape"))
                os.fsync(call.journal_fd)
        except OSError as error:  # a full disk: the hook still gets the token
            answer["unjournaled"] = str(error.strerror)
        return answer
    except BaseException as error:  # noqa: BLE001 a Rust panic is a BaseException; the child's last line
        reason = _text(error)
        verdict = Verdict.REFUSED
        if call.action == "release" and _says_gone(reason):
            verdict = Verdict.GONE
        elif is_acquiring and not _says_no(error, reason):
            verdict = Verdict.UNANSWERED
        return {"verdict": verdict, "reason": reason}


def _give_back(call: Call, token: str) -> None:
    """Release what this process has just acquired; what that raises is nobody's to read."""
    qrmi, members = import_qrmi(), known_members()
    os.environ[of_resource(call.resource, ACQUISITION_TOKEN)] = token
    member = str(matching_member(installed_type(call.type, members), members))
    qrmi.QuantumResource(call.resource, getattr(qrmi.ResourceType, member)).release(token)


def _discover(qrmi: Any, call: Call, member: str) -> list[str]:
    """Return the names of the online QPUs that QRMI finds behind a dynamic resource, the least busy first."""
    prefix = of_resource(call.resource, "")
    environment = {name.removeprefix(prefix): value for name, value in os.environ.items() if name.startswith(prefix)}
    provider = qrmi.ResourceProvider(getattr(qrmi.ResourceType, member), environment)
    return [str(resource.resource_id()) for resource in provider.resources("status=online")][:MAX_FOUND]


def _require_online(resource: Any) -> None:
    """Raise where a QPU is not online, or its service does not answer; before anything is acquired.

    QRMI's status asks an IBM Quantum System for more than an older system has; `is_accessible` is all that QRMI before
    0.25 has, and a coming one lacks it. Where neither can tell, acquiring does.
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
            raise BackendError(f"QRMI cannot get the QPU's status: {_text(error)}") from error
        _require_access(resource)
        return
    state = _state_of(status)
    if state != "online":
        raise BackendError(f"the QPU is {state}" + (f": {status.status_reason}" if status.status_reason else ""))


def _require_access(resource: Any) -> None:
    if hasattr(resource, "is_accessible") and not _has_access(resource):
        raise BackendError("the QPU is not accessible")


def _has_access(resource: Any) -> bool:
    try:
        return _is_accessible(resource)
    except BaseException as error:
        raise BackendError(f"QRMI cannot tell whether the QPU is accessible: {_text(error)}") from error


def _availability(resource: Any) -> dict[str, Any]:
    """Return what `Availability` has, from the richest answer that this QRMI gives."""
    if hasattr(resource, "status"):
        try:
            status = resource.status()
        except BaseException as error:
            if type(error).__name__ not in ("UnsupportedFunctionError", "ResourceNotFoundError"):
                raise
        else:
            pending = getattr(status, "pending_job_count", None)
            return {
                "state": _state_of(status),
                "reason": str(status.status_reason or "")[:_MAX_REASON_CHARS],
                "pending_jobs": int(pending) if pending is not None else None,
                "capacity": _capacity_of(status),
            }
    if not hasattr(resource, "is_accessible"):
        return {"state": "unknown"}
    try:
        return {"state": "online" if _is_accessible(resource) else "offline"}
    except BaseException as error:
        if type(error).__name__ == "UnsupportedFunctionError":
            return {"state": "unknown"}
        raise


def _capacity_of(status: Any) -> list[Any] | None:
    """Return what `Capacity` has; QRMI tells it from 0.25 on, where the service does."""
    told = getattr(status, "capacity", None)
    if told is None:
        return None
    available, most = (getattr(told, name, None) for name in ("available_slots", "max_slots"))
    if not _is_number_of_slots(available) or not (most is None or _is_number_of_slots(most)):
        return [None, None, f"{str(available)[:_MAX_NUMBER_CHARS]} of {str(most)[:_MAX_NUMBER_CHARS]} slots"]
    return [available, most, ""]


def _is_number_of_slots(value: Any) -> bool:
    return type(value) is int and 0 <= value <= AUTO_CAPACITY


def _state_of(status: Any) -> str:
    """Return `online` from QRMI's `ResourceStatusCode.Online`."""
    return str(status.status).rpartition(".")[2].lower()


def _is_accessible(resource: Any) -> bool:
    with warnings.catch_warnings(action="ignore"):  # deprecated from 0.25
        return bool(resource.is_accessible())


def _text(error: BaseException) -> str:
    return str(error)[:_MAX_REASON_CHARS] or type(error).__name__


def _says_gone(reason: str) -> bool:
    """Tell whether a refused release means that there is nothing left to release.

    QRMI passes the service's answer on in words. Services answer 404 with a JSON object about a session they do not
    know; a page of HTML comes from something in between.
    """
    return re.search(r"(404 Not Found|404 Not Found, Fail|not found:)\s*\{", reason) is not None


def _says_no(error: BaseException, reason: str) -> bool:
    """Tell whether a failed acquire means that the service refused, so that it cannot have opened a session.

    After a 5xx, a broken answer or a lost connection it may have. A Warden's caller is named by munge; where munge
    fails, no request is sent.
    """
    if reason.lower().startswith("munge "):  # ... encode failed, ... unavailable, ... support is disabled
        return True
    if type(error).__name__ in _REFUSALS or re.search(r"(response body|^Status): 4\d\d ", reason):
        return True
    return isinstance(error, BackendError)
