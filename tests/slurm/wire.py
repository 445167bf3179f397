"""The wire to slurmctld: counts what commands send and receive, as the network sees it."""

import contextlib
import re
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from slurm.cluster import Cluster

PIECE_BYTES = 65536


@dataclass(slots=True)
class Wire:
    """What has gone over it.

    Args:
        slurm_conf: for commands that are to use it.
        connections: how many; Slurm's commands open one for each RPC.
        size_bytes: in both directions.
    """

    slurm_conf: Path
    connections: int = 0
    size_bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, connections: int, size_bytes: int) -> None:
        """Note what has just passed."""
        with self._lock:
            self.connections += connections
            self.size_bytes += size_bytes

    def reset(self) -> None:
        """Begin at zero again."""
        with self._lock:
            self.connections = self.size_bytes = 0


@contextmanager
def counted(cluster: Cluster) -> Iterator[Wire]:
    """Yield a wire to a cluster's slurmctld until the block ends: a slurm.conf that differs in the port alone."""
    text = cluster.slurm_conf.read_text()
    found = re.search(r"^SlurmctldPort=(\d+)$", text, re.MULTILINE)
    assert found is not None
    with socket.create_server(("127.0.0.1", 0)) as server:
        slurm_conf = cluster.slurm_conf.with_name("slurm.conf.counted")
        slurm_conf.write_text(text.replace(found[0], f"SlurmctldPort={server.getsockname()[1]}"))
        wire = Wire(slurm_conf)
        thread = threading.Thread(target=_serve, args=(server, int(found[1]), wire), daemon=True)
        thread.start()
        try:
            yield wire
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            slurm_conf.unlink()


def _serve(server: socket.socket, port: int, wire: Wire) -> None:
    while True:
        try:
            client, _ = server.accept()
        except OSError:  # the end
            return
        wire.note(1, 0)
        threading.Thread(target=_relay, args=(client, port, wire), daemon=True).start()


def _relay(client: socket.socket, port: int, wire: Wire) -> None:
    """Pass on what both sides send, until both have ended."""
    with client, socket.create_connection(("127.0.0.1", port)) as slurmctld:
        target_of = {client: slurmctld, slurmctld: client}
        with contextlib.suppress(OSError):  # one side has closed it
            while target_of:
                for source in select.select(list(target_of), [], [])[0]:
                    piece = source.recv(PIECE_BYTES)
                    wire.note(0, len(piece))
                    if piece:
                        target_of[source].sendall(piece)
                    else:
                        target_of.pop(source).shutdown(socket.SHUT_WR)
