"""How much a busy QPU was in use in each slice of a timespan."""

from ledger_lines import NOW_S, failed, line, usage_of

from qrmi_slurm.report import colors, slices, usage
from qrmi_slurm.report.timespan import Timespan


def test_time_is_shared_between_the_slices_in_which_it_was_held():
    """What was held before or after the timespan counts in none of them."""
    found = usage_of(
        line(1, at_s=NOW_S - 50, held_s=100.0),
        line(2, at_s=NOW_S + 90, held_s=60.0, user="bob"),
        failed(3, asked_s=NOW_S + 150, user="carol"),
        since_s=NOW_S,
        until_s=NOW_S + 200,
    )
    of_who = colors.assign(found, usage.KEYS["user"])
    first, second = slices.cut(found.acquisitions, found.span, of_who, 2)
    assert (first.span, second.span) == (Timespan(NOW_S, NOW_S + 100), Timespan(NOW_S + 100, NOW_S + 200))
    assert (first.held_by_ms, second.held_by_ms) == ({"alice": 50_000, "bob": 10_000}, {"bob": 50_000})
    assert first.held_ms == {of_who.numbers["alice"]: 50_000, of_who.numbers["bob"]: 10_000}
    assert [(one.asked, one.failed) for one in (first, second)] == [(2, 0), (1, 1)]
