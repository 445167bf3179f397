"""`qrmi-slurm report`: tables, JSON, CSV and warnings."""

import csv
import io
import json
import os
import re
import time
from datetime import datetime

import pytest
from doubles import SECRET
from ledger_lines import line, write


def test_the_table(report):
    status, out, err = report()
    assert (status, err) == (0, "")
    _, heading, *rows, last = [text.split() for text in out.splitlines()]
    assert heading == ["USER", "JOBS", "ACQUIRED", "FAILED", "HELD", "SHARE", "USED"]
    assert rows[0] == ["alice", "1", "1", "0", "01:00:00", "50", "%", "-"]
    assert rows[-1][:5] == ["[bold]bob", "1", "0", "1", "00:00:00"]
    assert last[:4] == ["total", "4", "3", "1"]
    assert re.fullmatch(r"02:00:3\d", last[4])


def test_a_line_for_each_acquisition(report):
    _, out, _ = report("--by", "acquisition")
    assert [text.split()[1] for text in out.splitlines()[2:]] == ["2", "1", "3", "4"]
    assert out.splitlines()[-1].split()[-3:] == ["held", "-", "n1"]


def test_only_the_json_of_acquisitions_has_the_ids_of_sessions(report):
    document = json.loads(report("--json", "--by", "user,qpu")[1])
    assert document["by"] == ["user", "qpu"]
    assert document["rows"][0]["user"] in ("alice", "carol")
    assert document["total"]["jobs"] == 4
    one = json.loads(report("--json", "--by", "acquisition")[1])["rows"]
    assert [row["token"] for row in one] == [None, f"{SECRET}-token", None, None]
    assert {"id", "array_job_id", "het_job_id", "restart", "held_s", "by", "reason"} <= one[0].keys()


def test_csv(report):
    _, out, _ = report("--csv", "--by", "acquisition")
    heading, *rows = csv.reader(io.StringIO(out))
    assert len(rows) == 4
    row = dict(zip(heading, rows[0], strict=True))
    assert (row["job_id"], row["user"], row["qpu"], row["held_s"]) == ("2", "carol", "'=b", "3600.0")
    assert datetime.fromisoformat(row["asked"]).tzinfo is not None
    heading, *rows = csv.reader(io.StringIO(report("--csv", "--by", "account")[1]))
    assert heading == ["account", "jobs", "acquired", "failed", "held_s", "utilization"]


def test_damaged_lines_are_a_warning(report, site):
    with (site.state_dir / "test" / ".accounting" / "n1.jsonl").open("a") as file:
        file.write('{"version": 1, "id"')
    status, out, err = report("--json")
    assert (status, json.loads(out)["damaged_lines"]) == (0, 1)
    assert err == "warning: skipped 1 unreadable line of the ledger\n"


def test_a_timespan_without_acquisitions(report):
    status, out, err = report("--since", "2001-01-01", "--until", "2001-02-01")
    assert (status, err) == (0, "")
    assert out.splitlines()[1:] == ["no QPU was requested"]
    assert report("--since", "2001-01-01", "--until", "2001-02-01", "--by", "acquisition", "--csv")[1].count("\n") == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--since", "soon"], "--since soon is not a time"),
        (["--by", "moon"], "--by takes one or more of"),
        (["--from", "/nowhere/x.jsonl"], "cannot read /nowhere/x.jsonl: No such file"),
        (["--html", "/nowhere/x.html"], "cannot write /nowhere/x.html"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(report, words, expected):
    status, out, err = report(*words)
    assert (status, out) == (2, "")
    assert expected in err


def test_ledgers_of_other_nodes(report, site, tmp_path):
    """Files and folders, one of them given twice; this node's own ledger is left out."""
    place = site.state_dir / "test" / ".accounting"
    other = tmp_path / "copies" / "deep"
    other.mkdir(parents=True)
    write(other / "n7.jsonl", line(70, at_s=time.time() - 4000, user="eve"))
    (other / "README").write_text("not a ledger")
    words = ["--from", tmp_path / "copies", "--from", place / "n2.jsonl", "--from", other / "n7.jsonl"]
    rows = json.loads(report("--json", *words)[1])["rows"]
    assert {row["user"]: row["acquired"] for row in rows} == {"eve": 1, "carol": 1}
    rows = json.loads(report("--json", "--from", site.state_dir)[1])["rows"]
    assert "dave" in {row["user"] for row in rows}, "a state directory's records count"


def test_users_are_told_to_run_it_as_root(report, site, monkeypatch):
    monkeypatch.setattr(os, "listdir", lambda _path: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    status, out, err = report()
    assert (status, out) == (2, "")
    assert "hint: run this as root" in err
