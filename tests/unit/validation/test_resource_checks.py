"""Names, types, keys and licenses that cause trouble are found."""

import json

import pytest
from configs import check, codes, diagnose, find, one_resource, with_variables

from qrmi_slurm.validation import rules


@pytest.mark.parametrize(
    ("document", "near"),
    [
        ({"resources": [], "resource": []}, "resources"),
        (one_resource(enviroment={}), "environment"),
        (one_resource(isDynamic=True), "is_dynamic"),
    ],
)
def test_unknown_keys(document, near):
    """An unknown key is a warning that suggests the key that was probably meant."""
    finding = find(check(document), rules.UNKNOWN_KEY)
    assert finding.hint == f'did you mean "{near}"?'


@pytest.mark.parametrize(
    ("document", "hint"),
    [
        (one_resource(slrum={"allow": {}}), 'did you mean "slurm"?'),
        (one_resource(Slurm={"allow": {}}), 'did you mean "slurm"?'),
        (one_resource(allow={"users": []}), 'did you mean "allow", inside of the resource\'s "slurm"?'),
        ({"resources": [], "allow": {}}, 'did you mean "allow", inside of the resource\'s "slurm"?'),
        (one_resource(slurm={"alow": {}}), 'did you mean "allow"?'),
        (one_resource(slurm={"zzz": 1}), "the known keys are license, capacity, allow, secrets, broker"),
    ],
)
def test_unknown_keys_where_access_is_decided(document, hint):
    """Each is an error, whether `slurm` is misspelled, a key in it, or a key of its is outside of it."""
    finding = find(check(document), rules.UNKNOWN_ACCESS_KEY)
    assert finding.hint == hint
    assert finding.rule.severity is rules.Severity.ERROR


def test_a_comment_in_the_slurm_section_is_no_fault():
    """Like anywhere else."""
    assert check(one_resource(slurm={"_why": "the students' course"})) == ()


@pytest.mark.parametrize("key", ["_comment", "//", "$comment", "x-owner"])
def test_comment_keys_are_ignored(key):
    """A key whose prefix marks it as a comment causes no finding."""
    assert check(one_resource(**{key: "of the laboratory"})) == ()


def test_duplicate_names():
    """A name that is already taken is an error that gives the line of its first use."""
    resources = [one_resource()["resources"][0]] * 3
    findings = check(json.dumps({"resources": resources}, indent=1))
    assert codes(findings) == ["QS301", "QS301"]
    assert all("line 4" in finding.message for finding in findings)


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("garnet,default", "QS305"),
        (" garnet", "QS305"),
        ("garnet ", "QS305"),
        ("g" * 5000, "QS305"),
        ("ibm-quebec", "QS306"),
        ("20q", "QS306"),
        ("two words", "QS306"),
        ("qu\u00e9bec", "QS306"),
    ],
)
def test_troublesome_names(name, code):
    """A name that --qpu cannot select, or whose variables a shell drops, is a warning."""
    assert codes(check(one_resource(name=name))) == [code]


def test_unknown_types_are_errors_unless_qrmi_has_them():
    """A type that only the installed QRMI knows is accepted, with any variables."""
    document = with_variables("new-service", QRMI_NEW_SERVICE_URL="https://new.example.com")
    assert codes(check(document)) == ["QS302"]
    assert "iqm-server" in check(document)[0].hint
    assert check(document, ("IQMServer", "NewService")) == ()


def test_types_that_the_installed_qrmi_lacks():
    """A known type is a warning if the installed QRMI has neither it nor its successor."""
    assert codes(check(one_resource(), ("PasqalCloud",))) == ["QS308"]
    assert codes(check(one_resource(type="direct-access", environment={}), ("IBMQuantumSystem",))) == [
        "QS304",
        "QS403",
    ]


def test_misspelled_case_of_a_type():
    """A type that differs from QRMI's spelling only in case is a warning with the right spelling."""
    document = one_resource(type="IQM-Server")
    assert find(check(document), rules.TYPE_SPELLING).hint == "write iqm-server"


def test_old_names():
    """An old type or variable name is a note that gives the current name."""
    finding = find(check(one_resource(type="direct-access", environment={})), rules.DEPRECATED_TYPE)
    assert finding.hint.startswith("write ibm-quantum-system, and QRMI_IBM_QS_ instead of QRMI_IBM_DA_ ")
    document = with_variables("ibm-quantum-system", QRMI_IBM_DA_S3_ENDPOINT_FOR_DAAPI="https://s3.example.com")
    finding = find(check(document), rules.DEPRECATED_VARIABLE)
    assert finding.hint == "write QRMI_IBM_QS_S3_ENDPOINT_FOR_QSAPI"
    document = with_variables("pasqal-local", QRMI_URL="http://localhost:4207")
    assert codes(check(document)) == ["QS407"]


def test_an_empty_config_is_a_warning():
    """A config without resources is valid, but a warning."""
    assert codes(check({"resources": []})) == ["QS307"]


@pytest.mark.parametrize(
    ("license", "slurm", "hint"),
    [
        ({"garnet": "lanes"}, None, ""),
        ({"garnet": "lanes@there"}, {"license": None}, ""),
        ({"garnat": "lanes"}, None, "did you mean garnet?"),
        ({"x": "lanes"}, None, "name a resource of this file"),
        ({"garnet": "qpu_garnet"}, None, "use another license for the slots"),
        ({"garnet": "own"}, {"license": "own"}, "use another license for the slots"),
        ({"garnet": "qpu_garnet"}, {"license": None}, ""),
    ],
)
def test_the_licenses_of_slots_on_the_plugins_line(license, slurm, hint):
    """A resource that is not there would never have slots; the license that counts jobs cannot count slots too."""
    found = diagnose(one_resource(slurm=slurm), slots_licenses=license).findings
    assert [finding.hint for finding in found if finding.rule is rules.UNFIT_SLOTS_LICENSE] == ([hint] if hint else [])


@pytest.mark.parametrize(("slots", "count"), [({}, 1), ({"garnet": "lanes"}, 0)])
def test_a_capacity_that_follows_the_service_needs_a_license(slots, count):
    """Its own, or that of its slots."""
    document = one_resource(slurm={"license": None, "capacity": "auto"})
    found = diagnose(document, slots_licenses=slots).findings
    assert [finding.rule for finding in found] == [rules.UNCOUNTED_CAPACITY] * count
    assert check(one_resource(slurm={"capacity": "auto"})) == ()


@pytest.mark.parametrize("capacity", ["Auto", "", "1", "2147483648x", ["auto"], {}, None, 0, -1, 1.5])
def test_a_capacity_that_is_nonsense(capacity):
    [finding] = check(one_resource(slurm={"capacity": capacity}))
    assert finding.path == "resources[0].slurm.capacity"
    assert finding.rule.severity is rules.Severity.ERROR
