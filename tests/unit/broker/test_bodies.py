"""Which bodies a credential broker lets through, and what is left of a service's lists."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrmi_slurm.broker import bodies
from qrmi_slurm.broker.refusal import Refusal
from qrmi_slurm.broker.spec import Bucket, Qpu
from qrmi_slurm.secret import Secret

SESSION = "1b2c3d4e-own-session"
JOB = "own-job"
BUCKET = Bucket("https://s3.example", "https://s3.inside", "bkt", "eu", Secret("key-id"), Secret("secret"), "p/")
COMPUTE = Qpu("ibm_own", Secret("k"), SESSION, "https://api.example/api/v1", "https://iam", Secret("real"), "crn")
SYSTEM = Qpu("ibm_own", Secret("k"), None, "https://qs.example", "https://iam", Secret("real"), "crn", BUCKET)

GOOD = {"program_id": "sampler", "backend": "ibm_own", "session_id": SESSION, "params": {"pubs": []}, "cost": 60}


def test_a_job_in_its_own_session_passes():
    bodies.check_job(COMPUTE, json.dumps(GOOD).encode())


@pytest.mark.parametrize(
    "body",
    [
        {**GOOD, "session_id": "another"},
        {**GOOD, "session_id": None},
        {key: value for key, value in GOOD.items() if key != "session_id"},
        {**GOOD, "backend": "ibm_other"},
        {**GOOD, "backend": ["ibm_own"]},
        {key: value for key, value in GOOD.items() if key != "backend"},
        {**GOOD, "Session_ID": "another"},
        {**GOOD, "start_session": True},
        {**GOOD, "remote_storage": {}},
        {**GOOD, "runtime": "image"},
    ],
)
def test_a_job_elsewhere_is_refused(body):
    with pytest.raises(Refusal) as caught:
        bodies.check_job(COMPUTE, json.dumps(body).encode())
    assert caught.value.status == 403


TEXT = json.dumps(GOOD)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        TEXT[:-1].encode() + b', "session_id": "another"}',
        TEXT[:-1].encode() + b', "session\\u005fid": "another"}',
        TEXT[:-1].encode() + b', "cost": NaN}',
        TEXT.encode("utf-16"),
        b"\xef\xbb\xbf" + TEXT.encode(),
        TEXT.encode() + b"{}",
        TEXT.encode() + b"\x00",
        TEXT[:-1].encode() + b', "params": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=range(11),
)
def test_a_body_that_two_readers_could_read_differently_is_refused(body):
    with pytest.raises(Refusal) as caught:
        bodies.check_job(COMPUTE, body)
    assert caught.value.status == 400


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_no_body_raises_anything_but_a_refusal(body):
    """Whatever it contains."""
    for check in (lambda: bodies.check_job(COMPUTE, body), lambda: bodies.check_close(body)):
        with pytest.raises(Refusal):
            check()
    with pytest.raises(Refusal):
        bodies.system_job(SYSTEM, body, lambda *_: "")
    assert bodies.job_of(body) == "" or bodies.job_of(body).isascii()


def test_a_session_can_only_be_closed():
    bodies.check_close(b'{"accepting_jobs": false}')
    for body in (b'{"accepting_jobs": true}', b'{"accepting_jobs": 0}', b'{"accepting_jobs": false, "max_ttl": 1}'):
        with pytest.raises(Refusal):
            bodies.check_close(body)


def system_body(**changes):
    storage = {
        kind: {
            "presigned_url": f"http://127.0.0.1:1/x/bkt/{kind}_j-1.json?X-Amz-Signature=fake",
            "type": "s3_compatible",
        }
        for kind in ("input", "results", "logs")
    }
    body = {"id": "j-1", "backend": "ibm_own", "program_id": "sampler", "log_level": "debug", "timeout_secs": 60}
    return json.dumps({**body, "storage": storage, **changes}).encode()


def test_a_systems_job_gets_urls_signed_with_the_sites_key():
    job, body = bodies.system_job(SYSTEM, system_body(), lambda _, method, name, life_s: f"{method} {name} {life_s}")
    assert job == "j-1"
    assert json.loads(body)["storage"] == {
        "input": {"presigned_url": "GET input_j-1.json 60", "type": "s3_compatible"},
        "results": {"presigned_url": "PUT results_j-1.json 60", "type": "s3_compatible"},
        "logs": {"presigned_url": "PUT logs_j-1.json 60", "type": "s3_compatible"},
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"backend": "ibm_other"},
        {"id": "../x"},
        {"id": 1},
        {"timeout_secs": 0},
        {"timeout_secs": True},
        {"timeout_secs": "60"},
        {"storage": {}},
        {"storage": None},
        {"storage": {kind: {"presigned_url": "http://evil/x", "type": "s3_compatible"} for kind in bodies.STORAGE}},
        {"other": 1},
        {"id": "j-2"},
    ],
)
def test_a_systems_job_elsewhere_is_refused(changes):
    with pytest.raises(Refusal):
        bodies.system_job(SYSTEM, system_body(**changes), lambda *_: "")


def test_a_list_is_cut_down_to_the_jobs_own():
    """An IBM Quantum System lists everybody's jobs, with URLs into S3."""
    listed = json.dumps({"jobs": [{"id": JOB}, {"id": "other"}], "more": 1}).encode()
    assert json.loads(bodies.only_own(listed, "jobs", SYSTEM, {JOB})) == {"jobs": [{"id": JOB}]}
    devices = json.dumps({"devices": [{"name": "ibm_own"}, {"name": "ibm_other"}]}).encode()
    assert json.loads(bodies.only_own(devices, "devices", COMPUTE, set())) == {"devices": [{"name": "ibm_own"}]}


@pytest.mark.parametrize("broken", [b"", b"[]", b'{"jobs": 1}', b'{"jobs": [{}]}', b"<html>"])
def test_a_list_that_cannot_be_read_is_not_passed_on(broken):
    with pytest.raises(Refusal) as caught:
        bodies.only_own(broken, "jobs", SYSTEM, {JOB})
    assert caught.value.status == 502
