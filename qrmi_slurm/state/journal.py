"""The journals: where a child that acquires a QPU writes the token by itself, so that it outlives the hook.

One file `token-<n>` for each QPU, in the job's folder, until the record has the token.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from qrmi_slurm import files
from qrmi_slurm.errors import RecordError
from qrmi_slurm.secret import Secret

_PREFIX = "token-"

# As much as a child's answer may have; a token has some 40 bytes. A child that runs as the user may write anything.
_MAX_TOKEN_BYTES: Final = 64 * 1024


class Journals:
    """The journals of one job, by the number that the record's entry has.

    Args:
        folder: the job's.
    """

    def __init__(self, folder: Path | str) -> None:
        self._folder = folder

    def open(self, number: int) -> int:
        """Return a descriptor that the entry's child writes its token to.

        Raises:
            RecordError: the file cannot be made.
        """
        path = self._path(number)
        try:
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise RecordError(f"cannot create {path}: {error.strerror}") from error

    def token(self, number: int) -> Secret | None:
        """Return the token that a child left; None where it left none."""
        try:
            content = files.read(self._path(number), _MAX_TOKEN_BYTES)
        except OSError:
            return None
        return Secret(content.decode("utf-8", "surrogateescape")) if content else None

    def written_s(self, number: int) -> float | None:
        """Return when the token was written, in seconds since the epoch; None where the file is gone."""
        try:
            return Path(self._path(number)).stat().st_mtime
        except OSError:
            return None

    def drop(self, number: int) -> None:
        """Remove the journal of an entry whose token is in the record; one that stays does no harm."""
        with contextlib.suppress(OSError):
            Path(self._path(number)).unlink()

    def paths(self) -> Iterator[Path]:
        """Return the journals that exist."""
        return Path(self._folder).glob(f"{_PREFIX}*")

    def _path(self, number: int) -> str:
        return f"{self._folder}/{_PREFIX}{number}"  # a Path takes longer to make than the file to open
