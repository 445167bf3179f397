"""The job's environment: what its tasks get, from what was acquired."""

from pathlib import Path

import pytest
from doubles import SECRET

from qrmi_slurm.config.config_file import Resource
from qrmi_slurm.config.credentials import Credentials
from qrmi_slurm.hooks import job_environment
from qrmi_slurm.hooks.choice import Candidate, Slot
from qrmi_slurm.hooks.job_environment import Acquired
from qrmi_slurm.secret import Secret
from qrmi_slurm.slurm.job_context import JobContext
from qrmi_slurm.slurm.selection import Term
from qrmi_slurm.state.exports import fingerprint
from qrmi_slurm.state.record import Broker, Entry, Record, State

JOB = JobContext(12, 1001, "test", "n1", "n1", 1, 300, "", {}, Path("/etc/slurm/slurm.conf"))


def slot(name, *, term=None, type="direct-access", need_broker=False, sites=None):
    """Return a slot that got QPU `name`, with a key that is not among the site's values."""
    resource = Resource(name, type, sites or {})
    credentials = Credentials({"QRMI_IBM_QS_IAM_APIKEY": f"{SECRET}-{name}"}, are_users=False, need_broker=need_broker)
    made = Slot(Term(term or name, term or name), [], [])
    made.chosen = Candidate(resource, credentials, "ibm-quantum-system")
    return made


def held(name, **changes):
    return Entry(
        name, "ibm-quantum-system", {}, state=State.ACQUIRED, token=Secret(f"t-{name}"), restart_count=1
    )._replace(**changes)


def exports_of(slots, entries, *, problems=(), notes=(), site_env=None, broker=None):
    record = Record("test", 12, 1001, "n1", "b", 1, 1000.0, tuple(entries), broker=broker)
    return job_environment.exports_of(JOB, Acquired(record, slots, 300, problems, notes), site_env or {})


def test_a_qpu_gives_the_tasks_its_variables_token_and_time_limit():
    made = exports_of([slot("a")], [held("a")], site_env={"HTTPS_PROXY": "http://p"})
    assert (made.job_id, made.restart_count, made.is_ready, made.notes) == (12, 1, True, ())
    assert made.variables == {
        "HTTPS_PROXY": "http://p",
        "a_QRMI_IBM_QS_IAM_APIKEY": f"{SECRET}-a",
        "a_QRMI_JOB_ACQUISITION_TOKEN": "t-a",
        "a_QRMI_JOB_TIMEOUT_SECONDS": "300",
        "QRMI_SLURM_GIVEN": fingerprint("HTTPS_PROXY", "http://p"),  # the key is the user's: the config has none
        "QRMI_JOB_QPU_RESOURCES": "a",
        "SLURM_JOB_QPU_RESOURCES": "a",
        "QRMI_JOB_QPU_TYPES": "ibm-quantum-system",
        "SLURM_JOB_QPU_TYPES": "direct-access",
        "QRMI_JOB_ID": "12",
        "QRMI_JOB_UID": "1001",
    }


def test_the_lists_are_in_the_order_of_the_selection_not_of_the_record():
    made = exports_of([slot("b"), slot("a", type="t")], [held("a"), held("b")])
    assert made.variables["QRMI_JOB_QPU_RESOURCES"] == "b,a"
    assert made.variables["SLURM_JOB_QPU_TYPES"] == "direct-access,t"


def test_a_choice_is_noted_and_passed_on_to_steps():
    made = exports_of([slot("a"), slot("ibm_b", term="ibm_*")], [held("a"), held("ibm_b")], notes=["n"], problems=["p"])
    assert made.notes == ("qrmi-slurm: ibm_* is ibm_b", "qrmi-slurm: n", "qrmi-slurm: p")
    assert made.variables["QRMI_SLURM_CHOICES"] == "ibm_*=ibm_b"


@pytest.mark.parametrize(
    "changes", [{"state": State.RELEASING}, {"state": State.FAILED, "token": None}, {"restart_count": 0}]
)
def test_only_what_this_run_of_the_job_holds_reaches_its_tasks(changes):
    """An earlier run's QPU may still be on record, or one that is being given back."""
    made = exports_of([slot("a"), slot("b")], [held("a"), held("b", **changes)])
    assert made.variables["QRMI_JOB_QPU_RESOURCES"] == "a"
    assert not any(name.startswith("b_") for name in made.variables)


def test_the_sites_values_are_marked_and_the_users_are_not():
    """A job that is submitted from within this one must not take the site's for the user's."""
    key = f"{SECRET}-a"
    url = {"QRMI_IBM_QS_ENDPOINT": "https://x"}
    of_site = exports_of([slot("a", sites={"QRMI_IBM_QS_IAM_APIKEY": key})], [held("a")])
    assert of_site.variables["QRMI_SLURM_GIVEN"] == fingerprint("a_QRMI_IBM_QS_IAM_APIKEY", key)
    for sites in ({}, url, {"QRMI_IBM_QS_IAM_APIKEY": "another"}):
        assert "QRMI_SLURM_GIVEN" not in exports_of([slot("a", sites=sites)], [held("a")]).variables


def test_a_time_that_was_capped_is_not_the_users():
    """An inner job has a limit of its own; a time below the cap is passed on to it."""
    made = slot("a")
    times = {"QRMI_IBM_QS_SESSION_MAX_TTL": "300", "QRMI_IBM_QS_TIMEOUT_SECONDS": "60"}
    credentials = Credentials(times, are_users=False, tuned=frozenset(times), capped_at_s=300)
    made.chosen = made.chosen._replace(credentials=credentials)
    given = exports_of([made], [held("a")]).variables["QRMI_SLURM_GIVEN"].split(",")
    assert fingerprint("a_QRMI_IBM_QS_SESSION_MAX_TTL", "300") in given
    assert fingerprint("a_QRMI_IBM_QS_TIMEOUT_SECONDS", "60") not in given


def test_the_brokers_values_are_not_the_users():
    broker = Broker(1, 1, 4321, 1, {"a": Secret("the-jobs-key")}, "s", 2000.0)
    made = exports_of([slot("a", need_broker=True)], [held("a")], broker=broker)
    assert fingerprint("a_QRMI_IBM_QS_IAM_APIKEY", "the-jobs-key") in made.variables["QRMI_SLURM_GIVEN"].split(",")


def test_a_job_without_qpus_gets_every_reason_and_no_variable():
    made = exports_of([slot("a")], [], problems=["p"], notes=["n"], site_env={"X": "1"})
    assert (made.is_ready, made.variables) == (False, {})
    assert made.notes == ("qrmi-slurm: job 12 has no QPU: p", "qrmi-slurm: job 12 has no QPU: n")
    assert job_environment.failed(JOB, "why").notes == ("qrmi-slurm: job 12 has no QPU: why",)


def test_behind_a_broker_the_tasks_get_the_jobs_key_and_the_brokers_node():
    broker = Broker(1, 1, 4321, 1, {"a": Secret("the-jobs-key")}, "s", 2000.0)
    made = exports_of([slot("a", need_broker=True)], [held("a")], broker=broker)
    assert made.variables["a_QRMI_IBM_QS_IAM_APIKEY"] == "the-jobs-key"
    assert made.variables["QRMI_SLURM_BROKER"] == "n1"
    assert SECRET not in str(made.variables)
