"""The ledger: one line for each acquisition, written when its life has ended; `qrmi-slurm report` reads it.

`<state dir>/<cluster>/.accounting/<node>.<year>-<month>.jsonl`, root's, `0600`: JSON, one object a line. Each node has
files of its own, since appending is not atomic over NFS, and begins another one each month (UTC).

A line is on disk before the record goes. A crash in between leaves a second line with the same `id`, of which readers
count the one that ended first. No line holds a secret: its token is a session's that has ended.
"""

import contextlib
import errno
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from qrmi_slurm.errors import RecordError
from qrmi_slurm.names import SLURMD_NODENAME
from qrmi_slurm.state.job_folder import JobFolder
from qrmi_slurm.state.record import Ended, Entry, Record

# Grows by one when a field is renamed, removed or changes its meaning; new fields may come.
LEDGER_VERSION: Final = 1

# Where a cluster's files are; no job's id.
FOLDER: Final = ".accounting"


def acquisition_id(record: Record, entry: Entry) -> str:
    """Return what no other acquisition has: a journal's number and a job's id are used again, but not at that time."""
    asked_ms = round(entry.asked_s * 1000)
    return f"{record.cluster}/{record.job_id}/{entry.restart_count}/{entry.journal}/{asked_ms}"


def line_of(record: Record, ended: Ended, array_ids: tuple[int, int] | None, by: str) -> dict[str, Any]:
    """Return the line of an acquisition.

    Args:
        record: the job's.
        ended: the acquisition.
        array_ids: of the job array and of the job in it; None where it is in none, or that is not known.
        by: who ended it: `prolog`, `epilog`, `recover` or `release`.
    """
    entry = ended.entry
    array_job_id, array_task_id = array_ids or (None, None)
    acquired_s = entry.acquired_s
    if acquired_s is None and entry.token is not None:
        acquired_s = entry.asked_s  # the record is of a program that did not note it
    return {
        "version": LEDGER_VERSION,
        "id": acquisition_id(record, entry),
        "cluster": record.cluster,
        "job_id": record.job_id,
        "array_job_id": array_job_id,
        "array_task_id": array_task_id,
        "het_job_id": record.het_job_id,
        "restart": entry.restart_count,
        "user": record.user,
        "uid": record.uid,
        "account": record.account,
        "node": record.node,
        "qpu": entry.name,
        "type": entry.type,
        "token": entry.token.reveal() if entry.token else None,
        "result": ended.result,
        "by": by,
        "reason": entry.reason if entry.token is None else "",
        "asked_s": round(entry.asked_s, 3),
        "acquired_s": None if acquired_s is None else round(acquired_s, 3),
        "ended_s": round(ended.ended_s, 3),
        # A clock that was set back meanwhile makes no time negative.
        "held_s": 0.0 if acquired_s is None else round(max(0.0, ended.ended_s - acquired_s), 3),
    }


def write(folder: JobFolder, lines: Sequence[dict[str, Any]]) -> None:
    """Put lines on disk for good, at the end of this node's file.

    Args:
        folder: the job's.
        lines: of its acquisitions.

    Raises:
        RecordError: the disk did not take them.
    """
    content = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
    place = folder.path.parent / FOLDER
    path = place / f"{_this_node()}.{time.strftime('%Y-%m', time.gmtime())}.jsonl"
    try:
        with contextlib.suppress(FileExistsError):
            place.mkdir(mode=0o700)
        _append(path, content)
    except OSError as error:
        raise RecordError(f"cannot write {path}: {error.strerror}") from error


def _append(path: Path, content: bytes) -> None:
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            content = b"\n" + content  # a crash or a full disk has cut the last line: it does not spoil this one
        if os.write(fd, content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fdatasync(fd)
    finally:
        os.close(fd)


def _this_node() -> str:
    """Return this node's name, as slurmd tells it its hooks; on a shared state directory a record may be another's."""
    name = os.environ.get(SLURMD_NODENAME) or os.uname().nodename.partition(".")[0]
    return "".join(char if char.isalnum() or char in "-_." else "_" for char in name)
