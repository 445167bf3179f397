"""A job that leaves its QPU open: what is tried, in which order, with which license, and who may use it."""

import grp
import os
import pwd
import time
from collections import Counter

import pytest
from doubles import SECRET

from qrmi_slurm.calls import backend
from qrmi_slurm.config import access, stored_secrets
from qrmi_slurm.hooks import planning
from qrmi_slurm.slurm import jobs, licenses
from qrmi_slurm.slurm.jobs import Allotment, Times

ME = pwd.getpwuid(os.getuid()).pw_name
MY_GROUP = grp.getgrgid(os.getgid()).gr_name


LICENSES = ",".join(["matlab:4", *(f"qpu_ibm_{letter}:1" for letter in "abcdefghz")])


@pytest.fixture
def slurmctld(site, monkeypatch):
    """A slurmctld with licenses: `free` for those that no job has, `job` for this one's; `changes` are recorded."""

    class Slurmctld:
        def __init__(self):
            self.free = {}
            self.changes = []
            self.job = Allotment({}, "")

        def read(self):
            return {name: licenses.License(name, free, 0, 0) for name, free in self.free.items()}

        def change(self, job_id, counts, slurm_conf, timeout_s):
            for name in {*counts, *self.job.licenses}:
                self.free[name] = self.free.get(name, 0) + self.job.licenses.get(name, 0) - counts.get(name, 0)
            self.job = Allotment(dict(counts), "")
            self.changes.append(dict(counts))
            return True

    site.slurm_conf.write_text(f"ClusterName=test\nLicenses={LICENSES}\n")
    daemon = Slurmctld()
    monkeypatch.setattr(jobs, "allotment", lambda job_id, slurm_conf, timeout_s: daemon.job)
    monkeypatch.setattr(licenses, "read", lambda slurm_conf, timeout_s: daemon.read())
    monkeypatch.setattr(licenses, "change", daemon.change)
    return daemon


def held(result):
    return result.variables.get("QRMI_JOB_QPU_RESOURCES", "")


def acquired(site):
    return [line.split()[1] for line in site.calls() if line.startswith("acquire")]


@pytest.mark.parametrize("selection", ["ibm_*", "any:ibm_*", "any:ibm-quantum-compute-service", "least-busy:ibm_*"])
def test_the_least_busy_of_the_matching_qpus_is_chosen(site, acquire_for, selection):
    site.add("ibm_a", queue="7").add("ibm_b", queue="2").add("ibm_c", queue="3")
    site.add("other", type="ibm_quantum_system", queue="0")
    result = acquire_for(selection)
    assert held(result) == "ibm_b"
    assert result.notes == (f"qrmi-slurm: {selection} is ibm_b",)
    assert result.variables["QRMI_SLURM_CHOICES"] == f"{selection}=ibm_b"
    assert acquired(site) == ["ibm_b"]
    assert "ibm_a_QRMI_IBM_QCS_ENDPOINT" not in result.variables


def test_a_type_is_known_by_its_former_name(site, acquire_for):
    site.add("a")
    assert held(acquire_for("any:qiskit-runtime-service")) == "a"


def test_a_qpu_with_exactly_this_name_is_not_a_choice(site, acquire_for):
    site.add("ibm_*", queue="7").add("ibm_b", queue="2")
    result = acquire_for("ibm_*")
    assert held(result) == "ibm_*"
    assert result.notes == ()


def test_a_qpu_that_is_not_online_is_left_out(site, acquire_for):
    site.add("ibm_a", queue="0", status="Offline").add("ibm_b", queue="9").add("ibm_c", status="raise", secret=SECRET)
    assert held(acquire_for("ibm_*")) == "ibm_b"
    assert acquired(site) == ["ibm_b"]


def test_if_none_can_be_used_the_user_reads_the_reason_for_each(site, acquire_for):
    site.add("ibm_a", status="Offline").add("ibm_b", status="raise", secret=SECRET)
    result = acquire_for("ibm_*")
    assert not result.is_ready
    [note] = result.notes
    assert "ibm_a could not be acquired: the QPU is offline: maintenance until noon" in note
    assert "ibm_b could not be acquired: the service says no to" in note


def test_if_one_cannot_be_acquired_the_next_is_tried(site, acquire_for):
    site.add("ibm_a", queue="1", acquire="raise").add("ibm_b", queue="2", acquire="panic").add("ibm_c", queue="3")
    result = acquire_for("least-busy:ibm_*")
    assert held(result) == "ibm_c"
    assert acquired(site) == ["ibm_a", "ibm_b", "ibm_c"]
    assert result.notes == ("qrmi-slurm: least-busy:ibm_* is ibm_c",)


def test_a_qpu_that_hangs_leaves_time_for_the_next(site, acquire_for):
    site.add("ibm_a", queue="1", acquire="hang").add("ibm_b", queue="2")
    site.configure("--acquire-timeout=2")
    assert held(acquire_for("ibm_*")) == "ibm_b"


def test_two_choices_get_two_qpus_other_than_the_named_one(site, acquire_for):
    site.add("ibm_a", queue="1").add("ibm_b", queue="2").add("ibm_c", queue="3")
    assert held(acquire_for("ibm_*,ibm_a,ibm_*")) == "ibm_b,ibm_a,ibm_c"


def test_each_qpu_is_looked_at_once(site, acquire_for, monkeypatch):
    """However many terms it fits: its access rules, its key, its credentials, and what its service says."""
    seen = []
    for module, name in ((access, "refusal"), (stored_secrets, "_of_file"), (planning, "merge")):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *args, name=name, real=real: seen.append(name) or real(*args))
    key = site.path / "key"
    key.touch(0o600)
    key.write_text("the-key")
    stored = {"secrets": {"QRMI_IBM_QCS_IAM_APIKEY": {"file": str(key)}}, "allow": {"users": [ME]}}
    for name in ("ibm_a", "ibm_b", "ibm_c"):
        site.add(name, slurm=stored)
    assert held(acquire_for("ibm_*,any:*,ibm_a,least-busy:ibm_*,any:*")) == "ibm_b,ibm_c,ibm_a"
    assert Counter(seen) == {"refusal": 3, "_of_file": 1, "merge": 3}


def test_candidates_that_fail_are_tried_only_while_there_is_time(site, acquire_for):
    site.configure("--acquire-timeout=0.5")
    for number in range(60):
        site.add(f"q{number}", acquire="hang")
    began_s = time.monotonic()
    [note] = acquire_for("any:*").notes
    assert time.monotonic() - began_s < 4
    assert len(acquired(site)) < 20
    assert "no time was left to try it" in note


def test_a_qpu_that_there_was_no_time_to_look_at_is_tried_last(site, acquire_for, monkeypatch):
    monkeypatch.setattr(backend.run, "__kwdefaults__", {"at_once": 1, "node": None, "on_late": None})
    site.configure("--acquire-timeout=1.5")
    site.add("ibm_a", queue="9").add("ibm_b", status="hang").add("ibm_c", queue="0")
    assert held(acquire_for("least-busy:*,any:*")) == "ibm_a,ibm_c"


def test_a_sentence_about_many_qpus_tells_the_first_ten(site, acquire_for):
    for number in range(25):
        site.add(f"q{number}", status="Offline")
    [note] = acquire_for("any:*,any:*").notes
    assert note.count("the QPU is offline") == 10
    assert note.endswith("; and 15 more like it")


def test_a_choice_without_a_qpu_left_says_so(site, acquire_for):
    site.add("ibm_a").add("ibm_b")
    result = acquire_for("ibm_*,ibm_*,ibm_*")
    assert held(result) == "ibm_a,ibm_b"
    assert result.notes[-1] == "qrmi-slurm: ibm_*: no other QPU is left for it"


def test_a_choice_that_matches_nothing_lists_the_known_qpus(site, acquire_for):
    site.add("ibm_demo").add("ibm_second")
    assert acquire_for("any:iqm-server").notes == (
        "qrmi-slurm: job 12 has no QPU: unknown QPU: any:iqm-server; known QPUs: ibm_demo, ibm_second",
    )
    assert acquire_for("ibm_dmeo").notes == (
        "qrmi-slurm: job 12 has no QPU: unknown QPU: ibm_dmeo (did you mean ibm_demo?); "
        "known QPUs: ibm_demo, ibm_second",
    )


def test_a_long_list_of_names_is_cut(site, acquire_for):
    for number in range(25):
        site.add(f"q{number}")
    [note] = acquire_for("x").notes
    assert note.endswith("q18, q19, ... and 5 more (list all: qrmi-slurm qpus)")


# --- dynamic resources -------------------------------------------------------------------------------------


def test_a_qpu_found_behind_a_dynamic_resource_is_acquired_by_its_own_name(site, acquire_for):
    site.add("ibm_inst1", is_dynamic=True, behind="ibm_torino ibm_fez")
    result = acquire_for("ibm_inst1")
    assert held(result) == "ibm_torino"
    assert result.variables["ibm_torino_QRMI_IBM_QCS_IAM_APIKEY"] == f"{SECRET}-apikey"
    assert result.variables["ibm_torino_QRMI_JOB_ACQUISITION_TOKEN"] == "session-ibm_torino"
    assert not any(name.startswith("ibm_inst1_") for name in result.variables)
    assert result.notes == ("qrmi-slurm: ibm_inst1 is ibm_torino",)
    assert [entry.name for entry in site.folder().read().entries] == ["ibm_torino"]


def test_a_choice_may_match_a_dynamic_resource(site, acquire_for):
    site.add("ibm_a", status="Offline").add("ibm_inst1", is_dynamic=True, behind="ibm_torino")
    assert held(acquire_for("any:ibm-quantum-compute-service")) == "ibm_torino"


@pytest.mark.parametrize(
    ("behind", "reason"),
    [({}, "the service says no"), ({"behind": " "}, "QRMI found no online QPU behind it")],
)
def test_a_dynamic_resource_without_qpus_says_so(site, acquire_for, behind, reason):
    site.add("ibm_inst1", is_dynamic=True, **behind)
    assert acquire_for("ibm_inst1").notes == (
        f"qrmi-slurm: job 12 has no QPU: ibm_inst1 could not be acquired: {reason}",
    )


# --- licenses ----------------------------------------------------------------------------------------------


def test_the_licensed_qpu_is_preferred_unless_the_queue_decides(site, acquire_for, slurmctld):
    site.add("ibm_a", queue="1").add("ibm_b", queue="9")
    assert held(acquire_for("ibm_*", SLURM_JOB_LICENSES="matlab:1,qpu_ibm_b:1")) == "ibm_b"
    assert slurmctld.changes == []


@pytest.mark.parametrize("is_told", [True, False])
def test_for_a_qpu_other_than_the_licensed_one_the_license_is_swapped(
    site, acquire_for, slurmctld, is_told, monkeypatch
):
    """Slurm before 23.02 does not tell Prolog the licenses, so slurmctld is asked."""
    monkeypatch.setattr(jobs, "times", lambda *arguments: Times(300))
    site.add("ibm_a", queue="1").add("ibm_b", queue="9")
    slurmctld.job = Allotment({"matlab": 1, "qpu_ibm_b": 1}, "")
    slurmctld.free = {"qpu_ibm_a": 1}
    told = {"SLURM_JOB_LICENSES": "matlab:1,qpu_ibm_b:1"}
    untold = {"SLURM_JOB_START_TIME": None, "SLURM_JOB_END_TIME": None}
    assert held(acquire_for("least-busy:ibm_*", **(told if is_told else untold))) == "ibm_a"
    assert slurmctld.changes == [{"matlab": 1, "qpu_ibm_a": 1}]
    assert slurmctld.free == {"matlab": 0, "qpu_ibm_a": 0, "qpu_ibm_b": 1}


def test_an_odd_word_in_the_license_list_does_not_free_the_choice(site, acquire_for, slurmctld):
    """Slurm skips empty words; the job still holds its QPU's license and can only swap it for a free one."""
    site.add("ibm_a", queue="1").add("ibm_b", queue="9")
    slurmctld.free = {"qpu_ibm_a": 0}
    assert held(acquire_for("least-busy:ibm_*", SLURM_JOB_LICENSES="matlab,,qpu_ibm_b:1")) == "ibm_b"


def test_a_qpu_held_by_other_jobs_is_not_taken(site, acquire_for, slurmctld):
    site.add("ibm_a", queue="1").add("ibm_b", queue="9")
    slurmctld.job = Allotment({"qpu_ibm_b": 1}, "")
    slurmctld.free = {"qpu_ibm_a": 0}
    assert held(acquire_for("least-busy:ibm_*", SLURM_JOB_LICENSES="qpu_ibm_b:1")) == "ibm_b"
    assert slurmctld.changes == []


def test_a_license_that_another_job_takes_at_the_same_moment_is_given_back(site, acquire_for, slurmctld, monkeypatch):
    """Slurm lets an operator over-subscribe a license."""
    site.add("ibm_a", queue="1").add("ibm_b", queue="9")
    slurmctld.job = Allotment({"qpu_ibm_b": 1}, "")
    told = [(1, 0, 0), (1, 2, 0), (1, 1, 0)]
    answers = iter([licenses.License("qpu_ibm_a", *counts) for counts in told])
    monkeypatch.setattr(licenses, "read", lambda slurm_conf, timeout_s: {"qpu_ibm_a": next(answers)})
    assert held(acquire_for("least-busy:ibm_*", SLURM_JOB_LICENSES="qpu_ibm_b:1")) == "ibm_b"
    assert slurmctld.changes == [{"qpu_ibm_a": 1}, {"qpu_ibm_b": 1}]


def test_two_prologs_that_try_at_the_same_moment_do_not_both_go_without(site, acquire_for, slurmctld, monkeypatch):
    """Both see that it is taken twice, give it back, and try again after different times."""
    site.add("ibm_a")
    told = [(1, 0, 0), (1, 2, 0), (1, 0, 0), (1, 1, 0)]
    answers = iter([licenses.License("qpu_ibm_a", *counts) for counts in told])
    monkeypatch.setattr(licenses, "read", lambda slurm_conf, timeout_s: {"qpu_ibm_a": next(answers)})
    assert held(acquire_for("ibm_a")) == "ibm_a"
    assert slurmctld.changes == [{"qpu_ibm_a": 1}, {}, {"qpu_ibm_a": 1}]


def test_licenses_that_are_taken_are_asked_about_once(site, acquire_for, slurmctld, monkeypatch):
    """A choice may be among hundreds of QPUs, and slurmctld has other work."""
    for name in "bcdefgh":
        site.add(f"ibm_{name}", queue="1")
    site.add("ibm_z", queue="9")
    slurmctld.job = Allotment({"qpu_ibm_z": 1}, "")
    asked = []
    monkeypatch.setattr(licenses, "read", lambda slurm_conf, timeout_s: asked.append(1) or slurmctld.read())
    assert held(acquire_for("least-busy:ibm_*", SLURM_JOB_LICENSES="qpu_ibm_z:1")) == "ibm_z"
    assert len(asked) == 1


def test_if_slurmctld_refuses_the_swap_the_qpu_is_not_taken(site, acquire_for, slurmctld, monkeypatch):
    site.add("ibm_a", queue="1").add("ibm_b", queue="9")
    slurmctld.free = {"qpu_ibm_a": 1}
    monkeypatch.setattr(licenses, "change", lambda *arguments: False)
    assert held(acquire_for("least-busy:ibm_*", SLURM_JOB_LICENSES="qpu_ibm_b:1")) == "ibm_b"


def test_a_job_without_licenses_chooses_freely(site, acquire_for, slurmctld):
    """Slurm has no licenses for QPUs, so nothing is counted."""
    site.slurm_conf.write_text("ClusterName=test\nLicenses=matlab:4\n")
    site.add("ibm_a", queue="1").add("ibm_b", queue="9")
    assert held(acquire_for("least-busy:ibm_*", SLURM_JOB_LICENSES="matlab:1")) == "ibm_a"
    assert slurmctld.changes == []


@pytest.mark.parametrize("selection", ["ibm_a", "ibm_*", "any:ibm_[ab]", "least-busy:ibm_*"])
@pytest.mark.parametrize("is_free", [True, False])
def test_a_job_without_the_license_gets_it_or_not_the_qpu(site, acquire_for, slurmctld, selection, is_free):
    """Whether it was submitted past job_submit, or its choice leaves a QPU without license in reach."""
    site.add("ibm_a", queue="1").add("ibm_b", queue="9", slurm={"license": None})
    slurmctld.free = {"qpu_ibm_a": 1 if is_free else 0}
    result = acquire_for(selection)
    assert slurmctld.changes == ([{"qpu_ibm_a": 1}] if is_free and held(result) == "ibm_a" else [])
    if selection == "ibm_a" and not is_free:
        assert result.notes == ("qrmi-slurm: job 12 has no QPU: ibm_a is held by other jobs",)
    else:
        assert held(result) == ("ibm_a" if is_free else "ibm_b")


def test_where_slurm_does_not_say_what_a_job_has_it_gets_no_licensed_qpu(site, acquire_for, slurmctld, monkeypatch):
    """Before 23.02 Prolog has to ask, and slurmctld may not answer."""
    site.add("ibm_a").add("other", slurm={"license": None})
    monkeypatch.setattr(jobs, "allotment", lambda *arguments: None)
    monkeypatch.setattr(jobs, "times", lambda *arguments: Times(300))
    untold = {"SLURM_JOB_START_TIME": None, "SLURM_JOB_END_TIME": None}
    result = acquire_for("ibm_a,other", **untold)
    assert held(result) == "other"
    assert "Slurm does not say whether this job has its license" in result.notes[0]


@pytest.mark.parametrize(
    ("het_job_id", "granted", "sentence"),
    [
        ("12", "qpu_ibm_a:1", ""),
        ("12", None, "a component of a heterogeneous job cannot change its licenses"),
        ("11", None, "Slurm accepts licenses only in a heterogeneous job's first component: put --qpu=ibm_a there"),
    ],
)
def test_a_component_has_its_license_or_not_the_qpu(site, acquire_for, slurmctld, het_job_id, granted, sentence):
    site.add("ibm_a")
    slurmctld.free = {"qpu_ibm_a": 1}
    result = acquire_for("ibm_a", SLURM_HET_JOB_ID=het_job_id, SLURM_JOB_LICENSES=granted)
    assert held(result) == ("" if sentence else "ibm_a")
    assert sentence in "".join(result.notes)
    assert slurmctld.changes == []


def test_two_choices_keep_their_licenses_apart(site, acquire_for, slurmctld):
    site.add("ibm_a", queue="1").add("ibm_b", queue="2").add("ibm_c", queue="3", acquire="raise")
    slurmctld.job = Allotment({"qpu_ibm_b": 1, "qpu_ibm_c": 1}, "")
    slurmctld.free = {"qpu_ibm_a": 1}
    assert sorted(held(acquire_for("ibm_*,ibm_*", SLURM_JOB_LICENSES="qpu_ibm_b:1,qpu_ibm_c:1")).split(",")) == [
        "ibm_a",
        "ibm_b",
    ]
    assert slurmctld.job.licenses == {"qpu_ibm_a": 1, "qpu_ibm_b": 1}


@pytest.mark.parametrize("listed", ["", "Licenses=qpu_a:1,qpu_b:1\n"])
def test_a_job_with_named_qpus_asks_slurmctld_nothing(site, acquire_for, monkeypatch, listed):
    site.add("a").add("b")
    site.slurm_conf.write_text(f"ClusterName=test\n{listed}")
    monkeypatch.delattr(jobs, "allotment")
    monkeypatch.delattr(licenses, "read")
    assert held(acquire_for("a,b", SLURM_JOB_LICENSES="qpu_a:1,qpu_b:1")) == "a,b"


# --- access ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "allow",
    [
        {"users": [ME]},
        {"groups": [MY_GROUP]},
        {"users": ["nobody-here"], "groups": [MY_GROUP]},
        {"accounts": ["Physics"]},
        {"partitions": ["main"]},
        {"qos": ["HIGH"]},
        {"users": [ME], "accounts": ["physics"], "partitions": ["main", "x"], "qos": ["high"]},
    ],
)
def test_an_allowed_job_gets_the_qpu(site, acquire_for, allow):
    site.add("a", slurm={"allow": allow})
    assert held(acquire_for("a", SLURM_JOB_ACCOUNT="physics", SLURM_JOB_PARTITION="main", SLURM_JOB_QOS="high")) == "a"


@pytest.mark.parametrize(
    ("allow", "sentence"),
    [
        ({"users": ["bob"], "groups": ["quantum"]}, f"user {ME} may not use a: it is for user bob or group quantum"),
        ({"users": []}, f"user {ME} may not use a: nobody may"),
        ({"accounts": ["chemistry", "law"]}, "account physics may not use a: it is for accounts chemistry, law"),
        ({"partitions": ["quantum"]}, "partition main may not use a: it is for partition quantum"),
        ({"qos": ["low"]}, "QOS high may not use a: it is for QOS low"),
    ],
)
def test_a_job_that_is_not_allowed_reads_who_is(site, acquire_for, allow, sentence):
    site.add("a", slurm={"allow": allow})
    result = acquire_for("a", SLURM_JOB_ACCOUNT="physics", SLURM_JOB_PARTITION="main", SLURM_JOB_QOS="high")
    assert result.notes == (f"qrmi-slurm: job 12 has no QPU: {sentence}",)
    assert acquired(site) == []


def test_an_unknown_account_or_qos_is_not_allowed(site, acquire_for, slurmctld):
    site.add("a", slurm={"allow": {"accounts": ["physics"]}}).add("b", slurm={"allow": {"qos": ["high"]}})
    notes = acquire_for("a,b").notes
    assert notes[0].endswith(": a job without an account may not use a: it is for account physics")
    assert notes[1].endswith(": a job without a QOS may not use b: it is for QOS high")


def test_the_qos_is_asked_for_if_a_rule_needs_it(site, acquire_for, slurmctld):
    site.add("a", slurm={"allow": {"qos": ["high"]}})
    slurmctld.job = Allotment({}, "high")
    assert held(acquire_for("a")) == "a"


def test_a_choice_is_among_those_that_the_user_may_use(site, acquire_for):
    site.add("ibm_a", queue="1", slurm={"allow": {"users": ["bob"]}}).add("ibm_b", queue="9")
    assert held(acquire_for("ibm_*")) == "ibm_b"


def test_if_none_is_for_the_user_they_read_so(site, acquire_for):
    site.add("ibm_a", slurm={"allow": {"users": ["bob"]}})
    [note] = acquire_for("ibm_*").notes
    assert note.endswith(f": user {ME} may not use ibm_a: it is for user bob")


def test_users_cannot_claim_another_account(site, acquire_for):
    """SPANK_* variables are the user's text; Slurm's own are not."""
    site.add("a", slurm={"allow": {"accounts": ["physics"]}})
    assert not acquire_for("a", SPANK_SLURM_JOB_ACCOUNT="physics", SLURM_JOB_ACCOUNT="other").is_ready
