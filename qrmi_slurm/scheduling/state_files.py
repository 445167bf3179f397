"""The state files: what scheduling keeps in the state directory, for users, for the next run, or as a lock."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from qrmi_slurm import files
from qrmi_slurm.errors import RecordError

_READABLE_BY_ALL: Final = 0o644
_HINT: Final = "run this as root; see: qrmi-slurm doctor"


def write_json(state_dir: Path, name: str, document: Mapping[str, Any]) -> None:
    """Write a JSON file that everybody may read.

    Args:
        state_dir: the site's; created if it is missing.
        name: the file's name.
        document: its content.

    Raises:
        RecordError: it cannot be written.
    """
    path = state_dir / name
    try:
        files.make_folder(state_dir)
        files.replace(path, json.dumps(document).encode(), _READABLE_BY_ALL, is_durable=False)
    except OSError as error:
        raise RecordError(f"cannot write {path}: {error.strerror}", "see: qrmi-slurm doctor") from error


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
    with contextlib.ExitStack() as stack:
        try:
            files.make_folder(state_dir)
            is_held = stack.enter_context(files.locked(path, wait_s))
        except OSError as error:
            raise RecordError(f"cannot open {path}: {error.strerror}", _HINT) from error
        yield is_held
