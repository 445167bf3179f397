"""Roots of other releases: made whole or not at all, and entered without a trace."""

import http.server
import importlib
import itertools
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[2]
PROGRAM = TESTS / "setup" / "roots.py"
PYTHON = "/usr/bin/python3"
DEADLINE_S = 60

sys.path.insert(0, str(TESTS))
roots = importlib.import_module("setup.roots")
environment = importlib.import_module("setup.environment")
sys.path.remove(str(TESTS))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of this test's own; debootstrap counts as installed."""
    monkeypatch.setattr(environment, "CACHE", tmp_path)
    monkeypatch.setattr(roots, "install_debian_packages", lambda _names: None)
    return tmp_path


@pytest.fixture
def makes(monkeypatch):
    """Replace the making of a root; return the folders that were made."""
    made = []

    def make(_suite, root, _packages):
        assert not root.exists()
        (root / "etc").mkdir(parents=True)
        made.append(root)

    monkeypatch.setattr(roots, "_make", make)
    return made


def start(*arguments, **env):
    """Start roots.py in a session of its own."""
    return subprocess.Popen(
        [PYTHON, "-P", PROGRAM, *map(str, arguments)],
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def ended(*arguments, **env):
    """Run roots.py to its end; return its status, output and errors."""
    process = start(*arguments, **env)
    out, err = process.communicate(timeout=DEADLINE_S)
    return process.returncode, out, err


def until(ask):
    """Wait until `ask` is true."""
    end_s = time.monotonic() + DEADLINE_S
    while not ask():
        assert time.monotonic() < end_s
        time.sleep(0.05)


def mirrored(tmp_path, url):
    """Return the environment in which apt, and so roots.py, knows only this mirror of this machine's release."""
    suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
    (tmp_path / "sources.list").write_text(f"deb {url} {suite} main\n")
    conf = tmp_path / "apt.conf"
    conf.write_text(f'Dir::Etc::SourceList "{tmp_path}/sources.list";\nDir::Etc::SourceParts "/dev/null";\n')
    return {"APT_CONFIG": str(conf), "QRMI_SLURM_CACHE": str(tmp_path / "cache"), "no_proxy": "*"}


# --- made --------------------------------------------------------------------------------------------------------


def test_a_root_is_made_once(cache, makes):
    """A second run finds it; other packages or another suite are another root."""
    first = roots.made("trixie", ["gcc"])
    assert roots.made("trixie", ["gcc"]) == first
    assert {first, roots.made("trixie", ["make"]), roots.made("forky", ["gcc"])} == set(makes)
    assert len(makes) == 3
    assert first.parent == cache


def test_a_half_made_root_is_made_anew(cache, makes):
    """What an interrupted run left is removed first."""
    root = roots.made("trixie")
    (root / environment.COMPLETE).unlink()
    (root / "left by an interrupted run").touch()
    assert roots.made("trixie") == root
    assert len(makes) == 2
    assert not (root / "left by an interrupted run").exists()


def test_a_root_whose_making_fails_does_not_count(cache, makes, monkeypatch):
    """The next run makes it."""
    make = roots._make

    def fail(suite, root, packages):
        make(suite, root, packages)
        raise environment.SetupError("no space left")

    monkeypatch.setattr(roots, "_make", fail)
    with pytest.raises(environment.SetupError, match="no space"):
        roots.made("trixie")
    monkeypatch.setattr(roots, "_make", lambda suite, root, packages: make(suite, root, packages))
    roots.made("trixie")
    assert len(makes) == 2


def test_an_unused_root_is_removed(cache, makes):
    """A root that nothing has entered for days goes when another of its suite is used."""
    old = roots.made("trixie", ["gcc"])
    long_ago_s = time.time() - environment.UNUSED_S - 1
    os.utime(old / environment.COMPLETE, (long_ago_s, long_ago_s))
    new = roots.made("trixie", ["make"])
    assert new.exists() and not old.exists()


def test_two_runs_at_once_make_one_root(cache, makes, monkeypatch, capsys):
    """The second waits for the first, says so, and takes what the first made."""
    make, is_making, may_end = roots._make, threading.Event(), threading.Event()

    def slow(suite, root, packages):
        is_making.set()
        assert may_end.wait(DEADLINE_S)
        make(suite, root, packages)

    monkeypatch.setattr(roots, "_make", slow)
    found = []
    runs = [threading.Thread(target=lambda: found.append(roots.made("trixie"))) for _ in range(2)]
    runs[0].start()
    assert is_making.wait(DEADLINE_S)
    runs[1].start()
    said = ""

    def waits():
        nonlocal said
        said += capsys.readouterr().err
        return "waiting for another run that is installing" in said

    until(waits)
    may_end.set()
    for run in runs:
        run.join(DEADLINE_S)
    assert len(makes) == 1
    assert found == [makes[0]] * 2


def test_an_unknown_suite_is_named_with_those_there_are(cache):
    """Nothing is downloaded for a typing error."""
    with pytest.raises(environment.SetupError, match="no root called trixi; there are bookworm, trixie, forky"):
        roots.made("trixi")


# --- faults, with the real program -------------------------------------------------------------------------------


def test_a_mirror_that_cannot_be_reached(tmp_path):
    """One message with the address, the reason and what to check; exit status 1."""
    status, out, err = ended("trixie", "true", **mirrored(tmp_path, "http://127.0.0.1:9/debian"))
    assert (status, out) == (1, "")
    assert err.startswith("error: cannot make the trixie root: http://127.0.0.1:9/debian/dists/trixie/InRelease cannot")
    assert "Connection refused\ncheck the network, http_proxy, and the mirror in /etc/apt; then run this again" in err


class Mirror(http.server.BaseHTTPRequestHandler):
    """Answers the first request, and never again."""

    asked = 0

    def do_GET(self):
        Mirror.asked += 1
        if Mirror.asked > 1:
            time.sleep(DEADLINE_S)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_arguments):
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_leaves_nothing_running(tmp_path, number):
    """Neither debootstrap nor a mount; the half-made root does not count as made."""
    Mirror.asked = 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        env = mirrored(tmp_path, f"http://127.0.0.1:{server.server_port}/debian")
        process = start("trixie", "true", **env)
        until(lambda: Mirror.asked > 1)  # debootstrap downloads
        os.kill(process.pid, number)
        err = process.communicate(timeout=DEADLINE_S)[1]
        server.shutdown()
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert err.endswith("interrupted while making a root; nothing is left running, the next run starts anew\n")
    until(lambda: not _processes_with(str(tmp_path)))
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    assert not list((tmp_path / "cache").glob("root-*/complete"))


def _processes_with(text):
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and folder.name != str(os.getpid()):
            try:
                if text in (folder / "cmdline").read_text(errors="replace"):
                    found.append(folder.name)
            except OSError:
                continue
    return found


def test_without_permission_to_mount():
    """One message that says what is needed; exit status 1."""
    limited = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    command = [*limited, *roots.entering(Path("/"), ["true"])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 1
    assert done.stderr == (
        "error: cannot unshare: Operation not permitted; "
        "run this as root with CAP_SYS_ADMIN; in a container: docker run --privileged\n"
    )


# --- entered: this machine's own system serves as the root ---------------------------------------------------------


@pytest.fixture
def enter(tmp_path, monkeypatch):
    """Start a shell script in the root `/`, with a cache of this test's own."""
    (tmp_path / "cache").mkdir()
    monkeypatch.setenv("QRMI_SLURM_CACHE", str(tmp_path / "cache"))

    def enter(script):
        words = [PYTHON, *roots.entering(Path("/"), ["sh", "-c", script])[1:]]
        return subprocess.Popen(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)

    return enter


def test_what_a_command_writes_is_gone_afterwards(enter, tmp_path):
    """In the system and in /tmp; the cache is shared by all runs of a suite."""
    mark = f"qrmi-slurm-test-{os.getpid()}"
    script = f"touch /etc/{mark} /tmp/{mark} {tmp_path}/cache/{mark} && ls /tmp && pwd"
    with enter(script) as process:
        out = process.stdout.read()
    assert process.returncode == 0
    assert out.splitlines()[-1] == str(TESTS.parent)
    assert mark in out
    assert not Path("/etc", mark).exists() and not Path("/tmp", mark).exists()
    [kept] = (tmp_path / "cache").glob(f"cache-*/{mark}")
    assert kept.exists()


@pytest.mark.parametrize(("script", "status"), [("exit 3", 3), ("kill -9 $$", 137), ("exec no-such-program", 127)])
def test_the_commands_exit_status_is_handed_on(enter, script, status):
    """A failure in a root is a failure of the run."""
    with enter(script) as process:
        process.communicate(timeout=DEADLINE_S)
    assert process.returncode == status


def test_nsenter_into_the_namespace_finds_the_root(enter):
    """A test's own namespaces are made from the root, not from the machine."""
    mark = f"/etc/qrmi-slurm-test-{os.getpid()}"
    with enter(f"touch {mark}; nsenter --mount=/proc/1/ns/mnt ls {mark}") as process:
        assert process.communicate(timeout=DEADLINE_S)[0].strip() == mark


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_all_that_runs_in_a_root_ends_with_it(enter, number):
    """A daemon as well that has left its session."""
    name = f"{os.getpid()}{number:02}"
    with enter(f"setsid sleep 300.{name} & echo ready; sleep 300.{name}") as process:
        assert process.stdout.readline() == "ready\n"
        until(lambda: len(_processes_with(f"300.{name}")) >= 2)
        process.send_signal(number)
        process.wait(DEADLINE_S)
        assert process.returncode == (128 + signal.SIGTERM if number == signal.SIGTERM else -signal.SIGKILL)
        until(lambda: not _processes_with(f"sleep\0300.{name}"))


def test_each_suites_users_have_uids_of_their_own():
    """The machine's tests end all processes of their users by uid, and see those in roots."""
    firsts = sorted([*roots.FIRST_SYSTEM_UID.values()])
    assert firsts[0] >= 1000 + roots.SYSTEM_UIDS
    assert all(after - before >= roots.SYSTEM_UIDS for before, after in itertools.pairwise(firsts))
