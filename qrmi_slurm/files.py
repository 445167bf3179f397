"""Files of the site's state: replaced at once, locked, in folders that others cannot swap."""

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

# Job users pass through the state's folders to their jobs' exports, and can list none.
FOLDER_MODE: Final = 0o711

_OTHERS_MAY_WRITE: Final = 0o022

# As in path_resolution(7); a longer chain is a loop.
_MAX_LINKS: Final = 40

_LOCK_POLL_S: Final = 0.02


# --- trust ----------------------------------------------------------------------------------------------------


def weak_place(path: Path) -> Path | None:
    """Return the first part of a path, itself included, that another user could change or replace; None if none can.

    Links are followed step by step. A sticky folder that all may write to, as `/tmp`, is fine: what root has in it
    stays. What does not exist yet ends the search.

    Args:
        path: absolute.

    Raises:
        OSError: a part of the path cannot be looked at.
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
    """Tell whether a user other than root and this process's own could change the file that `status` describes."""
    if status.st_uid not in (0, os.geteuid()):
        return True
    if stat.S_ISLNK(status.st_mode):
        return False
    is_sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    return bool(status.st_mode & _OTHERS_MAY_WRITE) and not is_sticky


# --- reading and writing --------------------------------------------------------------------------------------


def make_folder(path: Path, mode: int = FOLDER_MODE) -> None:
    """Make a folder, whatever the umask, and those missing above it, which job users may pass through.

    Raises:
        OSError: it cannot be made.
    """
    if not path.parent.exists():
        make_folder(path.parent)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=mode)
        path.chmod(mode)


def read(path: Path) -> bytes:
    """Return a file's content; a link in its place is not followed.

    Raises:
        OSError: it cannot be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        return file.read()


def replace(path: Path, content: bytes, mode: int, *, uid: int | None = None, is_durable: bool = True) -> None:
    """Put a file in place at once: a reader sees the old content or the new, never a part.

    Args:
        path: the file.
        content: what it is to hold.
        mode: its mode, whatever the umask.
        uid: its owner; None is this process's.
        is_durable: whether it has to survive a crash of the machine.

    Raises:
        OSError: the disk did not take it; what was there before still is.
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
    """Hold a lock until the block ends; yields whether it could be had.

    Args:
        path: the lock's file, made where it does not exist.
        wait_s: how long to wait for another holder, in seconds.
        make_again: makes the folder again where its last holder has removed it; None: that is an error.

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
    """Return the descriptor that holds the lock; None where another process holds it, or held and removed it."""
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
    """Open the lock's file; on a read-only file system only one that exists: flock(2) needs no write access."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
