"""What a task finds in its environment: DESIGN's contract, row by row, and QRMI's own view of it."""

import re
from collections.abc import Mapping

import pytest

from slurm.emulator import API_KEY, SERVICE_CRN
from slurm.jobs import PRINT_ENVIRONMENT, environment_of
from slurm.site import Site
from slurm.standins import Services, munge_at_its_usual_place
from standins.resources import SECRET, resource

pytestmark = pytest.mark.parametrize("site", ["slurm", "plugin"], indirect=True)

UNLIMITED_S = "2147483647"

# Slurm's own carriers of the selection and the marks of TaskProlog and stub, which are not part of the contract.
NOT_IN_THE_CONTRACT = re.compile(r"SLURM_SPANK_.*|QRMI_SLURM_.*")


def contract_part(env: Mapping[str, str], *more: str) -> dict[str, str]:
    """Return everything that a job without --qpu would not have, under whatever name."""
    ours = {name for name in env if "QRMI" in name or "QPU" in name} | {"RUST_LOG", *more}
    return {name: env[name] for name in sorted(ours) if name in env and not NOT_IN_THE_CONTRACT.fullmatch(name)}


def test_a_task_sees_the_whole_table_and_nothing_else(site: Site, services: Services) -> None:
    """Four QPUs in order, one of them unknown: exactly the contract's variables, each with its value."""
    session = site.emulator.resource("ibm_demo")
    session["environment"] |= {"QRMI_IBM_QCS_SESSION_MODE": "dedicated", "OTHER": 'a "b" $c \\d=é'}
    direct, older = (resource(kind, f"{services.url}/online") for kind in ("direct-access", "qiskit-runtime-service"))
    site.config([older, session, direct])
    site.plugstack(site.plugstack_line("--env:SITE_NOTE=a=b", "--env:no_proxy=127.0.0.1"))
    names = [direct["name"], "ibm_demo", older["name"]]
    job_id = site.cluster.sbatch(
        f"{PRINT_ENVIRONMENT}srun env >step.txt\n",
        f"--qpu={names[0]},nowhere, {names[1]} ,{names[2]},{names[1]}",
        "--time=7",
        env={"ibm_demo_QRMI_IBM_QCS_SESSION_MODE": "batch", "ibm_demo_QRMI_JOB_ACQUISITION_TOKEN": "stale"},
    )
    info = site.cluster.wait_job_over(job_id)
    output = site.cluster.job_output(job_id)
    assert info.state == "COMPLETED", output
    found = contract_part(environment_of(output), "SITE_NOTE", "no_proxy", "ibm_demo_OTHER")

    tokens = {name: found.pop(f"{name}_QRMI_JOB_ACQUISITION_TOKEN") for name in names}
    url, other_url = site.emulator.url, f"{services.url}/online"
    credentials = {"IAM_APIKEY": SECRET, "ENDPOINT": other_url, "IAM_ENDPOINT": other_url, "SERVICE_CRN": "crn:v1:test"}
    assert found == {
        "QRMI_JOB_QPU_RESOURCES": ",".join(names),
        "SLURM_JOB_QPU_RESOURCES": ",".join(names),
        "QRMI_JOB_QPU_TYPES": "ibm-quantum-system,ibm-quantum-compute-service,qiskit-runtime-service",
        "SLURM_JOB_QPU_TYPES": "direct-access,ibm-quantum-compute-service,qiskit-runtime-service",
        "ibm_demo_QRMI_IBM_QCS_ENDPOINT": url,
        "ibm_demo_QRMI_IBM_QCS_IAM_ENDPOINT": url,
        "ibm_demo_QRMI_IBM_QCS_IAM_APIKEY": API_KEY,
        "ibm_demo_QRMI_IBM_QCS_SERVICE_CRN": SERVICE_CRN,
        "ibm_demo_QRMI_IBM_QCS_SESSION_MODE": "batch",
        "ibm_demo_OTHER": 'a "b" $c \\d=é',
        **{f"{names[0]}_QRMI_IBM_DA_{variable}": value for variable, value in credentials.items()},
        **{f"{names[0]}_QRMI_IBM_QS_{variable}": value for variable, value in credentials.items()},
        **{f"{names[2]}_QRMI_IBM_QRS_{variable}": value for variable, value in credentials.items()},
        **{f"{names[2]}_QRMI_IBM_QCS_{variable}": value for variable, value in credentials.items()},
        **{f"{name}_QRMI_JOB_TIMEOUT_SECONDS": "420" for name in names},
        "QRMI_JOB_ID": str(job_id),
        "QRMI_JOB_UID": str(site.cluster.user.uid),
        "RUST_LOG": "info",
        "SITE_NOTE": "a=b",
        "no_proxy": "127.0.0.1",
    }
    assert tokens["ibm_demo"] == site.emulator.sessions()[-1]["id"]
    assert re.fullmatch(r"session-\d+", tokens[names[2]])
    assert re.fullmatch(r"[0-9a-f-]{36}", tokens[names[0]])
    step = environment_of((site.cluster.user.home / "step.txt").read_text())
    expected = found | {f"{name}_QRMI_JOB_ACQUISITION_TOKEN": token for name, token in tokens.items()}
    assert contract_part(step, "SITE_NOTE", "no_proxy", "ibm_demo_OTHER") == expected


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        (["--time=UNLIMITED"], UNLIMITED_S),
        ([], UNLIMITED_S),
        (["--time=3-04:05"], str(((3 * 24 + 4) * 60 + 5) * 60)),
        (["--time=365-00:00:00"], UNLIMITED_S),
        (["--time=364-23:59:00"], str(365 * 24 * 3600 - 60)),
    ],
)
def test_the_time_limit_is_in_seconds(site: Site, limit: list[str], seconds: str) -> None:
    """Slurm says UNLIMITED or days, and ends both after a year; QRMI gets a number that all of its clients can read."""
    done = site.cluster.run_as_user(["srun", *limit, "--qpu=ibm_demo", "env"])
    assert done.returncode == 0, done.stderr
    assert environment_of(done.stdout)["ibm_demo_QRMI_JOB_TIMEOUT_SECONDS"] == seconds
    site.cluster.wait_nodes_idle()


LIST_RESOURCES = """#!/bin/sh
exec python3 -c '
from qrmi import QRMIService
for found in QRMIService().resources():
    print(found.resource_id(), found.resource_type())
'
"""


def test_qrmi_itself_finds_every_qpu_of_the_job(site: Site, services: Services) -> None:
    """A job with a QPU of each type: QRMIService in the task lists all acquired QPUs, and all are released."""
    kinds = {
        "alice-bob-felis": "AliceBobFelis",
        "direct-access": "IBMQuantumSystem",
        "ibm-quantum-compute-service": "IBMQuantumComputeService",
        "iqm-server": "IQMServer",
        "oqtopus": "OQTOPUS",
        "pasqal-cloud": "PasqalCloud",
        "pasqal-local": "PasqalLocal",
    }
    resources = [resource(kind, f"{services.url}/online") for kind in kinds]
    resources[2] = site.emulator.resource("ibm_demo")
    resources[4]["type"] = "OQTOPUS"  # as in QRMI's class
    site.config(resources)
    bridge = services.oqtopus_bridge
    site.plugstack(site.plugstack_line(f"--env:PY_BRIDGE_PATH={bridge}", f"--env:PYTHON_LIBRARY={bridge}"))
    names = [described["name"] for described in resources]
    before = len(services.requests())
    with munge_at_its_usual_place(site.cluster):
        job_id = site.cluster.sbatch(LIST_RESOURCES, f"--qpu={','.join(names)}")
        info = site.cluster.wait_job_over(job_id)
    output = site.cluster.job_output(job_id)
    assert info.state == "COMPLETED", output
    found = {line for line in output.splitlines() if "ResourceType." in line}
    shown = [name.replace("my_iqm_server", "my_iqm:server") for name in names]  # IQM's own spelling
    assert found == {f"{name} ResourceType.{kind}" for name, kind in zip(shown, kinds.values(), strict=True)}, output
    assert not site.emulator.open_sessions()
    made = [(request["method"], request["path"]) for request in services.requests()[before:]]
    [opened] = [path for method, path in made if method == "POST" and path.endswith("/sessions")]
    [closed] = [path for method, path in made if method == "DELETE"]
    assert closed.startswith(f"{opened}/session-")
    assert not list(site.state_dir.glob(f"*/{job_id}"))
