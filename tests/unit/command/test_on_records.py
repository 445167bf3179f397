"""The commands that look at records: status, recover, release."""

import json
import os
import sys
import time

import pytest
from doubles import COMPUTE_SERVICE, SECRET

from qrmi_slurm.command import cli
from qrmi_slurm.secret import Secret
from qrmi_slurm.slurm import jobs as jobs_
from qrmi_slurm.slurm.jobs import Job
from qrmi_slurm.state.record import Entry, Record, State


@pytest.fixture
def run(site, monkeypatch, capsys, syslog_lines):
    """Return a function that runs the command at the site; no secret is on any of its streams."""
    monkeypatch.setenv("SLURM_CONF", str(site.slurm_conf))
    monkeypatch.setenv("SLURMD_NODENAME", "n9")

    def run_command(*words, jobs=None):
        monkeypatch.setattr(jobs_, "jobs", lambda _slurm_conf: jobs)
        monkeypatch.setattr(sys, "argv", ["qrmi-slurm", *words])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        streams = capsys.readouterr()
        assert SECRET not in streams.out + streams.err + repr(syslog_lines)
        return exit_.value.code or 0, streams.out, streams.err

    return run_command


@pytest.fixture
def hold(site):
    """Write a record of a job that holds QPU a in some state."""

    def write(job_id=12, state=State.ACQUIRED, token=f"{SECRET}-a", name="a", **changes):
        folder = site.folder(job_id)
        folder.create()
        environment = {f"{name}_{key}": value for key, value in COMPUTE_SERVICE.items()}
        environment[f"{name}_QRMI_FAKE_CALLS"] = str(site.calls_path)
        held = Entry(
            name,
            "ibm-quantum-compute-service",
            environment,
            state=state,
            token=Secret(token) if token else None,
            **{"since_s": time.time() - 90, **changes},
        )
        folder.write(Record("test", job_id, os.getuid(), "n1", "b", 0, time.time(), (held,)))
        return folder

    return write


def test_status_shows_each_qpu_in_a_line(run, hold):
    hold()
    hold(13, State.RELEASING, attempts=2, reason="HTTP 500 [bold]")
    hold(14, State.INDETERMINATE, None, expires_s=time.time() + 600.5, reason="no answer within 30 s")
    status, out, err = run("status")
    assert (status, err) == (0, "")
    heading, *lines = [line.split() for line in out.splitlines()]
    assert heading == ["JOB", "QPU", "STATE", "FOR", "TRIES", "NEXT", "NODE", "NOTE"]
    assert lines[0] == ["12", "a", "acquired", "1m30s", "0", "-", "n1"]
    assert lines[1] == ["13", "a", "releasing", "1m30s", "2", "now", "n1", "HTTP", "500", "[bold]"]
    assert " ".join(lines[2][7:]) == ("a session may be open, which ends by itself within 10m00s: no answer within 30 s")


def test_status_as_json_has_no_secret_and_all_that_the_text_has(run, hold, site):
    hold(13, State.RELEASING, attempts=1, since_s=time.time())
    aside = site.state_dir / "test" / ".set-aside" / "7-1"
    aside.mkdir(parents=True)
    status, out, _ = run("status", "--json")
    document = json.loads(out)
    [line] = document["qpus"]
    assert status == 0
    assert (line["job_id"], line["qpu"], line["state"], line["attempts"]) == (13, "a", "releasing", 1)
    assert 25 < line["next_try_s"] <= 30
    assert document["set_aside"] == [str(aside)]
    assert str(aside) in run("status")[1]


def test_status_of_an_empty_state_directory_says_so(run):
    assert "no job holds a QPU" in run("status")[1]


def test_a_record_that_cannot_be_read_is_shown_and_stays(run, hold):
    folder = hold()
    (folder.path / "record.json").write_text("{")
    status, out, _ = run("status")
    assert status == 0
    assert f"cannot be read: {folder.path}/record.json" in out
    assert (folder.path / "record.json").exists()


def test_a_name_that_moves_the_cursor_is_shown_escaped(run, hold):
    hold(name="a\x1b[2J")
    assert "\x1b" not in run("status")[1]


def test_recover_says_a_line_for_each_job_and_exits_0(run, hold):
    hold()
    hold(13)
    status, out, err = run("recover", jobs={13: Job("RUNNING", 0)})
    assert (status, out, err) == (0, "job 12 a: released (the job has ended)\n", "")


def test_a_dry_run_shows_what_is_left_alone_as_well(run, hold, site):
    hold()
    hold(13)
    status, out, _ = run("recover", "--dry-run", jobs={13: Job("RUNNING", 0)})
    assert (status, out.splitlines()) == (
        0,
        ["job 12 a: would release (the job has ended)", "job 13 a: would leave (the job lives)"],
    )
    assert site.calls() == []


def test_recover_exits_1_where_something_is_held_that_nothing_uses(run, hold):
    hold(state=State.RELEASING, attempts=1, since_s=time.time())
    status, out, _ = run("recover", "--json", jobs={})
    document = json.loads(out)
    assert status == 1
    assert document["left"] == 1
    assert document["jobs"][0]["step"] == "wait"


def test_recover_where_slurm_cannot_be_asked_exits_1(run, hold, site):
    hold()
    status, out, _ = run("recover", jobs=None)
    assert status == 1
    assert "Slurm cannot be asked" in out
    assert site.calls() == []


@pytest.mark.parametrize("jobs", [{12: Job("RUNNING", 0)}, None])
def test_release_of_what_a_job_may_use_is_refused_where_nobody_can_be_asked(run, hold, site, monkeypatch, jobs):
    hold()
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    status, out, err = run("release", "12", jobs=jobs)
    assert (status, out) == (2, "")
    assert "--yes" in err
    assert site.calls() == []


@pytest.mark.parametrize(("answer", "expected"), [("y\n", 0), ("YES\n", 0), ("\n", 2), ("no\n", 2), ("", 2)])
def test_release_asks_before_it_takes_a_living_jobs_qpu(run, hold, site, monkeypatch, answer, expected):
    hold()

    class Terminal:
        def isatty(self):
            return True

        def readline(self):
            return answer

    monkeypatch.setattr("sys.stdin", Terminal())
    status, _, err = run("release", "12", jobs={12: Job("RUNNING", 0)})
    assert status == expected
    assert "Job 12 is RUNNING. Release what it holds (a)? [y/N]" in err
    assert bool(site.calls()) == (expected == 0)


def test_release_of_a_job_that_has_ended_asks_nothing(run, hold):
    folder = hold()
    assert run("release", "12", jobs={}) == (0, "job 12: released\n", "")
    assert not folder.exists()


def test_release_of_a_job_that_nothing_is_recorded_of_says_so(run):
    status, _, err = run("release", "99", jobs={})
    assert status == 2
    assert "there is no record of job 99" in err


def test_who_may_not_read_the_records_is_told(run, monkeypatch):
    def forbidden(_path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("qrmi_slurm.state.inventory.os.listdir", forbidden)
    status, _, err = run("status")
    assert status == 2
    assert "run this as root" in err
