"""A file system whose server does not answer: whoever opens, reads or lists anything on it waits, as on a hanging NFS.

It is FUSE's with a server that never says a word. Like NFS's, its waiting processes can still be killed.
"""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

_MNT_DETACH = 2


@contextlib.contextmanager
def stuck(place: Path) -> Iterator[None]:
    """Mount such a file system over a file or a folder until the block ends; needs root.

    Raises:
        OSError: it cannot be mounted.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    server = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    try:
        options = f"fd={server},rootmode={place.stat().st_mode & 0o170000:o},user_id=0,group_id=0,allow_other"
        if libc.mount(b"stuck", os.fsencode(place), b"fuse", 0, options.encode()) != 0:
            raise OSError(ctypes.get_errno(), "mount")
        try:
            yield
        finally:
            libc.umount2(os.fsencode(place), _MNT_DETACH)
    finally:
        os.close(server)  # whoever still waits gets an error
