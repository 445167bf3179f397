"""Masking what a service answers: a gateway may repeat the header that it did not like, with the site's token in it."""

from collections.abc import Iterable

from qrmi_slurm.secret import Secret

# Shorter ones stand in any text by chance.
_MIN_BYTES = 4


class Masker:
    """Puts as many asterisks in the place of each secret, however the text is cut into pieces.

    Args:
        secrets: what must not go through.
    """

    def __init__(self, secrets: Iterable[Secret]) -> None:
        found = {secret.reveal().encode() for secret in secrets}
        self._secrets = sorted((secret for secret in found if len(secret) >= _MIN_BYTES), key=len, reverse=True)
        self._kept = b""
        self._keep_bytes = len(self._secrets[0]) - 1 if self._secrets else 0

    def feed(self, piece: bytes) -> bytes:
        """Return what can go on of the text so far."""
        text = self._masked(self._kept + piece)
        cut = max(len(text) - self._keep_bytes, 0)
        self._kept = text[cut:]
        return text[:cut]

    def rest(self) -> bytes:
        """Return the end of the text."""
        text, self._kept = self._kept, b""
        return text

    def _masked(self, text: bytes) -> bytes:
        for secret in self._secrets:
            text = text.replace(secret, b"*" * len(secret))
        return text
