"""Checks of the hooks: whether Slurm's settings run this installation's, and whether users can run TaskProlog."""

import glob
import os
import pwd
import stat
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Final

from qrmi_slurm import processes
from qrmi_slurm.checks.installation import PERMANENT, Installation
from qrmi_slurm.checks.result import Result, error, ok, warning
from qrmi_slurm.checks.user_access import blocking_users
from qrmi_slurm.slurm.settings import SlurmSettings

_TRIAL_TIMEOUT_S: Final = 20.0
_NOBODY: Final = "nobody"
_MAX_SCRIPT_BYTES: Final = 64 * 1024

# What TaskProlog imports first.
_TRIAL: Final = "import qrmi_slurm.hooks.task_prolog, qrmi_slurm.slurm.environ"


class _Owner(Enum):
    """Whose hook a script is, or runs."""

    THIS = "this installation"
    ANOTHER = "another installation"
    NONE = "none"


def run(settings: SlurmSettings, installation: Installation, by_plugin: Path | None = None) -> list[Result]:
    """Check Prolog, TaskProlog and Epilog.

    Args:
        settings: Slurm's settings.
        installation: the installation whose hooks they should run.
        by_plugin: the TaskProlog that the plugin runs (`--task-prolog`); None if only slurm.conf may name one.
    """
    by_slurm = settings.all("TaskProlog")
    found = [
        _check_permanence(_check_hook("Prolog", settings.all("Prolog"), installation.prolog), settings, installation),
        _check_hook("TaskProlog", by_slurm, installation.task_prolog)
        if by_plugin is None
        else _check_task_prolog(by_plugin, by_slurm, installation.task_prolog),
        _check_permanence(_check_hook("Epilog", settings.all("Epilog"), installation.epilog), settings, installation),
    ]
    user = settings.text("SlurmdUser")
    if user and "(0)" not in user and user != "root":
        hint = "set SlurmdUser=root; Prolog and Epilog need it"
        found.append(error("SlurmdUser", f"slurmd runs as {user}", hint))
    used = str(by_plugin) if by_plugin is not None else settings.text("TaskProlog")
    found.append(_check_users(used, installation))
    return found


def _check_permanence(result: Result, settings: SlurmSettings, installation: Installation) -> Result:
    """Warn where a setting names the hook in the venv itself."""
    ours = installation.bin / f"qrmi-slurm-{result.name.lower()}"
    if result.level != "ok" or settings.all(result.name) != [str(ours)]:
        return result
    permanent = PERMANENT / result.name.lower()
    hint = f"make -C cli_filter install PREFIX={installation.prefix}, and set {result.name}={permanent}"
    return warning(result.name, f"{ours} is in the installation itself: without it, every job drains its node", hint)


def _check_task_prolog(path: Path, by_slurm: Sequence[str], ours: Path) -> Result:
    """Check the TaskProlog that the plugin runs, by the plugin's rules (cli_filter/program.c), and Slurm's own."""
    name, option = "TaskProlog", f"--task-prolog={path}"
    try:
        status = path.stat()
    except OSError as failure:
        return error(name, f"{option}: {failure.strerror} on this node: jobs with --qpu fail", f"name {ours} there")
    if not stat.S_ISREG(status.st_mode):
        return error(name, f"{option} is not a file: jobs with --qpu fail", f"name {ours} there")
    if status.st_uid != 0 or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        hint = f"chown root {path}; chmod 0755 {path}"
        return error(name, f"{option} can be changed by others than root: the plugin does not run it", hint)
    if not status.st_mode & stat.S_IXOTH:
        return error(name, f"{option} is not executable for users: jobs with --qpu fail", f"chmod 0755 {path}")
    owner = _owner_of(path, ours)
    if owner is _Owner.NONE:
        return error(name, f"{option} does not run {ours.name}", f"name {ours} there")
    others = [Path(value) for value in by_slurm if _owner_of(Path(value), ours) is not _Owner.NONE]
    if others:
        which = "another version" if _owner_of(others[0], ours) is not owner else "the same"
        message = f"{option} counts; {others[0]} of slurm.conf, which runs {which}, does nothing in these jobs"
        return warning(name, message, "remove TaskProlog= from slurm.conf: it runs for each task of each job")
    if owner is _Owner.ANOTHER:
        hint = f"this command belongs to {ours.parent}: run the other installation's, or change --task-prolog"
        return warning(name, f"{option} belongs to another installation", hint)
    return ok(name, f"{path}, run by the plugin for jobs with --qpu")


def _check_hook(setting: str, values: Sequence[str], ours: Path) -> Result:
    wanted = f"set {setting}={ours}, or link it into the folder of a glob, and run scontrol reconfigure"
    if not values:
        by_plugin = f"add --task-prolog={ours} to the plugin's line in plugstack.conf"
        return error(setting, "is not set", by_plugin if setting == "TaskProlog" else wanted)
    scripts: list[Path] = []
    for value in values:
        matches = [Path(path) for path in sorted(glob.glob(value))] if setting != "TaskProlog" else [Path(value)]
        if not matches or not matches[0].exists():
            is_permanent = Path(value).parent == PERMANENT
            hint = f"make -C cli_filter install PREFIX={ours.parent.parent}" if is_permanent else wanted
            return error(setting, f"{value} matches no file on this node: jobs fail, and nodes drain", hint)
        scripts += matches
    owners = {script: _owner_of(script, ours) for script in scripts}
    found = [script for script in scripts if owners[script] is not _Owner.NONE]
    if not found:
        return error(setting, f"does not run {ours.name}: {', '.join(map(str, scripts))}", wanted)
    for script in found:
        if not os.access(script, os.X_OK):
            return error(setting, f"{script} is not executable", f"chmod 0755 {script}")
    script = found[0]
    if owners[script] is _Owner.ANOTHER:
        hint = f"this command belongs to {ours.parent}: run the other installation's, or change {setting}"
        return warning(setting, f"{script} belongs to another installation", hint)
    if len(found) > 1:
        return error(setting, f"runs {ours.name} {len(found)} times", f"keep one of {', '.join(map(str, found))}")
    through = f" through {script}" if script.resolve() != ours.resolve() or script.is_symlink() else ""
    return ok(setting, f"{ours}{through}")


def _owner_of(script: Path, ours: Path) -> _Owner:
    """Tell whose hook a script is; a script that contains a hook's path counts as that hook."""
    resolved = script.resolve()
    if resolved == ours.resolve():
        return _Owner.THIS
    if resolved.name == ours.name:
        return _Owner.ANOTHER
    try:
        with resolved.open("rb") as file:
            content = file.read(_MAX_SCRIPT_BYTES)
    except OSError:
        return _Owner.NONE
    code = [line for line in content.splitlines() if not line.lstrip().startswith(b"#")]
    if any(os.fsencode(ours) in line for line in code):
        return _Owner.THIS
    return _Owner.ANOTHER if any(os.fsencode(f"/{ours.name}") in line for line in code) else _Owner.NONE


def _check_users(task_prolog: str, installation: Installation) -> Result:
    """Check that users can run TaskProlog: by the modes of the folders, then by trying it."""
    name = "users"
    paths = [Path(task_prolog)] if task_prolog else []
    paths += [installation.task_prolog, installation.python]
    for path in paths:
        blocking = blocking_users(path)
        if blocking is not None:
            message = f"users cannot enter or read {blocking}, which {path} needs: their tasks fail"
            return error(name, message, f"chmod o+rx {blocking}, or install under /opt")
    if os.geteuid() != 0:
        return warning(name, "did not try whether users can run Python", "run this as root")
    return _try_as_nobody(name, installation)


def _try_as_nobody(name: str, installation: Installation) -> Result:
    """Run the imports of TaskProlog as a user without groups."""
    try:
        account = pwd.getpwnam(_NOBODY)
        done = processes.run(
            [str(installation.python), "-I", "-X", "utf8", "-c", _TRIAL],
            _TRIAL_TIMEOUT_S,
            wants_stderr=True,
            user=account.pw_uid,
            group=account.pw_gid,
            extra_groups=[],
            cwd="/",
            env={},
        )
    except KeyError:
        return warning(name, f"this node has no user {_NOBODY} to try it as", "submit a job with --qpu to find out")
    except OSError as failure:
        reason = getattr(failure, "strerror", None) or f"not finished after {_TRIAL_TIMEOUT_S:.0f} s"
        message = f"{_NOBODY} cannot run {installation.python}: {reason}"
        return error(name, message, "install in a folder that users may enter, such as /opt")
    if done.exit_code != 0:
        last = (done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no output"])[-1]
        hint = f"chmod -R o+rX {installation.prefix}"
        return error(name, f"as {_NOBODY}, {installation.python} cannot import qrmi_slurm: {last[:200]}", hint)
    return ok(name, f"can run TaskProlog and {installation.python}")
