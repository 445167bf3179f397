"""What the services answer, told apart: with responses in the place of the network."""

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
    """Return the lines of a resource whose hops are all well."""
    environment = environment or QCS
    resource = Resource(name=name, type=type_name, environment=environment)
    urls = {variable: value for variable, value in environment.items() if value.startswith("http")}
    targets = {variable: Target(url, proxy, None) for variable, url in urls.items()}
    hops = {target.hop: [ok("tcp", "there")] for target in targets.values()}
    lines = service_check.lines(resource, targets, hops, 5.0)
    assert not is_masked or SECRET not in repr(lines)
    return [line for line in lines if line.name != "tcp"]


def last(*arguments, **keywords):
    line = seen(*arguments, **keywords)[-1]
    return line.name, line.level.value, line.message


def endpoints_answer(net, *urls, status=404):
    for url in urls:
        net.get(url, status=status, json={})


def iam_gives_a_token(net):
    net.post(f"{IAM}/identity/token", json={"access_token": TOKEN, "expires_in": 3600})


def test_all_is_well(net):
    """The endpoints answer, IAM gives a token, and the service accepts it with the instance's CRN."""
    endpoints_answer(net, API, IAM)
    iam_gives_a_token(net)
    asked = net.get(f"{API}/backends/ibm_quebec/status", json={"status": "active"})
    lines = seen()
    assert [(line.name, line.level.value) for line in lines] == [
        ("endpoint", "ok"),
        ("endpoint", "ok"),
        ("credential", "ok"),
        ("account", "ok"),
    ]
    headers = asked.calls[0].request.headers
    assert (headers["Authorization"], headers["Service-CRN"]) == (f"Bearer {TOKEN}", "crn:v1:example")


def test_a_key_that_iam_rejects(net):
    """IAM's own words stand in the line, and the service is not asked without a token."""
    endpoints_answer(net, API, IAM)
    answer = {"errorCode": "BXNIM0415E", "errorMessage": f"Provided API key {SECRET}-apikey could not be found."}
    net.post(f"{IAM}/identity/token", status=400, json=answer)
    # The config's secrets are masked one floor above: online.check knows them all.
    (line,) = [line for line in seen(is_masked=False) if line.name in ("credential", "account")]
    assert line.level == "error"
    assert line.message.startswith("IAM rejects the key: 400 Provided API key ")
    assert "BXNIM0415E" in line.message
    assert "QRMI_IBM_QCS_IAM_APIKEY" in line.hint


def test_a_403_of_the_proxys_and_one_of_iams_differ(net):
    """A page of the proxy's over plain http is called the proxy's; JSON over TLS is IAM's."""
    plain = QCS | {"QRMI_IBM_QCS_IAM_ENDPOINT": "http://iam.example.com"}
    endpoints_answer(net, API, "http://iam.example.com")
    page = "<html>The policy forbids this</html>"
    net.post("http://iam.example.com/identity/token", status=403, body=page, headers={"X-Squid-Error": "ERR 0"})
    assert last(plain, proxy=PROXY) == ("credential", "error", "403 Forbidden from the proxy, not from IAM")
    endpoints_answer(net, IAM)
    net.post(f"{IAM}/identity/token", status=403, json={"errorCode": "BXNIM0513E", "errorMessage": "Locked"})
    assert last(proxy=PROXY) == ("credential", "error", "IAM rejects the key: 403 Locked (BXNIM0513E)")


def test_something_else_at_iams_address(net):
    """A page of HTML is no rejected key: it is said that no token came."""
    endpoints_answer(net, API, IAM)
    net.post(f"{IAM}/identity/token", status=200, body="<html>Welcome</html>")
    name, level, message = last()
    assert (name, level) == ("credential", "error")
    assert message == "what answers for IAM gives no token: 200 OK"


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "quantum.example.com rejects the token: 401 no"),
        (403, "quantum.example.com rejects the token: 403 no"),
        (404, "quantum.example.com has no ibm_quebec: 404 no"),
        (502, "quantum.example.com answers 502 no"),
    ],
)
def test_a_service_that_does_not_take_the_token(net, status, message):
    """A token for another account, an unknown backend and a service out of order are told apart."""
    endpoints_answer(net, API, IAM)
    iam_gives_a_token(net)
    answer = {"errors": [{"code": 1, "message": "no"}]}
    net.get(f"{API}/backends/ibm_quebec/status", status=status, json=answer)
    assert last() == ("account", "error", message)


def test_a_token_in_an_answer_is_masked(net):
    """A service that repeats the bearer token does not bring it into the output."""
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
    """Any answer of a service is one; what leads elsewhere or is out of order is said."""
    environment = {"QRMI_IQM_ISA_ENDPOINT": "https://iqm.example.com", "QRMI_IQM_ISA_TOKEN": SECRET}
    net.get("https://iqm.example.com", status=status, headers={"Location": "https://elsewhere.example.com"})
    net.get("https://iqm.example.com/api/v1/quantum-computers/garnet", json={})
    line = seen(environment, type_name="iqm-server", name="garnet")[0]
    assert (line.name, line.level.value) == ("endpoint", level)
    assert words in line.message
    assert not [call for call in net.calls if "elsewhere" in call.request.url]


def test_iqms_name_is_spelled_as_qrmi_spells_it(net):
    """Of an IQM name the last underscore is the colon before a timeslot's variant."""
    environment = {"QRMI_IQM_ISA_ENDPOINT": "https://iqm.example.com", "QRMI_IQM_ISA_TOKEN": SECRET}
    net.get("https://iqm.example.com", json={})
    net.get(re.compile(r"https://iqm\.example\.com/api/v1/quantum-computers/garnet:mock"), json={})
    assert last(environment, type_name="iqm-server", name="garnet_mock")[:2] == ("credential", "ok")


def test_felis_key_is_sent_as_it_is(net):
    """Felis's key is HTTP's basic login; a 401 is its rejection."""
    environment = {"QRMI_AB_FELIS_BASE_ENDPOINT": "https://felis.example.com", "QRMI_AB_FELIS_API_KEY": "dXNlcjpw"}
    net.get("https://felis.example.com", json={})
    asked = net.get("https://felis.example.com/v1/targets/", status=401, json={})
    line = last(environment, type_name="alice-bob-felis", name="ab_cats")
    assert line == ("credential", "error", "felis.example.com rejects the key: 401 Unauthorized")
    assert asked.calls[0].request.headers["Authorization"] == "Basic dXNlcjpw"


def test_nothing_is_asked_behind_a_hop_that_failed(net):
    """Where the way to one of two addresses is cut, no credential is sent to the other."""
    resource = Resource(name="ibm_quebec", type="ibm-quantum-compute-service", environment=QCS)
    targets = {"QRMI_IBM_QCS_ENDPOINT": Target(API, None, None), "QRMI_IBM_QCS_IAM_ENDPOINT": Target(IAM, None, None)}
    cut = service_check.error("tcp", "cut", "mend it")
    hops = {targets["QRMI_IBM_QCS_ENDPOINT"].hop: [cut], targets["QRMI_IBM_QCS_IAM_ENDPOINT"].hop: [ok("tcp", "x")]}
    endpoints_answer(net, IAM)
    lines = service_check.lines(resource, targets, hops, 5.0)
    assert [line.name for line in lines] == ["tcp", "tcp", "endpoint"]
    assert len(net.calls) == 1
