"""Whatever holds a process that was started, waiting for it ends in time."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from doubles import traced

from qrmi_slurm import processes
from qrmi_slurm.deadline import Deadline

SHELL = "/bin/sh"


def forked(work):
    """Return the pid of a child that does some work and exits."""
    pid = os.fork()
    if pid == 0:
        work()
        os._exit(0)
    return pid


@pytest.fixture
def quickly():
    """The test takes less than two seconds."""
    began_s = time.monotonic()
    yield
    assert time.monotonic() - began_s < 2


@pytest.mark.parametrize(
    ("work", "exit_code"),
    [
        (lambda: None, 0),
        (lambda: os._exit(7), 7),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), -signal.SIGKILL),
        (lambda: time.sleep(0.1), 0),
    ],
    ids=["done", "exit 7", "killed", "slow"],
)
def test_a_child_that_ends_is_reaped(work, exit_code):
    pid = forked(work)
    assert processes.reap(pid, Deadline.after(5)) == exit_code
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


@pytest.mark.usefixtures("quickly")
def test_a_child_that_goes_on_is_left_alone():
    pid = forked(lambda: time.sleep(60))
    assert processes.reap(pid, Deadline.after(0.1)) is None
    os.kill(pid, signal.SIGKILL)
    assert processes.reap(pid, Deadline.after(5)) == -signal.SIGKILL


@pytest.mark.usefixtures("quickly")
def test_a_child_is_looked_for_even_after_the_deadline():
    pid = forked(lambda: None)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert processes.reap(pid, Deadline.after(-1)) == 0


@pytest.mark.usefixtures("quickly")
def test_a_dead_child_whose_tracer_never_lets_go_is_not_waited_for():
    """waitpid() would wait for as long as the tracer lives."""
    pid = forked(lambda: time.sleep(60))
    with traced(pid):
        os.kill(pid, signal.SIGKILL)
        assert processes.reap(pid, Deadline.after(0.2)) is None
    assert processes.reap(pid, Deadline.after(5)) == -signal.SIGKILL


def test_a_program_runs_to_its_end():
    done = processes.run([SHELL, "-c", "cat; echo out; echo err >&2; exit 3"], 5, wants_stderr=True)
    assert done == (3, b"out\n", b"err\n")
    assert processes.run([SHELL, "-c", "echo err >&2"], 5).stderr == b""
    assert processes.run([SHELL, "-c", "echo $A"], 5, env={"A": "1"}).stdout == b"1\n"


def test_a_program_that_does_not_exist_is_an_error():
    with pytest.raises(FileNotFoundError):
        processes.run(["/nowhere/program"], 5)


@pytest.mark.usefixtures("quickly")
def test_a_program_that_takes_too_long_is_killed_with_what_it_has_started(tmp_path):
    script = f"sleep 60 & echo $! >{tmp_path}/pid; wait"
    with pytest.raises(TimeoutError, match=r"/bin/sh took longer than 0\.3 s"):
        processes.run([SHELL, "-c", script], 0.3)
    started = int((tmp_path / "pid").read_text())
    deadline = Deadline.after(1)
    while _state(started) != "Z":
        assert deadline.left_s > 0
        time.sleep(0.01)


def _state(pid):
    """Return the letter of a process's state in proc(5); Z as well where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"


@pytest.mark.usefixtures("quickly")
def test_a_program_that_cannot_be_killed_is_left_behind(tmp_path):
    """As one that hangs in the kernel; here somebody traces it."""
    script = (
        "import os, sys, time\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from doubles import traced\n"
        "with traced(os.getppid()):\n"
        "    time.sleep(10)\n"
    )
    tracer = f"{sys.executable} -c '{script}' {Path(__file__).parent} & sleep 60"
    with pytest.raises(TimeoutError):
        processes.run([SHELL, "-c", tracer], 1.0)
