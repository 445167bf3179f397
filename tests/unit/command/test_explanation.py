"""The answer for each thing that a job may wait for, run with or have failed of."""

import time
from dataclasses import replace

import pytest

from qrmi_slurm.command import explanation
from qrmi_slurm.command.explanation import Cause, Evidence
from qrmi_slurm.outages.outage import Outage
from qrmi_slurm.outages.reservations import Other
from qrmi_slurm.slurm.admin_comment import Requeued
from qrmi_slurm.slurm.job_details import Holder, JobDetails
from qrmi_slurm.slurm.licenses import License
from qrmi_slurm.state.exports import Exports
from qrmi_slurm.state.record import Broker, Entry, Record, State

# Noon, so that "today" does not end within a test.
NOW_S = time.mktime((2026, 11, 28, 12, 0, 0, 0, 0, -1))
IN_10_MIN = int(NOW_S) + 600
QPUS = {"qpu_a": ("a",), "qpu_b": ("b", "c")}
WAITS = JobDetails("12", 12, "PENDING", "Licenses", "alice", {"qpu_a": 1}, submit_s=int(NOW_S) - 100, restarts=0)
RUNS = replace(WAITS, state="RUNNING", reason="None", node="n1", start_s=int(NOW_S) - 50, end_s=IN_10_MIN)
FAILED = replace(RUNS, state="FAILED", end_s=int(NOW_S) - 10, exit_code=1)
NOTE = "qrmi-slurm: job 12 has no QPU: a could not be acquired: the service answered 503"
REQUEUED = Requeued(3, "no-answer", "a", int(NOW_S) - 3600)


def explained(job, **evidence):
    found = explanation.explain(Evidence(job, NOW_S, qpus=QPUS, **evidence))
    assert found.answer[0].isupper() and not found.answer.endswith(".")
    return found


def license(name="qpu_a", total=1, used=1, reserved=0):
    return {name: License(name, total, used, reserved)}


def no_qpu(restart=0, start_s=None, notes=(NOTE,)):
    return Exports(12, restart, False, notes, start_s=start_s)


def record(state=State.ACQUIRED, **changes):
    entry = Entry("a", "t", {}, state=state, since_s=NOW_S - 3)._replace(**changes)
    return Record("test", 12, 1000, "n1", "b", 0, NOW_S, (entry,))


# --- waiting -----------------------------------------------------------------------------------------------------


def test_for_a_license_that_a_job_has():
    found = explained(WAITS, licenses=license(), holders={"qpu_a": [Holder("11", "bob", "RUNNING", IN_10_MIN)]})
    assert found.answer == "Job 12 waits for a: job 11 (bob) has it, until 12:10 at the latest"
    assert (found.cause, found.qpus, found.until_s) == (Cause.LICENSE, ("a",), IN_10_MIN)


@pytest.mark.parametrize(
    ("holders", "used", "answer"),
    [
        (
            [Holder("11", "bob", "RUNNING", IN_10_MIN), Holder("9_1", "eve", "COMPLETING", IN_10_MIN + 60)],
            2,
            "job 11 (bob) and job 9_1 (eve, which is ending) have it, the first of them until 12:10 at the latest",
        ),
        ([Holder("11", "bob", "RUNNING", None)], 1, "job 11 (bob) has it"),
        ([Holder("11", "bob", "RUNNING", IN_10_MIN)], 3, "job 11 (bob) and 2 other jobs have it"),
        ([], 2, "2 jobs that you may not see have it"),
        ([], 1, "1 job that you may not see has it"),
    ],
)
def test_for_a_license_that_several_jobs_have(holders, used, answer):
    """Without a time limit, or with jobs that this user may not see, there is no latest end."""
    found = explained(WAITS, licenses=license(total=used, used=used), holders={"qpu_a": holders})
    assert found.answer == f"Job 12 waits for a: {answer}"


def test_hundreds_of_holders_stay_on_one_line():
    holders = [Holder(str(number), "bob", "RUNNING", IN_10_MIN) for number in range(300)]
    found = explained(WAITS, licenses=license(total=300, used=300), holders={"qpu_a": holders})
    assert "job 4 (bob) and 295 other jobs have it" in found.answer


def test_for_more_licenses_than_there_are():
    job = replace(WAITS, licenses={"qpu_a": 2})
    assert explained(job, licenses=license()).answer == "Job 12 asks for 2 of a, and there are only 1"


def test_for_a_license_of_another_kind():
    job = replace(WAITS, licenses={"matlab": 1})
    assert explained(job, licenses=license("matlab")).answer.startswith("Job 12 waits for the license matlab: ")


@pytest.mark.parametrize(
    ("outage", "said"),
    [
        (
            Outage("qpu_a", 1, True, "new fridge", "root", "2026-11-23T06:30"),
            "since 2026-11-23 06:30: drained: new fridge (says root)",
        ),
        (Outage("qpu_a", 1, True, "x"), ": drained: x (says an admin)"),
        (Outage("qpu_a", 1, False, "paused", began_s=NOW_S - 60), "since 11:59: offline: paused (says the sensor)"),
        (
            Outage("qpu_a", 1, False, "no-answer", "job 9 on n1", "2026-11-28T11:58", began_s=NOW_S - 120),
            "since 2026-11-28 11:58: offline: no-answer (says job 9 on n1)",
        ),
    ],
)
def test_for_a_qpu_that_is_out_of_service(outage, said):
    found = explained(WAITS, licenses=license(), outages={"qpu_a": outage})
    assert found.answer.startswith("Job 12 waits for a, which is out of service")
    assert found.answer.endswith(said)
    assert found.cause is Cause.OUT_OF_SERVICE


def test_for_a_release_that_is_not_proven():
    text = "job 9 has ended, and its session is not proven closed"
    other = Other("qpu_held_qpu_a_9_1_0", NOW_S - 5, IN_10_MIN, text)
    found = explained(WAITS, licenses=license(used=0, reserved=1), others={"qpu_a": [other]})
    assert found.answer == f"Job 12 waits for a: {text}; it counts as held until 12:10 at the latest"
    assert found.cause is Cause.NOT_RELEASED


def test_for_a_reservation_of_the_sites():
    other = Other("course", NOW_S - 5, IN_10_MIN, "")
    later = Other("later", NOW_S + 5, IN_10_MIN, "")
    found = explained(WAITS, licenses=license(used=0, reserved=1), others={"qpu_a": [later, other]})
    assert found.answer == "Job 12 waits for a: the reservation course has it until 12:10"
    assert found.cause is Cause.RESERVED


def test_for_what_its_service_does_not_have():
    less = {"qpu_a": [Other("qpu_less_qpu_a", NOW_S - 5, IN_10_MIN, "the service has 1 of 2")]}
    holders = {"qpu_a": [Holder("11", "bob", "RUNNING", IN_10_MIN)]}
    found = explained(WAITS, licenses=license(total=2, used=1, reserved=1), holders=holders, others=less)
    assert found.answer == "Job 12 waits for a: job 11 (bob) has it, until 12:10 at the latest"
    assert found.details == ("1 of 2 are in use", "the service has 1 of 2")
    less = {"qpu_a": [replace(less["qpu_a"][0], text="the service has 0 of 2")]}
    found = explained(WAITS, licenses=license(total=2, used=0, reserved=2), others=less)
    assert (found.answer, found.cause) == ("Job 12 waits for a: the service has 0 of 2", Cause.LICENSE)


def test_for_a_license_that_is_free_again():
    assert explained(WAITS, licenses=license(used=0)).answer == "Job 12 waits for a, which is free by now"


def test_for_its_next_try():
    job = replace(WAITS, reason="BeginTime", eligible_s=IN_10_MIN, restarts=3, admin_comment=f"x {REQUEUED.word} y")
    found = explained(job, kept=no_qpu(restart=2))
    assert found.answer == (
        "Job 12 was put back into the queue 3 times, since 11:00, because a does not answer; it tries again at 12:10:00"
    )
    assert (found.cause, found.requeues, found.until_s) == (Cause.REQUEUED, 3, IN_10_MIN)
    assert found.details == ("a could not be acquired: the service answered 503",)
    assert explained(job, kept=no_qpu(restart=0)).details == (), "that was an earlier run"


def test_out_of_service_after_it_was_put_back():
    job = replace(WAITS, admin_comment=REQUEUED._replace(times=1).word)
    found = explained(job, licenses=license(), outages={"qpu_a": Outage("qpu_a", 1, False, "paused")})
    assert found.cause is Cause.OUT_OF_SERVICE
    assert found.details == ("it was put back into the queue once, at 11:00, because a does not answer",)


def test_what_was_before_its_last_run_does_not_count():
    """It has run since, and Slurm or an admin has restarted it."""
    job = replace(WAITS, reason="BeginTime", restarts=5, admin_comment=REQUEUED._replace(restarts=3).word)
    assert explained(job).cause is Cause.WAITS
    assert explained(replace(job, restarts=3)).cause is Cause.REQUEUED


def test_a_kind_of_a_newer_version():
    job = replace(WAITS, reason="BeginTime", admin_comment=REQUEUED._replace(kind="melted").word)
    assert "because a could not be acquired (melted)" in explained(job).answer


@pytest.mark.parametrize(
    ("reason", "answer"),
    [
        ("Priority", "Job 12 waits: other jobs are before it (Slurm says Priority)"),
        ("ReqNodeNotAvail, UnavailableNodes:n1", "Job 12 waits: a node that it needs is not available (Slurm says"),
        ("QOSMaxJobsPerUserLimit", "Job 12 waits: Slurm says QOSMaxJobsPerUserLimit"),
        ("", "Job 12 waits: Slurm says nothing"),
        ("JobHeldUser", "Job 12 waits: its owner holds it (Slurm says JobHeldUser)"),
    ],
)
def test_for_something_else(reason, answer):
    assert explained(replace(WAITS, reason=reason)).answer.startswith(answer)


def test_for_its_start_time():
    found = explained(replace(WAITS, reason="BeginTime", eligible_s=IN_10_MIN))
    assert found.answer == "Job 12 waits: its start time has not come before 12:10 (Slurm says BeginTime)"


# --- running -----------------------------------------------------------------------------------------------------


def test_with_its_qpus():
    """By the record, the exports or the licenses, whatever the caller can read."""
    ready = Exports(12, 0, True, (), {"QRMI_JOB_QPU_RESOURCES": "a,b"})
    assert explained(RUNS, record=record()).answer == "Job 12 runs with a until 12:10 at the latest"
    assert explained(RUNS, told=ready).answer == "Job 12 runs with a and b until 12:10 at the latest"
    assert explained(RUNS).answer == "Job 12 runs with a until 12:10 at the latest"
    other = replace(RUNS, licenses={"qpu_z": 1, "matlab": 1})
    assert explained(other).answer == "Job 12 runs with the license qpu_z until 12:10 at the latest"
    assert explained(replace(RUNS, licenses={}, end_s=None)).answer == "Job 12 runs, without a time limit"


def test_what_else_there_is_to_know_of_a_running_job():
    note = "qrmi-slurm: unknown QPU, ignored: z"
    ready = Exports(12, 0, True, (note,), {"QRMI_JOB_QPU_RESOURCES": "a"})
    found = explained(replace(RUNS, admin_comment=REQUEUED.word), told=ready, faults=("its broker has ended",))
    assert found.details == (
        "its broker has ended",
        "unknown QPU, ignored: z",
        "it was put back into the queue 3 times, since 11:00, because a does not answer",
    )


def test_while_prolog_acquires():
    found = explained(RUNS, record=record(State.ACQUIRING))
    assert found.answer == "Job 12 is starting: Prolog on n1 has been acquiring a for 3s"
    assert found.cause is Cause.STARTS
    found = explained(replace(RUNS, reason="Prolog"))
    assert (found.answer, found.cause) == ("Job 12 is starting: Prolog on n1 has not ended", Cause.STARTS)


def test_without_its_qpu():
    found = explained(RUNS, told=no_qpu(notes=("qrmi-slurm: job 12 has no QPU: an admin released it",)))
    assert found.answer == "Job 12 runs without its QPU: an admin released it"


def test_while_epilog_releases():
    found = explained(replace(RUNS, state="COMPLETING"), record=record())
    assert found.answer == "Job 12 is ending: Epilog on n1 releases a"


# --- ended -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "evidence",
    [{"told": no_qpu()}, {"kept": no_qpu(start_s=int(NOW_S) - 50)}, {"output": (NOTE,)}],
    ids=["told", "kept", "output"],
)
def test_without_its_qpu_it_failed(evidence):
    found = explained(FAILED, **evidence)
    assert found.answer == "Job 12 failed: a could not be acquired: the service answered 503"
    assert found.cause is Cause.NO_QPU


@pytest.mark.parametrize("kept", [no_qpu(restart=1), no_qpu(start_s=int(NOW_S) - 5000)])
def test_what_another_job_with_its_id_was_told_does_not_count(kept):
    assert explained(FAILED, kept=kept).cause is Cause.ENDED


def test_with_its_own_fault():
    assert explained(FAILED).answer == "Job 12 failed: its script ended with exit status 1, at 11:59"
    assert "signal 9 ended it" in explained(replace(FAILED, signal=9)).answer


def test_it_gave_up_in_the_end():
    """The whole story: how often it was put back is said as well."""
    found = explained(replace(FAILED, admin_comment=REQUEUED.word), kept=no_qpu())
    assert found.details == ("it was put back into the queue 3 times, since 11:00, because a does not answer",)


@pytest.mark.parametrize("state", sorted(explanation._ENDED))
def test_each_way_to_end_has_its_words(state):
    assert explained(replace(FAILED, state=state, exit_code=0)).cause is Cause.ENDED


def test_a_release_that_is_left():
    done = replace(FAILED, state="COMPLETED", exit_code=0)
    found = explained(done, record=record(State.RELEASING, reason="the service answered 500"))
    assert found.answer == "Job 12 has completed, at 11:59"
    assert found.details == (
        "its session on a is not proven closed, and recover tries again: the service answered 500",
    )
    found = explained(done, record=record(State.INDETERMINATE, reason="no answer", expires_s=NOW_S + 60))
    assert found.details == ("a session on a may be open, and ends by itself by 12:01: no answer",)


def test_a_job_that_only_this_node_knows():
    unknown = JobDetails("12", 12, explanation.UNKNOWN)
    assert explained(unknown, kept=no_qpu()).answer.startswith("Job 12 had no QPU: a could not")
    assert explained(unknown, record=record()).answer == "Job 12 holds a, by what this node has recorded"


# --- text of users -----------------------------------------------------------------------------------------------


def test_users_text_cannot_move_the_cursor():
    evil = "\x1b[2J\u202ex\nqrmi-slurm: y"
    job = replace(WAITS, shown=f"12{evil}", reason=evil, licenses={evil: 1})
    for one in (job, replace(job, reason="Licenses"), replace(job, state="FAILED"), replace(job, state=evil)):
        told = Exports(12, 0, False, (evil,))
        other = Other(evil, 0, NOW_S + 5, evil)
        found = explanation.explain(
            Evidence(
                one,
                NOW_S,
                licenses={evil: License(evil, 2, 1, 1)},
                others={evil: [other]},
                holders={evil: [Holder(evil, evil, "RUNNING", None)]},
                told=told,
                output=(evil,),
            )
        )
        said = "".join((found.answer, *found.details, *found.qpus, found.job, found.state))
        assert "\n" not in said and "\x1b" not in said and "\u202e" not in said


# --- sessions that end before their job ---------------------------------------------------------------------------


def test_a_running_job_whose_session_has_ended():
    found = explained(RUNS, record=record(name="a", ends_s=NOW_S - 60))
    assert found.answer == "Job 12 runs with a until 12:10 at the latest, but the session on a has expired, at 11:59"
    assert found.cause is Cause.EXPIRED
    assert "user.md" in found.advice[0]


def test_a_user_sees_it_by_what_prolog_told_the_tasks():
    told = Exports(12, 0, True, (), {"QRMI_JOB_QPU_RESOURCES": "a,b"}, ends_s={"a": NOW_S - 60, "b": NOW_S + 9000})
    found = explained(RUNS, told=told)
    assert found.answer.endswith("but the session on a has expired, at 11:59")


def test_with_a_broker_the_next_request_opens_another():
    broker = Broker(1, 2, 3, 0, {}, "", NOW_S)
    found = explained(RUNS, record=record(ends_s=NOW_S - 60)._replace(broker=broker))
    assert found.advice == ("its next request opens a new one, through its credential broker",)


@pytest.mark.parametrize(
    ("ends_s", "job_end_s", "is_told"),
    [(240, 600, True), (240, None, True), (310, 600, False), (240, 200, False), (-1, 600, False)],
)
def test_a_session_that_ends_soon_is_told_if_the_job_may_run_longer(ends_s, job_end_s, is_told):
    job = replace(RUNS, end_s=None if job_end_s is None else int(NOW_S) + job_end_s)
    found = explained(job, record=record(ends_s=NOW_S + ends_s))
    said = ("its session on a ends at 12:04:00, in 4m00s, and the job may run longer",) if is_told else ()
    assert found.details == said


def test_what_slurm_lets_the_job_run_over_its_limit_counts():
    job = replace(RUNS, end_s=int(NOW_S) + 200)
    for over_s, is_told in ((0, False), (60, True)):
        found = explained(job, record=record(ends_s=NOW_S + 240)._replace(over_s=over_s))
        assert bool(found.details) is is_told
