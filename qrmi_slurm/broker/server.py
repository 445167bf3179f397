"""The server: puts a broker together, and lets only its job's user connect."""

import socket
import time
from collections.abc import Callable

from qrmi_slurm.broker.api import Api
from qrmi_slurm.broker.connection import BrokenConnectionError, ClientConnection
from qrmi_slurm.broker.door import Door
from qrmi_slurm.broker.gate import Gate
from qrmi_slurm.broker.handler import Handler
from qrmi_slurm.broker.iam import Iam
from qrmi_slurm.broker.lifetime import Lifetime
from qrmi_slurm.broker.listener import Listener
from qrmi_slurm.broker.own_jobs import OwnJobs
from qrmi_slurm.broker.refusal import Refusal
from qrmi_slurm.broker.relay import Relay
from qrmi_slurm.broker.request import Request
from qrmi_slurm.broker.request_log import RequestLog
from qrmi_slurm.broker.rules import Service
from qrmi_slurm.broker.s3 import S3
from qrmi_slurm.broker.sessions import Sessions
from qrmi_slurm.broker.spec import Spec
from qrmi_slurm.broker.upstream import Upstream
from qrmi_slurm.log import HookLog

# How a connection is logged that was not read from.
_UNREAD = Request("-", "-", ())


class Server:
    """A job's broker.

    Args:
        spec: everything it has to know.
        listener: the listening socket.
        upstream: the way to the services.
        own_jobs: the service's jobs that were submitted through it.
        log: its log.
        clock: seconds since the epoch.
        renewals_fd: the file of the sessions that it opens; None where it opens none.
    """

    def __init__(
        self,
        spec: Spec,
        listener: socket.socket,
        upstream: Upstream,
        own_jobs: OwnJobs,
        log: HookLog,
        clock: Callable[[], float] = time.time,
        renewals_fd: int | None = None,
    ) -> None:
        self._uid = spec.uid
        self._listener = listener
        self._requests = RequestLog(log)
        self._strangers = RequestLog(log)  # their own share: they must not keep the job's refusals out of the log
        self._upstream = upstream
        self._lifetime = Lifetime(own_jobs.is_folder_gone, spec.ends_s, clock)
        host, port = listener.getsockname()
        gate = Gate(spec.qpus, (f"{host}:{port}", f"localhost:{port}"), own_jobs, clock)
        relay = Relay(own_jobs, self._requests)
        sessions = Sessions(spec, upstream, own_jobs, renewals_fd, log, clock)
        api = Api(sessions, upstream, relay, clock)
        services = {
            Service.IAM: Iam(clock).answer,
            Service.COMPUTE_SERVICE: api.forward,
            Service.QUANTUM_SYSTEM: api.forward,
            Service.S3: S3(upstream, relay, clock).forward,
        }
        self._handler = Handler(gate, services, self._requests)

    def serve(self) -> str:
        """Serve until the job is over, and return how that was noticed."""
        door = Door(self._uid, self._listener.getsockname(), self._refused)
        try:
            return Listener(self._listener, door, self._handle, self._why_over).serve()
        finally:
            door.close()

    def _why_over(self) -> str:
        self._upstream.end_late()
        return self._lifetime.why_over()

    def _refused(self, uid: int | None) -> None:
        self._strangers.refused(None, _UNREAD, Refusal(f"connection from uid {uid}"))

    def _handle(self, connection: socket.socket) -> None:
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._lifetime.touch()
            self._handler.converse(ClientConnection(connection))
        except (OSError, BrokenConnectionError, MemoryError):
            pass
        except Exception:  # noqa: BLE001 the last line: one connection must not end the broker
            self._requests.surprise()
