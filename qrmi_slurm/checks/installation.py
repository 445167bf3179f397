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

# As many links in a row as a command may be called through: /usr/local/bin/qrmi-slurm is one.
_MAX_LINKS: Final = 8


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
    """Return the installation that this process runs from, by the path that it was called by.

    `/opt/qrmi-slurm` may be a link to the version in use. Slurm's settings are to name the link, which stays.
    """
    prefix = Path(os.path.normpath(sys.prefix))
    program = Path(sys.argv[0]).absolute()
    for _ in range(_MAX_LINKS):
        called = program.parent.parent
        if program.parent.name == "bin" and called.resolve() == prefix.resolve():
            return Installation(called)
        if not program.is_symlink():
            break
        program = Path(os.path.normpath(program.parent / program.readlink()))
    return Installation(prefix)
