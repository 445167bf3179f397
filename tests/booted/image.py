"""Writes the disk of a virtual machine: a prepared root, in an ext4 file system, without mounting that.

`vm.py` runs this as a program in a mount namespace of its own; standard library only.
"""

import json
import subprocess
import sys
from pathlib import Path

from booted.starter import mount, prepared

SIZE = "6G"  # sparse


def main(told: str) -> None:
    """Write the disk.

    Args:
        told: as JSON: the machine's `folder`, the `lower` root, the folders to `copy` with their places, the `disk`.
    """
    given = json.loads(told)
    root = prepared(Path(given["folder"]), given["lower"])
    for path, place in given["copy"].items():
        shown = root / place[1:]
        shown.mkdir(parents=True, exist_ok=True)
        mount("--bind", path, shown)
    words = ["mke2fs", "-q", "-t", "ext4", "-d", root, given["disk"], SIZE]
    done = subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        sys.exit(f"mke2fs cannot write {given['disk']}: {done.stderr.strip()}")


if __name__ == "__main__":
    main(sys.argv[1])
