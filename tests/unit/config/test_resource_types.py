"""The known resource types."""

import pytest

from qrmi_slurm.calls import installed
from qrmi_slurm.config import resource_types
from qrmi_slurm.config.resource_types import KNOWN, describe

MEMBERS = (
    "AliceBobFelis",
    "IBMQiskitRuntimeService",
    "IBMQuantumComputeService",
    "IBMQuantumSystem",
    "IQMServer",
    "OQTOPUS",
    "PasqalCloud",
    "PasqalLocal",
)


@pytest.mark.parametrize("known", KNOWN.values(), ids=KNOWN)
def test_each_types_entry_is_consistent(known):
    assert known.secrets <= known.variables
    assert known.endpoints <= known.variables
    assert all(resource_types.is_secret(variable) for variable in known.secrets)
    assert all(resource_types.is_endpoint(variable) for variable in known.endpoints)
    assert not known.successor or known.successor in KNOWN
    assert not known.session_max_ttl or known.session_max_ttl in known.variables


def test_only_two_services_and_an_older_name_lock():
    locking = {name for name, known in KNOWN.items() if known.locks}
    assert locking == {"ibm-quantum-compute-service", "qiskit-runtime-service", "pasqal-local"}


def test_every_type_is_served_by_qrmi_0_26():
    for name, known in KNOWN.items():
        served = installed.installed_type(name, MEMBERS)
        assert served == (known.successor if name == "direct-access" else name)


def test_the_installed_qrmi_knows_these_types():
    assert set(MEMBERS) <= set(installed.known_members())


@pytest.mark.parametrize(
    "spelling", ["ibm_quantum_compute_service", "IBMQuantumComputeService", "IBM-Quantum-Compute-Service"]
)
def test_every_spelling_of_a_type_has_the_same_rules(spelling):
    """If QRMI takes a spelling for a type that locks, we must treat it as locking, or its session is lost."""
    assert resource_types.matching_member(spelling, MEMBERS) is not None
    assert describe(spelling).locks


def test_an_unknown_type_gets_generic_rules():
    unknown = describe("new-vendor")
    assert not unknown.required
    assert not unknown.successor
    assert resource_types.is_secret("QRMI_NEW_API_KEY")
    assert resource_types.is_endpoint("QRMI_NEW_BASE_URL")


@pytest.mark.parametrize("variable", ["QRMI_NEW_PROXY", "QRMI_NEW_SERVER", "QRMI_NEW_ADDRESS", "QRMI_NEW_endpoint"])
def test_a_variable_of_an_unknown_type_that_redirects_requests_is_an_endpoint(variable):
    assert resource_types.is_endpoint(variable)


def test_renamed_variables_are_present_under_both_names():
    before = {"QRMI_IBM_QRS_ENDPOINT": "e", "QRMI_IBM_DA_S3_ENDPOINT_FOR_DAAPI": "s", "OTHER": "o"}
    after = resource_types.with_successors(before)
    assert after == {**before, "QRMI_IBM_QCS_ENDPOINT": "e", "QRMI_IBM_QS_S3_ENDPOINT_FOR_QSAPI": "s"}


def test_the_current_name_wins_over_an_older_one():
    both = {"QRMI_IBM_DA_ENDPOINT": "old", "QRMI_IBM_QS_ENDPOINT": "new"}
    assert resource_types.with_successors(both) == both


@pytest.mark.parametrize(
    "variable",
    ["QRMI_JOB_ACQUISITION_TOKEN", "QRMI_JOB_TIMEOUT_SECONDS", "QRMI_IBM_QCS_SESSION_ID", "QRMI_IBM_QRS_SESSION_ID"],
)
def test_only_the_suite_may_set_tokens_time_limits_and_open_sessions(variable):
    assert resource_types.is_ours_alone(variable)


def test_the_name_of_a_resource_does_not_make_its_variables_secret():
    """`<name>_<VARIABLE>` is what the record holds; a QPU called `turnKEY` has no secret endpoint."""
    assert not resource_types.is_secret("turnKEY_QRMI_JOB_TIMEOUT_SECONDS")
