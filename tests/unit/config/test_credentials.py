"""The credentials: the site's variables merged with the user's own."""

import pytest
from doubles import COMPUTE_SERVICE, SECRET

from qrmi_slurm.config.config_file import Resource
from qrmi_slurm.config.credentials import MAX_VALUE_BYTES, merge
from qrmi_slurm.config.resource_types import with_successors
from qrmi_slurm.config.slurm_section import SecretSource, SlurmSection
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


# --- the site's secrets and the user's values ---------------------------------------------------------------------

MODE, TTL, TIMEOUT = (f"QRMI_IBM_QCS_{name}" for name in ("SESSION_MODE", "SESSION_MAX_TTL", "TIMEOUT_SECONDS"))
CRN = "QRMI_IBM_QCS_SERVICE_CRN"
NOT_BESIDE = "which cannot be combined with the site's credentials: unset it, or bring credentials of your own"


def own(**variables):
    return {f"a_{name}": value for name, value in variables.items()}


def test_tuned_values_are_used_by_root_beside_the_sites_secrets():
    merged = merge(SITE, own(**{MODE: "batch", TTL: "100", TIMEOUT: "50"}))
    assert merged.environment == {**COMPUTE_SERVICE, MODE: "batch", TTL: "100", TIMEOUT: "50"}
    assert (merged.are_users, merged.tuned) == (False, {MODE, TTL, TIMEOUT})


@pytest.mark.parametrize("type_name", ["ibm-quantum-compute-service", "qiskit-runtime-service"])
@pytest.mark.parametrize("family", ["QCS", "QRS"])
def test_a_value_can_be_tuned_under_either_name(type_name, family):
    variable = f"QRMI_IBM_{family}_SESSION_MAX_TTL"
    environment = {name.replace("QCS", "QRS"): value for name, value in COMPUTE_SERVICE.items()}
    site = Resource("a", type_name, environment | {"QRMI_IBM_QRS_SESSION_MAX_TTL": "7"})
    merged = merge(site, own(**{variable: "99999"})).capped(100)
    assert not merged.are_users
    assert {value for name, value in merged.environment.items() if name.endswith("MAX_TTL")} == {"100"}


@pytest.mark.parametrize("name", [CRN, "QRMI_IBM_QCS_NOTE", "QRMI_NOTE", "QRMI_IBM_QS_S3_BUCKET"])
def test_nothing_else_can_be_set_beside_the_sites_secrets(name):
    with pytest.raises(CredentialsError) as caught:
        merge(SITE, own(**{name: SECRET, MODE: "batch"}))
    assert str(caught.value) == f"you set a_{name}, {NOT_BESIDE}"


def test_the_users_key_is_used_as_the_user_beside_what_is_known_to_be_no_secret():
    """A variable that QRMI does not know may be a secret of the site, whatever its name."""
    site = SITE._replace(environment={**COMPUTE_SERVICE, "OTHER": "x", MODE: "batch"})
    merged = merge(site, own(**{KEY: "mine"}))
    assert merged.environment == {**COMPUTE_SERVICE, KEY: "mine", MODE: "batch"}
    assert merged.are_users
    assert merge(site, own(**{KEY: "mine", CRN: "mine"})).environment[CRN] == "mine"


def test_the_users_key_takes_the_place_of_the_sites_under_both_names():
    older = {name.replace("QCS", "QRS"): value for name, value in COMPUTE_SERVICE.items()}
    merged = merge(Resource("a", "qiskit-runtime-service", older), own(**{KEY: "mine"}))
    assert merged.environment["QRMI_IBM_QRS_IAM_APIKEY"] == merged.environment[KEY] == "mine"
    assert merged.are_users
    assert SECRET not in str(merged.environment)


SYSTEM = {
    "QRMI_IBM_QS_ENDPOINT": "http://service.invalid",
    "QRMI_IBM_QS_IAM_ENDPOINT": "http://iam.invalid",
    "QRMI_IBM_QS_IAM_APIKEY": SECRET,
    "QRMI_IBM_QS_SERVICE_CRN": "crn:v1:test",
    "QRMI_IBM_QS_AWS_ACCESS_KEY_ID": SECRET,
    "QRMI_IBM_QS_AWS_SECRET_ACCESS_KEY": SECRET,
    "QRMI_IBM_QS_S3_BUCKET": "bucket",
}


def test_one_secret_of_the_users_leaves_none_of_the_sites():
    site = Resource("a", "ibm-quantum-system", SYSTEM)
    merged = merge(site, own(QRMI_IBM_QS_IAM_APIKEY="mine"))
    assert SECRET not in merged.environment.values()
    assert merged.environment["QRMI_IBM_QS_S3_BUCKET"] == "bucket"
    with pytest.raises(CredentialsError) as caught:
        merge(site, own(QRMI_IBM_QS_AWS_SECRET_ACCESS_KEY="mine"))
    assert str(caught.value) == (
        "you set a_QRMI_IBM_QS_AWS_SECRET_ACCESS_KEY, so the site's credentials are not used: "
        "also set a_QRMI_IBM_QS_IAM_APIKEY"
    )


@pytest.mark.parametrize(
    ("environment", "secrets", "kept"),
    [
        ({"QRMI_NEW_URL": "http://x", "QRMI_NEW_PASS": SECRET, "QRMI_NEW_TOKEN": SECRET}, {}, {"QRMI_NEW_URL"}),
        ({"QRMI_NEW_URL": f"http://user:{SECRET}@x", "QRMI_NEW_TOKEN": SECRET}, {}, set()),
        ({"QRMI_NEW_URL": SECRET}, {"QRMI_NEW_URL": SecretSource(file="/key")}, set()),
    ],
    ids=["by its name", "a password in an address", "stored elsewhere"],
)
def test_of_an_unknown_type_only_addresses_are_known_to_be_no_secret(environment, secrets, kept):
    site = Resource("a", "new-vendor", environment, slurm=SlurmSection(secrets=secrets))
    merged = merge(site, own(QRMI_NEW_TOKEN="mine"))
    assert merged.environment.keys() == kept | {"QRMI_NEW_TOKEN"}
    assert SECRET not in str(merged.environment)
    with pytest.raises(CredentialsError, match=NOT_BESIDE):
        merge(site, own(QRMI_NEW_REGION="mine"))


def test_where_the_site_has_no_secret_a_user_may_set_anything():
    merged = merge(Resource("a", "pasqal-local", {"QRMI_WARDEN_URL": "http://x"}), own(QRMI_NOTE="mine"))
    assert merged.environment == {"QRMI_WARDEN_URL": "http://x", "QRMI_NOTE": "mine"}
    assert merged.are_users  # a Warden trusts root


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        (TTL, "8h", "is not a whole number of seconds"),
        (TTL, "", "is not a whole number of seconds"),
        (TTL, "-5", "is not a whole number of seconds"),
        (TTL, "٣", "is not a whole number of seconds"),
        ("QRMI_IBM_QRS_TIMEOUT_SECONDS", "1.5", "is not a whole number of seconds"),
        (MODE, "Batch", "is neither dedicated nor batch"),
    ],
)
def test_a_tuned_value_that_makes_no_sense_is_refused(name, value, fault):
    with pytest.raises(CredentialsError) as caught:
        merge(SITE, own(**{name: value}))
    assert str(caught.value) == f"a_{name} {fault}"


@pytest.mark.parametrize(
    ("asked", "used", "capped_at_s"),
    [
        ("60", "60", None),
        ("300", "300", None),
        ("301", "300", 300),
        ("0", "1", None),
        ("00060", "60", None),
        ("9" * 5000, "300", 300),
    ],
    ids=["shorter", "as long", "longer", "nothing", "zeros", "digits"],
)
@pytest.mark.parametrize("key", [{}, {KEY: "mine"}], ids=["the site's key", "the user's key"])
def test_a_users_time_is_capped(key, asked, used, capped_at_s):
    merged = merge(SITE, own(**{TTL: asked, MODE: "batch", **key})).capped(300)
    assert (merged.environment[TTL], merged.environment[MODE]) == (used, "batch")
    assert merged.capped_at_s == capped_at_s


def test_the_sites_own_time_is_not_capped():
    site = SITE._replace(environment={**COMPUTE_SERVICE, TTL: "900"})
    merged = merge(site, own(**{MODE: "batch"})).capped(300)
    assert (merged.environment[TTL], merged.capped_at_s) == ("900", None)


# --- a job in a job ------------------------------------------------------------------------------------------------


def test_values_that_are_inherited_under_a_newer_name_are_not_the_users():
    """The surrounding job has the config's variables under both names."""
    older = {name.replace("QCS", "QRS"): value for name, value in COMPUTE_SERVICE.items()}
    site = Resource("a", "qiskit-runtime-service", older)
    inherited = own(**merge(site, {}).environment)
    assert len(inherited) == 2 * len(older)
    assert merge(site, inherited) == merge(site, {})


def test_a_capped_value_that_is_inherited_is_not_what_the_user_asked_for():
    inherited = own(**{TTL: "300", TIMEOUT: "200", "QRMI_SLURM_CAPPED_AT": "300"})
    merged = merge(SITE, inherited)
    assert merged.environment == {**COMPUTE_SERVICE, TIMEOUT: "200"}
    assert not merged.are_users


def test_a_repr_shows_no_value():
    assert SECRET not in repr(merge(SITE, {}))
