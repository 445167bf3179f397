"""A job's credential broker: `python3 -I -m qrmi_slurm.broker job=ID`, started by Prolog, handed its spec on 0."""

import json
import os
import sys
from typing import Final

from qrmi_slurm.broker import server, spec
from qrmi_slurm.broker.confine import close_all_but, confine
from qrmi_slurm.broker.own_jobs import OwnJobs
from qrmi_slurm.broker.upstream import Upstream
from qrmi_slurm.log import HookLog

# Where Prolog has put what it hands over (`brokerage`).
_SPEC_FD: Final = 0
_ANSWER_FD: Final = 1
_LIFE_FD: Final = 3

_MAX_SPEC_BYTES: Final = 16 * 1024**2


def main() -> int:
    """Read the spec, listen, say where, serve until the job is over."""
    close_all_but(frozenset(range(_LIFE_FD + 1)))
    try:
        told = spec.parse(_read_spec())
        log = HookLog("broker", told.job_id, echo=False)
        log.hide(secret for qpu in told.qpus if qpu is not None for secret in (*qpu.secrets, qpu.key))
        listener = server.listen(told.port)
        upstream = Upstream(told.env)
        own_jobs = OwnJobs(_LIFE_FD)
        confine()
    except (OSError, ValueError) as error:
        reason = error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)
        _tell({"error": reason})
        return 1
    broker = server.Server(told, listener, upstream, own_jobs, log)
    port = listener.getsockname()[1]
    _tell({"port": port})
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (_SPEC_FD, _ANSWER_FD):
        os.dup2(null, fd)
    os.close(null)
    log.info("begun", pid=os.getpid(), port=port, uid=told.uid)
    try:
        reason = broker.serve()
    except BaseException:  # the last line
        log.exception("surprise")
        return 1
    log.info("ended", reason=reason, made=sum(own_jobs.counts.values()))
    return 0


def _read_spec() -> bytes:
    content = b""
    while not content.endswith(b"\n") and len(content) < _MAX_SPEC_BYTES:
        chunk = os.read(_SPEC_FD, 65536)
        if not chunk:
            break
        content += chunk
    return content


def _tell(answer: dict[str, object]) -> None:
    os.write(_ANSWER_FD, json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    exit_code = main()
    sys.stdout = None  # nothing is there to be flushed to
    os._exit(exit_code)
