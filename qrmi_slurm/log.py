"""The hooks' log: one line per event, on standard output for slurmd.log and to syslog.

slurmd keeps a hook's standard output only on failure or from debug2 on, so syslog is where an admin looks:
`journalctl -t qrmi-slurm-prolog`.
"""

import _socket  # importing `socket` takes 2 ms more, for its enums
import contextlib
import select
import sys
import syslog
from collections.abc import Iterable

from qrmi_slurm.secret import Secret, mask
from qrmi_slurm.text import printable

# Some systems cut syslog(3) at about 1 kB, and longer lines are hard to read.
_MAX_LINE_CHARS = 900
_MAX_TRACEBACK_CHARS = 800  # the end of it, where the error is

# Where syslog(3) writes, and how long to wait for room in a busy daemon's queue (net.unix.max_dgram_qlen, often 10).
_SYSLOG_SOCKET = "/dev/log"
_SYSLOG_WAIT_S = 0.5


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
        self._has_syslog = True
        syslog.openlog(self._name, syslog.LOG_PID, syslog.LOG_DAEMON)

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
        """Log QRMI's own log records, at their level."""
        for record in records:
            word = record.partition(" ")[2].partition(" ")[0] if record.startswith("[") else ""
            self._write(_QRMI_LEVELS.get(word, "info"), "qrmi", {"qpu": qpu, "says": record})

    def _write(self, level: str, event: str, details: dict[str, object]) -> None:
        words = [f"job={self._job_id}"]
        words += [f"{name}={_value(value)}" for name, value in details.items()]
        text = mask(f"{event}: {' '.join(words)}", self._secrets)
        line = printable(f"{level}: {text}", _MAX_LINE_CHARS)
        self._has_syslog = self._has_syslog and _syslog_has_room()
        if self._has_syslog:
            syslog.syslog(_PRIORITIES[level], line)
        if not self._echo:
            return
        with contextlib.suppress(OSError, ValueError):  # slurmd may have closed the other end
            print(f"{self._name}: {line}", file=sys.stdout, flush=True)


def _syslog_has_room() -> bool:
    """Tell whether syslog(3) would return: it would wait forever for a daemon that hangs, and so would the job."""
    end = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM)
    try:
        end.connect(_SYSLOG_SOCKET)
        return bool(select.select([], [end], [], _SYSLOG_WAIT_S)[1])
    except OSError:  # nobody listens, and syslog(3) does not wait
        return True
    finally:
        end.close()


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{quoted}"' if " " in text or '"' in text or not text else text
