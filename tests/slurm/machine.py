"""A machine on which to follow the admin's pages: a cluster without the suite, with its own /opt, /etc and the like.

It is a mount and a network namespace of this machine, so the pages' commands are typed verbatim, and the real machine's
folders and ports are left alone. Scripts stand in for systemd.
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
    """Return the package folder in the lower layer of the tests' environment."""
    found = importlib.util.find_spec("qiskit")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parents[1]


# Qiskit and the other packages of the emulator and the example are too large to install again.
BASE_PACKAGES = _packages()
BASE_BIN = BASE_PACKAGES.parents[2] / "bin"

# The folders replaced by folders of the cluster. Slurm's own configuration is then where the pages expect it.
OWN_PLACES = ("opt", "etc", "srv", "var/spool", "usr/local/bin", "usr/local/lib", "dev")

SET_UP = """
set -e
own={folder}/own
mkdir -p $own/opt $own/srv $own/var/spool $own/usr/local/bin $own/usr/local/lib $own/dev
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
# The loopback of a new network namespace is down, and Debian may lack ip(8): SIOCSIFFLAGS, IFF_UP | IFF_RUNNING. Slurm
# resolves 127.0.0.1 only if there is another address as well (AI_ADDRCONFIG): SIOCSIFADDR, RFC 5737's first.
LOOPBACK_UP = """
import fcntl, socket, struct
end = socket.socket()
fcntl.ioctl(end, 0x8914, struct.pack('16sh14x', b'lo', 0x41))
address = socket.inet_aton('192.0.2.1')
fcntl.ioctl(end, 0x8916, struct.pack('16sH2x4s8x', b'lo:1', socket.AF_INET, address))
"""

# Each does what the pages need from the program, using the same files: units in /etc/systemd/system, messages of
# /dev/log.
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
# The edits an admin would make by hand: the configuration for the emulator.
EDITOR = """#!/bin/sh
cat {checkout}/examples/qrmi_config.emulator.json >"$1"
"""


class Machine:
    """A two-node cluster on a machine of its own; `with Machine() as machine:`."""

    def __init__(self) -> None:
        # the page sets PrologFlags
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
        """Stop it and remove everything."""
        self.stop()

    def stop(self) -> None:
        """End every process inside, and with them its mounts; remove its folder."""
        if self._end is not None:
            self._end.close()
        self.cluster.stop()

    def path(self, path: str) -> Path:
        """Return the path outside the namespace for one of the machine's own paths."""
        assert path.startswith(tuple(f"/{place}/" for place in OWN_PLACES)), path
        return self.cluster.etc / path[11:] if path.startswith("/etc/slurm/") else self._own / path[1:]

    def type(
        self, command: str, *, user: User | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in bash, as root in the checkout or as a user at home, with stdout and stderr merged."""
        return subprocess.run(
            self._words(command, user),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=COMMAND_DEADLINE_S,
            env={**self._env(user), **(env or {})},
            umask=0o077 if user is None else 0o022,  # many sites set this for root; the page has to say what users need
        )

    def start(self, name: str, command: str, env: Mapping[str, str] | None = None) -> None:
        """Start a long-running command as root, with its output in the log of that name."""
        words = self._words(f"exec {command}", None, enter=False)
        self.cluster.start_daemon(name, words, {**self._env(None), **(env or {})})

    def emulator(self, method: str, what: str, body: object = None) -> Any:
        """Call the emulator's control interface on its usual port, and return its answer, or None if it is empty."""
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
        """Return the sessions that currently hold one of the emulator's QPUs."""
        return [one for one in self.emulator("GET", "sessions") if one["state"] in ("open", "active")]

    # --- inside -------------------------------------------------------------------------------------

    def _start(self) -> None:
        self.cluster.make()  # its users are in the copied /etc
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
        """Act as the machine's syslog."""
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
        """Return the environment of a shell on the machine: only what the pages mention, and a package index."""
        common = {"PATH": SYSTEM_PATH, "LANG": "C.UTF-8", "PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": "1"}
        if user is not None:
            path = f"{BASE_BIN}:{SYSTEM_PATH}"  # a Python for the user, with the packages that the example imports
            who = {"HOME": str(user.home), "USER": user.name, "LOGNAME": user.name, "SHELL": "/bin/bash"}
            return {**common, **who, "PATH": path}
        return {
            **common,
            "HOME": str(self.folder),
            "EDITOR": str(self.folder / "editor"),
            "APT_CONFIG": str(self.folder / "apt.conf"),
            "PIP_FIND_LINKS": str(self.wheels),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            # Two nodes share this machine, and its host name matches neither.
            "SLURMD_NODENAME": "n1",
        }

    def _write(self, path: Path, text: str) -> None:
        path.write_text(text)
        path.chmod(0o755)
