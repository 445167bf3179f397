"""The jobs at the service that were submitted through a broker: only those are the Slurm job's own.

Their ids are also in the file behind `spec.LIFE_FD`, which only root can read, so that a restarted broker knows them.
"""

import os
import threading
from collections.abc import Collection
from typing import Final

_CHUNK_BYTES: Final = 1024**2


class OwnJobs:
    """The ids of those jobs, by the QPU's index; may be used from any thread.

    Args:
        fd: the file, open for reading and appending.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._ids: dict[int, set[str]] = {}
        for line in self._read().split("\n"):
            index, _, job = line.partition(" ")
            if index.isdecimal() and job:
                self._ids.setdefault(int(index), set()).add(job)

    def of(self, index: int) -> Collection[str]:
        """Return the ids of one QPU's jobs."""
        return self._ids.setdefault(index, set())

    def add(self, index: int, job: str) -> bool:
        """Note a job, before the Slurm job learns its id; False if it could not be written to disk."""
        with self._lock:
            self._ids.setdefault(index, set()).add(job)
            line = f"\n{index} {job}\n".encode()
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
    def count(self) -> int:
        """How many there are, over all QPUs."""
        return sum(len(ids) for ids in self._ids.values())

    def _read(self) -> str:
        content = b""
        while chunk := os.pread(self._fd, _CHUNK_BYTES, len(content)):
            content += chunk
        return content.decode("ascii", "replace")
