"""Shares and durations, as people read them."""

import pytest

from qrmi_slurm.report import figures


@pytest.mark.parametrize(
    ("part", "text"),
    [(0, "0 %"), (0.00001, "<0.1 %"), (0.0123, "1.2 %"), (0.0996, "10 %"), (0.5, "50 %"), (1, "100 %")],
)
def test_shares_are_in_percent(part, text):
    assert figures.percent(part) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "00:00:00"), (59.6, "00:01:00"), (3661, "01:01:01"), (90061, "1-01:01:01")]
)
def test_durations_are_as_slurm_writes_them(seconds, text):
    assert figures.duration(seconds) == text
