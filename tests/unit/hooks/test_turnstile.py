"""The turnstile: so many Prologs of a node work at a time, and each within its own bound."""

import fcntl
import os
import time
from contextlib import contextmanager

import pytest

from qrmi_slurm.calls import places
from qrmi_slurm.calls.places import WORK, Node, Places
from qrmi_slurm.deadline import Deadline
from qrmi_slurm.errors import NodeBusyError, RecordBusyError
from qrmi_slurm.hooks import prolog, turnstile
from qrmi_slurm.slurm import job_context

CPUS = 2


@pytest.fixture(autouse=True)
def two_cpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(CPUS)))


@pytest.fixture
def enter(site):
    """Enter as Prolog of a job does."""
    environment = site.hook_environment("a")
    job = job_context.of_job(environment)

    def enter_(timeout_s=30.0, left_s=None, **changes):
        options = site.options()._replace(acquire_timeout_s=timeout_s)
        log = site.hook_run("prolog").log
        deadline = Deadline.after(timeout_s if left_s is None else left_s)
        turnstile.enter(job._replace(**changes), options, environment, deadline, log)

    return enter_


@pytest.fixture
def room():
    return turnstile.FOLDER / "test" / "n1"


@contextmanager
def working(room, count, uid):
    """Let another process work in the place of so many hooks of a user, until the block ends."""
    told_read, told_write = os.pipe()
    end_read, end_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(end_write)
        held = Places(Node(room, "n1", uid), places.at_work(CPUS)._replace(of_user=64))
        os.write(told_write, bytes([sum(held.take() for _ in range(count))]))
        os.read(end_read, 1)
        os._exit(0)
    try:
        assert os.read(told_read, 1) == bytes([count])
        yield end_write
    finally:
        for fd in (told_read, told_write, end_read):
            os.close(fd)
        os.close(end_write)
        os.waitpid(pid, 0)


def test_a_prolog_has_a_place_at_work_until_it_ends(enter):
    enter()
    assert WORK.is_at_work
    WORK.end()


def test_the_shells_of_later_prologs_learn_where_to_wait_and_for_how_long(enter, room):
    """Ten seconds are for the acquisition, or half of a short time; Epilogs wait for a third of their own."""
    enter(30.0)
    assert (room / "lanes").read_text() == "2 20 5 4 10\n"
    WORK.end()
    enter(4.0)
    assert (room / "lanes").read_text() == "2 2 1 4 10\n"


def test_nobody_else_can_enter_the_folder(enter, room):
    enter()
    folders = [room, *room.parents][:3]
    assert folders[-1] == turnstile.FOLDER
    assert {path.stat().st_mode & 0o077 for path in (turnstile.FOLDER, room)} == {0}
    assert (room / ".places" / "work-n1").stat().st_mode & 0o777 == 0o600


def test_it_waits_until_another_has_ended(enter, room):
    enter()
    WORK.end()
    with working(room, 6, uid=1) as end:
        pid = os.fork()
        if pid == 0:
            time.sleep(0.3)
            os.write(end, b"x")
            os._exit(0)
        began_s = time.monotonic()
        enter()
        assert time.monotonic() - began_s >= 0.2
        assert WORK.is_at_work
        os.waitpid(pid, 0)


def test_its_wait_is_bounded_and_the_job_is_told_why(enter, room):
    enter()
    WORK.end()
    with working(room, 6, uid=1):
        began_s = time.monotonic()
        lack = "6 of other jobs were starting on node n1 at that time"
        with pytest.raises(NodeBusyError, match=f"its Prolog could not begin within 0.3 s: {lack}"):
            enter(0.6)
        assert 0.25 <= time.monotonic() - began_s < 5
        with pytest.raises(NodeBusyError):
            enter(30.0, left_s=10.0)  # its shell has waited already
    assert not WORK.is_at_work


def test_one_user_does_not_keep_anothers_prolog_waiting(enter, room):
    enter()
    WORK.end()
    with working(room, 5, uid=1):
        enter(0.2, uid=2)
    assert WORK.is_at_work


def test_the_lane_is_left_as_soon_as_it_has_a_place(enter, room, monkeypatch):
    """The next one of the user's may then look for one; the shell still has the file open."""
    enter()
    WORK.end()
    lane = os.open(room / "1000.0", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lane, fcntl.LOCK_EX)
    shared = os.dup(lane)
    monkeypatch.setattr(places, "LANE_FD", shared)
    enter()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(shared)
    other = os.open(room / "1000.0", os.O_RDWR)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)
    os.close(lane)


def test_an_epilog_stays_in_its_lane_until_it_waits_for_others(site, enter, room, monkeypatch):
    """As long as it computes, the next one of the user's stays in its shell, whatever places there are."""
    enter()
    WORK.end()
    lane = os.open(room / "release-1000.0", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lane, fcntl.LOCK_EX)
    monkeypatch.setattr(places, "LANE_FD", os.dup(lane))
    environment = site.hook_environment("a")
    with working(room, 6, uid=1):
        turnstile.enter_at_once(job_context.of_job(environment), environment)
        assert WORK.is_at_work
    other = os.open(room / "release-1000.0", os.O_RDWR)
    with pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    WORK.end()
    assert not WORK.is_at_work
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)
    os.close(lane)


def test_a_file_that_is_no_lane_is_left_alone(enter, tmp_path, monkeypatch):
    """Slurm, or a wrapper around the hook, may have the descriptor open."""
    theirs = os.open(tmp_path / "theirs", os.O_RDWR | os.O_CREAT)
    monkeypatch.setattr(places, "LANE_FD", theirs)
    enter()
    os.close(theirs)


def test_a_prolog_that_waits_for_its_record_makes_room(site, enter):
    """An Epilog may be releasing an earlier run for half a minute."""
    folder = site.folder()
    folder.create()
    enter()
    with prolog._locked(folder, 0.1):
        assert WORK.is_at_work
    with folder.locked(1.0), pytest.raises(RecordBusyError, match=r"over 0\.1 s"):
        prolog._locked(folder, 0.1)
    assert not WORK.is_at_work


def test_without_a_place_to_keep_its_locks_a_prolog_goes_on(enter, room, syslog_lines):
    turnstile.FOLDER.parent.mkdir(exist_ok=True)
    turnstile.FOLDER.touch()
    enter()
    assert not WORK.is_at_work
    assert any("no-turnstile" in line for _, line in syslog_lines)


def test_an_epilog_makes_a_prolog_wait_and_never_waits_itself(site, enter, room):
    environment = site.hook_environment("a")
    job = job_context.of_job(environment)
    turnstile.enter_at_once(job, environment)
    assert not WORK.is_at_work, "no Prolog has run yet"
    enter()
    WORK.end()
    turnstile.enter_at_once(job, environment)
    assert WORK.is_at_work
    WORK.end()
    with working(room, 6, uid=1):
        began_s = time.monotonic()
        turnstile.enter_at_once(job, environment)
        assert time.monotonic() - began_s < 1
        assert not WORK.is_at_work
