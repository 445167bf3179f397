"""A test site's stand-ins for QPU services other than the emulator's: their addresses and their requests."""

import contextlib
import fcntl
import json
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from slurm.cluster import Cluster
from slurm.polling import wait_for
from standins import libraries, services

# libmunge's default path, which QRMI cannot change (pasqal-local).
MUNGE_SOCKET = Path("/run/munge/munge.socket.2")
MUNGE_LOCK = Path("/run/lock/qrmi-slurm-test-munge")


class Services:
    """One process of stand-ins, run as a daemon of a cluster and ended with it. A path's first part is the scenario.

    Args:
        cluster: a started cluster.
    """

    def __init__(self, cluster: Cluster) -> None:
        port_file = cluster.folder / "services.port"
        cluster.start_daemon("services", [sys.executable, services.__file__, str(port_file)], {})
        found = wait_for(lambda: port_file.exists() and port_file.read_text().strip(), "the stand-ins to listen", 20)
        self.url = f"http://127.0.0.1:{found}"
        # The job's user has to load it as well.
        folder = cluster.folder / "libraries"
        folder.mkdir(mode=0o755)
        self.oqtopus_bridge = libraries.build_oqtopus_bridge(folder)

    def requests(self) -> list[dict[str, Any]]:
        """Return every request so far: method, path, headers and body."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.url}/requests", timeout=10) as answer:
            found: list[dict[str, Any]] = json.loads(answer.read())
        return found


@contextmanager
def munge_at_its_usual_place(cluster: Cluster) -> Iterator[None]:
    """Link this cluster's munge socket to the default path, unless the machine has a munge of its own."""
    MUNGE_LOCK.parent.mkdir(exist_ok=True)
    with MUNGE_LOCK.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if MUNGE_SOCKET.exists():
            yield
            return
        MUNGE_SOCKET.parent.mkdir(mode=0o755, exist_ok=True)
        MUNGE_SOCKET.unlink(missing_ok=True)  # left by a killed run
        MUNGE_SOCKET.symlink_to(cluster.folder / "munge" / "socket")
        try:
            yield
        finally:
            MUNGE_SOCKET.unlink()
            with contextlib.suppress(OSError):
                MUNGE_SOCKET.parent.rmdir()
