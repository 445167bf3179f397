"""The inventory: all records of a state directory, readable or not, for the command's questions."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from qrmi_slurm.errors import RecordError
from qrmi_slurm.state.job_folder import SET_ASIDE, JobFolder
from qrmi_slurm.state.record import Record


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
    items = []
    for folder in _folders(state_dir):
        try:
            items.append(Item(folder, folder.read()))
        except RecordError as error:
            items.append(Item(folder, None, error))
    return items


def has_folders(state_dir: Path) -> bool:
    """Tell whether a job has a folder, without reading it.

    Raises:
        RecordError: the state directory exists and cannot be read.
    """
    return next(_folders(state_dir), None) is not None


def set_aside(state_dir: Path) -> list[Path]:
    """Return the folders that were set aside for an admin because their records could not be read.

    Raises:
        RecordError: the state directory exists and cannot be read.
    """
    places = [state_dir / cluster / SET_ASIDE for cluster in names_in(state_dir)]
    return [place / name for place in places for name in names_in(place)]


def _folders(state_dir: Path) -> Iterator[JobFolder]:
    for cluster in names_in(state_dir):
        found = []
        for name in names_in(state_dir / cluster):
            number, _, moment = name.partition(".")  # job_folder.py, put_aside()
            if all(part.isascii() and part.isdecimal() for part in (number, moment or "0")):
                found.append((int(number), int(moment or 0), name))
        for job_id, _, name in sorted(found):
            yield JobFolder(state_dir, cluster, job_id, name)


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
