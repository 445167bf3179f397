"""A fake qrmi package that does what a resource's own variables say.

`<name>_QRMI_FAKE_ACQUIRE` and `<name>_QRMI_FAKE_RELEASE` hold a word of `_do`, `<name>_QRMI_FAKE_TOKEN` the token
acquire returns, `<name>_QRMI_FAKE_CALLS` a file that gets a line for each call.
"""

import contextlib
import json
import os
import signal
import time
from logging import getLogger
from pathlib import Path

logger = getLogger("qrmi")  # as the real one


class ResourceType:
    """The members of QRMI 0.26."""

    AliceBobFelis = 1
    IBMQiskitRuntimeService = 2
    IBMQuantumComputeService = 3
    IBMQuantumSystem = 4
    IQMServer = 5
    OQTOPUS = 6
    PasqalCloud = 7
    PasqalLocal = 8


class QrmiError(Exception):
    """The base of QRMI's own exceptions."""


class AuthenticationFailedError(QrmiError):
    """Raised by QRMI if the service refuses the credentials."""


class ResourceNotFoundError(QrmiError):
    """Raised by QRMI for a session or a resource that the service does not know."""


class UnsupportedFunctionError(QrmiError):
    """Raised by QRMI if a type does not support the call."""


class PanicException(BaseException):
    """What pyo3 makes of a Rust panic: not an Exception."""


class Status:
    """The return value of `status()`."""

    def __init__(self, status, status_reason, pending_job_count, capacity=None):
        self.status = status
        self.status_reason = status_reason
        self.pending_job_count = pending_job_count
        self.capacity = capacity


class Capacity:
    """What `status()` says of slots."""

    def __init__(self, available_slots, max_slots=None):
        self.available_slots = available_slots
        self.max_slots = max_slots


class QuantumResource:
    """One resource, which reads its environment when it is created, as in QRMI."""

    def __init__(self, name, resource_type):
        self._name = name
        if resource_type == ResourceType.PasqalLocal and not {"QRMI_JOB_UID", "QRMI_JOB_ID"} <= os.environ.keys():
            raise PanicException("called `Result::unwrap()` on an `Err` value: NotPresent")

    def acquire(self):
        self._note("acquire", "")
        self._do(self._own("ACQUIRE"))
        return self._own("TOKEN") if f"{self._name}_QRMI_FAKE_TOKEN" in os.environ else f"session-{self._name}"

    def release(self, token):
        self._note("release", token)
        self._do(self._own("RELEASE"))

    def status(self):
        word = self._own("STATUS")
        if word == "unsupported":
            raise UnsupportedFunctionError("not supported")
        self._do(word)
        queue, slots = self._own("QUEUE"), self._own("SLOTS")
        state, reason = f"ResourceStatusCode.{word or 'Online'}", "maintenance until noon"
        capacity = Capacity(*json.loads(slots)) if slots else None
        return Status(state, reason, int(queue) if queue else None, capacity)

    def is_accessible(self):
        return self._own("STATUS") in ("", "Online")

    def resource_id(self):
        return self._name

    def _own(self, what):
        return os.environ.get(f"{self._name}_QRMI_FAKE_{what}", "")

    def _note(self, action, token):
        calls = self._own("CALLS")
        if calls:
            with Path(calls).open("a") as file:
                file.write(f"{action} {self._name} {token}\n")

    def _do(self, word):
        if word == "raise":
            raise AuthenticationFailedError(f"the service says no to {self._own('SECRET') or 'you'}")
        if word == "broken":
            raise QrmiError("error in reqwest: the connection was lost")
        if word == "silent":
            raise QrmiError
        if word == "panic":
            raise PanicException("index out of bounds: the len is 0 but the index is 0")
        if word == "gone":
            raise ResourceNotFoundError('resource not found: {"errors": []}')
        if word == "gone-in-words":
            raise QrmiError('response body: 404 Not Found {"errors": [{"message": "no such session"}]}')
        if word == "long-reason":
            raise AuthenticationFailedError("<html>" * 40_000)
        if word == "exit":
            os._exit(3)
        if word == "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
        if word == "hang":
            time.sleep(60)
        if word == "answer-endlessly":  # and never with a line break
            while True:
                for fd in _open_files():
                    with contextlib.suppress(OSError):
                        os.write(fd, b"x" * 65536)
        if word == "fall-silent":  # it goes on, but nobody hears of it
            for fd in _open_files():
                with contextlib.suppress(OSError):
                    os.close(fd)
            time.sleep(60)
        if word.startswith(("wait-for:", "refuse-after:")):
            deadline_s = time.monotonic() + 10
            while not Path(word.partition(":")[2]).exists() and time.monotonic() < deadline_s:
                time.sleep(0.005)
            if word.startswith("refuse-after:"):
                raise AuthenticationFailedError("the service says no")
        if word == "say-token":
            _log(f"[2026-01-31T12:00:00Z DEBUG qrmi::fake] opened session-{self._name}\n")
        if word == "chatter":
            _log("[2026-01-31T12:00:00Z WARN qrmi::fake] renewal failed\n" + "x" * 600_000 + "\n")
        if word == "leave-behind" and os.fork() == 0:
            while True:  # until nobody reads it any more
                os.write(2, b"flood\n" * 10_000)
        if word == "memory":
            _log(f"TOLD {_times_in_memory(self._own('BACKWARDS').encode())}\n")
        if word == "lines":
            _log("x\n" * 100_000)
        if word == "tell":
            told = {
                "env": dict(os.environ),
                "environ_at_start": _readable("/proc/self/environ"),
                "arguments": Path("/proc/self/cmdline").read_text(),
                "files": {fd: _target(fd) for fd in os.listdir("/proc/self/fd")},
                "uid": os.getresuid(),
                "gid": os.getresgid(),
                "groups": os.getgroups(),
                "owner_in_proc": Path("/proc/self/environ").stat().st_uid,
                "leads_session": os.getsid(0) == os.getpid(),
                "cwd": str(Path.cwd()),
            }
            _log(f"TOLD {json.dumps(told)}\n")


class ResourceProvider:
    """Finds the resources named in `QRMI_FAKE_BEHIND`."""

    def __init__(self, resource_type, environment):
        self._environment = environment

    def resources(self, filters=None):
        assert filters == "status=online"
        if "QRMI_FAKE_BEHIND" not in self._environment:
            raise AuthenticationFailedError("the service says no")
        names = self._environment["QRMI_FAKE_BEHIND"].split()
        return [QuantumResource(name, ResourceType.IBMQuantumComputeService) for name in names]


def _open_files():
    """Return what is open beside the standard files; the numbers depend on what the hook had open."""
    return [int(name) for name in os.listdir("/proc/self/fd") if int(name) > 2]


def _log(text):
    """Write as native code does: to the descriptor, bypassing Python's own sys.stderr."""
    content = text.encode()
    while content:
        content = content[os.write(2, content) :]


def _target(fd):
    try:
        return str(Path(f"/proc/self/fd/{fd}").readlink())
    except OSError:
        return ""


def set_log_callback(callback):
    """Accept the callback, as QRMI does from 0.24 on."""


def _times_in_memory(backwards):
    """Count a text in this process's memory, without holding a copy of it, to show what a library could find."""
    import ctypes

    found = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        where, rights, _, _, inode, *name = line.split()
        if rights.startswith("rw") and inode == "0" and name in ([], ["[heap]"]):
            first, last = (int(text, 16) for text in where.split("-"))
            for at in range(first, last, 1 << 20):
                found += ctypes.string_at(at, min(last - at, 1 << 20))[::-1].count(backwards)
    return found


def _readable(path):
    try:
        return Path(path).read_text()
    except PermissionError:
        return ""
