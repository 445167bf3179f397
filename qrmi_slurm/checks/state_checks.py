"""Checks of the state directory: who may use it, its free space, and whether nodes share it and tasks see it."""

import contextlib
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from qrmi_slurm import files
from qrmi_slurm.checks.result import Result, error, ok, warning
from qrmi_slurm.checks.user_access import blocking_users
from qrmi_slurm.errors import NewerRecordError, RecordError
from qrmi_slurm.slurm.plugstack import DEFAULT_STATE_DIR, SiteOptions
from qrmi_slurm.slurm.settings import SlurmSettings
from qrmi_slurm.state import inventory

# A record of one QPU is 2 kB; with less than the first a busy node has hardly room for a day.
_LOW_SPACE_BYTES: Final = 100 * 1024 * 1024
_NO_SPACE_BYTES: Final = 1024 * 1024

# proc(5): types of file systems that several nodes may share.
_SHARED: Final = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "fuse.sshfs", "gfs2", "glusterfs", "gpfs"}
    | {"lustre", "nfs", "nfs4", "ocfs2", "orangefs", "panfs", "pvfs2", "smb3", "virtiofs", "wekafs"}
)
# Every job of a newer version has one.
_MAX_RECORDS: Final = 3

_IN_MEMORY: Final = frozenset({"tmpfs", "ramfs"})

# job_container.conf(5), namespace.yaml(5): the folders that are private to each job, unless Dirs= names others.
_PRIVATE_DEFAULT: Final = ("/tmp", "/dev/shm")  # noqa: S108 (names that Slurm mounts over)
_DIRS: Final = re.compile(r"(?:^|\s)dirs\s*[=:]\s*(\S+)", re.IGNORECASE)

_MOUNTS: Final = Path("/proc/self/mountinfo")


def run(options: SiteOptions, settings: SlurmSettings | None, slurm_conf: Path, node_count: int) -> Iterator[Result]:
    """Check the state directory.

    Args:
        options: the site's options.
        settings: Slurm's settings; None if slurmctld did not answer.
        slurm_conf: Slurm's configuration file.
        node_count: how many nodes the cluster has.
    """
    place = options.state_dir
    existing = next(path for path in (place, *place.parents) if path.exists())
    yield _check_access(place, existing)
    yield _check_space(existing)
    if existing == place and os.geteuid() == 0:
        yield from _check_writing(place)
        yield from _check_records(place)
    yield _check_sharing(place, existing, node_count)
    yield from _check_visibility(place, settings, slurm_conf)


def _check_access(place: Path, existing: Path) -> Result:
    name = "state"
    weak = files.weak_place(place.parent)
    if weak is not None:
        message = f"others could replace {place}, since they may write to {weak}: the hooks refuse it"
        return error(name, message, f"chown root:root {weak} && chmod go-w {weak}, or choose another --state-dir")
    if existing != place:
        blocking = blocking_users(existing)
        if blocking is not None and blocking != existing:
            return error(name, f"users cannot enter {blocking}, on the way to {place}", f"chmod o+x {blocking}")
        return ok(name, f"{place} does not exist yet; the first job with --qpu creates it")
    status = place.lstat()
    mode = stat.S_IMODE(status.st_mode)
    hint = f"chown root:root {place} && chmod 0711 {place}"
    if not stat.S_ISDIR(status.st_mode):
        return error(name, f"{place} is not a directory", "remove it, or choose another --state-dir")
    if status.st_uid != 0 or mode & 0o022:
        return error(name, f"{place} belongs to uid {status.st_uid}, mode {mode:04o}: the hooks refuse it", hint)
    if not mode & stat.S_IXOTH:
        return error(name, f"users cannot enter {place} (mode {mode:04o}): their tasks fail", hint)
    for folder in place.parents:
        if not folder.stat().st_mode & stat.S_IXOTH:
            return error(name, f"users cannot enter {folder}, on the way to {place}", f"chmod o+x {folder}")
    return ok(name, f"{place}, mode {mode:04o}")


def _check_space(existing: Path) -> Result:
    name = "space"
    status = os.statvfs(existing)
    free = status.f_bavail * status.f_frsize
    shown = f"{free / 1024**2:.0f} MiB free" if free < 10 * 1024**3 else f"{free / 1024**3:.0f} GiB free"
    hint = "free some space: without a record no QPU is acquired, and jobs with --qpu fail"
    if status.f_flag & os.ST_RDONLY:
        return error(name, f"{existing} is on a read-only file system", "mount it read-write")
    if free < _NO_SPACE_BYTES or (status.f_files and not status.f_favail):
        return error(name, f"{existing}: {shown}, {status.f_favail} inodes free", hint)
    if free < _LOW_SPACE_BYTES:
        return warning(name, f"{existing}: {shown}", hint)
    return ok(name, shown)


def _check_writing(place: Path) -> Iterator[Result]:
    """Do what a record needs, as root: write, sync, lock. Shared file systems may refuse it (root_squash, no locks)."""
    trial = place / f".doctor.{os.getpid()}"
    try:
        fd = os.open(trial, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, b"x")
            os.fsync(fd)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.fchown(fd, 0, 0)
        finally:
            os.close(fd)
    except OSError as failure:
        hint = "root has to write, sync and lock files there; check no_root_squash and flock"
        yield error("state", f"root cannot use {place}: {failure.strerror}", hint)
    finally:
        with contextlib.suppress(OSError):
            trial.unlink()


def _check_records(place: Path) -> Iterator[Result]:
    """Look for records that this version leaves alone, and for those that were set aside."""
    name = "records"
    try:
        faults = [item.fault for item in inventory.read(place) if item.fault is not None]
        aside = inventory.set_aside(place)
    except RecordError as failure:
        yield error(name, failure.message, failure.hint)
        return
    newer = [fault for fault in faults if isinstance(fault, NewerRecordError)]
    for fault in newer[:_MAX_RECORDS]:
        yield warning(name, fault.message, fault.hint)
    if len(newer) > _MAX_RECORDS:
        yield warning(
            name, f"{len(newer) - _MAX_RECORDS} more records of a newer qrmi-slurm are left alone", newer[0].hint
        )
    others = [fault.message for fault in faults if fault not in newer] + [f"{path} was set aside" for path in aside]
    if others:
        yield warning(name, f"{others[0]} ({len(others)} in all)", "see them all with: qrmi-slurm status")
    elif not newer:
        yield ok(name, "each can be read")


def _check_sharing(place: Path, existing: Path, node_count: int) -> Result:
    name = "shared"
    kind = file_system(existing.resolve(), _MOUNTS.read_text(errors="replace"))
    if kind in _SHARED:
        return ok(name, f"{place} is on {kind}, which several nodes can share")
    if kind in _IN_MEMORY:
        hint = "choose a --state-dir on a disk; nothing else tells what a node held when it crashed"
        return warning(name, f"{place} is on {kind}, and lost at a reboot", hint)
    if node_count > 1:
        hint = "for srun or salloc with --qpu on several nodes, choose a --state-dir that all nodes share"
        return warning(name, f"{place} is on {kind}, which only this node sees", hint)
    return ok(name, f"{place} is on {kind}; the cluster has one node")


def file_system(path: Path, mountinfo: str) -> str:
    """Return the type of the file system that a path is on.

    Args:
        path: without links in it.
        mountinfo: the text of /proc/self/mountinfo.
    """
    found, best = "an unknown file system", -1
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        words = fields.split()
        if len(words) < 5 or not rest:
            continue
        # proc(5): spaces and the like are octal escapes.
        mount = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), words[4])
        # A later mount hides an earlier one at the same place.
        if path.is_relative_to(mount) and len(mount) >= best:
            found, best = rest.split()[0], len(mount)
    return found


def _check_visibility(place: Path, settings: SlurmSettings | None, slurm_conf: Path) -> Iterator[Result]:
    """Check that no folder that is private to each job hides the state directory from tasks."""
    name = "private /tmp"
    container = settings.text("JobContainerType") or settings.text("NamespaceType") if settings else ""
    hint = f"choose a --state-dir elsewhere, such as {DEFAULT_STATE_DIR}"
    if "tmpfs" in container or "linux" in container:
        hiding = [folder for folder in _private_folders(slurm_conf) if place.is_relative_to(folder)]
        if hiding:
            message = f"{container} gives each job its own {hiding[0]}, which hides {place} from its tasks"
            yield error(name, message, hint)
        else:
            yield ok(name, f"{container} does not hide {place}")
    elif any(place.is_relative_to(folder) for folder in _PRIVATE_DEFAULT):
        message = f"{place} is in a folder that other programs clean up, and that job_container/tmpfs hides"
        yield warning(name, message, hint)


def _private_folders(slurm_conf: Path) -> tuple[str, ...]:
    """Return the folders that are private to each job, from job_container.conf (namespace.yaml in newer releases)."""
    folders: list[str] = []
    for file_name in ("job_container.conf", "namespace.yaml"):
        with contextlib.suppress(OSError):
            text = (slurm_conf.parent / file_name).read_text(errors="replace")
            for match in _DIRS.finditer(text):
                folders += [folder.strip('"') for folder in match[1].split(",")]
    return tuple(folders) or _PRIVATE_DEFAULT
