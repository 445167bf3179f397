"""What a confined process can no longer do."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qrmi_slurm.calls import confinement


def run(code, **options):
    """Run Python code that confines itself, and return how it ended."""
    path = f"import sys; sys.path.insert(0, {str(Path(confinement.__file__).parents[2])!r})"
    code = f"{path}\nimport os, resource\nfrom qrmi_slurm.calls import confinement\n{code}"
    return subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=60, **options)


def test_no_new_privileges_no_core_file_and_a_limit_on_cpu_time():
    done = run(
        "confinement.confine(5)\n"
        "print([line.split()[1] for line in open('/proc/self/status') if line.startswith('NoNewPrivs')])\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE), resource.getrlimit(resource.RLIMIT_CPU))"
    )
    assert done.stdout.splitlines() == ["['1']", "(0, 0) (6, 6)"], done.stderr


def test_the_memory_of_a_process_that_has_become_a_user_is_not_that_users():
    """Another process of the same user can neither trace it nor read its environment."""
    code = (
        "os.setresgid(12345, 12345, 12345); os.setresuid(12345, 12345, 12345); confinement.hide_memory()\n"
        "other = os.fork()\n"
        "if other == 0:\n"
        "    for name in ('environ', 'mem'):\n"
        "        try: open(f'/proc/{os.getppid()}/{name}', 'rb'); print('read')\n"
        "        except PermissionError: print('refused')\n"
        "    sys.stdout.flush(); os._exit(0)\n"
        "os.waitpid(other, 0)"
    )
    assert run(code).stdout.split() == ["refused", "refused"]


def test_a_process_that_becomes_a_user_is_hidden_before_it_is_the_users():
    """The user is only the effective one then, so nobody may trace it; and what comes after does not undo it."""
    done = run(
        "import ctypes\nprctl, seen = ctypes.CDLL(None).prctl, []\n"
        "def instead():\n    seen.append(os.getresuid())\n    prctl(4, 1, 0, 0, 0)\n"  # PR_SET_DUMPABLE
        "confinement.hide_memory = instead\n"
        "confinement.become(12345, 12346, [12347])\n"
        "print(seen, os.getresuid(), os.getresgid(), os.getgroups(), prctl(3, 0, 0, 0, 0))"  # PR_GET_DUMPABLE
    )
    now = "(12345, 12345, 12345) (12346, 12346, 12346) [12347]"
    assert done.stdout == f"[(0, 12345, 0)] {now} 1\n", done.stderr


@pytest.mark.parametrize(
    ("code", "ended_by"),
    [
        ("x = bytearray(2 << 30)", "MemoryError"),
        ("open('large', 'wb').write(bytes(2 << 20))", "File too large"),
        ("[os.open('/dev/null', 0) for _ in range(2000)]", "Too many open files"),
    ],
)
def test_what_a_call_does_not_need_it_cannot_have(tmp_path, code, ended_by):
    done = run(f"confinement.confine(5)\n{code}", cwd=tmp_path)
    assert done.returncode != 0
    assert ended_by in done.stderr


def test_a_call_that_only_computes_is_killed():
    assert run("confinement.confine(0)\nwhile True: pass").returncode in (-signal.SIGKILL, -signal.SIGXCPU)


def test_a_lower_limit_of_the_caller_is_kept():
    done = run(
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100)); confinement.confine(5)\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    assert done.stdout == "(100, 100)\n", done.stderr


def test_without_pythons_internals_ctypes_is_used(monkeypatch):
    """A later Python may have no `_ctypes.call_function`."""
    code = (
        "import _ctypes; del _ctypes.call_function\nconfinement.hide_memory(); confinement.confine(5)\n"
        "print([line.split()[1] for line in open('/proc/self/status') if line.startswith('NoNewPrivs')])"
    )
    assert run(code).stdout == "['1']\n"


def test_root_keeps_its_name_and_no_power_over_others():
    """Neither there nor in what it starts: it may not read another user's file, nor become another user."""
    done = run(
        "confinement.confine(5)\n"
        "import subprocess\n"
        "show = ['/bin/grep', '-E', '^Cap(Inh|Prm|Eff|Amb)|^Uid', '/proc/self/status']\n"
        "print(open('/proc/self/status').read())\n"
        "subprocess.run(show)\n"
        "try: os.setuid(12345)\n"
        "except PermissionError: print('refused')"
    )
    sets = [line.split()[1] for line in done.stdout.splitlines() if line.startswith(("CapPrm", "CapEff", "CapAmb"))]
    assert sets == ["0" * 16] * 6, done.stderr
    assert "Uid:\t0\t0\t0\t0" in done.stdout.splitlines()
    assert "refused" in done.stdout.splitlines()
