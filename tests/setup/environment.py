"""Makes what the tests and the demo need on Debian 12, then runs a command in it; standard library only.

    environment.py COMMAND [ARGUMENT ...]      run it with the environment's bin/ first in PATH
    environment.py                             only make it, and print its folder

There are these in a cache folder that jobs' users may enter, not in the checkout (it may be below /root):

    base-<hash>     a venv with every dependency, made once for each state of pyproject.toml's lists
    suite-<hash>    a venv that adds this checkout's wheel and SPANK stub to it, one for each content
    qrmi-<version>  the oldest QRMI that is to work, for the tests that run with it
    wheels-<hash>   what `pip install .` takes from an index, for the tests that install as an admin does

so two checkouts do not disturb each other, and an unchanged one costs next to nothing.
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
from collections.abc import Iterator, Sequence
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
    "mariadb-server-core",  # slurmdbd keeps its tables there; the server alone, without services, clients and galera
    "munge",
    "openssl",  # a certificate authority for the tests of --online
    "python3-venv",
    "slurm-client",
    "slurmctld",
    "slurmd",
    "slurmdbd",
    "valgrind",
)
# What the example programs import; the wheel itself needs only qrmi.
EXAMPLES_NEED = ("qrmi[ibm]",)
EXTRAS = ("emulator", "test", "lint")
# What the wheel is built from.
WHEEL_SOURCES = ("pyproject.toml", "README.md", "LICENSE", "qrmi_slurm", "scripts", "docs/man", "schema", "systemd")
STUB_SOURCES = ("cli_filter",)

COMPLETE = "complete"  # the last file to be written in each layer; its time is that of the last use
UNUSED_SUITE_S = 3 * 24 * 3600
UNUSED_BASE_S = 30 * 24 * 3600
FAILURE_TAIL_LINES = 15
# The package scripts of slurmctld, slurmd and munge start services through these.
SERVICE_STARTERS = ("invoke-rc.d", "deb-systemd-invoke")


class SetupError(Exception):
    """Something cannot be installed or built; the message says what, and has the end of its output."""


def main(command: Sequence[str]) -> int:
    """Make the environment and become the command.

    Returns:
        The exit status, where there is no command or the environment cannot be made.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGINT, _interrupt)
    os.umask(0o022)
    try:
        if os.geteuid() != 0:
            raise SetupError("this needs root: it installs packages, and slurmd starts jobs as another user")
        install_debian_packages()
        suite, base = make_layers()
        oldest_qrmi(base / "bin" / "python3")
        wheels(base / "bin" / "python3")
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted while installing; nothing is running, the next run goes on from here", file=sys.stderr)
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
        print(f"error: there is no {command[0]}", file=sys.stderr)
        return 127
    # Becoming the command lets it have make's signals, and make its exit status.
    os.execve(program, list(command), {**os.environ, "PATH": path})  # noqa: S606


def install_debian_packages(names: Sequence[str] = DEBIAN_PACKAGES) -> None:
    """Install the Debian packages that are missing, without starting any service.

    Args:
        names: of the packages; those that every target needs, where none are named.

    Raises:
        SetupError: apt-get failed.
    """
    missing = [name for name in names if not _is_installed(name)]
    if not missing:
        return
    with tempfile.TemporaryDirectory(prefix="qrmi-slurm-setup-") as folder:
        # First in the PATH of the packages' scripts: a service of the machine is neither started nor disabled.
        for name in SERVICE_STARTERS:
            program = Path(folder) / name
            program.write_text("#!/bin/sh\nexit 0\n")
            program.chmod(0o755)
        env = {
            **os.environ,
            "DEBIAN_FRONTEND": "noninteractive",
            "PATH": f"{folder}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        }
        # An empty DPkg::Path leaves PATH as it is; apt would set its own.
        install = ["apt-get", "-o", "DPkg::Path=", "-o", "DPkg::Lock::Timeout=300", "--yes", "--quiet"]
        install += ["--no-install-recommends", "install", *missing]
        what = f"installing Debian packages: {' '.join(missing)}"
        with _lock():
            try:
                _run(what, install, env)
            except SetupError:
                # The package lists may be missing or older than the archive.
                _run("updating Debian's package lists", ["apt-get", "--quiet", "update"], env)
                _run(what, install, env)


def make_layers() -> tuple[Path, Path]:
    """Make both layers where they are missing, and return the folders of the upper and the lower one.

    Raises:
        SetupError: pip, the build of the wheel or that of the stub failed.
    """
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    requirements = [
        *project["build-system"]["requires"],
        *project["project"]["dependencies"],
        *(requirement for extra in EXTRAS for requirement in extras.get(extra, [])),
        *EXAMPLES_NEED,
    ]
    base = CACHE / f"base-{_digest([*requirements, sys.version, str(CACHE)])}"
    suite = CACHE / f"suite-{_digest([base.name, *_contents(WHEEL_SOURCES), *_contents(STUB_SOURCES)])}"
    with _lock():
        if not _is_complete(base):
            _make_base(base, requirements)
        if not _is_complete(suite):
            _make_suite(suite, base)
        for layer in (base, suite):
            (layer / COMPLETE).touch()
        _prune("suite-*", UNUSED_SUITE_S)
        _prune("base-*", UNUSED_BASE_S)
    return suite, base


def oldest_qrmi(python: str | Path) -> Path:
    """Install the oldest QRMI that pyproject.toml allows where it is missing, and return its folder, for PYTHONPATH.

    Args:
        python: one that has pip, and what QRMI depends on.

    Raises:
        SetupError: pip failed.
    """
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    [version] = re.findall(r"^qrmi>=([0-9.]+)", "\n".join(project["dependencies"]), re.MULTILINE)
    folder = CACHE / f"qrmi-{version}"
    with _lock():
        if not _is_complete(folder):
            shutil.rmtree(folder, ignore_errors=True)
            pip: list[str | Path] = [python, "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check"]
            command = [*pip, "install", "--no-deps", "--target", folder, f"qrmi=={version}"]
            _run(f"installing QRMI {version}, the oldest that is to work", command)
        (folder / COMPLETE).touch()
        _prune("qrmi-*", UNUSED_BASE_S)
    return folder


def wheels(python: str | Path) -> Path:
    """Download what `pip install .` installs and builds with, where it is missing, and return the folder.

    Args:
        python: one that has pip.

    Raises:
        SetupError: pip failed.
    """
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    requirements = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    folder = CACHE / f"wheels-{_digest([*requirements, sys.version])}"
    with _lock():
        if not _is_complete(folder):
            shutil.rmtree(folder, ignore_errors=True)
            pip: list[str | Path] = [python, "-m", "pip", "--quiet", "--no-input", "--disable-pip-version-check"]
            command = [*pip, "download", "--dest", folder, *requirements]
            _run("downloading wheels, to install the suite from as an admin does", command)
        (folder / COMPLETE).touch()
        _prune("wheels-*", UNUSED_BASE_S)
    return folder


def extra_venv(kind: str, content: Sequence[str], arguments: Sequence[str | Path]) -> Path:
    """Return a venv for one purpose, made by one call of pip where it is missing.

    Args:
        kind: the front part of its folder's name.
        content: what it is made of; another content is another venv.
        arguments: of pip.

    Raises:
        SetupError: pip failed.
    """
    venv = CACHE / f"{kind}-{_digest([*content, sys.version, str(CACHE)])}"
    with _lock():
        if not _is_complete(venv):
            shutil.rmtree(venv, ignore_errors=True)
            _run(f"making a venv of {kind}", [sys.executable, "-m", "venv", venv])
            _run("", [venv / "bin" / "pip", "--quiet", "--no-input", "--disable-pip-version-check", *arguments])
        (venv / COMPLETE).touch()
        _prune(f"{kind}-*", UNUSED_BASE_S)
    return venv


def _make_base(base: Path, requirements: Sequence[str]) -> None:
    shutil.rmtree(base, ignore_errors=True)
    _run("making a venv", [sys.executable, "-m", "venv", base])
    pip: list[str | Path] = [base / "bin" / "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]
    _run("installing Python packages (once; about a minute)", [*pip, *requirements])
    (base / COMPLETE).touch()


def _make_suite(suite: Path, base: Path) -> None:
    shutil.rmtree(suite, ignore_errors=True)
    _run("", [sys.executable, "-m", "venv", "--without-pip", suite])
    packages = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    (suite / packages / "base.pth").write_text(f"{base / packages}\n")
    pip: list[str | Path] = [base / "bin" / "pip", "--quiet", "--no-input", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory(prefix="qrmi-slurm-setup-") as folder:
        build = [*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", folder, CHECKOUT]
        _run("building the wheel", build)
        wheels = list(Path(folder).glob("*.whl"))
        _run("", [*pip, "--python", suite / "bin" / "python3", "install", "--no-deps", "--no-index", *wheels])
    if (CHECKOUT / "cli_filter" / "Makefile").exists():
        make: list[str | Path] = [
            "make",
            "--no-print-directory",
            "-C",
            CHECKOUT / "cli_filter",
            f"BUILD_DIR={suite / 'lib'}",
            f"SLURM_PLUGIN_DIR={suite / 'lib'}",
            "all",
            "install-lua",
        ]
        _run("building the SPANK stub", make)
    (suite / COMPLETE).touch()


def _contents(names: Sequence[str]) -> Iterator[str]:
    """Yield a line for each file below the named ones of the checkout: its path, mode and hash."""
    for name in names:
        top = CHECKOUT / name
        for path in sorted(top.rglob("*")) if top.is_dir() else [top]:
            if path.is_file() and path.suffix not in {".pyc", ".so", ".o"}:
                mode = path.stat().st_mode & 0o777
                yield f"{path.relative_to(CHECKOUT)} {mode:o} {hashlib.sha256(path.read_bytes()).hexdigest()}"


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def _is_complete(layer: Path) -> bool:
    return (layer / COMPLETE).exists()


def _prune(pattern: str, unused_s: float) -> None:
    """Remove the layers that nobody has used for so long, and those that were never completed."""
    for layer in CACHE.glob(pattern):
        complete = layer / COMPLETE
        if not complete.exists() or time.time() - complete.stat().st_mtime > unused_s:
            shutil.rmtree(layer, ignore_errors=True)


@contextmanager
def _lock() -> Iterator[None]:
    """Let one run at a time change the cache."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("waiting for another run that is installing")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_installed(package: str) -> bool:
    done = subprocess.run(
        ["/usr/bin/dpkg-query", "--show", "--showformat=${db:Status-Status}", package],
        capture_output=True,
        text=True,
    )
    return done.stdout == "installed"


def _run(what: str, command: Sequence[str | Path], env: dict[str, str] | None = None) -> None:
    """Say what is being done, and do it in silence; let it end in order when interrupted.

    Raises:
        SetupError: it failed; the message has the end of what it printed.
    """
    if what:
        _say(what)
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=env
        )
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


def _say(what: str) -> None:
    print(f"  setup     {what}", file=sys.stderr, flush=True)


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
