"""The selection: from the value of `--qpu` to terms."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrmi_slurm.errors import SelectionError
from qrmi_slurm.slurm import selection
from qrmi_slurm.text import is_one_line

names = st.text(min_size=1, max_size=30).filter(lambda text: not selection.name_fault(text) and text == text.strip())


@given(st.lists(names, min_size=1, max_size=8, unique=True), st.sampled_from(["", " ", "\t", "  \t "]))
def test_names_are_returned_in_order(wanted, blanks):
    text = ",".join(f"{blanks}{name}{blanks}" for name in wanted)
    if len(text.encode()) > selection.MAX_SELECTION_BYTES:
        return
    assert [term.text for term in selection.parse(text)] == list(dict.fromkeys(wanted))


@given(st.text(max_size=60))
def test_any_text_gives_valid_names_or_an_error(text):
    try:
        parsed = selection.parse(text)
    except SelectionError as error:
        assert is_one_line(str(error))
        return
    assert parsed
    assert all(term.text and is_one_line(term.text) and not set(term.text) & set(",=") for term in parsed)


def test_a_name_listed_twice_counts_once():
    assert [term.text for term in selection.parse("b,a,b")] == ["b", "a"]


def test_two_thousand_terms_take_no_time():
    """Prolog parses before any deadline, and a forged list has as many terms as it has bytes."""
    text = ",".join(chr(0x4E00 + number) for number in range(63)) + ",a" * 1900
    began_s = time.process_time()
    assert len(selection.parse(text)) == 64
    assert time.process_time() - began_s < 0.1


def test_a_choice_listed_twice_is_two_choices():
    assert [term.text for term in selection.parse("any:t,b*,any:t,b*")] == ["any:t", "b*", "any:t", "b*"]


@pytest.mark.parametrize(
    ("text", "prefix", "pattern", "is_choice"),
    [
        ("a", "", "a", False),
        ("ibm_*", "", "ibm_*", True),
        ("ibm_?", "", "ibm_?", True),
        ("ibm_[ab]", "", "ibm_[ab]", True),
        ("any:a", "any:", "a", True),
        ("any: a", "any:", "a", True),
        ("least-busy:ibm_*", "least-busy:", "ibm_*", True),
        ("any:", "", "any:", False),
        ("many:a", "", "many:a", False),
        ("Any:a", "", "Any:a", False),
    ],
)
def test_a_term_is_a_name_or_a_choice(text, prefix, pattern, is_choice):
    [term] = selection.parse(text)
    assert (term.prefix, term.pattern, term.is_choice) == (prefix, pattern, is_choice)


@pytest.mark.parametrize(
    ("text", "name", "fits"),
    [
        ("a", "a", True),
        ("a", "A", False),
        ("ibm_*", "ibm_x", True),
        ("ibm_*", "IBM_x", False),
        ("any:ibm_?", "ibm_x", True),
        ("any:ibm_?", "ibm_xy", False),
        ("any:a", "a", True),
    ],
)
def test_names_are_matched_case_sensitively(text, name, fits):
    [term] = selection.parse(text)
    assert term.fits_name(name) is fits


@pytest.mark.parametrize(
    "text", ["", " ", ",", "a,", ",a", "a,,b", "a=b", "a\nb", "a\rb", "a\x00", "a\x1bb", "a\x85b", "a\u2028b", "\udcff"]
)
def test_invalid_names_are_refused(text):
    with pytest.raises(SelectionError):
        selection.parse(text)


@pytest.mark.parametrize("name", ["ibm_quebec", "iqm:x", "a.b-c/d", "a b", "Ünïcode", "a;b$(c)`d`", "*", "-a"])
def test_a_name_may_contain_anything_that_fits_on_one_line(name):
    assert [term.text for term in selection.parse(name)] == [name]


def test_the_longest_list_is_accepted_and_one_byte_more_is_not():
    longest = "a" * selection.MAX_SELECTION_BYTES
    assert [term.text for term in selection.parse(longest)] == [longest]
    with pytest.raises(SelectionError, match="4096 bytes"):
        selection.parse(longest + "a")


def test_length_is_counted_in_bytes():
    with pytest.raises(SelectionError):
        selection.parse("ü" * (selection.MAX_SELECTION_BYTES // 2 + 1))
