"""Fixtures of the unit tests."""

import sys

import pytest
from doubles import SECRET, FakeSlurm, Site, fake_qrmi_in_front
from hypothesis import settings

from qrmi_slurm.calls.places import WORK
from qrmi_slurm.command import cli
from qrmi_slurm.hooks import acquire, earlier, turnstile
from qrmi_slurm.slurm import commands

# No database: runs are independent. No deadline: two busy cores are slow at times.
settings.register_profile("unit", database=None, deadline=None, max_examples=100)
settings.load_profile("unit")


@pytest.fixture(autouse=True)
def turnstile_of_its_own(monkeypatch, tmp_path):
    """Prologs of two tests do not wait for each other, and leave nothing in /run."""
    monkeypatch.setattr(turnstile, "FOLDER", tmp_path / "run")
    yield
    WORK.end()


@pytest.fixture
def fake_qrmi():
    with fake_qrmi_in_front():
        yield


@pytest.fixture
def site(tmp_path, fake_qrmi):
    return Site(tmp_path)


@pytest.fixture
def slurm(monkeypatch):
    """Replace Slurm's commands with a double."""
    fake = FakeSlurm()
    monkeypatch.setattr(commands, "run", fake.run)
    return fake


@pytest.fixture
def syslog_lines(monkeypatch):
    """Capture the syslog lines with their levels instead of sending them."""
    lines = []

    def take(name, level, line):
        lines.append((level, line))
        return True

    monkeypatch.setattr("qrmi_slurm.log._to_syslog", take)
    return lines


@pytest.fixture
def run(monkeypatch, capsys):
    """Return a function that runs the command and returns exit status, standard output, standard error."""

    def run_command(*arguments):
        monkeypatch.setattr(sys, "argv", ["qrmi-slurm", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        streams = capsys.readouterr()
        return exit_.value.code or 0, streams.out, streams.err

    return run_command


@pytest.fixture
def acquire_for(site, syslog_lines):
    """Return a function that acquires as Prolog does, and checks that no log line or note contains a secret."""

    def acquire_for_job(selection, **changes):
        folder = site.folder()
        folder.create()
        job = site.job(selection, **changes)
        with folder.locked(1):
            assert earlier.make_way(job, site.hook_run("prolog"))
        with folder.locked(1):
            result = acquire.acquire(job, site.hook_run("prolog"))
        assert not any(SECRET in line for _, line in syslog_lines)
        assert SECRET not in " ".join(result.notes)
        return result

    return acquire_for_job
