"""The installation that this process runs from: its executables, as Slurm's settings name them."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qrmi_slurm.slurm.plugstack import PLUGIN_FILE

LUA_MODULE: Final = "qrmi_slurm.lua"

# What Slurm's files name, and what stays when versions of this suite come and go: `make -C cli_filter install`.
PERMANENT: Final = Path("/usr/local/lib/qrmi-slurm")

# Where that may have put the plugin instead, besides the venv's own lib.
_PLUGIN_DIRECTORIES: Final = ("/usr/lib64/slurm", "/usr/lib/slurm", "/usr/local/lib/slurm", "/opt/slurm/lib/slurm")

_MAX_SCRIPT_BYTES: Final = 4096

# The most links followed from the path that a command was called by; /usr/local/bin/qrmi-slurm is one.
_MAX_LINKS: Final = 8


@dataclass(frozen=True, slots=True)
class Installation:
    """Absolute paths of an installation.

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
        """The executable for Prolog=."""
        return self.bin / "qrmi-slurm-prolog"

    @property
    def task_prolog(self) -> Path:
        """The executable for TaskProlog=."""
        return self.bin / "qrmi-slurm-task-prolog"

    @property
    def epilog(self) -> Path:
        """The executable for Epilog=."""
        return self.bin / "qrmi-slurm-epilog"

    @property
    def command(self) -> Path:
        """The command of admins and users."""
        return self.bin / "qrmi-slurm"

    @property
    def python(self) -> Path:
        """The interpreter that runs the hooks."""
        return self.bin / "python3"

    @property
    def lib(self) -> Path:
        """The venv's own folder of libraries, in which the plugin may be."""
        return self.prefix / "lib"

    def permanent_hook(self, hook: Path) -> Path | None:
        """Return the script outside of the venv that runs one of these hooks; None if it is not installed.

        Args:
            hook: the path of this installation's hook.
        """
        path = PERMANENT / hook.name.removeprefix("qrmi-slurm-")
        try:
            with path.open("rb") as file:
                content = file.read(_MAX_SCRIPT_BYTES)
        except OSError:
            return None
        return path if os.fsencode(hook) in content else None

    def plugin(self) -> Path | None:
        """Return the path of the SPANK plugin; None if it is not installed."""
        return next((path for folder in self._libraries() if (path := folder / PLUGIN_FILE).exists()), None)

    def lua_dir(self) -> Path | None:
        """Return the folder with the files for Slurm's Lua plugins; None if they are not installed."""
        return next((folder / "lua" for folder in self._libraries() if (folder / "lua" / LUA_MODULE).exists()), None)

    def _libraries(self) -> tuple[Path, ...]:
        return (PERMANENT, self.lib, *map(Path, _PLUGIN_DIRECTORIES))


def this_one() -> Installation:
    """Return the installation that this process runs from, by the path that it was called by.

    `/opt/qrmi-slurm` may be a link to the version in use. Slurm's settings should name that link, which is permanent.
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
