"""The tokens that a broker issues for its job's key. It stores none of them, so they survive its restart."""

import hashlib
import hmac
from typing import Final

from qrmi_slurm.names import BROKER_MARK
from qrmi_slurm.secret import Secret

# https://cloud.ibm.com/apidocs/iam-identity-token-api
APIKEY_GRANT: Final = "urn:ibm:params:oauth:grant-type:apikey"

# How long a token is valid. QRMI asks for the next one before (auth.rs).
LIFETIME_S: Final = 3600


def issue(key: Secret, now_s: float) -> str:
    """Return a token: when it expires, and a proof that a holder of the job's key issued it.

    Args:
        key: the job's key.
        now_s: seconds since the epoch.
    """
    expires = str(int(now_s) + LIFETIME_S)
    return f"{BROKER_MARK}.{expires}.{_proof(key, expires)}"


def is_good(token: str, key: Secret, now_s: float) -> bool:
    """Tell whether a token was issued for a key and has not expired."""
    mark, _, rest = token.partition(".")
    expires, _, proof = rest.partition(".")
    if mark != BROKER_MARK or not (expires.isascii() and expires.isdecimal() and len(expires) < 16):
        return False
    return are_equal(proof, _proof(key, expires)) and int(expires) > now_s


def are_equal(one: str, other: str) -> bool:
    """Compare two texts in constant time."""
    return hmac.compare_digest(one.encode("utf-8", "surrogateescape"), other.encode("utf-8", "surrogateescape"))


def _proof(key: Secret, expires: str) -> str:
    return hmac.new(key.reveal().encode(), expires.encode(), hashlib.sha256).hexdigest()
