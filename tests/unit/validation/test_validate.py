import io
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from qrmi_slurm.calls import installed
from qrmi_slurm.command import validate_config
from qrmi_slurm.config import config_file, resource_types
from qrmi_slurm.errors import ConfigError
from qrmi_slurm.validation import rules, schema, validate
from qrmi_slurm.validation.json_text import Position
from qrmi_slurm.validation.rules import Severity

FIXTURES = Path(__file__).parents[2] / "fixtures" / "config"
SCHEMA = json.loads(schema.schema_text())
SECRET = "planted-secret"


def check(document, members=()):
    """Return the findings about a config that is given as a Python value or as text."""
    text = document if isinstance(document, str) else json.dumps(document)
    return validate.validate_text(text, "qrmi_config.json", members).findings


def one_resource(**changes):
    """Return a config without faults, but for the changes to its one resource; None removes a key."""
    resource = {
        "name": "garnet",
        "type": "iqm-server",
        "environment": {
            "QRMI_IQM_ISA_ENDPOINT": "https://iqm.example.com",
            "QRMI_IQM_ISA_TOKEN": SECRET,
        },
    }
    resource.update(changes)
    return {"resources": [{key: value for key, value in resource.items() if value is not None}]}


def with_variables(type_name, **environment):
    return one_resource(type=type_name, environment=environment)


def codes(findings):
    return [finding.rule.code for finding in findings]


def find(findings, rule):
    (finding,) = [finding for finding in findings if finding.rule is rule]
    return finding


# --- the schema ---------------------------------------------------------------------------------------------


def test_the_schema_is_a_schema():
    """The schema is valid JSON Schema 2020-12, and its own examples validate against it."""
    Draft202012Validator.check_schema(SCHEMA)
    for example in SCHEMA["examples"]:
        assert schema.validator().is_valid(example)


@pytest.mark.parametrize("name", ["reference_example.json", "every_type.json"])
def test_the_schema_accepts_the_formats_examples(name):
    """The schema and the hooks' loader accept the format's examples, placeholders and empty environments too."""
    text = (FIXTURES / name).read_text()
    assert schema.validator().is_valid(json.loads(text))
    config_file.parse(text)


def test_editors_are_offered_every_known_type_and_variable():
    """The schema names each type and each variable that the suite knows, but for those a config must not hold."""
    assert set(SCHEMA["$defs"]["resource"]["properties"]["type"]["anyOf"][0]["enum"]) == set(resource_types.KNOWN)
    offered = set(SCHEMA["$defs"]["environment"]["properties"])
    known = {variable for known in resource_types.KNOWN.values() for variable in known.variables}
    assert offered == {variable for variable in known if not resource_types.is_ours_alone(variable)}


def test_the_schema_says_which_variables_are_secret():
    """A variable is write-only in the schema where the suite masks it."""
    for variable, described in SCHEMA["$defs"]["environment"]["properties"].items():
        assert described.get("writeOnly", False) == resource_types.is_secret(variable), variable


@pytest.mark.parametrize("place", ["schema", "qrmi_slurm"])
def test_the_schema_is_found_in_a_tree_and_in_a_wheel(tmp_path, place):
    """The schema is found beside the package in a checkout, and inside it where a wheel was installed."""
    package = Path(schema.__file__).parents[1]
    shutil.copytree(package, tmp_path / "qrmi_slurm", ignore=shutil.ignore_patterns("__pycache__", "*.json"))
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / place / schema.SCHEMA_FILE).write_text('{"title": "planted"}')
    code = "from qrmi_slurm.validation import schema; print(schema.schema_text())"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={}, capture_output=True, timeout=30, check=True
    )
    assert json.loads(result.stdout) == {"title": "planted"}


JSON_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3)
TEXTS = st.text(alphabet="aZ_09 ,=-\t\n\r\0\x7f\x85\u2028\u00e4", max_size=4)
ENVIRONMENTS = st.dictionaries(TEXTS, TEXTS | JSON_SCALARS, max_size=2) | JSON_SCALARS | st.lists(TEXTS, max_size=1)
ALLOW = st.dictionaries(
    st.sampled_from(["users", "groups", "accounts", "partitions", "qos", "user", ""]),
    st.lists(TEXTS | JSON_SCALARS, max_size=2) | JSON_SCALARS,
    max_size=2,
)
PATHS = st.sampled_from(["/a", "/", "a", "", "/a b", "/a\n"])
SOURCES = st.dictionaries(
    st.sampled_from(["file", "command", "other"]),
    PATHS | JSON_SCALARS | st.lists(PATHS | JSON_SCALARS, max_size=2),
    max_size=2,
)
SECRETS = st.dictionaries(TEXTS, SOURCES | JSON_SCALARS, max_size=1)
SLURM = st.fixed_dictionaries(
    {},
    optional={
        "license": TEXTS | JSON_SCALARS,
        "capacity": JSON_SCALARS,
        "allow": ALLOW | JSON_SCALARS,
        "secrets": SECRETS | JSON_SCALARS,
        "broker": JSON_SCALARS,
        "other": JSON_SCALARS,
    },
)
RESOURCES = st.fixed_dictionaries(
    {},
    optional={
        "name": TEXTS | st.just("a") | JSON_SCALARS,
        "type": TEXTS | st.just("iqm-server") | JSON_SCALARS,
        "environment": ENVIRONMENTS,
        "is_dynamic": JSON_SCALARS,
        "slurm": st.just({}) | SLURM | JSON_SCALARS,
        "other": JSON_SCALARS,
    },
)
CONFIGS = (
    st.fixed_dictionaries({"resources": st.lists(RESOURCES | JSON_SCALARS, max_size=2) | JSON_SCALARS})
    | st.dictionaries(TEXTS, JSON_SCALARS, max_size=1)
    | JSON_SCALARS
)


def _loads(document):
    try:
        config_file.parse(json.dumps(document))
    except ConfigError:
        return False
    return True


@given(CONFIGS)
@settings(max_examples=400, deadline=None)
def test_the_loader_and_the_schema_agree(document):
    """The hooks' loader refuses what the schema refuses, and nothing else."""
    assert _loads(document) == schema.validator().is_valid(document)


@given(RESOURCES, TEXTS, TEXTS)
@settings(max_examples=200, deadline=None)
def test_the_loader_and_the_schema_agree_on_texts(resource, name, value):
    """In an otherwise sound resource, a text is refused by both or by neither."""
    for changed in ({"name": name}, {"type": name}, {"environment": {name: "x"}}, {"environment": {"X": value}}):
        document = {"resources": [{"name": "a", "type": "b", "environment": {}, **changed}]}
        assert _loads(document) == schema.validator().is_valid(document)


# --- secrets ------------------------------------------------------------------------------------------------


def _shown(text):
    result = validate.validate_text(text, "qrmi_config.json")
    stream = io.StringIO()
    validate_config.print_text(result, stream, strict=False)
    validate_config.print_json(result, stream, strict=False)
    return stream.getvalue()


@pytest.mark.parametrize("name", sorted(path.name for path in FIXTURES.glob("*.json")))
def test_no_secret_of_a_fixture_is_shown(name):
    """Whatever is wrong with a config, its secrets stand in no output."""
    assert SECRET not in _shown((FIXTURES / name).read_text())


SOUND = json.dumps(one_resource(), indent=1)


@given(
    st.integers(0, len(SOUND)),
    st.integers(0, 12),
    st.text(alphabet="{}[]\":,\\/*'# \nxTrue0-\t", max_size=4),
)
@settings(max_examples=600, deadline=None)
def test_no_secret_is_shown_from_a_damaged_config(place, removed, inserted):
    """However a config was damaged at one place, no part of its secret stands in any output."""
    text = SOUND[:place] + inserted + SOUND[place + removed :]
    shown = _shown(text)
    for part in ("planted", "lanted-s", "nted-se", "-secret", "ed-secr"):
        assert part not in shown


def test_jsonschema_reports_hold_no_value():
    """A value that the schema refuses is not quoted."""
    broken = one_resource(environment={"QRMI_IQM_ISA_TOKEN": [SECRET], "X": {"y": SECRET}, "Y": f"{SECRET}\n"})
    assert SECRET not in _shown(json.dumps(broken))


# --- what is found ------------------------------------------------------------------------------------------


def test_sound_configs_have_no_findings():
    """A config of every type, all variables set, has not one finding."""
    text = (FIXTURES / "every_type.json").read_text()
    assert check(text) == ()


def test_the_installed_qrmi_knows_every_current_type():
    """The installed QRMI has each type that the suite calls current."""
    assert check((FIXTURES / "every_type.json").read_text(), installed.known_members()) == ()


def test_every_fault_is_reported_at_once():
    """One run reports syntax, schema and logic, each fault at its line and column, in the order of the text."""
    result = validate.validate_text((FIXTURES / "many_faults.json").read_text(), "f")
    places = [(finding.rule.code, finding.position.line, finding.position.column) for finding in result.findings]
    assert places == [
        ("QS302", 5, 15),
        ("QS301", 9, 15),
        ("QS304", 10, 15),
        ("QS203", 11, 7),
        ("QS501", 13, 34),
        ("QS502", 14, 38),
        ("QS102", 16, 9),
        ("QS405", 17, 37),
        ("QS201", 18, 41),
        ("QS401", 19, 9),
        ("QS306", 23, 15),
        ("QS404", 25, 22),
        ("QS206", 25, 58),
        ("QS402", 25, 80),
        ("QS201", 26, 21),
        ("QS203", 27, 17),
        ("QS208", 27, 45),
        ("QS101", 28, 6),
    ]
    assert result.resources == 3
    assert not result.is_valid()


def test_every_finding_says_what_to_do():
    """Each finding names its place in the JSON, and nearly each has a hint."""
    for finding in check((FIXTURES / "many_faults.json").read_text()):
        assert finding.path
        assert finding.message
        assert finding.hint or finding.rule is rules.OUT_OF_RANGE


def test_broken_syntax_shows_the_line_and_a_caret():
    """Each syntax error carries its masked line, and reading ends where a quote is missing."""
    findings = check((FIXTURES / "broken_syntax.json").read_text())
    assert codes(findings) == ["QS101"] * 5
    assert [finding.position.line for finding in findings] == [2, 4, 4, 6, 7]
    last = findings[-1]
    assert last.excerpt == '"QRMI_IQM_ISA_TOKEN": ***,'
    assert last.excerpt[last.caret :] == "***,"


@pytest.mark.parametrize(
    ("document", "code", "path", "message"),
    [
        ([], "QS201", "$", "an object {...} is expected, found a list"),
        ({}, "QS202", "$", 'the key "resources" is missing'),
        ({"resources": {}}, "QS201", "resources", "a list [...] is expected, found an object"),
        ({"resources": ["a"]}, "QS201", "resources[0]", "an object {...} is expected, found a string"),
        (one_resource(name=None), "QS202", "resources[0]", 'the key "name" is missing'),
        (one_resource(type=None), "QS202", "resources[0]", 'the key "type" is missing'),
        (one_resource(environment=None), "QS202", "resources[0]", 'the key "environment" is missing'),
        (one_resource(name=""), "QS204", "resources[0].name", None),
        (one_resource(name="a=b"), "QS204", "resources[0].name", None),
        (one_resource(name="a\n"), "QS204", "resources[0].name", None),
        (one_resource(name=7), "QS201", "resources[0].name", "a string is expected, found a number"),
        (one_resource(type=""), "QS207", "resources[0].type", None),
        (one_resource(type=7), "QS201", "resources[0].type", "a string is expected, found a number"),
        (one_resource(type="iqm-sever"), "QS302", "resources[0].type", "the type iqm-sever is unknown"),
        (one_resource(is_dynamic="yes"), "QS201", "resources[0].is_dynamic", None),
        (one_resource(slurm=[]), "QS201", "resources[0].slurm", None),
        (one_resource(slurm={"capacity": 0}), "QS208", "resources[0].slurm.capacity", None),
        (one_resource(slurm={"capacity": True}), "QS201", "resources[0].slurm.capacity", None),
        (one_resource(slurm={"license": "a:2"}), "QS208", "resources[0].slurm.license", None),
        (one_resource(slurm={"license": 2}), "QS201", "resources[0].slurm.license", None),
        (
            one_resource(slurm={"broker": "yes"}),
            "QS201",
            "resources[0].slurm.broker",
            "true or false is expected, found a string",
        ),
        (one_resource(slurm={"allow": []}), "QS201", "resources[0].slurm.allow", None),
        (
            one_resource(slurm={"allow": {"user": ["a"]}}),
            "QS209",
            "resources[0].slurm.allow.user",
            'there is no access rule "user"',
        ),
        (one_resource(slurm={"allow": {"users": "a"}}), "QS201", "resources[0].slurm.allow.users", None),
        (one_resource(slurm={"allow": {"users": [""]}}), "QS209", "resources[0].slurm.allow.users[0]", None),
        (one_resource(environment=[]), "QS201", "resources[0].environment", None),
    ],
)
def test_errors_of_form(document, code, path, message):
    """What the format does not allow is one error, at its place."""
    (finding,) = [f for f in check(document) if f.rule.severity is Severity.ERROR]
    assert (finding.rule.code, finding.path) == (code, path)
    assert message is None or finding.message == message


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
def test_values_that_cannot_be_meant(value, code):
    """A value of another kind, of several lines, empty, or still a placeholder is found."""
    document = with_variables("iqm-server", QRMI_IQM_ISA_ENDPOINT="https://a.example", QRMI_IQM_ISA_TOKEN=value)
    assert codes(check(document)) == [code]


@pytest.mark.parametrize(
    ("document", "near"),
    [
        ({"resources": [], "resource": []}, "resources"),
        (one_resource(enviroment={}), "environment"),
        (one_resource(isDynamic=True), "is_dynamic"),
        (one_resource(slurm={"licence": "a"}), "license"),
    ],
)
def test_keys_that_nobody_reads(document, near):
    """An unknown key is a warning that proposes the key that was meant."""
    finding = find(check(document), rules.UNKNOWN_KEY)
    assert finding.hint == f'did you mean "{near}"?'


@pytest.mark.parametrize("key", ["_comment", "//", "$comment", "x-owner"])
def test_keys_that_say_that_nobody_reads_them(key):
    """A key that is a comment by its own name is left alone."""
    assert check(one_resource(**{key: "of the laboratory"})) == ()


def test_duplicate_names_name_the_first():
    """The second of two resources with one name is an error that tells the line of the first."""
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
def test_names_that_make_trouble(name, code):
    """A name that --qpu cannot carry, or that a shell drops from the environment, is a warning."""
    assert codes(check(one_resource(name=name))) == [code]


def test_unknown_types_are_errors_unless_qrmi_has_them():
    """A type that only the installed QRMI knows is accepted, with any variables."""
    document = with_variables("new-service", QRMI_NEW_SERVICE_URL="https://new.example.com")
    assert codes(check(document)) == ["QS302"]
    assert "iqm-server" in check(document)[0].hint
    assert check(document, ("IQMServer", "NewService")) == ()


def test_types_that_the_installed_qrmi_lacks():
    """A known type is a warning where the installed QRMI has neither it nor its successor."""
    assert codes(check(one_resource(), ("PasqalCloud",))) == ["QS308"]
    assert codes(check(one_resource(type="direct-access", environment={}), ("IBMQuantumSystem",))) == [
        "QS304",
        "QS403",
    ]


def test_types_in_other_letters():
    """A type in other letters than QRMI's is a warning with the right spelling."""
    document = one_resource(type="IQM-Server")
    assert find(check(document), rules.TYPE_SPELLING).hint == "write iqm-server"


def test_older_names_are_notes_with_their_successors():
    """An older type or variable is a note that says the present name."""
    finding = find(check(one_resource(type="direct-access", environment={})), rules.DEPRECATED_TYPE)
    assert finding.hint.startswith("write ibm-quantum-system, and QRMI_IBM_QS_ instead of QRMI_IBM_DA_")
    document = with_variables("ibm-quantum-system", QRMI_IBM_DA_S3_ENDPOINT_FOR_DAAPI="https://s3.example.com")
    finding = find(check(document), rules.DEPRECATED_VARIABLE)
    assert finding.hint == "write QRMI_IBM_QS_S3_ENDPOINT_FOR_QSAPI"
    document = with_variables("pasqal-local", QRMI_URL="http://localhost:4207")
    assert codes(check(document)) == ["QS407"]


@pytest.mark.parametrize(
    ("variable", "code", "hint"),
    [
        ("QRMI_IQM_ISA_TOKN", "QS401", "did you mean QRMI_IQM_ISA_TOKEN?"),
        ("http_proxy", "QS401", "for a proxy, write --env:http_proxy=URL on the plugin's line in plugstack.conf"),
        ("SOMETHING", "QS401", "its variables begin with QRMI_IQM_ISA_"),
        ("QRMI_IBM_QS_ENDPOINT", "QS402", "write QRMI_IQM_ISA_ENDPOINT"),
        ("QRMI_WARDEN_URL", "QS402", "remove it, or change the type"),
        ("QRMI_JOB_ACQUISITION_TOKEN", "QS408", None),
        ("QRMI_IBM_QCS_SESSION_ID", "QS408", None),
        ("garnet_QRMI_IQM_ISA_TOKEN", "QS409", "write QRMI_IQM_ISA_TOKEN"),
    ],
)
def test_variables_that_do_nothing_here(variable, code, hint):
    """A variable that this type does not read is a warning on its name, with what to do."""
    environment = one_resource()["resources"][0]["environment"]
    (finding,) = check(one_resource(environment={**environment, variable: "https://a.example"}))
    assert finding.rule.code == code
    assert finding.rule.severity is Severity.WARNING
    assert hint is None or finding.hint == hint


def test_a_variable_in_its_own_schema_place():
    """A finding about a variable's name points at the name, one about its value at the value."""
    text = '{"resources": [{"name": "g", "type": "iqm-server", "environment": {\n"=": "x",\n"Y": ""}}]}'
    findings = check(text)
    assert find(findings, rules.BAD_VARIABLE_NAME).position == Position(2, 1)
    assert find(findings, rules.EMPTY_VALUE).position == Position(3, 6)


@pytest.mark.parametrize("type_name", [name for name in resource_types.KNOWN if name != "oqtopus"])
def test_users_may_bring_everything(type_name):
    """An empty environment is right: a note says what each job has to bring."""
    findings = check(one_resource(name="FRESNEL", type=type_name, environment={}))
    assert find(findings, rules.USERS_BRING).message.startswith("every job has to bring QRMI_")
    assert {finding.rule.severity for finding in findings} == {Severity.NOTE}


def test_users_may_bring_their_keys():
    """With endpoints and without secrets a note says which secrets a job has to bring."""
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
def test_halves_that_are_of_no_use(document, lacking):
    """A variable that works only with others is a warning that names what is missing."""
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
    """A value that QRMI would refuse, or silently replace by its default, is an error."""
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
    """An endpoint is a URL, encrypted beyond this machine, and without a password in it."""
    document = with_variables("iqm-server", QRMI_IQM_ISA_ENDPOINT=url, QRMI_IQM_ISA_TOKEN=SECRET)
    assert codes(check(document)) == expected


def test_an_empty_config_is_a_warning():
    """A config without resources is of the right form, and a warning."""
    assert codes(check({"resources": []})) == ["QS307"]


def test_control_characters_do_not_reach_the_terminal():
    """Names and keys with control characters are shown escaped."""
    for finding in check({"\x1b[31m": 1, "resources": [{"name": "\x1b[2J", "\u2028": 1, "type": "\x07"}]}):
        assert re.search("[\x00-\x1f\x7f-\x9f\u2028]", f"{finding.message}{finding.path}{finding.resource}") is None


def test_codes_are_unique():
    """No code stands for two rules, and each has its severity."""
    assert len({rule.code for rule in rules.RULES}) == len(rules.RULES)
    assert all(re.fullmatch(r"QS[1-5][0-9]{2}", rule.code) for rule in rules.RULES)


# --- the file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "expected"),
    [(0o600, []), (0o400, []), (0o640, ["QS110"]), (0o644, ["QS110"]), (0o666, ["QS110", "QS111"])],
)
def test_who_may_read_and_write(tmp_path, mode, expected):
    """A file with secrets that others can read, and any file that others can write, is a warning."""
    path = tmp_path / "qrmi_config.json"
    path.write_text(json.dumps(one_resource()))
    path.chmod(mode)
    assert codes(validate.validate_file(path).findings) == expected


def test_a_file_without_secrets_may_be_read(tmp_path):
    """A file whose secrets are placeholders, as in a repository, may be readable by all."""
    path = tmp_path / "qrmi_config.json"
    path.write_text((FIXTURES / "reference_example.json").read_text())
    path.chmod(0o644)
    assert "QS110" not in codes(validate.validate_file(path).findings)


def test_text_that_is_not_utf8(tmp_path):
    """Bytes that are not UTF-8 are an error at their place."""
    path = tmp_path / "qrmi_config.json"
    path.write_bytes(b'{\n"resources": "\xe9"}')
    (finding,) = validate.validate_file(path).findings
    assert (finding.rule.code, finding.position) == ("QS103", Position(2, 15))


def test_a_file_that_the_hooks_would_not_read(tmp_path, monkeypatch):
    """A file that is too large for the hooks is an error."""
    monkeypatch.setattr(validate, "MAX_CONFIG_BYTES", 10)
    path = tmp_path / "qrmi_config.json"
    path.write_text(json.dumps(one_resource()))
    assert codes(validate.validate_file(path).findings) == ["QS104"]


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()])
def test_a_file_that_cannot_be_read(tmp_path, make):
    """A file that is missing, or none, is not a finding but an error of its own."""
    path = tmp_path / "qrmi_config.json"
    make(path)
    with pytest.raises(ConfigError, match=r"cannot read .*qrmi_config\.json: "):
        validate.validate_file(path)


def test_ten_thousand_resources_take_seconds():
    """The time grows with the number of resources, not with its square."""
    resource = one_resource()["resources"][0]
    document = {"resources": [{**resource, "name": f"q{number}"} for number in range(3000)]}
    text = json.dumps(document, indent=2)
    started_s = time.process_time()
    assert validate.validate_text(text, "f").findings == ()
    assert time.process_time() - started_s < 5
