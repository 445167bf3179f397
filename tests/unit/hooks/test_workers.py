"""Work on many things in processes side by side: all outcomes in order, and none that fails costs the others."""

import os
import time
from pathlib import Path

from qrmi_slurm.hooks import workers
from qrmi_slurm.hooks.workers import Limits, Unfinished

LIMITS = Limits(at_once=4, each_s=10.0)


def done(work, items, limits=LIMITS, services=None, begin_s=None):
    return workers.side_by_side(work, items, services or [()] * len(items), begin_s or [60.0] * len(items), limits)


def test_the_outcomes_come_in_the_order_of_the_things():
    def work(seconds):
        time.sleep(seconds)
        return seconds, os.getpid()

    outcomes = done(work, [0.3, 0.0, 0.1, 0.2, 0.0])
    assert [seconds for seconds, _ in outcomes] == [0.3, 0.0, 0.1, 0.2, 0.0]
    assert len({pid for _, pid in outcomes} - {os.getpid()}) == 5


def test_one_that_takes_too_long_is_ended_alone():
    def work(seconds):
        time.sleep(seconds)
        return seconds

    assert done(work, [60.0, 0.0], LIMITS._replace(each_s=0.5)) == [
        Unfinished("working on it took longer than 0.5 s"),
        0.0,
    ]


def test_one_whose_process_ends_is_told_apart():
    def work(status):
        if status:
            os._exit(status)
        return "fine"

    assert done(work, [3, 0]) == [Unfinished("the process that worked on it has ended with status 3"), "fine"]


def test_after_its_time_nothing_new_begins(tmp_path):
    def work(number):
        (tmp_path / str(number)).touch()
        time.sleep(0.6)
        return number

    outcomes = done(work, [0, 1, 2], LIMITS._replace(at_once=1), begin_s=[0.3, 0.3, 30])
    assert outcomes == [0, Unfinished("this run had no time left for it; the next one goes on"), 2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "2"]


def test_a_service_that_hangs_leaves_room():
    """Eight things wait for it; the one behind them does not."""
    ends = {}

    def work(item):
        if item == "slow":
            time.sleep(1.5)
        return time.monotonic()

    began_s = time.monotonic()
    ends = done(work, ["slow"] * 8 + ["quick"], services=[("slow",)] * 8 + [("quick",)])
    assert ends[-1] - began_s < 1.4
    assert ends[7] - began_s > 1.5


def test_nothing_is_left_running():
    before, children = set(os.listdir("/proc/self/fd")), _children()
    done(time.sleep, [30.0, 0.0], LIMITS._replace(each_s=0.3))
    assert set(os.listdir("/proc/self/fd")) == before
    assert _children() == children


def _children():
    return {pid for pid in os.listdir("/proc") if pid.isdecimal() and _parent(pid) == os.getpid()}


def _parent(pid):
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
