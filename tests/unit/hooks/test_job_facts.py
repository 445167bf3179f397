"""What Slurm is asked about a job: only what is needed, and once."""

import os
import pwd

import pytest

from qrmi_slurm.hooks.job_facts import JobFacts
from qrmi_slurm.slurm import jobs
from qrmi_slurm.slurm.jobs import Allotment, Times

UNTOLD = {"SLURM_JOB_START_TIME": None, "SLURM_JOB_END_TIME": None}


@pytest.fixture
def facts_of(site, syslog_lines):
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
    assert facts.licenses().held == {"qpu_b": 2}
    person = facts.person(needs_qos=True)
    assert (person.user, person.account, person.qos) == (pwd.getpwuid(os.getuid()).pw_name, "physics", "low")
    assert asked == []


def test_what_it_does_not_tell_is_asked_once(facts_of, asked):
    facts = facts_of(**UNTOLD)
    for _ in range(2):
        assert facts.licenses().held == {"qpu_a": 1}
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


def test_a_job_without_licenses_has_none_to_swap(facts_of, asked):
    assert facts_of().licenses() is None
    assert asked == []


def test_if_slurmctld_does_not_answer_the_job_goes_on_and_the_log_says_so(facts_of, monkeypatch, syslog_lines):
    monkeypatch.setattr(jobs, "allotment", lambda *arguments: None)
    monkeypatch.setattr(jobs, "times", lambda *arguments: Times())
    facts = facts_of(**UNTOLD)
    assert facts.licenses() is None
    assert facts.time_limit_s() == 2**31 - 1
    assert facts.person(needs_qos=True).qos == ""
    events = [line.split(":")[1].strip() for _, line in syslog_lines]
    assert events == ["allotment-unknown", "time-limit-unknown"]


def test_a_question_gets_a_quarter_of_the_time_left_and_at_most_5_s(site, facts_of):
    assert facts_of().ask_timeout_s() == 5.0
    site.configure("--acquire-timeout=3")
    assert facts_of().ask_timeout_s() == pytest.approx(1.0, abs=0.1)
