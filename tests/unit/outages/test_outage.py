"""What an outage's text says: written for Slurm, read back, and shown to users."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrmi_slurm.config.config_file import Resource
from qrmi_slurm.config.slurm_section import SlurmSection
from qrmi_slurm.outages import outage
from qrmi_slurm.outages.outage import Outage


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (Outage("l", 1, True, "until Friday", "root", "2026-11-23T06:30"), "root at 2026-11-23T06:30: until Friday"),
        (Outage("l", 1, True, "5 % = x", "a=b", "2026-11-23T06:30"), "a%3Db at 2026-11-23T06:30: 5 %25 %3D x"),
    ],
)
def test_a_drain_names_its_admin_and_its_time(written, text):
    assert written.text == f"drained by {text}"


@pytest.mark.parametrize(("by", "since"), [("", ""), ("root", ""), ("", "2026-11-23T06:30")])
def test_an_unknown_admin_or_time_does_not_become_part_of_the_reason(by, since):
    """As when the sensor takes over a new count for a reservation that an admin made by hand."""
    written = Outage("l", 1, True, "back on Monday", by, since)
    assert outage.from_text("l", 1, written.text, 0.0) == written


@pytest.mark.parametrize(
    ("state", "text", "notice"),
    [
        ("paused", "offline: paused", "offline: paused"),
        ("offline", "offline: offline", "offline"),
        ("Out of helium", "offline: offline", "offline: Out of helium"),
    ],
)
def test_a_state_that_slurm_cannot_hold_is_written_as_offline(state, text, notice):
    found = Outage("l", 1, False, state)
    assert (found.text, found.notice) == (text, notice)


def test_a_failed_start_names_its_job_and_its_time():
    """Users read the state alone."""
    written = Outage("l", 1, False, "no-answer", "job 12 on n1", "2026-11-23T06:30", 7.0, 5.0)
    assert written.text == "offline: no-answer since 2026-11-23T06:30, says job 12 on n1"
    assert (written.notice, written.is_of_job) == ("offline: no-answer", True)
    assert outage.from_text("l", 1, written.text, 7.0, 5.0) == written
    assert not Outage("l", 1, False, "paused").is_of_job
    assert not Outage("l", 1, True, "paused", "root").is_of_job


@given(
    by=st.from_regex(r"[A-Za-z0-9_.@\\%=-]{1,20}", fullmatch=True).filter(lambda by: by != "unknown"),
    reason=st.text(st.characters(exclude_categories=("C", "Z"), include_characters=" =%"), min_size=1, max_size=60),
)
def test_a_drain_is_read_as_it_was_written(by, reason):
    written = Outage("l", 2, True, reason.strip() or "x", by, "2026-11-23T06:30", 7.0)
    assert outage.from_text("l", 2, written.text, 7.0) == written


@pytest.mark.parametrize(
    ("text", "notice"),
    [
        ("offline: paused", "offline: paused"),
        ("offline: Out of helium", "drained: offline: Out of helium"),
        ("(null)", "drained: no reason given"),
        ("", "drained: no reason given"),
        ("back on Monday", "drained: back on Monday"),
        ("offline: paused since x, says nobody", "drained: offline: paused since x, says nobody"),
    ],
)
def test_a_text_that_an_admin_wrote_by_hand_is_the_reason_for_a_drain(text, notice):
    assert outage.from_text("l", 1, text, 0.0).notice == notice


def test_qpus_that_share_a_license_share_its_notice():
    """A QPU without a license has none, and neither has one whose license is in service."""
    resources = [
        Resource("a", "t", {}, slurm=SlurmSection("qpu_a")),
        Resource("b", "t", {}, slurm=SlurmSection("qpu_a")),
        Resource("c", "t", {}, slurm=SlurmSection(None)),
        Resource("d", "t", {}, slurm=SlurmSection("qpu_d")),
    ]
    found = outage.notices(resources, {"qpu_a": Outage("qpu_a", 1, True, "x")})
    assert found == {"a": "drained: x", "b": "drained: x"}


@pytest.mark.parametrize("text", ["", "  ", "a\nb", "a\x1b[2Jb", "x" * 201, "\ud800"])
def test_a_reason_is_one_printable_line(text):
    assert outage.checked_reason(text) is None


def test_blanks_around_a_reason_are_dropped():
    assert outage.checked_reason("  bis März ") == "bis März"
