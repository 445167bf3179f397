"""The credentials: the site's variables merged with the user's own."""

import pytest
from doubles import COMPUTE_SERVICE, SECRET

from qrmi_slurm.config.config_file import Resource
from qrmi_slurm.config.credentials import MAX_VALUE_BYTES, merge
from qrmi_slurm.config.resource_types import with_successors
from qrmi_slurm.errors import CredentialsError

SITE = Resource("a", "ibm-quantum-compute-service", COMPUTE_SERVICE)
KEY, ENDPOINT = "QRMI_IBM_QCS_IAM_APIKEY", "QRMI_IBM_QCS_ENDPOINT"


def test_without_user_variables_root_uses_the_sites():
    merged = merge(SITE, {})
    assert merged.environment == COMPUTE_SERVICE
    assert not merged.are_users


def test_the_users_value_wins_and_qrmi_runs_as_the_user():
    merged = merge(SITE, {f"a_{KEY}": "mine"})
    assert merged.environment == {**COMPUTE_SERVICE, KEY: "mine"}
    assert merged.are_users


def test_a_value_equal_to_the_configs_is_not_the_users():
    assert not merge(SITE, {f"a_{KEY}": COMPUTE_SERVICE[KEY]}).are_users


@pytest.mark.parametrize(
    "name",
    [
        f"b_{KEY}",
        KEY,
        "a_PATH",
        "a_LD_PRELOAD",
        "LD_PRELOAD",
        "a_QRMI_JOB_ACQUISITION_TOKEN",
        "a_QRMI_IBM_QCS_SESSION_ID",
    ],
)
def test_other_variables_of_the_user_are_ignored(name):
    assert merge(SITE, {name: "evil"}).environment == COMPUTE_SERVICE


@pytest.mark.parametrize("endpoint", [ENDPOINT, "QRMI_IBM_QCS_IAM_ENDPOINT"])
def test_no_credential_of_the_site_is_sent_to_an_endpoint_of_the_user(endpoint):
    with pytest.raises(CredentialsError) as caught:
        merge(SITE, {f"a_{endpoint}": f"http://evil/{SECRET}"})
    assert f"you set a_{endpoint}" in str(caught.value)
    assert f"set a_{KEY}" in str(caught.value) or f"a_{KEY}" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_user_may_supply_all_credentials():
    own = {f"a_{name}": f"mine-{name}" for name in COMPUTE_SERVICE}
    assert merge(SITE, own).environment == {name: f"mine-{name}" for name in COMPUTE_SERVICE}


@pytest.mark.parametrize(
    ("type_name", "site", "user"),
    [
        ("oqtopus", {"QRMI_OQTOPUS_API_TOKEN": SECRET}, "QRMI_OQTOPUS_PROXY"),
        ("pasqal-cloud", {"QRMI_PASQAL_CLOUD_CLIENT_SECRET": SECRET}, "QRMI_PASQAL_CLOUD_AUTH_ENDPOINT"),
        ("new-vendor", {"QRMI_NEW_API_KEY": SECRET}, "QRMI_NEW_BASE_URL"),
        ("new-vendor", {"QRMI_NEW_API_KEY": SECRET}, "QRMI_NEW_PROXY"),
    ],
)
def test_an_endpoint_of_any_type_is_recognized(type_name, site, user):
    assert SECRET not in merge(Resource("a", type_name, site), {f"a_{user}": "http://evil"}).environment.values()


def test_missing_variables_are_named_and_nothing_else_is_shown():
    resource = Resource("a", "iqm-server", {"QRMI_IQM_ISA_TOKEN": SECRET})
    with pytest.raises(CredentialsError, match="a_QRMI_IQM_ISA_ENDPOINT not set") as caught:
        merge(resource, {})
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("value", [f"{SECRET}\nexport LD_PRELOAD=x", f"{SECRET}\r", SECRET + "x" * MAX_VALUE_BYTES])
def test_a_value_that_cannot_be_exported_is_refused_without_showing_it(value):
    with pytest.raises(CredentialsError, match=f"a_{KEY}") as caught:
        merge(SITE, {f"a_{KEY}": value})
    assert SECRET not in str(caught.value)


def test_a_name_that_cannot_be_exported_is_refused():
    with pytest.raises(CredentialsError):
        merge(SITE, {"a_QRMI_X\nprint": "1"})


def test_a_value_that_the_user_sets_under_an_older_name_is_used():
    """`a_QRMI_IBM_QRS_IAM_APIKEY` is what older guides tell users to set; the site's key must not be used instead."""
    merged = merge(SITE, {"a_QRMI_IBM_QRS_IAM_APIKEY": "mine"})
    assert with_successors(merged.environment)[KEY] == "mine"


def test_older_variable_names_in_the_config_work_for_a_newer_type():
    older = {name.replace("_QCS_", "_QRS_"): value for name, value in COMPUTE_SERVICE.items()}
    merged = merge(Resource("a", "ibm-quantum-compute-service", older), {})
    assert with_successors(merged.environment)[KEY] == COMPUTE_SERVICE[KEY]


def test_a_repr_shows_no_value():
    assert SECRET not in repr(merge(SITE, {}))
