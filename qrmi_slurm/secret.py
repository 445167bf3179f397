"""The type of every value that must not be seen: its text comes out only where `reveal` is called."""

from collections.abc import Iterable
from dataclasses import dataclass

MASK = "***"

# Shorter texts than this occur in ordinary words, and masking them would garble every message.
_MIN_MASKED_CHARS = 4


@dataclass(frozen=True, slots=True)
class Secret:
    """A text whose `repr`, `str` and format are `***`.

    Args:
        reveal_text: the secret itself.
    """

    reveal_text: str

    def reveal(self) -> str:
        """Return the secret itself."""
        return self.reveal_text

    def __repr__(self) -> str:
        return MASK

    def __str__(self) -> str:
        return MASK

    def __format__(self, spec: str) -> str:
        return MASK


def mask(text: str, secrets: Iterable[Secret]) -> str:
    """Return `text` with every one of `secrets` replaced by `***`, the longest first."""
    for secret in sorted((s.reveal() for s in secrets), key=len, reverse=True):
        if len(secret) >= _MIN_MASKED_CHARS:
            text = text.replace(secret, MASK)
    return text
