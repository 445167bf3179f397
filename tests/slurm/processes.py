"""Processes on this machine: which belong to a cluster's folder, and how to end them."""

import contextlib
import os
import re
import signal
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from slurm.polling import wait_for

PROC = Path("/proc")
END_DEADLINE_S = 15.0


@dataclass(frozen=True, slots=True)
class Process:
    """One living process, not a zombie."""

    pid: int
    parent: int
    session: int
    on_terminal: bool
    uid: int


def living() -> Iterator[Process]:
    """Yield every process of the machine that is not a zombie."""
    for folder in PROC.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            stat = (folder / "stat").read_text(errors="replace")
            status = (folder / "status").read_text(errors="replace")
        except OSError:
            continue  # it has ended meanwhile
        # proc(5): the second field is the name in parentheses, which may contain anything.
        state, parent, _group, session, terminal = stat.rpartition(")")[2].split()[:5]
        if state in "ZX":
            continue
        uid = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("Uid:"))
        yield Process(int(folder.name), int(parent), int(session), terminal != "0", uid)


def start_ticks(pid: int) -> str | None:
    """Return when a process started, in clock ticks since boot, or None if there is no such process.

    Ids are reused; together with the id this identifies a process.
    """
    try:
        return (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()[19]
    except OSError:
        return None


def holds(pid: int, secret: bytes) -> bool:
    """Tell whether a secret appears in a process's environment, arguments or memory."""
    process = Path(f"/proc/{pid}")
    if any(secret in (process / name).read_bytes() for name in ("environ", "cmdline")):
        return True
    with (process / "mem").open("rb", buffering=0) as memory:
        for line in (process / "maps").read_text().splitlines():
            match = re.match(r"([0-9a-f]+)-([0-9a-f]+) r", line)
            if match is None or line.endswith(("[vvar]", "[vsyscall]", "[vvar_vclock]")):
                continue
            start, end = (int(text, 16) for text in match.groups())
            try:
                memory.seek(start)
                if secret in memory.read(end - start):
                    return True
            except (OSError, ValueError, OverflowError):
                continue
    return False


@dataclass(frozen=True, slots=True)
class Belongings:
    """What identifies a cluster's processes.

    Args:
        folder: the cluster's folder. The daemons' SLURM_CONF is below it, and they have files open there.
        uids: the users made for this cluster; whatever runs as them is the cluster's.
        sessions: the session ids of the daemons started so far, which their children share.
    """

    folder: Path
    uids: Collection[int]
    sessions: Collection[int] = ()

    def pids(self) -> set[int]:
        """Return the ids of the cluster's processes, never those of the caller and its ancestors.

        A root process with a terminal is somebody's shell or editor, not a daemon, and is left out.
        """
        everything = {process.pid: process for process in living()}
        spared = _with_ancestors(os.getpid(), everything)
        found = {
            process.pid
            for process in everything.values()
            if process.uid in self.uids
            or (
                not process.on_terminal
                and process.pid not in spared
                and (process.session in self.sessions or self._is_touched_by(process.pid))
            )
        }
        while children := {p.pid for p in everything.values() if p.parent in found} - found:
            found |= children
        return found - spared

    def _is_touched_by(self, pid: int) -> bool:
        """Tell whether a process has SLURM_CONF, its working directory or an open file in the folder."""
        below = f"{self.folder}/"
        process = PROC / str(pid)
        try:
            if f"\0SLURM_CONF={below}".encode() in b"\0" + (process / "environ").read_bytes():
                return True
            # slurmstepd writes its title over its environment, but it has its log open.
            links = [process / "cwd", *(process / "fd").iterdir()]
        except OSError:
            return False
        for link in links:
            with contextlib.suppress(OSError):
                if f"{link.readlink()}/".startswith(below):
                    return True
        return False


def _with_ancestors(pid: int, everything: dict[int, Process]) -> set[int]:
    """Return a process and its ancestors."""
    line = set()
    while pid in everything and pid not in line:
        line.add(pid)
        pid = everything[pid].parent
    return line


def end_all(find: Callable[[], set[int]]) -> None:
    """Kill what `find` returns until it returns nothing.

    Raises:
        DeadlineError: something would not end within 15 s.
    """

    def nothing_left() -> bool:
        pids = find()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not pids

    wait_for(nothing_left, "the cluster's processes to end", END_DEADLINE_S, on_timeout=lambda: f"{find()}")
