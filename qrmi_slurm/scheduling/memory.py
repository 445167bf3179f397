"""The sensor's memory: what one run leaves for the next, in `sensor.json` in the state directory."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from qrmi_slurm.scheduling import state_files

MEMORY_FILE: Final = "sensor.json"

# What a run saw longer ago says nothing about now; the timer runs once a minute.
FRESH_S: Final = 600.0

_VERSION: Final = 1
_MAX_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Memory:
    """What a run leaves for the next one.

    Args:
        ran_s: when it ran; seconds since the epoch.
        unanswered: how many times in a row a QPU has given no answer, by its name.
        offline: the state of each license whose QPUs are all down.
    """

    ran_s: float = 0.0
    unanswered: Mapping[str, int] = field(default_factory=dict)
    offline: Mapping[str, str] = field(default_factory=dict)


def recall(state_dir: Path, now_s: float) -> Memory:
    """Return what the last run left; an empty memory if that is too old or cannot be read."""
    memory = last_run(state_dir)
    return memory if memory is not None and abs(now_s - memory.ran_s) <= FRESH_S else Memory()


def last_run(state_dir: Path) -> Memory | None:
    """Return what the last run left, however long ago; None if there is nothing readable."""
    try:
        with (state_dir / MEMORY_FILE).open("rb") as file:
            document: Any = json.loads(file.read(_MAX_BYTES))
        if document["version"] != _VERSION:
            return None
        unanswered = {str(name): int(count) for name, count in document["unanswered"].items()}
        offline = {str(name): str(state) for name, state in document["offline"].items()}
        return Memory(float(document["ran_s"]), unanswered, offline)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def remember(memory: Memory, state_dir: Path) -> None:
    """Leave a memory for the next run.

    Raises:
        RecordError: it cannot be written.
    """
    document = {
        "version": _VERSION,
        "ran_s": memory.ran_s,
        "unanswered": dict(memory.unanswered),
        "offline": dict(memory.offline),
    }
    state_files.write_json(state_dir, MEMORY_FILE, document)
