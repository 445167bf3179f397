"""The plugin's file: for which Slurm release and machine a SPANK plugin was built, read without loading it.

Slurm loads one only where `plugin_version` in it is of its own release (src/common/plugin.c, _verify_syms()); for a
SPANK plugin the micro release may differ. Loading it here would need Slurm's own program around it.
"""

import platform
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qrmi_slurm.errors import PlugstackError
from qrmi_slurm.names import QRMI_SLURM_QPU

# elf(5). Slurm runs on 64-bit machines, and on no big-endian one any more.
_IDENT: Final = b"\x7fELF\x02\x01"
_SECTION_HEADER: Final = struct.Struct("<IIQQQQIIQQ")
_PROGRAM_HEADER: Final = struct.Struct("<IIQQQQQQ")
_SYMBOL: Final = struct.Struct("<IBBHQQ")
_DYNSYM: Final = 11
_LOAD: Final = 1
_MACHINES: Final[Mapping[str, int]] = {"x86_64": 62, "aarch64": 183, "ppc64le": 21, "riscv64": 243}

_MAX_BYTES: Final = 64 * 1024 * 1024
_HINT: Final = "build it on this system: make -C cli_filter install"

# A variable that ours sets and the older plugin of the same file name does not know.
_OUR_VARIABLE: Final = QRMI_SLURM_QPU.encode()


@dataclass(frozen=True, slots=True)
class PluginFile:
    """What stands in a plugin.

    Args:
        name: its `plugin_name`.
        version: major, minor and micro of the Slurm whose headers it was built with.
        is_ours: whether it is this suite's, and not the older plugin of the same file name.
    """

    name: str
    version: tuple[int, int, int]
    is_ours: bool


def read(path: Path) -> PluginFile:
    """Return what a plugin says of itself.

    Raises:
        PlugstackError: it cannot be read, is of another machine, or no plugin of Slurm's.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES)
    except OSError as error:
        raise PlugstackError(f"cannot read {path}: {error.strerror}", _HINT) from error
    if not content.startswith(_IDENT):
        raise PlugstackError(f"{path} is no shared object of a 64-bit machine", _HINT)
    machine = int.from_bytes(content[18:20], "little")
    if machine != _MACHINES.get(platform.machine(), machine):
        raise PlugstackError(f"{path} is built for another machine than {platform.machine()}", _HINT)
    try:
        number = int.from_bytes(_value(content, b"plugin_version", 4), "little")
        name = _value(content, b"plugin_name", 64).split(b"\0")[0].decode("utf-8", "replace")
    except (struct.error, IndexError, KeyError, OverflowError, ValueError):
        raise PlugstackError(f"{path} is no plugin of Slurm's", _HINT) from None
    version = (number >> 16 & 0xFF, number >> 8 & 0xFF, number & 0xFF)
    return PluginFile(name, version, _OUR_VARIABLE in content)


def _value(content: bytes, symbol: bytes, size: int) -> bytes:
    """Return the first bytes of what a dynamic symbol names."""
    offset, entry_size, count = _table(content, at=40, size_at=58)
    headers = [_SECTION_HEADER.unpack_from(content, offset + entry_size * index) for index in range(count)]
    for header in headers:
        if header[1] != _DYNSYM:
            continue
        strings = headers[header[6]][4]
        for at in range(header[4], header[4] + header[5], _SYMBOL.size):
            name, _, _, _, address, _ = _SYMBOL.unpack_from(content, at)
            begin = strings + name
            if content[begin : begin + len(symbol) + 1] == symbol + b"\0":
                place = _file_offset(content, address)
                return content[place : place + size]
    raise KeyError(symbol)


def _file_offset(content: bytes, address: int) -> int:
    offset, entry_size, count = _table(content, at=32, size_at=54)
    for index in range(count):
        kind, _, begin, virtual, _, size, *_ = _PROGRAM_HEADER.unpack_from(content, offset + entry_size * index)
        if kind == _LOAD and virtual <= address < virtual + size:
            return int(begin + address - virtual)
    raise KeyError(address)


def _table(content: bytes, at: int, size_at: int) -> tuple[int, int, int]:
    """Return where a table of headers is, how large an entry, how many."""
    (offset,) = struct.unpack_from("<Q", content, at)
    entry_size, count = struct.unpack_from("<HH", content, size_at)
    return offset, entry_size, count
