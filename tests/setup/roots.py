"""Makes Debian roots of other releases and runs commands in them; standard library only.

    roots.py SUITE COMMAND [ARGUMENT ...]    make the root if needed, then run the command in it, in this checkout
    roots.py SUITE                           only make it, and print its folder

A root is a layer of the cache that environment.py owns: `root-<suite>-<hash>`, made by debootstrap with Debian packages
in it. It is never changed afterwards. A command sees it below an overlay in memory, with its own /tmp and processes, so
that runs do not disturb each other, and nothing is left of one that is killed.
"""

import ctypes
import os
import platform
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from setup import environment
from setup.environment import CACHE, CHECKOUT, DEBIAN_PACKAGES, SetupError, install_debian_packages

# The users that tests make get system uids from a range of the root's own: /proc and process limits are the machine's,
# and a cluster ends every process of its users by uid.
FIRST_SYSTEM_UID = {"bookworm": 21000, "trixie": 22000, "forky": 23000}
SYSTEM_UIDS = 1000
SUITES = tuple(FIRST_SYSTEM_UID)

NEEDED = ("ca-certificates", "debootstrap", "debian-archive-keyring", "mount")
# In each root, so that apt can read a mirror behind https, environment.py can run, and it can boot in a container.
INCLUDED = ("ca-certificates", "dbus", "python3", "systemd-sysv")
RECIPE = "1"  # raise it when a change here calls for new roots
SCRIPTS = Path("/usr/share/debootstrap/scripts")
MIRROR_DEADLINE_S = 30.0
# policy-rc.d: 101 forbids starting services. It is there only while packages are installed.
NO_SERVICES = "#!/bin/sh\nexit 101\n"

# What reaches the network on this machine does so in a root: names, pip's index, certificate authorities.
OF_THE_MACHINE = ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt")
# Settings that would lead a command in a root to folders of the machine.
NOT_OF_THE_MACHINE = ("TMPDIR", "TMP", "TEMP")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CANNOT_MOUNT = "run this as root with CAP_SYS_ADMIN; in a container: docker run --privileged"

END_GRACE_S = 20.0  # between SIGTERM and the end of everything in the root
CLONE_NEWNS, CLONE_NEWPID = 0x00020000, 0x20000000  # sched.h
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def made(suite: str, packages: Sequence[str] = DEBIAN_PACKAGES) -> Path:
    """Return the folder of a root, made if needed; do not write into it.

    Args:
        suite: a release of Debian, one of SUITES.
        packages: the Debian packages in it, besides the minimal system and Python. Their services are not started.

    Raises:
        SetupError: it cannot be made; the message says why and what to do.
    """
    if suite not in SUITES:
        raise SetupError(f"there is no root called {suite}; there are {', '.join(SUITES)}")
    install_debian_packages(NEEDED)
    kind = f"root-{suite}"
    with (
        environment.locked(f"{kind}.lock"),
        environment.cached(kind, [RECIPE, suite, *INCLUDED, *packages]) as (root, is_missing),
    ):
        if is_missing:
            _make(suite, root, packages)
    return root


def cache_of(root: Path) -> Path:
    """Return the folder that is the cache in a root: the layers in it are made for the root's Python and Slurm."""
    return CACHE / f"cache-{_suite_of(root)}"


def entering(root: Path, command: Sequence[str | Path]) -> list[str]:
    """Return the words of a command that runs another one in a root, in this checkout.

    The root is below an overlay in memory. /tmp is empty, this checkout has its usual path, the cache is the suite's
    own; /dev, /sys and the network are the machine's. SIGTERM reaches the command, and whatever it leaves running ends
    with it.
    """
    return [sys.executable, "-P", str(Path(__file__).resolve()), "--in", str(root), *map(str, command)]


# --- make ---------------------------------------------------------------------------------------------------------


def _make(suite: str, root: Path, packages: Sequence[str]) -> None:
    started_s = time.monotonic()
    mirror = _mirror()
    _require_mirror(mirror, suite)
    script = SCRIPTS / suite if (SCRIPTS / suite).exists() else SCRIPTS / "sid"
    include = f"--include={','.join(INCLUDED)}"
    # In namespaces of its own: debootstrap leaves /proc mounted when it is killed.
    alone = [sys.executable, "-P", __file__, "--alone", "debootstrap", "--variant=minbase", include]
    environment.run(f"making a Debian {suite} root from {mirror}", [*alone, suite, root, mirror, script])
    _write(root / "etc/dpkg/dpkg.cfg.d/no-fsync", "force-unsafe-io\n")
    _write(root / "etc/apt/apt.conf.d/90machine", _acquire_settings())
    first = FIRST_SYSTEM_UID[suite]
    with (root / "etc/login.defs").open("a") as login_defs:
        for kind in ("UID", "GID"):
            login_defs.write(f"SYS_{kind}_MIN {first}\nSYS_{kind}_MAX {first + SYSTEM_UIDS - 1}\n")
    policy = root / "usr/sbin/policy-rc.d"
    _write(policy, NO_SERVICES)
    policy.chmod(0o755)
    apt = ["apt-get", "--quiet", "--yes"]
    for what, arguments in (
        ("", ["update"]),
        (f"installing Debian packages in the {suite} root", ["--no-install-recommends", "install", *packages]),
        ("", ["clean"]),
    ):
        change = [sys.executable, "-P", __file__, "--change", str(root), *apt, *arguments]
        environment.run(what, change, {**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
    policy.unlink()
    environment.say(f"made the {suite} root in {time.monotonic() - started_s:.0f} s")


def _mirror() -> str:
    """Return the mirror from which this machine's own Debian packages come.

    Raises:
        SetupError: it is not a Debian, or none is configured.
    """
    release = platform.freedesktop_os_release()
    suite = release.get("VERSION_CODENAME", "")
    # Without release info it lists what is configured, whether or not `apt-get update` has run.
    command = ["apt-get", "indextargets", "--no-release-info", "--format", "$(RELEASE) $(COMPONENT) $(REPO_URI)"]
    listed = subprocess.run([*command, "Created-By: Packages"], capture_output=True, text=True).stdout
    found = re.search(rf"^{re.escape(suite)} main (\S+)$", listed, re.MULTILINE)
    if release["ID"] != "debian" or not found:
        raise SetupError(f"no mirror of Debian {suite} is configured in /etc/apt; roots are made from the machine's")
    return found[1].rstrip("/")


def _require_mirror(mirror: str, suite: str) -> None:
    """Make sure that the mirror answers: debootstrap tries for a long time, and does not say why it failed."""
    url = f"{mirror}/dists/{suite}/InRelease"
    try:
        with urllib.request.urlopen(url, timeout=MIRROR_DEADLINE_S):
            pass
    except (OSError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", error)
        raise SetupError(
            f"cannot make the {suite} root: {url} cannot be read: {reason}\n"
            "check the network, http_proxy, and the mirror in /etc/apt; then run this again"
        ) from error


def _acquire_settings() -> str:
    """Return how this machine's apt reaches its mirror: proxies, certificates, checks of dates."""
    dumped = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    kept = [line for line in dumped.splitlines() if re.match(r"Acquire::(?!IndexTargets|cdrom)\S+ ", line)]
    return "".join(f"{line}\n" for line in kept)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


# --- enter --------------------------------------------------------------------------------------------------------


def _in_namespaces(prepare: Callable[[], None], command: Sequence[str], *, is_making: bool = False) -> int:
    """Run a command in new mount and process namespaces, with which everything in them ends.

    Args:
        prepare: makes the mounts; runs in the namespaces.
        command: what to run then.
        is_making: whether it makes a root: then nothing is worth waiting for at SIGTERM, or if the caller is killed.

    Returns:
        The exit status of the command: 128 and more for a signal, 1 if it cannot be run.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if is_making:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if libc.unshare(CLONE_NEWNS | CLONE_NEWPID) != 0:
        print(f"error: cannot unshare: {os.strerror(ctypes.get_errno())}; {CANNOT_MOUNT}", file=sys.stderr)
        return 1
    first = os.fork()
    if first == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        try:
            prepare()
        except SetupError as error:
            print(f"error: {error}", file=sys.stderr)
            os._exit(1)
        os._exit(_reap_until_the_end_of(command))
    _pass_signals_to(first, signal.SIGKILL if is_making else signal.SIGTERM)
    _, status = os.waitpid(first, 0)
    return _exit_status(status)


def _reap_until_the_end_of(command: Sequence[str]) -> int:
    """Be process 1: run the command, reap what it leaves, and return its exit status."""
    child = os.fork()
    if child == 0:
        try:
            os.execvp(command[0], list(command))  # noqa: S606
        except OSError as error:
            print(f"error: {command[0]}: {error.strerror}", file=sys.stderr)
        os._exit(127)
    _pass_signals_to(child, signal.SIGTERM)
    signal.signal(signal.SIGALRM, lambda _signal, _frame: os._exit(128 + signal.SIGTERM))
    while True:
        pid, status = os.wait()
        if pid == child:
            return _exit_status(status)


def _pass_signals_to(pid: int, sent: signal.Signals) -> None:
    """Pass SIGTERM on, with a time limit; not SIGINT, which a terminal sends to all processes anyway."""

    def passed(_signal: int, _frame: FrameType | None) -> None:
        os.kill(pid, sent)
        if os.getpid() == 1:
            signal.setitimer(signal.ITIMER_REAL, END_GRACE_S)

    signal.signal(signal.SIGTERM, passed)
    signal.signal(signal.SIGINT, lambda _signal, _frame: None)  # SIG_IGN would be inherited


def _exit_status(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _mount_alone() -> None:
    _mount("--make-rprivate", "/")
    _mount("-t", "proc", "proc", "/proc")


def _mount_changeable(root: Path) -> None:
    """Enter the root itself, to install packages."""
    _mount("--make-rprivate", "/")
    _mount("--bind", root, root)
    _enter(root)


def _mount_overlay(root: Path) -> None:
    """Enter the root below an overlay that is gone afterwards, with the checkout and a cache."""
    _mount("--make-rprivate", "/")
    scratch = CACHE / "entered"  # the same for every run: the mount on it is seen only in this namespace
    scratch.mkdir(exist_ok=True)
    _mount("-t", "tmpfs", "-o", "mode=0755", "tmpfs", scratch)
    for name in ("upper", "work", "root", "tmp"):
        (scratch / name).mkdir()
    (scratch / "tmp").chmod(0o1777)
    top = scratch / "root"
    options = f"lowerdir={root},upperdir={scratch / 'upper'},workdir={scratch / 'work'}"
    _mount("-t", "overlay", "-o", options, "overlay", top)
    _bind(scratch / "tmp", top / "tmp")
    cache = cache_of(root)
    cache.mkdir(exist_ok=True)
    for place, target in ((CHECKOUT, CHECKOUT), (cache, CACHE)):
        _bind(place, top / target.relative_to("/"))
    _enter(top)
    os.chdir(CHECKOUT)


def _suite_of(root: Path) -> str:
    found = re.search(r"^VERSION_CODENAME=(\w+)$", (root / "etc/os-release").read_text(), re.MULTILINE)
    if not found:
        raise SetupError(f"{root} is not a root: its /etc/os-release has no VERSION_CODENAME")
    return found[1]


def _enter(top: Path) -> None:
    _mount("-t", "proc", "proc", top / "proc")
    for name in ("dev", "sys"):
        _mount("--rbind", f"/{name}", top / name)
    for name in (*OF_THE_MACHINE, str(Path.home() / ".config/pip/pip.conf")):
        if Path(name).is_file():
            _bind(Path(name).resolve(), top / name[1:])
    # Not chroot(2), which nsenter(1) escapes: a test that enters a namespace made in the root must find the root there.
    os.chdir(top)
    _succeed("pivot_root", ".", ".")
    _succeed("umount", "--lazy", ".")
    os.chroot(".")
    os.chdir("/")
    for variable in NOT_OF_THE_MACHINE:
        os.environ.pop(variable, None)
    os.environ["PATH"] = PATH


def _bind(source: Path, target: Path) -> None:
    """Bind a file or a folder, and make the target if needed."""
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    elif not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # a link that leads nowhere here
        target.touch()
    _mount("--bind", source, target)


def _mount(*arguments: str | Path) -> None:
    _succeed("mount", *arguments)


def _succeed(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise SetupError(f"{done.stderr.strip()}\n{CANNOT_MOUNT}")


# --- the command line ---------------------------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    """Make a root and run a command in it.

    Returns:
        The exit status: the command's, or 1 if the root cannot be made or entered.
    """
    inner: Mapping[str, Callable[[Path], None]] = {"--in": _mount_overlay, "--change": _mount_changeable}
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    first, *rest = arguments
    if first == "--alone":
        return _in_namespaces(_mount_alone, rest, is_making=True)
    if first in inner:
        return _in_namespaces(lambda: inner[first](Path(rest[0])), rest[1:], is_making=first == "--change")
    try:
        environment.start()
        root = made(first)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted while making a root; nothing is left running, the next run starts anew", file=sys.stderr)
        return 130
    if not rest:
        print(root)
        return 0
    words = entering(root, rest)
    os.execv(words[0], words)  # noqa: S606


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
