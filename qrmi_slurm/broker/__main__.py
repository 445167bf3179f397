"""A job's credential broker: `python3 -I -m qrmi_slurm.broker job=ID`, started by Prolog, which pipes it its spec."""

import os
import sys

from qrmi_slurm.broker import listener, spec
from qrmi_slurm.broker.confine import UNPRIVILEGED_ID, close_all_but, confine
from qrmi_slurm.broker.own_jobs import OwnJobs
from qrmi_slurm.broker.server import Server
from qrmi_slurm.broker.upstream import Upstream
from qrmi_slurm.log import HookLog


def main() -> int:
    """Read the spec, listen, reply with the port, and serve until the job is over."""
    close_all_but(frozenset(range(spec.RENEWALS_FD + 1)))
    try:
        told = spec.parse(_read_spec())
        if told.uid == UNPRIVILEGED_ID:
            raise ValueError("a job of nobody has none, since that is who the broker runs as")
        log = HookLog("broker", told.job_id, echo=False)
        log.hide(secret for qpu in told.qpus if qpu is not None for secret in (*qpu.secrets, qpu.key))
        listening = listener.listen(told.port)
        upstream = Upstream(told.env)
        own_jobs = OwnJobs(spec.LIFE_FD)
        confine()
    except (OSError, ValueError) as error:
        reason = error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)
        os.write(spec.REPLY_FD, spec.encode_error(reason))
        return 1
    server = Server(told, listening, upstream, own_jobs, log, renewals_fd=spec.RENEWALS_FD)
    port = listening.getsockname()[1]
    os.write(spec.REPLY_FD, spec.encode_port(port))
    _let_go_of_prolog()
    log.info("started", pid=os.getpid(), port=port, uid=told.uid)
    try:
        reason = server.serve()
    except BaseException:  # the last line
        log.exception("surprise")
        return 1
    log.info("ended", reason=reason, made=own_jobs.count)
    return 0


def _read_spec() -> bytes:
    content = b""
    while not content.endswith(b"\n") and len(content) < spec.MAX_SPEC_BYTES:
        chunk = os.read(spec.SPEC_FD, 65536)
        if not chunk:
            break
        content += chunk
    return content


def _let_go_of_prolog() -> None:
    """Put /dev/null in the place of both pipes."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (spec.SPEC_FD, spec.REPLY_FD):
        os.dup2(null, fd)
    os.close(null)


if __name__ == "__main__":
    exit_code = main()
    sys.stdout = None  # there is nothing to flush to
    os._exit(exit_code)
