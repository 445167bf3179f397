"""The plugin's file: whether it is ours, and which releases of Slurm it is for, without loading it.

On every other release Slurm refuses it. The file has the list as a text: `marker` in cli_filter/spank_qrmi.c.
"""

import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from qrmi_slurm.errors import PlugstackError

_MARKER: Final = re.compile(rb"qrmi-slurm stub for Slurm\0(\d\d\.\d\d(?: \d\d\.\d\d)*)\0")
_MAX_BYTES: Final = 1024 * 1024  # ours has 40 kB

# elf(5): e_ident of a 64-bit little-endian file, and e_machine.
_IDENT: Final = b"\x7fELF\x02\x01"
_MACHINE: Final = slice(18, 20)
_MACHINES: Final[Mapping[str, int]] = {"x86_64": 62, "aarch64": 183, "ppc64le": 21, "riscv64": 243}

_HINT: Final = "build it on this system: make -C cli_filter install"


def releases(path: Path) -> frozenset[tuple[int, int]]:
    """Return year and month of each release of Slurm that our plugin is for.

    Raises:
        PlugstackError: the file cannot be read, is for another machine, or is not our plugin.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES)
    except OSError as error:
        raise PlugstackError(f"cannot read {path}: {error.strerror}", _HINT) from error
    if not content.startswith(_IDENT):
        raise PlugstackError(f"{path} is not a shared object for a 64-bit machine", _HINT)
    machine = int.from_bytes(content[_MACHINE], "little")
    if machine != _MACHINES.get(platform.machine(), machine):
        raise PlugstackError(f"{path} is built for a machine other than {platform.machine()}", _HINT)
    found = _MARKER.search(content)
    if found is None:
        hint = (
            "build ours (make -C cli_filter install) and put its path into plugstack.conf; see: qrmi-slurm slurm-conf"
        )
        raise PlugstackError(f"{path} is not the plugin of qrmi-slurm, or is an old build of it", hint)
    names = found[1].decode("ascii").split(" ")
    return frozenset((int(name[:2]), int(name[3:])) for name in names)
