"""Slurm's commands: where they are on this node."""

import os
import re
from pathlib import Path
from typing import Final

# Where packages put them, and SchedMD's own build.
_USUAL: Final = ("/usr/bin", "/usr/local/bin", "/opt/slurm/bin")

# A hook's shell is a child of slurmd, or of the slurmstepd that runs the scripts for it.
_GENERATIONS: Final = 3


def find(name: str) -> str | None:
    """Return the path of one of Slurm's commands; None where there is none.

    In a hook it is the one beside the slurmd that has started it: of two releases on a node, that one's. Otherwise it
    is the caller's, by PATH, and then where packages put it.
    """
    folders = (*_beside_daemon(), *os.environ.get("PATH", "").split(":"), *_USUAL)
    programs = (f"{folder}/{name}" for folder in folders if folder.startswith("/"))
    return next((program for program in programs if os.access(program, os.X_OK)), None)


def _beside_daemon() -> list[str]:
    """Return the folders of commands that belong to a daemon of Slurm's among this process's ancestors.

    To none that another user has started: what calls sudo may bear any name, and lie beside a squeue of that user's.
    """
    folders = []
    pid = os.getppid()
    for _ in range(_GENERATIONS):
        try:
            uids = re.findall(r"^Uid:\t(\d+)\t(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)[0]
            program = Path(f"/proc/{pid}/exe").readlink()
            # proc_pid_stat(5): pid, (name), state, parent; the name may hold blanks and brackets.
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            break
        if program.name.startswith("slurm") and set(uids) <= {"0", str(os.geteuid())}:
            folders.append(str(program.parent.parent / "bin"))
    return folders
