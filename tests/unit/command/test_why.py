"""`qrmi-slurm why`, with a stand-in for Slurm: what is asked, what is looked at, and how it is printed."""

import json
import os
import time

import pytest
from doubles import SECRET

from qrmi_slurm.command import evidence
from qrmi_slurm.slurm import commands, job_details
from qrmi_slurm.slurm.commands import RefusedError
from qrmi_slurm.state import exports
from qrmi_slurm.state.exports import Exports
from qrmi_slurm.state.record import State

MARK = "|m|"
NOTE = "qrmi-slurm: job 12 has no QPU: a could not be acquired: the service answered 503"
NOW_S = int(time.time())


def row(**changes):
    """Return squeue's fields of job 12."""
    fields = {name: "N/A" for name in job_details._SQUEUE}
    fields |= {"JobArrayID": "12", "JobID": "12", "State": "PENDING", "Reason": "Licenses", "UserName": "alice"}
    fields |= {"Licenses": "qpu_a:1", "RestartCnt": "0", "NodeList": "n[1-2]", "exit_code": "0"}
    fields |= {"admin_comment": "(null)"}
    return tuple((fields | changes).values())


class Answers:
    """Slurm's answers: rows of squeue, and the other commands' output."""

    def __init__(self):
        self.jobs = [row()]
        self.holders = [("11", "bob", "RUNNING", str(NOW_S + 600))]
        self.licenses = "LicenseName=qpu_a Total=1 Used=1 Free=0 Reserved=0 Remote=no\n"
        self.reservations = "No reservations in the system\n"
        self.job = ""
        self.fault = None
        self.asked = []

    def run(self, command, slurm_conf, timeout_s=None, time_format="standard"):
        self.asked.append(" ".join(command[:3]))
        if self.fault is not None:
            raise self.fault
        if command[0] == "squeue":
            rows = self.holders if any("--licenses=" in word for word in command) else self.jobs
            return "".join(MARK.join(fields) + MARK + "\n" for fields in rows)
        return {"licenses": self.licenses, "reservations": self.reservations}.get(command[2], self.job)


@pytest.fixture
def answers(site, monkeypatch):
    """Slurm's answers at a site whose QPU `a` is a license."""
    found = Answers()
    monkeypatch.setattr(commands, "run", found.run)
    monkeypatch.setattr(job_details, "_mark", lambda: MARK)
    monkeypatch.setenv("SLURM_CONF", str(site.slurm_conf))
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    site.add("a")
    return found


def test_a_waiting_job(answers, run):
    """Four questions; the answer is the first line, then what to do."""
    status, out, err = run("why", "12")
    assert (status, err) == (0, "")
    first, *rest = out.splitlines()
    assert first.startswith("Job 12 waits for a: job 11 (bob) has it, until ")
    assert rest[0] == "  to do: it starts by itself; nothing has to be done"
    assert len(rest) < 23, "one screen"
    assert len(answers.asked) == 4


def test_a_job_that_waits_for_something_else_costs_one_question(answers, run):
    answers.jobs = [row(Reason="Priority")]
    assert run("why", "12")[1].startswith("Job 12 waits: other jobs are before it")
    assert len(answers.asked) == 1


def test_json(answers, run):
    status, out, _ = run("why", "--json", "12")
    (job,) = json.loads(out)["jobs"]
    assert (status, job["job"], job["state"], job["cause"], job["qpus"]) == (0, "12", "PENDING", "license-taken", ["a"])
    assert job["until_s"] == NOW_S + 600
    assert set(job) >= {"answer", "details", "advice", "unseen", "requeues"}


@pytest.mark.parametrize("text", ["x", "12.batch", "0", "--", "12;id", "../12", "1" * 4000, "\x1b[2J"])
def test_what_is_no_id(answers, run, text):
    status, out, err = run("why", "--", text)
    assert (status, out, answers.asked) == (2, "", [])
    assert "is not a job's id\nhint: write it as squeue does" in err
    assert "\x1b" not in err and len(err) < 300


@pytest.mark.parametrize("fault", [None, RefusedError("m", "h", "slurm_load_jobs error: Invalid job id specified\n")])
def test_an_unknown_job(answers, run, fault):
    """Exit status 1; one that belongs to another user looks the same where jobs are private."""
    answers.jobs, answers.fault = [], fault
    status, out, err = run("why", "12")
    assert (status, out) == (1, "")
    assert err.startswith("error: Slurm shows no job 12: ")
    status, out, _ = run("why", "--json", "12")
    assert (status, json.loads(out)["jobs"]) == (1, [])


def test_slurmctld_is_down(answers, run, hold, as_root):
    """Exit status 2 with Slurm's words; what this node has recorded is told all the same."""
    answers.fault = RefusedError("squeue failed: Unable to contact slurm controller", "is it running?", "Unable to\n")
    status, out, err = run("why", "12")
    assert (status, out) == (2, "")
    assert err.startswith("error: squeue failed: Unable to contact slurm controller")
    hold()
    status, out, err = run("why", "12")
    assert (status, err) == (0, "")
    assert out.startswith("Job 12 holds a, by what this node has recorded\n")
    assert "not seen: Slurm cannot be asked: squeue failed" in out
    assert SECRET not in out


def test_a_failed_job_after_its_folder_is_gone(answers, run, site):
    """Prolog's sentence is kept on its node, also once Slurm has forgotten the job."""
    folder = site.folder()
    folder.create()
    folder.write_exports(exports.render(Exports(12, 0, False, (NOTE,))), os.getuid())
    answers.jobs = [row(State="FAILED", Reason="NonZeroExitCode", exit_code="256")]
    said = "a could not be acquired: the service answered 503"
    assert run("why", "12")[1].splitlines()[0] == f"Job 12 failed: {said}"
    folder.remove()
    assert run("why", "12")[1].splitlines()[0] == f"Job 12 failed: {said}"
    answers.jobs = []
    out = run("why", "12")[1]
    assert out.splitlines()[0] == f"Job 12 had no QPU: {said}"
    assert "not seen: Slurm does not know this job any more" in out


def test_a_failed_job_seen_from_another_node(answers, run, tmp_path, monkeypatch):
    """Its owner's own output has the sentence; root is told where to look."""
    output = tmp_path / "slurm-12.out"
    output.write_text(f"{NOTE}\nslurmstepd: error: TaskProlog failed\n")
    answers.jobs = [row(State="FAILED", Reason="NonZeroExitCode", exit_code="256")]
    answers.job = f"JobId=12\n   StdOut={output}\n"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    output_of = os.getuid()
    monkeypatch.setattr(evidence.os, "geteuid", lambda: output_of or 1000)
    if output_of == 0:
        os.chown(output, 1000, -1)
    assert run("why", "12")[1].startswith("Job 12 failed: a could not be acquired: the service answered 503\n")
    os.chown(output, 1001, -1)
    out = run("why", "12")[1]
    assert out.startswith("Job 12 failed: its script ended with exit status 1")
    assert (
        f"not seen: whether it had its QPUs can be seen on n1, by qrmi-slurm why 12 or in its output, {output}" in out
    )


def test_a_running_job_on_another_node(answers, run):
    answers.jobs = [row(State="RUNNING", NodeList="n7", EndTime=str(NOW_S + 600))]
    out = run("why", "12")[1]
    assert out.startswith("Job 12 runs with a until ")
    assert "  not seen: what it holds is recorded on n7: qrmi-slurm why 12, there\n" in out


def test_an_earlier_runs_record_does_not_count(answers, run, hold, as_root):
    hold(state=State.RELEASING)
    answers.jobs = [row(State="COMPLETED", RestartCnt="1")]
    assert "not proven closed" not in run("why", "12")[1]


def test_an_array(answers, run):
    """The states are counted, and tasks with the same answer are one line."""
    tasks = [row(JobArrayID=f"12_{number}", JobID=str(20 + number), Reason="Priority") for number in range(5)]
    answers.jobs = [*tasks, row(JobArrayID="12_9", JobID="29", State="COMPLETED")]
    lines = run("why", "12")[1].splitlines()
    assert lines[0] == "6 jobs: 5 PENDING, 1 COMPLETED"
    assert lines[1] == "Job 12_0 waits: other jobs are before it (Slurm says Priority) (and 4 jobs likewise)"
    assert "Job 12_9 has completed" in lines[3]


def test_a_huge_array_stays_on_one_screen(answers, run, monkeypatch):
    looked_at = []
    real = evidence._here
    monkeypatch.setattr(evidence, "_here", lambda *words: looked_at.append(words) or real(*words))
    answers.jobs = [
        row(JobArrayID=f"12_{number}", JobID=str(20 + number), Reason=f"Odd{number}") for number in range(1000)
    ]
    lines = run("why", "12")[1].splitlines()
    assert len(lines) < 24
    assert lines[-1] == "and 994 other answers; --json has all"
    assert len(looked_at) <= 16


def test_users_have_the_published_list(answers, run, site, monkeypatch):
    """They cannot read the config: the QPU behind a license is the one that has its usual name."""
    (site.path / "qrmi_config.json").unlink()
    site.state_dir.mkdir()
    listed = {"name": "a", "type": "t", "state": "online", "is_usable": True, "pending_jobs": 0, "held_by": 0}
    (site.state_dir / "qpus.json").write_text(json.dumps({"version": 1, "checked_s": 1.0, "qpus": [listed]}))
    assert run("why", "12")[1].startswith("Job 12 waits for a: job 11")
    (site.state_dir / "qpus.json").unlink()
    assert run("why", "12")[1].startswith("Job 12 waits for the license qpu_a: job 11")
