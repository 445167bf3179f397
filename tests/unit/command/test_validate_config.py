"""`qrmi-slurm validate-config`: text, JSON and GitHub's workflow commands, exit status, which config is the default."""

import json
import re
from pathlib import Path

import pytest

from qrmi_slurm.calls import installed
from qrmi_slurm.command import validate_config
from qrmi_slurm.errors import BackendError
from qrmi_slurm.validation.json_text import Position
from qrmi_slurm.validation.rules import UNKNOWN_TYPE, Diagnosis, Finding, Severity

FIXTURES = Path(__file__).parents[2] / "fixtures" / "config"


def test_a_sound_config(run, sound):
    """It exits 0 and prints how many resources there are."""
    status, out, err = run("validate-config", sound)
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == "ok: 1 resource, 1 note"


def test_a_bad_config(run):
    """It exits 1 and prints each error with its place, and a summary."""
    path = FIXTURES / "many_faults.json"
    status, out, err = run("validate-config", path)
    assert (status, err) == (1, "")
    lines = out.splitlines()
    first = lines.index(f"{path}:5:15: error QS302: the type ibm-quantum-compute-sevice is unknown")
    assert lines[first + 1 : first + 3] == [
        "    at resources[0].type (resource ibm_quebec)",
        "    hint: did you mean ibm-quantum-compute-service?",
    ]
    assert lines[-1].startswith("11 errors, ")
    assert lines[-1].endswith(f"1 note in {path}")


def test_broken_json_shows_line_and_caret(run):
    """A syntax error exits 1 and shows its line, with values masked and a caret below."""
    status, out, _ = run("validate-config", FIXTURES / "broken_syntax.json")
    assert status == 1
    lines = out.splitlines()
    shown = lines.index('    "QRMI_IQM_ISA_TOKEN": ***,')
    assert lines[shown + 1] == " " * lines[shown].index("***") + "^"
    assert "planted-secret" not in out


def test_an_unreadable_config_exits_2(run, tmp_path):
    """The reason goes to standard error, and nothing to standard output."""
    status, out, err = run("validate-config", tmp_path / "missing.json")
    assert (status, out) == (2, "")
    assert err == f"error: cannot read {tmp_path}/missing.json: No such file or directory\n"


def test_strict_counts_warnings(run, sound):
    """With --strict a warning exits 1, and the summary says why."""
    sound.write_text(sound.read_text().replace("EMU_FREE", "EMU-FREE"))
    assert run("validate-config", sound)[0] == 0
    status, out, _ = run("validate-config", "--strict", sound)
    assert status == 1
    last = f"1 warning, 1 note in {sound}; --strict counts warnings as errors"
    assert out.splitlines()[-1] == last


def test_json_is_data_only(run):
    """--format json prints one JSON object, with the same exit status."""
    status, out, err = run("validate-config", "--format", "json", FIXTURES / "many_faults.json")
    assert (status, err) == (1, "")
    document = json.loads(out)
    assert document["version"] == 1
    assert document["valid"] is False
    assert document["resources"] == 3
    assert document["errors"] == sum(finding["severity"] == "error" for finding in document["findings"])
    (finding,) = [finding for finding in document["findings"] if finding["code"] == "QS302"]
    assert finding == {
        "code": "QS302",
        "severity": "error",
        "title": "neither QRMI nor the suite knows the type",
        "line": 5,
        "column": 15,
        "path": "resources[0].type",
        "resource": "ibm_quebec",
        "message": "the type ibm-quantum-compute-sevice is unknown",
        "hint": "did you mean ibm-quantum-compute-service?",
    }


def test_the_default_is_the_config_that_plugstack_names(run, sound, monkeypatch, tmp_path):
    """Without a path the plugin's line decides; if that config is missing, the hint names the line."""
    elsewhere = tmp_path / "elsewhere.json"
    (tmp_path / "slurm.conf").write_text("ClusterName=c\n")
    (tmp_path / "plugstack.conf").write_text(f"optional /usr/lib/slurm/spank_qrmi.so {elsewhere}\n")
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    status, _, err = run("validate-config")
    assert status == 2
    assert f"hint: named in {tmp_path}/plugstack.conf:1; only compute nodes need the file" in err
    sound.rename(elsewhere)
    assert run("validate-config")[0] == 0


def test_the_default_without_a_line_is_beside_slurm_conf(run, sound, monkeypatch, tmp_path):
    """If no line names a config, qrmi_config.json beside slurm.conf is checked."""
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    assert run("validate-config")[0] == 0
    sound.unlink()
    assert "no line in plugstack.conf names another" in run("validate-config")[2]


def test_without_qrmi_the_check_goes_on(run, sound, monkeypatch):
    """If QRMI cannot be imported, standard error says so and everything else is checked."""

    def fail():
        raise BackendError("QRMI cannot be imported: no such module")

    monkeypatch.setattr(installed, "known_members", fail)
    status, _, err = run("validate-config", sound)
    assert status == 0
    assert err.startswith("warning: QRMI cannot be imported")


def test_data_is_not_markup(run, sound):
    """A name in brackets is printed unchanged."""
    sound.write_text(sound.read_text().replace("EMU_FREE", "[bold]a[/bold]"))
    assert "(resource [bold]a[/bold])" in run("validate-config", sound)[1]


FINDING = Finding(UNKNOWN_TYPE, Position(1, 2), "resources[0].type", "x" * 300, "[red]")


def test_colors_on_a_terminal_only(monkeypatch, stream):
    """Findings have colors on a terminal unless NO_COLOR is set; long lines are never broken."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    colored = stream(is_terminal=True)
    validate_config.print_text(Diagnosis("f", 1, (FINDING,)), colored, strict=False)
    assert "\x1b[1;31merror QS302" in colored.text
    assert "x" * 300 in colored.text
    assert "[red]" in colored.text
    monkeypatch.setenv("NO_COLOR", "1")
    plain = stream(is_terminal=True)
    validate_config.print_text(Diagnosis("f", 1, (FINDING,)), plain, strict=False)
    assert "\x1b[1;31m" not in plain.text
    assert "\x1b[31m" not in plain.text


@pytest.mark.parametrize("severity", Severity)
def test_each_severity_has_a_style_and_a_github_command(severity):
    assert severity in validate_config.STYLES
    assert severity in validate_config._GITHUB_COMMANDS


# --- for GitHub ---------------------------------------------------------------------------------------------


def test_findings_for_github(run):
    """Each finding is a workflow command with its place, and nothing else is printed."""
    path = FIXTURES / "many_faults.json"
    status, out, err = run("validate-config", "--format", "github", path)
    assert (status, err) == (1, "")
    commands = out.splitlines()
    assert all(re.match(r"::(error|warning|notice) file=\S+,", line) for line in commands)
    (found,) = [line for line in commands if "QS302" in line]
    assert found == (
        f"::error file={path},line=5,col=15,title=QS302%3A neither QRMI nor the suite knows the type"
        "::the type ibm-quantum-compute-sevice is unknown (at resources[0].type)"
        "%0Adid you mean ibm-quantum-compute-service?"
    )


def test_text_that_github_would_parse(run, tmp_path):
    """Percent signs, colons and commas in a file's name end no property, and no name begins a command."""
    path = tmp_path / "100%,a:b.json"
    path.write_text('{"resources": [{"name": "x::error::y", "type": "z%0A::error::", "environment": {}}]}')
    path.chmod(0o600)
    out = run("validate-config", "--format", "github", path)[1]
    assert f"file={tmp_path}/100%25%2Ca%3Ab.json,line=1," in out
    assert "z%250A" in out
    assert all(line.startswith(("::error file=", "::warning file=")) for line in out.splitlines())


# --- online -------------------------------------------------------------------------------------------------


def test_online_with_a_config_that_cannot_be_loaded(run, at_site):
    """The findings are printed, and no service is contacted."""
    at_site.write_config("{")
    status, out, err = run("validate-config", "--online", "--format", "json")
    assert status == 1
    assert json.loads(out)["online"] == []
    assert err.startswith("warning: --online skipped: ")
