"""A malicious service, which tries to get credentials sent elsewhere, exhaust memory, or inject output.

Run as a program it writes its two ports to the file that its argument names, and serves on both until it is killed.
Redirections lead from the first port to the second. The first part of a path selects the attack, after a login that
works:

    redirect-<code>  to the same path below /caught at the second port
    flood            an endless text, as fast as it is read
    drip             a byte now and then, endlessly
    words            400, with escapes and directives for terminals, syslog and TaskProlog
    lines            400, with 100,000 line breaks
    login-<any>      the same for the login

`/requests` lists each request with its port, headers and body.
"""

import contextlib
import http.server
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

REQUESTS: list[dict[str, Any]] = []
BEARER = "planted-rogue-bearer-Zq41"
WORDS = (
    "no\nexport LD_PRELOAD=/evil.so\nunset PATH\nprint you have won\n\r\x1b]0;title\x07\x1b[2J\x9b31m\u202eevil\n"
    "export ibm_demo_QRMI_IBM_QCS_ENDPOINT=http://evil.invalid\0end"
)
CHUNK = b"x" * (1 << 20)


class Rogue(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    other_port = 0

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode("utf-8", "replace")
        port = self.connection.getsockname()[1]
        _, what, *rest = self.path.split("/")
        if what == "requests":
            self._answer(200, json.dumps(REQUESTS).encode())
            return
        REQUESTS.append({"port": port, "path": self.path, "headers": dict(self.headers), "body": body})
        is_login = rest == ["identity", "token"]
        if is_login != what.startswith("login-") and is_login:
            token = {"access_token": BEARER, "token_type": "Bearer", "expires_in": 3600, "expiration": 9_999_999_999}
            self._answer(200, json.dumps(token).encode())
            return
        what = what.removeprefix("login-")
        with contextlib.suppress(OSError):  # the client has had enough
            if what.startswith("redirect-"):
                self.send_response(int(what.partition("-")[2]))
                self.send_header("location", f"http://127.0.0.1:{self.other_port}/caught/{'/'.join(rest)}")
                self.send_header("content-length", "0")
                self.end_headers()
            elif what in ("flood", "drip"):
                self._go_on(what)
            elif what == "words":
                self._answer(400, WORDS.encode())
            elif what == "lines":
                self._answer(400, b"\n" * 100_000)
            else:
                self._answer(404, b"{}")

    do_GET = do_PATCH = do_DELETE = do_POST

    def _go_on(self, what: str) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(b'{"id": "')
        ends_s = time.monotonic() + 60
        while time.monotonic() < ends_s:
            self.wfile.write(CHUNK if what == "flood" else b"x")
            time.sleep(0 if what == "flood" else 0.1)

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        pass


if __name__ == "__main__":
    servers = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), Rogue) for _ in range(2)]
    Rogue.other_port = servers[1].server_port
    for server in servers:
        server.daemon_threads = True
    new = Path(f"{sys.argv[1]}.new")
    new.write_text(f"{servers[0].server_port}\n{servers[1].server_port}\n")
    new.rename(sys.argv[1])
    threading.Thread(target=servers[1].serve_forever, daemon=True).start()
    servers[0].serve_forever()
