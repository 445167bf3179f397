"""Sessions, their time to live, and jobs."""

from contextlib import contextmanager

import pytest

from qrmi_emulator.service import CANCELLED, COMPLETED, FAILED, QUEUED, RUNNING, TOO_LONG, ServiceError


def open_session(service, ttl_s=60, backend="ibm_demo"):
    return service.create_session(backend, "dedicated", ttl_s).id


def put_job(service, session_id=None, backend="ibm_demo"):
    return service.create_job(backend, "sampler", {"pubs": []}, session_id, None).id


@contextmanager
def refused(status):
    with pytest.raises(ServiceError) as caught:
        yield
    assert caught.value.status == status


def test_a_session_expires_after_its_time_to_live(service, clock):
    """A session that is not closed ends exactly max_ttl after it was created."""
    session_id = open_session(service, ttl_s=60)
    clock.move(59)
    assert service.session(session_id).state == "open"
    assert service.active_ttl_s(service.session(session_id)) == 1
    clock.move(100)
    session = service.session(session_id)
    assert (session.state, session.by) == ("expired", "ttl")
    assert session.ended_s == session.created_s + 60


def test_expiry_cancels_waiting_jobs(service, clock):
    """A waiting job of an expired session never runs."""
    job_id = put_job(service, open_session(service, ttl_s=5))
    clock.move(5)
    assert service.take_job(0) is None
    assert service.job(job_id).status == CANCELLED


def test_an_unused_session_closes_at_once(service):
    """Closing a session without jobs ends it."""
    session_id = open_session(service)
    service.accept_jobs(session_id, False)
    assert service.session(session_id).state == "closed"


def test_a_closed_session_finishes_its_jobs_first(service):
    """A session that accepts no more jobs ends after its last one."""
    session_id = open_session(service)
    job_id = put_job(service, session_id)
    service.accept_jobs(session_id, False)
    assert service.session(session_id).state == "open"
    with refused(400):
        put_job(service, session_id)
    assert service.take_job(0).id == job_id
    assert service.session(session_id).state == "active"
    service.complete_job(job_id, "{}")
    assert service.session(session_id).state == "closed"


def test_cancelling_a_session_lets_its_running_job_finish(service):
    """The session ends at once, and its waiting job is cancelled."""
    session_id = open_session(service)
    first, second = put_job(service, session_id), put_job(service, session_id)
    service.take_job(0)
    service.cancel_session(session_id)
    assert service.session(session_id).state == "cancelled"
    assert service.job(first).status == RUNNING
    assert service.job(second).status == CANCELLED


def test_closing_twice_changes_nothing(service, clock):
    """An ended session keeps its state."""
    session_id = open_session(service)
    service.cancel_session(session_id)
    ended = service.session(session_id)
    clock.move(1)
    service.cancel_session(session_id)
    service.accept_jobs(session_id, False)
    assert service.session(session_id) == ended
    with refused(409):
        service.accept_jobs(session_id, True)


@pytest.mark.parametrize("session_id", ["nothing", ""])
def test_an_unknown_session_is_refused(service, session_id):
    """No call accepts an unknown session."""
    for call in (service.session, service.cancel_session, lambda s: service.accept_jobs(s, False)):
        with refused(404):
            call(session_id)
    with refused(404):
        put_job(service, session_id)


@pytest.mark.parametrize(
    ("backend", "mode", "ttl_s", "status"),
    [
        ("nothing", "dedicated", 60, 404),
        (None, "dedicated", 60, 400),
        ("ibm_demo", "shared", 60, 400),
        ("ibm_demo", "batch", 0, 400),
        ("ibm_demo", "batch", "60", 400),
        ("ibm_demo", "batch", True, 400),
        ("ibm_demo", "batch", 2**31, 400),
    ],
)
def test_an_invalid_session_is_refused(service, backend, mode, ttl_s, status):
    """Backend, mode and time to live are checked."""
    with refused(status):
        service.create_session(backend, mode, ttl_s)
    assert service.sessions() == ()


def test_a_job_needs_a_session_on_its_backend(service):
    """A session on another backend refuses the job."""
    with refused(400):
        put_job(service, open_session(service, backend="ibm_other"))


def test_jobs_run_in_order(service):
    """The oldest job runs first."""
    first, second = put_job(service), put_job(service)
    assert [service.take_job(0).id, service.take_job(0).id] == [first, second]
    assert service.take_job(0) is None


def test_jobs_wait_until_their_backend_is_online(service):
    """A paused backend accepts jobs but does not run them."""
    service.set_backend("ibm_demo", "paused", None)
    put_job(service)
    other = put_job(service, backend="ibm_other")
    assert service.take_job(0).id == other
    assert service.take_job(0) is None
    service.set_backend("ibm_demo", "online", None)
    assert service.take_job(0) is not None


def test_a_cancelled_job_stays_cancelled(service):
    """A result that arrives after the cancellation is dropped."""
    job_id = put_job(service)
    service.take_job(0)
    service.cancel_job(job_id)
    assert not service.is_running(job_id)
    service.complete_job(job_id, "{}")
    service.fail_job(job_id, "late")
    assert (service.job(job_id).status, service.job(job_id).result) == (CANCELLED, None)
    with refused(409):
        service.cancel_job(job_id)


def test_a_failed_job_says_why(service):
    """Its state and its log have the reason."""
    job_id = put_job(service)
    service.take_job(0)
    service.fail_job(job_id, "too wide")
    job = service.job(job_id)
    assert (job.status, job.reason, job.logs) == (FAILED, "too wide", ("too wide",))
    other = put_job(service)
    service.take_job(0)
    service.fail_job(other, "too long", TOO_LONG)
    assert service.job(other).status == TOO_LONG


def test_jobs_are_filtered(service):
    """They are filtered by state and session, and listed newest first."""
    session_id = open_session(service)
    first, second, third = put_job(service), put_job(service, session_id), put_job(service, session_id)
    service.take_job(0)
    service.complete_job(first, "{}")
    assert [job.id for job in service.jobs()] == [third, second, first]
    assert [job.id for job in service.jobs(pending=True, session_id=session_id)] == [third, second]
    assert service.jobs(pending=True, session_id="another") == ()
    assert [job.status for job in service.jobs(pending=False)] == [COMPLETED]
    service.delete_job(second)
    with refused(404):
        service.job(second)
    assert service.job(third).status == QUEUED


def test_the_queue_length_counts_simulated_and_real_jobs(service):
    """Waiting and running jobs are added to the queue length that a test has set."""
    put_job(service)
    service.set_backend("ibm_demo", None, 5)
    assert service.queue_length("ibm_demo") == 6
    with refused(400):
        service.set_backend("ibm_demo", "broken", None)
