"""A resource type of a newer QRMI works without a change here, from the config to the task and back."""

import json

import pytest
from doubles import SECRET, variables_of

from qrmi_slurm.calls import child, installed
from qrmi_slurm.hooks import epilog, prolog, task_prolog

MEMBERS = ("IBMQuantumComputeService", "NewVendorSystem", "OQTOPUS")


@pytest.fixture
def newer(site, monkeypatch):
    """A site whose QRMI has one type more, and a QPU of it."""
    import qrmi

    monkeypatch.setattr(qrmi.ResourceType, "NewVendorSystem", 99, raising=False)
    newer = "import qrmi\nqrmi.ResourceType.NewVendorSystem = 99\nchild.go_on"
    monkeypatch.setattr(child, "_START_AGAIN", child._START_AGAIN.replace("child.go_on", newer))
    environment = {
        "QRMI_NEW_VENDOR_API_KEY": SECRET,
        "QRMI_NEW_VENDOR_BASE_URL": "http://vendor.invalid",
        "QRMI_FAKE_CALLS": str(site.calls_path),
    }
    site.write_config(
        json.dumps({"resources": [{"name": "new", "type": "new-vendor-system", "environment": environment}]})
    )
    return site


def test_it_is_acquired_exported_and_released(newer, syslog_lines):
    prolog.prolog(newer.hook_environment("new"))
    outcome = task_prolog.task_prolog(newer.task_environment("new"))
    assert outcome.exit_code == 0
    exported = variables_of(outcome.lines)
    assert exported["QRMI_JOB_QPU_TYPES"] == exported["SLURM_JOB_QPU_TYPES"] == "new-vendor-system"
    assert exported["new_QRMI_NEW_VENDOR_API_KEY"] == SECRET
    assert exported["new_QRMI_JOB_ACQUISITION_TOKEN"] == "session-new"
    epilog.epilog(newer.hook_environment("new"))
    assert newer.calls() == ["acquire new ", "release new session-new"]
    assert not newer.folder().exists()
    assert SECRET not in str(syslog_lines)


def test_its_endpoint_is_protected_like_known_ones(newer, syslog_lines):
    """If a user changes it, the site's key is not sent there."""
    own = {"SPANK_new_QRMI_NEW_VENDOR_BASE_URL": "http://elsewhere.invalid"}
    prolog.prolog(newer.hook_environment("new", **own))
    exported = variables_of(task_prolog.task_prolog(newer.task_environment("new")).lines)
    assert exported["new_QRMI_NEW_VENDOR_BASE_URL"] == "http://elsewhere.invalid"
    assert SECRET not in exported.values()
    assert SECRET not in newer.folder().path.joinpath("record.json").read_text()


@pytest.mark.parametrize(
    ("configured", "served"),
    [
        ("OQTOPUS", "oqtopus"),
        ("oqtopus", "oqtopus"),
        ("IBMQuantumComputeService", "ibm-quantum-compute-service"),
        ("ibm_quantum_compute_service", "ibm-quantum-compute-service"),
        ("new-vendor-system", "new-vendor-system"),
    ],
)
def test_every_spelling_of_a_type_is_passed_on_as_qrmi_expects_it(configured, served):
    """QRMIService in a task knows one spelling only, and ignores QPUs with another."""
    assert installed.installed_type(configured, MEMBERS) == served
