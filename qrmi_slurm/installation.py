"""The installation: where this one's executables are, as Slurm's settings name them."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PLUGIN_FILE: Final = "spank_qrmi.so"
LUA_MODULE: Final = "qrmi_slurm.lua"

# Where `make -C cli_filter install` may have put the plugin, beside the venv's own lib.
_PLUGIN_DIRECTORIES: Final = ("/usr/lib64/slurm", "/usr/lib/slurm", "/usr/local/lib/slurm", "/opt/slurm/lib/slurm")


@dataclass(frozen=True, slots=True)
class Installation:
    """Absolute paths.

    Args:
        prefix: the venv.
    """

    prefix: Path

    @property
    def bin(self) -> Path:
        """The folder of the executables."""
        return self.prefix / "bin"

    @property
    def prolog(self) -> Path:
        """What Prolog= names."""
        return self.bin / "qrmi-slurm-prolog"

    @property
    def task_prolog(self) -> Path:
        """What TaskProlog= names."""
        return self.bin / "qrmi-slurm-task-prolog"

    @property
    def epilog(self) -> Path:
        """What Epilog= names."""
        return self.bin / "qrmi-slurm-epilog"

    @property
    def command(self) -> Path:
        """The admin's command."""
        return self.bin / "qrmi-slurm"

    @property
    def python(self) -> Path:
        """The interpreter that the hooks start."""
        return self.bin / "python3"

    def plugin(self) -> Path | None:
        """Return where the SPANK plugin is; None where it was not installed."""
        folders = (str(self.prefix / "lib"), *_PLUGIN_DIRECTORIES)
        found = (Path(folder) / PLUGIN_FILE for folder in folders)
        return next((path for path in found if path.exists()), None)

    def lua_dir(self) -> Path | None:
        """Return where the files for Slurm's Lua plugins are; None where they were not installed."""
        folders = (self.prefix / "lib", *map(Path, _PLUGIN_DIRECTORIES))
        return next((folder / "lua" for folder in folders if (folder / "lua" / LUA_MODULE).exists()), None)


def this_one() -> Installation:
    """Return the installation that this process runs from."""
    return Installation(Path(os.path.normpath(sys.prefix)))
