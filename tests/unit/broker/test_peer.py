"""Whose process is at the other end of a connection."""

import contextlib
import os
import socket
from collections.abc import Iterator

import pytest

from qrmi_slurm.broker import peer
from qrmi_slurm.broker.peer import Peers


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


def by_netlink(client, server):
    with contextlib.closing(Peers(server)) as peers:
        assert peers._link is not None
        return peers.uid_of(client)


@pytest.mark.parametrize("look", [by_netlink, peer.by_proc])
def test_the_kernel_says_whose_a_connection_is(look, listener):
    client = socket.create_connection(listener.getsockname())
    connection, address = listener.accept()
    with connection:
        assert look(address, connection.getsockname()) == os.getuid()
        client.close()
        assert look(address, connection.getsockname()) is None, (
            "a socket without an owner is not root's, though the table says uid 0"
        )
        assert look(("127.0.0.1", 1), connection.getsockname()) is None


def test_a_kernel_without_tcp_diag_is_asked_through_proc(monkeypatch, listener):
    """It answers ENOENT, as it does for a socket that does not exist."""
    monkeypatch.setattr(peer, "_SOCK_DIAG_BY_FAMILY", 4711)
    peers = Peers(listener.getsockname())
    assert peers._link is None
    with socket.create_connection(listener.getsockname()):
        connection, address = listener.accept()
        with connection:
            assert peers.uid_of(address) == os.getuid()


def test_a_kernel_with_tcp_diag_is_never_asked_through_proc(monkeypatch, listener):
    """Whoever closes their connections at once could have a table read that they have filled with their sockets."""
    monkeypatch.setattr(peer, "by_proc", lambda *_: pytest.fail("asked through /proc"))
    with contextlib.closing(Peers(listener.getsockname())) as peers:
        assert peers.uid_of(("127.0.0.1", 1)) is None


def test_the_late_answer_to_an_earlier_question_is_not_taken(listener):
    with contextlib.closing(Peers(listener.getsockname())) as peers:
        assert peers._link is not None
        with socket.create_connection(listener.getsockname()):
            connection, address = listener.accept()
            with connection:
                send, answered = peers._link.send, []

                class Link:
                    """Sends each question twice, first with the number before."""

                    def send(self, data):
                        earlier = int.from_bytes(data[8:12], "little") - 1
                        send(data[:8] + earlier.to_bytes(4, "little") + data[12:])
                        answered.append(data)
                        return send(data)

                    def recv(self, size):
                        return link.recv(size)

                link, peers._link = peers._link, Link()
                assert peers.uid_of(address) == os.getuid()
                assert peers.uid_of(("127.0.0.1", 1)) is None
                assert len(answered) == 2
                peers._link = link
