"""Whether job users can reach a file: the folders and links on the way to it, and its own mode."""

import stat
from pathlib import Path
from typing import Final

# More steps than any sane path has, so that a loop of links ends.
_MAX_STEPS: Final = 200


def blocking_users(path: Path) -> Path | None:
    """Return the first folder or file on the way to a path that others may not enter or read; None if there is none.

    Args:
        path: an absolute path, whose links are followed; one that does not exist blocks nobody.
    """
    walked = Path("/")
    parts = list(path.parts[1:])
    for _ in range(_MAX_STEPS):
        if not parts:
            break
        following = walked / parts.pop(0)
        try:
            status = following.lstat()
        except OSError:
            return None
        if stat.S_ISLNK(status.st_mode):
            target = following.readlink()
            parts = [*(target.parts[1:] if target.is_absolute() else target.parts), *parts]
            walked = Path("/") if target.is_absolute() else walked
            continue
        if following.name == "..":
            walked = walked.parent
            continue
        needed = stat.S_IXOTH if stat.S_ISDIR(status.st_mode) else stat.S_IROTH | stat.S_IXOTH
        if status.st_mode & needed != needed:
            return following
        walked = following
    return None
