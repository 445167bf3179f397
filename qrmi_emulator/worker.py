"""A worker: the process that simulates jobs. It can be killed at any time.

It reads a JSON object per line from stdin, `{"program", "params", "name", "device", "noise", "seed"}`, and writes any
number of `{"log": line}` to stdout, then `{"result": text}` or `{"failure": reason}`. It exits when stdin ends.
"""

import ctypes
import json
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import Any, TextIO

from qrmi_emulator.failure import JobFailure

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run_job(job: dict[str, Any], log: Callable[[str], None]) -> str:
    """Return a job's results as the service's JSON text.

    Args:
        job: the object that the worker has read.
        log: takes a line for the job's log.

    Raises:
        JobFailure: the job cannot run.
    """
    # Qiskit and Aer take seconds to import.
    import numpy as np

    from qrmi_emulator import circuits, devices, primitives, simulate
    from qrmi_emulator.options import BackendSpec

    device = devices.load(BackendSpec(job["name"], job["device"]))
    simulator = simulate.Simulator(device.properties if job["noise"] else None, np.random.default_rng(job["seed"]), log)
    return primitives.run(job["program"], job["params"], circuits.target_of(device.configuration), simulator)


def answer(job: dict[str, Any], log: Callable[[str], None]) -> dict[str, str]:
    """Return the last object that the worker writes for a job."""
    try:
        return {"result": run_job(job, log)}
    except JobFailure as failure:
        return {"failure": str(failure)}
    except MemoryError:
        return {"failure": "The simulation ran out of memory."}
    except Exception as error:  # noqa: BLE001 a circuit that breaks the simulator must only fail its own job
        return {"failure": f"The simulation failed: {type(error).__name__}: {error}"}


def main(arguments: list[str]) -> int:
    """Run jobs until stdin ends; `--warm` loads the simulator first."""
    # Die with the emulator, even if that is killed. The signal is sent when the thread that started this process ends
    # (prctl(2)); that thread lives as long as the emulator.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if _has_ended(sys.stdin):  # the emulator died before that
        return 0
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Ctrl-C the emulator stops its workers
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not be mistaken for an answer

    if "--warm" in arguments:
        from qrmi_emulator import primitives  # noqa: F401 so that the first job need not wait
    for line in sys.stdin:
        _write(channel, answer(json.loads(line), lambda text: _write(channel, {"log": text})))
    return 0


def _has_ended(pipe: TextIO) -> bool:
    """Tell whether the other end of a pipe is closed."""
    poll = select.poll()
    poll.register(pipe, 0)  # POLLHUP is always reported
    return bool(poll.poll(0))


def _write(channel: TextIO, message: dict[str, str]) -> None:
    channel.write(json.dumps(message) + "\n")
    channel.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
