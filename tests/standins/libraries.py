"""Builds stand-ins for the native libraries that QRMI loads: OQTOPUS's bridge, and libmunge."""

import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent


def build_oqtopus_bridge(folder: Path) -> Path:
    """Return the path of a stand-in for liboqtopus_py_bridge.so.

    QRMI insists on loading libpython first. The stand-in does not need it, so PYTHON_LIBRARY may name the stand-in too.
    """
    return _build("oqtopus_bridge.c", folder / "liboqtopus_py_bridge.so")


def build_munge(folder: Path) -> Path:
    """Return the path of a stand-in for libmunge. QRMI uses a library already loaded under that name."""
    return _build("munge.c", folder / "libmunge.so.2", "-Wl,-soname,libmunge.so.2")


def _build(source: str, library: Path, *options: str) -> Path:
    command = ["gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", *options]
    subprocess.run([*command, "-o", library, HERE / source], check=True)
    return library
