"""The handler: answers the requests of a client, one after the other."""

from collections.abc import Callable, Mapping

from qrmi_slurm.broker.connection import ClientConnection
from qrmi_slurm.broker.exchange import Exchange
from qrmi_slurm.broker.gate import Gate
from qrmi_slurm.broker.refusal import Refusal
from qrmi_slurm.broker.request import Request
from qrmi_slurm.broker.request_log import RequestLog
from qrmi_slurm.broker.rules import Service
from qrmi_slurm.broker.site_tokens import LoginError
from qrmi_slurm.broker.upstream import UpstreamError

# How a request that could not be read is logged.
_UNREADABLE = Request("?", "?", ())


class Handler:
    """Has each request admitted or refused, and passed on to its service.

    Args:
        gate: decides which requests pass.
        services: for each service, what carries out an exchange with it.
        log: where refusals and failures go.
    """

    def __init__(self, gate: Gate, services: Mapping[Service, Callable[[Exchange], None]], log: RequestLog) -> None:
        self._gate = gate
        self._services = services
        self._log = log

    def converse(self, client: ClientConnection) -> None:
        """Answer a client's requests until one side ends the connection.

        Raises:
            BrokenConnectionError: the client is gone.
        """
        while True:
            try:
                request = client.next_request()
            except Refusal as refusal:
                self._refuse(client, _UNREADABLE, refusal)
                return
            if request is None:
                return
            self._answer(client, request)

    def _answer(self, client: ClientConnection, request: Request) -> None:
        try:
            exchange = self._gate.admit(client, request)
            self._services[exchange.permit.service](exchange)
        except Refusal as refusal:
            self._refuse(client, request, refusal)
        except LoginError as error:
            self._fail(client, request, 502, f"login failed: {error}")
        except UpstreamError as error:
            status = 504 if error.is_late else 502
            self._fail(client, request, status, f"no answer from the service: {error}")

    def _refuse(self, client: ClientConnection, request: Request, refusal: Refusal) -> None:
        self._log.refused(self._gate.qpu_of(request), request, refusal)
        client.end_with(refusal.status, refusal.message)

    def _fail(self, client: ClientConnection, request: Request, status: int, reason: str) -> None:
        self._log.failed(self._gate.qpu_of(request), reason)
        client.end_with(status, reason)
