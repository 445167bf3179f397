"""The failures: why jobs got no QPU, kept for `qrmi-slurm why` when their folders are gone.

`<state dir>/<cluster>/.failed/<job id>` is what the job's exports said: the sentences, and no variables. It belongs to
root, so that no user fills the file system with it; its user may read it where the file system has access control
lists. The last thousand of a cluster are kept.
"""

import contextlib
import os
import stat
import struct
from pathlib import Path
from typing import Final

from qrmi_slurm import files
from qrmi_slurm.errors import ExportsError, RecordError
from qrmi_slurm.state import exports
from qrmi_slurm.state.exports import Exports

# The folder in a cluster's folder; not a number, so it cannot be a job's.
FOLDER: Final = ".failed"

# What is kept: some sentences. A job with 64 QPUs has 64.
_MAX_BYTES: Final = 256 * 1024
_MAX_KEPT: Final = 1000
_REMOVED_AT_ONCE: Final = 100

# An access control list as the kernel takes it: linux/posix_acl_xattr.h. Only the owner and one user may read.
_ACL: Final = "system.posix_acl_access"
_ACL_VERSION: Final = 2
_READ: Final = 4
_NO_ID: Final = 0xFFFFFFFF
_USER_OBJ, _USER, _GROUP_OBJ, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x10, 0x20


def keep(cluster_path: Path, job_id: int, content: str, uid: int) -> None:
    """Keep what a job's exports say about why it has no QPU, in place of what was kept of it before.

    Args:
        cluster_path: the cluster's folder in the state directory.
        job_id: Slurm's id.
        content: the text of its exports.
        uid: the job's user.

    Raises:
        OSError: it cannot be written.
    """
    place = cluster_path / FOLDER
    files.make_folder(place)
    path = place / str(job_id)
    files.replace(path, content[:_MAX_BYTES].encode("utf-8", "replace"), 0o600, is_durable=False)
    with contextlib.suppress(OSError):  # NFS has none: then only root reads it
        _let_read(path, uid)
    _remove_oldest(place)


def read(state_dir: Path, cluster: str, job_id: int) -> Exports | None:
    """Return what was kept of a job; None if that is nothing.

    Args:
        state_dir: the site's.
        cluster: the cluster's name.
        job_id: Slurm's id.

    Raises:
        RecordError: this user may not read it.
    """
    path = state_dir / cluster / FOLDER / str(job_id)
    try:
        found = exports.parse(files.read(path, _MAX_BYTES).decode("utf-8", "replace"))
    except (FileNotFoundError, NotADirectoryError, ExportsError):
        return None
    except OSError as error:
        raise RecordError(f"cannot read {path}: {error.strerror}") from error
    return found if found.job_id == job_id else None


def _let_read(path: Path, uid: int) -> None:
    """Let one user read a file besides its owner."""
    entries = [(_USER_OBJ, _READ, _NO_ID), (_USER, _READ, uid), (_GROUP_OBJ, 0, _NO_ID)]
    entries += [(_MASK, _READ, _NO_ID), (_OTHER, 0, _NO_ID)]
    packed = struct.pack("<I", _ACL_VERSION) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    os.setxattr(path, _ACL, packed, follow_symlinks=False)


def _remove_oldest(place: Path) -> None:
    """Remove some of the files where there are too many; each keeper does, so there are never many more."""
    names = os.listdir(place)
    if len(names) <= _MAX_KEPT:
        return

    def changed_s(name: str) -> float:
        try:
            status = (place / name).lstat()
        except OSError:
            return 0.0
        return status.st_mtime if stat.S_ISREG(status.st_mode) else 0.0

    for name in sorted(names, key=changed_s)[:_REMOVED_AT_ONCE]:
        (place / name).unlink(missing_ok=True)
