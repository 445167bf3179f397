"""The relay: passes a service's answer to the client, without secrets and without what is not the job's."""

from collections.abc import Iterable
from typing import Final

from qrmi_slurm.broker import bodies
from qrmi_slurm.broker.connection import ClientConnection
from qrmi_slurm.broker.exchange import Exchange
from qrmi_slurm.broker.masking import Masker
from qrmi_slurm.broker.own_jobs import OwnJobs
from qrmi_slurm.broker.refusal import Refusal
from qrmi_slurm.broker.request_log import RequestLog
from qrmi_slurm.broker.upstream import Answer
from qrmi_slurm.secret import Secret

_MAX_NEW_JOB_BYTES: Final = 1024**2  # it holds little more than the id
_MAX_LIST_BYTES: Final = 32 * 1024**2
_CHUNK_BYTES: Final = 64 * 1024

_PASSED_HEADERS: Final = frozenset({"content-type", "etag", "last-modified", "retry-after", "x-request-id"})
_PASSED_PREFIX: Final = "x-amz-checksum-"


class Relay:
    """Passes answers on; may be used from any thread.

    Args:
        own_jobs: keeps the ids of new jobs.
        log: where failures go.
    """

    def __init__(self, own_jobs: OwnJobs, log: RequestLog) -> None:
        self._own_jobs = own_jobs
        self._log = log

    def send(self, exchange: Exchange, answer: Answer, secrets: Iterable[Secret], job: str = "") -> None:
        """Send an answer to the client: edited where it has to be read as a whole, otherwise piece by piece.

        Args:
            exchange: the request that is answered.
            answer: the service's answer.
            secrets: what is masked in it.
            job: the id of the job that the request submits; empty where the answer contains it.

        Raises:
            Refusal: it must not be passed on.
            BrokenConnectionError: the client is gone, or the answer broke off.
        """
        if 300 <= answer.status < 400 and answer.status != 304:
            self._log.failed(
                exchange.qpu, f"{exchange.permit.call}: redirected with status {answer.status}, not followed"
            )
            answer.close()
            raise Refusal("the service sent a redirect, which the credential broker does not follow", 502)
        if answer.status < 200:  # http.client takes any but 100 for the answer itself
            raise Refusal("the service sent no final answer", 502)
        masker = Masker(secrets)
        headers = _passed_headers(answer, masker)
        if 200 <= answer.status < 300 and (exchange.permit.makes_job or exchange.permit.filters):
            text = self._edited(exchange, answer, job)
            exchange.client.answer(answer.status, headers, masker.mask(text))
        else:
            _stream(exchange.client, answer, headers, masker)

    def _edited(self, exchange: Exchange, answer: Answer, job: str) -> bytes:
        """Return a list without what is not the job's; for a new job, note its id."""
        if exchange.permit.filters:
            text = _read_whole(answer, _MAX_LIST_BYTES)
            return bodies.only_own(text, exchange.permit.filters, exchange.qpu, self._own_jobs.of(exchange.index))
        text = _read_whole(answer, _MAX_NEW_JOB_BYTES)
        job = job or bodies.job_of(text)
        if job and not self._own_jobs.add(exchange.index, job):
            self._log.failed(
                exchange.qpu, "a job's id cannot be written to disk: the broker will not know it after a restart"
            )
        return text


def _read_whole(answer: Answer, max_bytes: int) -> bytes:
    text = answer.read_whole(max_bytes + 1)
    if len(text) > max_bytes:
        raise Refusal("the service's answer is too large", 502)
    return text


def _stream(client: ClientConnection, answer: Answer, headers: dict[str, str], masker: Masker) -> None:
    length = answer.getheader("content-length")
    if length is not None and length.isascii() and length.isdecimal() and not answer.chunked:
        headers["content-length"] = length
    client.start_answer(answer.status, headers)
    while piece := answer.read1(_CHUNK_BYTES):
        client.send(masker.feed(piece))
    client.send(masker.rest())
    client.finish()


def _passed_headers(answer: Answer, masker: Masker) -> dict[str, str]:
    """Return the headers to pass on; h11 would refuse a value with a line break in it."""
    headers = {}
    for name, value in answer.getheaders():
        lower = name.lower()
        is_passed = lower in _PASSED_HEADERS or lower.startswith(_PASSED_PREFIX)
        if is_passed and value.isascii() and value.isprintable():
            headers[lower] = masker.mask(value.encode()).decode()
    return headers
