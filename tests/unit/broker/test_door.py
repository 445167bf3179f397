"""Who is let in, and what turning the others away costs."""

import os
import socket
import time
from contextlib import closing

import pytest

from qrmi_slurm.broker import door
from qrmi_slurm.broker.door import Door

STRANGER = 12345


class Opened:
    """A listening socket with a door for one uid, and what the door refused."""

    def __init__(self, uid):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.refused = []
        self.door = Door(uid, self.listener.getsockname(), self.refused.append)

    def connect(self):
        """Return the client's end of a new connection, and whether the other end was admitted."""
        client = socket.create_connection(self.listener.getsockname(), timeout=10)
        connection, address = self.listener.accept()
        return client, self.door.admit(connection, address), connection

    def close(self):
        self.door.close()
        self.listener.close()


def test_the_user_is_let_in():
    with closing(Opened(os.getuid())) as opened:
        client, is_admitted, connection = opened.connect()
        assert is_admitted
        assert opened.refused == []
        connection.sendall(b"welcome")
        assert client.recv(10) == b"welcome"
        client.close()
        connection.close()


def test_a_stranger_reads_why_not(monkeypatch):
    monkeypatch.setattr(door, "_TELL_S", 0.0)
    with closing(Opened(STRANGER)) as opened:
        client, is_admitted, connection = opened.connect()
        assert not is_admitted
        assert opened.refused == [os.getuid()]
        opened.door.tidy()
        assert connection.fileno() == -1
        with client:
            answer = client.recv(4096)
        assert answer.startswith(b"HTTP/1.1 403 Forbidden\r\n")
        assert b"this is another user's credential broker" in answer


def test_a_crowd_of_strangers_is_disconnected_at_once():
    """Only a few are told why; no descriptor of the others stays open, and their ports are free again."""
    with closing(Opened(STRANGER)) as opened:
        before = len(os.listdir("/proc/self/fd"))
        clients = [opened.connect()[0] for _ in range(100)]
        assert len(os.listdir("/proc/self/fd")) == before + len(clients) + door._MAX_TOLD
        with pytest.raises(ConnectionResetError):
            clients[-1].recv(1)
        assert clients[0].recv(12) == b"HTTP/1.1 403"
        for client in clients:
            client.close()


def test_a_later_stranger_is_told_again(monkeypatch):
    monkeypatch.setattr(door, "_TELL_S", 0.05)
    with closing(Opened(STRANGER)) as opened:
        clients = [opened.connect()[0] for _ in range(door._MAX_TOLD + 1)]
        time.sleep(0.1)
        clients.append(opened.connect()[0])
        assert clients[-1].recv(12) == b"HTTP/1.1 403"
        for client in clients:
            client.close()
