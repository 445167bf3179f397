"""The published list of QPUs, read by users."""

import json

import pytest

from qrmi_slurm.errors import RecordError
from qrmi_slurm.scheduling import qpus


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2}', '{"version": 1, "qpus": [{}], "checked_s": 1}'])
def test_an_unreadable_list(tmp_path, text):
    """A list that is damaged or has another version is reported in one sentence."""
    (tmp_path / "qpus.json").write_text(text)
    with pytest.raises(RecordError, match=r"qpus\.json"):
        qpus.read_published(tmp_path)


def test_a_list_cannot_move_the_cursor(tmp_path):
    """Control characters in the list are escaped, and values of the wrong type are unknown."""
    item = {"name": "\x1b[2J", "type": "t", "state": "s", "is_usable": "?", "pending_jobs": "x", "held_by": 0}
    (tmp_path / "qpus.json").write_text(json.dumps({"version": 1, "checked_s": 0, "qpus": [item]}))
    (found,) = qpus.read_published(tmp_path).qpus
    assert "\x1b" not in found.name
    assert (found.is_usable, found.pending_jobs) == (None, None)
