"""The emulator's options: what it serves, where, to whom, and with which faults."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

from qrmi_emulator.faults import FaultSpec
from qrmi_slurm.errors import QrmiSlurmError
from qrmi_slurm.secret import Secret

API_KEY_VARIABLE = "QRMI_EMULATOR_APIKEY"
TEST_API_KEY = "emulator-test-apikey"
DEFAULT_CRN = "crn:v1:bluemix:public:quantum-computing:us-east:a/emulator:emulator::"
DEFAULT_PORT = 8290
DEFAULT_JOB_TIME_LIMIT_S = 300.0
DEFAULT_MEMORY_LIMIT_MIB = 3072
TOKEN_LIFETIME_S = 3600  # what IAM grants

# QRMI puts a QPU's name into variables and URLs as it is.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,127}")
_DEVICE = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


class OptionsError(QrmiSlurmError):
    """The emulator cannot run with these options."""


@dataclass(frozen=True, slots=True)
class BackendSpec:
    """A backend to serve.

    Args:
        name: the name that it is served as.
        device: the fake device that it emulates, as qiskit-ibm-runtime names it: `FakeSherbrooke`.
    """

    name: str
    device: str


@dataclass(frozen=True, slots=True)
class EmulatorOptions:
    """The emulator's options.

    Args:
        host: a loopback address.
        port: 0 picks a free one.
        port_file: where to write the port once the emulator is listening; None writes nothing.
        backends: the backends to serve, under distinct names.
        api_key: the only IAM API key that is accepted.
        crn: the only service instance that is accepted.
        faults: the faults that are set from the start.
        noise: whether circuits with few qubits run with their device's noise.
        warm: whether the simulator is loaded before the first job needs it.
        workers: how many jobs run at the same time.
        job_time_limit_s: jobs that run longer fail.
        memory_limit_mib: jobs that need more memory fail.
        token_lifetime_s: how long a bearer token is valid.
        seed: makes every job's outcome reproducible; None draws a new one for each job.
    """

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    port_file: Path | None = None
    backends: tuple[BackendSpec, ...] = (BackendSpec("ibm_demo", "FakeSherbrooke"),)
    api_key: Secret = Secret(TEST_API_KEY)  # noqa: RUF009 immutable; the documented test key
    crn: str = DEFAULT_CRN
    faults: tuple[FaultSpec, ...] = ()
    noise: bool = True
    warm: bool = True
    workers: int = 1
    job_time_limit_s: float = DEFAULT_JOB_TIME_LIMIT_S
    memory_limit_mib: int = DEFAULT_MEMORY_LIMIT_MIB
    token_lifetime_s: int = TOKEN_LIFETIME_S
    seed: int | None = None


def parse_backend_spec(text: str) -> BackendSpec:
    """Read `NAME=DEVICE`, or only a device, which is then served under its IBM name.

    Raises:
        OptionsError: it is neither of these.
    """
    name, equals, device = text.partition("=")
    if not equals:
        name, device = f"ibm_{device_folder(name)}", name
    if not _NAME.fullmatch(name) or not _DEVICE.fullmatch(device):
        raise OptionsError(f"{text!r} is not a backend", "write NAME=DEVICE, for example ibm_demo=FakeSherbrooke")
    return BackendSpec(name, device)


def device_folder(device: str) -> str:
    """Return a fake device's folder: `manila` for `FakeManilaV2`, `fake_manila` and `manila`."""
    folder = device.lower().removeprefix("fake").lstrip("_").removesuffix("backend")
    return folder.removesuffix("v2").rstrip("_")


def checked(options: EmulatorOptions) -> EmulatorOptions:
    """Return the options if they are valid.

    Raises:
        OptionsError: the address is not loopback, a name is used twice, or a number is out of range.
    """
    try:
        loopback = options.host == "localhost" or ip_address(options.host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise OptionsError(
            f"the emulator listens on loopback only, and {options.host} is not a loopback address",
            "anyone who can reach the emulator can run circuits on this machine; use 127.0.0.1",
        )
    names = [backend.name for backend in options.backends]
    if not names or len(set(names)) != len(names):
        raise OptionsError("each backend needs its own name", "use each name in one --backend NAME=DEVICE")
    if options.workers < 1 or options.job_time_limit_s <= 0 or options.memory_limit_mib < 1:
        raise OptionsError("the number of workers, the job time limit and the memory limit must be greater than 0")
    return options


def api_key(environ: Mapping[str, str], path: Path | None) -> Secret:
    """Return the API key from a file, else from `QRMI_EMULATOR_APIKEY`, else the documented test key.

    Raises:
        OptionsError: the file cannot be read, or the key is empty.
    """
    if path is None:
        key = environ.get(API_KEY_VARIABLE, TEST_API_KEY)
    else:
        try:
            key = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise OptionsError(f"cannot read the API key from {path}: {type(error).__name__}") from error
    if not key:
        raise OptionsError("the emulator's API key is empty", f"set {API_KEY_VARIABLE} or --api-key-file")
    return Secret(key)
