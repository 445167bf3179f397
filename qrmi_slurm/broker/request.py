"""The head of a request, before anything in it is trusted."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from qrmi_slurm.broker.refusal import Refusal

# Two readers may each take a different one of two such headers.
_SINGLE: Final = frozenset({"authorization", "host", "content-length", "transfer-encoding"})


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it was sent.

    Args:
        method: GET, POST, ...
        target: path and query, percent-encoded.
        fields: the headers in order, their names in lower case.
    """

    method: str
    target: str
    fields: tuple[tuple[str, str], ...]


def checked_headers(request: Request, hosts: Collection[str]) -> Mapping[str, str]:
    """Return a request's headers by name.

    Args:
        request: the request.
        hosts: what its Host header may be; a page in a browser sends the name that led it here.

    Raises:
        Refusal: they are ambiguous, or meant for another server.
    """
    headers: dict[str, str] = {}
    for name, value in request.fields:
        if name in headers and name in _SINGLE:
            raise Refusal(f"the header {name} occurs twice", 400)
        headers[name] = value
    if "content-length" in headers and "transfer-encoding" in headers:
        raise Refusal("the body has two lengths", 400)
    if headers.get("host") not in hosts:
        raise Refusal("the Host header names another server")
    return headers
