"""The gate: what is decided about a request before any of its body is read."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence

from qrmi_slurm.broker import job_tokens, rules, sigv4
from qrmi_slurm.broker.connection import ClientConnection
from qrmi_slurm.broker.exchange import Exchange
from qrmi_slurm.broker.own_jobs import OwnJobs
from qrmi_slurm.broker.refusal import Refusal
from qrmi_slurm.broker.request import Request, checked_headers
from qrmi_slurm.broker.rules import Destination
from qrmi_slurm.broker.spec import Qpu


class Gate:
    """Admits requests that concern only the job itself.

    Args:
        qpus: the broker's QPUs; None for one that the job no longer holds.
        hosts: what a request's Host header may be.
        own_jobs: the service's jobs that were submitted through this broker.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        qpus: Sequence[Qpu | None],
        hosts: Collection[str],
        own_jobs: OwnJobs,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._qpus = qpus
        self._hosts = hosts
        self._own_jobs = own_jobs
        self._clock = clock

    def admit(self, client: ClientConnection, request: Request) -> Exchange:
        """Return the exchange for a request.

        Raises:
            Refusal: it must not pass.
        """
        headers = checked_headers(request, self._hosts)
        destination = rules.destination(request.target)
        qpu = self._qpu_at(destination)
        _authorize(headers, destination.service, qpu, self._clock())
        permit = rules.permit(qpu, self._own_jobs.of(destination.index), request.method, destination)
        return Exchange(client, request.method, headers, qpu, destination.index, permit)

    def qpu_of(self, request: Request) -> Qpu | None:
        """Return the QPU that a request is for, also if it is refused; None where its target names none."""
        try:
            return self._qpu_at(rules.destination(request.target))
        except Refusal:
            return None

    def _qpu_at(self, destination: Destination) -> Qpu:
        qpu = self._qpus[destination.index] if destination.index < len(self._qpus) else None
        if qpu is None:
            raise Refusal(rules.NOTHING_HERE)
        return qpu


def _authorize(headers: Mapping[str, str], service: str, qpu: Qpu, now_s: float) -> None:
    """Raise unless a request shows the job's key or a token for it. A login shows the key in its body."""
    scheme, _, credential = headers.get("authorization", "").partition(" ")
    if service == "api":
        is_good = scheme.lower() == "bearer" and job_tokens.is_good(credential.strip(), qpu.key, now_s)
    elif service == "s3":
        shown = credential.replace(" ", "").partition("Credential=")[2].partition("/")[0]
        is_good = scheme == sigv4.ALGORITHM and job_tokens.are_equal(shown, qpu.key.reveal())
    else:
        is_good = True
    if not is_good:
        raise Refusal("the token or key is not this job's, or has expired", 401)
