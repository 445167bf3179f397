"""`qrmi-slurm status`."""

import json
import time

from qrmi_slurm.command import holdings
from qrmi_slurm.command import status as status_
from qrmi_slurm.state.record import State


def test_each_qpu_has_a_line(run_on_records, hold):
    hold()
    hold(13, State.RELEASING, attempts=2, reason="HTTP 500 [bold]")
    hold(14, State.INDETERMINATE, None, expires_s=time.time() + 600.5, reason="no answer within 30 s")
    status, out, err = run_on_records("status")
    assert (status, err) == (0, "")
    heading, *lines = [line.split() for line in out.splitlines()]
    assert heading == ["JOB", "QPU", "STATE", "FOR", "TRIES", "NEXT", "NODE", "NOTE"]
    assert lines[0] == ["12", "a", "acquired", "1m30s", "0", "-", "n1"]
    assert lines[1] == ["13", "a", "releasing", "1m30s", "2", "now", "n1", "HTTP", "500", "[bold]"]
    note = "a session may be open, which ends by itself within 10m00s: no answer within 30 s"
    assert " ".join(lines[2][7:]) == note


def test_a_session_that_has_ended_is_shown_and_so_is_one_that_ends_soon_before_its_job(run_on_records, hold):
    now_s = time.time()
    begun = {"asked_s": now_s - 900, "job_ends_s": now_s + 3600}
    hold(12, ends_s=now_s - 5, **begun)
    hold(13, ends_s=now_s + 240.5, **begun)
    hold(14, ends_s=now_s + 310, **begun)
    hold(15, ends_s=now_s + 240, **{**begun, "job_ends_s": now_s + 200})
    hold(16, State.RELEASING, ends_s=now_s - 5, **begun)
    lines = [" ".join(line.split()) for line in run_on_records("status")[1].splitlines()[1:]]
    assert " expired " in lines[0] and lines[0].endswith("n1 its session has ended")
    assert " acquired " in lines[1] and lines[1].endswith("its session ends in 4m00s, and the job may run longer")
    assert [line.endswith("n1") for line in lines[2:]] == [True] * 3
    found = json.loads(run_on_records("status", "--json")[1])["qpus"]
    assert [(one["state"], one["is_ending"]) for one in found] == [
        ("expired", False),
        ("acquired", True),
        ("acquired", False),
        ("acquired", False),
        ("releasing", False),
    ]
    assert found[0]["ends_s"] == 0


def test_a_clock_that_was_set_back_prolongs_no_session(run_on_records, hold):
    """A session of ten minutes that began an hour from now by this clock."""
    hold(12, asked_s=time.time() + 3600, ends_s=time.time() + 4200)
    [found] = json.loads(run_on_records("status", "--json")[1])["qpus"]
    assert round(found["ends_s"]) == 600


def test_json_has_everything_that_the_text_has(run_on_records, hold, site):
    hold(13, State.RELEASING, attempts=1, since_s=time.time())
    aside = site.state_dir / "test" / ".set-aside" / "7-1"
    aside.mkdir(parents=True)
    status, out, _ = run_on_records("status", "--json")
    document = json.loads(out)
    [line] = document["qpus"]
    assert status == 0
    assert (line["job_id"], line["qpu"], line["state"], line["attempts"]) == (13, "a", "releasing", 1)
    assert 25 < line["next_try_s"] <= 30
    assert document["set_aside"] == [str(aside)]
    assert str(aside) in run_on_records("status")[1]


def test_an_empty_state_directory(run_on_records):
    assert "no job holds a QPU" in run_on_records("status")[1]


def test_an_unreadable_record_is_shown_and_stays(run_on_records, hold):
    folder = hold()
    (folder.path / "record.json").write_text("{")
    status, out, _ = run_on_records("status")
    assert status == 0
    assert f"cannot be read: {folder.path}/record.json" in out
    assert (folder.path / "record.json").exists()


def test_a_name_that_would_move_the_cursor_is_escaped(run_on_records, hold):
    hold(name="a\x1b[2J")
    assert "\x1b" not in run_on_records("status")[1]


def test_a_user_who_may_not_read_the_records_is_told(run_on_records, monkeypatch):
    def forbidden(_path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("qrmi_slurm.state.inventory.os.listdir", forbidden)
    status, _, err = run_on_records("status")
    assert status == 2
    assert "run this as root" in err


def test_each_state_has_a_style():
    assert set(status_.STATE_STYLES) == {*State, holdings.EXPIRED}
