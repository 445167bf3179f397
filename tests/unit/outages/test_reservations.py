"""What Slurm keeps of a QPU that is out of service: written, read back, changed without a gap where it can be."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrmi_slurm.config.config_file import Resource
from qrmi_slurm.config.slurm_section import SlurmSection
from qrmi_slurm.errors import SchedulerError
from qrmi_slurm.outages import reservations
from qrmi_slurm.outages.reservations import Outage, Reservations
from qrmi_slurm.slurm import commands

CONF = Path("/etc/slurm/slurm.conf")
NOW_S = 1_000_000.0

# As Slurm wrote them, with times in seconds; 22.05 has Watts, 23.02 Comment.
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
    """Whatever an admin writes stays one field, and comes back."""
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
def test_no_reason_looks_like_a_field(line):
    """Slurm's own fields stay what they are where a reason has their names in it."""
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
def test_what_else_stands_there(line, text, notice):
    """The sensor's words; and what an admin has made or changed by hand counts as theirs."""
    assert only(reservations.parse(line.format(text=text))).notice == notice


def test_what_is_not_ours():
    """Of others' reservations it is known until when they have which licenses; those without are passed over."""
    other = LINE_26.replace("qpu_out_qpu_a", "weekly").replace("qpu_a:2", "qpu_a:1,qpu_b:1")
    wrong = LINE_26.replace("qpu_out_qpu_a", "qpu_out_qpu_z")
    nodes = LINE_26.replace("qpu_out_qpu_a", "maint").replace("qpu_a:2", "(null)")
    found = reservations.parse("No reservations\n" + other + wrong + nodes + "ReservationName=cut")
    assert not found.outages
    assert found.busy_until_s == {"qpu_a": 1795417430, "qpu_b": 1795417430}


@pytest.mark.parametrize("knows_comments", [True, False], ids=["23.02", "22.05"])
def test_from_offline_to_drained_and_back(slurm, knows_comments):
    """Each step leaves one reservation that says so; where Slurm has comments the license is never free between."""
    slurm.knows_comments = knows_comments
    slurm.licenses["qpu_a"] = (1, 1)
    for wanted in (offline(), drained(), drained("later"), offline("offline")):
        assert reservations.put(wanted, reservations.read(CONF), CONF, NOW_S)
        after = only(reservations.read(CONF))
        assert after.says_as(wanted)
    deleted = [change for change in slurm.changes if change.startswith("delete")]
    assert len(deleted) == (0 if knows_comments else 3)
    reservations.remove("qpu_a", CONF)
    reservations.remove("qpu_a", CONF)
    assert not slurm.reservations


def test_the_same_again_is_left_alone(slurm):
    """Nothing is sent, so that slurmctld and its database have no new entry each minute."""
    slurm.licenses["qpu_a"] = (1, 0)
    for wanted in (drained(), offline(ends_s=NOW_S + 31 * 60)):
        assert not reservations.put(wanted, having(wanted), CONF, NOW_S)
    assert slurm.changes == []


def test_the_sensors_is_renewed_in_time(slurm):
    """With less than half an hour to go it gets another hour, and nothing that Slurm could refuse is sent."""
    before = offline(ends_s=NOW_S + 29 * 60)
    slurm.reservations["qpu_out_qpu_a"] = {}
    assert reservations.put(offline(), having(before), CONF, NOW_S)
    assert slurm.changes == ["update ReservationName=qpu_out_qpu_a EndTime=now+60minutes"]


def test_another_count(slurm):
    """Where slurm.conf has another number of licenses the reservation is made again."""
    slurm.licenses["qpu_a"] = (3, 0)
    reservations.put(drained(count=1), having(), CONF, NOW_S)
    reservations.put(drained(count=3), having(drained(count=1)), CONF, NOW_S)
    assert only(reservations.read(CONF)).count == 3


@pytest.mark.parametrize("knows_comments", [True, False], ids=["23.02", "22.05"])
def test_a_license_that_another_reservation_has(slurm, knows_comments):
    """Ours is made for a time after the other's, and then moved to begin now, with the time that it is to last."""
    slurm.knows_comments = knows_comments
    slurm.licenses["qpu_a"] = (1, 0)
    slurm.now_s = NOW_S
    slurm.reservations["course"] = {"Licenses": "qpu_a:1", "EndTime": "now+90minutes"}
    assert reservations.put(drained(), reservations.read(CONF), CONF, NOW_S)
    *_, made, moved = slurm.changes
    assert " StartTime=now+5520 Duration=1 " in made
    assert moved == "update ReservationName=qpu_out_qpu_a StartTime=now Duration=UNLIMITED"
    assert only(reservations.read(CONF)).says_as(drained())


def test_a_move_that_slurm_refuses(slurm, monkeypatch):
    """Nothing is left of the reservation that was made for later: its licenses are forgotten by Slurm."""
    slurm.licenses["qpu_a"] = (1, 0)
    slurm.now_s = NOW_S
    slurm.reservations["course"] = {"Licenses": "qpu_a:1", "EndTime": "now+90minutes"}
    monkeypatch.setattr(slurm, "refuses_update", True)
    with pytest.raises(SchedulerError):
        reservations.put(drained(), reservations.read(CONF), CONF, NOW_S)
    assert set(slurm.reservations) == {"course"}


def test_what_slurm_refuses(slurm):
    """Its own word is told, with a hint to see whether it runs only where it has not answered."""
    slurm.licenses["qpu_a"] = (1, 0)
    slurm.full = {"qpu_a"}
    with pytest.raises(SchedulerError) as refused:
        reservations.put(drained(), having(), CONF, NOW_S)
    said = reservations.in_words(refused.value)
    assert said == "scontrol failed: Error creating the reservation: Invalid license specification"
    slurm.is_up = False
    with pytest.raises(SchedulerError) as down:
        reservations.put(drained(), having(), CONF, NOW_S)
    assert "is slurmctld running" in reservations.in_words(down.value)


def test_slurm_says_more_than_one_line(tmp_path, monkeypatch):
    """scontrol names an unknown parameter in its first line, and something else in its last."""
    program = tmp_path / "scontrol"
    program.write_text("#!/bin/sh\necho 'scontrol: error: Unknown parameter Comment=x' >&2\necho last >&2\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(commands, "_USUAL", ())
    with pytest.raises(commands.RefusedError, match="scontrol failed: last") as refused:
        commands.run(["scontrol", "update"], CONF)
    assert "Unknown parameter Comment=" in refused.value.stderr


def test_notices_of_resources():
    """QPUs that share a license share its notice; those without one have none."""
    resources = [
        Resource("a", "t", {}, slurm=SlurmSection("qpu_a")),
        Resource("b", "t", {}, slurm=SlurmSection("qpu_a")),
        Resource("c", "t", {}, slurm=SlurmSection(None)),
        Resource("d", "t", {}, slurm=SlurmSection("qpu_d")),
    ]
    found = reservations.notices(resources, {"qpu_a": drained("x")})
    assert found == {"a": "drained: x", "b": "drained: x"}


@pytest.mark.parametrize("text", ["", "  ", "a\nb", "a\x1b[2Jb", "x" * 201, "\ud800"])
def test_what_is_no_reason(text):
    """A reason is one line that people can read."""
    assert reservations.checked_reason(text) is None


def test_blanks_around_a_reason_go():
    """What the shell's quotes may have kept."""
    assert reservations.checked_reason("  bis März ") == "bis März"
