"""Answers of services and proxies are told apart; responses stands in for the network."""

import re

import pytest
import responses
from doubles import SECRET

from qrmi_slurm.checks.online import service_check
from qrmi_slurm.checks.online.targets import Target
from qrmi_slurm.checks.result import ok
from qrmi_slurm.config.config_file import Resource

IAM, API = "https://iam.example.com", "https://quantum.example.com/api/v1"
PROXY = "http://proxy.example.com:3128"
TOKEN = f"{SECRET}-bearer"
QCS = {
    "QRMI_IBM_QCS_ENDPOINT": API,
    "QRMI_IBM_QCS_IAM_ENDPOINT": IAM,
    "QRMI_IBM_QCS_IAM_APIKEY": f"{SECRET}-apikey",
    "QRMI_IBM_QCS_SERVICE_CRN": "crn:v1:example",
}


@pytest.fixture(autouse=True)
def net():
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        yield mock


def seen(environment=None, *, type_name="ibm-quantum-compute-service", name="ibm_quebec", proxy=None, is_masked=True):
    """Return the steps of a resource whose hops are all ok."""
    environment = environment or QCS
    resource = Resource(name=name, type=type_name, environment=environment)
    urls = {variable: value for variable, value in environment.items() if value.startswith("http")}
    targets = {variable: Target(url, proxy, None) for variable, url in urls.items()}
    hops = {target.hop: [ok("tcp", "there")] for target in targets.values()}
    steps = service_check.run(resource, targets, hops, 5.0)
    assert not is_masked or SECRET not in repr(steps)
    return [step for step in steps if step.name != "tcp"]


def last(*arguments, **keywords):
    step = seen(*arguments, **keywords)[-1]
    return step.name, step.level.value, step.message


def endpoints_answer(net, *urls, status=404):
    for url in urls:
        net.get(url, status=status, json={})


def iam_gives_a_token(net):
    net.post(f"{IAM}/identity/token", json={"access_token": TOKEN, "expires_in": 3600})


def test_everything_is_ok(net):
    """The endpoints answer, IAM gives a token, and the service accepts it together with the instance's CRN."""
    endpoints_answer(net, API, IAM)
    iam_gives_a_token(net)
    asked = net.get(f"{API}/backends/ibm_quebec/status", json={"status": "active"})
    assert [(step.name, step.level.value) for step in seen()] == [
        ("endpoint", "ok"),
        ("endpoint", "ok"),
        ("credential", "ok"),
        ("account", "ok"),
    ]
    headers = asked.calls[0].request.headers
    assert (headers["Authorization"], headers["Service-CRN"]) == (f"Bearer {TOKEN}", "crn:v1:example")


def test_a_key_that_iam_rejects(net):
    """The step shows IAM's own words, and the service is not called without a token."""
    endpoints_answer(net, API, IAM)
    answer = {"errorCode": "BXNIM0415E", "errorMessage": f"Provided API key {SECRET}-apikey could not be found."}
    net.post(f"{IAM}/identity/token", status=400, json=answer)
    # The config's secrets are masked by the caller, online.check, which knows all of them.
    (step,) = [step for step in seen(is_masked=False) if step.name in ("credential", "account")]
    assert step.level == "error"
    assert step.message.startswith("IAM rejects the key: 400 Provided API key ")
    assert "BXNIM0415E" in step.message
    assert "QRMI_IBM_QCS_IAM_APIKEY" in step.hint


def test_a_403_from_a_proxy_and_one_from_iam(net):
    """A proxy's page over plain http is attributed to the proxy; JSON over TLS, to IAM."""
    plain = QCS | {"QRMI_IBM_QCS_IAM_ENDPOINT": "http://iam.example.com"}
    endpoints_answer(net, API, "http://iam.example.com")
    page = "<html>The policy forbids this</html>"
    net.post("http://iam.example.com/identity/token", status=403, body=page, headers={"X-Squid-Error": "ERR 0"})
    assert last(plain, proxy=PROXY) == ("credential", "error", "403 Forbidden from the proxy, not from IAM")
    endpoints_answer(net, IAM)
    net.post(f"{IAM}/identity/token", status=403, json={"errorCode": "BXNIM0513E", "errorMessage": "Locked"})
    assert last(proxy=PROXY) == ("credential", "error", "IAM rejects the key: 403 Locked (BXNIM0513E)")


def test_something_else_at_iams_address(net):
    """An HTML page does not mean that the key was rejected, only that no token came."""
    endpoints_answer(net, API, IAM)
    net.post(f"{IAM}/identity/token", status=200, body="<html>Welcome</html>")
    name, level, message = last()
    assert (name, level) == ("credential", "error")
    assert message == "no token from iam.example.com: 200 OK"


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "quantum.example.com rejects the token: 401 no"),
        (403, "quantum.example.com rejects the token: 403 no"),
        (404, "quantum.example.com has no ibm_quebec: 404 no"),
        (502, "quantum.example.com answers 502 no"),
    ],
)
def test_a_service_that_rejects_the_token(net, status, message):
    """A token for another account, an unknown backend and a service that is out of order are told apart."""
    endpoints_answer(net, API, IAM)
    iam_gives_a_token(net)
    answer = {"errors": [{"code": 1, "message": "no"}]}
    net.get(f"{API}/backends/ibm_quebec/status", status=status, json=answer)
    assert last() == ("account", "error", message)


def test_a_token_in_an_answer_is_masked(net):
    """A bearer token that the service repeats does not reach the output."""
    endpoints_answer(net, API, IAM)
    iam_gives_a_token(net)
    answer = {"errors": [{"message": f"the token {TOKEN} is not known"}]}
    net.get(f"{API}/backends/ibm_quebec/status", status=401, json=answer)
    assert last()[2] == "quantum.example.com rejects the token: 401 the token *** is not known"


@pytest.mark.parametrize(
    ("status", "level", "words"),
    [(200, "ok", "answers"), (401, "ok", "answers"), (302, "warning", "302"), (503, "error", "503")],
)
def test_an_endpoints_answer(net, status, level, words):
    """Any answer below 500 shows that the endpoint works, except that a redirect is a warning."""
    environment = {"QRMI_IQM_ISA_ENDPOINT": "https://iqm.example.com", "QRMI_IQM_ISA_TOKEN": SECRET}
    net.get("https://iqm.example.com", status=status, headers={"Location": "https://elsewhere.example.com"})
    net.get("https://iqm.example.com/api/v1/quantum-computers/garnet", json={})
    step = seen(environment, type_name="iqm-server", name="garnet")[0]
    assert (step.name, step.level.value) == ("endpoint", level)
    assert words in step.message
    assert not [call for call in net.calls if "elsewhere" in call.request.url]


def test_iqms_name_is_spelled_as_qrmi_spells_it(net):
    """In an IQM name the last underscore stands for the colon before a timeslot's variant."""
    environment = {"QRMI_IQM_ISA_ENDPOINT": "https://iqm.example.com", "QRMI_IQM_ISA_TOKEN": SECRET}
    net.get("https://iqm.example.com", json={})
    net.get(re.compile(r"https://iqm\.example\.com/api/v1/quantum-computers/garnet:mock"), json={})
    assert last(environment, type_name="iqm-server", name="garnet_mock")[:2] == ("credential", "ok")


def test_felis_key_is_sent_as_basic_authentication(net):
    """A 401 means that the service rejects it."""
    environment = {"QRMI_AB_FELIS_BASE_ENDPOINT": "https://felis.example.com", "QRMI_AB_FELIS_API_KEY": "dXNlcjpw"}
    net.get("https://felis.example.com", json={})
    asked = net.get("https://felis.example.com/v1/targets/", status=401, json={})
    step = last(environment, type_name="alice-bob-felis", name="ab_cats")
    assert step == ("credential", "error", "felis.example.com rejects the key: 401 Unauthorized")
    assert asked.calls[0].request.headers["Authorization"] == "Basic dXNlcjpw"


def test_no_credential_is_sent_after_a_failed_hop(net):
    """If one of two addresses cannot be reached, no credential is sent to the other."""
    resource = Resource(name="ibm_quebec", type="ibm-quantum-compute-service", environment=QCS)
    targets = {"QRMI_IBM_QCS_ENDPOINT": Target(API, None, None), "QRMI_IBM_QCS_IAM_ENDPOINT": Target(IAM, None, None)}
    cut = service_check.error("tcp", "cut", "fix it")
    hops = {targets["QRMI_IBM_QCS_ENDPOINT"].hop: [cut], targets["QRMI_IBM_QCS_IAM_ENDPOINT"].hop: [ok("tcp", "x")]}
    endpoints_answer(net, IAM)
    steps = service_check.run(resource, targets, hops, 5.0)
    assert [step.name for step in steps] == ["tcp", "tcp", "endpoint"]
    assert len(net.calls) == 1
