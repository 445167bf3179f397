"""Work with a deadline, and work side by side."""

import time

import pytest

from qrmi_slurm.checks.online import bounded


def test_work_that_takes_too_long_is_abandoned():
    """At the deadline the caller goes on; an exception raised before it reaches the caller."""
    began_s = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.1 s"):
        bounded.within(0.1, lambda: time.sleep(1))
    assert time.monotonic() - began_s < 0.3
    assert bounded.within(5, lambda: "answer") == "answer"
    with pytest.raises(KeyError):
        bounded.within(5, lambda: {}["x"])


def test_work_side_by_side():
    """Ten tasks take as long as one, and their results keep the tasks' order."""
    began_s = time.monotonic()
    assert bounded.side_by_side([lambda n=n: time.sleep(0.2) or n for n in range(10)]) == list(range(10))
    assert time.monotonic() - began_s < 1
