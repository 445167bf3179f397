"""Bearer tokens: issues them for the API key and checks them."""

import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from hmac import compare_digest

from qrmi_slurm.secret import Secret

# https://cloud.ibm.com/apidocs/iam-identity-token-api
APIKEY_GRANT = "urn:ibm:params:oauth:grant-type:apikey"
_MAX_TOKENS = 100_000  # about 10 MB; the oldest are dropped


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token.

    Args:
        text: the token itself.
        expires_s: when it expires, in seconds since the epoch.
    """

    text: str = field(repr=False)
    expires_s: float


class IamError(Exception):
    """IAM refuses to issue a token.

    Args:
        code: IAM's errorCode.
        message: IAM's errorMessage.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class TokenIssuer:
    """Issues tokens for one API key.

    Args:
        api_key: the only valid key.
        lifetime_s: how long a token is valid.
        clock: seconds since the epoch.
    """

    def __init__(self, api_key: Secret, lifetime_s: int, clock: Callable[[], float]) -> None:
        self.lifetime_s = lifetime_s
        self._api_key = api_key
        self._clock = clock
        self._lock = threading.Lock()
        self._tokens: dict[str, float] = {}

    def issue(self, grant_type: str | None, api_key: str | None) -> Token:
        """Return a new token.

        Raises:
            IamError: the grant type is unsupported, or the key is missing or wrong.
        """
        if grant_type != APIKEY_GRANT:
            raise IamError("BXNIM0111E", "Property missing or empty. The grant type is not supported.")
        if not api_key:
            raise IamError("BXNIM0109E", "Property missing or empty: apikey")
        if not compare_digest(api_key.encode(), self._api_key.reveal().encode()):
            raise IamError("BXNIM0415E", "Provided API key could not be found.")
        token = Token(secrets.token_urlsafe(48), self._clock() + self.lifetime_s)
        with self._lock:
            self._tokens[token.text] = token.expires_s
            while len(self._tokens) > _MAX_TOKENS:
                self._tokens.pop(next(iter(self._tokens)))
        return token

    def accepts(self, authorization: str | None) -> bool:
        """Tell whether an Authorization header has a token that was issued and has not expired."""
        scheme, _, text = (authorization or "").partition(" ")
        with self._lock:
            return scheme.lower() == "bearer" and self._tokens.get(text.strip(), 0.0) > self._clock()
