"""A test site's emulated quantum service: its process, its sessions, its faults."""

import json
import sys
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slurm.cluster import Cluster
from slurm.polling import wait_for

START_DEADLINE_S = 60.0  # it imports Qiskit: two seconds, many more on a busy machine
REQUEST_DEADLINE_S = 30.0
API_KEY = "emulator-test-apikey"
SERVICE_CRN = "crn:v1:bluemix:public:quantum-computing:us-east:a/emulator:emulator::"
OPEN_STATES = frozenset({"open", "active"})
TYPE = "ibm-quantum-compute-service"


class Emulator:
    """One `qrmi-slurm emulator`, run as a daemon of a cluster and ended with it.

    Args:
        cluster: a started cluster.
        backends: maps resource names to fake backends: `{"ibm_demo": "FakeSherbrooke"}`.
    """

    def __init__(self, cluster: Cluster, backends: Mapping[str, str]) -> None:
        self.backends = dict(backends)
        self._cluster = cluster
        self._port_file = cluster.folder / "emulator.port"
        # The service may send any answer, and the environment's proxies do not apply to it.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self.url = ""

    def start(self) -> None:
        """Start it without waiting; `wait_ready` does."""
        command: list[str | Path] = [Path(sys.executable).parent / "qrmi-slurm", "emulator", "--port", "0"]
        # Few tests run a circuit; loading the simulator at each start would take 2.5 s of a core.
        command += ["--port-file", self._port_file, "--no-warm"]
        for name, fake in self.backends.items():
            command += ["--backend", f"{name}={fake}"]
        self._cluster.start_daemon("emulator", command, {"QRMI_EMULATOR_APIKEY": API_KEY})

    def wait_ready(self) -> None:
        """Wait until it listens.

        Raises:
            ClusterError: it ended; the message has the end of its output.
            DeadlineError: it did not listen in time.
        """

        def port() -> str | None:
            self._cluster.check_daemons()
            return self._port_file.read_text().strip() if self._port_file.exists() else None

        found = wait_for(
            lambda: port() or None,
            "the emulator to listen",
            START_DEADLINE_S,
            on_timeout=lambda: self._cluster.log_tail("emulator"),
        )
        self.url = f"http://127.0.0.1:{found}"

    def resource(self, name: str) -> dict[str, Any]:
        """Return the entry of qrmi_config.json for one of the backends."""
        environment = {
            "QRMI_IBM_QCS_ENDPOINT": self.url,
            "QRMI_IBM_QCS_IAM_ENDPOINT": self.url,
            "QRMI_IBM_QCS_IAM_APIKEY": API_KEY,
            "QRMI_IBM_QCS_SERVICE_CRN": SERVICE_CRN,
        }
        return {"name": name, "type": TYPE, "environment": environment}

    def sessions(self) -> list[dict[str, Any]]:
        """Return all sessions so far, oldest first."""
        sessions: list[dict[str, Any]] = self.control("GET", "sessions")
        return sessions

    def open_sessions(self) -> list[dict[str, Any]]:
        """Return the sessions that hold a backend now."""
        return [session for session in self.sessions() if session["state"] in OPEN_STATES]

    def requests(self) -> list[dict[str, Any]]:
        """Return every request the emulator has answered."""
        requests: list[dict[str, Any]] = self.control("GET", "requests")
        return requests

    def control(self, method: str, what: str, body: object = None) -> Any:
        """Call the emulator's control interface and return its JSON answer, or None if it is empty."""
        request = urllib.request.Request(
            f"{self.url}/_emulator/{what}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with self._opener.open(request, timeout=REQUEST_DEADLINE_S) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    @contextmanager
    def fault(self, **what: Any) -> Iterator["Fault"]:
        """Make the emulator misbehave until the block ends: `fault(call="create_session", kind="hang")`."""
        fault = Fault(self, self.control("POST", "faults", what)["id"])
        try:
            yield fault
        finally:
            self.control("DELETE", f"faults/{fault.fault_id}")

    def held(self, call: str, when: str = "before") -> AbstractContextManager["Fault"]:
        """Hold requests of a call until the block ends, then answer them.

        Args:
            call: the call's name, such as `create_session`.
            when: `before` or `after` the service has carried it out.
        """
        return self.fault(call=call, kind="hold", when=when)

    def clear_faults(self) -> None:
        """Clear all faults; held requests go on."""
        self.control("DELETE", "faults")


@dataclass(frozen=True, slots=True)
class Fault:
    """An active fault."""

    emulator: Emulator
    fault_id: str

    def hits(self) -> int:
        """Return how many requests it has affected so far."""
        return int(self._shown()["hits"])

    def count(self) -> int:
        """Return how many requests it is holding."""
        return int(self._shown()["holding"])

    def go_on(self) -> None:
        """Release the held requests, and hold none from now on."""
        self.emulator.control("POST", f"release/{self.fault_id}", {})

    def wait_for(self, count: int, deadline_s: float = 20.0) -> None:
        """Wait until it is holding that many requests at once.

        Raises:
            DeadlineError: it did not.
        """
        wait_for(lambda: self.count() >= count, f"{count} held requests", deadline_s)

    def _shown(self) -> dict[str, Any]:
        faults: list[dict[str, Any]] = self.emulator.control("GET", "faults")
        return next(fault for fault in faults if fault["id"] == self.fault_id)
