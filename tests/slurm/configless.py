"""A site whose nodes have no slurm.conf: slurmctld sends it. Each has its own /etc/slurm, /run and /var/spool."""

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from slurm.cluster import COMMAND_DEADLINE_S, SYSTEM_PATH, Cluster, ClusterOptions, User
from slurm.polling import wait_for
from slurm.site import STUB, Site, SiteOptions

# What Debian's packages leave in /etc/slurm; slurmd has to ignore it.
PACKAGED = Path("/etc/slurm/plugstack.conf")

# The controller's configuration is hidden. Munge's socket is where slurmd expects it before it has a configuration.
SET_UP = """
set -e
mount -t tmpfs none /run
mkdir /run/munge
ln -s {folder}/munge/socket /run/munge/munge.socket.2
mount --bind {folder}/node-etc /etc/slurm
mount -t tmpfs none /var/spool
mount -t tmpfs none {folder}/etc
touch {ready}
exec sleep infinity
"""


class ConfiglessCluster(Cluster):
    """A cluster whose slurmds run with --conf-server, each in a mount namespace of its own."""

    def __init__(self, options: ClusterOptions) -> None:
        settings = {
            **options.settings,
            "SlurmctldParameters": "enable_configless",
            "SlurmdSpoolDir": "/var/spool/slurmd",
            "PlugStackConfig": "",
        }
        super().__init__(replace(options, settings=settings))
        self.node_etc = self.folder / "node-etc"
        self._places: dict[str, int] = {}

    def make(self) -> None:
        """Make the folder and the users, and what the nodes have in /etc/slurm."""
        super().make()
        if not self.node_etc.exists():
            self.node_etc.mkdir(mode=0o755)
            shutil.copy(PACKAGED, self.node_etc)

    def start_slurmd(self, node: str) -> None:
        """Start a node's slurmd, which fetches its configuration."""
        if not self.is_alive(f"{node}-machine"):
            ready = self.folder / f"{node}.ready"
            script = SET_UP.format(folder=self.folder, ready=ready)
            unshare = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
            self._places[node] = self.start_daemon(f"{node}-machine", unshare, {})
            wait_for(ready.exists, f"{node}'s mounts", 20, on_timeout=lambda: self.log_tail(f"{node}-machine"))
            ready.unlink()
        port = next(line for line in self.slurm_conf.read_text().splitlines() if line.startswith("SlurmctldPort="))
        server = f"127.0.0.1:{port.partition('=')[2]}"
        command = [*self.inside(node), "env", "-u", "SLURM_CONF", "slurmd", "-D", "-N", node, "--conf-server", server]
        self.start_daemon(node, command, {})

    def inside(self, node: str) -> list[str]:
        """Return the prefix of a command that runs on a node."""
        return ["nsenter", f"--mount=/proc/{self._places[node]}/ns/mnt"]

    def on_node(self, node: str, *command: str | Path, user: User | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command on a node, by default as root; nothing in its environment names a slurm.conf."""
        as_user: Sequence[str] = ()
        if user is not None:
            as_user = ("setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--clear-groups")
        return subprocess.run(
            [*self.inside(node), *as_user, *command],
            env={"PATH": SYSTEM_PATH, "LANG": "C.UTF-8", "SLURMD_NODENAME": node},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd="/",
            timeout=COMMAND_DEADLINE_S,
        )


class ConfiglessSite(Site):
    """A site with such a cluster; the plugin's line does not say where the nodes have their config."""

    cluster: ConfiglessCluster

    def __init__(self, options: SiteOptions) -> None:
        super().__init__(options, ConfiglessCluster)
        self.config_path = self.cluster.node_etc / "qrmi_config.json"

    def plugstack_line(self, *args: str, requirement: str = "optional") -> str:
        """Return the plugin's line without the config's path."""
        return " ".join([requirement, str(STUB), f"--state-dir={self.state_dir}", *args])
