"""Sets up the tests and the demo on Debian 12, then runs a command there; standard library only.

    environment.py COMMAND [ARGUMENT ...]      run it with the environment's bin/ first in PATH
    environment.py                             only set up, and print the environment's folder

It fills a cache folder that jobs' users may enter; the checkout may be below /root, where they cannot. Each layer is
named after a hash of its content, so two checkouts do not disturb each other, and an unchanged one costs little.

    uv-<hash>       uv, which installs the other layers from its own cache in `cache`; and pip
    base-<hash>     a venv with every dependency
    suite-<hash>    a venv on top of it with this checkout's wheel and SPANK stub
    qrmi-<hash>     a venv with the oldest supported QRMI, for the tests that use it
    root-<suite>-…  a Debian of another release; roots.py makes it and runs commands in it
    wheels-<hash>   the packages `pip install .` downloads, for the tests that install as an admin does
"""

import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

CHECKOUT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("QRMI_SLURM_CACHE", "/var/cache/qrmi-slurm"))

DEBIAN_PACKAGES = (
    "ca-certificates",
    "gcc",
    "libc6-dbg",  # valgrind does not start without it
    "libc6-dev",
    "libslurm-dev",
    "lua-check",
    "lua5.1",
    "lua5.2",
    "lua5.3",
    "lua5.4",
    "make",
    "mariadb-server-core",  # slurmdbd's tables are in it; the server alone, without services, clients and galera
    "munge",
    "openssl",  # a certificate authority for the tests of --online
    "python3-pip",  # the admin's page types `pip download`
    "python3-venv",
    "slurm-client",
    "slurmctld",
    "slurmd",
    "slurmdbd",
    "valgrind",
)
# The example programs import the first, and the pages type the second; the wheel itself needs only qrmi.
EXAMPLES_NEED = ("qrmi[ibm]", "pip")
EXTRAS = ("emulator", "test", "lint")
# The wheel is built from these.
WHEEL_SOURCES = (
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "qrmi_slurm",
    "qrmi_emulator",
    "scripts",
    "docs/man",
    "schema",
    "systemd",
)
STUB_SOURCES = ("cli_filter",)

UV = "uv>=0.8"
PIP_OPTIONS = ("--quiet", "--no-input", "--disable-pip-version-check")
# uv does not read pip's configuration, which may name the machine's package index.
UV_VARIABLES = {"index-url": "UV_DEFAULT_INDEX", "cert": "SSL_CERT_FILE"}
PACKAGES = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
SLURM_VERSION = Path("/usr/include/slurm/slurm_version.h")
COMPLETE = "complete"  # the last file written in each layer; its time is that of the last use
UNUSED_S = 3 * 24 * 3600
FAILURE_TAIL_LINES = 15
# The package scripts of slurmctld, slurmd and munge start services through these.
SERVICE_STARTERS = ("invoke-rc.d", "deb-systemd-invoke")


class SetupError(Exception):
    """Something cannot be installed or built; the message says what, with the end of its output."""


def main(command: Sequence[str]) -> int:
    """Make the environment and become the command.

    Returns:
        The exit status, without a command or if the environment cannot be made.
    """
    try:
        start()
        install_debian_packages()
        base = _base()
        suite = _suite(base)
        oldest_qrmi()
        wheels()
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted while installing; nothing is left running, and the next run continues", file=sys.stderr)
        return 130
    if not command:
        print(suite)
        return 0
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # The upper layer's python3 comes first; ruff, mypy and the like are in the lower one.
    path = os.pathsep.join([str(suite / "bin"), str(base / "bin"), os.environ.get("PATH", os.defpath)])
    program = shutil.which(command[0], path=path)
    if program is None:
        print(f"error: {command[0]}: command not found", file=sys.stderr)
        return 127
    # exec: the command gets make's signals itself, and make its exit status.
    os.execve(program, list(command), {**os.environ, "PATH": path})  # noqa: S606


def start() -> None:
    """Prepare this process for installing things: signals interrupt it, and others can read what it makes.

    Raises:
        SetupError: this is not root.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    os.umask(0o022)
    if os.geteuid() != 0:
        raise SetupError("this needs root: it installs packages, and slurmd starts jobs as another user")


def install_debian_packages(names: Sequence[str] = DEBIAN_PACKAGES) -> None:
    """Install the Debian packages that are missing, without starting any service.

    Args:
        names: the packages; by default those that every target needs.

    Raises:
        SetupError: apt-get failed.
    """
    query = ["/usr/bin/dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n", *names]
    found = subprocess.run(query, capture_output=True, text=True).stdout.splitlines()
    missing = [name for name in names if f"{name} installed" not in found]
    if not missing:
        return
    with tempfile.TemporaryDirectory(prefix="qrmi-slurm-setup-") as folder, locked():
        # First in the PATH of the packages' scripts: no service of this machine is started or disabled.
        for name in SERVICE_STARTERS:
            (Path(folder) / name).symlink_to("/bin/true")
        path = f"{folder}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "PATH": path}
        # An empty DPkg::Path keeps PATH; apt would set its own.
        install = ["apt-get", "-o", "DPkg::Path=", "-o", "DPkg::Lock::Timeout=300", "--yes", "--quiet"]
        install += ["--no-install-recommends", "install", *missing]
        run("updating Debian's package lists", ["apt-get", "--quiet", "update"], env)
        run(f"installing Debian packages: {' '.join(missing)}", install, env)


@contextmanager
def locked(name: str = "lock") -> Iterator[None]:
    """Let only one run at a time change the cache, or the part of it that has a lock of its own."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / name).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another run that is installing")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def uv() -> tuple[Path, dict[str, str]]:
    """Install uv if needed, and return its path and its environment; needs the lock.

    Raises:
        SetupError: pip failed.
    """
    with cached("uv", [UV]) as (layer, is_missing):
        if is_missing:
            run("installing uv", [sys.executable, "-m", "venv", layer])
            run("", [layer / "bin" / "pip", *PIP_OPTIONS, "install", UV])
    listed = subprocess.run([layer / "bin" / "pip", "config", "list"], capture_output=True, text=True).stdout
    found = re.findall(r"^\S+\.(index-url|cert)='(.+)'$", listed, re.MULTILINE)
    # pip lists the settings of the environment first; they win.
    theirs = {UV_VARIABLES[name]: value for name, value in reversed(found)}
    ours = {"UV_CACHE_DIR": str(CACHE / "cache"), "UV_COMPILE_BYTECODE": "1", "UV_PYTHON_DOWNLOADS": "never"}
    return layer / "bin" / "uv", {**theirs, **os.environ, **ours}


def venv(kind: str, *arguments: str | Path, content: Iterable[str] = ()) -> Path:
    """Return a venv for one purpose, made if needed.

    Args:
        kind: the first part of its folder's name.
        arguments: of `uv pip install`.
        content: what its hash covers besides the arguments.

    Raises:
        SetupError: uv failed.
    """
    with locked(), cached(kind, [*map(str, arguments), *content]) as (layer, is_missing):
        if is_missing:
            run("", [sys.executable, "-m", "venv", "--without-pip", layer])
            _uv(f"installing the Python packages of {kind}", "pip", "install", "--python", layer, *arguments)
    return layer


def oldest_qrmi() -> Path:
    """Return the folder, for PYTHONPATH, of the oldest QRMI that pyproject.toml allows, installed if needed.

    Raises:
        SetupError: uv failed.
    """
    [requirement] = [one for one in _requirements()[0] if one.startswith("qrmi>")]
    return venv("qrmi", "--no-deps", "--resolution=lowest-direct", requirement) / PACKAGES


def wheels() -> Path:
    """Return the folder of what `pip install .` installs and builds with, downloaded if needed.

    Raises:
        SetupError: pip failed.
    """
    requirements, _ = _requirements()
    with locked(), cached("wheels", requirements) as (layer, is_missing):
        if is_missing:
            pip = uv()[0].with_name("pip")  # uv has no `pip download`
            run("downloading wheels", [pip, *PIP_OPTIONS, "download", "--dest", layer, *requirements])
    return layer


def _base() -> Path:
    requirements, extras = _requirements()
    return venv("base", *requirements, *extras, *EXAMPLES_NEED)


def _suite(base: Path) -> Path:
    # The stub fits the release of Slurm that it is built for.
    content = [base.name, SLURM_VERSION.read_text(), *_contents(WHEEL_SOURCES), *_contents(STUB_SOURCES)]
    with locked(), cached("suite", content) as (layer, is_missing):
        if is_missing:
            run("", [sys.executable, "-m", "venv", "--without-pip", layer])
            (layer / PACKAGES / "base.pth").write_text(f"{base / PACKAGES}\n")
            # No cache: uv's assumes that a checkout is unchanged unless its pyproject.toml is newer.
            install = ("pip", "install", "--no-deps", "--offline", "--no-cache", "--no-build-isolation")
            _uv("building the wheel", *install, "--python", layer, CHECKOUT)
            folders = [f"BUILD_DIR={layer / 'lib'}", f"SLURM_PLUGIN_DIR={layer / 'lib'}"]
            run("building the SPANK stub", ["make", "-C", CHECKOUT / "cli_filter", *folders, "all", "install-lua"])
    return layer


def _requirements() -> tuple[list[str], list[str]]:
    """Return the requirements of the wheel and its build, and those of its extras."""
    pyproject = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    extras = pyproject["project"]["optional-dependencies"]
    return (
        [*pyproject["build-system"]["requires"], *pyproject["project"]["dependencies"]],
        [requirement for extra in EXTRAS for requirement in extras.get(extra, [])],
    )


def _contents(names: Sequence[str]) -> Iterator[str]:
    """Yield a line for each file below these paths of the checkout: its path, mode and hash."""
    for name in names:
        top = CHECKOUT / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and path.suffix not in {".pyc", ".so", ".o"}:
                mode = path.stat().st_mode & 0o777
                yield f"{path.relative_to(CHECKOUT)} {mode:o} {hashlib.sha256(path.read_bytes()).hexdigest()}"


@contextmanager
def cached(kind: str, content: Iterable[str]) -> Iterator[tuple[Path, bool]]:
    """Yield a layer's folder and whether it has to be made; then remove unused layers of its kind.

    Args:
        kind: the first part of the folder's name.
        content: what the rest of the name is a hash of.
    """
    # Not sys.version: the first run may upgrade Debian's Python, and venvs survive that.
    digest = hashlib.sha256("\n".join([*content, sys.base_prefix, PACKAGES, str(CACHE)]).encode()).hexdigest()
    layer = CACHE / f"{kind}-{digest[:12]}"
    is_missing = not _last_use_s(layer)
    if is_missing:
        shutil.rmtree(layer, ignore_errors=True)
    yield layer, is_missing
    (layer / COMPLETE).touch()
    for other in CACHE.glob(f"{kind}-*"):
        if _last_use_s(other) < time.time() - UNUSED_S:
            shutil.rmtree(other, ignore_errors=True)
            if kind == "base":
                _uv("", "cache", "prune", "--ci")  # the other layers keep their files, which are hard links


def _last_use_s(layer: Path) -> float:
    """Return when a layer was last used, in seconds since the epoch, or 0 if it is incomplete."""
    complete = layer / COMPLETE
    return complete.stat().st_mtime if complete.exists() else 0.0


def _uv(what: str, *arguments: str | Path) -> None:
    program, env = uv()
    run(what, [program, *arguments], env)


def run(what: str, command: Sequence[str | Path], env: dict[str, str] | None = None) -> None:
    """Report a step and run it without output; when interrupted, let it clean up, then exit.

    Raises:
        SetupError: it failed; the message has the end of its output.
    """
    if what:
        say(what)
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env)
        try:
            status = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        if status != 0:
            output.seek(0)
            tail = "".join(output.readlines()[-FAILURE_TAIL_LINES:])
            name = " ".join(Path(word).name for word in map(str, command[:3]))
            raise SetupError(f"{what or name} failed with status {status}:\n{tail}".rstrip())


def say(what: str) -> None:
    print(f"  setup     {what}", file=sys.stderr, flush=True)


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
