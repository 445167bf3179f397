"""A Debian under systemd in a container of this machine, made by systemd-nspawn."""

import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from booted import starter
from booted.debian import SYSTEM_PATH, Content, Debian
from booted.network import Network
from slurm.cluster import FOLDER_PREFIX, PARENT, Cluster, ClusterError
from slurm.polling import wait_for
from slurm.processes import living

NEEDED = ("systemd-container",)


class Container(Debian):
    """A container with a root of its own above a cached one, in a network that it shares.

    Args:
        name: its host name.
        cluster: whose folder and processes it belongs to.
        network: where it is.
        root: the cached root, which stays as it is.
        content: what it has besides.
        shared: folders of this machine that it sees, read-only, and where.
    """

    def __init__(
        self, name: str, cluster: Cluster, network: Network, root: Path, content: Content, shared: Mapping[Path, Path]
    ) -> None:
        self.name = name
        self._cluster = cluster
        self._network = network
        folder = cluster.folder / name
        self._group = f"{FOLDER_PREFIX}{cluster.token}-{name}"
        self._told = json.dumps(
            {
                "name": name,
                "folder": str(folder),
                "lower": str(root),
                "group": self._group,
                "shared": [f"{path}:{place}" for path, place in shared.items()],
            }
        )
        for part in ("files", "root", "upper", "work"):
            (folder / part).mkdir(parents=True)
        content.write(folder / "files")

    def start(self) -> None:
        """Boot, without waiting."""
        remove_groups_left_over()
        unshare = ["unshare", "--mount", "--propagation", "private"]
        python = [sys.executable, "-P", starter.__file__, self._told]
        self._cluster.start_daemon(self.name, [*self._network.enter, *unshare, *python], {})

    def crash(self) -> None:
        """End every process inside at once."""
        self.stop()

    def stop(self) -> None:
        """End it, if it runs, and remove its control groups, which a machine's crash would remove as well."""
        with contextlib.suppress(ClusterError, ProcessLookupError):
            os.kill(self._leader(), signal.SIGKILL)
        if self._cluster.is_alive(self.name):
            self._cluster.kill_daemon(self.name)
        # The kernel keeps a group until its last process is gone.
        wait_for(lambda: not remove_groups(self._group), "control groups to go", 10)

    def words(self, command: str) -> list[str]:
        """Return the words of a command that runs a shell command inside, as root."""
        enter = ["nsenter", "--target", str(self._leader()), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup"]
        return [*enter, "env", "-i", f"PATH={SYSTEM_PATH}", "LANG=C.UTF-8", "HOME=/root", "sh", "-c", command]

    def last_words(self) -> str:
        """Return the end of what it printed to its console."""
        return self._cluster.log_tail(self.name)

    def _leader(self) -> int:
        """Return the process that is the container's first."""
        if self._cluster.is_alive(self.name):
            parent = self._cluster.pid_of(self.name)
            for process in living():
                with contextlib.suppress(OSError):  # it has ended meanwhile
                    if process.parent == parent and Path(f"/proc/{process.pid}/exe").readlink().name == "systemd":
                        return process.pid
        raise ClusterError(f"{self.name} is not running\n{self.last_words()}")

    def _state(self) -> str | None:
        try:
            return super()._state()
        except ClusterError:
            self._cluster.check_daemons()
            return None


def is_memory_on_v1() -> bool:
    """Tell whether this machine's memory controller is bound to cgroup v1, so that v2 cannot have it."""
    return "memory" in starter.v1_mounts()


def remove_groups(name: str) -> list[Path]:
    """Remove the control groups of a container, in every hierarchy, and return those that the kernel kept."""
    groups = [place / name for place in _hierarchies()]
    for group in groups:
        for folder, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()
    return [group for group in groups if group.exists()]


def remove_groups_left_over() -> None:
    """Remove the control groups of containers whose run was killed."""
    found = {group.name for place in _hierarchies() for group in place.glob(f"{FOLDER_PREFIX}*")}
    for name in found:
        if not (PARENT / name.rpartition("-")[0]).exists():
            remove_groups(name)


def _hierarchies() -> list[Path]:
    place = starter.v2_mount()
    return [*starter.v1_mounts().values(), *([place] if place else [])]
