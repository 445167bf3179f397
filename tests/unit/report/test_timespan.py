"""Timespans, in the words that people use."""

from datetime import datetime

import pytest
from ledger_lines import NOW_S, TODAY_S

from qrmi_slurm.errors import QrmiSlurmError
from qrmi_slurm.report import timespan
from qrmi_slurm.report.timespan import Timespan


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("today", datetime(2026, 1, 31)),
        ("Yesterday", datetime(2026, 1, 30)),
        ("90m", datetime(2026, 1, 31, 14)),
        ("12h", datetime(2026, 1, 31, 3, 30)),
        ("7d", datetime(2026, 1, 24, 15, 30)),
        ("2w", datetime(2026, 1, 17, 15, 30)),
        ("2026-01", datetime(2026, 1, 1)),
        ("2026-01-05", datetime(2026, 1, 5)),
        (" 2026-01-05T06:07 ", datetime(2026, 1, 5, 6, 7)),
        ("2026-01-05 06:07:08", datetime(2026, 1, 5, 6, 7, 8)),
        ("2026-01-05T06:07:08+00:00", datetime.fromisoformat("2026-01-05T06:07:08+00:00")),
    ],
)
def test_a_moment_as_people_write_it(zone, text, moment):
    now_s = datetime(2026, 1, 31, 15, 30).timestamp()
    assert timespan.parse(text, "now", now_s) == Timespan(moment.timestamp(), now_s)


@pytest.mark.parametrize("text", ["", "soon", "7", "7y", "-7d", "2026-13", "2026-01-32", "31.1.2026", "\x1b[2J"])
def test_anything_else_is_refused(text):
    with pytest.raises(QrmiSlurmError, match="is not a time") as caught:
        timespan.parse(text, "now", NOW_S)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("text", ["99999w", "1900-01-01T00:00"])
def test_a_moment_before_the_epoch_becomes_the_epoch(zone, text):
    assert timespan.parse(text, "now", NOW_S).since_s == 0


@pytest.mark.parametrize(("since", "until"), [("today", "yesterday"), ("now", "now"), ("2026-02-01", "2026-03-01")])
def test_an_empty_timespan_is_refused(since, until):
    with pytest.raises(QrmiSlurmError, match="--since has to be in the past, and before --until"):
        timespan.parse(since, until, NOW_S)


def test_the_present_replaces_the_future():
    assert timespan.parse("today", "2027-01-01", NOW_S) == Timespan(TODAY_S, NOW_S)
