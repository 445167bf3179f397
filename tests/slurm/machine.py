"""A machine to follow the admin's pages on: a cluster without the suite, where /opt, /etc and the like are its own.

It is a mount and a network namespace of this machine, so what the pages say is typed as it stands, and the machine's
own folders and ports are left alone. What systemd would do there, stand-ins do.
"""

import importlib.util
import json
import shutil
import socket
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from setup.environment import CHECKOUT, wheels
from slurm.cluster import SYSTEM_PATH, Cluster, ClusterOptions, User
from slurm.polling import wait_for

COMMAND_DEADLINE_S = 120.0
MAX_DATAGRAM_BYTES = 65536


def _packages() -> Path:
    """Return the folder of the packages in the lower layer of the tests' environment."""
    found = importlib.util.find_spec("qiskit")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parents[1]


# Qiskit and what else the emulator and the example need are too large to be installed again.
BASE_PACKAGES = _packages()
BASE_BIN = BASE_PACKAGES.parents[2] / "bin"

# What a folder of the cluster takes the place of. Slurm's own configuration is then where the pages have it.
OWN_PLACES = ("opt", "etc", "srv", "var/spool", "usr/local/bin", "dev")

SET_UP = """
set -e
own={folder}/own
mkdir -p $own/opt $own/srv $own/var/spool $own/usr/local/bin $own/dev
cp -a /etc $own/etc
rm -rf $own/etc/slurm && mkdir $own/etc/slurm
for name in null zero full random urandom tty; do
    touch $own/dev/$name
    mount --bind /dev/$name $own/dev/$name
done
mkdir $own/dev/shm $own/dev/pts
chmod 1777 $own/dev/shm
mount --rbind /dev/pts $own/dev/pts
ln -s pts/ptmx $own/dev/ptmx
ln -s /proc/self/fd $own/dev/fd
for place in {places}; do
    mount --rbind $own/$place /$place
done
mount --bind {folder}/etc /etc/slurm
python3 -c "{loopback}"
touch {folder}/machine.ready
exec sleep infinity
"""
# A new network namespace has its loopback down, and Debian may have no ip(8): SIOCSIFFLAGS, IFF_UP | IFF_RUNNING. Slurm
# resolves 127.0.0.1 only where there is another address as well (AI_ADDRCONFIG): SIOCSIFADDR, RFC 5737's first.
LOOPBACK_UP = """
import fcntl, socket, struct
end = socket.socket()
fcntl.ioctl(end, 0x8914, struct.pack('16sh14x', b'lo', 0x41))
address = socket.inet_aton('192.0.2.1')
fcntl.ioctl(end, 0x8916, struct.pack('16sH2x4s8x', b'lo:1', socket.AF_INET, address))
"""

# Each does what the pages use of the program, by the same files: units in /etc/systemd/system, messages of /dev/log.
SYSTEMCTL = """#!/bin/bash
units=/etc/systemd/system
case "$1 $2" in
    'daemon-reload ') ;;
    'enable --now') # Enabling starts a timer, which starts its service soon.
        for timer in "${@:3}"; do
            grep -q '^WantedBy=timers.target$' $units/$timer || exit 1
            program=$(sed -n 's/^ExecStart=//p' $units/${timer%.timer}.service)
            $program >/dev/null || exit 1
        done ;;
    'disable --now')
        for timer in "${@:3}"; do
            [ -e $units/$timer ] || exit 1
        done ;;
    edit*) [ -e $units/$2 ] ;;
    *) echo "no stand-in for: systemctl $*" >&2; exit 64 ;;
esac
"""
JOURNALCTL = """#!/usr/bin/python3
import argparse, re
options = argparse.ArgumentParser()
options.add_argument("-t", action="append")
options.add_argument("--grep", default="")
chosen = options.parse_args()
for line in open("{syslog}", errors="replace"):
    tag, text = re.match(r"<[0-9]+>.{{15}} ([^ \\[:]+)[^ ]*: (.*)", line).groups()
    if tag in chosen.t and re.search(chosen.grep, text):
        print(tag, text)
"""
# Both nodes are this machine.
SSH = """#!/bin/sh
exec sh -c "$2"
"""
# The admin's hands in an editor: the configuration that belongs to the emulator.
EDITOR = """#!/bin/sh
cat {checkout}/examples/qrmi_config.emulator.json >"$1"
"""


class Machine:
    """A cluster of two nodes on a machine of its own; `with Machine() as machine:`."""

    def __init__(self) -> None:
        # PrologFlags is the page's to set.
        self.cluster = Cluster(ClusterOptions(nodes=2, settings={"PrologFlags": "", "SlurmdDebug": "debug"}))
        self.folder = self.cluster.folder
        self.checkout = self.folder / "checkout"
        self.syslog = self.folder / "log" / "syslog"
        self.wheels = wheels()
        self._own = self.folder / "own"
        self._end: socket.socket | None = None

    def __enter__(self) -> Self:
        """Start the machine and its cluster."""
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it; nothing of it is left."""
        self.stop()

    def stop(self) -> None:
        """End every process in it, and with them its mounts; remove its folder."""
        if self._end is not None:
            self._end.close()
        self.cluster.stop()

    def path(self, path: str) -> Path:
        """Return where a path of the machine is seen from outside, for those that are its own."""
        assert path.startswith(tuple(f"/{place}/" for place in OWN_PLACES)), path
        return self.cluster.etc / path[11:] if path.startswith("/etc/slurm/") else self._own / path[1:]

    def type(
        self, command: str, *, user: User | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in bash: as root in the checkout, or as a user at home. Both outputs are one."""
        return subprocess.run(
            self._words(command, user),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=COMMAND_DEADLINE_S,
            env={**self._env(user), **(env or {})},
            umask=0o077 if user is None else 0o022,  # root's habit at many sites; what users need is the page's to say
        )

    def start(self, name: str, command: str, env: Mapping[str, str] | None = None) -> None:
        """Start a command that goes on as root's, its output in the log of that name."""
        words = self._words(f"exec {command}", None, enter=False)
        self.cluster.start_daemon(name, words, {**self._env(None), **(env or {})})

    def emulator(self, method: str, what: str, body: object = None) -> Any:
        """Call the control interface of the emulator on its usual port; return its answer, None where it is empty."""
        program = (
            "import sys, urllib.request as u; method, what, body = sys.argv[1:];"
            "request = u.Request('http://127.0.0.1:8290/_emulator/' + what, body.encode() or None,"
            " {'Content-Type': 'application/json'}, method=method);"
            "print(u.urlopen(request, timeout=20).read().decode())"
        )
        sent = "" if body is None else json.dumps(body)
        command = [*self.cluster.enter, "/usr/bin/python3", "-c", program, method, what, sent]
        done = subprocess.run(command, env={"PATH": SYSTEM_PATH}, capture_output=True, text=True, check=True)
        return json.loads(done.stdout) if done.stdout.strip() else None

    def open_sessions(self) -> list[dict[str, Any]]:
        """Return the sessions that hold a QPU of the emulator now."""
        return [one for one in self.emulator("GET", "sessions") if one["state"] in ("open", "active")]

    # --- inside -------------------------------------------------------------------------------------

    def _start(self) -> None:
        self.cluster.make()  # its users stand in the /etc that is copied
        ignored = shutil.ignore_patterns(".git", "build", "dist", "__pycache__", ".*_cache", "*.so")
        shutil.copytree(CHECKOUT, self.checkout, ignore=ignored, symlinks=True)
        script = SET_UP.format(folder=self.folder, places=" ".join(OWN_PLACES), loopback=LOOPBACK_UP)
        unshare = ["unshare", "--mount", "--net", "--propagation", "private", "sh", "-c", script]
        pid = self.cluster.start_daemon("machine", unshare, {})

        def is_ready() -> bool:
            self.cluster.check_daemons()
            return (self.folder / "machine.ready").exists()

        wait_for(is_ready, "the machine's mounts", 20, on_timeout=lambda: self.cluster.log_tail("machine"))
        self.cluster.enter = ("nsenter", f"--mount=/proc/{pid}/ns/mnt", f"--net=/proc/{pid}/ns/net")
        self._listen()
        self._write(self.path("/usr/local/bin/systemctl"), SYSTEMCTL)
        self._write(self.path("/usr/local/bin/journalctl"), JOURNALCTL.format(syslog=self.syslog))
        self._write(self.path("/usr/local/bin/ssh"), SSH)
        self._write(self.folder / "editor", EDITOR.format(checkout=self.checkout))
        (self.folder / "apt.conf").write_text('APT::Get::Simulate "true";\n')
        self.cluster.start()

    def _listen(self) -> None:
        """Be the machine's syslog."""
        self.syslog.touch(mode=0o600)
        end = self._end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        end.bind(str(self.path("/dev/log")))
        self.path("/dev/log").chmod(0o666)

        def take() -> None:
            try:
                while content := end.recv(MAX_DATAGRAM_BYTES):
                    with self.syslog.open("ab") as log:
                        log.write(content.rstrip(b"\0\n") + b"\n")
            except OSError:
                return  # the machine is stopped

        threading.Thread(target=take, daemon=True).start()

    def _words(self, command: str, user: User | None, *, enter: bool = True) -> list[str | Path]:
        words: list[str | Path] = [*self.cluster.enter] if enter else []
        words += ["env", "-C", user.home if user else self.checkout]
        if user is not None:
            words += ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--clear-groups"]
        return [*words, "bash", "-c", command]

    def _env(self, user: User | None) -> dict[str, str]:
        """Return the environment of a shell on the machine: nothing that the pages do not say, but for an index."""
        common = {"PATH": SYSTEM_PATH, "LANG": "C.UTF-8", "PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": "1"}
        if user is not None:
            path = f"{BASE_BIN}:{SYSTEM_PATH}"  # a Python of the user's own, with what the example imports
            who = {"HOME": str(user.home), "USER": user.name, "LOGNAME": user.name, "SHELL": "/bin/bash"}
            return {**common, **who, "PATH": path}
        return {
            **common,
            "HOME": str(self.folder),
            "EDITOR": str(self.folder / "editor"),
            "APT_CONFIG": str(self.folder / "apt.conf"),
            "PIP_FIND_LINKS": str(self.wheels),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            # Two nodes share this machine, whose name is neither's.
            "SLURMD_NODENAME": "n1",
        }

    def _write(self, path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)
