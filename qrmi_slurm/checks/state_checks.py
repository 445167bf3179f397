"""The files' part of a doctor's visit: the config, the state directory, and what may take them away."""

import contextlib
import fcntl
import os
import re
import stat
from importlib import metadata
from pathlib import Path
from typing import Final

from qrmi_slurm import files
from qrmi_slurm.calls import installed
from qrmi_slurm.checks.hook_checks import blocking_users
from qrmi_slurm.checks.result import Line, error, ok, warning
from qrmi_slurm.config import config_file
from qrmi_slurm.errors import BackendError, ConfigError
from qrmi_slurm.slurm.plugstack import SiteOptions
from qrmi_slurm.slurm.settings import SlurmSettings
from qrmi_slurm.validation import validate
from qrmi_slurm.validation.rules import Severity

# A record of one QPU is 2 kB; below this a busy node has hardly room for a day.
_LOW_SPACE_BYTES: Final = 100 * 1024 * 1024
_NO_SPACE_BYTES: Final = 1024 * 1024

# proc(5): types of file systems that several nodes may share.
_SHARED: Final = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "fuse.sshfs", "gfs2", "glusterfs", "gpfs"}
    | {"lustre", "nfs", "nfs4", "ocfs2", "orangefs", "panfs", "pvfs2", "smb3", "virtiofs", "wekafs"}
)
_IN_MEMORY: Final = frozenset({"tmpfs", "ramfs"})

# job_container.conf(5), namespace.yaml(5): what a job gets of its own, where Dirs= says nothing else.
_PRIVATE_DEFAULT: Final = ("/tmp", "/dev/shm")  # noqa: S108 (names that Slurm mounts over)
_DIRS: Final = re.compile(r"(?:^|\s)dirs\s*[=:]\s*(\S+)", re.IGNORECASE)

_MOUNTS: Final = Path("/proc/self/mountinfo")


def config_lines(options: SiteOptions) -> list[Line]:
    """Check the config's owner and mode, its text, and its types against the installed QRMI."""
    path = options.config_path
    try:
        status = path.stat()
    except PermissionError:
        return [warning("config", f"{path} cannot be seen by this user", "run this as root")]
    except OSError as failure:
        hint = "compute nodes need it; see: qrmi-slurm slurm-conf, and README for an example"
        return [error("config", f"{path}: {failure.strerror}", hint)]
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != 0:
        return [
            error("config", f"{path} belongs to uid {status.st_uid}: the hooks refuse it", f"chown root:root {path}")
        ]
    if mode & 0o022:
        message = f"{path} can be changed by others (mode {mode:04o}): the hooks refuse it"
        return [error("config", message, f"chmod 0600 {path}")]
    found = []
    if mode & 0o044:
        found.append(warning("config", f"{path} can be read by others (mode {mode:04o})", f"chmod 0600 {path}"))
    if not os.access(path, os.R_OK):
        found.append(warning("config", f"{path} cannot be read by this user", "run this as root"))
        return found
    return [*found, *_config_text(path)]


def _config_text(path: Path) -> list[Line]:
    try:
        members = installed.known_members()
        qrmi = ok("QRMI", f"version {_qrmi_version()} has the type of every resource")
    except BackendError as failure:
        return [error("QRMI", failure.message, failure.hint)]
    try:
        diagnosis = validate.validate_file(path, members)
        resources = list(config_file.load(path).resources.values()) if diagnosis.is_valid() else []
    except ConfigError as failure:
        return [error("config", failure.message, failure.hint), qrmi]
    errors, warnings = diagnosis.count(Severity.ERROR), diagnosis.count(Severity.WARNING)
    hint = f"qrmi-slurm validate-config {path}"
    if errors:
        return [error("config", f"{path} has {errors} {'error' if errors == 1 else 'errors'}", hint), qrmi]
    lacking = []
    for resource in resources:
        try:
            installed.installed_type(resource.type, members)
        except BackendError:
            lacking.append(f"{resource.name} ({resource.type})")
    if lacking:
        message = f"the installed QRMI {_qrmi_version()} lacks the type of {', '.join(lacking)}"
        qrmi = error("QRMI", message, "install another version of qrmi in the venv of qrmi-slurm")
    if warnings:
        return [warning("config", f"{path} has {warnings} {'warning' if warnings == 1 else 'warnings'}", hint), qrmi]
    names = ", ".join(resource.name for resource in resources[:5]) + (", ..." if len(resources) > 5 else "")
    return [ok("config", f"{path}: {names}" if names else f"{path}, without resources"), qrmi]


def _qrmi_version() -> str:
    try:
        return metadata.version("qrmi")
    except metadata.PackageNotFoundError:
        return "unknown"


def state_lines(options: SiteOptions, settings: SlurmSettings | None, slurm_conf: Path, node_count: int) -> list[Line]:
    """Check the state directory: owner, mode, space, whether it can be written, shared, and seen by tasks.

    Args:
        options: the site's.
        settings: Slurm's; None where slurmctld cannot be asked.
        slurm_conf: Slurm's configuration file.
        node_count: how many nodes the cluster has.
    """
    place = options.state_dir
    existing = next(path for path in (place, *place.parents) if path.exists())
    found = [_owner_and_mode(place, existing), _room(existing)]
    if existing == place and os.geteuid() == 0:
        found.append(_writing(place))
    found.append(_sharing(place, existing, node_count))
    found += _hiding(place, settings, slurm_conf)
    return [line for line in found if line is not None]


def _owner_and_mode(place: Path, existing: Path) -> Line | None:
    name = "state"
    weak = files.weak_place(place.parent)
    if weak is not None:
        message = f"others could take the place of {place}: they may write to {weak}; the hooks refuse it"
        return error(name, message, f"chown root:root {weak} && chmod go-w {weak}, or choose another --state-dir")
    blocking = blocking_users(existing)
    if existing != place:
        if blocking is not None and blocking != existing:
            return error(name, f"users cannot pass through {blocking}, on the way to {place}", f"chmod o+x {blocking}")
        return ok(name, f"{place} is not there yet: the first job with --qpu makes it")
    status = place.lstat()
    mode = stat.S_IMODE(status.st_mode)
    mend = f"chown root:root {place} && chmod 0711 {place}"
    if not stat.S_ISDIR(status.st_mode):
        return error(name, f"{place} is no folder", "remove it, or choose another --state-dir")
    if status.st_uid != 0 or mode & 0o022:
        return error(name, f"{place} belongs to uid {status.st_uid}, mode {mode:04o}: the hooks refuse it", mend)
    if not mode & stat.S_IXOTH:
        return error(name, f"users cannot pass through {place} (mode {mode:04o}): their tasks fail", mend)
    for folder in place.parents:
        if not folder.stat().st_mode & stat.S_IXOTH:
            return error(name, f"users cannot pass through {folder}, on the way to {place}", f"chmod o+x {folder}")
    return ok(name, f"{place}, mode {mode:04o}")


def _room(existing: Path) -> Line:
    status = os.statvfs(existing)
    free = status.f_bavail * status.f_frsize
    shown = f"{free / 1024**2:.0f} MiB free" if free < 10 * 1024**3 else f"{free / 1024**3:.0f} GiB free"
    hint = "make room: without a record nothing is acquired, and jobs with --qpu fail"
    if status.f_flag & os.ST_RDONLY:
        return error("space", f"{existing} is on a file system that is read-only", "mount it for writing")
    if free < _NO_SPACE_BYTES or (status.f_files and not status.f_favail):
        return error("space", f"{existing}: {shown}, {status.f_favail} files more", hint)
    if free < _LOW_SPACE_BYTES:
        return warning("space", f"{existing}: {shown}", hint)
    return ok("space", shown)


def _writing(place: Path) -> Line | None:
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
        hint = "root has to write, sync and lock there: no_root_squash, flock"
        return error("state", f"{place} cannot be used by root: {failure.strerror}", hint)
    finally:
        with contextlib.suppress(OSError):
            trial.unlink()
    return None


def _sharing(place: Path, existing: Path, node_count: int) -> Line:
    kind = file_system(existing.resolve(), _MOUNTS.read_text(errors="replace"))
    if kind in _SHARED:
        return ok("shared", f"{place} is on {kind}, for jobs of several nodes")
    if kind in _IN_MEMORY:
        hint = "choose a --state-dir on a disk: what a node held when it crashed is known there alone"
        return warning("shared", f"{place} is on {kind} and lost at a reboot", hint)
    if node_count > 1:
        hint = "where srun or salloc take several nodes with --qpu: --state-dir on a file system that all share"
        return warning("shared", f"{place} is on {kind}, which is this node's alone", hint)
    return ok("shared", f"{place} is on {kind}; the cluster has one node")


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
        # proc(5): blanks and the like are octal escapes there.
        mount = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), words[4])
        # A later mount lies over an earlier one of the same place.
        if path.is_relative_to(mount) and len(mount) >= best:
            found, best = rest.split()[0], len(mount)
    return found


def _hiding(place: Path, settings: SlurmSettings | None, slurm_conf: Path) -> list[Line]:
    name = "private /tmp"
    container = settings.text("JobContainerType") or settings.text("NamespaceType") if settings else ""
    hint = "choose a --state-dir outside of it: /var/spool/qrmi-slurm"
    if "tmpfs" in container or "linux" in container:
        for folder in _private_folders(slurm_conf):
            if place.is_relative_to(folder):
                message = f"{container} gives each job a {folder} of its own, which hides {place} from its tasks"
                return [error(name, message, hint)]
        return [ok(name, f"{container} does not hide {place}")]
    if any(place.is_relative_to(folder) for folder in _PRIVATE_DEFAULT):
        return [warning(name, f"{place} is where others clean up, and what job_container/tmpfs hides", hint)]
    return []


def _private_folders(slurm_conf: Path) -> tuple[str, ...]:
    """Return what each job has of its own by job_container.conf (namespace.yaml in newer releases)."""
    folders: list[str] = []
    for file_name in ("job_container.conf", "namespace.yaml"):
        with contextlib.suppress(OSError):
            text = (slurm_conf.parent / file_name).read_text(errors="replace")
            for match in _DIRS.finditer(text):
                folders += [folder.strip('"') for folder in match[1].split(",")]
    return tuple(folders) or _PRIVATE_DEFAULT
