"""A service's API: a job's request goes there with the site's token instead of the job's."""

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

from qrmi_slurm.broker import bodies, sigv4
from qrmi_slurm.broker.exchange import SMALL_BODY_BYTES, Exchange
from qrmi_slurm.broker.refusal import Refusal
from qrmi_slurm.broker.relay import Relay
from qrmi_slurm.broker.rules import Body, Service
from qrmi_slurm.broker.sessions import Sessions
from qrmi_slurm.broker.spec import Bucket
from qrmi_slurm.broker.upstream import Upstream, UpstreamRequest

# A job's circuits and parameters. They are checked before they are passed on, so they have to fit into memory.
MAX_JOB_BYTES: Final = 64 * 1024**2
# Bodies above this size are read one at a time.
_LARGE_BYTES: Final = 1024**2

_MAX_ERROR_BYTES: Final = 64 * 1024

# The calls that an ended session would refuse, and those with which a job closes its session itself.
_NEED_A_SESSION: Final = frozenset({"create_job", "get_session"})
_CLOSE_A_SESSION: Final = frozenset({"update_session", "close_session"})

# The job's headers that are passed on; the others are set here or dropped.
_PASSED_HEADERS: Final = frozenset({"accept", "content-type", "ibm-api-version", "user-agent"})


class Api:
    """Passes requests on to the compute service or an IBM Quantum System; may be used from any thread.

    Args:
        sessions: the present sessions of the broker's QPUs, and the site's tokens for these.
        upstream: the way to the services.
        relay: returns their answers to the job.
        clock: seconds since the epoch.
    """

    def __init__(
        self, sessions: Sessions, upstream: Upstream, relay: Relay, clock: Callable[[], float] = time.time
    ) -> None:
        self._sessions = sessions
        self._upstream = upstream
        self._relay = relay
        self._clock = clock
        self._large_body = threading.Lock()

    def forward(self, exchange: Exchange) -> None:
        """Ask the service, and answer the client.

        Raises:
            Refusal: the body asks for something that is not the job's, the answer must not be passed on, or the job's
                session has ended and there is no new one.
            LoginError: IAM issued no token for the site's key.
            UpstreamError: the service gives no answer.
        """
        job, body = self._checked_body(exchange)
        if exchange.permit.call in _NEED_A_SESSION:
            self._sessions.renew_if_over(exchange.index)
        self._ask(exchange, body, job)

    def _checked_body(self, exchange: Exchange) -> tuple[str, bytes]:
        """Return the id that the body gives a new job, or an empty one, and the body to send."""
        body = self._read_body(exchange)
        permit, qpu = exchange.permit, exchange.qpu
        if permit.body is Body.CLOSE:
            bodies.check_close(body)
        elif permit.body is Body.JOB and permit.service is Service.QUANTUM_SYSTEM:
            return bodies.system_job(qpu, body, self._presign)
        elif permit.body is Body.JOB:
            bodies.check_job(qpu, body)
        elif body:
            raise Refusal("this request may not have a body")
        return "", body

    def _read_body(self, exchange: Exchange) -> bytes:
        if exchange.permit.body is not Body.JOB:
            return exchange.read_body(SMALL_BODY_BYTES)
        size = exchange.body_bytes
        is_large = size is None or _LARGE_BYTES < size <= MAX_JOB_BYTES
        with self._large_body if is_large else contextlib.nullcontext():
            return exchange.read_body(MAX_JOB_BYTES)

    def _presign(self, bucket: Bucket, method: str, name: str, life_s: int) -> str:
        return sigv4.presigned_url(bucket, method, bucket.prefix + name, life_s, self._clock())

    def _ask(self, exchange: Exchange, body: bytes, job: str) -> None:
        """Ask with the site's token; once more with a new one if the service refuses it, or its session has ended."""
        tokens = self._sessions.tokens[exchange.index]
        token = tokens.get()
        for is_last in (False, True):
            with self._upstream.ask(self._request(exchange, body, token.reveal())) as answer:
                if answer.status == 401 and not is_last:
                    answer.read_whole(_MAX_ERROR_BYTES)
                    token = tokens.get(refused=token)
                    continue
                if not is_last and self._has_new_session(exchange, answer.status):
                    answer.read_whole(_MAX_ERROR_BYTES)
                    continue
                if exchange.permit.call in _CLOSE_A_SESSION and 200 <= answer.status < 300:
                    self._sessions.closed(exchange.index)
                self._relay.send(exchange, answer, (*exchange.qpu.secrets, *tokens.secrets), job)
                return

    def _has_new_session(self, exchange: Exchange, status: int) -> bool:
        """Tell whether a job was refused because its session had just ended, and there is another one now."""
        may_be_over = exchange.permit.call == "create_job" and 400 <= status < 500
        return may_be_over and self._sessions.renew_if_over(exchange.index)

    def _request(self, exchange: Exchange, body: bytes, token: str) -> UpstreamRequest:
        headers = {name: value for name, value in exchange.headers.items() if name in _PASSED_HEADERS}
        headers |= {"Service-CRN": exchange.qpu.crn, "Accept-Encoding": "identity", "Authorization": f"Bearer {token}"}
        endpoint = exchange.qpu.endpoint
        target = urlsplit(endpoint).path.rstrip("/") + self._sessions.in_place(exchange.index, exchange.permit.target)
        if exchange.permit.call == "create_job":
            body = self._sessions.body_in_place(exchange.index, body)
        return UpstreamRequest(exchange.method, endpoint, target, headers, body or None)
