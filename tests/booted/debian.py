"""A Debian under systemd, whatever it runs in: how to get files and commands into it, and how to wait for it."""

import shlex
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from slurm.cluster import ClusterError
from slurm.polling import wait_for

USER = "alice"
USER_UID = 1000
COMMAND_DEADLINE_S = 120.0
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Content:
    """What a Debian has besides its packages.

    Args:
        files: their texts, by absolute path.
        secret: which of these only root may read.
        commands: shell commands to run in it before its first boot.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    secret: frozenset[str] = frozenset()
    commands: Sequence[str] = ()

    def write(self, folder: Path) -> None:
        """Write the files below a folder, and the commands as `/prepare`."""
        files = {**self.files, "/prepare": "".join(f"{line}\n" for line in self.commands)}
        for name, text in files.items():
            path = folder / name[1:]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600 if name in self.secret else 0o644)
            path.write_text(text)


class Debian(ABC):
    """A Debian under systemd."""

    name: str
    # How much longer than on this machine everything takes.
    slowness = 1.0

    @abstractmethod
    def start(self) -> None:
        """Boot, without waiting."""

    @abstractmethod
    def crash(self) -> None:
        """Stop at once, as at a power failure; what was written stays."""

    @abstractmethod
    def words(self, command: str) -> list[str]:
        """Return the words of a command that runs a shell command inside, as root."""

    @abstractmethod
    def last_words(self) -> str:
        """Return the end of what it printed to its console."""

    def run(self, *command: str, user: str | None = None, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command inside, as root or as its user at home; its exit status may be any."""
        words = [*command]
        if user is not None:
            become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "env", "-C", f"/home/{user}"]
            words = [*become, f"HOME=/home/{user}", f"USER={user}", *words]
        return subprocess.run(
            self.words(shlex.join(words)),
            input=stdin,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=COMMAND_DEADLINE_S * self.slowness,
        )

    def out(self, *command: str, user: str | None = None, stdin: str = "") -> str:
        """Run a command inside and return its output.

        Raises:
            ClusterError: it failed.
        """
        done = self.run(*command, user=user, stdin=stdin)
        if done.returncode != 0:
            said = f"{done.stdout}{done.stderr}"
            raise ClusterError(f"{self.name}: {shlex.join(command)}: exit status {done.returncode}\n{said}".rstrip())
        return done.stdout

    def sh(self, script: str) -> str:
        """Run a shell script inside, as root, and return its output."""
        return self.out("sh", "-ec", script)

    def write(self, path: str, text: str, mode: str = "0644") -> None:
        """Write a file inside."""
        self.out("sh", "-c", f"cat >{path} && chmod {mode} {path}", stdin=text)

    def exists(self, path: str) -> bool:
        """Tell whether there is such a path inside."""
        return self.run("test", "-e", path).returncode == 0

    def wait_booted(self) -> None:
        """Wait until everything that starts at boot has started.

        Raises:
            ClusterError: a unit has failed; the message has its status.
            DeadlineError: it takes longer than a minute.
        """
        said = wait_for(self._state, f"{self.name} to boot", 60 * self.slowness, on_timeout=self.last_words)
        if said != "running":
            failed = self.run(
                "sh",
                "-c",
                "systemctl --failed; systemctl status --no-pager $(systemctl --failed -q --plain | cut -d' ' -f1)",
            )
            raise ClusterError(f"{self.name} is {said}\n{failed.stdout}")

    def _state(self) -> str | None:
        said = self.run("systemctl", "is-system-running").stdout.strip()
        return said if said in ("running", "degraded") else None
