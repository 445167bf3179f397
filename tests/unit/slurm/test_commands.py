"""Where Slurm's commands are found: beside the daemon that runs a hook, then where the caller says."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qrmi_slurm.slurm import commands

PACKAGES = Path(commands.__file__).parents[2]


def command(folder):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "scontrol"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return str(path)


def test_the_callers_path_comes_before_the_usual_places(tmp_path, monkeypatch):
    """An admin who has another Slurm in front means that one."""
    program = command(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"relative:{tmp_path / 'none'}:{tmp_path / 'bin'}:/usr/bin")
    assert commands.find("scontrol") == program


def test_without_a_path_the_usual_places_are_left(tmp_path, monkeypatch):
    monkeypatch.delenv("PATH", raising=False)
    monkeypatch.setattr(commands, "_USUAL", (str(tmp_path),))
    assert commands.find("scontrol") is None
    assert commands.find("sinfo") is None
    assert command(tmp_path) == commands.find("scontrol")


@pytest.mark.parametrize("daemon", ["slurmd", "slurmstepd"])
def test_in_a_hook_it_is_the_one_beside_the_daemon_that_started_it(tmp_path, daemon):
    """Of two releases on a node; whatever PATH says."""
    program, other = command(tmp_path / "a" / "bin"), command(tmp_path / "b")
    shutil.copy(sys.executable, tmp_path / "a" / "bin" / daemon)
    ask = (
        f"import sys; sys.path.insert(0, {str(PACKAGES)!r}); from qrmi_slurm.slurm import commands as s;"
        "print(s.find('scontrol'))"
    )
    hook = f'exec 3>&1; {sys.executable} -I -c "{ask}"; true'
    code = (
        f"import subprocess; print(subprocess.run(['/bin/sh', '-c', {hook!r}], capture_output=True, text=True).stdout)"
    )
    done = subprocess.run(
        [tmp_path / "a" / "bin" / daemon, "-I", "-c", code],
        env={"PATH": str(Path(other).parent), "PYTHONHOME": sys.base_prefix},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stdout.split() == [program], done.stderr


def test_a_command_beside_another_users_program_is_not_taken(tmp_path):
    """What calls sudo may be called slurmd as well, with a squeue of its own beside it; root must not run that."""
    command(tmp_path / "bin")
    shutil.copy(sys.executable, tmp_path / "bin" / "slurmd")
    ask = (
        f"import sys; input(); sys.path.insert(0, {str(PACKAGES)!r}); from qrmi_slurm.slurm import commands as s;"
        "print(s._beside_daemon())"
    )
    code = (
        "import os, subprocess; P = subprocess.PIPE\n"
        f"as_root = subprocess.Popen([{sys.executable!r}, '-I', '-c', {ask!r}], stdin=P, stdout=P, text=True)\n"
        "os.setresuid(65534, 65534, 65534)\n"
        "print(as_root.communicate('go\\n')[0])"
    )
    done = subprocess.run(
        [tmp_path / "bin" / "slurmd", "-I", "-c", code],
        env={"PYTHONHOME": sys.base_prefix},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.stdout.split() == ["[]"], done.stderr
