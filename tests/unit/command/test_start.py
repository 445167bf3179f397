"""The entry point: `recover` ends at once where nothing is recorded, and everything else is up to the command line."""

import sys

import pytest

from qrmi_slurm.command import cli, start
from qrmi_slurm.slurm import conf_file


@pytest.fixture
def starts_the_command(at_site, monkeypatch):
    """Return a function that tells whether the command line is loaded for these arguments."""
    calls = []
    monkeypatch.setattr(cli, "main", lambda: calls.append(True))
    at_site.slurm_conf.touch()

    def start_with(*arguments):
        calls.clear()
        monkeypatch.setattr(sys, "argv", ["qrmi-slurm", *arguments])
        start.main()
        return bool(calls)

    return start_with


def test_recover_with_nothing_recorded_ends_at_once(starts_the_command, at_site, capsys):
    """Without a state directory, and with one that has ledgers but no job's folder."""
    assert not starts_the_command("recover")
    (at_site.state_dir / "test" / ".accounting").mkdir(parents=True)
    (at_site.state_dir / "test" / ".set-aside").mkdir()
    (at_site.state_dir / "qpus.json").touch()
    assert not starts_the_command("recover")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("arguments", [["recover", "--json"], ["recover", "--dry-run"], ["status"], [], ["Recover"]])
def test_anything_else_is_up_to_the_command_line(starts_the_command, arguments):
    assert starts_the_command(*arguments)


def test_a_folder_is_enough_for_the_command_line(starts_the_command, at_site):
    """Whatever is in it, or cannot be read."""
    at_site.folder().create()
    assert starts_the_command("recover")


def test_a_fault_is_told_by_the_command_line(starts_the_command, at_site, monkeypatch):
    """A line that cannot be read, a state directory that is a file's, and no slurm.conf."""
    plugstack = at_site.slurm_conf.with_name("plugstack.conf")
    before = plugstack.read_text()
    plugstack.write_text(f"{before.strip()} --unknown\n")
    assert starts_the_command("recover")
    plugstack.write_text(before)
    assert not starts_the_command("recover")
    monkeypatch.setenv("SLURM_CONF", str(at_site.slurm_conf.with_name("other.conf")))
    assert starts_the_command("recover")
    monkeypatch.delenv("SLURM_CONF")
    monkeypatch.setattr(conf_file, "on_this_node", lambda: None)
    monkeypatch.setattr(conf_file, "DEFAULT_SLURM_CONF", at_site.slurm_conf.with_name("other.conf"))
    assert starts_the_command("recover")
