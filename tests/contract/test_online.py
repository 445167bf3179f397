"""The online check names the hop that fails: real QRMI, real sockets, TLS and a proxy."""

import json
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from qrmi_slurm.calls import backend, ca_bundle
from qrmi_slurm.calls.protocol import Call
from qrmi_slurm.checks.online import check as online_check
from qrmi_slurm.config import config_file
from qrmi_slurm.slurm import conf_file, plugstack
from standins import network, resources

SECRET = resources.SECRET
LIMITS = online_check.Limits(step_s=1.5, qrmi_s=2.0)
TYPES = sorted(set(resources.VARIABLES) - {"oqtopus"})


@dataclass
class Network:
    ports: dict[str, int]
    authority: str

    def url(self, which, scheme="http", host="127.0.0.1"):
        return f"{scheme}://{host}:{self.ports[which]}"


NEW_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]


def openssl(folder, *words):
    subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)


def make_authority(folder, name):
    """Write an authority's certificate and key into a folder, and return the certificate."""
    subject = ["-days", "90", "-subj", f"/O={name}/CN={name} CA"]
    openssl(folder, "req", "-x509", *NEW_KEY, "-keyout", "ca.key", "-out", "ca.pem", *subject)
    return (folder / "ca.pem").read_text()


@pytest.fixture(scope="session")
def between(tmp_path_factory):
    """Servers with certificates from a private authority, and obstacles between a node and a service."""
    folder = tmp_path_factory.mktemp("tls")
    make_authority(folder, "Lab")
    (folder / "names").write_text("subjectAltName=DNS:localhost\n")
    openssl(folder, "req", *NEW_KEY, "-keyout", "key", "-out", "request", "-subj", "/CN=localhost")
    signing = ["x509", "-req", "-in", "request", "-extfile", "names"]
    by_the_lab = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"]
    openssl(folder, *signing, *by_the_lab, "-days", "60", "-out", "tls")
    openssl(folder, *signing, *by_the_lab, "-days", "5", "-out", "ends_soon")
    openssl(folder, *signing, *by_the_lab, "-days", "0", "-out", "expired")
    openssl(folder, *signing, "-signkey", "key", "-days", "60", "-out", "self_signed")
    names = ("tls", "ends_soon", "expired", "self_signed")
    command = [sys.executable, network.__file__, folder / "key", *(f"{name}={folder / name}" for name in names)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield Network(json.loads(process.stdout.readline()), str(folder / "ca.pem"))
        process.kill()


def check(*items, of_shell=None, **env):
    """Return the lines of each resource, with their order."""
    loaded = config_file.parse(json.dumps({"resources": list(items)})).resources
    options = plugstack.SiteOptions(config_path=conf_file.DEFAULT_SLURM_CONF, env=env)
    reports = online_check.run(list(loaded.values()), options, LIMITS, of_shell or {})
    shown = repr(reports)
    assert SECRET not in shown
    assert resources.FELIS_KEY not in shown
    return [list(report.steps) for report in reports]


def iqm(url, token=SECRET):
    environment = {"QRMI_IQM_ISA_ENDPOINT": url, "QRMI_IQM_ISA_TOKEN": token}
    return {"name": "garnet", "type": "iqm-server", "environment": environment}


def steps(lines):
    return [(line.name, line.level.value) for line in lines]


def fault(lines):
    """Return the only error among the lines before QRMI's own."""
    (line,) = [line for line in lines if line.level == "error" and line.name != "qrmi"]
    return line


@pytest.mark.parametrize("type_name", TYPES)
def test_the_route_to_each_type(services, type_name):
    """Each step up to QRMI's answer is ok with its duration for a working service, and no session is opened."""
    before = len(services.requests())
    (lines,) = check(resources.resource(type_name, f"{services.url}/online"))
    assert {line.level.value for line in lines} == {"ok"}, lines
    assert [line.name for line in lines][:3] == ["proxy", "name", "tcp"]
    assert lines[-1].name == "qrmi"
    assert all(line.duration_s is not None for line in lines[1:])
    asked = services.requests()[before:]
    assert not [request for request in asked if request["path"].rstrip("/").endswith("/sessions")]


@pytest.mark.parametrize("scenario", ["offline", "paused"])
def test_a_qpu_that_is_down(services, scenario):
    """A working service whose QPU is down gives a warning with QRMI's message."""
    (lines,) = check(resources.resource("ibm-quantum-system", f"{services.url}/{scenario}"))
    assert steps(lines)[-1] == ("qrmi", "warning")
    assert "the QPU is " in lines[-1].message


@pytest.mark.parametrize(
    ("status", "name", "words"),
    [
        ("401", "credential", "no token from|rejects the key"),
        ("503", "endpoint", "503"),
    ],
)
def test_a_service_that_refuses(services, status, name, words):
    """A rejected key and a broken service are told apart."""
    (lines,) = check(resources.resource("ibm-quantum-compute-service", f"{services.url}/{status}"))
    line = next(line for line in lines if line.level == "error")
    assert line.name == name
    assert any(word in line.message for word in words.split("|"))


def test_a_name_that_does_not_resolve():
    """The check of an unresolvable host stops at its name."""
    (lines,) = check(iqm("https://nowhere.invalid"))
    assert steps(lines) == [("proxy", "ok"), ("name", "error"), ("qrmi", "error")]
    assert "nowhere.invalid does not resolve" in lines[1].message


def test_a_closed_port():
    """The check stops at TCP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    line = fault(check(iqm(f"http://127.0.0.1:{port}"))[0])
    assert (line.name, line.message) == ("tcp", f"127.0.0.1 port {port}: Connection refused")


def test_a_signer_that_is_not_trusted(between):
    """The error names the certificate's unknown signer, and QRMI agrees."""
    (lines,) = check(iqm(between.url("tls", "https", "localhost")))
    line = fault(lines)
    assert line.name == "tls"
    assert "not trusted, signed by Lab, Lab CA: " in line.message
    assert "--env:SSL_CERT_FILE" in line.hint
    assert steps(lines)[-1] == ("qrmi", "error")


def test_a_signer_trusted_by_the_site(between):
    """With --env:SSL_CERT_FILE the same certificate is accepted, here and by QRMI, whose request arrives."""
    (lines,) = check(iqm(between.url("tls", "https", "localhost")), SSL_CERT_FILE=between.authority)
    tls = next(line for line in lines if line.name == "tls")
    assert tls.level == "ok"
    assert tls.message == "signed by Lab, Lab CA, ends in 59 days"
    assert ("endpoint", "ok") in steps(lines)
    assert fault(lines).message == "localhost has no garnet: 404 no to Bearer ***"
    assert "sending request" not in lines[-1].message, "QRMI refuses the certificate"


@pytest.mark.parametrize(
    ("where", "words"), [("bundle", "no to Bearer"), ("folder", "no to Bearer"), ("nowhere", "sending request")]
)
def test_an_authority_trusted_by_the_machine(between, tmp_path, monkeypatch, where, words):
    """QRMI trusts it, whether the bundle alone is read because it has everything, or the folder has one more."""
    labs, other = Path(between.authority).read_text(), make_authority(tmp_path, "Other")
    folder = tmp_path / "certs"
    folder.mkdir()
    bundle = folder / "ca-certificates.crt"
    bundle.write_text(other + labs if where == "bundle" else other)
    (folder / "one.pem").write_text(labs if where == "folder" else other)
    found = ca_bundle.variables(str(bundle), str(folder), ())
    assert bool(found) == (where != "folder")
    monkeypatch.setattr(ca_bundle, "variables", lambda: found)
    # What QRMI would find by default on a machine with that bundle and that folder.
    default = {} if found else {ca_bundle.FILE: str(bundle), ca_bundle.DIR: str(folder)}
    described = iqm(between.url("tls", "https", "localhost"))["environment"]
    environment = {f"garnet_{name}": value for name, value in described.items()}
    answers = []
    backend.run([Call("garnet", "iqm-server", "check", {**environment, **default})], 10.0, answers.extend)
    assert words in answers[0].reason, answers


def test_a_certificate_that_expires_soon(between):
    """It is still trusted, with a warning to renew it."""
    (lines,) = check(iqm(between.url("ends_soon", "https", "localhost")), SSL_CERT_FILE=between.authority)
    line = next(line for line in lines if line.name == "tls")
    assert (line.level, line.message) == ("warning", "signed by Lab, Lab CA, ends in 4 days")


@pytest.mark.parametrize(
    ("which", "host", "message"),
    [
        ("expired", "localhost", "not trusted, signed by Lab, Lab CA: certificate has expired"),
        ("self_signed", "localhost", "not trusted, signed by localhost: self-signed certificate"),
        (
            "tls",
            "127.0.0.1",
            "not trusted, signed by Lab, Lab CA: IP address mismatch, certificate is not valid for '127.0.0.1'.",
        ),
    ],
)
def test_a_certificate_that_is_refused(between, which, host, message):
    """The error names the signer, whatever the reason."""
    (lines,) = check(iqm(between.url(which, "https", host)), SSL_CERT_FILE=between.authority)
    assert (fault(lines).name, fault(lines).message) == ("tls", message)


def test_a_server_without_tls(between):
    """The error says that the server speaks something other than TLS."""
    assert fault(check(iqm(between.url("garbage", "https")))[0]).name == "tls"


def test_a_silent_service_costs_a_bounded_time(between):
    """A service that accepts and never answers costs the deadlines, for ten resources as for one."""
    items = [iqm(between.url("silent")) | {"name": f"garnet{number}"} for number in range(10)]
    began_s = time.monotonic()
    for lines in check(*items):
        assert fault(lines).message == "no answer within 1.5 s"
        assert lines[-1].message == "no answer within 2 s"
    assert time.monotonic() - began_s < LIMITS.step_s + LIMITS.qrmi_s + 3


def test_through_the_proxy_in_the_plugins_line(between):
    """With --env:https_proxy the tunnel is a separate step, the TLS is the service's, and QRMI takes the same route."""
    proxy = between.url("proxy")
    (lines,) = check(iqm(between.url("tls", "https", "localhost")), SSL_CERT_FILE=between.authority, https_proxy=proxy)
    names = [line.name for line in lines]
    assert names[:6] == ["proxy", "name", "tcp", "tunnel", "tls", "endpoint"]
    assert lines[0].message == f"{proxy} for localhost, from --env:"
    assert {line.level.value for line in lines[:6]} == {"ok"}


@pytest.mark.parametrize(("host", "words"), [("iqm.invalid", "403 Forbidden from the proxy"), ("login.invalid", "407")])
def test_a_proxy_that_refuses_the_tunnel(between, host, words):
    """A 403 or 407 from the proxy is attributed to the proxy."""
    line = fault(check(iqm(f"https://{host}"), https_proxy=between.url("proxy"))[0])
    assert line.name == "tunnel"
    assert words in line.message


def test_a_proxy_that_refuses_a_request_without_tls(between):
    """A proxy's page in answer to a plain request is not mistaken for the service's."""
    line = fault(check(iqm("http://iqm.invalid"), http_proxy=between.url("proxy"))[0])
    assert (line.name, line.message) == ("endpoint", "403 Forbidden from the proxy for iqm.invalid")


def test_a_proxys_password_is_not_shown(between):
    """The proxy is shown without user and password."""
    proxy = between.url("proxy").replace("http://", f"http://user:{SECRET}@")
    (lines,) = check(iqm("https://login.invalid"), https_proxy=proxy)
    assert lines[0].message == f"{between.url('proxy')} for login.invalid, from --env:"
    assert "403" in fault(lines).message, "the login was sent"


def test_the_hooks_ignore_a_proxy_set_in_the_shell(between, services):
    """A proxy set only in the shell is not used, and the message says what the hooks would need."""
    (lines,) = check(iqm(f"{services.url}/online"), of_shell={"HTTP_PROXY": between.url("proxy")})
    assert steps(lines)[0] == ("proxy", "warning")
    assert "--env:http_proxy=URL" in lines[0].hint
    assert {level for _, level in steps(lines)[1:]} == {"ok"}


def test_users_supply_all_variables():
    """If users supply the variables, no request is made and nothing is an error."""
    (lines,) = check({"name": "garnet", "type": "iqm-server", "environment": {}})
    assert steps(lines) == [("qrmi", "ok")]
    assert "each job brings QRMI_IQM_ISA_ENDPOINT" in lines[0].message


def test_users_supply_their_keys(services):
    """If the site sets only the address, the route is tried and QRMI is not called."""
    item = iqm(f"{services.url}/online")
    del item["environment"]["QRMI_IQM_ISA_TOKEN"]
    (lines,) = check(item)
    assert steps(lines)[-2:] == [("endpoint", "ok"), ("qrmi", "ok")]
    assert lines[-1].message == "not asked: each job brings QRMI_IQM_ISA_TOKEN"


def test_qrmi_uses_the_proxy_in_the_plugins_line(services):
    """Each step and QRMI reach a host that only the proxy knows."""
    (lines,) = check(iqm("http://iqm.invalid/online"), http_proxy=services.url)
    assert {line.level.value for line in lines} == {"ok"}, lines
    assert lines[0].message == f"{services.url} for iqm.invalid, from --env:"
