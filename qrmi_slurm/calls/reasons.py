"""The reasons for a failed call: in a sentence that tells a researcher whom to ask, and whether waiting may help.

QRMI passes on the error text of its HTTP client or the service. It is kept after the sentence, as an admin needs it.
"""

import re
from typing import Final

from qrmi_slurm.calls.protocol import Answer, Verdict
from qrmi_slurm.failure import Kind

_LOGIN_STATUS: Final = re.compile(r"Token renewal failed: reqwest::Error \{ kind: Status\((\d{3})")
_UNREACHABLE: Final = re.compile(r"error sending request for url \((\S+?)\)")
_STATUS: Final = re.compile(r"(?:response body:|^Status:|: Status:|status code) (\d{3}) ([A-Za-z ]+)")

# The same, and how QRMI's client for IBM Quantum Systems says it: `reason: Service Unavailable (503 Service ...)`.
_CODE: Final = re.compile(r"(?:response body: |Status: |status code |reason: [A-Za-z ]+\()(\d{3})\b")

# What child.py says itself of a QPU that it did not acquire.
_STATE: Final = re.compile(r"the QPU is (paused\b)?")

# What QRMI's HTTP clients and OQTOPUS's say where there is no connection, or it was lost.
_NO_CONNECTION: Final = (
    "error sending request",
    "error in reqwest",
    "client error (",
    "tcp connect",
    "cannot be reached",
)

# An answer that is none of the service's: a proxy's page, or half of one.
_UNREADABLE: Final = ("error in serde", "expected value at line", "EOF while parsing", "error decoding response body")

# All that QRMI says of Pasqal's cloud, whatever was wrong.
_UNSAID: Final = "failed to get device"


def plain(reason: str) -> str:
    """Return a sentence about the failure with QRMI's own text in brackets; that text alone if no sentence fits."""
    sentence = _sentence(reason)
    return f"{sentence} ({reason})" if sentence else reason


def _sentence(reason: str) -> str:
    login = _LOGIN_STATUS.search(reason)
    if login and login[1] in ("400", "401", "403"):
        return "the service refused the API key"
    if login or ("Token renewal failed" in reason and "Status(" not in reason):
        return "the login service cannot be reached" if not login else f"the login service answered {login[1]}"
    if reason.startswith("authentication failed"):
        return "the service refused the credentials"
    unreachable = _UNREACHABLE.search(reason)
    if unreachable:
        return f"{unreachable[1]} cannot be reached"
    status = _STATUS.search(reason)
    if status:
        return f"the service answered {status[1]} {status[2].strip()}"
    if "error in serde" in reason:
        return "QRMI could not read the service's answer"
    return ""


def kind(answer: Answer) -> Kind:
    """Return what kind of failure a call ended with; permanent where nothing shows that it may pass.

    Args:
        answer: of a call that was not done, and brought no token.
    """
    reason = answer.reason
    if answer.verdict is Verdict.UNASKED or reason.startswith("no answer within"):
        return Kind.NO_ANSWER
    state = _STATE.match(reason)
    if state:
        return Kind.PAUSED if state[1] else Kind.OFFLINE
    login = _LOGIN_STATUS.search(reason)
    if login:
        return _of_status(int(login[1]))
    code = _CODE.search(reason)
    if code and "Token renewal failed" not in reason:
        return _of_status(int(code[1]))
    if any(words in reason for words in ("Token renewal failed", *_NO_CONNECTION)):
        return Kind.UNREACHABLE
    # A user's own wrong key is no reason to wait; the site's has been right before.
    is_unsaid = _UNSAID in reason and answer.call.run_as_uid is None
    return Kind.NO_ANSWER if is_unsaid or any(words in reason for words in _UNREADABLE) else Kind.PERMANENT


def _of_status(code: int) -> Kind:
    """Return what an HTTP status means (RFC 9110, RFC 6585)."""
    if code == 429:
        return Kind.BUSY
    if code == 408:
        return Kind.NO_ANSWER
    return Kind.SERVICE_ERROR if code >= 500 else Kind.PERMANENT
