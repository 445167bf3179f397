"""The ledger: one line for each acquisition, written when it has ended; `qrmi-slurm report` reads it.

`<state dir>/<cluster>/.accounting/<node>.<year>-<month>.jsonl`, owned by root, mode 0600: JSON, one object per line.
Each node has its own files, since appending is not atomic over NFS, and starts a new one each month (UTC).

A line is on disk before the record is removed. After a crash in between, a second line with the same `id` is written;
readers count the one that ended first. No line contains a secret: the session of its token has ended.
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

# Goes up by one when a field is renamed, removed or changes its meaning; new fields may be added without.
LEDGER_VERSION: Final = 1

# The folder in a cluster's folder; not a number, so it cannot be a job's.
FOLDER: Final = ".accounting"


def acquisition_id(record: Record, entry: Entry) -> str:
    """Return an acquisition's unique id. Job ids and journal numbers are reused, so it includes the time."""
    asked_ms = round(entry.asked_s * 1000)
    return f"{record.cluster}/{record.job_id}/{entry.restart_count}/{entry.journal}/{asked_ms}"


def line_of(record: Record, ended: Ended, array_ids: tuple[int, int] | None, by: str) -> dict[str, Any]:
    """Return the fields of an acquisition's line.

    Args:
        record: the job's record.
        ended: the acquisition.
        array_ids: the ids of the job array and of the task in it; None if it is not in one, or unknown.
        by: who ended it: `prolog`, `epilog`, `recover` or `release`.
    """
    entry = ended.entry
    array_job_id, array_task_id = array_ids or (None, None)
    acquired_s = entry.acquired_s
    if acquired_s is None and entry.token is not None:
        acquired_s = entry.asked_s  # a record of an older version does not have it
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
        # Never negative, even if the clock was set back meanwhile.
        "held_s": 0.0 if acquired_s is None else round(max(0.0, ended.ended_s - acquired_s), 3),
    }


def write(folder: JobFolder, lines: Sequence[dict[str, Any]]) -> None:
    """Append lines to this node's file and sync it to disk.

    Args:
        folder: the job's folder.
        lines: the lines of its acquisitions.

    Raises:
        RecordError: they could not be written.
    """
    content = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
    place = folder.path.parent / FOLDER
    path = place / f"{this_node()}.{time.strftime('%Y-%m', time.gmtime())}.jsonl"
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
            content = b"\n" + content  # the last line was cut off by a crash or a full disk
        if os.write(fd, content) != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fdatasync(fd)
    finally:
        os.close(fd)


def this_node() -> str:
    """Return this node's name as slurmd calls it; on a shared state directory the record may be another node's."""
    name = os.environ.get(SLURMD_NODENAME) or os.uname().nodename.partition(".")[0]
    return "".join(char if char.isalnum() or char in "-_." else "_" for char in name)
