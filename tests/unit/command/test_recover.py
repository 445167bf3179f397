"""`qrmi-slurm recover`."""

import json
import time

from qrmi_slurm.slurm.jobs import Job
from qrmi_slurm.state.record import State


def test_a_line_for_each_released_job(run_on_records, hold):
    hold()
    hold(13)
    status, out, err = run_on_records("recover", jobs={13: Job("RUNNING", 0)})
    assert (status, out, err) == (0, "job 12 a: released (the job has ended)\n", "")


def test_a_dry_run_also_shows_what_is_left_alone(run_on_records, hold, site):
    hold()
    hold(13)
    status, out, _ = run_on_records("recover", "--dry-run", jobs={13: Job("RUNNING", 0)})
    assert (status, out.splitlines()) == (
        0,
        ["job 12 a: would release (the job has ended)", "job 13 a: would leave (the job is running)"],
    )
    assert site.calls() == []


def test_it_exits_1_if_something_unused_is_still_held(run_on_records, hold):
    hold(state=State.RELEASING, attempts=1, since_s=time.time())
    status, out, _ = run_on_records("recover", "--json", jobs={})
    document = json.loads(out)
    assert status == 1
    assert document["left"] == 1
    assert document["jobs"][0]["step"] == "wait"


def test_it_exits_1_if_slurm_cannot_be_asked(run_on_records, hold, site):
    hold()
    status, out, _ = run_on_records("recover", jobs=None)
    assert status == 1
    assert "Slurm cannot be asked" in out
    assert site.calls() == []
