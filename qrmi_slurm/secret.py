"""The type of every value that must not be seen: its text comes out only where `reveal` is called."""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

MASK = "***"

# Shorter texts than this occur in ordinary words, and masking them would garble every message.
_MIN_MASKED_CHARS = 4

# An Authorization header that a service or a proxy repeats in its answer (RFC 9110, 11.4). QRMI trades an API key for a
# bearer token that nobody else knows of. No word of a sentence is that long.
_CREDENTIALS = re.compile(r"\b(Bearer|Basic) +[A-Za-z0-9._~+/=-]{16,}")


class Secret:
    """A text whose `repr`, `str` and format are `***`.

    Args:
        text: the secret itself.
    """

    # No NamedTuple, as the hooks' other values are: `"%s" % secret` takes a tuple apart.
    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the secret itself."""
        return self._text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return MASK

    def __str__(self) -> str:
        return MASK

    def __format__(self, spec: str) -> str:
        return MASK


def masked_repr(value: NamedTuple, *hidden: str) -> str:
    """Return the repr of a value some of whose fields are not to be seen."""
    fields: dict[str, Any] = value._asdict()
    shown = [f"{name}={MASK if name in hidden else repr(field)}" for name, field in fields.items()]
    return f"{type(value).__name__}({', '.join(shown)})"


def mask(text: str, secrets: Iterable[Secret]) -> str:
    """Return `text` with each of `secrets`, the longest first, and each Authorization header replaced by `***`."""
    for secret in sorted((s.reveal() for s in secrets), key=len, reverse=True):
        if len(secret) >= _MIN_MASKED_CHARS:
            text = text.replace(secret, MASK)
    return _CREDENTIALS.sub(rf"\1 {MASK}", text)
