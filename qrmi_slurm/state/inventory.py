"""The inventory: all records of a state directory, readable or not, for the command's questions.

A state directory may have thousands of folders: of a cluster that was renamed, or of jobs that Slurm was not asked
about yet. So what is the same for all of them is looked at once, and each record costs some 40 microseconds.
"""

import gc
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from qrmi_slurm import files, names
from qrmi_slurm.errors import RecordError
from qrmi_slurm.state.job_folder import SET_ASIDE, JobFolder
from qrmi_slurm.state.record import Record

# A record of one QPU is 2 kB.
_PIECE_BYTES: Final = 16 * 1024

_READ_ONLY: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class Item(NamedTuple):
    """One job's folder.

    Args:
        folder: the folder.
        record: the record in it; None if there is none, or it cannot be read.
        fault: why the record cannot be read; None if it can, or there is none.
    """

    folder: JobFolder
    record: Record | None
    fault: RecordError | None = None


def read(state_dir: Path) -> list[Item]:
    """Return the records of all jobs, sorted by cluster and job id, without taking locks.

    Raises:
        RecordError: the state directory exists and cannot be read.
    """
    is_collected = gc.isenabled()
    gc.disable()  # it would look at all records again and again, and find nothing
    try:
        return [item for cluster in names_in(state_dir) for item in _read_folders(state_dir, cluster, None, b"")]
    finally:
        if is_collected:
            gc.enable()


def of_job(state_dir: Path, job_id: int) -> list[Item]:
    """Return the records of one job: its own, those of earlier runs and of other jobs with its number, in each cluster.

    Raises:
        RecordError: the state directory exists and cannot be read.
    """
    return [item for cluster in names_in(state_dir) for item in _read_folders(state_dir, cluster, job_id, b"")]


def mentioning(state_dir: Path, cluster: str, word: str) -> list[Item]:
    """Return the readable records of a cluster's jobs that have a word anywhere in them, as text.

    The others are not decoded, which takes most of the time.

    Raises:
        RecordError: the cluster's folder exists and cannot be read.
    """
    items = _read_folders(state_dir, cluster, None, json.dumps(word)[1:-1].encode())
    return [item for item in items if item.record is not None]


def has_folders(state_dir: Path) -> bool:
    """Tell whether a job has a folder, without reading it.

    Raises:
        RecordError: the state directory exists and cannot be read.
    """
    return any(next(_folders(state_dir, cluster), None) is not None for cluster in names_in(state_dir))


def set_aside(state_dir: Path) -> list[Path]:
    """Return the folders that were set aside for an admin because their records could not be read.

    Raises:
        RecordError: the state directory exists and cannot be read.
    """
    places = [state_dir / cluster / SET_ASIDE for cluster in names_in(state_dir)]
    return [place / name for place in places for name in names_in(place)]


def names_in(path: Path) -> list[str]:
    """Return the sorted names in a folder of root's; an empty list if there is no such folder.

    Raises:
        RecordError: the folder cannot be read.
    """
    try:
        return sorted(os.listdir(path))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror}", "run this as root") from error


def _folders(state_dir: Path, cluster: str) -> Iterator[tuple[int, int, str]]:
    """Return the job id, the moment and the name of each job's folder, in this order."""
    found = []
    for name in names_in(state_dir / cluster):
        number, _, moment = name.partition(".")  # job_folder.py, put_aside()
        if number.isdecimal() and name.isascii() and (not moment or moment.isdecimal()):
            found.append((int(number), int(moment or 0), name))
    return iter(sorted(found))


def _read_folders(state_dir: Path, cluster: str, job_id: int | None, word: bytes) -> Iterator[Item]:
    """Return one cluster's records; of a record without the word only its folder."""
    found = [part for part in _folders(state_dir, cluster) if job_id in (None, part[0])]
    if not found:
        return
    place_fd = _open_trusted(state_dir / cluster)
    try:
        for number, _, name in found:
            folder = JobFolder(state_dir, cluster, number, name)
            try:
                yield Item(folder, folder.read() if place_fd is None else _record(folder, name, place_fd, word))
            except RecordError as error:
                yield Item(folder, None, error)
    finally:
        if place_fd is not None:
            os.close(place_fd)


def _open_trusted(place: Path) -> int | None:
    """Open a cluster's folder; None where it cannot be trusted, or opened: reading each record then says so."""
    try:
        return None if files.weak_place(place) is not None else os.open(place, _READ_ONLY | os.O_DIRECTORY)
    except OSError:
        return None


def _record(folder: JobFolder, name: str, place_fd: int, word: bytes) -> Record | None:
    """Return the record in a folder of a cluster's folder that is trusted; None also where the word is not in it.

    Raises:
        RecordError: as of `JobFolder.read`.
    """
    try:
        status = os.stat(name, dir_fd=place_fd, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode) or files.is_weak(status):
            return folder.read()  # it looks closely, and says what is wrong
        fd = os.open(f"{name}/{names.RECORD_FILE}", _READ_ONLY, dir_fd=place_fd)
    except FileNotFoundError:
        return None
    except OSError:
        return folder.read()
    try:
        content = os.read(fd, _PIECE_BYTES)
        while len(content) >= _PIECE_BYTES and (piece := os.read(fd, _PIECE_BYTES)):
            content += piece
    except OSError:
        return folder.read()
    finally:
        os.close(fd)
    return folder.decoded(content) if word in content else None
