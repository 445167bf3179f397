"""The tokens that IAM issues for the site's key."""

import json
import threading
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import urlencode, urlsplit

from qrmi_slurm.broker.job_tokens import APIKEY_GRANT
from qrmi_slurm.broker.spec import Qpu
from qrmi_slurm.broker.upstream import Upstream, UpstreamError, UpstreamRequest
from qrmi_slurm.secret import Secret, mask
from qrmi_slurm.text import printable

# A token is renewed when less than this, or a tenth of its life, is left, in seconds; as QRMI does.
_RENEW_BEFORE_S: Final = 360

_MAX_ANSWER_BYTES: Final = 64 * 1024
_MAX_REASON_CHARS: Final = 200


class LoginError(Exception):
    """IAM issued no token for the site's key; the message holds no secret."""


class SiteTokens:
    """The tokens for one QPU's key, each kept until shortly before it expires; may be used from any thread.

    Args:
        qpu: the QPU.
        upstream: the way to IAM.
        clock: seconds since the epoch.
    """

    def __init__(self, qpu: Qpu, upstream: Upstream, clock: Callable[[], float] = time.time) -> None:
        self._qpu = qpu
        self._upstream = upstream
        self._clock = clock
        self._lock = threading.Lock()
        self._token: Secret | None = None
        self._renew_s = 0.0
        self._earlier: Secret | None = None

    @property
    def secrets(self) -> tuple[Secret, ...]:
        """The token in use and the one before it, which a late answer may still repeat."""
        return tuple(token for token in (self._token, self._earlier) if token is not None)

    def get(self, refused: Secret | None = None) -> Secret:
        """Return a valid token.

        Args:
            refused: one that the service has just refused.

        Raises:
            LoginError: IAM refuses, is out of reach, or sends no token.
        """
        with self._lock:
            if self._token is None or self._token == refused or self._clock() >= self._renew_s:
                token, lifetime_s = _parse_token(self._log_in())
                self._earlier, self._token = self._token, token
                self._renew_s = self._clock() + lifetime_s - _margin_s(lifetime_s)
            return self._token

    def _log_in(self) -> bytes:
        """Return IAM's answer to the site's key."""
        body = urlencode({"grant_type": APIKEY_GRANT, "apikey": self._qpu.api_key.reveal()}).encode()
        target = f"{urlsplit(self._qpu.iam_endpoint).path.rstrip('/')}/identity/token"
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
        try:
            with self._upstream.ask(UpstreamRequest("POST", self._qpu.iam_endpoint, target, headers, body)) as answer:
                text = answer.read_whole(_MAX_ANSWER_BYTES)
                status = answer.status
        except UpstreamError as error:
            raise LoginError(f"IAM cannot be reached: {error}") from None
        if status != 200:
            reason = printable(mask(text.decode("utf-8", "replace"), [self._qpu.api_key]), _MAX_REASON_CHARS)
            raise LoginError(f"IAM refuses the site's key with status {status}: {reason}")
        return text


def _parse_token(text: bytes) -> tuple[Secret, float]:
    """Return the token in IAM's answer, and its lifetime in seconds."""
    try:
        document = json.loads(text)
        token, lifetime_s = str(document["access_token"]), float(document["expires_in"])
    except (ValueError, KeyError, TypeError):
        raise LoginError("IAM's answer contains no token") from None
    if not token.isascii() or not token.isprintable() or " " in token:
        raise LoginError("IAM's token cannot be sent in a header")
    return Secret(token), lifetime_s


def _margin_s(lifetime_s: float) -> float:
    """Return how long before its end a token is renewed, in seconds; half of a short life at most."""
    return min(max(_RENEW_BEFORE_S, lifetime_s / 10), lifetime_s / 2)
