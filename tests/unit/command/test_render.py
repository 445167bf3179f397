"""What the sub-commands print with."""

import time

import pytest

from qrmi_slurm.checks.result import Level
from qrmi_slurm.command import render


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_on_a_terminal_only(is_terminal, monkeypatch, stream):
    """A terminal shows what is being done while it lasts; a pipe gets nothing."""
    monkeypatch.setenv("TERM", "xterm-256color")
    seen = stream(is_terminal)
    with render.progress(seen) as tell:
        tell("asking [red]for all")
        time.sleep(0.2)  # rich draws about twelve times a second
    assert ("asking [red]for all" in seen.text) is is_terminal
    assert is_terminal or not seen.text


@pytest.mark.parametrize("level", Level)
def test_each_level_has_a_style(level):
    assert level in render.STYLES
