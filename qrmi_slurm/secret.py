"""The type of every value that must not be shown: only `reveal` returns its text."""

import re
from collections.abc import Iterable
from typing import Any, NamedTuple

MASK = "***"

# Shorter secrets occur in ordinary words; masking them would garble every message.
_MIN_MASKED_CHARS = 4

# An Authorization header that a service or a proxy repeats in its answer (RFC 9110, 11.4). QRMI trades the API key for
# a bearer token that is not in our list of secrets. Words of a sentence are shorter than this.
_SCHEMES = ("Bearer", "Basic")
_CREDENTIALS = rf"\b({'|'.join(_SCHEMES)}) +[A-Za-z0-9._~+/=-]{{16,}}"


class Secret:
    """A text whose `repr`, `str` and format are `***`.

    Args:
        text: the secret itself.
    """

    # Not a NamedTuple like the hooks' other values: `"%s" % secret` would unpack it.
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
    """Return the repr of a value with the `hidden` fields masked."""
    fields: dict[str, Any] = value._asdict()
    shown = [f"{name}={MASK if name in hidden else repr(field)}" for name, field in fields.items()]
    return f"{type(value).__name__}({', '.join(shown)})"


def mask(text: str, secrets: Iterable[Secret]) -> str:
    """Return `text` with each of `secrets`, the longest first, and each Authorization header replaced by `***`."""
    there = [text_ for secret in secrets if len(text_ := secret.reveal()) >= _MIN_MASKED_CHARS and text_ in text]
    for secret in sorted(there, key=len, reverse=True):
        text = text.replace(secret, MASK)
    if not any(scheme in text for scheme in _SCHEMES):  # compiling the pattern takes 0.3 ms of each hook's run
        return text
    return re.sub(_CREDENTIALS, rf"\1 {MASK}", text)
