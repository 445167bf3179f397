"""The environment that Slurm started a hook with, before a shell dropped what is no variable to it.

A resource may be called `ibm-x`, so variables begin with `ibm-x_`. dash keeps only names of letters, digits and
underscores; bash keeps the others but cannot use them.
"""

import os
from pathlib import Path


def of_process(pid: int) -> dict[str, str]:
    """Return the environment that a process was started with.

    Args:
        pid: one of the same user: the shell that a hook begins as.

    Returns:
        Its variables; this process's own where the kernel does not show them.
    """
    try:
        content = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return dict(os.environ)
    return parse(content)


def parse(content: bytes) -> dict[str, str]:
    """Return the variables of the kernel's form: `NAME=value` between NULs; the first of a name counts."""
    found: dict[str, str] = {}
    for item in content.split(b"\0"):
        name, equals, value = os.fsdecode(item).partition("=")
        if equals:
            found.setdefault(name, value)
    return found
