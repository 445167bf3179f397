"""Devices: the fake backends whose configuration and properties are served, read without importing Qiskit."""

import json
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qrmi_emulator.options import BackendSpec, OptionsError, device_folder


@dataclass(frozen=True, slots=True)
class Device:
    """What a fake backend says of itself.

    Args:
        configuration: qubits, basis gates and coupling, as the service's API has them.
        properties: calibration of qubits and gates, as the service's API has them.
    """

    configuration: dict[str, Any]
    properties: dict[str, Any]


@cache
def load(spec: BackendSpec) -> Device:
    """Return a device under the name that it is served with.

    Raises:
        OptionsError: qiskit-ibm-runtime is not installed, or has no such device.
    """
    folder = device_folder(spec.device)
    path = devices_root() / folder
    try:
        configuration = _read(path / f"conf_{folder}.json")
        properties = _read(path / f"props_{folder}.json")
    except FileNotFoundError as error:
        raise OptionsError(
            f"there is no fake device {spec.device} for backend {spec.name}",
            f"the devices are {', '.join(names())}",
        ) from error
    for document in (configuration, properties):
        document["backend_name"] = spec.name
    # QRMI reads a missing value where the file has the text "None".
    configuration = {key: None if value == "None" else value for key, value in configuration.items()}
    configuration.setdefault("online_date", "2020-01-01T00:00:00+00:00")
    return Device(configuration, properties)


def names() -> tuple[str, ...]:
    """Return every device that there is, as `parse_backend_spec` takes it."""
    return tuple(sorted(path.parent.name for path in devices_root().glob("*/conf_*.json") if _has_properties(path)))


def devices_root() -> Path:
    """Return the folder of the fake backends.

    Raises:
        OptionsError: qiskit-ibm-runtime is not installed.
    """
    found = find_spec("qiskit_ibm_runtime")  # finds, does not import: that takes a second
    if found is None or found.origin is None:
        raise OptionsError(
            "the emulator needs qiskit-ibm-runtime, which is not installed", "pip install 'qrmi-slurm[emulator]'"
        )
    return Path(found.origin).parent / "fake_provider" / "backends"


def _has_properties(path: Path) -> bool:
    return path.with_name(path.name.replace("conf_", "props_", 1)).exists()


def _read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document
