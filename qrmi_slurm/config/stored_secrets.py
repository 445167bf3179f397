"""Stored secrets: values that the config does not hold itself, but says which file or command has them.

`"slurm": {"secrets": {"QRMI_...": {"file": "/etc/qrmi/ibm.key"}}}`, or `{"command": ["/usr/bin/vault", ...]}`. They are
read each time they are needed, so changing the file changes the key. QRMI itself reads `environment` and ignores the
rest, so it can still read the config.
"""

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from qrmi_slurm import processes
from qrmi_slurm.config.config_file import Resource
from qrmi_slurm.deadline import Deadline
from qrmi_slurm.errors import CredentialsError
from qrmi_slurm.text import is_one_line, printable

# A key or a token has a few hundred bytes; a longer file is the wrong one.
MAX_SECRET_BYTES: Final = 64 * 1024

# A command may ask a server, and a job's start waits for it.
MAX_COMMAND_S: Final = 10.0


def fill(resource: Resource, timeout_s: float = MAX_COMMAND_S) -> Resource:
    """Return a resource with its stored secrets in its environment.

    Args:
        resource: of the config.
        timeout_s: how long its commands may take together, in seconds; at most 10.

    Raises:
        CredentialsError: a secret cannot be read; without a value, and without what a command printed.
    """
    if not resource.slurm.secrets:
        return resource
    deadline = Deadline.after(min(timeout_s, MAX_COMMAND_S))
    environment = dict(resource.environment)
    for variable, source in resource.slurm.secrets.items():
        try:
            environment[variable] = _text(
                _of_file(source.file) if source.file else _of_command(source.command, deadline)
            )
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise CredentialsError(
                f"the site's {printable(variable)} cannot be read; please tell an admin",
                f"{printable(source.file or source.command[0])}: {reason}",
            ) from None
    return resource._replace(environment=environment)


def file_fault(path: str) -> str:
    """Say why a secret cannot be read from a file; empty where it can."""
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


def _of_command(arguments: Sequence[str], deadline: Deadline) -> bytes:
    _require_own(Path(arguments[0]).stat(), 0o022, "change")
    try:
        done = processes.run(arguments, deadline.call_s, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, cwd="/")
    except TimeoutError:
        raise ValueError("it did not answer in time") from None
    if done.exit_code:
        raise ValueError(f"it ended with exit status {done.exit_code}")
    return done.stdout


def _require_own(status: os.stat_result, others: int, action: str) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a file")
    if status.st_uid != os.geteuid() or status.st_mode & others:
        mode = stat.S_IMODE(status.st_mode)
        raise ValueError(f"others can {action} it (owner uid {status.st_uid}, mode {mode:04o})")


def _text(content: bytes) -> str:
    try:
        text = content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    if not text or len(content) > MAX_SECRET_BYTES or not is_one_line(text):
        raise ValueError(f"it is not one line of at most {MAX_SECRET_BYTES} bytes")
    return text
