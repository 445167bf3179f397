"""The peers: whose processes are at the other ends of connections on loopback.

TCP does not say, so the kernel is asked for the socket with the connection's two addresses: by netlink (sock_diag(7)),
which takes 30 us however many sockets a node has, or else through /proc/net/tcp, milliseconds on a busy node.
"""

import socket
import struct
from pathlib import Path
from typing import Final

Address = tuple[str, int]

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h
_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLM_F_REQUEST: Final = 1
_NO_COOKIE: Final = 0xFFFFFFFF
_ALL_STATES: Final = 0xFFFFFFFF
# nlmsghdr, then inet_diag_msg: four bytes, inet_diag_sockid, three counters, uid, inode.
_HEADER: Final = struct.Struct("=IHHII")
_UID_AT: Final = _HEADER.size + 4 + 48 + 12
_TIMEOUT_S: Final = 1.0

# The other end of a socket that listens.
_NOBODY: Final = ("0.0.0.0", 0)  # noqa: S104 nothing is bound to it

_PROC: Final = Path("/proc/net/tcp")


class Peers:
    """Tells whose connections to one listening socket are, over one netlink socket.

    Whether netlink works is tried once, with the listening socket: later, "there is no such socket" means that, and no
    stranger can have /proc/net/tcp read, which takes longer the more sockets they hold.

    Args:
        server: the listening socket's address.
    """

    def __init__(self, server: Address) -> None:
        self._server = server
        self._asked = 0
        self._link: socket.socket | None = None
        try:
            link = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG)
        except OSError:  # this container does not allow it
            return
        self._link = link
        try:
            link.settimeout(_TIMEOUT_S)
            self._ask(server, _NOBODY)
        except OSError:  # this kernel has no tcp_diag
            link.close()
            self._link = None

    def close(self) -> None:
        """Close the netlink socket."""
        if self._link is not None:
            self._link.close()

    def uid_of(self, client: Address) -> int | None:
        """Return the uid that opened the client's end; None where that socket no longer exists.

        Args:
            client: the client's end, as accept() returns it.
        """
        if self._link is None:
            return by_proc(client, self._server)
        try:
            return self._ask(client, self._server)
        except OSError:
            return None

    def _ask(self, local: Address, remote: Address) -> int | None:
        """Ask the kernel for the owner of the socket with these ends.

        Raises:
            OSError: there is no such socket, or this kernel does not support the question.
        """
        assert self._link is not None  # noqa: S101
        self._asked += 1
        ports = struct.pack(">HH", local[1], remote[1])
        addresses = b"".join(socket.inet_aton(host).ljust(16, b"\0") for host, _ in (local, remote))
        socket_id = ports + addresses + struct.pack("=III", 0, _NO_COOKIE, _NO_COOKIE)
        request = struct.pack("=BBBBI", socket.AF_INET, socket.IPPROTO_TCP, 0, 0, _ALL_STATES) + socket_id
        head = _HEADER.pack(_HEADER.size + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, self._asked, 0)
        self._link.send(head + request)
        while True:
            answer = self._link.recv(8192)
            _, kind, _, number, _ = _HEADER.unpack_from(answer)
            if number == self._asked:  # not the late answer to an earlier question
                break
        if kind != _SOCK_DIAG_BY_FAMILY:  # NLMSG_ERROR: a negative errno
            raise OSError(-struct.unpack_from("=i", answer, _HEADER.size)[0], "sock_diag")
        uid, inode = struct.unpack_from("=II", answer, _UID_AT)
        return int(uid) if inode else None  # without an inode the socket is being closed, and has no owner


def by_proc(client: Address, server: Address) -> int | None:
    """Look the socket up in /proc/net/tcp, whose addresses are in the machine's byte order (proc(5)).

    Raises:
        OSError: there is no /proc/net/tcp.
    """
    wanted = [_as_in_proc(client), _as_in_proc(server)]
    with _PROC.open() as lines:
        for line in lines:
            words = line.split()
            if words[1:3] == wanted:
                return int(words[7]) if words[9] != "0" else None
    return None


def _as_in_proc(address: Address) -> str:
    (number,) = struct.unpack("=I", socket.inet_aton(address[0]))
    return f"{number:08X}:{address[1]:04X}"
