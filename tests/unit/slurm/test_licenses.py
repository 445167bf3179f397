"""License lists, as slurm.conf, squeue and Prolog's environment have them."""

import pytest

from qrmi_slurm.slurm import licenses


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("a:1,b", {"a": 1, "b": 1}),
        ("a=2", {"a": 2}),
        ("a:1;b:2", {"a": 1, "b": 2}),
        ("a:1, a:2", {"a": 3}),
        ("name@server:3", {"name@server": 3}),
        ("", {}),
        ("(null)", {}),
        ("a|b", None),
        ("a:1,b|c", None),
        ("a:x", None),
        ("c:1(n1)", None),
    ],
)
def test_a_license_list_is_counted_or_not_understood(text, counts):
    assert licenses.parse_counts(text) == counts


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("a:1,b", {"a": 1, "b": 1}),
        ("a=2;name@server", {"a": 2, "name@server": 1}),
        ("matlab,,qpu_a:1", {"matlab": 1, "qpu_a": 1}),
        ("c:3(n1),qpu_a:1", {"c": 3, "qpu_a": 1}),
        ("a|b", {"a|b": 1}),
        ("", {}),
        ("(null)", {}),
    ],
)
def test_an_odd_word_does_not_hide_the_licenses_that_a_job_holds(text, counts):
    """Slurm skips empty words, and 25.11 can bind a license to nodes."""
    assert licenses.granted_counts(text) == counts


def test_a_list_is_written_as_it_is_read():
    assert licenses.parse_counts(licenses.list_text({"a": 1, "b@s": 2})) == {"a": 1, "b@s": 2}


def test_left_is_negative_where_a_license_is_over_subscribed():
    [license] = licenses.parse("LicenseName=a Total=2 Used=2 Free=0 Reserved=1 Remote=no\nnoise\n").values()
    assert (license.left, license.free) == (-1, 0)
