"""A stand-in for the IBM quantum compute service; the first part of a request's path says how it answers.

Run as a program it prints its port. The path is `/<scenario>/...`, with scenario `ok` or `<where>-<what>`: where is one
of `iam`, `sessions`, `jobs`, `close`, and what is a status code, `garbage`, `hang` or `page404`. `/requests` lists the
requests.
"""

import http.server
import itertools
import json
import sys
import time

PLACES = {"identity": "iam", "jobs": "jobs"}
SESSION_NUMBERS = itertools.count(1)
REQUESTS = []
BEARER = "test-secret-bearer"
ONLINE = {"state": True, "status": "active", "length_queue": 0, "backend_version": "1"}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.path == "/requests":
            self._answer(200, json.dumps(REQUESTS))
            return
        _, scenario, resource, *_ = self.path.partition("?")[0].split("/")
        REQUESTS.append(f"{self.command} {self.path}")
        place = PLACES.get(resource) or ("sessions" if self.command == "POST" else "close")
        where, _, what = scenario.partition("-")
        if place != "iam" and self.headers.get("authorization") != f"Bearer {BEARER}":
            self._answer(401, json.dumps({"errors": [{"code": 1200, "message": "Unauthorized"}]}))
            return
        if self.path.endswith("/status"):
            self._answer(200, json.dumps(ONLINE))
        elif where != place:
            self._answer(200, json.dumps(self._content(place)))
        elif what == "hang":
            time.sleep(30)
        elif what == "garbage":
            self._answer(200, "<html>test-secret-echo</html>")
        elif what == "page404":
            self._answer(404, "<html>404 Not Found</html>")
        else:
            self._answer(int(what), json.dumps({"errors": [{"code": 1, "message": "no"}]}))

    do_GET = do_PATCH = do_DELETE = do_POST

    def _content(self, place):
        if place == "iam":
            return {
                "access_token": BEARER,
                "refresh_token": "test-secret-refresh",
                "token_type": "Bearer",
                "expires_in": 3600,
                "expiration": 9_999_999_999,
                "scope": "ibm",
            }
        if place == "sessions":
            return {"id": f"session-{next(SESSION_NUMBERS)}", "backend_name": "x", "mode": "dedicated"}
        return {"jobs": [], "count": 0, "limit": 1, "offset": 0} if place == "jobs" else {}

    def _answer(self, status, text):
        content = text.encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments):
        pass


if __name__ == "__main__":
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()
