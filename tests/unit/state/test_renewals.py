"""What a broker and recover note about sessions, and how it gets into the record."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrmi_slurm.secret import Secret
from qrmi_slurm.state import renewals
from qrmi_slurm.state.job_folder import JobFolder
from qrmi_slurm.state.record import Broker, Entry, Record, State
from qrmi_slurm.state.renewals import Renewal


@pytest.fixture
def file(tmp_path):
    fd = os.open(tmp_path / "sessions", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    yield fd
    os.close(fd)


def test_what_was_written_is_read(file):
    one, other = Renewal(1, 0, 1000.25, 60), Renewal(2, 3, 2000.5, 28800)
    assert renewals.append(file, [renewals.asked(one), renewals.asked(other)])
    assert renewals.append(file, [renewals.opened(1, 1001.5, "abc-1"), renewals.refused(2), renewals.ends(9.0)])
    assert renewals.append(file, [renewals.ends(10.0)])
    found = renewals.read_open(file)
    assert found.asked == (
        one._replace(token=Secret("abc-1"), opened_s=1001.5),
        other._replace(is_refused=True),
    )
    assert found.ends_s == 10.0


@pytest.mark.parametrize("text", ["opened 1 1.000 x\n", "asked 1 0 1.000", "asked 99999 0 1.000 5\n", "ends x\n", "\0"])
def test_a_line_that_is_none_counts_for_nothing(text):
    found = renewals.parse(text.replace("asked 1 0 1.000", "asked 1 0 1.00"))
    assert found == renewals.Renewals()


@given(st.text(max_size=200))
def test_anything_can_be_read(text):
    renewals.parse(text)


@pytest.fixture
def folder(tmp_path):
    """The folder of a job with two QPUs behind a broker."""
    made = JobFolder(tmp_path / "state", "test", 12)
    made.create()
    entries = [Entry(name, "t", {"K": name}, state=State.ACQUIRED, token=Secret(name)) for name in ("a", "b")]
    broker = Broker(1, 2, 3, 0, {"b": Secret("k"), "a": Secret("k")}, "", 9.0)
    made.write(Record("test", 12, 1, "n1", "b", 0, 5.0, tuple(entries), broker=broker))
    return made


def note(folder, *lines):
    fd = os.open(folder.path / "sessions", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    renewals.append(fd, lines)
    os.close(fd)


def shown(record):
    return [(entry.name, entry.state, entry.token and entry.token.reveal()) for entry in record.entries[2:]]


def test_the_record_has_what_the_broker_has_opened_or_may_have(folder):
    note(folder, renewals.asked(Renewal(1, 1, 100.0, 60)))
    assert shown(folder.read()) == [("a", State.ACQUIRING, None)]
    folder.write(folder.read())
    note(folder, renewals.opened(1, 101.0, "a2"))
    read = folder.read()
    assert shown(read) == [("a", State.ACQUIRED, "a2")]
    new = read.entries[2]
    assert (new.environment, new.ends_s, new.acquired_s, new.journal) == ({"K": "a"}, 160.0, 101.0, 1)
    assert new.expires_s > 160.0
    note(folder, renewals.asked(Renewal(2, 0, 200.0, 60)), renewals.refused(2))
    assert shown(folder.read())[1:] == [("b", State.FAILED, None)]
    folder.write(folder.read())
    assert len(folder.read().entries) == 4


def test_what_was_released_does_not_come_back(folder):
    note(folder, renewals.asked(Renewal(1, 1, 100.0, 60)), renewals.opened(1, 101.0, "a2"))
    read = folder.read()
    folder.write(read._replace(entries=read.entries[:2]))
    assert shown(folder.read()) == []


def test_a_place_that_the_broker_does_not_have_is_nobodys(folder):
    note(folder, renewals.asked(Renewal(1, 7, 100.0, 60)))
    assert shown(folder.read()) == []
