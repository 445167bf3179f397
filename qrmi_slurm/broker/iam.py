"""IAM as a job sees it: the broker's own token for the job's key."""

import json
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl

from qrmi_slurm.broker import job_tokens
from qrmi_slurm.broker.exchange import SMALL_BODY_BYTES, Exchange
from qrmi_slurm.broker.refusal import Refusal
from qrmi_slurm.secret import Secret


class Iam:
    """Answers logins without asking the real IAM.

    Args:
        clock: seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock

    def answer(self, exchange: Exchange) -> None:
        """Give out a token for the job's key.

        Raises:
            Refusal: the key or the kind of login is wrong.
        """
        _check_login(exchange.read_body(SMALL_BODY_BYTES), exchange.qpu.key)
        document = json.dumps(_token(exchange.qpu.key, self._clock())).encode()
        exchange.client.answer(200, {"content-type": "application/json"}, document)


def _check_login(body: bytes, key: Secret) -> None:
    form = _form(body)
    if form.get("grant_type") != job_tokens.APIKEY_GRANT:
        raise Refusal("the grant type is not supported", 400)
    if not job_tokens.are_equal(form.get("apikey", ""), key.reveal()):
        raise Refusal("Provided API key could not be found.", 400)  # as IAM says it


def _form(body: bytes) -> Mapping[str, str]:
    try:
        pairs = parse_qsl(body.decode("ascii"), strict_parsing=True, max_num_fields=16)
    except ValueError:
        raise Refusal("the login form cannot be parsed", 400) from None
    form = dict(pairs)
    if len(form) != len(pairs):
        raise Refusal("a name occurs twice in the login form", 400)
    return form


def _token(key: Secret, now_s: float) -> dict[str, Any]:
    """Return a token in IAM's form (https://cloud.ibm.com/apidocs/iam-identity-token-api)."""
    return {
        "access_token": job_tokens.issue(key, now_s),
        "refresh_token": "not_supported",
        "token_type": "Bearer",
        "expires_in": job_tokens.LIFETIME_S,
        "expiration": int(now_s) + job_tokens.LIFETIME_S,
        "scope": "ibm openid",
    }
