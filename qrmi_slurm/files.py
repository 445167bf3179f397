"""Files of the site's state: replaced atomically, locked, and in folders that no other user can swap."""

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from qrmi_slurm.deadline import Deadline

# Job users pass through the state's folders to their jobs' exports, and cannot list them.
FOLDER_MODE: Final = 0o711

_OTHERS_MAY_WRITE: Final = 0o022

# As in path_resolution(7); a longer chain counts as a loop.
_MAX_LINKS: Final = 40

_LOCK_POLL_S: Final = 0.02


# --- trust ----------------------------------------------------------------------------------------------------


def weak_place(path: Path) -> Path | None:
    """Return the first part of a path that another user could change or replace; None if there is none.

    Links are followed step by step. A sticky folder such as `/tmp` is fine: other users cannot replace root's files in
    it. The search ends at the first part that does not exist.

    Args:
        path: absolute.

    Raises:
        OSError: a part of the path cannot be examined.
    """
    rest = list(reversed(path.parts))
    at = Path(rest.pop())
    links = 0
    while True:
        try:
            status = at.lstat()
        except FileNotFoundError:
            return None
        if is_weak(status):
            return at
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > _MAX_LINKS:
                return at
            target = at.readlink()
            rest += reversed(target.parts)
            at = Path(rest.pop()) if target.is_absolute() else at.parent
            if target.is_absolute():
                continue
        if not rest:
            return None
        part = rest.pop()
        at = at.parent if part == ".." else at / part


def is_weak(status: os.stat_result) -> bool:
    """Tell whether a user other than root and this process's own could change the file with this `status`."""
    if status.st_uid not in (0, os.geteuid()):
        return True
    if stat.S_ISLNK(status.st_mode):
        return False
    is_sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    return bool(status.st_mode & _OTHERS_MAY_WRITE) and not is_sticky


# --- reading and writing --------------------------------------------------------------------------------------


def make_folder(path: Path, mode: int = FOLDER_MODE) -> None:
    """Make a folder with this mode whatever the umask, and missing parents with mode 0711.

    Raises:
        OSError: the folder cannot be made.
    """
    if not path.parent.exists():
        make_folder(path.parent)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=mode)
        path.chmod(mode)


def read(path: Path | str, max_bytes: int = -1) -> bytes:
    """Return a file's content, or its first `max_bytes`; a symbolic link is not followed.

    Raises:
        OSError: the file cannot be read, or is a link.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        return file.read(max_bytes)


def replace(path: Path, content: bytes, mode: int, *, uid: int | None = None, is_durable: bool = True) -> None:
    """Replace a file atomically: a reader sees the old content or the new, never a part.

    Args:
        path: the file.
        content: its new content.
        mode: its mode, whatever the umask.
        uid: its owner; None for this process's.
        is_durable: whether the new content must survive a crash of the machine.

    Raises:
        OSError: it could not be written; the old content is still in place.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(fd, mode)
            if uid is not None:
                os.fchown(fd, uid, -1)
            if is_durable:
                os.fsync(fd)
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    if is_durable:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


# --- locks ----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(path: Path, wait_s: float, *, make_again: Callable[[], None] | None = None) -> Iterator[bool]:
    """Hold a lock until the block ends; yield whether it was acquired in time.

    Args:
        path: the lock's file, created if missing.
        wait_s: how long to wait for another holder, in seconds.
        make_again: makes the folder again if the last holder removed it; with None, that is an error.

    Raises:
        OSError: the file cannot be opened or locked.
    """
    deadline = Deadline.after(wait_s)
    while (fd := _try_lock(path, is_made_again=make_again is not None)) is None and deadline.left_s > 0:
        if make_again is not None:
            make_again()
        time.sleep(_LOCK_POLL_S)
    try:
        yield fd is not None
    finally:
        if fd is not None:
            os.close(fd)


def _try_lock(path: Path, *, is_made_again: bool) -> int | None:
    """Return a descriptor that holds the lock; None if another process holds it, or removed the file."""
    fd = None
    try:
        fd = _open_lock(path)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), path.stat()):
            held, fd = fd, None
            return held
    except BlockingIOError:
        pass
    except FileNotFoundError:
        if not is_made_again and not path.parent.exists():
            raise
    finally:
        if fd is not None:
            os.close(fd)
    return None


def _open_lock(path: Path) -> int:
    """Open the lock's file, for reading on a read-only file system: flock(2) needs no write access."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
