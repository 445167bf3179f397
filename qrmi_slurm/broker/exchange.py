"""An exchange: a request that may pass, and the client that waits for its answer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from qrmi_slurm.broker.connection import ClientConnection
from qrmi_slurm.broker.refusal import Refusal
from qrmi_slurm.broker.rules import Permit
from qrmi_slurm.broker.spec import Qpu

# Enough for every body but a job's and an object's.
SMALL_BODY_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request, and everything needed to answer it.

    Args:
        client: who asked; the body can be read from it once.
        method: GET, POST, ...
        headers: the request's headers, their names in lower case.
        qpu: the QPU that it is for.
        index: that QPU's place among the broker's.
        permit: what may be asked of the service.
    """

    client: ClientConnection
    method: str
    headers: Mapping[str, str]
    qpu: Qpu
    index: int
    permit: Permit

    @property
    def body_bytes(self) -> int | None:
        """The body's size, where the client has given it."""
        length = self.headers.get("content-length")
        return int(length) if length is not None else None

    def read_body(self, max_bytes: int) -> bytes:
        """Return the whole body.

        Raises:
            Refusal: it is larger than that, or not HTTP.
        """
        too_large = Refusal(f"the body is larger than {max_bytes} bytes", 413)
        if (self.body_bytes or 0) > max_bytes:
            raise too_large
        body = bytearray()
        for piece in self.client.pieces():
            body += piece
            if len(body) > max_bytes:
                raise too_large
        return bytes(body)
