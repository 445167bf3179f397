"""The jobs that were made through a broker, by their ids at the service: those are the Slurm job's own.

They stand in the file behind `life_fd` as well, root's, so that a broker that is started again knows them.
"""

import os
import threading
from collections.abc import Collection, Mapping
from typing import Final

_CHUNK_BYTES: Final = 1024**2


class OwnJobs:
    """The ids, by the QPU's place; may be used from any thread.

    Args:
        fd: the file, open to read and to append.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._ids: dict[int, set[str]] = {}
        for line in self._read().split("\n"):
            place, _, job = line.partition(" ")
            if place.isdecimal() and job:
                self._ids.setdefault(int(place), set()).add(job)

    def of(self, place: int) -> Collection[str]:
        """Return a QPU's."""
        return self._ids.setdefault(place, set())

    def add(self, place: int, job: str) -> bool:
        """Note a job before its Slurm job hears of it; False where the disk did not take it."""
        with self._lock:
            self._ids.setdefault(place, set()).add(job)
            line = f"\n{place} {job}\n".encode()
            try:
                return os.write(self._fd, line) == len(line)
            except OSError:
                return False

    def is_folder_gone(self) -> bool:
        """Tell whether the file was unlinked, and with it the job's folder."""
        try:
            return os.fstat(self._fd).st_nlink == 0
        except OSError:  # another node has removed it (ESTALE)
            return True

    @property
    def counts(self) -> Mapping[int, int]:
        """How many there are, by place."""
        return {place: len(ids) for place, ids in self._ids.items()}

    def _read(self) -> str:
        content = b""
        while chunk := os.pread(self._fd, _CHUNK_BYTES, len(content)):
            content += chunk
        return content.decode("ascii", "replace")
