"""Reading ledgers as crashes leave them, and the records of what is held now."""

import gzip
import json
import time
import tracemalloc

import pytest
from doubles import COMPUTE_SERVICE, SECRET
from hypothesis import given
from hypothesis import strategies as st
from ledger_lines import DAY_S, NOW_S, TODAY_S, line, write

from qrmi_slurm.errors import RecordError
from qrmi_slurm.report import ledgers
from qrmi_slurm.report.timespan import Timespan
from qrmi_slurm.secret import Secret
from qrmi_slurm.state.job_folder import JobFolder
from qrmi_slurm.state.record import Entry, Record, State


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "state" / "c" / ".accounting"
    folder.mkdir(parents=True)
    return folder


def read(folder, since_s=TODAY_S, until_s=NOW_S):
    return ledgers.read(folder.parents[1], Timespan(since_s, until_s), NOW_S)


def test_acquisitions_outside_the_timespan_are_left_out(folder):
    write(
        folder / "n1.2026-01.jsonl",
        line(1, at_s=TODAY_S - 7200),
        line(2, at_s=TODAY_S - 1800),
        line(3),
        line(4, at_s=NOW_S - 60),
        line(5, at_s=NOW_S + 60),
    )
    found, damaged = read(folder)
    assert ([one.job_id for one in found], damaged) == ([2, 3, 4], 0)
    span = Timespan(TODAY_S, NOW_S)
    assert [one.held_s(span) for one in found] == [1800.0, 3600.0, 60.0]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        '{"version": 1, "id": "x"',
        "null",
        "[]",
        '"text"',
        "{}",
        "\x00" * 4096,
        json.dumps(line(9))[:-30],
        json.dumps(line(9, version=2)),
        json.dumps(line(9, asked_s=float("nan"))),
        json.dumps(line(9, ended_s=1e300)),
        json.dumps(line(9, ended_s=-1)),
        json.dumps(line(9, job_id="x")),
        json.dumps(line(9, acquired_s={})),
        "[" * 100_000,
        "x" * 1_000_000,
    ],
)
def test_an_unreadable_line_is_counted_and_the_others_are_kept(folder, text):
    (folder / "n1.2026-01.jsonl").write_text(f"{json.dumps(line(1))}\n{text}\n\n{json.dumps(line(2))}\n{text}")
    found, damaged = read(folder)
    assert [one.job_id for one in found] == [1, 2]
    assert damaged == 2


@given(st.binary(max_size=300))
def test_any_bytes_can_be_read(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("ledger") / "c" / ".accounting"
    folder.mkdir(parents=True)
    (folder / "n1.2026-01.jsonl").write_bytes(content)
    assert read(folder)[0] == []


def test_an_acquisition_in_several_lines_counts_once_and_ends_with_the_first(folder):
    write(folder / "n1.2026-01.jsonl", line(1, held_s=3600.0), line(1, held_s=7200.0))
    write(folder / "n2.2026-01.jsonl", line(1, held_s=5400.0), line(2))
    found, _ = read(folder)
    assert [(one.job_id, one.ended_s - one.acquired_s) for one in found] == [(1, 3600.0), (2, 3600.0)]


def test_a_second_end_in_the_timespan_does_not_bring_back_an_acquisition_that_ended_before_it(folder):
    write(folder / "n1.2025-12.jsonl", line(1, at_s=TODAY_S - 40 * DAY_S, held_s=60.0))
    write(folder / "n1.2026-01.jsonl", line(1, at_s=TODAY_S - 40 * DAY_S, held_s=40 * DAY_S + 60))
    assert read(folder) == ([], 0)


def test_files_of_old_months_are_not_opened(folder):
    (folder / "n1.2025-11.jsonl").symlink_to(folder / "gone")
    (folder / "n1.2025-10.jsonl.gz").symlink_to(folder / "gone")
    write(folder / "n1.2025-12.jsonl", line(1))
    assert len(read(folder)[0]) == 1
    with pytest.raises(RecordError, match=r"cannot read .*n1\.2025-1"):
        read(folder, since_s=TODAY_S - 40 * DAY_S)


def test_archives_are_read_up_to_where_they_are_damaged(folder):
    whole = gzip.compress("".join(f"{json.dumps(line(number))}\n" for number in range(500)).encode())
    (folder / "n1.2026-01.jsonl.gz").write_bytes(whole)
    assert len(read(folder)[0]) == 500
    (folder / "n1.2026-01.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    found, damaged = read(folder)
    assert len(found) < 500
    assert damaged == 1
    (folder / "n1.2026-01.jsonl.gz").write_bytes(b"not an archive")
    assert read(folder) == ([], 1)


def test_a_huge_ledger_is_read_in_little_memory_and_time(folder):
    """Months of busy QPUs, of which a week is kept."""
    with (folder / "n1.2026-01.jsonl").open("w") as file:
        for number in range(40_000):
            file.write(json.dumps(line(number, at_s=TODAY_S - number * 300, held_s=200.0)) + "\n")
    began_s = time.process_time()
    found, damaged = read(folder, since_s=TODAY_S - 7 * DAY_S)
    assert time.process_time() - began_s < 20
    assert (len(found), damaged) == (2016 + 1, 0)


def test_an_endless_line_is_not_kept_in_memory(folder):
    (folder / "n1.2026-01.jsonl").write_bytes(b"x" * 20_000_000 + b"\n" + json.dumps(line(1)).encode() + b"\n")
    tracemalloc.start()
    found, damaged = read(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (len(found), damaged) == (1, 1)
    assert peak < 3_000_000


def test_a_state_directory_that_does_not_exist_has_no_acquisitions(tmp_path):
    assert ledgers.read(tmp_path / "nowhere", Timespan(0, NOW_S), NOW_S) == ([], 0)


def hold(state_dir, *entries, job_id=12):
    folder = JobFolder(state_dir, "c", job_id)
    folder.create()
    folder.write(Record("c", job_id, 1001, "n1", "b", 0, NOW_S - 100, entries, user="bob", account="chemistry"))
    return folder


def held(name, state, *, token="t", **changes):  # noqa: S107 not a password
    environment = {f"{name}_{key}": value for key, value in COMPUTE_SERVICE.items()}
    times = {"asked_s": NOW_S - 100, "acquired_s": NOW_S - 90 if token else None, "since_s": NOW_S - 95}
    return Entry(
        name, "oqtopus", environment, state=state, token=Secret(token) if token else None, **{**times, **changes}
    )


def test_records_say_what_is_held_now_and_what_failed(tmp_path):
    folder = hold(
        tmp_path,
        held("a", State.ACQUIRED, token=f"{SECRET}-a", journal=0),
        held("b", State.RELEASING, journal=1),
        held("c", State.FAILED, token=None, journal=2),
        held("d", State.INDETERMINATE, token=None, journal=3),
        held("e", State.ACQUIRING, token=None, journal=4),
    )
    (folder.path / "array").write_text("10_2\n")
    found, _ = ledgers.read(tmp_path, Timespan(NOW_S - 3600, NOW_S), NOW_S)
    told = {one.qpu: (one.result, one.ended_s - one.asked_s, one.token, one.by) for one in found}
    assert told == {
        "a": ("held", 100.0, None, ""),
        "b": ("held", 100.0, None, ""),
        "c": ("failed", 5.0, None, ""),
        "d": ("unknown", 100.0, None, ""),
    }
    assert {(one.user, one.account, one.job) for one in found} == {("bob", "chemistry", "10_2")}
