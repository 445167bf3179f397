"""The emulator's command: options in, a server that runs until it is told to end."""

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
    BackendSpec,
    EmulatorOptions,
    OptionsError,
    api_key,
    checked,
    parse_backend_spec,
)
from qrmi_emulator.pool import JobSettings, Limits, Pool
from qrmi_emulator.server import Application, RequestLog, listen
from qrmi_emulator.service import Service

__all__ = [
    "BackendSpec",
    "EmulatorOptions",
    "OptionsError",
    "main",
    "options_from_arguments",
    "parse_backend_spec",
    "parse_fault_spec",
    "serve",
]

_EXIT_REFUSED = 2

_EXAMPLES = """Examples:

  qrmi-slurm emulator --backend ibm_demo=FakeSherbrooke
  qrmi-slurm emulator --port 0 --port-file /run/emulator.port --backend a=FakeSherbrooke --backend b=FakeTorino
  qrmi-slurm emulator --fault create_session:error=500,times=2 --fault '*:delay=0.1'"""
_LOOK_S = 0.05  # how soon the server sees that it has to end


def serve(options: EmulatorOptions) -> int:
    """Serve until SIGTERM or SIGINT, and return the exit status, 0.

    Prints `listening on http://HOST:PORT`, and then a line for each request.

    Raises:
        OptionsError: the options cannot be used, or the address is taken.
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
            "--port 0 takes a free one",
        ) from error

    limits = Limits(options.job_time_limit_s, options.memory_limit_mib)
    by_name = {spec.name: spec for spec in options.backends}
    pool = Pool(service, JobSettings(by_name, limits, options.noise, options.seed, options.warm), options.workers)

    def end(_signal: int, _frame: FrameType | None) -> None:
        stopping.set()

    previous = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGINT)}
    thread = threading.Thread(target=server.serve_forever, args=(_LOOK_S,), name="server")
    server.daemon_threads = True  # a client that keeps its connection does not keep the emulator
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
    """Write a port number; who reads the file sees all of it or none."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text(f"{port}\n", encoding="ascii")
    new.replace(path)


def options_from_arguments(arguments: Sequence[str], environ: Mapping[str, str]) -> EmulatorOptions:
    """Return the options of a command line.

    Raises:
        OptionsError: a backend or the API key cannot be used.
        FaultError: a fault cannot be read.
        SystemExit: another argument is wrong, or help was asked for.
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
    """Run the command and return its exit status: 2 where the emulator was asked for what it does not do."""
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
        epilog=f"The API key is that of {API_KEY_VARIABLE}, else {defaults.api_key.reveal()}.\n\n{_EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    flag = argparse.BooleanOptionalAction
    add("--host", default=defaults.host, help="a loopback address (%(default)s)")
    add("--port", type=int, default=defaults.port, help="0 takes a free one (%(default)s)")
    add("--port-file", type=Path, metavar="PATH", help="write the port here once it listens")
    add("--backend", action="append", default=[], metavar="NAME=DEVICE", help="ibm_demo=FakeSherbrooke")
    add("--api-key-file", type=Path, metavar="PATH", help="a file with the API key")
    add("--crn", default=defaults.crn, help="the service instance that is accepted")
    add("--fault", action="append", default=[], metavar="SPEC", help="create_session:error=500,times=2")
    add("--noise", action=flag, default=defaults.noise, help="run up to 10 qubits with their device's noise")
    add("--warm", action=flag, default=defaults.warm, help="load the simulator before the first job")
    add("--workers", type=int, default=defaults.workers, help="jobs side by side (%(default)s)")
    add("--job-time-limit", type=float, default=defaults.job_time_limit_s, metavar="SECONDS")
    add("--memory-limit", type=int, default=defaults.memory_limit_mib, metavar="MIB")
    add("--token-lifetime", type=int, default=defaults.token_lifetime_s, metavar="SECONDS")
    add("--seed", type=int, help="makes outcomes repeatable")
    return parser
