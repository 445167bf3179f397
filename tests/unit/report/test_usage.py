"""What acquisitions add up to."""

from datetime import datetime

import pytest
from ledger_lines import DAY_S, TODAY_S, failed, line, usage_of

from qrmi_slurm.errors import QrmiSlurmError
from qrmi_slurm.report import usage


def sums(rows):
    return {row.key: (len(row.jobs), row.acquired, row.failed, row.held_s) for row in rows}


SOME = (
    line(1),
    line(1, id="second", qpu="b", held_s=1800.0),
    line(2, user="bob", account="physics", held_s=60.0),
    failed(3, user="carol", account="", qpu="b"),
)


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("user", {("alice",): (1, 2, 0, 5400.0), ("bob",): (1, 1, 0, 60.0), ("carol",): (1, 0, 1, 0.0)}),
        ("account", {("physics",): (2, 3, 0, 5460.0), ("",): (1, 0, 1, 0.0)}),
        ("qpu", {("a",): (2, 2, 0, 3660.0), ("b",): (2, 1, 1, 1800.0)}),
        ("type,cluster,node", {("oqtopus", "c", "n1"): (3, 3, 1, 5460.0)}),
        (" User , QPU ", {("alice", "a"): (1, 1, 0, 3600.0), ("alice", "b"): (1, 1, 0, 1800.0),
                          ("bob", "a"): (1, 1, 0, 60.0), ("carol", "b"): (1, 0, 1, 0.0)}),
    ],
)  # fmt: skip
def test_acquisitions_are_added_up_by_keys(keys, expected):
    rows = usage.group(usage_of(*SOME), usage.parse_keys(keys))
    assert sums(rows) == expected
    assert [row.held_s for row in rows] == sorted((row.held_s for row in rows), reverse=True)


def test_the_total_counts_each_job_once():
    row = usage.total(usage_of(*SOME))
    assert (len(row.jobs), row.acquired, row.failed, row.held_s) == (3, 3, 1, 5460.0)


@pytest.mark.parametrize("text", ["", "job", "user,user", "user,", "acquisition,user", "\x1b"])
def test_unknown_and_repeated_keys_are_refused(text):
    with pytest.raises(QrmiSlurmError, match="--by takes one or more of user, account, qpu"):
        usage.parse_keys(text)


def test_utilization_is_a_share_of_the_capacity_and_unused_qpus_are_listed():
    found = usage_of(line(1), line(2, id="2"), since_s=TODAY_S + 12 * 3600, until_s=TODAY_S + 13 * 3600, a=4, unused=1)
    rows = {row.key[0]: row.utilization for row in usage.group(found, ["qpu"])}
    assert rows == {"a": 0.5, "unused": 0.0}
    assert usage.total(found).utilization == pytest.approx(2 / 5)
    assert [row.utilization for row in usage.group(found, ["user"])] == [None]


def test_time_held_over_midnight_is_split_between_local_days(zone):
    """In the night when clocks go forward in Berlin, too, the seconds add up."""
    began = datetime(2026, 3, 28, 23, 0).timestamp()
    found = usage_of(line(1, at_s=began, held_s=30 * 3600.0), since_s=began - DAY_S, until_s=began + 5 * DAY_S)
    rows = usage.group(found, ["day"])
    assert [row.key[0] for row in rows] == ["2026-03-28", "2026-03-29", "2026-03-30"]
    assert sum(row.held_s for row in rows) == 30 * 3600.0
    assert [row.acquired for row in rows] == [1, 0, 0]
    day_s = datetime(2026, 3, 30).timestamp() - datetime(2026, 3, 29).timestamp()
    assert rows[1].held_s == day_s == (23 * 3600.0 if zone == "Europe/Berlin" else DAY_S)
