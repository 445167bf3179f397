"""Reservations that keep a license out of service: read, created, changed without a gap where Slurm can, deleted."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrmi_slurm.deadline import Deadline
from qrmi_slurm.errors import SchedulerError
from qrmi_slurm.outages import reservations
from qrmi_slurm.outages.outage import Outage
from qrmi_slurm.outages.reservations import Reservations
from qrmi_slurm.slurm import commands

CONF = Path("/etc/slurm/slurm.conf")
NOW_S = 1_000_000.0

# As Slurm printed them, with times in seconds; 22.05 has Watts, 23.02 has Comment.
LINE_22 = (
    "ReservationName=qpu_out_qpu_a StartTime=1795415630 EndTime=1795417430 Duration=00:30:00 Nodes=(null) NodeCnt=0 "
    "CoreCnt=0 Features={text} PartitionName=(null) Flags=IGNORE_JOBS,ANY_NODES TRES=(null) Users=root Groups=(null) "
    "Accounts=(null) Licenses=qpu_a:2 State=ACTIVE BurstBuffer=(null) Watts=n/a MaxStartDelay=(null) \n"
)
LINE_26 = (
    "ReservationName=qpu_out_qpu_a StartTime=1795415630 EndTime=1795417430 Duration=00:30:00 Nodes=(null) NodeCnt=0 "
    "CoreCnt=0 Features=(null) PartitionName=(null) Flags=IGNORE_JOBS,ANY_NODES TRES=(null) AllowedPartitions=(null) "
    "QOS=(null) Users=root Groups=(null) Accounts=(null) Licenses=qpu_a:2 State=ACTIVE BurstBuffer=(null) "
    "MaxStartDelay=(null) Comment={text}\n"
)


def drained(reason="maintenance until Friday", count=1, by="root"):
    return Outage("qpu_a", count, is_drained=True, reason=reason, by=by, since="2026-11-23T06:30")


def offline(state="paused", count=1, ends_s=0.0):
    return Outage("qpu_a", count, is_drained=False, reason=state, ends_s=ends_s)


def having(*outages):
    return Reservations({outage.license: outage for outage in outages}, {})


def only(found):
    (outage,) = found.outages.values()
    return outage


@pytest.mark.parametrize("line", [LINE_22, LINE_26], ids=["22.05", "26.05"])
@given(reason=st.text(st.characters(exclude_categories=("C", "Z"), include_characters=" =%"), min_size=1, max_size=60))
def test_a_reason_is_read_as_it_was_written(line, reason):
    """Whatever an admin writes stays within its field of scontrol's output."""
    reason = reason.strip()
    if not reason:
        return
    found = reservations.parse(line.format(text=drained(reason).text))
    outage = only(found)
    assert (outage.license, outage.count, outage.is_drained, outage.ends_s) == ("qpu_a", 2, True, 1795417430)
    assert (outage.by, outage.since) == ("root", "2026-11-23T06:30")
    assert outage.reason == reason
    assert not found.busy_until_s


@pytest.mark.parametrize("line", [LINE_22, LINE_26], ids=["22.05", "26.05"])
def test_a_reason_cannot_forge_a_field(line):
    """Slurm's own fields are read correctly even if a reason contains their names."""
    reason = "x PartitionName=y Flags=z Licenses=other:9 State=ACTIVE MaxStartDelay=1 Comment=offline: paused"
    outage = only(reservations.parse(line.format(text=drained(reason).text)))
    assert (outage.license, outage.count, outage.reason) == ("qpu_a", 2, reason)


@pytest.mark.parametrize("line", [LINE_22, LINE_26], ids=["22.05", "26.05"])
@pytest.mark.parametrize(
    ("text", "notice"),
    [
        ("offline: paused", "offline: paused"),
        ("offline: offline", "offline"),
        ("(null)", "drained: no reason given"),
        ("back on Monday", "drained: back on Monday"),
    ],
)
def test_other_texts_of_a_reservation(line, text, notice):
    """The sensor's, and those of a reservation that an admin has made or changed by hand."""
    assert only(reservations.parse(line.format(text=text))).notice == notice


def test_other_reservations_keep_licenses_busy():
    """Their licenses are busy until they end; reservations without licenses are ignored."""
    other = LINE_26.replace("qpu_out_qpu_a", "weekly").replace("qpu_a:2", "qpu_a:1,qpu_b:1")
    wrong = LINE_26.replace("qpu_out_qpu_a", "qpu_out_qpu_z")
    nodes = LINE_26.replace("qpu_out_qpu_a", "maint").replace("qpu_a:2", "(null)")
    found = reservations.parse("No reservations\n" + other + wrong + nodes + "ReservationName=cut")
    assert not found.outages
    assert found.busy_until_s == {"qpu_a": 1795417430, "qpu_b": 1795417430}
    (course,) = found.others["qpu_b"]
    assert (course.name, course.begins_s, course.ends_s) == ("weekly", 1795415630, 1795417430)


@pytest.mark.parametrize("knows_comments", [True, False], ids=["23.02", "22.05"])
def test_from_offline_to_drained_and_back(slurm, knows_comments):
    """Each step leaves one reservation that says so; if Slurm has comments, the license is never free in between."""
    slurm.knows_comments = knows_comments
    slurm.licenses["qpu_a"] = (1, 1)
    for wanted in (offline(), drained(), drained("later"), offline("offline")):
        assert reservations.put(wanted, reservations.read(CONF), CONF, NOW_S)
        after = only(reservations.read(CONF))
        assert after.matches(wanted)
    deleted = [change for change in slurm.changes if change.startswith("delete")]
    assert len(deleted) == (0 if knows_comments else 3)
    reservations.remove("qpu_a", CONF)
    reservations.remove("qpu_a", CONF)
    assert not slurm.reservations


def test_an_unchanged_outage_sends_nothing_to_slurm(slurm):
    """So slurmctld and its database get no new entry each minute."""
    slurm.licenses["qpu_a"] = (1, 0)
    for wanted in (drained(), offline(ends_s=NOW_S + 31 * 60)):
        assert not reservations.put(wanted, having(wanted), CONF, NOW_S)
    assert slurm.changes == []


def test_the_sensors_reservation_is_renewed_in_time(slurm):
    """With less than half an hour left it gets another hour, by an update that Slurm cannot refuse."""
    before = offline(ends_s=NOW_S + 29 * 60)
    slurm.reservations["qpu_out_qpu_a"] = {}
    assert reservations.put(offline(), having(before), CONF, NOW_S)
    assert slurm.changes == ["update ReservationName=qpu_out_qpu_a EndTime=now+60minutes"]


@pytest.mark.parametrize("knows_comments", [True, False], ids=["24.11", "22.05"])
def test_the_sensor_adopts_the_reservation_of_a_failed_start(slurm, knows_comments):
    """It gets the sensor's hour, and its word where Slurm can change that without a gap."""
    slurm.knows_comments = knows_comments
    slurm.licenses["qpu_a"] = (1, 0)
    slurm.now_s = NOW_S
    by_job = Outage("qpu_a", 1, False, "no-answer", "job 12 on n1", "2026-11-23T06:30")
    assert reservations.put_new(by_job, having(), CONF, Deadline.after(5))
    assert not reservations.put_new(by_job, reservations.read(CONF), CONF, Deadline.after(5))
    assert only(reservations.read(CONF)).ends_s == NOW_S + 300
    assert reservations.put(offline("unreachable"), reservations.read(CONF), CONF, NOW_S)
    after = only(reservations.read(CONF))
    assert after.ends_s == NOW_S + 3600
    assert after.text == (offline("unreachable") if knows_comments else by_job).text
    assert not reservations.put(offline("unreachable"), reservations.read(CONF), CONF, NOW_S)
    assert not [change for change in slurm.changes if change.startswith("delete")]


def test_a_failed_start_at_the_same_moment_does_not_undo_a_drain(slurm):
    """Its reservation comes between the question and the admin's: that one takes it over."""
    slurm.licenses["qpu_a"] = (1, 0)
    slurm.now_s = NOW_S
    by_job = Outage("qpu_a", 1, False, "no-answer", "job 12 on n1", "2026-11-23T06:30")
    assert reservations.put_new(by_job, having(), CONF, Deadline.after(5))
    assert reservations.put(drained(), having(), CONF, NOW_S)
    assert only(reservations.read(CONF)).matches(drained())


def test_a_new_count_in_slurm_conf_replaces_the_reservation(slurm):
    slurm.licenses["qpu_a"] = (3, 0)
    reservations.put(drained(count=1), having(), CONF, NOW_S)
    reservations.put(drained(count=3), having(drained(count=1)), CONF, NOW_S)
    assert only(reservations.read(CONF)).count == 3


@pytest.mark.parametrize("knows_comments", [True, False], ids=["23.02", "22.05"])
def test_a_license_that_another_reservation_holds(slurm, knows_comments):
    """Ours is created for a time after the other one, then moved to start now and given its full length."""
    slurm.knows_comments = knows_comments
    slurm.licenses["qpu_a"] = (1, 0)
    slurm.now_s = NOW_S
    slurm.reservations["course"] = {"Licenses": "qpu_a:1", "EndTime": "now+90minutes"}
    assert reservations.put(drained(), reservations.read(CONF), CONF, NOW_S)
    *_, made, moved = slurm.changes
    assert " StartTime=now+5520 Duration=1 " in made
    assert moved == "update ReservationName=qpu_out_qpu_a StartTime=now Duration=UNLIMITED"
    assert only(reservations.read(CONF)).matches(drained())


def test_a_reservation_that_cannot_be_moved_to_now_is_deleted(slurm, monkeypatch):
    """Slurm has lost its licenses by then, so it would hold nothing."""
    slurm.licenses["qpu_a"] = (1, 0)
    slurm.now_s = NOW_S
    slurm.reservations["course"] = {"Licenses": "qpu_a:1", "EndTime": "now+90minutes"}
    monkeypatch.setattr(slurm, "refuses_update", True)
    with pytest.raises(SchedulerError):
        reservations.put(drained(), reservations.read(CONF), CONF, NOW_S)
    assert set(slurm.reservations) == {"course"}


def test_slurms_refusal_is_quoted(slurm):
    """The hint to check whether slurmctld is running appears only if it has not answered."""
    slurm.licenses["qpu_a"] = (1, 0)
    slurm.full = {"qpu_a"}
    with pytest.raises(SchedulerError) as refused:
        reservations.put(drained(), having(), CONF, NOW_S)
    said = reservations.explain(refused.value)
    assert said == "scontrol failed: Error creating the reservation: Invalid license specification"
    slurm.is_up = False
    with pytest.raises(SchedulerError) as down:
        reservations.put(drained(), having(), CONF, NOW_S)
    assert "is slurmctld running" in reservations.explain(down.value)


def test_an_answer_of_several_lines_is_searched_as_a_whole(tmp_path, monkeypatch):
    """scontrol names an unknown parameter in its first line, and something else in its last."""
    program = tmp_path / "scontrol"
    program.write_text("#!/bin/sh\necho 'scontrol: error: Unknown parameter Comment=x' >&2\necho last >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(commands, "_USUAL", ())
    with pytest.raises(commands.RefusedError, match="scontrol failed: last") as refused:
        commands.run(["scontrol", "update"], CONF)
    assert "Unknown parameter Comment=" in refused.value.stderr
