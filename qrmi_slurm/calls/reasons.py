"""The reasons for a failed call, in a sentence that tells a researcher whom to ask.

QRMI passes on the error text of its HTTP client or the service. It is kept after the sentence, as an admin needs it.
"""

import re
from typing import Final

_LOGIN_STATUS: Final = re.compile(r"Token renewal failed: reqwest::Error \{ kind: Status\((\d{3})")
_UNREACHABLE: Final = re.compile(r"error sending request for url \((\S+?)\)")
_STATUS: Final = re.compile(r"response body: (\d{3}) ([A-Za-z ]+)")


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
