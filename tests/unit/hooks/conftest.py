"""Fixtures of the hooks' tests."""

import pytest
from doubles import SECRET

from qrmi_slurm.hooks import prolog, task_prolog


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A shared file system that shows nothing is given up on at once."""
    monkeypatch.setattr(task_prolog, "_SHARED_WAIT_S", 0.05)
    monkeypatch.setattr(task_prolog, "_FIRST_NODE_WAIT_S", 0.05)
    monkeypatch.setattr(task_prolog, "_SHARED_POLL_S", 0.01)


@pytest.fixture
def start(site, syslog_lines):
    """Run Prolog and then the batch script's TaskProlog."""

    def run(selection, **changes):
        assert prolog.prolog(site.hook_environment(selection, **changes)) == 0
        assert not any(SECRET in line for _, line in syslog_lines)
        return task_prolog.task_prolog(site.task_environment(selection))

    return run
