"""The ledgers: reading the acquisitions of a timespan from ledger files, and from the records of what is held now."""

import gzip
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import IO, Final

from qrmi_slurm.errors import RecordError
from qrmi_slurm.report import acquisition
from qrmi_slurm.report.acquisition import Acquisition
from qrmi_slurm.report.timespan import Timespan
from qrmi_slurm.state import inventory, ledger
from qrmi_slurm.state.inventory import Item

# A line has some 500 bytes. A longer one is not ours, and is skipped without being kept in memory.
_MAX_LINE_BYTES: Final = 64 * 1024
_SUFFIXES: Final = (".jsonl", ".jsonl.gz")
_MONTH: Final = re.compile(r"\.(\d{4})-(\d{2})\.jsonl(?:\.gz)?")


def read(state_dir: Path, span: Timespan, now_s: float) -> tuple[list[Acquisition], int]:
    """Return a site's acquisitions in a timespan, and how many lines of its ledgers could not be read.

    Args:
        state_dir: the site's; if it does not exist, there are none.
        span: the timespan.
        now_s: until when what is held now counts; seconds since the epoch.

    Raises:
        RecordError: a ledger or the state directory cannot be read.
    """
    files: list[Path] = []
    for cluster in inventory.names_in(state_dir):
        folder = state_dir / cluster / ledger.FOLDER
        files += [folder / name for name in inventory.names_in(folder) if name.endswith(_SUFFIXES)]
    return _collect(files, inventory.read(state_dir), span, now_s)


def read_from(paths: Sequence[Path], span: Timespan, now_s: float) -> tuple[list[Acquisition], int]:
    """Return the same from files and folders: copies of ledgers, or state directories of other nodes.

    Args:
        paths: the files and folders.
        span: the timespan.
        now_s: until when what is held now counts; seconds since the epoch.

    Raises:
        RecordError: one of them does not exist or cannot be read.
    """
    files: list[Path] = []
    items: list[Item] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        for folder, _, names in os.walk(path, onerror=_raise):
            files += [Path(folder, name) for name in sorted(names) if name.endswith(_SUFFIXES)]
        items += inventory.read(path)
    return _collect(files, items, span, now_s)


def _collect(
    files: Sequence[Path], items: Sequence[Item], span: Timespan, now_s: float
) -> tuple[list[Acquisition], int]:
    found: dict[str, Acquisition] = {}
    damaged = 0
    for path in files:
        if _is_too_old(path.name, span):
            continue
        for line in _lines(path):
            one = None if line is None else acquisition.from_line(line)
            if one is None:
                damaged += 1
            # A crash before the record was removed leaves a second line: the first end counts.
            elif one.id not in found or one.ended_s < found[one.id].ended_s:
                found[one.id] = one
    for one in acquisition.from_records(items, now_s):
        found.setdefault(one.id, one)
    chosen = [one for one in found.values() if one.touches(span)]
    return sorted(chosen, key=lambda one: (one.asked_s, one.id)), damaged


def _is_too_old(name: str, span: Timespan) -> bool:
    """Tell whether a file ends before a timespan, with a month to spare for nodes whose clocks are wrong."""
    match = _MONTH.search(name)
    if match is None:
        return False
    since = datetime.fromtimestamp(span.since_s)
    return int(match[1]) * 12 + int(match[2]) < since.year * 12 + since.month - 1


def _lines(path: Path) -> Iterator[bytes | None]:
    """Yield a ledger's lines; None for one that is too long, and for the unreadable rest of a damaged archive."""
    try:
        with _open(path) as file:
            while line := file.readline(_MAX_LINE_BYTES):
                if len(line) == _MAX_LINE_BYTES and not line.endswith(b"\n"):
                    while line and not line.endswith(b"\n"):
                        line = file.readline(_MAX_LINE_BYTES)
                    yield None
                elif line.strip():
                    yield line
    except (EOFError, zlib.error, gzip.BadGzipFile):
        yield None
    except OSError as error:
        hint = "run this as root" if isinstance(error, PermissionError) else ""
        raise RecordError(f"cannot read {path}: {error.strerror}", hint) from error


def _open(path: Path) -> IO[bytes] | gzip.GzipFile:
    return gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb")


def _raise(error: OSError) -> None:
    raise RecordError(f"cannot read {error.filename}: {error.strerror}", "run this as root") from error
