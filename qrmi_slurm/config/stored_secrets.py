"""Stored secrets: values that the config does not hold itself, but says which file or command has them.

`"slurm": {"secrets": {"QRMI_...": {"file": "/etc/qrmi/ibm.key"}}}`, or `{"command": ["/usr/bin/vault", ...]}`. They are
read each time they are needed, so changing the file changes the key. QRMI itself reads `environment` and ignores the
rest, so it can still read the config.
"""

import _signal  # type: ignore[import-not-found]  # `signal` adds enums of the numbers, which takes 0.7 ms
import contextlib
import os
import select
import stat
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from qrmi_slurm.config.config_file import Resource
from qrmi_slurm.config.slurm_section import SecretSource
from qrmi_slurm.deadline import Deadline
from qrmi_slurm.errors import CredentialsError
from qrmi_slurm.text import is_one_line, printable

# A key or a token has a few hundred bytes; a longer file is the wrong one.
MAX_SECRET_BYTES: Final = 64 * 1024

# Commands may ask a server, and a job's start waits for them.
MAX_COMMAND_S: Final = 10.0

# How many of them run at a time.
_MAX_AT_ONCE: Final = 16

# How soon to look again at a command that has closed its output and not ended.
_LOOK_AGAIN_MS: Final = 20

# How long to wait for commands that were killed to be gone; whatever the kernel does not end is left to it.
_END_TIMEOUT_S: Final = 1.0


def fill(resource: Resource, timeout_s: float = MAX_COMMAND_S) -> Resource:
    """Return a resource with its stored secrets in its environment.

    Args:
        resource: of the config.
        timeout_s: how long its commands may take together, in seconds; at most 10.

    Raises:
        CredentialsError: a secret cannot be read; without a value, and without what a command printed.
    """
    found = fill_all([resource], timeout_s)[resource.name]
    if isinstance(found, CredentialsError):
        raise found
    return found


def fill_all(resources: Sequence[Resource], timeout_s: float = MAX_COMMAND_S) -> dict[str, Resource | CredentialsError]:
    """Return resources with their stored secrets in their environments, by name; or why one cannot be read.

    Each file is read once and each command run once, commands side by side: one that hangs costs only its own
    resources.

    Args:
        resources: of the config.
        timeout_s: how long all commands may take together, in seconds; at most 10.
    """
    sources = list(dict.fromkeys(source for resource in resources for source in resource.slurm.secrets.values()))
    said = {source: _attempt(partial(_of_file, source.file)) for source in sources if source.file}
    commands = [source for source in sources if not source.file]
    if commands:
        said |= _of_commands(commands, Deadline.after(min(timeout_s, MAX_COMMAND_S)))
    return {resource.name: _filled(resource, said) for resource in resources}


_Said = str | OSError | ValueError


def _filled(resource: Resource, said: Mapping[SecretSource, _Said]) -> Resource | CredentialsError:
    if not resource.slurm.secrets:
        return resource
    environment = dict(resource.environment)
    for variable, source in resource.slurm.secrets.items():
        text = said[source]
        if not isinstance(text, str):
            reason = text.strerror if isinstance(text, OSError) else text
            return CredentialsError(
                f"the site's {printable(variable)} cannot be read; please tell an admin",
                f"{printable(source.file or source.command[0])}: {reason}",
            )
        environment[variable] = text
    return resource._replace(environment=environment)


def _attempt(read: Callable[[], bytes]) -> _Said:
    try:
        return _text(read())
    except (OSError, ValueError) as error:
        return error


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


def _of_commands(sources: Sequence[SecretSource], deadline: Deadline) -> dict[SecretSource, _Said]:
    """Run commands side by side; return what each printed, or why that cannot be used."""
    waiting = list(reversed(sources))
    running: list[_Command] = []
    said: dict[SecretSource, _Said] = {}
    try:
        while (waiting or running) and deadline.left_s > 0:
            while waiting and len(running) < _MAX_AT_ONCE:
                source = waiting.pop()
                try:
                    running.append(_Command(source))
                except (OSError, ValueError) as error:
                    said[source] = error
            _wait_for_one(running, deadline)
            for command in [command for command in running if command.has_ended()]:
                running.remove(command)
                said[command.source] = _attempt(command.output)
    finally:
        for command in running:
            command.kill()
        gone = Deadline.after(_END_TIMEOUT_S)
        for command in running:
            command.let_go(gone)
    return {**dict.fromkeys(sources, ValueError("it did not answer in time")), **said}


def _wait_for_one(running: "Sequence[_Command]", deadline: Deadline) -> None:
    poll = select.poll()
    for command in running:
        if command.is_open:
            poll.register(command.fd, select.POLLIN)
    are_open = all(command.is_open for command in running)
    poll.poll(int(deadline.left_s * 1000) + 1 if are_open else _LOOK_AGAIN_MS)


class _Command:
    """A command that is running, and what it has printed.

    Raises:
        OSError: it cannot be started.
        ValueError: others can change it.
    """

    def __init__(self, source: SecretSource) -> None:
        import subprocess  # 5 ms that only a command pays

        _require_own(Path(source.command[0]).stat(), 0o022, "change")
        self.source = source
        self._process = subprocess.Popen(
            source.command,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )
        assert self._process.stdout is not None  # noqa: S101
        self.fd = self._process.stdout.fileno()
        os.set_blocking(self.fd, False)
        self.is_open = True
        self._printed = bytearray()

    def has_ended(self) -> bool:
        """Read what it has printed since, and tell whether it has ended."""
        if self.is_open:
            try:
                chunk = os.read(self.fd, MAX_SECRET_BYTES)
            except BlockingIOError:
                return False
            self._printed += chunk[: MAX_SECRET_BYTES + 1 - len(self._printed)]
            self.is_open = bool(chunk)
        return not self.is_open and self._process.poll() is not None

    def output(self) -> bytes:
        """Return all that it has printed, once it has ended.

        Raises:
            ValueError: it failed.
        """
        self._close()
        if self._process.returncode:
            raise ValueError(f"it ended with exit status {self._process.returncode}")
        return bytes(self._printed)

    def kill(self) -> None:
        """Kill it, with what it has started."""
        self._close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, _signal.SIGKILL)

    def let_go(self, deadline: Deadline) -> None:
        """Wait for the end of one that was killed, no longer than that."""
        import subprocess

        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(deadline.left_s)

    def _close(self) -> None:
        if self._process.stdout is not None:
            self._process.stdout.close()


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
