"""The schema agrees with the hooks' loader and with what the suite knows, and its violations become findings."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from configs import FIXTURES, check, one_resource
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from qrmi_slurm.config import config_file, resource_types
from qrmi_slurm.errors import ConfigError
from qrmi_slurm.validation import schema
from qrmi_slurm.validation.rules import Severity

SCHEMA = json.loads(schema.schema_text())


def test_the_schema_and_its_examples_are_valid():
    """The schema is valid JSON Schema 2020-12, and its own examples satisfy it."""
    Draft202012Validator.check_schema(SCHEMA)
    for example in SCHEMA["examples"]:
        assert schema.validator().is_valid(example)


@pytest.mark.parametrize("name", ["reference_example.json", "every_type.json"])
def test_examples_of_the_format_are_accepted(name):
    """The schema and the hooks' loader accept them, placeholders and empty environments included."""
    text = (FIXTURES / name).read_text()
    assert schema.validator().is_valid(json.loads(text))
    config_file.parse(text)


def test_editors_are_offered_every_known_type_and_variable():
    """The schema lists each type and variable that the suite knows, except variables that a config must not set."""
    assert set(SCHEMA["$defs"]["resource"]["properties"]["type"]["anyOf"][0]["enum"]) == set(resource_types.KNOWN)
    offered = set(SCHEMA["$defs"]["environment"]["properties"])
    known = {variable for known in resource_types.KNOWN.values() for variable in known.variables}
    assert offered == {variable for variable in known if not resource_types.is_ours_alone(variable)}


def test_secret_variables_are_write_only():
    """A variable is write-only in the schema if and only if the suite masks it."""
    for variable, described in SCHEMA["$defs"]["environment"]["properties"].items():
        assert described.get("writeOnly", False) == resource_types.is_secret(variable), variable


@pytest.mark.parametrize("place", ["schema", "qrmi_slurm"])
def test_the_schema_is_found_in_a_checkout_and_in_a_wheel(tmp_path, place):
    """It is beside the package in a checkout, and inside the package when installed from a wheel."""
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
        resources = config_file.parse(json.dumps(document)).resources
    except ConfigError:
        return False
    # No schema can say that a name is there twice.
    faults = [resource.slurm.fault for resource in resources.values()]
    return not any(fault and "the name of another" not in fault for fault in faults)


@given(CONFIGS)
@settings(max_examples=400, deadline=None)
def test_the_loader_and_the_schema_agree(document):
    """The hooks' loader refuses a document, or a resource in it, if and only if the schema rejects it."""
    assert _loads(document) == schema.validator().is_valid(document)


@given(RESOURCES, TEXTS, TEXTS)
@settings(max_examples=200, deadline=None)
def test_the_loader_and_the_schema_agree_on_strings(resource, name, value):
    """In an otherwise sound resource, both or neither reject a string."""
    for changed in ({"name": name}, {"type": name}, {"environment": {name: "x"}}, {"environment": {"X": value}}):
        document = {"resources": [{"name": "a", "type": "b", "environment": {}, **changed}]}
        assert _loads(document) == schema.validator().is_valid(document)


@pytest.mark.parametrize(
    ("document", "code", "path", "message"),
    [
        ([], "QS201", "$", "expected an object {...}, found a list"),
        ({}, "QS202", "$", 'the key "resources" is missing'),
        ({"resources": {}}, "QS201", "resources", "expected a list [...], found an object"),
        ({"resources": ["a"]}, "QS201", "resources[0]", "expected an object {...}, found a string"),
        (one_resource(name=None), "QS202", "resources[0]", 'the key "name" is missing'),
        (one_resource(type=None), "QS202", "resources[0]", 'the key "type" is missing'),
        (one_resource(environment=None), "QS202", "resources[0]", 'the key "environment" is missing'),
        (one_resource(name=""), "QS204", "resources[0].name", None),
        (one_resource(name="a=b"), "QS204", "resources[0].name", None),
        (one_resource(name="a\n"), "QS204", "resources[0].name", None),
        (one_resource(name=7), "QS201", "resources[0].name", "expected a string, found a number"),
        (one_resource(type=""), "QS207", "resources[0].type", None),
        (one_resource(type=7), "QS201", "resources[0].type", "expected a string, found a number"),
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
            "expected true or false, found a string",
        ),
        (
            one_resource(slurm={"alow": {"users": ["a"]}}),
            "QS211",
            "resources[0].slurm.alow",
            'unknown key "alow" in "slurm"',
        ),
        (one_resource(slurm={"licence": "a"}), "QS211", "resources[0].slurm.licence", None),
        (one_resource(slurm={"of_a_newer_version": 1}), "QS211", "resources[0].slurm.of_a_newer_version", None),
        (one_resource(slurm={"allow\n": {}}), "QS211", None, None),
        (one_resource(slurm={"allow": []}), "QS201", "resources[0].slurm.allow", None),
        (
            one_resource(slurm={"allow": {"user": ["a"]}}),
            "QS209",
            "resources[0].slurm.allow.user",
            'unknown access rule "user"',
        ),
        (one_resource(slurm={"allow": {"users": "a"}}), "QS201", "resources[0].slurm.allow.users", None),
        (one_resource(slurm={"allow": {"users": [""]}}), "QS209", "resources[0].slurm.allow.users[0]", None),
        (one_resource(environment=[]), "QS201", "resources[0].environment", None),
    ],
)
def test_violations_of_the_format(document, code, path, message):
    """Each is reported as exactly one error, at its place in the JSON."""
    (finding,) = [f for f in check(document) if f.rule.severity is Severity.ERROR]
    assert finding.rule.code == code
    assert path in (None, finding.path)
    assert message is None or finding.message == message
