"""The process in which jobs are simulated: it can be killed at any time.

It reads one JSON object a line on stdin, `{"program", "params", "name", "device", "noise", "seed"}`, and writes on
stdout any number of `{"log": line}` and then `{"result": text}` or `{"failure": reason}`. It ends with its stdin.
"""

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, TextIO

from qrmi_emulator.failure import JobFailure

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def run_job(job: dict[str, Any], log: Callable[[str], None]) -> str:
    """Return a job's results, as the service's JSON text.

    Args:
        job: what the worker reads.
        log: takes a line for the job's log.

    Raises:
        JobFailure: it cannot be run.
    """
    # Qiskit and Aer take seconds to import: not before somebody needs them.
    import numpy as np

    from qrmi_emulator import circuits, devices, primitives, simulate
    from qrmi_emulator.options import BackendSpec

    device = devices.load(BackendSpec(job["name"], job["device"]))
    simulator = simulate.Simulator(device.properties if job["noise"] else None, np.random.default_rng(job["seed"]), log)
    return primitives.run(job["program"], job["params"], circuits.target_of(device.configuration), simulator)


def answer(job: dict[str, Any], log: Callable[[str], None]) -> dict[str, str]:
    """Return what the worker writes last for a job."""
    try:
        return {"result": run_job(job, log)}
    except JobFailure as failure:
        return {"failure": str(failure)}
    except MemoryError:
        return {"failure": "The simulation needs more memory than there is."}
    except Exception as error:  # noqa: BLE001 the last line: whatever a circuit does costs its job only
        return {"failure": f"The simulation failed: {type(error).__name__}: {error}"}


def main(arguments: list[str]) -> int:
    """Answer jobs until stdin ends; `--warm` loads the simulator first."""
    # A worker that outlives a killed emulator would be nobody's. The emulator's thread that starts it lives as
    # long as the emulator, which matters: this signal comes when that thread ends (man 2 prctl).
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the emulator's, which ends its workers
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not be taken for an answer

    if "--warm" in arguments:
        from qrmi_emulator import primitives  # noqa: F401 imported for what comes later
    for line in sys.stdin:
        _write(channel, answer(json.loads(line), lambda text: _write(channel, {"log": text})))
    return 0


def _write(channel: TextIO, message: dict[str, str]) -> None:
    channel.write(json.dumps(message) + "\n")
    channel.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
