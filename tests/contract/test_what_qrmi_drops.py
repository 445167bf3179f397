"""The installed QRMI without what it says that it will drop: types, `is_accessible()`, and `metadata()`'s name."""

import json
import os
import subprocess
import sys

import pytest

from qrmi_slurm.config.resource_types import with_successors
from standins.resources import resource

# Former names are served under their successors'.
TYPES = {
    "alice-bob-felis": "alice-bob-felis",
    "direct-access": "ibm-quantum-system",
    "ibm-quantum-compute-service": "ibm-quantum-compute-service",
    "ibm-quantum-system": "ibm-quantum-system",
    "iqm-server": "iqm-server",
    "pasqal-cloud": "pasqal-cloud",
    "qiskit-runtime-service": "ibm-quantum-compute-service",
}

# A package in front of the installed QRMI that hands out that one, changed. `qiskit-runtime-service` and
# `QRMI_IBM_QRS_*` expired on 2026-11-21; `direct-access` is gone from the newest.
COMING = """
import sys
from pathlib import Path
sys.path.remove(str(Path(__file__).resolve().parents[1]))
del sys.modules["qrmi"]
import qrmi
GONE = ("IBMQiskitRuntimeService", "IBMDirectAccess", "DirectAccess", "QiskitRuntimeService")
LEFT = {name: getattr(qrmi.ResourceType, name) for name in dir(qrmi.ResourceType) if name[0].isalpha()}
qrmi.ResourceType = type("ResourceType", (), {name: member for name, member in LEFT.items() if name not in GONE})
installed = qrmi.QuantumResource
class QuantumResource:
    def __init__(self, *arguments):
        self._installed = installed(*arguments)
    def describe(self):
        return self._installed.metadata()
    def __getattr__(self, name):
        if name in ("is_accessible", "metadata"):
            raise AttributeError(name)
        return getattr(self._installed, name)
qrmi.QuantumResource = QuantumResource
qrmi.is_coming = True
"""

RUN_A_JOB = """
import json, sys
from pathlib import Path
from qrmi_slurm.calls import installed
from qrmi_slurm.hooks import epilog, prolog
environment = json.loads(sys.argv[1])
prolog.prolog(environment)
exports = next(Path(sys.argv[2]).glob("*/12/exports")).read_text()
epilog.epilog(environment)
is_coming = installed.import_qrmi().is_coming
folders = [str(path) for path in Path(sys.argv[2]).glob("*/12")]
print(json.dumps([is_coming, installed.known_members(), exports, folders]))
"""

ASK = """
import json, sys
from qrmi_slurm.calls import backend
from qrmi_slurm.calls.protocol import Call
answers = []
backend.run([Call(*json.loads(sys.argv[1]))], 30.0, answers.extend)
[answer] = answers
print(json.dumps([answer.verdict, answer.reason, answer.availability.state if answer.availability else None]))
"""

RELEASE = """
import sys, qrmi
member, name, token = sys.argv[1:]
qrmi.QuantumResource(name, getattr(qrmi.ResourceType, member)).release(token)
"""


@pytest.fixture
def python(tmp_path):
    """Run Python with the coming QRMI in front of the installed one."""
    package = tmp_path / "coming" / "qrmi" / "__init__.py"
    package.parent.mkdir(parents=True)
    package.write_text(COMING)

    def run(*words, **env):
        return subprocess.run(
            [sys.executable, "-P", "-W", "ignore", *words],
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path / "coming"), **env},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


def test_prolog_and_epilog_serve_every_type_with_it(python, services, tmp_path):
    """A QPU of each type, also by its former name and variables: acquired, exported, released."""
    resources = [resource(kind, f"{services.url}/online") for kind in TYPES]
    (tmp_path / "slurm.conf").write_text("ClusterName=test\n")
    (tmp_path / "qrmi_config.json").write_text(json.dumps({"resources": resources}))
    state = tmp_path / "state"
    line = f"optional /x/spank_qrmi.so {tmp_path}/qrmi_config.json --state-dir={state} --require=all"
    (tmp_path / "plugstack.conf").write_text(f"{line}\n")
    names = [described["name"] for described in resources]
    job = {
        "SLURMD_NODENAME": "n1",
        "SLURM_CLUSTER_NAME": "test",
        "SLURM_CONF": str(tmp_path / "slurm.conf"),
        "SLURM_JOB_ID": "12",
        "SLURM_JOB_UID": str(os.getuid()),
        "SLURM_JOB_NODELIST": "n1",
        "SLURM_JOB_START_TIME": "1000",
        "SLURM_JOB_END_TIME": "1300",
        "SPANK_QRMI_QPU": ",".join(names),
    }
    done = python("-c", RUN_A_JOB, json.dumps(job), str(state))
    assert done.returncode == 0, done.stderr
    log = done.stdout.splitlines()
    is_coming, members, exports, folders = json.loads(log[-1])
    assert is_coming
    assert not [member for member in members if "Runtime" in member or "Direct" in member]
    assert f"export QRMI_JOB_QPU_RESOURCES={','.join(names)}\n" in exports, exports
    assert f"export QRMI_JOB_QPU_TYPES={','.join(TYPES.values())}\n" in exports
    assert f"export SLURM_JOB_QPU_TYPES={','.join(TYPES)}\n" in exports
    older = next(described["name"] for described in resources if described["type"] == "qiskit-runtime-service")
    for variable in ("QRMI_IBM_QRS_ENDPOINT", "QRMI_IBM_QCS_ENDPOINT"):
        assert f"export {older}_{variable}={services.url}/online\n" in exports
    assert folders == []
    released = [line for line in log if "released: job=12" in line]
    assert [sum(f"qpu={name} " in line for line in released) for name in names] == [1] * len(names)


def asked(python, services, kind, state, action):
    """Return the backend's answer for a QPU whose service is in some state."""
    described = resource(kind, f"{services.url}/{state}")
    environment = {
        f"{described['name']}_{key}": value for key, value in with_successors(described["environment"]).items()
    }
    done = python("-c", ASK, json.dumps([described["name"], TYPES[kind], action, environment]))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("state", ["paused", "offline"])
@pytest.mark.parametrize("kind", ["ibm-quantum-compute-service", "ibm-quantum-system"])
def test_a_qpu_that_is_not_online_is_still_not_acquired(python, services, kind, state):
    """Its status tells, without `is_accessible()`."""
    verdict, reason, _ = asked(python, services, kind, state, "acquire")
    assert (verdict, state in reason) == ("refused", True), reason


def test_an_older_system_whose_status_cannot_be_read_is_acquired(python, services):
    """`is_accessible()` told its state; without it nothing does, and acquiring finds out."""
    assert asked(python, services, "ibm-quantum-system", "nolanes", "acquire")[0] == "done"
    assert asked(python, services, "ibm-quantum-system", "nolanes", "check")[2] == "unknown"


@pytest.mark.parametrize("in_environment", [None, "the same", "another"])
def test_release_closes_the_session_that_it_is_given(python, services, in_environment):
    """Whatever token is in the environment: the hooks put the same one there, and a coming QRMI may not look at it."""
    described = resource("ibm-quantum-compute-service", f"{services.url}/online")
    name = described["name"]
    own = {f"{name}_{key}": value for key, value in described["environment"].items()}
    token = f"session-of-{(in_environment or 'none').replace(' ', '-')}"
    if in_environment is not None:
        own[f"{name}_QRMI_JOB_ACQUISITION_TOKEN"] = token if in_environment == "the same" else "session-of-another"
    before = len(services.requests())
    done = python("-c", RELEASE, "IBMQuantumComputeService", name, token, **own)
    assert done.returncode == 0, done.stderr
    made = [request["path"] for request in services.requests()[before:] if "/sessions/" in request["path"]]
    assert made
    assert {path.rpartition("/sessions/")[2].partition("/")[0] for path in made} == {token}
