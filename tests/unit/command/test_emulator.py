"""`qrmi-slurm emulator`."""

import os
import subprocess
import sys
from pathlib import Path

from qrmi_slurm.command import cli

PACKAGES = Path(cli.__file__).parents[2]


def emulator(*arguments, first_in_path=PACKAGES, cwd=None):
    """Run the sub-command in a process, which the emulator replaces."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "qrmi_slurm.command.cli", "emulator", *arguments],
        env={"PATH": os.defpath, "PYTHONPATH": f"{first_in_path}:{PACKAGES}"},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_help_is_the_emulators_own():
    """--help prints the emulator's options and examples to standard output."""
    done = emulator("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: qrmi-slurm emulator ")
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert lines[lines.index("Examples:") + 2].startswith("qrmi-slurm emulator ")


def test_arguments_are_passed_on():
    """The emulator parses its own arguments; invalid ones exit 2 and say what to write."""
    done = emulator("--backend", "=FakeX")
    assert done.returncode == 2
    assert "NAME=DEVICE" in done.stderr


def test_a_missing_extra_is_named_with_its_installation(tmp_path):
    """Without the extra, the command prints one sentence with the pip command and exits 2."""
    (tmp_path / "werkzeug.py").write_text("raise ModuleNotFoundError(\"No module named 'werkzeug'\", name='werkzeug')")
    done = emulator("--help", first_in_path=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("error: the emulator needs werkzeug; install it with: pip install 'qrmi-slurm[emulator]'\n")


def test_files_in_the_current_directory_do_not_shadow_modules(tmp_path):
    """A json.py of the user's is not imported."""
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    assert emulator("--help", cwd=tmp_path).returncode == 0
