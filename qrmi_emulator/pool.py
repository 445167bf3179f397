"""The pool of worker processes: runs jobs, and kills a worker whose job is cancelled or exceeds a limit."""

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qrmi_emulator.options import BackendSpec
from qrmi_emulator.service import TOO_LONG, Job, Service

_POLL_S = 0.05  # how soon a cancelled job's worker is killed
_IDLE_POLL_S = 0.25  # how soon an idle worker stops
_READ_BYTES = 1 << 20
_MIB = 1024 * 1024
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a job may use.

    Args:
        time_s: seconds of simulation.
        memory_mib: resident memory of its worker.
    """

    time_s: float
    memory_mib: int


@dataclass(frozen=True, slots=True)
class JobSettings:
    """How jobs are simulated.

    Args:
        backends: the backend behind each served name.
        limits: what a job may use.
        noise: whether circuits with few qubits run with their device's noise.
        seed: makes outcomes reproducible; None draws a new one for each job.
        warm: whether a worker loads the simulator before it gets a job.
    """

    backends: Mapping[str, BackendSpec]
    limits: Limits
    noise: bool
    seed: int | None
    warm: bool


class Pool:
    """Runs a service's jobs.

    Args:
        service: has the jobs.
        settings: how they are simulated.
        size: how many run at the same time.
    """

    def __init__(self, service: Service, settings: JobSettings, size: int) -> None:
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=_Slot(service, settings, self._stopping).run, name=f"worker-{number}")
            for number in range(size)
        ]

    def start(self) -> None:
        """Start the workers."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Kill the workers and wait for them to exit."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()


class _Slot:
    """Keeps one worker running: a worker that was killed is replaced."""

    def __init__(self, service: Service, settings: JobSettings, stopping: threading.Event) -> None:
        self._service = service
        self._settings = settings
        self._stopping = stopping
        self._process: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        """Run jobs until the pool stops."""
        try:
            if self._settings.warm:
                self._worker()
            while not self._stopping.is_set():
                job = self._service.take_job(_IDLE_POLL_S)
                if job is not None:
                    self._run_job(job)
        finally:
            self._kill()

    def _run_job(self, job: Job) -> None:
        backend = self._settings.backends[job.backend]
        order = {
            "program": job.program,
            "params": job.params,
            "name": backend.name,
            "device": backend.device,
            "noise": self._settings.noise,
            "seed": self._settings.seed,
        }
        worker = self._worker()
        assert worker.stdin is not None  # noqa: S101 it was opened as a pipe
        try:
            worker.stdin.write(json.dumps(order).encode() + b"\n")
            worker.stdin.flush()
            self._watch(job, worker)
        except BrokenPipeError:
            self._crashed(job, worker)

    def _watch(self, job: Job, worker: subprocess.Popen[bytes]) -> None:
        """Follow a job to its end; kill its worker if it is cancelled or exceeds a limit."""
        assert worker.stdout is not None  # noqa: S101 it was opened as a pipe
        began_s = time.monotonic()
        unread = b""
        poll = select.poll()
        poll.register(worker.stdout, select.POLLIN)
        while True:
            if poll.poll(_POLL_S * 1000):
                data = os.read(worker.stdout.fileno(), _READ_BYTES)
                if not data:
                    self._crashed(job, worker)
                    return
                *lines, unread = (unread + data).split(b"\n")
                if any([self._take(job, json.loads(line)) for line in lines]):
                    return
            if self._stopping.is_set() or not self._service.is_running(job.id):
                self._kill()
                return
            if excess := self._excess(job, worker, time.monotonic() - began_s):
                self._kill()
                self._service.fail_job(job.id, *excess)
                return

    def _take(self, job: Job, message: Mapping[str, Any]) -> bool:
        """Process a worker's message; return True if it is the last one of its job."""
        match message:
            case {"log": line}:
                self._service.log(job.id, line)
                return False
            case {"result": result}:
                self._service.complete_job(job.id, result)
            case {"failure": reason}:
                self._service.fail_job(job.id, reason)
        return True

    def _excess(self, job: Job, worker: subprocess.Popen[bytes], took_s: float) -> tuple[str, ...]:
        """Return why a job has to be stopped, and its status unless that is Failed; empty if it may continue."""
        limits = self._settings.limits
        if job.cost_s and took_s > job.cost_s:
            return f"The job ran longer than the {job.cost_s} seconds that its cost allows.", TOO_LONG
        if took_s > limits.time_s:
            return (f"The simulation took longer than {limits.time_s:g} seconds.",)
        if resident_mib(worker.pid) > limits.memory_mib:
            return (f"The simulation needs more than {limits.memory_mib} MiB of memory.",)
        return ()

    def _crashed(self, job: Job, worker: subprocess.Popen[bytes]) -> None:
        status = worker.wait()
        self._kill()
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        self._service.fail_job(job.id, f"The simulator's process {how}.")

    def _worker(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self._kill()
            command = [sys.executable, "-P", "-X", "utf8", "-m", "qrmi_emulator.worker"]
            self._process = subprocess.Popen(
                command + ["--warm"] * self._settings.warm, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
        return self._process

    def _kill(self) -> None:
        """Kill the worker, reap it and close its pipes."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:  # there was input that it had not read
                    continue


def resident_mib(pid: int) -> float:
    """Return a process's resident memory in MiB; 0 if it has ended."""
    try:
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return int(pages) * _PAGE_BYTES / _MIB
