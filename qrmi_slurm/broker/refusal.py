"""A refusal, and the form of a broker's error answers."""

import http.client
import json
import uuid
from typing import Final

_MORE_INFO: Final = "https://quantum.cloud.ibm.com/docs/errors"


class Refusal(Exception):
    """A request that is not passed on.

    Args:
        message: why, for the job.
        status: HTTP status.
    """

    def __init__(self, message: str, status: int = 403) -> None:
        super().__init__(message)
        self.message = message
        self.status = status


def error_body(message: str, status: int) -> bytes:
    """Return the body of an error answer, in the services' own form, which QRMI shows its user."""
    text = f"credential broker: {message}"
    body = {
        "errors": [{"message": text, "more_info": _MORE_INFO}],
        "status_code": status,
        "title": http.client.responses.get(status, "Refused"),
        "trace": uuid.uuid4().hex,
        "errorCode": "BROKER",
        "errorMessage": text,
    }
    return json.dumps(body).encode()
