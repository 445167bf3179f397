import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from qrmi_slurm.calls import backend
from qrmi_slurm.command import cli, validate_config
from qrmi_slurm.errors import BackendError, QrmiSlurmError
from qrmi_slurm.slurm import plugstack
from qrmi_slurm.validation.json_text import Position
from qrmi_slurm.validation.rules import UNKNOWN_TYPE, Diagnosis, Finding

FIXTURES = Path(__file__).parents[2] / "fixtures" / "config"
SOUND = '{"resources": [{"name": "EMU_FREE", "type": "pasqal-cloud", "environment": {}}]}'


@pytest.fixture
def sound(tmp_path):
    path = tmp_path / "qrmi_config.json"
    path.write_text(SOUND)
    path.chmod(0o600)
    return path


def test_version(run):
    """--version names the versions that a report of a fault needs."""
    status, out, _ = run("--version")
    assert status == 0
    assert out.startswith("qrmi-slurm ")
    assert "qrmi " in out
    assert "Python 3." in out


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["validate-config", "--help"], ["emulator", "--help"]])
def test_help_has_examples(run, arguments):
    """Help goes to standard output, with examples that stand on lines of their own."""
    status, out, err = run(*arguments)
    assert (status, err) == (0, "")
    lines = [line.strip() for line in out.splitlines()]
    assert "Examples:" in lines
    assert lines[lines.index("Examples:") + 2].startswith("qrmi-slurm ")


@pytest.mark.parametrize(
    "arguments", [["unknown"], ["validate-config", "--unknown"], ["validate-config", "--format", "xml"], []]
)
def test_wrong_calls_exit_2(run, arguments):
    """A command that does not exist, or a wrong option, exits 2 and says so on standard error."""
    status, out, err = run(*arguments)
    assert status == 2
    assert "Usage: qrmi-slurm" in out + err


def test_a_sound_config(run, sound):
    """A config that can be used exits 0 and says how many resources it has."""
    status, out, err = run("validate-config", sound)
    assert (status, err) == (0, "")
    assert out.splitlines()[-1] == "ok: 1 resource, 1 note"


def test_a_bad_config(run):
    """Errors exit 1; each stands on standard output with its place, and a line sums up."""
    path = FIXTURES / "many_faults.json"
    status, out, err = run("validate-config", path)
    assert (status, err) == (1, "")
    lines = out.splitlines()
    first = lines.index(f"{path}:5:15: error QS302: the type ibm-quantum-compute-sevice is unknown")
    assert lines[first + 1 : first + 3] == [
        "    at resources[0].type (resource ibm_quebec)",
        "    hint: did you mean ibm-quantum-compute-service?",
    ]
    assert lines[-1].startswith("10 errors, ")
    assert lines[-1].endswith(f"1 note in {path}")


def test_broken_json_shows_line_and_caret(run):
    """A syntax error exits 1 and shows its line, values masked, with a caret under the fault."""
    status, out, _ = run("validate-config", FIXTURES / "broken_syntax.json")
    assert status == 1
    lines = out.splitlines()
    shown = lines.index('    "QRMI_IQM_ISA_TOKEN": ***,')
    assert lines[shown + 1] == " " * lines[shown].index("***") + "^"
    assert "planted-secret" not in out


def test_an_unreadable_config_exits_2(run, tmp_path):
    """A file that cannot be read exits 2, with the reason on standard error and nothing on standard output."""
    status, out, err = run("validate-config", tmp_path / "missing.json")
    assert (status, out) == (2, "")
    assert err == f"error: cannot read {tmp_path}/missing.json: No such file or directory\n"


def test_strict_counts_warnings(run, sound):
    """With --strict a warning exits 1, and the last line says why."""
    sound.write_text(SOUND.replace("EMU_FREE", "EMU-FREE"))
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
    """Without a path the config of the plugin's line is checked, and a missing one is told with that line."""
    elsewhere = tmp_path / "elsewhere.json"
    (tmp_path / "slurm.conf").write_text("ClusterName=c\n")
    (tmp_path / "plugstack.conf").write_text(f"optional /usr/lib/slurm/spank_qrmi.so {elsewhere}\n")
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    status, _, err = run("validate-config")
    assert status == 2
    assert f"hint: named in {tmp_path}/plugstack.conf:1; " in err
    sound.rename(elsewhere)
    assert run("validate-config")[0] == 0


def test_the_default_without_a_line_stands_beside_slurm_conf(run, sound, monkeypatch, tmp_path):
    """Where no line names a config, qrmi_config.json beside slurm.conf is checked."""
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    assert run("validate-config")[0] == 0
    sound.unlink()
    assert "no line in plugstack.conf names another" in run("validate-config")[2]


def test_without_qrmi_the_check_goes_on(run, sound, monkeypatch):
    """Where QRMI cannot be imported, standard error says so and the rest is checked."""

    def fail():
        raise BackendError("QRMI cannot be imported: no such module")

    monkeypatch.setattr(backend, "known_members", fail)
    status, _, err = run("validate-config", sound)
    assert status == 0
    assert err.startswith("warning: QRMI cannot be imported")


def test_an_error_is_two_lines(run, monkeypatch):
    """An error of ours is its message and its hint on standard error, exit 2, without a traceback."""

    def fail(_slurm_conf):
        raise QrmiSlurmError("the [red]file[/red] is gone", "look into [/etc]")

    monkeypatch.setattr(plugstack, "read", fail)
    status, out, err = run("validate-config")
    assert (status, out) == (2, "")
    assert err == "error: the [red]file[/red] is gone\nhint: look into [/etc]\n"


def test_a_surprise_tells_no_data(run, monkeypatch):
    """An exception that nobody expected is one sentence with its kind and place, never its data."""

    def fail(_slurm_conf):
        raise KeyError("planted-secret")

    monkeypatch.setattr(plugstack, "read", fail)
    status, out, err = run("validate-config")
    assert (status, out) == (2, "")
    assert err.startswith("error: internal error: KeyError at test_cli.py:")
    assert "planted-secret" not in err
    assert "Traceback" not in err


def test_data_is_not_markup(run, sound):
    """A name with brackets is printed as it stands."""
    sound.write_text(SOUND.replace("EMU_FREE", "[bold]a[/bold]"))
    assert "(resource [bold]a[/bold])" in run("validate-config", sound)[1]


class Terminal:
    """A stream that says it is a terminal, and keeps what is written."""

    encoding = "utf-8"

    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return True


FINDING = Finding(UNKNOWN_TYPE, Position(1, 2), "resources[0].type", "x" * 300, "[red]")


def test_colours_on_a_terminal_only(monkeypatch):
    """On a terminal findings have colours, unless NO_COLOR is set; long lines are never broken."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = Terminal()
    validate_config.print_text(Diagnosis("f", 1, (FINDING,)), coloured, strict=False)
    assert "\x1b[1;31merror QS302" in coloured.text
    assert "x" * 300 in coloured.text
    assert "[red]" in coloured.text
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Terminal()
    validate_config.print_text(Diagnosis("f", 1, (FINDING,)), plain, strict=False)
    assert "\x1b[1;31m" not in plain.text
    assert "\x1b[31m" not in plain.text


def _in_a_process(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        env={"PATH": os.defpath, "PYTHONPATH": str(Path(cli.__file__).parents[2]), **environment},
        capture_output=True,
        timeout=30,
        check=False,
    )


def test_letters_that_the_locale_has_not(sound):
    """In a locale without the letters of a name they are written as escapes; the command does not fail."""
    sound.write_text(SOUND.replace("EMU_FREE", "qu\u00e9bec"), encoding="utf-8")
    result = _in_a_process(
        "-m", "qrmi_slurm.command.cli", "validate-config", str(sound), PYTHONIOENCODING="ascii", LC_ALL="C"
    )
    assert result.returncode == 0
    assert rb"(resource qu\xe9bec)" in result.stdout


def test_importing_the_command_is_light():
    """Importing the command does not import what only one sub-command needs."""
    code = (
        "import sys, qrmi_slurm.command.cli\n"
        "print([name for name in ('jsonschema', 'qrmi', 'requests', 'flask', 'qiskit') if name in sys.modules])"
    )
    result = _in_a_process("-c", code)
    assert result.stdout == b"[]\n", result.stderr


# --- emulator -----------------------------------------------------------------------------------------------


def test_the_emulator_without_its_extra(run, monkeypatch):
    """Where the extra is not installed, the command says which line installs it, and exits 2."""
    for name in ["werkzeug", *sys.modules]:
        if name.partition(".")[0] == "werkzeug":
            monkeypatch.setitem(sys.modules, name, None)
        elif name.startswith("qrmi_slurm.emulator"):
            monkeypatch.delitem(sys.modules, name)
    status, out, err = run("emulator")
    assert (status, out) == (2, "")
    assert "pip install 'qrmi-slurm[emulator]'" in err


def test_the_emulator_reads_its_own_options(run):
    """What follows `emulator` is handed on as it stands, and what cannot be used exits 2 with what to write."""
    status, _, err = run("emulator", "--backend", "=FakeX")
    assert status == 2
    assert "NAME=DEVICE" in err


def test_the_command_is_a_typer_application():
    """The application of the console script can be mounted in another one."""
    assert isinstance(cli.app, typer.Typer)
