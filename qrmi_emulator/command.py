"""The emulator's command line: reads the options and serves until it is told to stop."""

import argparse
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType

from qrmi_emulator import devices
from qrmi_emulator.calls import Calls
from qrmi_emulator.control import Control, RequestBook
from qrmi_emulator.faults import FaultBook, FaultError, parse_fault_spec
from qrmi_emulator.iam import TokenIssuer
from qrmi_emulator.options import (
    API_KEY_VARIABLE,
    EmulatorOptions,
    OptionsError,
    api_key,
    checked,
    parse_backend_spec,
)
from qrmi_emulator.pool import JobSettings, Limits, Pool
from qrmi_emulator.server import Application, RequestLog, listen
from qrmi_emulator.service import Service

_EXIT_REFUSED = 2

_EXAMPLES = """Examples:

  qrmi-slurm emulator --backend ibm_demo=FakeSherbrooke
  qrmi-slurm emulator --port 0 --port-file /run/emulator.port --backend a=FakeSherbrooke --backend b=FakeTorino
  qrmi-slurm emulator --fault create_session:error=500,times=2 --fault '*:delay=0.1'"""
_POLL_S = 0.05  # how soon the server notices that it has to stop


def serve(options: EmulatorOptions) -> int:
    """Serve until SIGTERM or SIGINT; return 0, the exit status.

    Prints `listening on http://HOST:PORT`, then a line for each request.

    Raises:
        OptionsError: the options are invalid, or the address is in use.
    """
    options = checked(options)
    loaded = {spec.name: devices.load(spec) for spec in options.backends}
    service = Service(loaded, time.time)
    faults = FaultBook(options.faults)
    requests = RequestBook()
    log = RequestLog(sys.stdout, time.time)
    stopping = threading.Event()
    issuer = TokenIssuer(options.api_key, options.token_lifetime_s, time.time)
    calls = Calls(service, issuer, loaded, options.crn)
    control = Control(service, faults, requests)
    application = Application(calls, control, faults, requests, log, stopping)
    try:
        server = listen(options.host, options.port, application)
    except OSError as error:
        raise OptionsError(
            f"the emulator cannot listen on {options.host} port {options.port}: {error.strerror}",
            "--port 0 picks a free port",
        ) from error

    limits = Limits(options.job_time_limit_s, options.memory_limit_mib)
    by_name = {spec.name: spec for spec in options.backends}
    pool = Pool(service, JobSettings(by_name, limits, options.noise, options.seed, options.warm), options.workers)

    def stop(_signal: int, _frame: FrameType | None) -> None:
        stopping.set()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    thread = threading.Thread(target=server.serve_forever, args=(_POLL_S,), name="server")
    server.daemon_threads = True  # an open connection does not keep the emulator running
    try:
        pool.start()
        thread.start()
        host = f"[{options.host}]" if ":" in options.host else options.host
        log.write(f"listening on http://{host}:{server.port}")
        if options.port_file is not None:
            write_port(options.port_file, server.port)
        stopping.wait()
    finally:
        stopping.set()
        server.shutdown()
        thread.join()
        server.server_close()
        pool.stop()
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 0


def write_port(path: Path, port: int) -> None:
    """Write a port number; a reader of the file sees all of it or none."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(f"{port}\n", encoding="ascii")
    new.replace(path)


def options_from_arguments(arguments: Sequence[str], environ: Mapping[str, str]) -> EmulatorOptions:
    """Return the options of a command line.

    Raises:
        OptionsError: a backend or the API key is invalid.
        FaultError: a fault is invalid.
        SystemExit: another argument is invalid, or `--help` was given.
    """
    given = _parser().parse_args(arguments)
    defaults = EmulatorOptions()
    return checked(
        EmulatorOptions(
            host=given.host,
            port=given.port,
            port_file=given.port_file,
            backends=tuple(parse_backend_spec(text) for text in given.backend) or defaults.backends,
            api_key=api_key(environ, given.api_key_file),
            crn=given.crn,
            faults=tuple(parse_fault_spec(text) for text in given.fault),
            noise=given.noise,
            warm=given.warm,
            workers=given.workers,
            job_time_limit_s=given.job_time_limit,
            memory_limit_mib=given.memory_limit,
            token_lifetime_s=given.token_lifetime,
            seed=given.seed,
        )
    )


def main(arguments: Sequence[str]) -> int:
    """Run the emulator and return its exit status: 2 if its options are invalid."""
    try:
        return serve(options_from_arguments(arguments, os.environ))
    except (OptionsError, FaultError) as error:
        sys.stderr.write(f"error: {error.message}\n")
        if error.hint:
            sys.stderr.write(f"hint: {error.hint}\n")
        return _EXIT_REFUSED


def _parser() -> argparse.ArgumentParser:
    defaults = EmulatorOptions()
    parser = argparse.ArgumentParser(
        prog="qrmi-slurm emulator",
        description="Serve emulated quantum services on loopback, until Ctrl-C.",
        epilog=(
            f"The API key is taken from --api-key-file, else from {API_KEY_VARIABLE}, else it is "
            f"{defaults.api_key.reveal()}.\n\n{_EXAMPLES}"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    flag = argparse.BooleanOptionalAction
    add("--host", default=defaults.host, help="loopback address to listen on (%(default)s)")
    add("--port", type=int, default=defaults.port, help="port to listen on; 0 picks a free one (%(default)s)")
    add("--port-file", type=Path, metavar="PATH", help="write the port to this file once the emulator is listening")
    add(
        "--backend",
        action="append",
        default=[],
        metavar="NAME=DEVICE",
        help="backend to serve; repeatable (ibm_demo=FakeSherbrooke)",
    )
    add("--api-key-file", type=Path, metavar="PATH", help="file with the API key")
    add("--crn", default=defaults.crn, help="service instance to accept (%(default)s)")
    add(
        "--fault",
        action="append",
        default=[],
        metavar="SPEC",
        help="fault to start with, such as create_session:error=500,times=2; repeatable",
    )
    add(
        "--noise",
        action=flag,
        default=defaults.noise,
        help="simulate circuits of up to 10 qubits with the device's noise",
    )
    add("--warm", action=flag, default=defaults.warm, help="load the simulator before the first job arrives")
    add("--workers", type=int, default=defaults.workers, help="jobs to run at the same time (%(default)s)")
    add(
        "--job-time-limit",
        type=float,
        default=defaults.job_time_limit_s,
        metavar="SECONDS",
        help="fail jobs that run longer (%(default)g)",
    )
    add(
        "--memory-limit",
        type=int,
        default=defaults.memory_limit_mib,
        metavar="MIB",
        help="fail jobs that need more memory (%(default)s)",
    )
    add(
        "--token-lifetime",
        type=int,
        default=defaults.token_lifetime_s,
        metavar="SECONDS",
        help="how long a bearer token is valid (%(default)s)",
    )
    add("--seed", type=int, help="make outcomes reproducible")
    return parser
