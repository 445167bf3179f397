"""What a broker logs about requests, within bounds: a program in a loop must not fill the site's log."""

from collections.abc import Callable
from typing import Final

from qrmi_slurm.broker.refusal import Refusal
from qrmi_slurm.broker.request import Request
from qrmi_slurm.broker.spec import Qpu
from qrmi_slurm.log import HookLog
from qrmi_slurm.text import printable

_MAX_LOGGED: Final = 50


class RequestLog:
    """Logs the first refusals and failures; may be used from any thread.

    Args:
        log: the broker's log.
    """

    def __init__(self, log: HookLog) -> None:
        self._log = log
        self._count = 0

    def refused(self, qpu: Qpu | None, request: Request, refusal: Refusal) -> None:
        """Log a request that was not passed on."""
        self._write(
            self._log.warning,
            "refused",
            qpu=_name(qpu),
            method=printable(request.method, 20),
            path=printable(request.target.partition("?")[0], 200),
            status=refusal.status,
            reason=refusal.message,
        )

    def failed(self, qpu: Qpu | None, reason: str) -> None:
        """Log that a service gave no usable answer."""
        self._write(self._log.error, "not-answered", qpu=_name(qpu), reason=reason)

    def surprise(self) -> None:
        """Log the exception being handled, a fault of ours."""
        self._write(self._log.exception, "surprise")

    def _write(self, write: Callable[..., None], event: str, **details: object) -> None:
        self._count += 1
        if self._count > _MAX_LOGGED:
            return
        write(event, **details)
        if self._count == _MAX_LOGGED:
            self._log.warning(event, reason="further refusals and failures are not logged")


def _name(qpu: Qpu | None) -> str:
    return printable(qpu.name) if qpu is not None else "-"
