"""Starts a Debian in a container, in a mount namespace of its own: its root, its control groups, then systemd-nspawn.

`container.py` runs this as a program; standard library only.
"""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

MOUNTS = Path("/proc/self/mounts")
CGROUPS = Path("/sys/fs/cgroup")
# What Slurm's cgroup/v1 plugin needs for proctrack/cgroup and ConstrainRAMSpace.
V1_CONTROLLERS = ("memory", "freezer")
V2_CONTROLLERS = ("memory", "pids", "cpu", "cpuset")
V1_INSIDE = Path("/cgroup-v1")
CANNOT = "these tests need root with CAP_SYS_ADMIN; in a container: docker run --privileged"


def v1_mounts() -> dict[str, Path]:
    """Return where the controllers that are bound to cgroup v1 are mounted."""
    found: dict[str, Path] = {}
    for line in MOUNTS.read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == "cgroup":
            found |= {option: Path(place) for option in options.split(",") if option in V1_CONTROLLERS}
    return found


def v2_mount() -> Path | None:
    """Return where cgroup v2 is mounted; None if it is not."""
    lines = [line.split() for line in MOUNTS.read_text().splitlines()]
    return next((Path(place) for _, place, kind, *_ in lines if kind == "cgroup2"), None)


def main(told: str) -> None:
    """Become systemd-nspawn.

    Args:
        told: as JSON: the container's `name`, its `folder`, the `lower` root, the name of its control `group`, and the
            `shared` folders.
    """
    given = json.loads(told)
    folder, group = Path(given["folder"]), given["group"]
    root = prepared(folder, given["lower"])
    v1_binds = _v1_binds(folder, group)  # before a mount hides them
    _enter_v2(group, needs_memory=not v1_binds)
    binds = [*v1_binds, *(f"--bind-ro={one}" for one in given["shared"])]
    nspawn = ["systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--settings=no"]
    nspawn += ["--console=pipe", "--link-journal=no", "--resolv-conf=off", "--timezone=off"]
    nspawn += [f"--machine={given['name']}", f"--directory={root}", *binds]
    os.execvp(nspawn[0], nspawn)  # noqa: S606


def _v1_binds(folder: Path, group: str) -> list[str]:
    """Make a group in each controller that is bound to cgroup v1, and return nspawn's options that show it inside."""
    mounts = v1_mounts()
    if "memory" not in mounts:
        return []
    binds = []
    for controller in V1_CONTROLLERS:
        if controller not in mounts:
            sys.exit(f"cgroup v1 has the memory controller here, but not {controller}: see /proc/cgroups")
        place = mounts[controller] / group
        place.mkdir(exist_ok=True)
        shown = folder / "cgroup-v1" / controller
        shown.mkdir(parents=True, exist_ok=True)
        mount("--bind", place, shown)
        binds.append(f"--bind={shown}:{V1_INSIDE / controller}")
    return binds


def _enter_v2(group: str, *, needs_memory: bool) -> None:
    """Mount cgroup v2 in its usual place, where systemd wants it, and enter a group of its own."""
    if v2_mount() != CGROUPS:
        mount("-t", "cgroup2", "cgroup2", CGROUPS)
    controllers = (CGROUPS / "cgroup.controllers").read_text().split()
    if needs_memory and "memory" not in controllers:
        sys.exit(
            "neither cgroup v1 nor v2 has a memory controller here (/proc/cgroups): Slurm cannot limit a job's memory"
        )
    for controller in V2_CONTROLLERS:
        with contextlib.suppress(OSError):
            (CGROUPS / "cgroup.subtree_control").write_text(f"+{controller}")
    place = CGROUPS / group
    place.mkdir(exist_ok=True)
    (place / "cgroup.procs").write_text(str(os.getpid()))


def prepared(folder: Path, lower: str) -> Path:
    """Mount a machine's root, prepare it the first time, and return where it is.

    Args:
        folder: the machine's; `files` in it is copied into the root, and `/prepare` of them then runs there.
        lower: the root below it, which stays as it is.
    """
    root = folder / "root"
    layers = f"lowerdir={lower},upperdir={folder}/upper,workdir={folder}/work"
    mount("-t", "overlay", "-o", layers, "overlay", root)
    if not (folder / "prepared").exists():
        subprocess.run(["cp", "--archive", "--no-preserve=ownership", f"{folder}/files/.", root], check=True)
        path = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        subprocess.run(["chroot", root, "sh", "-e", "/prepare"], env=path, check=True)
        (folder / "prepared").touch()
    return root


def mount(*arguments: str | Path) -> None:
    """Run mount(8), or exit with the reason."""
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        sys.exit(f"{done.stderr.strip()}\n{CANNOT}")


if __name__ == "__main__":
    main(sys.argv[1])
