"""Variables that QRMI does not read or cannot use are found."""

import pytest
from configs import SECRET, check, codes, find, one_resource, with_variables

from qrmi_slurm.config import resource_types
from qrmi_slurm.validation import rules
from qrmi_slurm.validation.json_text import Position
from qrmi_slurm.validation.rules import Severity


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (7, "QS201"),
        (None, "QS201"),
        ("a\nb", "QS206"),
        ("a\n", "QS206"),
        ("a\0", "QS206"),
        ("\x85", "QS206"),
        ("", "QS406"),
        ("  ", "QS406"),
        ("<YOUR TOKEN>", "QS405"),
        ("$IQM_TOKEN", "QS405"),
        ("${IQM_TOKEN}", "QS405"),
        ("{{ iqm_token }}", "QS405"),
        (" a", "QS411"),
    ],
)
def test_values_that_are_certainly_wrong(value, code):
    """A value of the wrong type, with several lines, empty, or still a placeholder is reported."""
    document = with_variables("iqm-server", QRMI_IQM_ISA_ENDPOINT="https://a.example", QRMI_IQM_ISA_TOKEN=value)
    assert codes(check(document)) == [code]


@pytest.mark.parametrize(
    ("variable", "code", "hint"),
    [
        ("QRMI_IQM_ISA_TOKN", "QS401", "did you mean QRMI_IQM_ISA_TOKEN?"),
        ("http_proxy", "QS401", "for a proxy, add --env:http_proxy=URL to the plugin's line in plugstack.conf"),
        ("SOMETHING", "QS401", "the variables of this type begin with QRMI_IQM_ISA_"),
        ("QRMI_IBM_QS_ENDPOINT", "QS402", "write QRMI_IQM_ISA_ENDPOINT"),
        ("QRMI_WARDEN_URL", "QS402", "remove it, or change the type"),
        ("QRMI_JOB_ACQUISITION_TOKEN", "QS408", None),
        ("QRMI_IBM_QCS_SESSION_ID", "QS408", None),
        ("garnet_QRMI_IQM_ISA_TOKEN", "QS409", "write QRMI_IQM_ISA_TOKEN"),
    ],
)
def test_variables_without_effect(variable, code, hint):
    """A variable that this type does not read is a warning that says what to do."""
    environment = one_resource()["resources"][0]["environment"]
    (finding,) = check(one_resource(environment={**environment, variable: "https://a.example"}))
    assert finding.rule.code == code
    assert finding.rule.severity is Severity.WARNING
    assert hint is None or finding.hint == hint


def test_findings_point_at_the_name_or_at_the_value():
    """A finding about a variable's name points at the name; one about its value, at the value."""
    text = '{"resources": [{"name": "g", "type": "iqm-server", "environment": {\n"=": "x",\n"Y": ""}}]}'
    findings = check(text)
    assert find(findings, rules.BAD_VARIABLE_NAME).position == Position(2, 1)
    assert find(findings, rules.EMPTY_VALUE).position == Position(3, 6)


@pytest.mark.parametrize("type_name", [name for name in resource_types.KNOWN if name != "oqtopus"])
def test_users_may_bring_all_variables(type_name):
    """An empty environment is valid; a note lists what each job has to bring."""
    findings = check(one_resource(name="FRESNEL", type=type_name, environment={}))
    assert find(findings, rules.USERS_BRING).message.startswith("every job has to bring QRMI_")
    assert {finding.rule.severity for finding in findings} == {Severity.NOTE}


def test_users_may_bring_only_their_keys():
    """With endpoints but no secrets, a note lists the secrets that a job has to bring."""
    document = with_variables("iqm-server", QRMI_IQM_ISA_ENDPOINT="https://iqm.example.com")
    (finding,) = check(document)
    assert finding.rule is rules.USERS_BRING
    assert finding.message == "every job has to bring QRMI_IQM_ISA_TOKEN"


@pytest.mark.parametrize(
    ("document", "lacking"),
    [
        (with_variables("iqm-server", QRMI_IQM_ISA_TOKEN=SECRET), "QRMI_IQM_ISA_ENDPOINT"),
        (with_variables("pasqal-cloud", QRMI_PASQAL_CLOUD_CLIENT_ID="x"), "QRMI_PASQAL_CLOUD_CLIENT_SECRET"),
        (with_variables("ibm-quantum-system", QRMI_IBM_QS_S3_BUCKET="x"), "QRMI_IBM_QS_S3_REGION"),
        (with_variables("direct-access", QRMI_IBM_DA_S3_BUCKET="x"), "QRMI_IBM_DA_S3_REGION"),
    ],
)
def test_incomplete_sets_of_variables(document, lacking):
    """A variable that only works together with others is a warning that names the missing ones."""
    assert lacking in find(check(document), rules.INCOMPLETE).message


@pytest.mark.parametrize(
    ("variable", "value", "fits"),
    [
        ("QRMI_IBM_QCS_SESSION_MODE", "batch", True),
        ("QRMI_IBM_QCS_SESSION_MODE", "Batch", False),
        ("QRMI_IBM_QCS_SESSION_MAX_TTL", "28800", True),
        ("QRMI_IBM_QCS_SESSION_MAX_TTL", "8h", False),
        ("QRMI_IBM_QCS_SESSION_MAX_TTL", "2147483648", False),
        ("QRMI_IBM_QCS_TIMEOUT_SECONDS", "0", False),
        ("QRMI_IBM_QCS_IAM_APIKEY", "crn:v1:x", False),
        ("QRMI_AB_FELIS_API_KEY", "dXNlcjpwYXNz", True),
        ("QRMI_AB_FELIS_API_KEY", "user:pass", False),
    ],
)
def test_values_that_qrmi_cannot_use(variable, value, fits):
    """A value that QRMI would refuse, or silently replace with its default, is an error."""
    type_name = "alice-bob-felis" if "FELIS" in variable else "ibm-quantum-compute-service"
    found = "QS410" in codes(check(with_variables(type_name, **{variable: value})))
    assert found is not fits


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://iqm.example.com", []),
        ("https://iqm.example.com:8443/api", []),
        ("http://127.0.0.1:8000", []),
        ("http://[::1]:8000", []),
        ("http://localhost:8000", []),
        ("http://10.0.0.1", ["QS502"]),
        ("http://iqm.example.com", ["QS502"]),
        ("https://user:word@iqm.example.com", ["QS503"]),
        ("iqm.example.com", ["QS501"]),
        ("https://", ["QS501"]),
        ("https:/iqm.example.com", ["QS501"]),
        ("ftp://iqm.example.com", ["QS501"]),
        ("https://iqm.example.com:port", ["QS501"]),
        ("https://iqm example.com", ["QS501"]),
        ("https://[::1", ["QS501"]),
    ],
)
def test_endpoints(url, expected):
    """An endpoint has to be a URL; plain http to another machine and credentials in it are warnings."""
    document = with_variables("iqm-server", QRMI_IQM_ISA_ENDPOINT=url, QRMI_IQM_ISA_TOKEN=SECRET)
    assert codes(check(document)) == expected
