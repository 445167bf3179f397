"""The hooks' part of a doctor's visit: is each of Slurm's settings ours, and can those run it who must?"""

import glob
import os
import pwd
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from qrmi_slurm.checks.installation import Installation
from qrmi_slurm.checks.result import Line, error, ok, warning
from qrmi_slurm.slurm.settings import SlurmSettings

_TRIAL_TIMEOUT_S: Final = 20.0
_NOBODY: Final = "nobody"
_MAX_SCRIPT_BYTES: Final = 64 * 1024

# What a task's hook needs before its first line.
_TRIAL: Final = "import qrmi_slurm.hooks.task_prolog, qrmi_slurm.slurm.environ"


def lines(settings: SlurmSettings, installation: Installation) -> list[Line]:
    """Check Prolog, TaskProlog and Epilog."""
    found = [
        _hook("Prolog", settings.all("Prolog"), installation.prolog),
        _hook("TaskProlog", settings.all("TaskProlog"), installation.task_prolog),
        _hook("Epilog", settings.all("Epilog"), installation.epilog),
    ]
    user = settings.text("SlurmdUser")
    if user and "(0)" not in user and user != "root":
        found.append(error("SlurmdUser", f"slurmd runs as {user}", "Prolog and Epilog need root: SlurmdUser=root"))
    found.append(_users_can_run(settings.text("TaskProlog"), installation))
    return found


def _hook(setting: str, values: Sequence[str], ours: Path) -> Line:
    wanted = f"{setting}={ours} (or a link to it in the folder of a glob); then: scontrol reconfigure"
    if not values:
        return error(setting, "is not set", wanted)
    scripts: list[Path] = []
    for value in values:
        matches = [Path(path) for path in sorted(glob.glob(value))] if setting != "TaskProlog" else [Path(value)]
        if not matches or not matches[0].exists():
            return error(setting, f"{value} names no file on this node: jobs fail, and nodes drain", wanted)
        scripts += matches
    found = [(script, _what_it_is(script, ours)) for script in scripts]
    for script, what in found:
        if what and not os.access(script, os.X_OK):
            return error(setting, f"{script} is not executable", f"chmod 0755 {script}")
    script, what = next(((script, what) for script, what in found if what), (scripts[0], ""))
    if what == "another":
        hint = f"this command belongs to {ours.parent}: use that installation's, or change {setting}"
        return warning(setting, f"{script} is of another installation", hint)
    if not what:
        return error(setting, f"{', '.join(map(str, scripts))}: none of them is ours", wanted)
    count = sum(1 for _, what in found if what)
    if count > 1:
        places = ", ".join(str(script) for script, what in found if what)
        return error(setting, f"ours stands in it {count} times", f"keep one of {places}")
    through = f" through {script}" if script.resolve() != ours.resolve() or script.is_symlink() else ""
    return ok(setting, f"{ours}{through}")


def _what_it_is(script: Path, ours: Path) -> str:
    """Return `ours`, `another` (installation's), or nothing; a script that names ours counts."""
    resolved = script.resolve()
    if resolved == ours.resolve():
        return "ours"
    if resolved.name == ours.name:
        return "another"
    try:
        with resolved.open("rb") as file:
            content = file.read(_MAX_SCRIPT_BYTES)
    except OSError:
        return ""
    code = [line for line in content.splitlines() if not line.lstrip().startswith(b"#")]
    if any(os.fsencode(ours) in line for line in code):
        return "ours"
    return "another" if any(os.fsencode(f"/{ours.name}") in line for line in code) else ""


def _users_can_run(setting: str, installation: Installation) -> Line:
    """Try as a user without groups what TaskProlog does; where that cannot be tried, look at each folder's mode."""
    name = "users"
    paths = [Path(setting)] if setting else []
    paths += [installation.task_prolog, installation.python]
    for path in paths:
        blocking = blocking_users(path)
        if blocking is not None:
            return error(
                name,
                f"job users cannot enter or read {blocking}, on the way to {path}: their tasks fail",
                f"chmod o+rx {blocking}, or install where they may: /opt",
            )
    if os.geteuid() != 0:
        return warning(name, "whether they can run Python was not tried", "run this as root")
    try:
        account = pwd.getpwnam(_NOBODY)
        done = subprocess.run(
            [str(installation.python), "-I", "-X", "utf8", "-c", _TRIAL],
            user=account.pw_uid,
            group=account.pw_gid,
            extra_groups=[],
            cwd="/",
            env={},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TRIAL_TIMEOUT_S,
            check=False,
        )
    except KeyError:
        return warning(name, f"this node has no user {_NOBODY} to try it as", "submit a job with --qpu to see")
    except (OSError, subprocess.TimeoutExpired) as failure:
        reason = getattr(failure, "strerror", None) or "it does not end"
        message = f"{_NOBODY} cannot run {installation.python}: {reason}"
        return error(name, message, "install where users may enter: /opt")
    if done.returncode != 0:
        last = (done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no word"])[-1]
        hint = f"chmod -R o+rX {installation.prefix}"
        return error(name, f"as {_NOBODY}, {installation.python} cannot import qrmi_slurm: {last[:200]}", hint)
    return ok(name, f"can run TaskProlog and {installation.python}")


def blocking_users(path: Path) -> Path | None:
    """Return the first folder or file, on the way to a file and along its links, that others may not enter or read.

    Args:
        path: an absolute path; one that does not exist blocks nobody.
    """
    walked = Path("/")
    parts = list(path.parts[1:])
    for _ in range(200):  # more steps than any sane path has: a loop of links ends here
        if not parts:
            break
        following = walked / parts.pop(0)
        try:
            status = following.lstat()
        except OSError:
            return None
        if stat.S_ISLNK(status.st_mode):
            target = following.readlink()
            parts = [*(target.parts[1:] if target.is_absolute() else target.parts), *parts]
            walked = Path("/") if target.is_absolute() else walked
            continue
        if following.name == "..":
            walked = walked.parent
            continue
        needed = stat.S_IXOTH if stat.S_ISDIR(status.st_mode) else stat.S_IROTH | stat.S_IXOTH
        if status.st_mode & needed != needed:
            return following
        walked = following
    return None
