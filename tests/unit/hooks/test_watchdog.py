"""The watchdog ends a process whatever it does, and only where it was started."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

import qrmi_slurm
from qrmi_slurm.hooks import watchdog

PACKAGE = Path(qrmi_slurm.__file__).resolve().parents[1]
ALARM = -14


def run(code):
    """Run code in a process of its own, and return its status and how long it took, in seconds."""
    began_s = time.monotonic()
    head = f"import sys; sys.path.insert(0, {str(PACKAGE)!r}); from qrmi_slurm.hooks import watchdog; "
    done = subprocess.run([sys.executable, "-I", "-c", head + code], capture_output=True, timeout=20)
    return done.returncode, time.monotonic() - began_s


@pytest.mark.parametrize(
    "work",
    [
        "import time; time.sleep(15)",
        "import re; re.match('(a+)+b', 'a' * 60)",  # never lets go of the interpreter
        "import os; os.read(os.pipe()[0], 1)",
        "exec('while True:\\n try:\\n  while True: pass\\n except BaseException: pass')",
    ],
)
def test_it_ends_whatever_is_going_on(work):
    status, took_s = run(f"watchdog.start(0.3); {work}")
    assert status == ALARM
    assert took_s < 5


def test_it_works_where_the_alarm_was_blocked_or_ignored():
    """A daemon may have left it so to its children."""
    block = "import signal; signal.signal(14, signal.SIG_IGN); signal.pthread_sigmask(signal.SIG_BLOCK, [14]); "
    assert run(f"{block}watchdog.start(0.3); import time; time.sleep(15)")[0] == ALARM


def test_a_limit_counts_from_the_start():
    status, took_s = run("watchdog.start(); import time; time.sleep(1); watchdog.limit(1.2); time.sleep(15)")
    assert status == ALARM
    assert took_s < 8
    assert run("watchdog.start(); import time; time.sleep(1); watchdog.limit(0.5); time.sleep(15)")[0] == ALARM


def test_a_limit_without_a_start_changes_nothing():
    """Tests, and the command, run the hooks' code in a process of their own."""
    assert run("watchdog.limit(0.1); import time; time.sleep(0.5)")[0] == 0


def test_children_do_not_inherit_it():
    """A call to QRMI has an alarm of its own."""
    code = "import os, signal; pid = os.fork(); left_s = signal.getitimer(signal.ITIMER_REAL)[0]; "
    end = "os._exit(left_s > 0) if pid == 0 else os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    assert run(f"watchdog.start(); {code}{end}")[0] == 0


@pytest.mark.parametrize(
    ("status", "sentence"),
    [(142, "did not end within 32 s"), (137, "was killed by signal 9"), (1, "ended with exit status 1")],
)
def test_its_fate_in_words(status, sentence):
    assert watchdog.fate(status, 32.0) == sentence
