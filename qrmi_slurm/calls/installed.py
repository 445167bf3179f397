"""The installed QRMI: the only place that imports it, and the resource types it knows."""

from collections.abc import Sequence
from typing import Any

from qrmi_slurm.config.resource_types import describe, matching_member
from qrmi_slurm.errors import BackendError


def import_qrmi() -> Any:
    """Return the package `qrmi`.

    Raises:
        BackendError: it cannot be imported.
    """
    try:
        import qrmi
    except ImportError as error:
        raise BackendError(
            f"QRMI cannot be imported: {error}", "an admin can install it in the venv of qrmi-slurm: pip install qrmi"
        ) from error
    return qrmi


def known_members() -> tuple[str, ...]:
    """Return the resource types that the installed QRMI knows, by the names of its `ResourceType` members.

    Raises:
        BackendError: QRMI cannot be imported.
    """
    return tuple(name for name in dir(import_qrmi().ResourceType) if name[0].isalpha())


def installed_type(type_name: str, members: Sequence[str]) -> str:
    """Return the name under which the installed QRMI serves a configured type: its own, or its successor's.

    It is spelled as QRMI's QRMIService reads it, which knows neither `OQTOPUS` nor `IBMQuantumSystem`.

    Args:
        type_name: as configured.
        members: from `known_members`.

    Raises:
        BackendError: this QRMI knows neither.
    """
    known = describe(type_name)
    for candidate in (known.name, known.successor):
        if candidate and matching_member(candidate, members):
            return candidate
    raise BackendError(
        f"the installed QRMI does not know the resource type {type_name}",
        f"it knows {', '.join(members)}; an admin can install another version of qrmi",
    )
