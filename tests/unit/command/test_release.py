"""`qrmi-slurm release`."""

import pytest

from qrmi_slurm.slurm.jobs import Job


@pytest.mark.parametrize("jobs", [{12: Job("RUNNING", 0)}, None])
def test_without_a_terminal_it_refuses_to_release_what_a_job_may_use(run_on_records, hold, site, monkeypatch, jobs):
    hold()
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    status, out, err = run_on_records("release", "12", jobs=jobs)
    assert (status, out) == (2, "")
    assert "--yes" in err
    assert site.calls() == []


@pytest.mark.parametrize(("answer", "expected"), [("y\n", 0), ("YES\n", 0), ("\n", 2), ("no\n", 2), ("", 2)])
def test_it_asks_before_it_takes_a_running_jobs_qpu(run_on_records, hold, site, monkeypatch, answer, expected):
    hold()

    class Terminal:
        def isatty(self):
            return True

        def readline(self):
            return answer

    monkeypatch.setattr("sys.stdin", Terminal())
    status, _, err = run_on_records("release", "12", jobs={12: Job("RUNNING", 0)})
    assert status == expected
    assert "Job 12 is RUNNING. Release what it holds (a)? [y/N]" in err
    assert bool(site.calls()) == (expected == 0)


def test_for_a_job_that_has_ended_it_asks_nothing(run_on_records, hold):
    folder = hold()
    assert run_on_records("release", "12", jobs={}) == (0, "job 12: released\n", "")
    assert not folder.exists()


def test_a_job_without_a_record(run_on_records):
    status, _, err = run_on_records("release", "99", jobs={})
    assert status == 2
    assert "there is no record of job 99" in err


def test_what_an_earlier_job_with_the_number_held_is_released_too(run_on_records, hold, site):
    """Nobody has to be asked for that: it has ended."""
    folder = hold()
    with folder.locked(1):
        aside = folder.put_aside()
    hold()
    assert run_on_records("release", "12", "--yes", jobs={12: Job("RUNNING", 0)})[:2] == (0, "job 12: released\n")
    assert site.folder().exists(), "its job lives"
    assert site.calls() == ["release a test-secret-Kq7-a"] * 2
    assert not aside.exists()


def test_several_clusters_have_a_job_of_the_number(run_on_records, hold, site):
    hold()
    other = site.state_dir / "other" / "12"
    other.mkdir(parents=True)
    status, _, err = run_on_records("release", "12", jobs={})
    assert status == 2
    assert "several clusters have a job 12: other, test" in err
    assert "--cluster" in err
