"""The ticks of a picture's time axis."""

from datetime import datetime

import pytest
from ledger_lines import DAY_S

from qrmi_slurm.report import ticks
from qrmi_slurm.report.timespan import Timespan


@pytest.mark.parametrize("length_s", [90, 3600, 8 * 3600, DAY_S, 7 * DAY_S, 40 * DAY_S, 400 * DAY_S, 4000 * DAY_S])
def test_ticks_are_round_and_few(zone, length_s):
    now_s = datetime(2026, 5, 5, 15, 30).timestamp()
    found = list(ticks.of(Timespan(now_s - length_s, now_s)))
    assert 1 <= len(found) <= 12
    assert all(now_s - length_s <= at_s < now_s for at_s, _ in found)
    if length_s >= 40 * DAY_S:
        assert all(
            (datetime.fromtimestamp(at_s).hour, datetime.fromtimestamp(at_s).minute) == (0, 0) for at_s, _ in found
        )
