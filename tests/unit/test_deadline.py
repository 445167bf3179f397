"""Deadlines: how much time is left, and how little a call gets."""

import pytest

from qrmi_slurm import deadline
from qrmi_slurm.deadline import MIN_CALL_S, Deadline


class Clock:
    """A monotonic clock that tests set."""

    now_s = 1000.0

    def monotonic(self):
        return self.now_s


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(deadline, "time", made)
    return made


def test_what_is_left_shrinks_to_zero(clock):
    until = Deadline.after(30)
    assert (until.length_s, until.left_s) == (30, 30)
    clock.now_s += 20
    assert until.left_s == 10
    clock.now_s += 20
    assert until.left_s == 0
    assert until.length_s == 30


def test_a_call_gets_the_time_left_and_never_too_little_to_end_in_order(clock):
    until = Deadline.after(1)
    assert until.call_s == 1
    clock.now_s += 5
    assert until.call_s == MIN_CALL_S


def test_a_deadline_within_another_does_not_end_after_it(clock):
    whole = Deadline.after(10)
    clock.now_s += 4
    assert whole.within(2).ends_s == clock.now_s + 2
    assert whole.within(8).ends_s == whole.ends_s
    assert whole.within(8).length_s == 6
    clock.now_s += 10
    assert whole.within(8).left_s == pytest.approx(MIN_CALL_S)
