"""The state files: what scheduling keeps in the state directory, for users, for the next run, or as a lock."""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from qrmi_slurm.errors import RecordError

_READABLE_BY_ALL: Final = 0o644
_LOCK_MODE: Final = 0o600
_LOCK_INTERVAL_S: Final = 0.05


def write_json(state_dir: Path, name: str, document: Mapping[str, Any]) -> None:
    """Write a JSON file that everybody may read, so that a reader sees the old one or the new one, never a part.

    Args:
        state_dir: the site's; created if it is missing.
        name: the file's name.
        document: its content.

    Raises:
        RecordError: it cannot be written.
    """
    path = state_dir / name
    try:
        make_state_dir(state_dir)
        _replace(path, json.dumps(document))
    except OSError as error:
        raise RecordError(f"cannot write {path}: {error.strerror}", "see: qrmi-slurm doctor") from error


def _replace(path: Path, content: str) -> None:
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(new, flags, _READABLE_BY_ALL)
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            os.fchmod(fd, _READABLE_BY_ALL)  # whatever the umask
            file.write(content)
        new.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink()
        raise


def make_state_dir(state_dir: Path) -> None:
    """Create the state directory if it is missing.

    Raises:
        OSError: it cannot be created.
    """
    with contextlib.suppress(FileExistsError):
        state_dir.mkdir(mode=0o711, parents=True)
        state_dir.chmod(0o711)  # whatever the umask: users pass through to their jobs' exports


@contextlib.contextmanager
def locked(state_dir: Path, name: str, wait_s: float) -> Iterator[bool]:
    """Hold a lock until the block ends.

    Args:
        state_dir: the site's; created if it is missing.
        name: the lock file's name.
        wait_s: how long to wait for another holder, in seconds.

    Yields:
        Whether the lock is held; False if another process kept it.

    Raises:
        RecordError: the lock file cannot be used.
    """
    path = state_dir / name
    try:
        make_state_dir(state_dir)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, _LOCK_MODE)
    except OSError as error:
        hint = "run this as root; see: qrmi-slurm doctor"
        raise RecordError(f"cannot open {path}: {error.strerror}", hint) from error
    try:
        end_s = time.monotonic() + wait_s
        while not (is_held := _lock(fd, path)) and time.monotonic() < end_s:
            time.sleep(_LOCK_INTERVAL_S)
        yield is_held
    finally:
        os.close(fd)


def _lock(fd: int, path: Path) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise RecordError(f"cannot lock {path}: {error.strerror}", "see: qrmi-slurm doctor") from error
    return True
