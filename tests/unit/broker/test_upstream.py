"""The way to the services."""

import socket
import threading
from contextlib import contextmanager

from qrmi_slurm.broker.upstream import Upstream, UpstreamRequest


@contextmanager
def proxy_seen():
    listener = socket.create_server(("127.0.0.1", 0))
    seen = []

    def serve():
        connection, _ = listener.accept()
        with connection:
            seen.append(connection.recv(65536).decode())
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"http://user:pass%40word@127.0.0.1:{listener.getsockname()[1]}", seen
    thread.join()
    listener.close()


def test_the_sites_proxy_is_used():
    with proxy_seen() as (url, seen):
        upstream = Upstream({"http_proxy": url})
        with upstream.ask(UpstreamRequest("GET", "http://api.example:81", "/x", {})) as answer:
            assert answer.read() == b"{}"
        upstream.close()
    assert seen[0].startswith("GET http://api.example:81/x HTTP/1.1\r\n")
    assert "Proxy-Authorization: Basic dXNlcjpwYXNzQHdvcmQ=" in seen[0]
