"""A server's certificate: who signed it and until when it holds, read from its DER, verified or not.

Python's ssl tells nothing of a certificate that it refuses, and that is the one an admin wants to know about.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

# X.690: tags; X.520: the attributes of a name, in DER.
_SEQUENCE: Final = 0x30
_EXPLICIT_VERSION: Final = 0xA0
_UTC_TIME: Final = 0x17
_ORGANIZATION: Final = bytes.fromhex("55040a")
_COMMON_NAME: Final = bytes.fromhex("550403")


@dataclass(frozen=True, slots=True)
class Certificate:
    """What is shown of a certificate.

    Args:
        issuer: who signed it: organisation and common name.
        not_after: when it ends.
    """

    issuer: str
    not_after: datetime


def read(der: bytes) -> Certificate:
    """Return what a certificate says.

    Raises:
        ValueError: these bytes are no certificate.
    """
    try:
        (_, whole), *_ = _values(der)
        (_, signed), *_ = _values(whole)
        fields = [field for field in _values(signed) if field[0] != _EXPLICIT_VERSION]
        _serial, _algorithm, (_, issuer), (_, validity), *_ = fields
        _, (tag, text) = _values(validity)
        return Certificate(_name(issuer), _time(tag, text.decode("ascii")))
    except (ValueError, IndexError) as error:
        raise ValueError("not a certificate") from error


def _values(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield tag and content of each value that stands in `content` side by side."""
    at = 0
    while at < len(content):
        tag, length, at = content[at], content[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(content[at : at + size], "big"), at + size
        if at + length > len(content):
            raise ValueError("cut off")
        yield tag, content[at : at + length]
        at += length


def _name(content: bytes) -> str:
    found: dict[bytes, str] = {}
    for _, attributes in _values(content):
        for _, attribute in _values(attributes):
            (_, kind), (_, value) = _values(attribute)
            found[kind] = value.decode("utf-8", "replace")
    parts = [found[kind] for kind in (_ORGANIZATION, _COMMON_NAME) if kind in found]
    return ", ".join(parts) or "somebody without a name"


def _time(tag: int, text: str) -> datetime:
    # RFC 5280, 4.1.2.5: two digits of a year from 50 on are of the last century.
    if tag == _UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC)
