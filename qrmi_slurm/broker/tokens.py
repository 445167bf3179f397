"""The tokens: those that a job gets for its key, and those that the site's key gets from IAM."""

import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import urlencode, urlsplit

from qrmi_slurm.broker.spec import Qpu
from qrmi_slurm.broker.upstream import Upstream, UpstreamError
from qrmi_slurm.names import BROKER_MARK
from qrmi_slurm.secret import Secret, mask
from qrmi_slurm.text import printable

# https://cloud.ibm.com/apidocs/iam-identity-token-api
APIKEY_GRANT: Final = "urn:ibm:params:oauth:grant-type:apikey"

# How long a job's token is good for. QRMI asks for the next one before (auth.rs).
LIFETIME_S: Final = 3600

# A real token is renewed when less than this or a tenth of its life is left, in seconds; as QRMI does.
_RENEW_BEFORE_S: Final = 360

_MAX_ANSWER_BYTES: Final = 64 * 1024
_MAX_REASON_CHARS: Final = 200


def issue(key: Secret, now_s: float) -> str:
    """Return a token for a job: when it ends, and what proves that this broker, or one before it, has said so."""
    ends = str(int(now_s) + LIFETIME_S)
    return f"{BROKER_MARK}.{ends}.{_proof(key, ends)}"


def is_good(token: str, key: Secret, now_s: float) -> bool:
    """Tell whether a token was issued for a key and has not ended."""
    mark, _, rest = token.partition(".")
    ends, _, proof = rest.partition(".")
    if mark != BROKER_MARK or not (ends.isascii() and ends.isdecimal() and len(ends) < 16):
        return False
    return same(proof, _proof(key, ends)) and int(ends) > now_s


def same(one: str, other: str) -> bool:
    """Compare two texts in a time that tells nothing."""
    return hmac.compare_digest(one.encode("utf-8", "surrogateescape"), other.encode("utf-8", "surrogateescape"))


def _proof(key: Secret, ends: str) -> str:
    return hmac.new(key.reveal().encode(), ends.encode(), hashlib.sha256).hexdigest()


class LoginError(Exception):
    """IAM gives no token for the site's key; the message holds no secret."""


class RealTokens:
    """The tokens for one QPU's key, each kept until shortly before its end.

    Args:
        qpu: whose key.
        upstream: how IAM is reached.
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
        """The token in use, and the one before it, which a late answer may still repeat."""
        return tuple(token for token in (self._token, self._earlier) if token is not None)

    def get(self, refused: Secret | None = None) -> Secret:
        """Return a token that is good.

        Args:
            refused: one that the service has just refused.

        Raises:
            LoginError: IAM says no, or nothing that can be read.
        """
        with self._lock:
            if self._token is None or self._token == refused or self._clock() >= self._renew_s:
                self._earlier, (self._token, self._renew_s) = self._token, self._log_in()
            return self._token

    def _log_in(self) -> tuple[Secret, float]:
        body = urlencode({"grant_type": APIKEY_GRANT, "apikey": self._qpu.api_key.reveal()}).encode()
        parts = urlsplit(self._qpu.iam_endpoint)
        headers = {"Content-Type": "application/x-www-form-urlencoded", "Accept": "application/json"}
        try:
            with self._upstream.ask(
                "POST", self._qpu.iam_endpoint, f"{parts.path.rstrip('/')}/identity/token", headers, body
            ) as answer:
                text = answer.read(_MAX_ANSWER_BYTES)
                status = answer.status
        except UpstreamError as error:
            raise LoginError(f"IAM cannot be reached: {error}") from None
        if status != 200:
            said = mask(text.decode("utf-8", "replace"), [self._qpu.api_key])
            raise LoginError(f"IAM refuses the site's key with status {status}: {printable(said, _MAX_REASON_CHARS)}")
        try:
            document = json.loads(text)
            token, left_s = str(document["access_token"]), float(document["expires_in"])
        except (ValueError, KeyError, TypeError):
            raise LoginError("IAM's answer holds no token") from None
        if not token.isascii() or not token.isprintable() or " " in token:
            raise LoginError("IAM's token is none that a header can carry")
        return Secret(token), self._clock() + left_s - min(max(_RENEW_BEFORE_S, left_s / 10), left_s / 2)
