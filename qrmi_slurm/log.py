"""The hooks' log: one line per event, on standard output for slurmd.log and to syslog.

slurmd keeps a hook's standard output only on failure or from debug2 on, so syslog is where an admin looks:
`journalctl -t qrmi-slurm-prolog`.
"""

import _socket  # importing `socket` takes 2 ms more, for its enums
import contextlib
import errno
import os
import sys
import syslog
import time
from collections.abc import Iterable

from qrmi_slurm.secret import Secret, mask
from qrmi_slurm.text import printable

# Some systems cut syslog(3) at about 1 kB, and longer lines are hard to read.
_MAX_LINE_CHARS = 900
_MAX_TRACEBACK_CHARS = 800  # the end of it, where the error is

# How many of QRMI's records one run of a hook logs. A job may have 64 QPUs, and a service may say 1000 lines per call.
_MAX_QRMI_LINES = 4000

# Where the daemon listens, and how long to wait for room in a busy one's queue (net.unix.max_dgram_qlen, often 10).
_SYSLOG_SOCKET = "/dev/log"
_SYSLOG_WAIT_S = 0.5

# For how long a daemon that took no line is left alone: all of a hook's life, and not all of a broker's, since any user
# can fill the queue for a moment.
_SYSLOG_PAUSE_S = 60.0


# The levels of an event, as its line names them, in syslog's numbers. An enum of them would take 0.4 ms to make.
_PRIORITIES = {
    "error": syslog.LOG_ERR,
    "warning": syslog.LOG_WARNING,
    "info": syslog.LOG_INFO,
    "debug": syslog.LOG_DEBUG,
}

# env_logger's levels in QRMI's own records: `[2026-01-31T12:00:00Z ERROR qrmi::ibm] text`.
_QRMI_LEVELS = {"ERROR": "error", "WARN": "warning", "INFO": "info", "DEBUG": "debug", "TRACE": "debug"}


class HookLog:
    """The log of one run of a hook.

    Args:
        hook: `prolog`, `epilog`, or the command's `recover` or `release`.
        job_id: the job, named in each line.
        echo: whether to print the lines as well; the command does not, as its standard output is for its result.
    """

    def __init__(self, hook: str, job_id: int | str, *, echo: bool = True) -> None:
        self._echo = echo
        self._job_id = job_id
        self._secrets: list[Secret] = []
        self.hook = hook
        self._name = f"qrmi-slurm-{hook}"
        self._syslog_from_s = 0.0  # of the monotonic clock
        self._qrmi_lines_left = _MAX_QRMI_LINES

    def hide(self, secrets: Iterable[Secret]) -> None:
        """Mask these secrets in every later line."""
        self._secrets.extend(secrets)

    def error(self, event: str, **details: object) -> None:
        """Log something that an admin has to act on."""
        self._write("error", event, details)

    def warning(self, event: str, **details: object) -> None:
        """Log something that an admin may have to act on."""
        self._write("warning", event, details)

    def info(self, event: str, **details: object) -> None:
        """Log what happened."""
        self._write("info", event, details)

    def exception(self, event: str) -> None:
        """Log the exception being handled, with its traceback in one line; for a script's last handler."""
        import traceback  # takes 2 ms

        text = mask(" | ".join(line.strip() for line in traceback.format_exc().splitlines()), self._secrets)
        self._write("error", event, {"traceback": text[-_MAX_TRACEBACK_CHARS:]})

    def qrmi(self, qpu: str, records: Iterable[str]) -> None:
        """Log QRMI's own log records, at their level; no more than a limit, over all QPUs."""
        for record in records:
            self._qrmi_lines_left -= 1
            if self._qrmi_lines_left < 0:
                if self._qrmi_lines_left == -1:
                    self._write("warning", "qrmi", {"qpu": qpu, "says": f"more than {_MAX_QRMI_LINES} lines: cut here"})
                return
            word = record.partition(" ")[2].partition(" ")[0] if record.startswith("[") else ""
            self._write(_QRMI_LEVELS.get(word, "info"), "qrmi", {"qpu": qpu, "says": record})

    def _write(self, level: str, event: str, details: dict[str, object]) -> None:
        words = [f"job={self._job_id}"]
        words += [f"{name}={_value(value)}" for name, value in details.items()]
        text = mask(f"{event}: {' '.join(words)}", self._secrets)
        line = printable(f"{level}: {text}", _MAX_LINE_CHARS)
        if time.monotonic() >= self._syslog_from_s and not _to_syslog(self._name, _PRIORITIES[level], line):
            self._syslog_from_s = time.monotonic() + _SYSLOG_PAUSE_S
        if not self._echo:
            return
        with contextlib.suppress(OSError, ValueError):  # slurmd may have closed the other end
            print(f"{self._name}: {line}", file=sys.stdout, flush=True)


def _to_syslog(name: str, priority: int, line: str) -> bool:
    """Send a line to syslog, and tell whether its daemon takes lines.

    syslog(3) would wait forever for a daemon that hangs, and so would the job. Asking for room first is not enough: any
    user may fill the queue in between.
    """
    told = time.strftime("%b %e %H:%M:%S")
    text = f"<{syslog.LOG_DAEMON | priority}>{told} {name}[{os.getpid()}]: {line}"
    content = text.encode("utf-8", "replace")
    for kind, end_of_line in ((_socket.SOCK_DGRAM, b""), (_socket.SOCK_STREAM, b"\0")):  # the second for older daemons
        end = _socket.socket(_socket.AF_UNIX, kind)
        try:
            end.settimeout(_SYSLOG_WAIT_S)
            end.connect(_SYSLOG_SOCKET)
            end.send(content + end_of_line)
        except TimeoutError:
            return False
        except OSError as error:
            if error.errno == errno.EPROTOTYPE:  # it listens on a socket of the other kind
                continue
            return True  # nobody listens
        finally:
            end.close()
        return True
    return True


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{quoted}"' if " " in text or '"' in text or not text else text
