"""A network of its own for booted machines, in which the emulator is a service behind HTTPS.

It is a network namespace with one address besides loopback: Slurm's daemons do not resolve names with loopback alone
(AI_ADDRCONFIG). The tests stay outside; their service listens inside, since a socket belongs to the namespace that it
was made in.
"""

import asyncio
import contextlib
import ctypes
import os
import socket
import ssl
import subprocess
import threading
from pathlib import Path
from urllib.parse import urlsplit

from slurm.cluster import Cluster, ClusterError
from slurm.polling import wait_for

# RFC 5737: documentation. Machines outside of this one are neighbors in this network.
ADDRESS = "192.0.2.1"
SERVICE_NAME = "quantum.test"
CLONE_NEWNET = 0x40000000  # sched.h
CHUNK_BYTES = 65536

SET_UP = """
set -e
python3 -c "{up}"
touch {ready}
exec sleep infinity
"""
# Debian may lack ip(8). SIOCSIFFLAGS: IFF_UP | IFF_RUNNING; SIOCSIFADDR.
LOOPBACK_UP = """
import fcntl, socket, struct
end = socket.socket()
fcntl.ioctl(end, 0x8914, struct.pack('16sh14x', b'lo', 0x41))
fcntl.ioctl(end, 0x8916, struct.pack('16sH2x4s8x', b'lo:1', socket.AF_INET, socket.inet_aton('{address}')))
"""


class Network:
    """A network namespace that lives as long as a cluster's other processes.

    Args:
        cluster: whose folder and processes it belongs to; its folder exists.
    """

    def __init__(self, cluster: Cluster) -> None:
        ready = cluster.folder / "network.ready"
        script = SET_UP.format(up=LOOPBACK_UP.format(address=ADDRESS), ready=ready)
        pid = cluster.start_daemon("network", ["unshare", "--net", "sh", "-c", script], {})
        self._path = Path(f"/proc/{pid}/ns/net")

        def is_ready() -> bool:
            cluster.check_daemons()
            return ready.exists()

        wait_for(is_ready, "a network namespace", 20, on_timeout=lambda: cluster.log_tail("network"))

    @property
    def enter(self) -> tuple[str, ...]:
        """The words before a command that is to run in this network."""
        return ("nsenter", f"--net={self._path}")

    def listen(self, port: int = 0) -> socket.socket:
        """Return a socket that listens in this network, for a process outside of it.

        Raises:
            ClusterError: the namespace cannot be entered.
        """
        made: list[socket.socket] = []

        def make() -> None:  # in a thread, which alone changes its namespace
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET) == 0:
                    made.append(socket.create_server((ADDRESS, port)))
            finally:
                os.close(fd)

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        if not made:
            raise ClusterError(f"cannot listen in the network {self._path}")
        return made[0]


class Authority:
    """A certificate authority with one certificate, for SERVICE_NAME.

    Args:
        folder: where its files go.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700)
        self.certificate = folder / "ca.pem"
        (folder / "names").write_text(f"subjectAltName=DNS:{SERVICE_NAME}\n")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial")
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        for words in (
            ("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=Test CA"),
            ("req", *key, "-keyout", "key", "-out", "request", "-subj", f"/CN={SERVICE_NAME}"),
            ("x509", "-req", "-in", "request", "-extfile", "names", *signed, "-days", "1", "-out", "certificate"),
        ):
            subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)
        self._folder = folder

    def tls(self) -> ssl.SSLContext:
        """Return the server's side of TLS."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._folder / "certificate", self._folder / "key")
        return context


class Service:
    """The emulator as the network's machines see it: `https://quantum.test:PORT`.

    It forwards from a thread of the tests' process, and ends with that.

    Args:
        url: the emulator's.
        network: where to listen.
        authority: whose certificate to show.
    """

    def __init__(self, url: str, network: Network, authority: Authority) -> None:
        parts = urlsplit(url)
        self._target = (parts.hostname, parts.port)
        self._listener = network.listen()
        self._tls = authority.tls()
        threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True).start()

    @property
    def url(self) -> str:
        """The service's URL."""
        return f"https://{SERVICE_NAME}:{self._listener.getsockname()[1]}"

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._forward, sock=self._listener, ssl=self._tls)
        await server.serve_forever()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection(*self._target)
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    """Forward one way until the source ends; TLS cannot be shut in one direction alone."""
    with contextlib.suppress(OSError):
        while data := await source.read(CHUNK_BYTES):
            sink.write(data)
            await sink.drain()
    sink.close()
