"""The line shown under a syntax error contains only public words, and the caret is at the fault."""

import pytest

from qrmi_slurm.validation.excerpt import masked_line
from qrmi_slurm.validation.json_text import Position


@pytest.mark.parametrize(
    ("line", "column", "before_caret", "from_caret"),
    [
        ('{"QRMI_IQM_ISA_TOKEN": "hidden",}', 32, '{"QRMI_IQM_ISA_TOKEN": "***"', ",}"),
        ('  "QRMI_IQM_ISA_TOKEN": hid;den?', 25, '"QRMI_IQM_ISA_TOKEN": ', "***"),
        ('"QRMI_IQM_ISA_TOKEN: "hidden"', 23, '"QRMI_IQM_ISA_TOKEN: "', '***"'),
        ('"type": "iqm-server" "x": 1', 21, '"type": "iqm-server"', ' "***": ***'),
        ('"hidden text', 1, "", '"*** ***'),
        ("[1", 3, "[***", ""),
    ],
)
def test_everything_but_public_words_is_masked(line, column, before_caret, from_caret):
    """The caret stays at the fault in the masked line."""
    text, at = masked_line(line, Position(1, column))
    assert (text[:at], text[at:]) == (before_caret, from_caret)


def test_a_long_line_is_cut():
    """For a config on a single line, only the surroundings of the fault are shown."""
    line = '{"name": "a"},' * 1000
    text, at = masked_line(line, Position(1, 7001))
    assert len(text) < 120
    assert text.startswith("...")
    assert text.endswith("...")
    assert 0 <= at < len(text)
