"""Masking what a service answers: a gateway may repeat the header it did not like, with the site's token in it."""

from collections.abc import Iterable
from typing import Final

from qrmi_slurm.secret import Secret

# Shorter texts occur in any answer by chance.
_MIN_BYTES: Final = 4


class Masker:
    """Replaces each secret by as many asterisks, however the text is cut into pieces.

    Args:
        secrets: what must not get through.
    """

    def __init__(self, secrets: Iterable[Secret]) -> None:
        found = {secret.reveal().encode() for secret in secrets}
        self._secrets = sorted((secret for secret in found if len(secret) >= _MIN_BYTES), key=len, reverse=True)
        self._kept = b""
        self._keep_bytes = len(self._secrets[0]) - 1 if self._secrets else 0

    def mask(self, text: bytes) -> bytes:
        """Return a whole text masked."""
        for secret in self._secrets:
            text = text.replace(secret, b"*" * len(secret))
        return text

    def feed(self, piece: bytes) -> bytes:
        """Return as much of the text so far as cannot hold the beginning of a secret."""
        text = self.mask(self._kept + piece)
        cut = max(len(text) - self._keep_bytes, 0)
        self._kept = text[cut:]
        return text[:cut]

    def rest(self) -> bytes:
        """Return the end of the text."""
        text, self._kept = self._kept, b""
        return text
