"""The sessions that a job's requests go to: its own, or another in its place where that has ended and the job goes on.

The job knows its first session only, and names that one in all its requests. A new one is opened when a request needs
it: with the site's key, after the intent is on disk, one at a time, and no longer than the job may run. Times are
measured by a clock that nobody sets; whether a session has ended, the service itself is asked.
"""

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote, urlsplit

from qrmi_slurm.broker.own_jobs import OwnJobs
from qrmi_slurm.broker.refusal import Refusal
from qrmi_slurm.broker.rules import JOB_ID
from qrmi_slurm.broker.site_tokens import SiteTokens
from qrmi_slurm.broker.spec import Qpu, Spec
from qrmi_slurm.broker.upstream import Upstream, UpstreamError, UpstreamRequest
from qrmi_slurm.calls import environment
from qrmi_slurm.log import HookLog
from qrmi_slurm.state import renewals
from qrmi_slurm.state.renewals import MAX_RENEWALS, Renewal
from qrmi_slurm.text import printable

_MAX_ANSWER_BYTES: Final = 64 * 1024

# How soon a session is looked at again that the service still has, although its time is over, in seconds.
_LOOK_AGAIN_S: Final = 1.0

# How long no session is asked for after a failure, in seconds: so long at first, then twice as long each time.
_FIRST_PAUSE_S: Final = 2.0
_LAST_PAUSE_S: Final = 300.0

# How many sessions of a QPU may be open of which nobody has the id.
_MAX_UNKNOWN: Final = 3


def boot_clock_s() -> float:
    """Return the seconds since the machine was started, also while it slept."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(slots=True)
class _State:
    """One QPU's session: `over_s` and `again_s` by `boot_clock_s`."""

    session: str
    over_s: float
    again_s: float = 0.0
    failures: int = 0
    unknown: int = 0
    is_closed: bool = False  # by the job itself
    lock: threading.Lock = field(default_factory=threading.Lock)


class Sessions:
    """The present sessions of a broker's QPUs; may be used from any thread.

    Args:
        spec: what the broker knows.
        upstream: the way to the services.
        own_jobs: tells whether the job's folder is gone.
        fd: the file of renewals, open for reading and appending; None where there is none, and nothing is renewed.
        log: the broker's.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        spec: Spec,
        upstream: Upstream,
        own_jobs: OwnJobs,
        fd: int | None,
        log: HookLog,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._spec = spec
        self._upstream = upstream
        self._own_jobs = own_jobs
        self._fd = fd
        self._log = log
        self._clock = clock
        self.tokens = {i: SiteTokens(qpu, upstream, clock) for i, qpu in enumerate(spec.qpus) if qpu is not None}
        self._writing = threading.Lock()
        self._states: dict[int, _State] = {}
        found = renewals.read_open(fd) if fd is not None else renewals.Renewals()
        self._number = max((one.number for one in found.asked), default=0)
        for index, qpu in enumerate(spec.qpus):
            if fd is None or qpu is None or qpu.session is None or qpu.session_ends_s is None:
                continue
            if JOB_ID.fullmatch(qpu.session):
                self._states[index] = self._state(qpu, [one for one in found.asked if one.place == index])

    def _state(self, qpu: Qpu, asked: list[Renewal]) -> _State:
        """Return a QPU's state when the broker starts, maybe not for the first time."""
        assert qpu.session is not None and qpu.session_ends_s is not None  # noqa: S101 the caller has looked
        session, ends_s = qpu.session, qpu.session_ends_s
        for one in asked:
            if one.token is not None:
                session, ends_s = one.token.reveal(), one.asked_s + one.ttl_s
        # At most as long as a session may live at all: the clock may have been set back since.
        left_s = min(ends_s - self._clock(), environment.SERVICE_MAX_TTL_S)
        unknown = sum(one.is_unknown and one.asked_s + one.ttl_s > self._clock() for one in asked)
        return _State(session, boot_clock_s() + left_s, unknown=unknown)

    def in_place(self, index: int, text: str) -> str:
        """Return a target with the present session in the place of the job's own."""
        qpu, state = self._spec.qpus[index], self._states.get(index)
        if qpu is None or qpu.session is None or state is None or state.session == qpu.session:
            return text
        return text.replace(quote(qpu.session, safe=""), state.session)

    def body_in_place(self, index: int, body: bytes) -> bytes:
        """Return the body of a new job with the present session in the place of the job's own; it was checked."""
        qpu, state = self._spec.qpus[index], self._states.get(index)
        if qpu is None or state is None or state.session == qpu.session:
            return body
        return json.dumps({**json.loads(body), "session_id": state.session}).encode()

    def closed(self, index: int) -> None:
        """Note that the job has closed its session itself: it gets no other."""
        if index in self._states:
            self._states[index].is_closed = True

    def renew_if_over(self, index: int) -> bool:
        """Open another session where the present one has ended and the job goes on.

        Returns:
            Whether the present session is another than before the call.

        Raises:
            Refusal: there is no new one; status 502.
            LoginError: IAM issued no token for the site's key.
            UpstreamError: the service gives no answer.
        """
        state, qpu = self._states.get(index), self._spec.qpus[index]
        if state is None or qpu is None or boot_clock_s() < state.over_s:
            return False
        before = state.session
        with state.lock:  # who waits here finds the new one
            now_s = boot_clock_s()
            if state.session != before:
                return True
            if state.is_closed or now_s < state.over_s or self._clock() >= self._ends_s():
                return False
            if now_s < state.again_s:
                raise Refusal("the job's session has ended, and no new one could be opened just now", 502)
            if not self._has_ended(index, qpu, state.session):
                state.over_s = boot_clock_s() + _LOOK_AGAIN_S
                return False
            self._open(index, qpu, state)
            return True

    def _ends_s(self) -> float:
        """Return until when the job may run; recover notes where that has moved."""
        moved_s = renewals.read_open(self._fd).ends_s if self._fd is not None else None
        return self._spec.ends_s if moved_s is None else moved_s

    def _has_ended(self, index: int, qpu: Qpu, session: str) -> bool:
        status, document = self._ask(index, qpu, "GET", f"/sessions/{session}", None)
        if status == 404:
            return True
        return status == 200 and document.get("state") in ("closed", "cancelled", "expired")

    def _open(self, index: int, qpu: Qpu, state: _State) -> None:
        """Open a session; what comes of it is on disk before it is used."""
        asked_s, asked_boot_s = self._clock(), boot_clock_s()
        left_s = environment.with_margin(int(self._ends_s() - asked_s), self._spec.session_margin_s)
        ttl_s = environment.longest_s(left_s)
        ttl_s = min(ttl_s, qpu.session_cap_s) if qpu.session_cap_s is not None else ttl_s
        with self._writing:
            self._number += 1
            number = self._number
        if number > MAX_RENEWALS or state.unknown >= _MAX_UNKNOWN:
            raise self._failed(state, qpu, "too many have been asked for")
        if not self._note(renewals.asked(Renewal(number, index, asked_s, ttl_s))):
            raise self._failed(state, qpu, "it cannot be recorded")
        # As QRMI 0.26 asks for one.
        wanted = {"max_ttl": ttl_s, "mode": qpu.session_mode or "dedicated", "backend": qpu.name}
        body = json.dumps({**wanted, "backend_name": qpu.name}).encode()
        try:
            status, document = self._ask(index, qpu, "POST", "/sessions", body)
        except UpstreamError as error:
            state.unknown += 1
            raise self._failed(state, qpu, str(error)) from None
        session = document.get("id")
        if not (200 <= status < 300 and isinstance(session, str) and JOB_ID.fullmatch(session)):
            if 400 <= status < 500:
                self._note(renewals.refused(number))
            else:
                state.unknown += 1
            raise self._failed(state, qpu, f"the service answered {status}")
        is_noted = self._note(renewals.opened(number, self._clock(), session))
        if not is_noted or self._own_jobs.is_folder_gone():  # nobody else would close it
            self._ask(index, qpu, "DELETE", f"/sessions/{session}/close", None)
            raise self._failed(state, qpu, "it cannot be recorded")
        self._log.info("renewed", qpu=qpu.name, ttl=ttl_s)
        state.failures = 0
        state.session, state.over_s = session, asked_boot_s + ttl_s

    def _failed(self, state: _State, qpu: Qpu, reason: str) -> Refusal:
        state.again_s = boot_clock_s() + min(_LAST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(state.failures, 16))
        state.failures += 1
        self._log.error("not-renewed", qpu=qpu.name, reason=reason)
        return Refusal(f"the job's session has ended, and no new one could be opened: {printable(reason, 200)}", 502)

    def _note(self, line: str) -> bool:
        with self._writing:
            return self._fd is not None and renewals.append(self._fd, [line])

    def _ask(self, index: int, qpu: Qpu, method: str, path: str, body: bytes | None) -> tuple[int, Mapping[str, Any]]:
        """Ask the service with the site's token, once more with a new one; return the status and the object."""
        token = self.tokens[index].get()
        for is_last in (False, True):
            headers = {"Service-CRN": qpu.crn, "Authorization": f"Bearer {token.reveal()}"}
            headers |= {"Accept": "application/json", "Accept-Encoding": "identity"}
            headers |= {"Content-Type": "application/json"} if body is not None else {}
            target = urlsplit(qpu.endpoint).path.rstrip("/") + path
            with self._upstream.ask(UpstreamRequest(method, qpu.endpoint, target, headers, body)) as answer:
                text, status = answer.read_whole(_MAX_ANSWER_BYTES), answer.status
            if status == 401 and not is_last:
                token = self.tokens[index].get(refused=token)
                continue
            break
        try:
            document = json.loads(text)
        except (ValueError, RecursionError):
            document = None
        return status, document if isinstance(document, dict) else {}
