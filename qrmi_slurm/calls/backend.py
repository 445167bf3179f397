"""The backend: runs calls to QRMI side by side, so many at a time, each in a child process of its own.

QRMI reads its variables from the process environment, has no time limit on a request, and may panic or crash in native
code. So each call gets a child with a clean environment, its own session (a signal to the hook's process group does not
hit it in the middle of a request) and an alarm that ends it after the deadline even where the hook is gone; its failure
costs one QPU. The children are forked, not started: importing QRMI once costs 13 ms.
"""

import _signal as signal  # type: ignore[import-not-found]  # `signal` adds enums of the numbers, which takes 0.7 ms
import contextlib
import json
import os
import select
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from qrmi_slurm import processes
from qrmi_slurm.calls import ca_bundle, child
from qrmi_slurm.calls.installed import import_qrmi
from qrmi_slurm.calls.places import AT_ONCE, WORK, Node, Service, Turns, service_of
from qrmi_slurm.calls.protocol import Answer, Availability, Call, Capacity, Verdict
from qrmi_slurm.config.resource_types import describe
from qrmi_slurm.deadline import Deadline
from qrmi_slurm.secret import Secret
from qrmi_slurm.slurm.selection import name_fault

# How much a child may say in its answer and in log lines; the rest is thrown away. A token is some 40 bytes, an error
# repeats at most the service's answer.
_MAX_ANSWER_BYTES: Final = 64 * 1024
_MAX_LOG_BYTES: Final = 256 * 1024

# QRMI logs little at `info`; at `trace`, with its HTTP client's records, a few hundred lines. Each goes to syslog, and
# a service's answer may have as many line breaks as bytes.
_MAX_LOG_LINES: Final = 1000

# The same for a call with a user's own credentials: the service may be theirs, and so may what QRMI loads.
_MAX_USERS_LOG_LINES: Final = 100

# QRMI's words for a failed IAM login (ibm/quantum_compute_service.rs), after which it goes on without a token.
_LOGIN_FAILED: Final = "Token renewal failed"

# How long poll(2) waits at once; it takes no more than 24 days.
_MAX_POLL_MS: Final = 60_000

# How soon to look again for a free place on the node, at first and later: each of forty Prologs that look tries all
# places of its user's.
_LOOK_AGAIN_S: Final = 0.03
_LAST_LOOK_S: Final = 0.24

# A call that had to wait is not begun with less time than this left, in seconds: it would be killed, and nobody would
# know what its service has done by then.
_LEAST_S: Final = 1.0

# How long to wait at least for a child whose pipe is closed: the kernel closes a process's files before it is a zombie.
_LEAST_REAP_S: Final = 0.01

# How much later than the hook's deadline the child's alarm goes off: it is for the case that the hook is gone.
_ALARM_GRACE_S: Final = 1.0

# How much longer a call may go on that may have opened a session by now, in seconds: its token is awaited without the
# hook (hooks/late.py). A service that answers later than that has most likely not opened one.
LATE_S: Final = 30.0


class Child(NamedTuple):
    """A running call, how long it may take in seconds, and what it has written so far."""

    number: int
    call: Call
    pid: int
    started_s: float
    limit_s: float
    answer_fd: int
    log_fd: int
    answer: bytearray
    log: bytearray
    pid_fd: int | None = None

    @property
    def is_complete(self) -> bool:
        """Whether its whole answer has arrived."""
        return self.answer.endswith(child.ANSWER_END)


def run(
    calls: Sequence[Call],
    timeout_s: float,
    on_answers: Callable[[Sequence[Answer]], None],
    *,
    at_once: int = AT_ONCE,
    node: Node | None = None,
    on_late: Callable[[Sequence[Child]], None] | None = None,
) -> None:
    """Run calls side by side, and report each soon after it ends.

    Args:
        calls: what to ask.
        timeout_s: how long all of them together may take, in seconds; whatever still runs then is killed or, where its
            answer may still matter, handed over to `on_late`.
        on_answers: gets each answer once, in the order of their ends; those that came while it was busy, together.
        at_once: how many may run at a time; one that has no turn in time is not asked.
        node: where each needs a place as well; None for calls that must not wait for others'.
        on_late: gets the calls that have no answer and may have opened a session, and sees to it that another process
            goes on with `await_late`; None where they are killed.

    Raises:
        BackendError: QRMI cannot be imported.
        RecordError: the node's places cannot be used.
    """
    if not calls:
        return
    import_qrmi()  # once, before the forks: the children share its pages
    deadline_s = time.monotonic() + timeout_s
    ca_variables = ca_bundle.variables()
    are_many = len(calls) > at_once
    services = [_service_of(call) if are_many else () for call in calls]
    turns = Turns(services, at_once, node)
    children: list[Child] = []
    pipes = _Pipes()
    reaper = _Reaper()
    left_s = timeout_s
    least_s = min(_LEAST_S, timeout_s / 2)
    began_s = None
    look_s = _LOOK_AGAIN_S
    try:
        while left_s > 0:
            may_begin = left_s >= least_s
            while may_begin and (number := turns.next()) is not None:
                call, look_s = calls[number], _LOOK_AGAIN_S
                began_s = began_s or time.monotonic()
                try:
                    may_be_late = on_late is not None and _may_have_opened(call)
                    children.append(_start(number, call, ca_variables, left_s, may_be_late=may_be_late))
                    pipes.add(children[-1])
                except OSError as error:  # out of processes or descriptors: this one was not asked
                    turns.end(number)
                    reason = f"no process for QRMI could be started: {error.strerror}"
                    on_answers([Answer(call, Verdict.REFUSED, None, reason, 0.0, ())])
            if not children and not (may_begin and turns.needs_place):
                break
            wait_s = left_s
            if may_begin and turns.needs_place:
                wait_s = min(wait_s, look_s)
                look_s = min(2 * look_s, _LAST_LOOK_S)
            # One that only waits for a service makes room for others; one that waits for a place of theirs does not.
            if WORK.is_at_work and began_s is not None:
                wait_s = min(wait_s, WORK.make_room(began_s))
            ended = pipes.read(wait_s)
            for child_ in ended:
                children.remove(child_)
                turns.end(child_.number)
            if ended:
                on_answers(_finish(ended, reaper, are_killed=False))
            left_s = deadline_s - time.monotonic()
    finally:
        late = [child_ for child_ in children if child_.pid_fd is not None]
        if late and on_late is not None:
            on_late(late)
        for child_ in children:
            if child_.pid_fd is None:
                os.kill(child_.pid, signal.SIGKILL)
        turns.close()
    if late:
        on_answers([_let_go(child_) for child_ in late])
    if killed := [child_ for child_ in children if child_.pid_fd is None]:
        on_answers(_finish(killed, reaper, are_killed=True))
    reaper.end()
    if waiting := turns.waiting:
        reason = f"it was not asked within {_shown(timeout_s)} s, because {turns.lack}"
        on_answers([Answer(calls[number], Verdict.UNASKED, None, reason, 0.0, ()) for number in waiting])


def await_late(children: Sequence[Child], timeout_s: float, on_answers: Callable[[Sequence[Answer]], None]) -> None:
    """Wait for calls of another process, which was this one's parent, and report each soon after it ends.

    Args:
        children: as `run` has handed them over.
        timeout_s: how long to wait, in seconds; whatever still runs then is killed.
        on_answers: as of `run`.
    """
    waiting, pipes, deadline = list(children), _Pipes(), Deadline.after(timeout_s)
    for child_ in waiting:
        pipes.add(child_)
    while waiting and deadline.left_s > 0:
        if ended := pipes.read(deadline.left_s):
            waiting = [child_ for child_ in waiting if child_ not in ended]
            on_answers([_answer_of(child_, None, is_killed=False) for child_ in ended])
    for child_ in waiting:
        kill_late(child_)
    if waiting:
        on_answers([_answer_of(child_, None, is_killed=True) for child_ in waiting])


def kill_late(child_: Child) -> None:
    """Kill a call of another process, and nothing that may have its process id by now."""
    if child_.pid_fd is not None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(child_.pid_fd, signal.SIGKILL)


def _may_have_opened(call: Call) -> bool:
    """Tell whether a call that has no answer yet may have opened a session."""
    return call.action == "acquire" and call.journal_fd is not None and describe(call.type).locks


def _let_go(child_: Child) -> Answer:
    """Return the answer for a call that goes on without this process."""
    _close(child_)
    reason = f"no answer within {_shown(child_.limit_s)} s"
    duration_s = time.monotonic() - child_.started_s
    return Answer(child_.call, Verdict.UNANSWERED, None, reason, duration_s, (), is_awaited=True)


def _service_of(call: Call) -> Service:
    """Return what stands for a call's service; all that the job's user has named count as one.

    Else the user could take all places with as many addresses, and the site's sessions would not be released.
    """
    return service_of(call.resource, call.environment) if call.run_as_uid is None else ("user",)


def _shown(seconds: float) -> str:
    return f"{max(round(seconds, 1), 0.1):g}"


class _Pipes:
    """The answers and logs that children write, read as they arrive."""

    def __init__(self) -> None:
        self._child_of: dict[int, Child] = {}
        self._poll = select.poll()  # selectors takes 0.4 ms to load

    def add(self, child_: Child) -> None:
        """Read what this child writes as well."""
        for fd in (child_.answer_fd, child_.log_fd):
            self._child_of[fd] = child_
            self._poll.register(fd, select.POLLIN)

    def read(self, wait_s: float) -> list[Child]:
        """Read what has arrived, waiting for something but no longer than that; return the children that ended."""
        ended = []
        for fd, _ in self._poll.poll(min(int(wait_s * 1000) + 1, _MAX_POLL_MS)):
            child_ = self._child_of.get(fd)
            if child_ is None:  # the log of a child that has ended
                continue
            is_answer = fd == child_.answer_fd
            buffer, bound = (child_.answer, _MAX_ANSWER_BYTES) if is_answer else (child_.log, _MAX_LOG_BYTES)
            chunk = os.read(fd, 65536)
            buffer += chunk[: bound - len(buffer)]
            # Not only at the pipe's end: what QRMI loads for a user may leave a process behind that keeps it open.
            is_over = not chunk or (is_answer and (child_.is_complete or len(buffer) == bound))
            if is_over:
                self._drop(fd)
            if is_over and is_answer:
                self._drop(child_.log_fd)
                ended.append(child_)
        return ended

    def _drop(self, fd: int) -> None:
        if self._child_of.pop(fd, None) is not None:
            self._poll.unregister(fd)


def _start(number: int, call: Call, ca_variables: Mapping[str, str], limit_s: float, *, may_be_late: bool) -> Child:
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
        alarm_s = limit_s + _ALARM_GRACE_S + (LATE_S if may_be_late else 0.0)
        child.answer_and_exit(call, child.Terms(answer_write, log_write, alarm_s, ca_variables))
    os.close(answer_write)
    os.close(log_write)
    pid_fd = _pid_fd(pid) if may_be_late else None
    return Child(number, call, pid, started_s, limit_s, answer_read, log_read, bytearray(), bytearray(), pid_fd)


def _pid_fd(pid: int) -> int | None:
    """Return a descriptor of a child; None where there is none to be had, as before Linux 5.3."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _close(child_: Child) -> None:
    for fd in (child_.answer_fd, child_.log_fd, child_.pid_fd):
        if fd is not None:
            os.close(fd)


class _Reaper:
    """Reaps the children of one run. It waits END_S at most for those that do not end, however many there are.

    A user may stop their own children, or trace them, one after the other.
    """

    def __init__(self) -> None:
        self._left_s = processes.END_S
        self._later: list[int] = []

    def reap_later(self, pid: int) -> None:
        """End a child that has nothing left to do, without waiting for it."""
        os.kill(pid, signal.SIGKILL)
        self._later.append(pid)

    def reap(self, pid: int) -> int | None:
        """Return how a child ended; None for one that does not, even if it is killed, and is left behind."""
        began_s = time.monotonic()
        exit_code = processes.reap(pid, Deadline.after(max(self._left_s / 2, _LEAST_REAP_S)))
        if exit_code is None:
            os.kill(pid, signal.SIGKILL)
            exit_code = processes.reap(pid, Deadline.after(self._left_s / 2))
        self._left_s = max(0.0, self._left_s - (time.monotonic() - began_s))
        return exit_code

    def end(self) -> None:
        """Reap the others."""
        whole = Deadline.after(self._left_s)
        for pid in self._later:
            processes.reap(pid, whole)


def _finish(children: Sequence[Child], reaper: _Reaper, *, are_killed: bool) -> list[Answer]:
    """Return the answers of children that have ended, or that have nothing left to say."""
    answers = []
    for child_ in children:
        exit_code = None
        if child_.is_complete:  # its process has nothing left to do
            reaper.reap_later(child_.pid)
        else:
            exit_code = reaper.reap(child_.pid)
        answers.append(_answer_of(child_, exit_code, is_killed=are_killed))
    return answers


def _answer_of(child_: Child, exit_code: int | None, *, is_killed: bool) -> Answer:
    duration_s = time.monotonic() - child_.started_s
    _drain_log(child_)
    _close(child_)
    most = _MAX_LOG_LINES if child_.call.run_as_uid is None else _MAX_USERS_LOG_LINES
    lines = tuple(child_.log.decode("utf-8", "replace").splitlines()[:most])
    if is_killed:
        verdict, token, reason = Verdict.UNANSWERED, None, f"no answer within {_shown(child_.limit_s)} s"
    else:
        verdict, token, reason = _read_answer(bytes(child_.answer), exit_code)
    if exit_code is None and not child_.is_complete:
        reason = f"{reason}; process {child_.pid} does not end"
    login_failure = next((line for line in lines if _LOGIN_FAILED in line), "")
    if login_failure and verdict is not Verdict.DONE:
        # QRMI goes on without a token, is refused, and reports that; only its log has the cause. Not even a 404 says
        # anything about a session then: it may be a gateway's.
        reason = f"{reason}; {login_failure[login_failure.index(_LOGIN_FAILED) :]}"
        if child_.answer:
            verdict = Verdict.REFUSED  # without a login the service has done nothing
    told = json.loads(child_.answer) if verdict is Verdict.DONE else {}
    found, unjournaled = _found_of(told), str(told.get("unjournaled", ""))
    return Answer(child_.call, verdict, token, reason, duration_s, lines, _availability_of(told), found, unjournaled)


def _drain_log(child_: Child) -> None:
    """Read what the pipe of an ended child still has, up to the limit: a process that it left behind may go on."""
    os.set_blocking(child_.log_fd, False)
    while len(child_.log) < _MAX_LOG_BYTES:
        try:
            chunk = os.read(child_.log_fd, 65536)
        except BlockingIOError:
            return
        if not chunk:
            return
        child_.log.extend(chunk[: _MAX_LOG_BYTES - len(child_.log)])


def _read_answer(content: bytes, exit_code: int | None) -> tuple[Verdict, Secret | None, str]:
    try:
        answer = json.loads(content)
        verdict = Verdict(answer["verdict"])
    except (ValueError, KeyError, TypeError, RecursionError):
        if exit_code is None:
            return Verdict.UNANSWERED, None, "QRMI ended without an answer"
        if exit_code < 0:
            return Verdict.UNANSWERED, None, f"QRMI was killed by signal {-exit_code}"
        return Verdict.UNANSWERED, None, f"QRMI ended without an answer, with exit status {exit_code}"
    token = answer.get("token")
    return verdict, Secret(token) if isinstance(token, str) and token else None, str(answer.get("reason", ""))


def _availability_of(answer: Mapping[str, Any]) -> Availability | None:
    told = answer.get("availability")
    if not isinstance(told, dict):
        return None
    pending = told.get("pending_jobs")
    capacity = told.get("capacity")
    return Availability(
        str(told.get("state", "unknown")),
        str(told.get("reason", "")),
        pending if isinstance(pending, int) else None,
        Capacity(*capacity) if isinstance(capacity, list) and len(capacity) == 3 else None,
    )


def _found_of(answer: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the QPUs that were discovered, without names that cannot begin a variable's name.

    A child that runs as the user may say anything, and each name costs the hook time.
    """
    found = answer.get("found")
    if not isinstance(found, list):
        return ()
    return tuple(name for name in found[: child.MAX_FOUND] if isinstance(name, str) and not name_fault(name))
