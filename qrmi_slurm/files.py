"""Trust: whether a place is root's alone, so that nobody else can put another thing there between two looks at it."""

import os
import stat
from pathlib import Path
from typing import Final

_OTHERS_MAY_WRITE: Final = 0o022

# As in path_resolution(7); a longer chain is a loop.
_MAX_LINKS: Final = 40


def weak_place(path: Path) -> Path | None:
    """Return the first on the way to a path, itself included, that another user could change or replace.

    Links are followed step by step. A folder that all may write is no fault where it is sticky, as `/tmp` is: what is
    root's in it stays. What is not there yet ends the way.

    Args:
        path: absolute.

    Raises:
        OSError: a part of the way cannot be looked at.
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
    """Tell whether another user than root and this process's own could change what a file's status is of."""
    if status.st_uid not in (0, os.geteuid()):
        return True
    if stat.S_ISLNK(status.st_mode):
        return False
    is_sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    return bool(status.st_mode & _OTHERS_MAY_WRITE) and not is_sticky
