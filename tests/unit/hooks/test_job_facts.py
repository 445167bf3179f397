"""What Slurm is asked about a job: only what is needed, and once."""

import os
import pwd

import pytest

from qrmi_slurm.errors import SchedulerError
from qrmi_slurm.hooks.job_facts import JobFacts
from qrmi_slurm.slurm import jobs
from qrmi_slurm.slurm.jobs import Allotment

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
    monkeypatch.setattr(jobs, "time_limit_s", answer(77))
    return questions


def test_what_prologs_environment_tells_is_not_asked(facts_of, asked):
    facts = facts_of(SLURM_JOB_LICENSES="qpu_b:2", SLURM_JOB_QOS="low", SLURM_JOB_ACCOUNT="physics")
    assert facts.time_limit_s() == 300
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
    assert len(asked) == 2


def test_the_qos_is_asked_for_only_where_a_rule_needs_it(facts_of, asked):
    assert facts_of().person(needs_qos=False).qos is None
    assert asked == []


def test_a_job_without_licenses_has_none_to_swap(facts_of, asked):
    assert facts_of().licenses() is None
    assert asked == []


def test_if_slurmctld_does_not_answer_the_job_has_no_license_and_no_qos(facts_of, monkeypatch, syslog_lines):
    monkeypatch.setattr(jobs, "allotment", lambda *arguments: None)
    facts = facts_of(**UNTOLD)
    assert facts.licenses() is None
    assert facts.person(needs_qos=True).qos == ""
    events = [line.split(":")[1].strip() for _, line in syslog_lines]
    assert events == ["allotment-unknown"]


def test_a_time_limit_that_nobody_tells_is_not_taken_for_none(facts_of, monkeypatch):
    """A one-minute job's session could otherwise live for eight hours."""
    monkeypatch.setattr(jobs, "time_limit_s", lambda *arguments: None)
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
