"""The report: times as people write them, ledgers as crashes leave them, and what acquisitions add up to."""

import csv
import gzip
import io
import itertools
import json
import os
import re
import time
import tracemalloc
import xml.etree.ElementTree as ElementTree
from datetime import datetime
from html.parser import HTMLParser

import pytest
from doubles import COMPUTE_SERVICE, SECRET
from hypothesis import given
from hypothesis import strategies as st

from qrmi_slurm.errors import QrmiSlurmError, RecordError
from qrmi_slurm.report import page, timeline, timespan, usage
from qrmi_slurm.report.timespan import Timespan
from qrmi_slurm.report.usage import Usage
from qrmi_slurm.secret import Secret
from qrmi_slurm.state.job_folder import JobFolder
from qrmi_slurm.state.record import Entry, Record, State

DAY_S = 86400.0
NOW_S = datetime(2026, 1, 31, 15, 30).timestamp()
TODAY_S = datetime(2026, 1, 31).timestamp()


@pytest.fixture(params=["UTC", "Europe/Berlin", "America/St_Johns"])
def zone(request, monkeypatch):
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


# --- times ---------------------------------------------------------------------------------------------------


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
def test_a_time_as_people_write_it(zone, text, moment):
    now_s = datetime(2026, 1, 31, 15, 30).timestamp()
    assert timespan.parse(text, "now", now_s) == Timespan(moment.timestamp(), now_s)


@pytest.mark.parametrize("text", ["", "soon", "7", "7y", "-7d", "2026-13", "2026-01-32", "31.1.2026", "\x1b[2J"])
def test_what_is_no_time(text):
    with pytest.raises(QrmiSlurmError) as caught:
        timespan.parse(text, "now", NOW_S)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("text", ["99999w", "1900-01-01T00:00"])
def test_a_time_before_all_time_is_its_beginning(zone, text):
    assert timespan.parse(text, "now", NOW_S).since_s == 0


@pytest.mark.parametrize(("since", "until"), [("today", "yesterday"), ("now", "now"), ("2026-02-01", "2026-03-01")])
def test_a_timespan_that_is_none(since, until):
    with pytest.raises(QrmiSlurmError, match="--since is not before --until"):
        timespan.parse(since, until, NOW_S)


def test_what_is_to_come_is_now():
    assert timespan.parse("today", "2027-01-01", NOW_S) == Timespan(TODAY_S, NOW_S)


# --- ledgers -------------------------------------------------------------------------------------------------


def line(number=1, **changes):
    """Return a line of an acquisition of an hour at noon."""
    acquired_s = changes.pop("at_s", TODAY_S + 12 * 3600)
    held_s = changes.pop("held_s", 3600.0)
    return {
        "version": 1,
        "id": f"c/{number}/0/0/1",
        "cluster": "c",
        "job_id": number,
        "array_job_id": None,
        "array_task_id": None,
        "het_job_id": None,
        "restart": 0,
        "user": "alice",
        "uid": 1001,
        "account": "physics",
        "node": "n1",
        "qpu": "a",
        "type": "oqtopus",
        "token": f"{SECRET}-token",
        "result": "released",
        "by": "epilog",
        "reason": "",
        "asked_s": acquired_s - 1,
        "acquired_s": acquired_s,
        "ended_s": acquired_s + held_s,
        "held_s": held_s,
        **changes,
    }


def failed(number, **changes):
    at_s = TODAY_S + 3600
    return line(
        number, **{"result": "failed", "token": None, "acquired_s": None, "ended_s": at_s, "at_s": at_s, **changes}
    )


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "state" / "c" / ".accounting"
    folder.mkdir(parents=True)
    return folder


def write(path, *lines):
    path.write_text("".join(f"{json.dumps(item)}\n" for item in lines))


def read(place, since_s=TODAY_S, until_s=NOW_S):
    return usage.read(place.parents[1], Timespan(since_s, until_s), NOW_S)


def test_what_ended_before_or_begins_after_is_left_out(place):
    write(
        place / "n1.2026-01.jsonl",
        line(1, at_s=TODAY_S - 7200),
        line(2, at_s=TODAY_S - 1800),
        line(3),
        line(4, at_s=NOW_S - 60),
        line(5, at_s=NOW_S + 60),
    )
    found, damaged = read(place)
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
def test_a_line_that_cannot_be_read_is_counted_and_costs_no_other(place, text):
    (place / "n1.2026-01.jsonl").write_text(f"{json.dumps(line(1))}\n{text}\n\n{json.dumps(line(2))}\n{text}")
    found, damaged = read(place)
    assert [one.job_id for one in found] == [1, 2]
    assert damaged == 2


@given(st.binary(max_size=300))
def test_no_bytes_are_a_surprise(tmp_path_factory, content):
    place = tmp_path_factory.mktemp("ledger") / "c" / ".accounting"
    place.mkdir(parents=True)
    (place / "n1.2026-01.jsonl").write_bytes(content)
    assert read(place)[0] == []


def test_an_acquisition_counts_once_wherever_it_stands(place):
    write(place / "n1.2026-01.jsonl", line(1, held_s=3600.0), line(1, held_s=7200.0))
    write(place / "n2.2026-01.jsonl", line(1, held_s=5400.0), line(2))
    found, _ = read(place)
    assert [(one.job_id, one.ended_s - one.acquired_s) for one in found] == [(1, 3600.0), (2, 3600.0)]


def test_a_second_end_within_the_time_does_not_bring_back_one_that_ended_before(place):
    write(place / "n1.2025-12.jsonl", line(1, at_s=TODAY_S - 40 * DAY_S, held_s=60.0))
    write(place / "n1.2026-01.jsonl", line(1, at_s=TODAY_S - 40 * DAY_S, held_s=40 * DAY_S + 60))
    assert read(place) == ([], 0)


def test_old_months_are_not_even_opened(place):
    (place / "n1.2025-11.jsonl").symlink_to(place / "gone")
    (place / "n1.2025-10.jsonl.gz").symlink_to(place / "gone")
    write(place / "n1.2025-12.jsonl", line(1))
    assert len(read(place)[0]) == 1
    with pytest.raises(RecordError, match=r"cannot read .*n1\.2025-1"):
        read(place, since_s=TODAY_S - 40 * DAY_S)


def test_archives_are_read_as_they_are(place):
    whole = gzip.compress("".join(f"{json.dumps(line(number))}\n" for number in range(500)).encode())
    (place / "n1.2026-01.jsonl.gz").write_bytes(whole)
    assert len(read(place)[0]) == 500
    (place / "n1.2026-01.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    found, damaged = read(place)
    assert len(found) < 500
    assert damaged == 1
    (place / "n1.2026-01.jsonl.gz").write_bytes(b"no archive")
    assert read(place) == ([], 1)


def test_a_huge_ledger_is_read_in_little_memory_and_time(place):
    """Some months of busy QPUs; a week of them is kept."""
    with (place / "n1.2026-01.jsonl").open("w") as file:
        for number in range(40_000):
            file.write(json.dumps(line(number, at_s=TODAY_S - number * 300, held_s=200.0)) + "\n")
    began_s = time.process_time()
    found, damaged = read(place, since_s=TODAY_S - 7 * DAY_S)
    assert time.process_time() - began_s < 20
    assert (len(found), damaged) == (2016 + 1, 0)


def test_one_endless_line_is_not_kept(place):
    (place / "n1.2026-01.jsonl").write_bytes(b"x" * 20_000_000 + b"\n" + json.dumps(line(1)).encode() + b"\n")
    tracemalloc.start()
    found, damaged = read(place)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (len(found), damaged) == (1, 1)
    assert peak < 3_000_000


def test_no_ledger_is_no_usage(tmp_path):
    assert usage.read(tmp_path / "nowhere", Timespan(0, NOW_S), NOW_S) == ([], 0)


# --- what is held now ----------------------------------------------------------------------------------------


def hold(state_dir, *entries, job_id=12):
    folder = JobFolder(state_dir, "c", job_id)
    folder.create()
    folder.write(Record("c", job_id, 1001, "n1", "b", 0, NOW_S - 100, entries, user="bob", account="chemistry"))
    return folder


def held(name, state, *, token="t", **changes):  # noqa: S107 not one
    environment = {f"{name}_{key}": value for key, value in COMPUTE_SERVICE.items()}
    times = {"asked_s": NOW_S - 100, "acquired_s": NOW_S - 90 if token else None, "since_s": NOW_S - 95}
    return Entry(
        name, "oqtopus", environment, state=state, token=Secret(token) if token else None, **{**times, **changes}
    )


def test_records_say_what_is_held_now(tmp_path):
    folder = hold(
        tmp_path,
        held("a", State.ACQUIRED, token=f"{SECRET}-a", journal=0),
        held("b", State.RELEASING, journal=1),
        held("c", State.FAILED, token=None, journal=2),
        held("d", State.INDETERMINATE, token=None, journal=3),
        held("e", State.ACQUIRING, token=None, journal=4),
    )
    (folder.path / "array").write_text("10_2\n")
    found, _ = usage.read(tmp_path, Timespan(NOW_S - 3600, NOW_S), NOW_S)
    told = {one.qpu: (one.result, one.ended_s - one.asked_s, one.token, one.by) for one in found}
    assert told == {
        "a": ("held", 100.0, None, ""),
        "b": ("held", 100.0, None, ""),
        "c": ("failed", 5.0, None, ""),
        "d": ("unknown", 100.0, None, ""),
    }
    assert {(one.user, one.account, one.job) for one in found} == {("bob", "chemistry", "10_2")}


# --- sums ----------------------------------------------------------------------------------------------------


def usage_of(*lines, since_s=TODAY_S, until_s=NOW_S, **capacities):
    found = [usage._decode(json.dumps(item).encode()) for item in lines]
    return Usage(Timespan(since_s, until_s), tuple(found), capacities)


def told(rows):
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
def test_sums_by_keys(keys, expected):
    rows = usage.group(usage_of(*SOME), usage.parse_keys(keys))
    assert told(rows) == expected
    assert [row.held_s for row in rows] == sorted((row.held_s for row in rows), reverse=True)


def test_the_total_counts_each_job_once():
    row = usage.total(usage_of(*SOME))
    assert (len(row.jobs), row.acquired, row.failed, row.held_s) == (3, 3, 1, 5460.0)


@pytest.mark.parametrize("text", ["", "job", "user,user", "user,", "acquisition,user", "\x1b"])
def test_keys_that_are_none(text):
    with pytest.raises(QrmiSlurmError, match="--by is one or more of user, account, qpu"):
        usage.parse_keys(text)


def test_utilisation_is_of_the_capacity_and_unused_qpus_are_shown():
    found = usage_of(line(1), line(2, id="2"), since_s=TODAY_S + 12 * 3600, until_s=TODAY_S + 13 * 3600, a=4, unused=1)
    rows = {row.key[0]: row.utilisation for row in usage.group(found, ["qpu"])}
    assert rows == {"a": 0.5, "unused": 0.0}
    assert usage.total(found).utilisation == pytest.approx(2 / 5)
    assert [row.utilisation for row in usage.group(found, ["user"])] == [None]


def test_days_are_local_and_share_what_goes_over_midnight(zone):
    """Over the night in which clocks go forward in Berlin, too: the seconds add up."""
    began = datetime(2026, 3, 28, 23, 0).timestamp()
    found = usage_of(line(1, at_s=began, held_s=30 * 3600.0), since_s=began - DAY_S, until_s=began + 5 * DAY_S)
    rows = usage.group(found, ["day"])
    assert [row.key[0] for row in rows] == ["2026-03-28", "2026-03-29", "2026-03-30"]
    assert sum(row.held_s for row in rows) == 30 * 3600.0
    assert [row.acquired for row in rows] == [1, 0, 0]
    day_s = datetime(2026, 3, 30).timestamp() - datetime(2026, 3, 29).timestamp()
    assert rows[1].held_s == day_s == (23 * 3600.0 if zone == "Europe/Berlin" else DAY_S)


# --- the command ---------------------------------------------------------------------------------------------


@pytest.fixture
def command(run, site, monkeypatch):
    """Run `report` at a site with two lines and one QPU held; no secret is on any stream but where the id belongs."""
    monkeypatch.setenv("SLURM_CONF", str(site.slurm_conf))
    site.add("a").add("unused")
    folder = site.state_dir / "test" / ".accounting"
    folder.mkdir(parents=True)
    now_s = time.time()
    write(folder / "n1.jsonl", line(1, at_s=now_s - 7200), failed(3, at_s=now_s - 60, user="[bold]bob", account=""))
    write(folder / "n2.jsonl", line(2, at_s=now_s - 9000, user="carol", token=None, qpu="=b"))
    environment = {f"a_{key}": value for key, value in COMPUTE_SERVICE.items()}
    entry = Entry("a", "oqtopus", environment, state=State.ACQUIRED, token=Secret(f"{SECRET}-held"))
    entry = entry._replace(asked_s=now_s - 31, acquired_s=now_s - 30, since_s=now_s - 30)
    held = JobFolder(site.state_dir, "test", 4)
    held.create()
    held.write(Record("test", 4, 1001, "n1", "b", 0, now_s - 31, (entry,), user="dave", account="physics"))

    def run_report(*words):
        status, out, err = run("report", *words)
        if "acquisition" not in words or "--json" not in words:
            assert SECRET not in out
        assert SECRET not in err
        return status, out, err

    return run_report


def test_the_table(command):
    status, out, err = command()
    assert (status, err) == (0, "")
    _, heading, *rows, last = [text.split() for text in out.splitlines()]
    assert heading == ["USER", "JOBS", "ACQUIRED", "FAILED", "HELD", "SHARE", "USED"]
    assert rows[0] == ["alice", "1", "1", "0", "01:00:00", "50", "%", "-"]
    assert rows[-1][:5] == ["[bold]bob", "1", "0", "1", "00:00:00"]
    assert last[:4] == ["total", "4", "3", "1"]
    assert re.fullmatch(r"02:00:3\d", last[4])


def test_one_line_an_acquisition(command):
    _, out, _ = command("--by", "acquisition")
    assert [text.split()[1] for text in out.splitlines()[2:]] == ["2", "1", "3", "4"]
    assert out.splitlines()[-1].split()[-3:] == ["held", "-", "n1"]


def test_json_has_the_ids_of_sessions_for_each_acquisition_only(command):
    document = json.loads(command("--json", "--by", "user,qpu")[1])
    assert document["by"] == ["user", "qpu"]
    assert document["rows"][0]["user"] in ("alice", "carol")
    assert document["total"]["jobs"] == 4
    one = json.loads(command("--json", "--by", "acquisition")[1])["rows"]
    assert [row["token"] for row in one] == [None, f"{SECRET}-token", None, None]
    assert {"id", "array_job_id", "het_job_id", "restart", "held_s", "by", "reason"} <= one[0].keys()


def test_csv(command):
    _, out, _ = command("--csv", "--by", "acquisition")
    heading, *rows = csv.reader(io.StringIO(out))
    assert len(rows) == 4
    row = dict(zip(heading, rows[0], strict=True))
    assert (row["job_id"], row["user"], row["qpu"], row["held_s"]) == ("2", "carol", "'=b", "3600.0")
    assert datetime.fromisoformat(row["asked"]).tzinfo is not None
    heading, *rows = csv.reader(io.StringIO(command("--csv", "--by", "account")[1]))
    assert heading == ["account", "jobs", "acquired", "failed", "held_s", "utilisation"]


def test_damaged_lines_are_a_warning(command, site):
    with (site.state_dir / "test" / ".accounting" / "n1.jsonl").open("a") as file:
        file.write('{"version": 1, "id"')
    status, out, err = command("--json")
    assert (status, json.loads(out)["damaged_lines"]) == (0, 1)
    assert err == "warning: skipped 1 unreadable line of the ledger\n"


def test_nothing_at_all(command):
    status, out, err = command("--since", "2001-01-01", "--until", "2001-02-01")
    assert (status, err) == (0, "")
    assert out.splitlines()[1:] == ["no QPU was requested"]
    assert command("--since", "2001-01-01", "--until", "2001-02-01", "--by", "acquisition", "--csv")[1].count("\n") == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--since", "soon"], "--since soon is no time"),
        (["--by", "moon"], "--by is one or more of"),
        (["--from", "/nowhere/x.jsonl"], "cannot read /nowhere/x.jsonl: No such file"),
        (["--html", "/nowhere/x.html"], "cannot write /nowhere/x.html"),
    ],
)
def test_what_cannot_be_done(command, words, expected):
    status, out, err = command(*words)
    assert (status, out) == (2, "")
    assert expected in err


def test_ledgers_of_other_nodes(command, site, tmp_path):
    """Files and folders, one of them twice; this node's own does not count beside them."""
    place = site.state_dir / "test" / ".accounting"
    other = tmp_path / "copies" / "deep"
    other.mkdir(parents=True)
    write(other / "n7.jsonl", line(70, at_s=time.time() - 4000, user="eve"))
    (other / "README").write_text("no ledger")
    words = ["--from", tmp_path / "copies", "--from", place / "n2.jsonl", "--from", other / "n7.jsonl"]
    rows = json.loads(command("--json", *words)[1])["rows"]
    assert {row["user"]: row["acquired"] for row in rows} == {"eve": 1, "carol": 1}
    rows = json.loads(command("--json", "--from", site.state_dir)[1])["rows"]
    assert "dave" in {row["user"] for row in rows}, "a state directory's records count"


def test_others_than_root_are_told(command, site, monkeypatch):
    monkeypatch.setattr(os, "listdir", lambda _path: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    status, out, err = command()
    assert (status, out) == (2, "")
    assert "hint: run this as root" in err


# --- pictures ------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What is in a page: tags, with how often, and each attribute's values."""

    def __init__(self, text):
        super().__init__()
        self.tags = {}
        self.values = []
        self.open = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags[tag] = self.tags.get(tag, 0) + 1
        self.values += [value or "" for _, value in attrs]


def svg_of(found, who="user"):
    text = timeline.svg(found, usage.KEYS[who], is_alone=True)
    return text, ElementTree.fromstring(text)  # noqa: S314 our own


def titles(root):
    return [element.text for element in root.iter("{http://www.w3.org/2000/svg}title")]


def test_the_page_needs_nothing_else(command, tmp_path):
    page, picture = tmp_path / "a.html", tmp_path / "a.svg"
    assert command("--html", page, "--svg", picture) == (0, "", "")
    text = page.read_text()
    found = Page(text)
    assert not found.tags.keys() & {"script", "link", "img", "iframe", "object", "embed", "base"}
    assert not re.search(r"url\(|@import|(?:src|href)=|\son[a-z]+=", text)
    assert found.tags["svg"] == 1
    assert found.tags["title"] >= 1 + 4
    assert "prefers-color-scheme:dark" in text and "prefers-color-scheme: dark" in picture.read_text()
    assert SECRET not in text + picture.read_text()
    assert "[bold]bob" in text and "unused" in text
    assert "held now" in text


def test_texts_of_a_ledger_are_no_markup():
    evil = "</title><script>alert(1)</script>&\x00\x1b\ud800"
    found = usage_of(line(1, user=evil, qpu=f"q{evil}", account=evil, node=evil), failed(2, user=evil, qpu=f"q{evil}"))
    for keys in (["user"], ["account", "qpu"]):
        text = page.render(found, keys, usage.KEYS["user"])
        text.encode("utf-8")
        assert "<script" not in text
        assert Page(text).tags["svg"] == 1
    text, root = svg_of(found)
    assert "\x00" not in text
    assert any("script" in title for title in titles(root))


def test_one_bar_an_acquisition_and_its_words():
    text, root = svg_of(
        usage_of(
            line(4711, array_job_id=4700, array_task_id=11, restart=1, het_job_id=4000),
            failed(3, user="carol"),
            line(5, result="held", by="", at_s=NOW_S - 60, held_s=60.0, account=""),
        )
    )
    bar, mark, now = (next(title for title in titles(root) if word in title) for word in ("4711", "carol", "held now"))
    assert bar.splitlines()[:2] == ["a: job 4700_11 (4711) of 4000, run 2 on n1", "alice, account physics"]
    assert bar.endswith("01:00:00, released by epilog")
    assert mark.endswith("failed")
    assert "account (none)" in now
    assert "not acquired" in text


def test_jobs_at_a_time_have_lanes_of_their_own():
    """Bars of one lane never overlap; a lane is there for each job that the capacity lets in."""
    many = [line(number, at_s=TODAY_S + 3600 * (number % 7), held_s=5000.0) for number in range(10)]
    _, root = svg_of(usage_of(*many, a=4))
    bars = [
        (float(rect.get("y")), float(rect.get("x")), float(rect.get("width")))
        for rect in root.iter("{http://www.w3.org/2000/svg}rect")
        if rect.find("{http://www.w3.org/2000/svg}title") is not None
    ]
    assert len(bars) == 10
    for y in {bar[0] for bar in bars}:
        lane = sorted((x, width) for at, x, width in bars if at == y)
        assert all(x + width <= after + 0.2 for (x, width), (after, _) in itertools.pairwise(lane))


@pytest.mark.parametrize("qpus", [1, 40])
def test_very_many_acquisitions_still_give_a_small_file(qpus):
    many = [
        line(number, at_s=TODAY_S + number * 1.5, held_s=1.0, user=f"u{number % 30}", qpu=f"q{number % qpus}")
        for number in range(20_000)
    ]
    text, root = svg_of(usage_of(*many))
    assert len(text) < 120_000 * qpus + 200_000
    assert len(text) < 4_000_000
    assert any("% held; " in title for title in titles(root))
    assert "others" in text


@pytest.mark.parametrize("length_s", [90, 3600, 8 * 3600, DAY_S, 7 * DAY_S, 40 * DAY_S, 400 * DAY_S, 4000 * DAY_S])
def test_ticks_are_round_and_few(zone, length_s):
    now_s = datetime(2026, 5, 5, 15, 30).timestamp()
    ticks = list(timeline._ticks(Timespan(now_s - length_s, now_s)))
    assert 1 <= len(ticks) <= 12
    assert all(now_s - length_s <= at_s < now_s for at_s, _ in ticks)
    if length_s >= 40 * DAY_S:
        assert all(
            (datetime.fromtimestamp(at_s).hour, datetime.fromtimestamp(at_s).minute) == (0, 0) for at_s, _ in ticks
        )


@pytest.mark.parametrize(
    ("part", "text"),
    [(0, "0 %"), (0.00001, "<0.1 %"), (0.0123, "1.2 %"), (0.0996, "10 %"), (0.5, "50 %"), (1, "100 %")],
)
def test_parts_as_people_read_them(part, text):
    assert timeline.percent(part) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "00:00:00"), (59.6, "00:01:00"), (3661, "01:01:01"), (90061, "1-01:01:01")]
)
def test_durations_as_slurm_writes_them(seconds, text):
    assert timeline.duration(seconds) == text


@given(
    st.lists(
        st.tuples(st.floats(-1e5, 2e5), st.floats(0, 3e5), st.sampled_from(["released", "failed", "held", "unknown"])),
        max_size=30,
    ),
    st.integers(1, 5),
)
def test_whatever_was_held_there_is_a_picture(times, capacity):
    lines = [
        line(number, id=str(number), at_s=TODAY_S + at_s, held_s=held_s, result=result,
             **({} if result in ("released", "held") else {"acquired_s": None, "token": None}))
        for number, (at_s, held_s, result) in enumerate(times)
    ]  # fmt: skip
    found = usage_of(*lines, a=capacity)
    chosen = tuple(one for one in found.acquisitions if one.touches(found.span))
    found = Usage(found.span, chosen, found.capacities)
    _, root = svg_of(found)
    for rect in root.iter("{http://www.w3.org/2000/svg}rect"):
        assert float(rect.get("width")) >= 0
        assert 0 <= float(rect.get("x", 0)) <= timeline.WIDTH
    assert sum(row.held_s for row in usage.group(found, ["day"])) == pytest.approx(usage.total(found).held_s, abs=1e-3)
