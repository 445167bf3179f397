"""What Slurm says about a job is read as it is, whatever users have written into it."""

from pathlib import Path

import pytest

from qrmi_slurm.errors import SchedulerError
from qrmi_slurm.slurm import commands, job_details
from qrmi_slurm.slurm.commands import RefusedError
from qrmi_slurm.slurm.job_details import JobId

MARK = "|m|"
WAITS = (
    "12",
    "12",
    "PENDING",
    "Licenses",
    "alice",
    "qpu_a:1,b",
    "1000",
    "1001",
    "N/A",
    "N/A",
    "0",
    "n/a",
    "0",
    "(null)",
)
RUNS = ("12_3", "14", "RUNNING", "None", "bob", "(null)", "1000", "1001", "1100", "NONE", "2", "n1", "0", "x\ny |z|")
FAILED = ("12+1", "13", "FAILED", "NonZeroExitCode", "bob", "qpu_a", "1", "2", "3", "4", "0", "n1", "256", "a=b")


def printed(*rows):
    return "".join(MARK.join(row) + MARK + "\n" for row in rows)


@pytest.mark.parametrize("text", ["12", " 12 ", "12_3", "12+0", "1234567890"])
def test_ids(text):
    assert str(job_details.parse_id(text)) == text.strip()


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "x", "12_", "12+", "12_3+1", "12.batch", "12 13", "12\n13", "\uff11", "12_[1-3]", "1" * 11]
)
def test_what_is_no_id(text):
    assert job_details.parse_id(text) is None


def test_squeues_answer():
    waits, runs, failed = job_details.parse_squeue(printed(WAITS, RUNS, FAILED), MARK)
    assert (waits.shown, waits.state, waits.reason, waits.user) == ("12", "PENDING", "Licenses", "alice")
    assert waits.licenses == {"qpu_a": 1, "b": 1}
    assert (waits.submit_s, waits.eligible_s, waits.start_s, waits.end_s) == (1000, 1001, None, None)
    assert (waits.node, waits.admin_comment, waits.restarts) == ("", "", 0)
    assert (runs.job_id, runs.node, runs.end_s, runs.admin_comment) == (14, "n1", None, "x\ny |z|")
    assert (failed.shown, failed.exit_code, failed.signal) == ("12+1", 1, 0)


@pytest.mark.parametrize(
    ("field", "status"), [("256", (1, 0)), ("1:0", (1, 0)), ("9", (0, 9)), ("0:9", (0, 9)), ("", (None, 0))]
)
def test_the_exit_codes_of_all_releases(field, status):
    (found,) = job_details.parse_squeue(printed((*FAILED[:12], field, "")), MARK)
    assert (found.exit_code, found.signal) == status


def test_sacct_s_answer():
    row = ("12_3", "14", "CANCELLED by 1000", "bob", "1", "2", "3", "0:9", "n1", "qrmi-slurm:requeued=1,busy,a,7")
    other = ("15", "15", "COMPLETED", "bob", "1", "Unknown", "Unknown", "0:0", "n[1-2]", "")
    cancelled, done = job_details.parse_sacct(printed(row, other), MARK)
    assert (cancelled.state, cancelled.signal, cancelled.node, cancelled.is_of_past) == ("CANCELLED", 9, "n1", True)
    assert (done.node, done.start_s, done.restarts) == ("n1", None, None)


@pytest.mark.parametrize("text", ["", "garbage", MARK, MARK * 3, "x" + MARK * 14])
def test_other_answers_are_no_jobs(text):
    assert job_details.parse_squeue(text, MARK) == []
    assert job_details.parse_sacct(text, MARK) == []


@pytest.fixture
def slurm_conf(tmp_path):
    path = tmp_path / "slurm.conf"
    path.write_text("ClusterName=test\nAccountingStorageType=accounting_storage/slurmdbd\n")
    return path


def answering(monkeypatch, answers):
    """Let each program answer with rows, or raise; return the commands that were run."""
    asked = []

    def run(command, slurm_conf, timeout_s=None, time_format="standard"):
        asked.append(command)
        answer = answers.get(command[0], ())
        if isinstance(answer, Exception):
            raise answer
        return printed(*answer)

    monkeypatch.setattr(commands, "run", run)
    monkeypatch.setattr(job_details, "_mark", lambda: MARK)
    return asked


def test_a_component_is_found_among_all(slurm_conf, monkeypatch):
    """squeue cannot be asked for one component."""
    asked = answering(monkeypatch, {"squeue": [("12+0", *FAILED[1:]), FAILED]})
    assert [one.shown for one in job_details.find(JobId(12, "+1"), slurm_conf)] == ["12+1"]
    assert "--jobs=12" in asked[0]
    assert len(job_details.find(JobId(12), slurm_conf)) == 2


def test_a_job_that_slurmctld_has_forgotten(slurm_conf, monkeypatch):
    """slurmdbd has it, where there is one; otherwise nobody."""
    refusal = RefusedError("m", "h", "slurm_load_jobs error: Invalid job id specified\n")
    row = ("12", "12", "FAILED", "bob", "1", "2", "3", "1:0", "n1", "")
    asked = answering(monkeypatch, {"squeue": refusal, "sacct": [row]})
    (found,) = job_details.find(JobId(12), slurm_conf)
    assert (found.is_of_past, found.exit_code) == (True, 1)
    slurm_conf.write_text("ClusterName=test\n")
    asked.clear()
    assert job_details.find(JobId(12), slurm_conf) == []
    assert [command[0] for command in asked] == ["squeue"]


def test_slurmctld_is_down(slurm_conf, monkeypatch):
    answering(monkeypatch, {"squeue": RefusedError("m", "h", "Unable to contact slurm controller\n")})
    with pytest.raises(SchedulerError):
        job_details.find(JobId(12), slurm_conf)


def test_who_has_a_license(slurm_conf, monkeypatch):
    answering(monkeypatch, {"squeue": [("11", "alice", "RUNNING", "2000"), ("12_3", "bob", "COMPLETING", "NONE")]})
    first, second = job_details.holders("qpu_a", slurm_conf)
    assert (first.shown, first.end_s, second.end_s) == ("11", 2000, None)


def test_where_a_jobs_output_is(monkeypatch):
    shown = "JobId=12 JobName=x\n   StdErr=/home/a/e\n   StdIn=/dev/null\n   StdOut=/home/a/my out-12\n"
    monkeypatch.setattr(commands, "run", lambda *_arguments: shown)
    assert job_details.output_path(12, Path("/x")) == Path("/home/a/my out-12")
    monkeypatch.setattr(commands, "run", lambda *_arguments: "JobId=12")
    assert job_details.output_path(12, Path("/x")) is None
