"""The oldest QRMI that pyproject.toml allows does everything the newest does; all other tests use the newest."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from setup import environment
from standins.resources import resource

HERE = Path(__file__).resolve().parent
# The oldest release's types. pasqal-local needs munge, which QRMI includes from 0.26.1 on.
TYPES = (
    "alice-bob-felis",
    "direct-access",
    "ibm-quantum-compute-service",
    "ibm-quantum-system",
    "iqm-server",
    "pasqal-cloud",
    "qiskit-runtime-service",
)

RUN_A_JOB = """
import json, os, sys
from pathlib import Path
import qrmi
from qrmi_slurm.hooks import epilog, prolog, turnstile
turnstile.FOLDER = Path(sys.argv[2]).parent / "run"
environment = json.loads(sys.argv[1])
prolog.prolog(environment)
exports = next(Path(sys.argv[2]).glob("*/12/exports")).read_text()
epilog.epilog(environment)
print(json.dumps([qrmi.__file__, exports, [str(path) for path in Path(sys.argv[2]).glob("*/12")]]))
"""


@pytest.fixture(scope="module")
def oldest():
    """The folder of the oldest QRMI."""
    return environment.oldest_qrmi()


def run(oldest, *command):
    """Run Python with the oldest QRMI first in its path."""
    return subprocess.run(
        [sys.executable, "-P", *command],
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(oldest)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_oldest_differs_from_the_newest(oldest):
    """If they were the same, one of them would go untested."""
    assert not (oldest / f"qrmi-{version('qrmi')}.dist-info").exists()


def test_the_whole_backend_contract_holds_with_it(oldest, tmp_path):
    """Acquiring, releasing, refusals and hangs."""
    contract = HERE / "test_backend_contract.py"
    # A folder of its own: pytest's runs clear away each other's default ones.
    options = ["-q", "-p", "no:cacheprovider", "-k", "not fake", f"--basetemp={tmp_path / 'temp'}"]
    done = run(oldest, "-m", "pytest", *options, str(contract))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    assert "skipped" not in done.stdout


def test_prolog_and_epilog_serve_a_job_with_it(oldest, services, tmp_path):
    """A QPU of each of its types: acquired, exported, released."""
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
    done = run(oldest, "-c", RUN_A_JOB, json.dumps(job), str(state))
    assert done.returncode == 0, done.stderr
    log = done.stdout.splitlines()
    qrmi_file, exports, folders = json.loads(log[-1])
    assert Path(qrmi_file).is_relative_to(oldest)
    assert f"export QRMI_JOB_QPU_RESOURCES={','.join(names)}" in exports, exports
    types = [kind.replace("direct-access", "ibm-quantum-system") for kind in TYPES]
    assert f"export QRMI_JOB_QPU_TYPES={','.join(types)}" in exports
    assert folders == []
    released = [line for line in log if "released: job=12" in line]
    assert [sum(f"qpu={name} " in line for line in released) for name in names] == [1] * len(names)
