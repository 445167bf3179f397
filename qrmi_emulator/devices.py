"""Devices: configuration and properties of Qiskit's fake backends, read without importing Qiskit."""

import json
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from qrmi_emulator.options import BackendSpec, OptionsError, device_folder


@dataclass(frozen=True, slots=True)
class Device:
    """What a fake backend says about itself.

    Args:
        configuration: qubits, basis gates and coupling map, as the service sends them.
        properties: calibration of qubits and gates, as the service sends them.
    """

    configuration: dict[str, Any]
    properties: dict[str, Any]


@cache
def load(spec: BackendSpec) -> Device:
    """Return a device under the name that it is served as.

    Raises:
        OptionsError: qiskit-ibm-runtime is missing, or has no such device.
    """
    folder = device_folder(spec.device)
    path = devices_root() / folder
    try:
        configuration = _read(path / f"conf_{folder}.json")
        properties = _read(path / f"props_{folder}.json")
    except FileNotFoundError as error:
        raise OptionsError(
            f"there is no fake device {spec.device} for backend {spec.name}",
            f"devices: {', '.join(names())}",
        ) from error
    for document in (configuration, properties):
        document["backend_name"] = spec.name
    # Some files have the text "None" where QRMI expects null.
    configuration = {key: None if value == "None" else value for key, value in configuration.items()}
    configuration.setdefault("online_date", "2020-01-01T00:00:00+00:00")
    return Device(configuration, properties)


def names() -> tuple[str, ...]:
    """Return the names of all devices, as `parse_backend_spec` accepts them."""
    return tuple(sorted(path.parent.name for path in devices_root().glob("*/conf_*.json") if _has_properties(path)))


def devices_root() -> Path:
    """Return the folder of Qiskit's fake backends.

    Raises:
        OptionsError: qiskit-ibm-runtime is missing.
    """
    found = find_spec("qiskit_ibm_runtime")  # does not import it, which takes a second
    if found is None or found.origin is None:
        raise OptionsError(
            "the emulator needs qiskit-ibm-runtime", "install it with: pip install 'qrmi-slurm[emulator]'"
        )
    return Path(found.origin).parent / "fake_provider" / "backends"


def _has_properties(path: Path) -> bool:
    return path.with_name(path.name.replace("conf_", "props_", 1)).exists()


def _read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document
