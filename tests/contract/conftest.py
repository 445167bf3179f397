"""The two sides of the contract: the fake QRMI, and the real one against a stand-in for its service."""

import ctypes
import json
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
FAKES = TESTS / "fakes"
sys.path.insert(0, str(TESTS))

from standins import libraries  # noqa: E402
from standins import services as services_program  # noqa: E402


@pytest.fixture(scope="session")
def service_url():
    """A process, not a thread: the backend forks."""
    with subprocess.Popen([sys.executable, FAKES / "ibm_service.py"], stdout=subprocess.PIPE, text=True) as process:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        process.kill()


@dataclass
class Side:
    """How one side is told what the service does: maps a scenario to a resource's variables."""

    name: str
    variables: Callable[[str], dict[str, str]]


def _fake_variables(scenario):
    where, _, what = scenario.partition("-")
    if where == "ok":
        return {}
    action = {"jobs": "RELEASE", "close": "RELEASE"}.get(where, "ACQUIRE")
    if (where, what) == ("sessions", "refused"):  # it is asked for the QPU's status first
        return {"QRMI_FAKE_STATUS": "broken"}
    if where == "sessions" and what in ("500", "503", "garbage"):
        return {f"QRMI_FAKE_{action}": "broken"}
    words = {"hang": "hang", "404": "gone-in-words" if action == "RELEASE" else "raise"}
    return {f"QRMI_FAKE_{action}": words.get(what, "raise")}


@pytest.fixture
def real_side(service_url):
    return Side("real", lambda scenario: _real_variables(service_url, scenario))


@pytest.fixture(params=["fake", "real"])
def side(request, monkeypatch):
    if request.param == "real":
        yield request.getfixturevalue("real_side")
        return
    real = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "qrmi"}
    monkeypatch.syspath_prepend(str(FAKES))
    yield Side("fake", _fake_variables)
    for name in [name for name in sys.modules if name.partition(".")[0] == "qrmi"]:
        del sys.modules[name]
    sys.modules.update(real)


def _real_variables(url, scenario):
    return {
        "QRMI_IBM_QCS_ENDPOINT": "http://127.0.0.1:1" if scenario == "sessions-refused" else f"{url}/{scenario}",
        "QRMI_IBM_QCS_IAM_ENDPOINT": "http://127.0.0.1:1" if scenario == "iam-refused" else f"{url}/{scenario}",
        "QRMI_IBM_QCS_IAM_APIKEY": "test-secret-apikey",
        "QRMI_IBM_QCS_SERVICE_CRN": "crn:v1:test",
        "QRMI_IBM_QCS_SESSION_MAX_TTL": "300",
    }


@pytest.fixture
def requests_made(service_url):
    """Ask the stand-in for the service which requests it has received."""

    def ask():
        with urllib.request.urlopen(f"{service_url}/requests", timeout=5) as answer:
            return answer.read().decode()

    return ask


@pytest.fixture(scope="session")
def munge():
    """Path of a libmunge that any user may load."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield libraries.build_munge(Path(folder))


@pytest.fixture(scope="session")
def fake_libraries(tmp_path_factory, munge):
    """Path of OQTOPUS's bridge. libmunge is loaded here, so that QRMI in the forked children finds it."""
    ctypes.CDLL(str(munge))
    return libraries.build_oqtopus_bridge(tmp_path_factory.mktemp("libraries"))


class Services:
    """Stand-ins for the services behind each type: their addresses and their requests."""

    def __init__(self, url):
        self.url = url

    def requests(self):
        """Every request so far: method, path, headers, body."""
        with urllib.request.urlopen(f"{self.url}/requests", timeout=5) as answer:
            return json.loads(answer.read())


@pytest.fixture(scope="session")
def services():
    with subprocess.Popen([sys.executable, services_program.__file__], stdout=subprocess.PIPE, text=True) as process:
        yield Services(f"http://127.0.0.1:{process.stdout.readline().strip()}")
        process.kill()
