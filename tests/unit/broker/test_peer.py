"""Whose process is at the other end of a connection."""

import os
import socket

import pytest

from qrmi_slurm.broker import peer


@pytest.mark.parametrize("look", [peer.by_netlink, peer.by_proc])
def test_the_kernel_says_whose_a_connection_is(look):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        connection, address = listener.accept()
        with connection:
            assert look(address, connection.getsockname()) == os.getuid()
            client.close()
            assert look(address, connection.getsockname()) is None, (
                "a socket without an owner is not root's, though the table says uid 0"
            )
            assert peer.uid_of(("127.0.0.1", 1), connection.getsockname()) is None


def test_a_kernel_without_tcp_diag_is_asked_through_proc(monkeypatch):
    """It answers ENOENT, as it does for a socket that does not exist."""
    monkeypatch.setattr(peer, "_SOCK_DIAG_BY_FAMILY", 4711)
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
        connection, address = listener.accept()
        with connection:
            with pytest.raises(OSError):
                peer.by_netlink(address, connection.getsockname())
            assert peer.uid_of(address, connection.getsockname()) == os.getuid()
