"""A QPU's variables where its job has a broker: who needs one, what the broker gets, what the job gets."""

import pytest
from doubles import COMPUTE_SERVICE, SECRET
from hypothesis import given
from hypothesis import strategies as st

from qrmi_slurm.broker import launch, spec, variables
from qrmi_slurm.config import credentials
from qrmi_slurm.config.config_file import Resource
from qrmi_slurm.config.resource_types import with_successors
from qrmi_slurm.config.slurm_section import SlurmSection
from qrmi_slurm.errors import CredentialsError
from qrmi_slurm.secret import Secret
from qrmi_slurm.state.record import Broker, Entry, Record, State

ENVIRONMENT = {f"a_{name}": value for name, value in COMPUTE_SERVICE.items()}
SYSTEM = {
    "QRMI_IBM_QS_ENDPOINT": "https://qs.example",
    "QRMI_IBM_QS_IAM_ENDPOINT": "https://iam.example",
    "QRMI_IBM_QS_IAM_APIKEY": f"{SECRET}-key",
    "QRMI_IBM_QS_SERVICE_CRN": "crn",
    "QRMI_IBM_QS_AWS_ACCESS_KEY_ID": f"{SECRET}-id",
    "QRMI_IBM_QS_AWS_SECRET_ACCESS_KEY": f"{SECRET}-aws",
    "QRMI_IBM_QS_S3_ENDPOINT": "https://s3.example",
    "QRMI_IBM_QS_S3_ENDPOINT_FOR_QSAPI": "https://s3.inside",
    "QRMI_IBM_QS_S3_BUCKET": "bkt",
    "QRMI_IBM_QS_S3_REGION": "eu",
}


def broker_of(*names):
    return Broker(1, 2, 4711, 0, {name: Secret(f"key-of-{name}") for name in names}, "space", 99.0)


def told(entries, keys, broker_restart=0):
    current = Record("c", 12, 1000, "n1", "b", 0, 0.0, tuple(entries))
    broker = Broker(1, 2, 3, broker_restart, keys, "space", 99.0)
    return spec.parse(spec.encode(launch._spec(current, broker)))


def test_a_broker_gets_only_its_own_qpus_and_the_sites_options():
    entry = Entry(
        "a",
        "ibm-quantum-compute-service",
        {**ENVIRONMENT, "https_proxy": "http://p", "QRMI_JOB_ID": "12", "a_QRMI_JOB_TIMEOUT_SECONDS": "60"},
        state=State.ACQUIRED,
        token=Secret("s"),
    )
    earlier = entry._replace(restart_count=-1, token=Secret("of-before"))
    other = entry._replace(name="b", environment={"b_QRMI_IBM_QCS_IAM_APIKEY": "not-for-it"})
    found = told([earlier, entry, other], {"a": Secret("k"), "gone": Secret("l")})
    assert found.env == {"https_proxy": "http://p"}
    (own, gone) = found.qpus
    assert gone is None
    assert (own.session, own.api_key.reveal(), own.bucket) == ("s", COMPUTE_SERVICE["QRMI_IBM_QCS_IAM_APIKEY"], None)
    assert "not-for-it" not in repr(found)


def test_an_older_types_variables_are_read_as_well():
    older = {name.replace("QCS", "QRS"): value for name, value in COMPUTE_SERVICE.items()}
    both = with_successors(older)
    environment = {f"a_{name}": value for name, value in both.items()}
    entry = Entry("a", "qiskit-runtime-service", environment, state=State.ACQUIRED, token=Secret("s"))
    assert told([entry], {"a": Secret("k")}).qpus[0].endpoint == COMPUTE_SERVICE["QRMI_IBM_QCS_ENDPOINT"]
    seen = variables.for_job(broker_of("a"), "a", "qiskit-runtime-service", both)
    assert seen["QRMI_IBM_QRS_IAM_APIKEY"] == seen["QRMI_IBM_QCS_IAM_APIKEY"] == "key-of-a"


def test_a_broker_gets_a_systems_bucket():
    environment = {f"a_{name}": value for name, value in SYSTEM.items()}
    entry = Entry("a", "ibm-quantum-system", environment, state=State.ACQUIRED, token=Secret("dummy"))
    (qpu,) = told([entry], {"a": Secret("k")}).qpus
    assert qpu.session is None
    bucket = qpu.bucket
    assert (bucket.endpoint, bucket.service_endpoint) == ("https://s3.example", "https://s3.inside")
    assert bucket.prefix == "qrmi-slurm-broker/space/"


@given(
    st.sampled_from([COMPUTE_SERVICE, SYSTEM]),
    st.dictionaries(
        st.sampled_from(["QRMI_IBM_QCS_NEW", "QRMI_X_TOKEN", "QRMI_IBM_QS_PASSWORD", "PASQAL_CONFIG_ROOT"]),
        st.just(f"{SECRET}-more"),
    ),
    st.sets(st.sampled_from(sorted(SYSTEM)), max_size=4),
)
def test_a_job_sees_none_of_the_sites_secrets(base, more, without):
    """Whatever else is in the environment, and whatever is missing."""
    environment = {name: value for name, value in {**base, **more}.items() if name not in without}
    type_name = "ibm-quantum-system" if base is SYSTEM else "ibm-quantum-compute-service"
    seen = variables.for_job(broker_of("w", "x", "y", "a"), "a", type_name, environment)
    assert SECRET not in str(seen)
    assert not [value for value in seen.values() if "example" in value or "invalid" in value]
    assert all("/qrmi-slurm-broker/3/" in value for name, value in seen.items() if "ENDPOINT" in name)


# --- who needs one -------------------------------------------------------------------------------------------------

SITE = Resource("a", "ibm-quantum-compute-service", COMPUTE_SERVICE, slurm=SlurmSection(broker=True))


def test_a_broker_is_needed_where_the_sites_key_is_used():
    assert credentials.merge(SITE, {}).need_broker
    assert not credentials.merge(SITE._replace(slurm=SlurmSection()), {}).need_broker
    assert credentials.merge(SITE, {"a_QRMI_IBM_QCS_SESSION_MODE": "batch"}).need_broker
    assert not credentials.merge(SITE, {"a_QRMI_IBM_QCS_IAM_APIKEY": "mine"}).need_broker


@pytest.mark.parametrize("name", ["SERVICE_CRN", "IAM_OTHER", "CALIBRATION"])
def test_the_sites_key_is_not_used_for_anything_that_a_user_sets(name):
    with pytest.raises(CredentialsError, match=f"a_QRMI_IBM_QCS_{name}, which cannot be combined with the site's"):
        credentials.merge(SITE, {f"a_QRMI_IBM_QCS_{name}": "x"})


def test_what_a_job_inherits_from_a_surrounding_job_is_not_its_users():
    outer = broker_of("a")._replace(keys={"a": Secret("qrmi-slurm-broker.abc")})
    inherited = variables.for_job(outer, "a", "ibm-quantum-compute-service", COMPUTE_SERVICE)
    merged = credentials.merge(SITE, {f"a_{name}": value for name, value in inherited.items()})
    assert merged.environment == COMPUTE_SERVICE
    assert (merged.are_users, merged.need_broker) == (False, True)


def test_a_type_that_cannot_have_a_broker_is_refused():
    garnet = Resource(
        "g",
        "iqm-server",
        {"QRMI_IQM_ISA_ENDPOINT": "https://x", "QRMI_IQM_ISA_TOKEN": SECRET},
        slurm=SlurmSection(broker=True),
    )
    with pytest.raises(CredentialsError, match="iqm-server cannot have one"):
        credentials.merge(garnet, {})
