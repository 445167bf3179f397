"""The environment that Slurm started a hook with, including what a shell would drop.

A resource may be called `ibm-x`, and then its variables begin with `ibm-x_`. dash keeps only names of letters, digits
and underscores; bash passes the others on but cannot use them.
"""

import os
from pathlib import Path


def of_process(pid: int) -> dict[str, str]:
    """Return the environment that a process was started with.

    Args:
        pid: a process of the same user: the shell that a hook begins as.

    Returns:
        Its variables; if the kernel does not show them, those of this process.
    """
    try:
        content = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return dict(os.environ)
    return parse(content)


def of_descriptor(number: int) -> dict[str, str]:
    """Return the environment that the stub passed to TaskProlog in a descriptor, in the format of /proc/PID/environ."""
    with open(number, "rb") as file:
        return parse(file.read())


def parse(content: bytes) -> dict[str, str]:
    """Return the variables in /proc/PID/environ, `NAME=value` separated by NULs; of duplicates the first counts."""
    found: dict[str, str] = {}
    for item in content.split(b"\0"):
        name, equals, value = os.fsdecode(item).partition("=")
        if equals:
            found.setdefault(name, value)
    return found
