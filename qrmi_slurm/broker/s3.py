"""S3: a job's request goes there with the site's signature instead of the job's."""

import re
import time
from collections.abc import Callable, Mapping
from typing import Final

from qrmi_slurm.broker import sigv4
from qrmi_slurm.broker.exchange import Exchange
from qrmi_slurm.broker.refusal import Refusal
from qrmi_slurm.broker.relay import Relay
from qrmi_slurm.broker.rules import Body
from qrmi_slurm.broker.upstream import Upstream, UpstreamRequest

# The job's headers that are passed on, signed.
_PASSED_HEADERS: Final = frozenset(
    {
        "content-encoding",
        "content-md5",
        "content-type",
        "x-amz-checksum-crc32",
        "x-amz-checksum-crc32c",
        "x-amz-checksum-crc64nvme",
        "x-amz-checksum-mode",
        "x-amz-checksum-sha1",
        "x-amz-checksum-sha256",
        "x-amz-decoded-content-length",
        "x-amz-sdk-checksum-algorithm",
        "x-amz-trailer",
    }
)

# What may replace a body's hash. A body whose pieces are signed one by one is refused: the job has only its own key.
_PAYLOADS: Final = frozenset({sigv4.UNSIGNED, "STREAMING-UNSIGNED-PAYLOAD-TRAILER"})
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


class S3:
    """Passes uploads and downloads on; may be used from any thread.

    Args:
        upstream: the way to S3.
        relay: returns its answers to the job.
        clock: seconds since the epoch.
    """

    def __init__(self, upstream: Upstream, relay: Relay, clock: Callable[[], float] = time.time) -> None:
        self._upstream = upstream
        self._relay = relay
        self._clock = clock

    def forward(self, exchange: Exchange) -> None:
        """Ask S3, and answer the client; both bodies are streamed.

        Raises:
            Refusal: the body cannot be signed again, or the answer must not be passed on.
            UpstreamError: S3 gives no answer.
        """
        with self._upstream.ask(self._request(exchange)) as answer:
            self._relay.send(exchange, answer, exchange.qpu.secrets)

    def _request(self, exchange: Exchange) -> UpstreamRequest:
        bucket = exchange.qpu.bucket
        assert bucket is not None  # noqa: S101 the rules permit no object without one
        target = sigv4.object_target(bucket.endpoint, bucket.name, bucket.prefix + exchange.permit.name)
        passed = {name: value for name, value in exchange.headers.items() if name in _PASSED_HEADERS}
        unsigned = {"Accept-Encoding": "identity"}
        payload, pieces = sigv4.UNSIGNED, None
        if exchange.permit.body is Body.OBJECT:
            payload, unsigned["Content-Length"] = _payload(exchange.headers)
            pieces = exchange.client.pieces()
        else:
            exchange.read_body(0)
        signed = sigv4.signed_headers(bucket, exchange.method, target, passed, payload, self._clock())
        return UpstreamRequest(exchange.method, bucket.endpoint, target, {**signed, **unsigned}, pieces)


def _payload(headers: Mapping[str, str]) -> tuple[str, str]:
    """Return a body's hash, or its replacement, and the body's length."""
    length = headers.get("content-length")
    if length is None:
        raise Refusal("an upload needs the header Content-Length", 411)
    payload = headers.get("x-amz-content-sha256", sigv4.UNSIGNED)
    if payload not in _PAYLOADS and not _SHA256.fullmatch(payload):
        raise Refusal("this way of signing a body is not supported", 501)
    return payload, length
