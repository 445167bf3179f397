"""However slow the service is, Prolog and Epilog end within their timeouts plus two seconds, and stay small."""

import fcntl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from slurm.polling import wait_for
from slurm.site import BIN, Site

JOB_ID = 900_001
TIMEOUT_S = 1.0
BOUND_S = TIMEOUT_S + 2.0
MAX_MEMORY_KB = 80 * 1024


@pytest.fixture
def timed(site: Site) -> Iterator[Site]:
    """Return a site with timeouts of a second. Sessions that a test leaves open are closed again."""
    site.plugstack(site.plugstack_line(f"--acquire-timeout={TIMEOUT_S:g}", f"--release-timeout={TIMEOUT_S:g}"))
    yield site
    site.emulator.clear_faults()
    site.recover("--now")
    assert site.emulator.open_sessions() == []


@contextmanager
def bounded() -> Iterator[None]:
    """Make sure that the block takes no longer than a hook may."""
    began_s = time.monotonic()
    yield
    took_s = time.monotonic() - began_s
    assert took_s < BOUND_S, f"it took {took_s:.1f} s"


def hang(site: Site, *calls: str) -> None:
    """Let the service never answer these calls."""
    for call in calls:
        site.emulator.control("POST", "faults", {"call": call, "kind": "hang"})


@contextmanager
def record_locked(site: Site) -> Iterator[None]:
    """Lock the record of the job, as a hanging process would."""
    with (site.folder_of(JOB_ID) / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.mark.parametrize("call", ["iam_token", "create_session"])
def test_prolog_with_a_service_that_hangs(timed: Site, call: str) -> None:
    """Acquiring takes its timeout and no more."""
    hang(timed, call)
    with bounded():
        assert timed.run_hook("prolog", JOB_ID).returncode == 0
    timed.command("release", "--forget", "--yes", str(JOB_ID))


def test_prolog_that_first_releases_an_earlier_run(timed: Site) -> None:
    """Both hang: releasing gets half of the time, acquiring the rest; the bound stays the same."""
    timed.run_hook("prolog", JOB_ID)
    assert len(timed.emulator.open_sessions()) == 1
    hang(timed, "update_session", "create_session")
    with bounded():
        assert timed.run_hook("prolog", JOB_ID, SLURM_JOB_RESTART_COUNT="1").returncode == 0
    timed.emulator.clear_faults()
    timed.command("release", "--forget", "--yes", str(JOB_ID))


def test_prolog_that_has_to_release_one_of_two(timed: Site) -> None:
    """--require=all, one QPU hangs: the other is released within the bound, or by recover at once."""
    timed.plugstack(timed.plugstack_line(f"--acquire-timeout={TIMEOUT_S:g}", "--release-timeout=30", "--require=all"))
    timed.emulator.control("POST", "faults", {"call": "create_session", "kind": "hang", "times": 1})
    hang(timed, "update_session")
    with bounded():
        assert timed.run_hook("prolog", JOB_ID, SPANK_QRMI_QPU="ibm_demo,ibm_second").returncode == 0
    assert len(timed.emulator.open_sessions()) == 1
    timed.emulator.clear_faults()
    timed.recover("--now")
    assert timed.emulator.open_sessions() == []
    timed.command("release", "--forget", "--yes", str(JOB_ID))


@pytest.mark.parametrize("call", ["iam_token", "list_jobs", "update_session"])
def test_epilog_with_a_service_that_hangs(timed: Site, call: str) -> None:
    """Releasing takes its timeout and no more."""
    timed.run_hook("prolog", JOB_ID)
    hang(timed, call)
    with bounded():
        assert timed.run_hook("epilog", JOB_ID).returncode == 0


@pytest.mark.parametrize("hook", ["prolog", "epilog"])
def test_a_record_locked_by_another_process(timed: Site, hook: str) -> None:
    """The hook waits for it within the same bound."""
    timed.run_hook("prolog", JOB_ID)
    with record_locked(timed), bounded():
        assert timed.run_hook(hook, JOB_ID).returncode == 0


def test_prolog_with_sixteen_qpus_takes_less_than_80_mb(site: Site) -> None:
    """All processes of the hook together, with shared pages counted once, while all sixteen requests wait."""
    names = [f"qpu_{number}" for number in range(16)]
    resources = [{**site.emulator.resource("ibm_demo"), "name": name} for name in names]
    site.config(resources)
    env = {**site.hook_env(JOB_ID), "SPANK_QRMI_QPU": ",".join(names)}
    with site.emulator.held("backend_status") as hold:
        prolog = subprocess.Popen([BIN / "qrmi-slurm-prolog"], env=env, stdout=subprocess.DEVNULL)
        hold.wait_for(16)
        pids = site.hook_pids("prolog") + site.call_pids("prolog")
        memory_kb = sum(_memory_kb(pid) for pid in pids)
    assert prolog.wait(30) == 0
    assert len(pids) == 17
    assert memory_kb < MAX_MEMORY_KB, f"{memory_kb} kB"
    wait_for(lambda: site.recover()["left"] == 0, "nothing to be left", 10)


def _memory_kb(pid: int) -> int:
    """Return a process's proportional set size: its own pages, and its share of the shared ones."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
