"""A stand-in for each service that QRMI calls before or during an acquire; a path begins with a scenario.

Run as a program it prints its port, or writes it to the file that its argument names. Scenarios: `online`, `offline`,
`paused`, `unhealthy`, `unreadable` (200 with a page of HTML), `page404` (a gateway's, in HTML), `nolanes` (an older
system without that page), `lanes-<N>` (online, with so many lanes), a status code, `sessions-<code>` for sessions
alone, `echo` (400, with the request in it), `hang`, `hang-release` with anything behind it, `slow` (online, each answer
takes SLOW_S). It is its own proxy.
`/requests` lists each request with its headers and body.
"""

import http.server
import itertools
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

REQUESTS: list[dict[str, Any]] = []
SLOW_S = 0.2
SESSION_NUMBERS = itertools.count(1)
BEARER = "test-secret-bearer"

# IQM's document of a quantum computer, with the fields that QRMI insists on.
IQM = {
    "id": "0b5a0f36-1a8b-4d57-8a0e-0f6f1f3f6c01",
    "alias": "q",
    "display_name": "Q",
    "description": "a stand-in",
    "backend_type": "qpu",
    "number_of_qubits": 20,
    "pulla_enabled": False,
    "limits": {
        "max_instructions_per_circuit": 1,
        "max_shots_per_circuit": 1,
        "max_circuits_per_job": 1,
        "max_executions_per_job": 1,
        "max_queued_jobs_per_user": 1,
    },
    "queue_length": 0,
    "pricing": {"payg_price_per_second": "0.30"},
    "additional_info": {"academy_url": "", "best_suited_for": [], "documentation_url": "", "mock_url": ""},
}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode("utf-8", "replace")
        if self.path == "/requests":
            self._answer(200, json.dumps(REQUESTS))
            return
        # A client sends a proxy the whole address.
        _, scenario, *rest = re.sub(r"^http://[^/]*|\?.*", "", self.path).split("/")
        REQUESTS.append({"method": self.command, "path": self.path, "headers": dict(self.headers), "body": body})
        page = "/".join(rest)
        if scenario == "slow":
            time.sleep(SLOW_S)
        if scenario == "hang" or (scenario.startswith("hang-release") and self.command in ("PATCH", "DELETE")):
            time.sleep(30)
        elif scenario.isdecimal() or (scenario.startswith("sessions-") and page.startswith("sessions")):
            status = int(scenario.removeprefix("sessions-"))
            self._answer(status, json.dumps({"errors": [{"code": "x", "message": "no"}]}))
        elif scenario == "echo" and "identity" not in page:
            # IQM's token is configured by the site or the user; the others' tokens come from a login.
            key = self.headers["authorization"].rpartition(" ")[2] if "quantum-computers" in page else "no key"
            told = {"message": f"{key} is not good: {dict(self.headers)} {body}"}
            self._answer(400, json.dumps({"errors": [told]}))
        elif scenario == "page404" and "identity" not in page:
            self._answer(404, "<html>404 Not Found</html>")
        elif scenario == "unreadable" and "identity" not in page:
            self._answer(200, "<html>maintenance</html>")
        else:
            content = self._content(scenario, page)
            self._answer(*((404, '{"errors": []}') if content is None else (200, json.dumps(content))))

    do_GET = do_PATCH = do_DELETE = do_POST

    def _content(self, scenario: str, page: str) -> Any:
        up = scenario in ("online", "nolanes", "slow") or scenario.startswith(("sessions-", "hang-release", "lanes-"))
        name = page.rpartition("/")[2]
        if page == "identity/token":
            return {"access_token": BEARER, "token_type": "Bearer", "expires_in": 3600, "expiration": 9_999_999_999}
        if page == "jobs":
            return {"jobs": [], "count": 0, "limit": 1, "offset": 0}
        if page == "v1/jobs":
            return {"jobs": []}
        if page.startswith("backends/") and name == "status":  # the IBM compute service's
            return {"state": up, "status": "active" if up else scenario, "length_queue": 0, "backend_version": "1"}
        if page == "backends":
            names = ("my_ibm_quantum_compute_service", "my_qiskit_runtime_service")
            status = {"name": "online" if up else scenario, "reason": "" if up else "maintenance until noon"}
            return {"devices": [{"name": name, "status": status, "qubits": 5, "queue_length": 0} for name in names]}
        if page == "v1/targets/":  # Felis's
            return []
        if page.startswith("v1/backends/"):
            if name == "lanes":
                count = int(scenario.removeprefix("lanes-")) if scenario.startswith("lanes-") else 5
                lanes = {"hpc_workload_manager": {"lanes": count}, "ibm_quantum_compute": {"lanes": 1}}
                return None if scenario == "nolanes" else lanes
            return {"name": name, "status": "online" if up else scenario, "version": "1", "locked": False}
        if page.startswith("api/v1/quantum-computers/"):
            health = {"healthy": scenario != "unhealthy", "updated_at": "2026-01-01T00:00:00Z"}
            if name == "health":  # the path QRMI before 0.25 uses
                status = {"operational": "online" if up else "maintenance"}
                return health | status | {"healthy": up, "health": health | {"healthy": up}}
            return {
                **IQM,
                "operational_status": "maintenance" if scenario in ("offline", "paused") else "online",
                "health": health if scenario in ("online", "unhealthy") else None,
            }
        if page == "core-fast/api/v1/devices":
            return {"data": [{"status": "UP" if up else "DOWN", "availability": "ACTIVE" if up else "RETIRED"}]}
        if page == "accessible":  # the Warden's
            return {"is_accessible": up, "message": "" if up else "maintenance until noon"}
        if page.startswith("sessions"):  # the Warden's, and the IBM compute service's
            if self.command == "POST":
                return {"id": f"session-{next(SESSION_NUMBERS)}", "backend_name": "x", "mode": "dedicated"}
            return {"id": name} if name.startswith("session-") else None
        return None

    def _answer(self, status: int, text: str) -> None:
        content = text.encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        pass


if __name__ == "__main__":
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if len(sys.argv) > 1:
        new = Path(f"{sys.argv[1]}.new")
        new.write_text(f"{server.server_port}\n")
        new.rename(sys.argv[1])
    else:
        sys.stdout.write(f"{server.server_port}\n")
        sys.stdout.flush()
    server.serve_forever()
