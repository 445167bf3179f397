"""The kinds of failures."""

import re

from qrmi_slurm.failure import Kind


def test_only_a_permanent_failure_is_not_transient():
    assert [kind for kind in Kind if not kind.is_transient] == [Kind.PERMANENT]


def test_the_words_fit_into_an_admin_comment():
    assert all(re.fullmatch("[a-z-]{1,20}", kind) for kind in Kind)
