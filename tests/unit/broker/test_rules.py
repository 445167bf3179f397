"""What a credential broker lets through: a job's own, however it is spelled, and nothing else."""

from urllib.parse import parse_qsl, quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qrmi_slurm.broker import rules
from qrmi_slurm.broker.refusal import Refusal
from qrmi_slurm.broker.spec import Bucket, Qpu
from qrmi_slurm.secret import Secret

SESSION = "1b2c3d4e-own-session"
JOB = "own-job"
BUCKET = Bucket("https://s3.example", "https://s3.inside", "bkt", "eu", Secret("key-id"), Secret("secret"), "p/")
COMPUTE = Qpu("ibm_own", Secret("k"), SESSION, "https://api.example/api/v1", "https://iam", Secret("real"), "crn")
SYSTEM = Qpu("ibm_own", Secret("k"), None, "https://qs.example", "https://iam", Secret("real"), "crn", BUCKET)
BASE = "/qrmi-slurm-broker/0"


def permit(qpu, method, path, jobs=(JOB,)):
    return rules.permit(qpu, set(jobs), method, rules.destination(BASE + path))


def refused(qpu, method, path):
    with pytest.raises(Refusal) as caught:
        permit(qpu, method, path)
    return caught.value


# Every call that QRMI was seen to make.
OF_QRMI = [
    (COMPUTE, "GET", "/api/backends", "/backends"),
    (COMPUTE, "GET", "/api/backends/ibm_own/status", "/backends/ibm_own/status"),
    (COMPUTE, "GET", "/api/backends/ibm_own/configuration", "/backends/ibm_own/configuration"),
    (COMPUTE, "GET", "/api/backends/ibm_own/properties", "/backends/ibm_own/properties"),
    (COMPUTE, "GET", f"/api/sessions/{SESSION}", f"/sessions/{SESSION}"),
    (COMPUTE, "PATCH", f"/api/sessions/{SESSION}", f"/sessions/{SESSION}"),
    (COMPUTE, "DELETE", f"/api/sessions/{SESSION}/close", f"/sessions/{SESSION}/close"),
    (COMPUTE, "POST", "/api/jobs", "/jobs"),
    (COMPUTE, "GET", "/api/jobs/own-job", "/jobs/own-job"),
    (COMPUTE, "GET", "/api/jobs/own-job/results", "/jobs/own-job/results"),
    (COMPUTE, "GET", "/api/jobs/own-job/logs", "/jobs/own-job/logs"),
    (COMPUTE, "POST", "/api/jobs/own-job/cancel", "/jobs/own-job/cancel"),
    (COMPUTE, "DELETE", "/api/jobs/own-job", "/jobs/own-job"),
    (
        COMPUTE,
        "GET",
        f"/api/jobs?pending=true&session_id={SESSION}",
        f"/jobs?pending=true&session_id={SESSION}",
    ),
    (
        COMPUTE,  # QRMI's status asks for everybody's pending jobs: it is answered with the session's
        "GET",
        "/api/jobs?limit=200&offset=0&pending=true&backend=ibm_own&sort=DESC&exclude_params=true",
        f"/jobs?limit=200&offset=0&pending=true&backend=ibm_own&sort=DESC&exclude_params=true&session_id={SESSION}",
    ),
    (SYSTEM, "GET", "/api/v1/backends/ibm_own", "/v1/backends/ibm_own"),
    (SYSTEM, "GET", "/api/v1/backends/ibm_own/lanes", "/v1/backends/ibm_own/lanes"),
    (SYSTEM, "GET", "/api/v1/backends/ibm_own/configuration", "/v1/backends/ibm_own/configuration"),
    (SYSTEM, "GET", "/api/v1/jobs", "/v1/jobs"),
    (SYSTEM, "POST", "/api/v1/jobs", "/v1/jobs"),
    (SYSTEM, "GET", "/api/v1/jobs/own-job", "/v1/jobs/own-job"),
    (SYSTEM, "POST", "/api/v1/jobs/own-job/cancel", "/v1/jobs/own-job/cancel"),
    (SYSTEM, "DELETE", "/api/v1/jobs/own-job", "/v1/jobs/own-job"),
]


@pytest.mark.parametrize(("qpu", "method", "path", "target"), OF_QRMI, ids=lambda value: str(value)[:60])
def test_what_qrmi_asks_for_a_jobs_own_passes(qpu, method, path, target):
    assert permit(qpu, method, path).target == target


def test_lists_that_hold_more_than_a_jobs_own_are_cut_down():
    assert permit(COMPUTE, "GET", "/api/backends").filters == "devices"
    assert permit(SYSTEM, "GET", "/api/v1/jobs").filters == "jobs"


@pytest.mark.parametrize(
    ("qpu", "method", "path"),
    [
        (COMPUTE, "POST", "/api/sessions"),
        (COMPUTE, "GET", "/api/sessions"),
        (COMPUTE, "GET", "/api/sessions/another"),
        (COMPUTE, "PATCH", "/api/sessions/another"),
        (COMPUTE, "DELETE", "/api/sessions/another/close"),
        (COMPUTE, "DELETE", f"/api/sessions/{SESSION}"),
        (COMPUTE, "GET", f"/api/sessions/{SESSION}/"),
        (COMPUTE, "GET", f"/api//sessions/{SESSION}"),
        (COMPUTE, "GET", f"/api/./sessions/{SESSION}"),
        (COMPUTE, "GET", f"/api/sessions/{SESSION}/../another"),
        (COMPUTE, "GET", f"/api/sessions/{SESSION}/..;/another"),
        (COMPUTE, "GET", f"/api/sessions/{SESSION}%2f..%2fanother"),
        (COMPUTE, "GET", f"/api/sessions/{SESSION};x=y"),
        (COMPUTE, "GET", f"/api/sessions/{SESSION}%00"),
        (COMPUTE, "GET", "/api/sessions/%2e%2e/jobs"),
        (COMPUTE, "GET", "/api/jobs/another"),
        (COMPUTE, "GET", "/api/jobs/own-job/../another"),
        (COMPUTE, "GET", "/api/jobs/own-job%2f..%2fanother/results"),
        (COMPUTE, "DELETE", "/api/jobs/another"),
        (COMPUTE, "PUT", "/api/jobs/own-job/tags"),
        (COMPUTE, "GET", "/api/jobs?session_id=another"),
        (COMPUTE, "GET", f"/api/jobs?session_id={SESSION}&user_id=1"),
        (COMPUTE, "GET", f"/api/jobs?session_id={SESSION}%26session_id=another"),
        (COMPUTE, "GET", "/api/jobs?backend=ibm_other"),
        (COMPUTE, "GET", f"/api/sessions/{SESSION}?x=1"),
        (COMPUTE, "GET", "/api/backends/ibm_other/status"),
        (COMPUTE, "GET", "/api/backends/ibm_own%2f..%2fibm_other/status"),
        (COMPUTE, "GET", "/api/usage"),
        (COMPUTE, "GET", "/api/instances"),
        (COMPUTE, "HEAD", "/api/jobs/own-job"),
        (COMPUTE, "OPTIONS", "/api/jobs"),
        (COMPUTE, "get", "/api/jobs/own-job"),
        (COMPUTE, "GET", "/iam/identity/token"),
        (COMPUTE, "POST", "/iam/identity/token?apikey=x"),
        (COMPUTE, "POST", "/iam/identity/../v1/apikeys"),
        (COMPUTE, "GET", "/iam/v1/apikeys"),
        (COMPUTE, "PUT", "/s3/bkt/input_x.json"),
        (SYSTEM, "GET", "/api/v1/backends"),
        (SYSTEM, "GET", "/api/v1/backends/ibm_other"),
        (SYSTEM, "GET", "/api/v1/jobs/another"),
        (SYSTEM, "DELETE", "/s3/bkt/input_x.json"),
        (SYSTEM, "PUT", "/s3/bkt/results_x.json"),
        (SYSTEM, "PUT", "/s3/other/input_x.json"),
        (SYSTEM, "PUT", "/s3/bkt/../other/input_x.json"),
        (SYSTEM, "PUT", "/s3/bkt/input_../x.json"),
        (SYSTEM, "PUT", "/s3/bkt/input_x%2f..%2fy.json"),
        (SYSTEM, "PUT", "/s3/bkt/input_x.json?acl"),
        (SYSTEM, "GET", "/s3/bkt?list-type=2"),
        (SYSTEM, "GET", "/s3/bkt/"),
        (SYSTEM, "GET", "/s3/bkt/anything"),
    ],
)
def test_everything_else_is_refused(qpu, method, path):
    assert refused(qpu, method, path).status == 403


@pytest.mark.parametrize(
    "path", [f"/api/jobs?session_id={SESSION}&session_id=another", "/api/jobs?session_id", "/api/jobs?&"]
)
def test_a_query_that_two_readers_could_read_differently_is_refused(path):
    assert refused(COMPUTE, "GET", path).status == 400


@pytest.mark.parametrize(
    "target",
    [
        "http://api.example/api/v1/jobs",
        "*",
        "api.example:443",
        "",
        "/qrmi-slurm-broker/0/api/jobs#x",
        "/qrmi-slurm-broker/0/api/jobs x",
        "/qrmi-slurm-broker/0/api/jobs\x00",
        "/qrmi-slurm-broker/0/api/jobs\xff",
    ],
)
def test_a_target_that_is_not_a_path_is_refused(target):
    with pytest.raises(Refusal) as caught:
        rules.destination(target)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "target",
    ["/", "/api/jobs", "//qrmi-slurm-broker/0/api/jobs", "/qrmi-slurm-broker/0/api", "/qrmi-slurm-broker/-1/api/jobs",
     "/qrmi-slurm-broker/\u0660/api/jobs".encode().decode("latin-1"), "/qrmi-slurm-broker/0/admin/x",
     "/qrmi-slurm-broker/../0/api/jobs", "/qrmi-slurm-broker/0000/api/jobs"],
)  # fmt: skip
def test_a_path_that_is_not_below_an_address_of_the_environment_is_refused(target):
    with pytest.raises(Refusal):
        rules.destination(target)


PIECES = st.sampled_from(
    ["api", "iam", "s3", "jobs", "sessions", "backends", SESSION, "another", JOB, "ibm_own", "ibm_other", "close", "..",
     ".", "", "%2e%2e", "%2f", ";", "status", "results", "identity", "token", "bkt", "input_x.json", "v1", "?", "&",
     "session_id=", f"session_id={SESSION}", "session_id=another", "//", "\\", "%00", "%5c", "~", "results_x.json"]
)  # fmt: skip


@given(
    st.sampled_from([COMPUTE, SYSTEM]),
    st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "TRACE"]),
    st.lists(PIECES | st.text(max_size=4), max_size=8),
    st.sampled_from(["/", ""]),
)
@example(COMPUTE, "GET", ["api", "sessions", SESSION, "..", "another"], "/")
def test_whatever_passes_names_only_a_jobs_own(qpu, method, pieces, glue):
    """A target that passes was built here, from fixed words and the job's own ids."""
    try:
        at = rules.destination(f"{BASE}/{glue.join(pieces)}")
        found = rules.permit(qpu, {JOB}, method, at)
    except Refusal as refusal:
        assert refusal.status in (400, 403)
        return
    path, _, query = found.target.partition("?")
    words = {"", "v1", "jobs", "sessions", "backends", "close", "status", "results", "configuration", "properties",
             "defaults", "lanes", "cancel", "interim_results", "logs", "metrics", "transpiled_circuits"}  # fmt: skip
    assert set(path.split("/")) <= words | {JOB, SESSION, "ibm_own"}
    pairs = parse_qsl(query, keep_blank_values=True)
    assert [value for name, value in pairs if name == "session_id"] in ([], [SESSION])
    if path == "/jobs" and method == "GET":
        assert ("session_id", SESSION) in pairs
    if found.service is rules.Service.S3:
        assert (method, found.name.partition("_")[0]) in {
            ("PUT", "input"),
            ("GET", "input"),
            ("GET", "results"),
            ("GET", "logs"),
        }
        assert "/" not in found.name


def test_a_backends_name_is_compared_decoded():
    """A name that does not fit into a path is percent-encoded, by QRMI and by the broker."""
    odd = Qpu("a b/c", Secret("k"), SESSION, "https://x", "https://i", Secret("r"), "crn")
    found = rules.permit(odd, set(), "GET", rules.destination(f"{BASE}/api/backends/a%20b%2Fc/status"))
    assert found.target == f"/backends/{quote('a b/c', safe='')}/status"
