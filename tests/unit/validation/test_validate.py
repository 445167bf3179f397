"""Checking a whole config: all findings in one run, none showing a secret; the file's encoding, size and mode."""

import io
import json
import os
import re
import time

import pytest
from configs import FIXTURES, SECRET, check, codes, diagnose, one_resource
from hypothesis import given, settings
from hypothesis import strategies as st

from qrmi_slurm.calls import installed
from qrmi_slurm.command import validate_config
from qrmi_slurm.config import config_file
from qrmi_slurm.errors import ConfigError
from qrmi_slurm.validation import rules, validate
from qrmi_slurm.validation.json_text import Position

# --- secrets ------------------------------------------------------------------------------------------------


def _shown(text):
    """Return all output about a config, as text and as JSON."""
    result = diagnose(text)
    stream = io.StringIO()
    validate_config.print_text(result, stream, strict=False)
    validate_config.print_json(result, stream, strict=False)
    return stream.getvalue()


@pytest.mark.parametrize("name", sorted(path.name for path in FIXTURES.glob("*.json")))
def test_no_secret_of_a_fixture_is_shown(name):
    """Whatever is wrong with a config, its secrets do not appear in any output."""
    assert SECRET not in _shown((FIXTURES / name).read_text())


SOUND = json.dumps(one_resource(), indent=1)


@given(
    st.integers(0, len(SOUND)),
    st.integers(0, 12),
    st.text(alphabet="{}[]\":,\\/*'# \nxTrue0-\t", max_size=4),
)
@settings(max_examples=600, deadline=None)
def test_no_secret_is_shown_from_a_damaged_config(place, removed, inserted):
    """However a config is damaged in one place, no part of its secret appears in any output."""
    text = SOUND[:place] + inserted + SOUND[place + removed :]
    shown = _shown(text)
    for part in ("planted", "lanted-s", "nted-se", "-secret", "ed-secr"):
        assert part not in shown


def test_rejected_values_are_not_shown():
    """A value that the schema rejects is not quoted."""
    broken = one_resource(environment={"QRMI_IQM_ISA_TOKEN": [SECRET], "X": {"y": SECRET}, "Y": f"{SECRET}\n"})
    assert SECRET not in _shown(json.dumps(broken))


# --- all findings at once -----------------------------------------------------------------------------------


def test_a_sound_config_has_no_findings():
    """A config with every type and all variables set has no findings."""
    text = (FIXTURES / "every_type.json").read_text()
    assert check(text) == ()


def test_the_installed_qrmi_knows_every_current_type():
    """The installed QRMI knows every type that the suite considers current."""
    assert check((FIXTURES / "every_type.json").read_text(), installed.known_members()) == ()


def test_every_fault_is_reported_at_once():
    """One run reports faults of syntax, schema and logic with line and column, in the order of the text."""
    result = diagnose((FIXTURES / "many_faults.json").read_text())
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
        ("QS211", 27, 17),
        ("QS208", 27, 45),
        ("QS101", 28, 6),
    ]
    assert result.resources == 3
    assert not result.is_valid()


def test_every_finding_says_what_to_do():
    """Each finding has its place in the JSON, and all but one kind have a hint."""
    for finding in check((FIXTURES / "many_faults.json").read_text()):
        assert finding.path
        assert finding.message
        assert finding.hint or finding.rule is rules.OUT_OF_RANGE


def test_broken_syntax_shows_the_line_and_a_caret():
    """Each syntax error shows its masked line, and reading stops at a missing quote."""
    findings = check((FIXTURES / "broken_syntax.json").read_text())
    assert codes(findings) == ["QS101"] * 5
    assert [finding.position.line for finding in findings] == [2, 4, 4, 6, 7]
    last = findings[-1]
    assert last.excerpt == '"QRMI_IQM_ISA_TOKEN": ***,'
    assert last.excerpt[last.caret :] == "***,"


def test_control_characters_are_escaped():
    """Control characters in names and keys do not reach the terminal."""
    for finding in check({"\x1b[31m": 1, "resources": [{"name": "\x1b[2J", "\u2028": 1, "type": "\x07"}]}):
        assert re.search("[\x00-\x1f\x7f-\x9f\u2028]", f"{finding.message}{finding.path}{finding.resource}") is None


# --- the file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "expected"),
    [(0o600, []), (0o400, []), (0o640, ["QS110"]), (0o644, ["QS110"]), (0o666, ["QS110", "QS111"])],
)
def test_modes_of_the_file(tmp_path, mode, expected):
    """A file with secrets that others can read is a warning, and any file that others can change is an error."""
    path = tmp_path / "qrmi_config.json"
    path.write_text(json.dumps(one_resource()))
    path.chmod(mode)
    assert codes(validate.validate_file(path).findings) == expected


def test_a_file_that_the_hooks_refuse_for_its_owner_or_mode_is_no_valid_config(tmp_path):
    """As root: it belongs to somebody else, or somebody else may write to it."""
    path = tmp_path / "qrmi_config.json"
    path.write_text(json.dumps(one_resource()))
    for owner, mode in ((12345, 0o600), (0, 0o620)):
        os.chown(path, owner, 0)
        path.chmod(mode)
        with pytest.raises(ConfigError):
            config_file.load(path)
        diagnosis = validate.validate_file(path)
        assert not diagnosis.is_valid()
        assert "chown root:root FILE && chmod 0600 FILE" in diagnosis.findings[-1].hint


def test_a_file_without_secrets_may_be_readable_by_all(tmp_path):
    """Placeholders, as in a repository, are not secrets."""
    path = tmp_path / "qrmi_config.json"
    path.write_text((FIXTURES / "reference_example.json").read_text())
    path.chmod(0o644)
    assert "QS110" not in codes(validate.validate_file(path).findings)


def test_bytes_that_are_not_utf8(tmp_path):
    """Bytes that are not valid UTF-8 are an error with line and column."""
    path = tmp_path / "qrmi_config.json"
    path.write_bytes(b'{\n"resources": "\xe9"}')
    (finding,) = validate.validate_file(path).findings
    assert (finding.rule.code, finding.position) == ("QS103", Position(2, 15))


def test_a_file_too_large_for_the_hooks(tmp_path, monkeypatch):
    """A file that the hooks would refuse for its size is an error."""
    monkeypatch.setattr(validate, "MAX_CONFIG_BYTES", 10)
    path = tmp_path / "qrmi_config.json"
    path.write_text(json.dumps(one_resource()))
    assert codes(validate.validate_file(path).findings) == ["QS104"]


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir()])
def test_a_file_that_cannot_be_read(tmp_path, make):
    """A missing file, or a directory, raises an error instead of becoming a finding."""
    path = tmp_path / "qrmi_config.json"
    make(path)
    with pytest.raises(ConfigError, match=r"cannot read .*qrmi_config\.json: "):
        validate.validate_file(path)


def test_thousands_of_resources_take_seconds():
    """The time grows linearly with the number of resources."""
    resource = one_resource()["resources"][0]
    document = {"resources": [{**resource, "name": f"q{number}"} for number in range(3000)]}
    text = json.dumps(document, indent=2)
    started_s = time.process_time()
    assert check(text) == ()
    assert time.process_time() - started_s < 5
