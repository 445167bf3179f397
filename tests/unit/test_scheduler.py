"""The question that Prolog asks slurmctld on Slurm 22.05."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrmi_slurm import scheduler


@given(st.integers(0, 999), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_a_limit_is_read_in_seconds(days, hours, minutes, seconds):
    clock = f"{hours:02d}:{minutes:02d}:{seconds:02d}"
    text = f"{days}-{clock}" if days else clock
    expected = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    assert scheduler.parse_time_limit_s(f"{text}\n") == expected


@pytest.mark.parametrize(("text", "seconds"), [("0:30", 30), ("5:00", 300), ("1:00:00", 3600), ("2-00:00:00", 172800)])
def test_squeue_leaves_out_what_is_zero_in_front(text, seconds):
    assert scheduler.parse_time_limit_s(text) == seconds


def test_unlimited_is_the_largest_value_that_all_of_qrmi_parses():
    assert scheduler.parse_time_limit_s("UNLIMITED\n") == 2**31 - 1


@pytest.mark.parametrize("text", ["", "garbage", "NOT_SET", "INVALID", "5", "5:00 x"])
def test_what_cannot_be_read_is_no_limit(text):
    assert scheduler.parse_time_limit_s(text) is None


@pytest.fixture
def fake_squeue(tmp_path, monkeypatch):
    def make(script):
        program = tmp_path / "squeue"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(scheduler, "_program", lambda: str(program))

    return make


def test_slurmctld_is_asked_once_with_the_jobs_own_slurm_conf(fake_squeue, tmp_path):
    """The format holds no user's text: a job called `TimeLimit=UNLIMITED` has no unlimited session."""
    fake_squeue(f'echo "$* $SLURM_CONF" >> {tmp_path}/asked; echo 5:00')
    assert scheduler.time_limit_s(12, tmp_path / "slurm.conf") == 300
    assert (tmp_path / "asked").read_text() == f"--noheader --jobs 12 --format=%l {tmp_path}/slurm.conf\n"


def test_all_jobs_are_known_by_state_and_restart_count(fake_squeue, tmp_path):
    """One question; a job that ended, or another run of it, does not live."""
    fake_squeue("printf ' 7 RUNNING 1\\n 8 COMPLETED 0\\n junk\\n'")
    jobs = scheduler.jobs(tmp_path / "slurm.conf")
    assert jobs.keys() == {7, 8}
    assert jobs[7].is_living_run(1)
    assert not jobs[7].is_living_run(0)
    assert not jobs[8].is_living_run(0)


@pytest.mark.parametrize("script", ["exit 1", "echo nonsense", "kill -9 $$", "printf '\\377\\376'"])
def test_a_failing_squeue_is_no_limit(fake_squeue, tmp_path, script):
    fake_squeue(script)
    assert scheduler.time_limit_s(12, tmp_path) is None


def test_a_hanging_slurmctld_does_not_hold_prolog(fake_squeue, tmp_path, monkeypatch):
    monkeypatch.setattr(scheduler, "_ONE_JOB_TIMEOUT_S", 0.1)
    fake_squeue("exec sleep 30")
    assert scheduler.time_limit_s(12, tmp_path) is None


def test_without_squeue_there_is_no_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(scheduler, "_program", lambda: None)
    assert scheduler.time_limit_s(12, tmp_path) is None
