"""What is asked of QRMI, and what it answers: the values that pass between a hook and the child that calls QRMI."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Literal, NamedTuple

from qrmi_slurm.secret import Secret, masked_repr

Action = Literal["acquire", "release", "check", "discover"]


class Verdict(StrEnum):
    """How a call ended."""

    DONE = "done"
    GONE = "gone"  # release only: the service does not know the session any more, so nothing is held
    REFUSED = "refused"  # the service said no, or could not be asked: nothing was acquired
    UNASKED = "unasked"  # there was no place for the call in time, so nothing was acquired either
    UNANSWERED = "unanswered"  # no clear answer: what the service did is unknown


class Call(NamedTuple):
    """One call to QRMI.

    Args:
        resource: the resource's name.
        type: its type, as the installed QRMI calls it.
        action: acquire it, release what was acquired, check whether it can be used, or discover the QPUs behind it.
        environment: the child's whole environment; secrets in it, so never in a repr.
        token: what acquire returned; for release.
        run_as_uid: the user to run as, where the user brought credentials or addresses; `environment` then has no
            secret of the site. None is root.
        journal_fd: an open file that the child writes an acquired token to before it answers, so that the token
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


class Capacity(NamedTuple):
    """How many slots a service has.

    Args:
        available: how many can be acquired now; None where the service reports nonsense.
        most: how many it has in all; None where it does not say.
        fault: what nonsense it reports; empty otherwise. Mask before showing.
    """

    available: int | None
    most: int | None = None
    fault: str = ""

    def for_jobs(self, used: int) -> int | None:
        """Return how many jobs may have one at a time; None where the service reports nonsense.

        Args:
            used: how many jobs have. A service may count theirs among its own, or not (an IBM Quantum System's lanes).
        """
        if self.available is None:
            return None
        return self.available + used if self.most is None else min(self.most, self.available + used)


class Availability(NamedTuple):
    """What QRMI says about a QPU that is checked.

    Args:
        state: `online`, `offline`, `paused`, or what a newer QRMI calls it; `unknown` where the type cannot tell.
        reason: the service's words for it; may be empty. Mask before showing.
        pending_jobs: how many jobs are waiting for it; None where the service does not say.
        capacity: how many slots it has; None where the service does not say.
    """

    state: str
    reason: str = ""
    pending_jobs: int | None = None
    capacity: Capacity | None = None

    @property
    def is_usable(self) -> bool:
        """Whether a job can use the QPU now, as far as QRMI can tell."""
        return self.state in ("online", "unknown")

    @property
    def sentence(self) -> str:
        """The state in words: `the QPU is paused: calibration`."""
        return f"the QPU is {self.state}{f': {self.reason}' if self.reason else ''}"


class Answer(NamedTuple):
    """How a call ended, and what it returned.

    Args:
        call: the call.
        verdict: how it ended.
        token: what acquire returned, where it is done.
        reason: why it failed; empty otherwise. May have the service's words in it: mask before showing.
        duration_s: how long it took, in seconds.
        log: QRMI's own log records, one line each. Mask before showing.
        availability: the result of a check that is done.
        found: the online QPUs that were discovered, the least busy first.
        unjournaled: why the token is not in its journal; empty where it is, or there is none.
        is_awaited: whether the call goes on without its hook, and another process waits for its answer.
    """

    call: Call
    verdict: Verdict
    token: Secret | None
    reason: str
    duration_s: float
    log: tuple[str, ...]
    availability: Availability | None = None
    found: tuple[str, ...] = ()
    unjournaled: str = ""
    is_awaited: bool = False

    def __repr__(self) -> str:
        return masked_repr(self, "reason", "log")
