"""Starting, reviving and ending a job's credential broker, and keeping its job's record in step.

The broker is a process of its own, so that it outlives Prolog and holds only what it needs. It lives as long as the
file `broker` in the job's folder: whatever removes that folder, on whichever node, unlinks the file, and the broker
notices through its open descriptor. Where its process can be identified, it is killed at once as well.
"""

import contextlib
import os  # its urandom is what `secrets` uses, which takes Prolog 5 ms to import
from collections.abc import Iterable
from typing import Final

from qrmi_slurm.broker import process, variables
from qrmi_slurm.broker.spec import Spec
from qrmi_slurm.errors import RecordError
from qrmi_slurm.log import HookLog
from qrmi_slurm.names import BROKER_MARK, SESSIONS_FILE
from qrmi_slurm.secret import Secret
from qrmi_slurm.state import renewals
from qrmi_slurm.state.job_folder import JobFolder
from qrmi_slurm.state.record import Broker, Record, State, boot_id
from qrmi_slurm.text import printable

# 256 bits, as many as the proofs that are made with it.
_KEY_BYTES: Final = 32


def start(
    folder: JobFolder,
    current: Record,
    names: Iterable[str],
    ends_s: float,
    timeout_s: float,
    log: HookLog,
    *,
    margin_s: float = 0.0,
) -> Record:
    """Start the broker of a job's QPUs, and return the record with it, as it is on disk.

    Args:
        folder: the job's folder; its lock is held.
        current: the record, in which the QPUs are acquired.
        names: the QPUs that it serves.
        ends_s: until when the job may run; seconds since the epoch.
        timeout_s: how long it may take to listen, in seconds.
        log: the hook's log.
        margin_s: how much longer than the job a session may live, in seconds.

    Raises:
        BrokerError: it did not start.
        RecordError: the record cannot be written.
    """
    space = f"{current.cluster}-{current.job_id}-{current.restart_count}-{os.urandom(8).hex()}"
    keys = {name: _new_key() for name in names}
    log.hide(keys.values())
    with contextlib.suppress(FileNotFoundError):
        folder.broker_path.unlink()  # ends a broker that a killed Prolog left behind
    with contextlib.suppress(FileNotFoundError):
        (folder.path / SESSIONS_FILE).unlink()
    tokens = {entry.name: entry.token for entry in current.held if entry.name in keys and entry.token is not None}
    broker = Broker(0, 0, 0, current.restart_count, keys, space, ends_s, sessions=tokens, margin_s=margin_s)
    return _run(folder, current, broker, timeout_s, log)


def revive(
    folder: JobFolder, current: Record, log: HookLog, timeout_s: float = process.START_TIMEOUT_S
) -> Record | None:
    """Start a running job's broker again if it has died, with its port and keys; None if there was nothing to do.

    Args:
        folder: the job's folder; its lock is held.
        current: the record.
        log: the log of the hook or command that starts it.
        timeout_s: how long it may take to listen, in seconds.

    Raises:
        BrokerError: it did not start; another process may have its port.
        RecordError: the record cannot be written.
    """
    broker = current.broker
    if broker is None or not is_here(current) or process.is_alive(broker) or not folder.broker_path.exists():
        return None
    log.hide(broker.keys.values())
    log.warning("broker-gone", pid=broker.pid, port=broker.port)
    return _run(folder, current, broker, timeout_s, log)


def end(folder: JobFolder, current: Record, log: HookLog) -> Record:
    """End a job's broker, and return the record without it, with all sessions that it has opened.

    One on another node notices that its file is gone, and opens nothing more.
    """
    broker = current.broker
    if broker is None:
        return current
    with contextlib.suppress(OSError):
        folder.broker_path.unlink()
    if is_here(current) and process.kill(broker):
        log.info("broker-ended", pid=broker.pid, port=broker.port)
    return folder.with_renewals(current)._replace(broker=None)


def tell_end(folder: JobFolder, current: Record, ends_s: float) -> Record:
    """Tell a running job's broker, where it has one, that the job's end has moved; return the record with that.

    Args:
        folder: the job's folder; its lock is held.
        current: the record.
        ends_s: until when the job may run; seconds since the epoch.

    Raises:
        RecordError: the broker cannot be told.
    """
    broker = current.broker
    if broker is None:
        return current
    try:
        fd = os.open(folder.path / SESSIONS_FILE, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise RecordError(f"cannot write {folder.path / SESSIONS_FILE}: {error.strerror}") from error
    try:
        if not renewals.append(fd, [renewals.ends(ends_s)]):
            raise RecordError(f"cannot write {folder.path / SESSIONS_FILE}")
    finally:
        os.close(fd)
    return current._replace(broker=broker._replace(ends_s=ends_s))


def is_here(current: Record) -> bool:
    """Tell whether a record's broker was started on this machine since its last boot."""
    return current.boot_id == boot_id()


def _new_key() -> Secret:
    """Return a job's replacement for the site's key; only its own broker accepts it."""
    return Secret(f"{BROKER_MARK}.{os.urandom(_KEY_BYTES).hex()}")


def _run(folder: JobFolder, current: Record, broker: Broker, timeout_s: float, log: HookLog) -> Record:
    """Start the process and record it; a broker that is not on record could not be ended, so it must not stay."""
    found = process.start(_spec(current, broker), folder.broker_path, timeout_s)
    log.info("broker-started", pid=found.pid, port=found.port, qpus=",".join(map(printable, broker.keys)))
    broker = broker._replace(pid=found.pid, start_ticks=found.start_ticks, port=found.port)
    current = current._replace(broker=broker)
    try:
        folder.write(current)
    except RecordError:
        process.kill(broker)
        raise
    return current


def _spec(current: Record, broker: Broker) -> Spec:
    """Return what the broker has to know."""
    held = {
        entry.name: entry
        for entry in current.entries
        if entry.name in broker.keys and entry.restart_count == broker.restart_count and entry.state is State.ACQUIRED
    }
    return Spec(
        job_id=current.job_id,
        uid=current.uid,
        port=broker.port,
        ends_s=broker.ends_s,
        # A QPU that was given back keeps its place, so that the others keep their paths.
        qpus=tuple(variables.for_broker(held[name], broker) if name in held else None for name in broker.keys),
        env=variables.of_site(held.values()),
        session_margin_s=broker.margin_s,
    )
