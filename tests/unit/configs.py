"""Configs for the tests of validation, and their findings."""

import json
import tempfile
from pathlib import Path
from types import MappingProxyType

from qrmi_slurm.validation import validate

FIXTURES = Path(__file__).parents[1] / "fixtures" / "config"
SECRET = "planted-secret"


def diagnose(document, members=(), slots_licenses=MappingProxyType({})):
    """Return the diagnosis of a config given as a Python value or as text."""
    text = document if isinstance(document, str) else json.dumps(document)
    with tempfile.NamedTemporaryFile() as file:  # mode 0600
        file.write(text.encode())
        file.flush()
        return validate.validate_file(Path(file.name), members, slots_licenses)


def check(document, members=()):
    """Return the findings about a config given as a Python value or as text."""
    return diagnose(document, members).findings


def one_resource(**changes):
    """Return a valid config with one resource, after some changes to it; None removes a key."""
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
