"""Each rule has its own code."""

import re

from qrmi_slurm.validation import rules


def test_codes_are_unique():
    """No two rules share a code."""
    assert len({rule.code for rule in rules.RULES}) == len(rules.RULES)
    assert all(re.fullmatch(r"QS[1-5][0-9]{2}", rule.code) for rule in rules.RULES)
