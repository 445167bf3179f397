"""The brokerage: starting and ending a job's credential broker, and the environment of a job that has one.

The broker is a process of its own (package `broker`), so that it outlives Prolog and holds nothing but what it needs.
It lives as long as the file `broker` in the job's folder: that file is unlinked by whatever removes the folder, on
whichever node that happens, and the broker looks at the descriptor that it was given of it. Where the process can be
named, it is ended at once as well.
"""

import contextlib
import fcntl
import json
import os
import secrets
import select
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from qrmi_slurm.config.resource_types import describe, with_successors
from qrmi_slurm.errors import BrokerError, RecordError
from qrmi_slurm.log import HookLog
from qrmi_slurm.names import ACQUISITION_TOKEN, BROKER_MARK, JOB_PREFIX, QRMI_PREFIX, of_resource
from qrmi_slurm.secret import Secret
from qrmi_slurm.state.job_folder import JobFolder
from qrmi_slurm.state.record import Broker, Entry, Record, State, boot_id
from qrmi_slurm.text import printable

# How long a broker may take until it listens; it needs 0.2 s. Prolog's own bound may leave it less.
_START_TIMEOUT_S: Final = 8.0

# How long a broker that was killed may take until it is gone.
_END_TIMEOUT_S: Final = 2.0
_POLL_S: Final = 0.005

# Descriptors of ours begin here, so that putting them at 0 to 3 in the child overwrites none that is still needed.
_FIRST_FD: Final = 10

# Kept in the broker: its own life is told by the file behind this descriptor.
LIFE_FD: Final = 3

_MAX_ANSWER_BYTES: Final = 4096

# What of a resource's variables reaches a job with a broker, behind each family's prefix. Everything else stays.
_AS_THEY_ARE: Final = frozenset({"SERVICE_CRN", "SESSION_MODE", "SESSION_MAX_TTL", "TIMEOUT_SECONDS"})
_S3_AS_THEY_ARE: Final = frozenset({"S3_BUCKET", "S3_REGION"})
_S3_KEYS: Final = frozenset({"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"})
_S3_ENDPOINTS: Final = frozenset({"S3_ENDPOINT", "S3_ENDPOINT_FOR_QSAPI", "S3_ENDPOINT_FOR_DAAPI"})

# Without one of these QRMI uses no S3 (quantum_system.rs).
_S3_NEEDED: Final = frozenset({"S3_ENDPOINT", *_S3_KEYS, *_S3_AS_THEY_ARE})


def new_key() -> Secret:
    """Return what a job's environment has instead of the site's key: 256 bits that open nothing but its broker."""
    return Secret(f"{BROKER_MARK}.{secrets.token_urlsafe(32)}")


def variables(type_name: str, environment: Mapping[str, str], key: Secret, place: int, port: int) -> dict[str, str]:
    """Return a QPU's variables as the tasks of a job with a broker get them, without the resource's name in front.

    Args:
        type_name: the resource's type.
        environment: the variables that QRMI in the hooks is called with; secrets in it.
        key: the job's own.
        place: of the QPU among those of the broker.
        port: where the broker listens.
    """
    base = f"http://127.0.0.1:{port}/{BROKER_MARK}/{place}"
    found = with_successors(environment)
    with_s3 = all(s3_variable(type_name, found, name) is not None for name in _S3_NEEDED)
    result = {}
    for variable, value in found.items():
        name = _without_prefix(variable)
        if name in _AS_THEY_ARE or (with_s3 and name in _S3_AS_THEY_ARE):
            result[variable] = value
        elif name == "ENDPOINT":
            result[variable] = f"{base}/api"
        elif name == "IAM_ENDPOINT":
            result[variable] = f"{base}/iam"
        elif name == "IAM_APIKEY" or (with_s3 and name in _S3_KEYS):
            result[variable] = key.reveal()
        elif with_s3 and name in _S3_ENDPOINTS:
            result[variable] = f"{base}/s3/"  # the AWS library writes the bucket right behind it
    return result


def s3_variable(type_name: str, environment: Mapping[str, str], name: str) -> str | None:
    """Return the value of one of a type's variables by its name without the family's prefix."""
    described = describe(type_name)
    prefix = describe(described.successor or described.name).prefix
    return environment.get(f"{prefix}{name}")


def _without_prefix(variable: str) -> str:
    for prefix in ("QRMI_IBM_QCS_", "QRMI_IBM_QRS_", "QRMI_IBM_QS_", "QRMI_IBM_DA_"):
        if variable.startswith(prefix):
            return variable.removeprefix(prefix)
    return ""


def start(
    folder: JobFolder, current: Record, names: Iterable[str], ends_s: float, timeout_s: float, log: HookLog
) -> Record:
    """Start the broker of a job's QPUs, and return the record with it in.

    Args:
        folder: the job's; its lock is held.
        current: the record, in which the QPUs are acquired.
        names: the QPUs that it speaks for.
        ends_s: until when the job may run; seconds since the epoch.
        timeout_s: how long it may take until it listens, in seconds.
        log: of the hook.

    Raises:
        BrokerError: it did not start.
        RecordError: the disk did not take it.
    """
    space = f"{current.cluster}-{current.job_id}-{current.restart_count}-{secrets.token_hex(8)}"
    keys = {name: new_key() for name in names}
    wanted = Broker(0, 0, 0, current.restart_count, keys, space, ends_s)
    log.hide(keys.values())
    with contextlib.suppress(FileNotFoundError):
        folder.broker_path.unlink()  # one that a killed Prolog left behind sees its end in that
    return _recorded(folder, _run(folder, current._replace(broker=wanted), timeout_s, log))


def revive(folder: JobFolder, current: Record, log: HookLog, timeout_s: float = _START_TIMEOUT_S) -> Record | None:
    """Start a living job's broker again where it has ended, at its port and with its keys; None where it need not be.

    Args:
        folder: the job's; its lock is held.
        current: the record.
        log: who starts it.
        timeout_s: how long it may take until it listens, in seconds.

    Raises:
        BrokerError: it did not start; its port may be another process's.
        RecordError: the disk did not take it.
    """
    broker = current.broker
    if broker is None or not is_here(current) or is_alive(broker) or not folder.broker_path.exists():
        return None
    log.hide(broker.keys.values())
    log.warning("broker-gone", pid=broker.pid, port=broker.port)
    return _recorded(folder, _run(folder, current, timeout_s, log))


def _recorded(folder: JobFolder, current: Record) -> Record:
    """Put a record with a broker just started on disk; one that nobody could end is not to be left."""
    try:
        folder.write(current)
    except RecordError:
        if current.broker is not None:
            kill(current.broker)
        raise
    return current


def end(folder: JobFolder, current: Record, log: HookLog) -> Record:
    """End a job's broker, and return the record without it; one on another node sees its end by its file."""
    broker = current.broker
    if broker is None:
        return current
    with contextlib.suppress(OSError):
        folder.broker_path.unlink()
    if is_here(current) and kill(broker):
        log.info("broker-ended", pid=broker.pid, port=broker.port)
    return current._replace(broker=None)


def is_here(current: Record) -> bool:
    """Tell whether a record's broker was started on this machine, and since it has booted."""
    return current.boot_id == boot_id()


def kill(broker: Broker) -> bool:
    """Kill a broker and wait until it is gone; False where there is none any more. Never another process."""
    if not is_alive(broker):
        return False
    try:
        fd = os.pidfd_open(broker.pid)
    except OSError:
        return False
    try:
        if not is_alive(broker):  # the descriptor stands for one process for good, so look again behind it
            return False
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        select.select([fd], [], [], _END_TIMEOUT_S)
        return True
    finally:
        os.close(fd)


def is_alive(broker: Broker) -> bool:
    """Tell whether a broker's process is there, on its node: that very one, and not merely its number."""
    return _start_ticks(broker.pid) == broker.start_ticks


def _start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot; None where it is not there, or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[19]) if fields[0] not in "ZX" else None


def _run(folder: JobFolder, current: Record, timeout_s: float, log: HookLog) -> Record:
    """Start the process, hand it what it needs, wait until it listens."""
    broker = current.broker
    assert broker is not None  # noqa: S101
    spec = json.dumps(_spec(current, broker)).encode() + b"\n"
    fds: list[int] = []

    def keep(fd: int) -> int:
        fds.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_FD))
        os.close(fd)
        return fds[-1]

    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        life = keep(os.open(folder.broker_path, flags, 0o600))
        null = keep(os.open(os.devnull, os.O_RDWR))
        spec_read, spec_write = map(keep, os.pipe())
        answer_read, answer_write = map(keep, os.pipe())
        actions = ((spec_read, 0), (answer_write, 1), (null, 2), (life, LIFE_FD))
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-I", "-X", "utf8", "-m", "qrmi_slurm.broker", f"job={current.job_id}"],
            {"MALLOC_ARENA_MAX": "2"},  # else each thread may reserve 64 MB
            file_actions=[(os.POSIX_SPAWN_DUP2, source, target) for source, target in actions],
            setsid=True,  # slurmd kills Prolog's process group when Prolog has ended
        )
        for fd in (spec_read, answer_write):
            fds.remove(fd)
            os.close(fd)
        try:
            port = _hand_over(spec, spec_write, answer_read, min(timeout_s, _START_TIMEOUT_S))
        except BrokerError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
    except OSError as error:
        raise BrokerError(f"the credential broker cannot be started: {error.strerror}") from error
    finally:
        for fd in fds:
            os.close(fd)
    ticks = _start_ticks(pid)
    if ticks is None:
        raise BrokerError("the credential broker ended as soon as it had started")
    log.info("broker-started", pid=pid, port=port, qpus=",".join(map(printable, broker.keys)))
    return current._replace(broker=broker._replace(pid=pid, start_ticks=ticks, port=port))


def _hand_over(spec: bytes, spec_write: int, answer_read: int, timeout_s: float) -> int:
    """Write the broker its spec, and return the port that it answers.

    Raises:
        BrokerError: it answered something else, or nothing in time.
    """
    deadline_s = time.monotonic() + timeout_s
    os.set_blocking(spec_write, False)
    answer = b""
    while b"\n" not in answer and len(answer) < _MAX_ANSWER_BYTES:
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise BrokerError(f"the credential broker did not listen within {timeout_s:.1f} s")
        readable, writable, _ = select.select([answer_read], [spec_write] if spec else [], [], left_s)
        if writable:
            try:
                spec = spec[os.write(spec_write, spec) :]
            except BrokenPipeError:
                spec = b""
        if readable:
            chunk = os.read(answer_read, _MAX_ANSWER_BYTES)
            if not chunk:
                raise BrokerError("the credential broker ended before it listened", "journalctl -t qrmi-slurm-broker")
            answer += chunk
    try:
        told = json.loads(answer)
        if "port" in told:
            return int(told["port"])
        reason = printable(str(told["error"]), 300)
    except (ValueError, KeyError, TypeError):
        reason = "it said what nobody understands"
    raise BrokerError(f"the credential broker cannot be started: {reason}")


def _spec(current: Record, broker: Broker) -> dict[str, Any]:
    """Return what the broker has to know; secrets in it."""
    entries = {
        entry.name: entry
        for entry in current.entries
        if entry.name in broker.keys and entry.restart_count == broker.restart_count and entry.state is State.ACQUIRED
    }
    return {
        "cluster": current.cluster,
        "job_id": current.job_id,
        "uid": current.uid,
        "port": broker.port,
        "ends_s": broker.ends_s,
        # By their place in the broker's paths, which a job that has given one back keeps for the others.
        "qpus": [
            _qpu(entries[name], key, broker.space) if name in entries else None for name, key in broker.keys.items()
        ],
        "env": _site_environment(entries.values()),
    }


def _qpu(entry: Entry, key: Secret, space: str) -> dict[str, Any]:
    own = of_resource(entry.name, "")
    found = {name.removeprefix(own): value for name, value in entry.environment.items() if name.startswith(own)}
    described = describe(entry.type)

    def value(name: str) -> str | None:
        return s3_variable(entry.type, found, name)

    s3 = None
    if not described.locks and all(value(name) is not None for name in _S3_NEEDED):
        s3 = {name.lower(): value(name) for name in sorted(_S3_NEEDED)}
        s3["service_endpoint"] = value("S3_ENDPOINT_FOR_QSAPI") or value("S3_ENDPOINT")
        s3["prefix"] = f"{BROKER_MARK}/{space}/"
    return {
        "name": entry.name,
        "key": key.reveal(),
        "session": entry.token.reveal() if described.locks and entry.token is not None else None,
        "endpoint": value("ENDPOINT"),
        "iam_endpoint": value("IAM_ENDPOINT"),
        "apikey": value("IAM_APIKEY"),
        "crn": value("SERVICE_CRN"),
        "s3": s3,
    }


def _site_environment(entries: Iterable[Entry]) -> dict[str, str]:
    """Return the site's own variables (`--env:`), proxies among them: all that belongs to no QPU and no job."""
    result = {}
    for entry in entries:
        for name, value in entry.environment.items():
            is_of_job = name.startswith(JOB_PREFIX) or name.endswith(ACQUISITION_TOKEN)
            if not is_of_job and f"_{QRMI_PREFIX}" not in name:
                result[name] = value
    return result
