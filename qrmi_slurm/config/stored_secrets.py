"""Stored secrets: variables of a resource whose value its entry in the config only says where to find.

`"slurm": {"secrets": {"QRMI_...": {"file": "/etc/qrmi/ibm.key"}}}`, or `{"command": ["/usr/bin/vault", ...]}`. They are
read each time that they are needed, so that a key is changed by changing the file. QRMI itself reads `environment`
alone and ignores the rest, so the config stays one of QRMI's.
"""

import os
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from qrmi_slurm.config.config_file import Resource
from qrmi_slurm.errors import CredentialsError
from qrmi_slurm.text import is_one_line, printable

# A key or a token has a few hundred bytes; what is longer is another file.
MAX_SECRET_BYTES: Final = 64 * 1024

# A command may ask a server; a job's start waits for it.
MAX_COMMAND_S: Final = 10.0


def fill(resource: Resource, timeout_s: float = MAX_COMMAND_S) -> Resource:
    """Return a resource with its stored secrets in its environment.

    Args:
        resource: of the config.
        timeout_s: how long its commands may take in all, in seconds; 10 at the most.

    Raises:
        CredentialsError: a secret cannot be had; never with a value, nor with what a command has printed.
    """
    sources: Mapping[str, Any] = resource.slurm.get("secrets", {})
    if not sources:
        return resource
    deadline_s = time.monotonic() + min(timeout_s, MAX_COMMAND_S)
    environment = dict(resource.environment)
    for variable, source in sources.items():
        try:
            content = _of_file(source["file"]) if "file" in source else _of_command(source["command"], deadline_s)
            environment[variable] = _text(content)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            where = source["file"] if "file" in source else source["command"][0]
            raise CredentialsError(
                f"the site's {printable(variable)} cannot be had; please tell an admin",
                f"{printable(where)}: {reason}",
            ) from None
    return resource._replace(environment=environment)


def file_fault(path: str) -> str:
    """Say why a file cannot hold a secret; empty where it can."""
    try:
        _text(_of_file(path))
    except OSError as error:
        return str(error.strerror)
    except ValueError as error:
        return str(error)
    return ""


def _of_file(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as file:
        _require_own(os.fstat(fd), 0o077, "read")
        return file.read(MAX_SECRET_BYTES + 1)


def _of_command(arguments: list[str], deadline_s: float) -> bytes:
    import subprocess  # 5 ms, which only who has a command pays

    _require_own(Path(arguments[0]).stat(), 0o022, "changed")
    try:
        done = subprocess.run(
            arguments,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=max(deadline_s - time.monotonic(), 0.1),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ValueError("it gave no answer in time") from None
    if done.returncode:
        raise ValueError(f"it ended with exit status {done.returncode}")
    return done.stdout


def _require_own(status: os.stat_result, others: int, done: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no file")
    if status.st_uid != os.geteuid() or status.st_mode & others:
        mode = stat.S_IMODE(status.st_mode)
        raise ValueError(f"it can be {done} by others (owner uid {status.st_uid}, mode {mode:04o})")


def _text(content: bytes) -> str:
    try:
        text = content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    if not text or len(content) > MAX_SECRET_BYTES or not is_one_line(text):
        raise ValueError(f"it does not hold one line of at most {MAX_SECRET_BYTES} bytes")
    return text
