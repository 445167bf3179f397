"""What all sub-commands have in common: help, wrong calls, errors, start-up."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from qrmi_slurm.command import cli
from qrmi_slurm.errors import QrmiSlurmError
from qrmi_slurm.slurm import plugstack


def test_version(run):
    """--version prints the versions that a bug report needs."""
    status, out, _ = run("--version")
    assert status == 0
    assert out.startswith("qrmi-slurm ")
    assert "qrmi " in out
    assert "Python 3." in out


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["validate-config", "--help"]])
def test_help_has_examples(run, arguments):
    """Help goes to standard output and has examples, one to a line."""
    status, out, err = run(*arguments)
    assert (status, err) == (0, "")
    lines = [line.strip() for line in out.splitlines()]
    assert "Examples:" in lines
    assert lines[lines.index("Examples:") + 2].startswith("qrmi-slurm ")


@pytest.mark.parametrize(
    "command",
    [
        *("validate-config", "doctor", "slurm-conf", "qpus", "status", "recover", "release", "catalogue"),
        *("drain", "resume", "sensor", "report"),
    ],
)
def test_help_has_examples_and_exit_status(run, command):
    """Each sub-command's help has examples, one to a line, and the exit status."""
    status, out, err = run(command, "--help")
    assert (status, err) == (0, "")
    assert re.search(rf"^ +qrmi-slurm {command}", out, re.MULTILINE)
    assert "Exit status: 0" in " ".join(out.split())


def test_shell_completion(run, monkeypatch, capsys):
    """A shell gets the matching sub-commands, and the matching options of one."""
    for words, count, expected in (("qrmi-slurm doc", 1, "doctor"), ("qrmi-slurm qpus --wat", 2, "--watch")):
        monkeypatch.setenv("_QRMI_SLURM_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(count))
        assert run()[1].strip() == expected
    monkeypatch.delenv("_QRMI_SLURM_COMPLETE")
    assert "--install-completion" in run("--help")[1]


@pytest.mark.parametrize(
    "arguments", [["unknown"], ["validate-config", "--unknown"], ["validate-config", "--format", "xml"], []]
)
def test_wrong_calls_exit_2(run, arguments):
    """An unknown sub-command or option exits 2 and prints the usage."""
    status, out, err = run(*arguments)
    assert status == 2
    assert "Usage: qrmi-slurm" in out + err


def test_an_error_is_two_lines(run, monkeypatch):
    """One of our errors prints its message and hint to standard error and exits 2, without a traceback."""

    def fail(_slurm_conf):
        raise QrmiSlurmError("the [red]file[/red] is gone", "look into [/etc]")

    monkeypatch.setattr(plugstack, "read", fail)
    status, out, err = run("validate-config")
    assert (status, out) == (2, "")
    assert err == "error: the [red]file[/red] is gone\nhint: look into [/etc]\n"


def test_a_bug_shows_no_data(run, monkeypatch):
    """An unexpected exception becomes one sentence with its type and place, but not its data."""

    def fail(_slurm_conf):
        raise KeyError("planted-secret")

    monkeypatch.setattr(plugstack, "read", fail)
    status, out, err = run("validate-config")
    assert (status, out) == (2, "")
    assert err.startswith("error: internal error: KeyError at test_cli.py:")
    assert "planted-secret" not in err
    assert "Traceback" not in err


def _in_a_process(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        env={"PATH": os.defpath, "PYTHONPATH": str(Path(cli.__file__).parents[2]), **environment},
        capture_output=True,
        timeout=30,
        check=False,
    )


def test_letters_that_the_locale_lacks(sound):
    """They are printed as escapes; the command does not fail."""
    sound.write_text(sound.read_text().replace("EMU_FREE", "qu\u00e9bec"), encoding="utf-8")
    result = _in_a_process(
        "-m", "qrmi_slurm.command.cli", "validate-config", str(sound), PYTHONIOENCODING="ascii", LC_ALL="C"
    )
    assert result.returncode == 0
    assert rb"(resource qu\xe9bec)" in result.stdout


def test_importing_the_command_is_light():
    """It does not import what only one sub-command needs, third-party or ours."""
    code = (
        "import sys, qrmi_slurm.command.cli\n"
        "print([name for name in ('jsonschema', 'qrmi', 'requests', 'flask', 'qiskit') if name in sys.modules])\n"
        "ours = [name.split('.') for name in sys.modules if name.startswith('qrmi_slurm.')]\n"
        "print(sorted({parts[1] for parts in ours if len(parts) > 2}))"
    )
    result = _in_a_process("-c", code)
    assert result.stdout == b"[]\n['command', 'slurm']\n", result.stderr


def test_the_command_is_a_typer_application():
    """It can be mounted in another application."""
    assert isinstance(cli.app, typer.Typer)
