"""A Debian under systemd in a virtual machine of software alone: QEMU's TCG, which needs no help from the processor."""

import contextlib
import json
import shlex
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from booted import image
from booted.debian import SYSTEM_PATH, Content, Debian
from booted.network import Network
from setup.environment import CHECKOUT
from slurm.cluster import Cluster, ClusterError

NEEDED = ("e2fsprogs", "iproute2", "openssh-client", "qemu-system-x86")
# In its root, besides what every root has.
PACKAGES = ("linux-image-amd64", "openssh-server", "procps", "udev")
# RFC 5737: documentation.
HOST, MACHINE = "198.51.100.1", "198.51.100.2"
MEMORY_MIB = 2048
SSH_ANSWER_S = 10.0

LINK = f"""\
ip tuntap add dev tap0 mode tap
ip addr add {HOST}/24 dev tap0
ip link set tap0 up
"""
NETWORK_UNIT = f"""\
[Match]
Type=ether
[Network]
Address={MACHINE}/24
Gateway={HOST}
"""


class VirtualMachine(Debian):
    """A virtual machine with a kernel and a disk of its own, at the other end of a network's link.

    Args:
        name: its host name.
        cluster: whose folder and processes it belongs to.
        network: where it is.
        root: the root to make its disk from.
        content: what it has besides.
        copy: folders of this machine to copy onto the disk, and where.
    """

    # Measured: booting, importing Python's modules and Slurm's commands take 10 to 30 times as long.
    slowness = 15.0

    def __init__(
        self, name: str, cluster: Cluster, network: Network, root: Path, content: Content, copy: Mapping[Path, Path]
    ) -> None:
        self.name = name
        self._cluster = cluster
        self._network = network
        self._root = root
        self._folder = cluster.folder / name
        for part in ("files", "root", "upper", "work"):
            (self._folder / part).mkdir(parents=True)
        self._key = self._folder / "key"
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self._key)]
        subprocess.run(keygen, check=True, stdin=subprocess.DEVNULL)
        authorized = {"/root/.ssh/authorized_keys": self._key.with_suffix(".pub").read_text()}
        unit = {"/etc/systemd/network/10-link.network": NETWORK_UNIT}
        enabled = (
            "chmod 0700 /root/.ssh && chmod 0600 /root/.ssh/authorized_keys",
            "SYSTEMD_OFFLINE=1 systemctl --quiet enable systemd-networkd ssh",
        )
        Content({**content.files, **authorized, **unit}, content.secret, (*content.commands, *enabled)).write(
            self._folder / "files"
        )
        self._disk = self._folder / "disk"
        told = {
            "folder": str(self._folder),
            "lower": str(root),
            "copy": {str(path): str(place) for path, place in copy.items()},
            "disk": str(self._disk),
        }
        unshare = ["unshare", "--mount", "--propagation", "private"]
        command = [*unshare, sys.executable, "-P", "-m", image.__name__, json.dumps(told)]
        path = {"PATH": SYSTEM_PATH, "PYTHONPATH": str(CHECKOUT / "tests")}
        done = subprocess.run(command, env=path, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode != 0:
            raise ClusterError(f"the disk of {name} cannot be made\n{done.stderr}")
        subprocess.run([*network.enter, "sh", "-ec", LINK], check=True, stdin=subprocess.DEVNULL)

    def start(self) -> None:
        """Boot, without waiting, unless it does so already."""
        if self._cluster.is_alive(self.name):
            return
        boot = self._root / "boot"
        [kernel], [initrd] = sorted(boot.glob("vmlinuz-*")), sorted(boot.glob("initrd.img-*"))
        qemu = ["qemu-system-x86_64", "-nodefaults", "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"]
        qemu += ["-smp", "2", "-m", str(MEMORY_MIB), "-display", "none", "-serial", f"file:{self._console}"]
        qemu += ["-qmp", f"unix:{self._folder / 'qmp'},server=on,wait=off"]
        qemu += ["-drive", f"file={self._disk},if=virtio,format=raw", "-device", "virtio-rng-pci"]
        qemu += ["-netdev", "tap,id=link,ifname=tap0,script=no,downscript=no", "-device", "virtio-net-pci,netdev=link"]
        qemu += ["-kernel", str(kernel), "-initrd", str(initrd), "-append", "root=/dev/vda rw console=ttyS0 quiet"]
        self._cluster.start_daemon(self.name, [*self._network.enter, *qemu], {})

    def crash(self) -> None:
        """Reset it, as by its button: the kernel ends at once, what is not on the disk is lost, and it boots again."""
        self._leave()
        self._ask("system_reset")

    def words(self, command: str) -> list[str]:
        """Return the words of a command that runs a shell command inside, as root."""
        clean = ["env", "-i", f"PATH={SYSTEM_PATH}", "LANG=C.UTF-8", "HOME=/root", "sh", "-c", command]
        return [*self._ssh, shlex.join(clean)]

    def last_words(self) -> str:
        """Return the end of what it printed to its console."""
        text = self._console.read_text(errors="replace") if self._console.exists() else ""
        return "\n".join(text.splitlines()[-30:])

    @property
    def _console(self) -> Path:
        return self._folder / "console"

    @property
    def _ssh(self) -> list[str]:
        # One connection for all commands: its handshake takes seconds.
        options = ["BatchMode=yes", "ControlMaster=auto", "ControlPersist=60", f"ControlPath={self._folder / 'ssh'}"]
        options += ["StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"]
        options += [f"ConnectTimeout={SSH_ANSWER_S:.0f}", "ServerAliveInterval=5", "ServerAliveCountMax=6"]
        given = [word for option in options for word in ("-o", option)]
        return [
            *self._network.enter,
            "env",
            "-C",
            str(self._folder),
            "ssh",
            "-i",
            str(self._key),
            *given,
            f"root@{MACHINE}",
        ]

    def _leave(self) -> None:
        """Close the connection, which would wait for the machine after a reset."""
        subprocess.run([*self._ssh[:-1], "-O", "exit", self._ssh[-1]], capture_output=True, stdin=subprocess.DEVNULL)

    def _ask(self, command: str) -> None:
        """Give QEMU a command: QMP, a line of JSON each."""
        with socket.socket(socket.AF_UNIX) as end, end.makefile("rw") as lines:
            end.connect(str(self._folder / "qmp"))
            lines.readline()  # the greeting
            for name in ("qmp_capabilities", command):
                lines.write(json.dumps({"execute": name}) + "\n")
                lines.flush()
                answer: dict[str, Any] = {}
                while "return" not in answer:  # events may come first
                    answer = json.loads(lines.readline())
                    if "error" in answer:
                        raise ClusterError(f"QEMU refuses {name}: {answer['error']}")

    def _state(self) -> str | None:
        self._cluster.check_daemons()
        with contextlib.suppress(subprocess.TimeoutExpired):
            return super()._state()
        return None
