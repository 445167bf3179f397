"""What Slurm is asked about a job: only what is needed, and once."""

import os
import pwd

import pytest

from qrmi_slurm import names
from qrmi_slurm.errors import SchedulerError
from qrmi_slurm.hooks.job_facts import JobFacts
from qrmi_slurm.slurm import job_context, jobs
from qrmi_slurm.slurm.jobs import Allotment, Times

UNTOLD = {"SLURM_JOB_START_TIME": None, "SLURM_JOB_END_TIME": None}


@pytest.fixture
def facts_of(site, syslog_lines):
    site.slurm_conf.write_text("ClusterName=test\nLicenses=qpu_a:1,qpu_b:2\n")

    def make(**changes):
        return JobFacts(site.job("a", **changes), site.hook_run("prolog"))

    return make


@pytest.fixture
def asked(monkeypatch):
    """Answer slurmctld's questions; each one is noted with its time limit."""
    questions = []

    def answer(result):
        def ask(_job_id, _slurm_conf, timeout_s):
            questions.append((result, timeout_s))
            return result

        return ask

    monkeypatch.setattr(jobs, "allotment", answer(Allotment({"qpu_a": 1}, "high")))
    monkeypatch.setattr(jobs, "times", answer(Times(77, 990, 1000)))
    return questions


def test_what_prologs_environment_tells_is_not_asked(facts_of, asked):
    facts = facts_of(SLURM_JOB_LICENSES="qpu_b:2", SLURM_JOB_QOS="low", SLURM_JOB_ACCOUNT="physics")
    assert facts.time_limit_s() == 300
    assert facts.start_s() == 1000
    assert facts.may_have_started_at(1000)
    assert facts.may_have_started_at(None)
    assert facts.licenses(["qpu_b"]).held == {"qpu_b": 2}
    person = facts.person(needs_qos=True)
    assert (person.user, person.account, person.qos) == (pwd.getpwuid(os.getuid()).pw_name, "physics", "low")
    assert asked == []


def test_a_year_is_no_limit_and_not_asked_about(facts_of, asked):
    """A job without a limit ends after 365 days, whether Prolog's environment says so or slurmctld."""
    facts = facts_of(SLURM_JOB_START_TIME="1000", SLURM_JOB_END_TIME=str(1000 + job_context.ENDLESS_S))
    assert facts.time_limit_s() == names.UNLIMITED_TIMEOUT_S
    assert asked == []


def test_a_year_is_no_limit_where_slurmctld_says_it(facts_of, monkeypatch):
    monkeypatch.setattr(jobs, "times", lambda *_: Times(job_context.ENDLESS_S))
    assert facts_of(**UNTOLD).time_limit_s() == names.UNLIMITED_TIMEOUT_S


def test_what_it_does_not_tell_is_asked_once(facts_of, asked):
    facts = facts_of(**UNTOLD)
    for _ in range(2):
        assert facts.licenses(["qpu_a", None]).held == {"qpu_a": 1}
        assert facts.person(needs_qos=True).qos == "high"
        assert facts.time_limit_s() == 77
        assert facts.start_s() == 1000
        assert facts.may_have_started_at(1000)
    assert len(asked) == 2


@pytest.mark.parametrize("told", [{}, UNTOLD], ids=["since 23.02", "22.05"])
def test_another_start_time_is_another_jobs_if_it_was_before_the_submission(facts_of, asked, told):
    """A job's own changes while its nodes power up."""
    facts = facts_of(**told)
    assert not facts.may_have_started_at(989)
    assert facts.may_have_started_at(995)
    assert len(asked) == 1


@pytest.mark.parametrize(("told", "is_it"), [({}, False), (UNTOLD, True)], ids=["since 23.02", "22.05"])
def test_if_slurmctld_does_not_answer_a_time_that_differs_is_another_jobs(facts_of, monkeypatch, told, is_it):
    """Without any time of the job's own, nothing speaks against it."""
    monkeypatch.setattr(jobs, "times", lambda *arguments: Times())
    assert facts_of(**told).may_have_started_at(989) is is_it


def test_the_qos_is_asked_for_only_where_a_rule_needs_it(facts_of, asked):
    assert facts_of().person(needs_qos=False).qos is None
    assert asked == []


@pytest.mark.parametrize("wanted", [[], [None], ["qpu_c"]])
def test_licenses_that_slurm_does_not_have_are_not_asked_about(facts_of, asked, wanted):
    assert facts_of(**UNTOLD).licenses(wanted) is None
    assert asked == []


def test_remote_licenses_are_not_in_slurm_conf(facts_of, asked):
    assert facts_of(SLURM_JOB_LICENSES="qpu_c@there:1").licenses(["qpu_c@there"]).counted("qpu_c@there")


def test_a_task_of_an_array_goes_by_its_number_in_it(facts_of, asked, monkeypatch):
    """The last task has the array's own id, and scontrol would change all of them."""
    said = "12                  10                  3                   normal qpu_a:1\n"
    monkeypatch.undo()
    monkeypatch.setattr(jobs.commands, "run", lambda *arguments: said)
    assert jobs.allotment(12, facts_of()._job.slurm_conf) == Allotment({"qpu_a": 1}, "normal", "10_3")
    monkeypatch.setattr(jobs.commands, "run", lambda *arguments: said.replace(" 3 ", " N/A "))
    assert jobs.allotment(12, facts_of()._job.slurm_conf).name == "12"


def test_if_slurmctld_does_not_answer_the_job_has_no_license_and_no_qos(facts_of, monkeypatch, syslog_lines):
    monkeypatch.setattr(jobs, "allotment", lambda *arguments: None)
    facts = facts_of(**UNTOLD)
    licenses = facts.licenses(["qpu_a"])
    assert licenses.held == {}
    assert "does not say" in licenses.swap(None, "qpu_a", 1.0)
    assert facts.person(needs_qos=True).qos == ""
    events = [line.split(":")[1].strip() for _, line in syslog_lines]
    assert events == ["allotment-unknown"]


def test_a_time_limit_that_nobody_tells_is_not_taken_for_none(facts_of, monkeypatch):
    """A one-minute job's session could otherwise live for eight hours."""
    monkeypatch.setattr(jobs, "times", lambda *arguments: Times())
    with pytest.raises(SchedulerError, match="did not tell the job's time limit within 15 s"):
        facts_of(**UNTOLD).time_limit_s()


def test_whose_job_it_is_comes_from_slurm_where_the_node_does_not_know_the_user(facts_of):
    told = {"SLURM_JOB_UID": str(2**31 - 7), "SLURM_JOB_USER": "alice", "SLURM_JOB_GID": "0"}
    person = facts_of(**told).person(needs_qos=False)
    assert (person.user, person.groups) == ("alice", frozenset({"root"}))


def test_the_node_has_the_last_word_on_a_user_that_it_knows(facts_of):
    person = facts_of(SLURM_JOB_USER="mallory").person(needs_qos=False)
    assert person.user == pwd.getpwuid(os.getuid()).pw_name


def test_a_question_gets_a_quarter_of_the_time_left_and_at_most_5_s(site, facts_of):
    assert facts_of().ask_timeout_s() == 5.0
    site.configure("--acquire-timeout=3")
    assert facts_of().ask_timeout_s() == pytest.approx(1.0, abs=0.1)
