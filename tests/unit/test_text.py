"""Text from outside: printable in one line, compared with known words."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrmi_slurm.text import is_one_line, is_plain, near_match, printable, unknown_names


@given(st.text(alphabet=st.characters(), max_size=400), st.integers(10, 300))
def test_printable_is_one_bounded_encodable_line(text, max_chars):
    shown = printable(text, max_chars)
    assert len(shown) <= max_chars
    assert is_one_line(shown)
    shown.encode("utf-8")


# Nor are characters that Unicode has reserved.
@given(st.text(alphabet=st.characters(exclude_categories=["Cc", "Cf", "Cn", "Cs", "Zl", "Zp"], max_codepoint=0xFFFF)))
def test_printable_leaves_ordinary_text_alone(text):
    assert printable(text, len(text) + 3) == text


@pytest.mark.parametrize("char", "\u202e\u2065\u2066\u200b\ufeff\x9b\x1b\u2028\xad\U000e0041")
def test_bidirectional_and_invisible_characters_are_escaped(char):
    """A service's text must not be able to look like another sentence."""
    assert printable(f"a{char}b") == f"a{char.encode('unicode_escape').decode()}b"


def test_a_text_of_many_megabytes_is_cut_before_it_is_examined():
    text = "\x00" * 50_000_000  # creating it takes long by itself
    began_s = time.process_time()
    assert len(printable(text)) == 200
    assert time.process_time() - began_s < 0.1


@pytest.mark.parametrize(
    ("text", "is_one", "is_usable"),
    [("a b", True, True), ("a\nb", False, False), ("a\x85b", False, False), ("a\ud800", True, False)],
)
def test_one_line_and_plain(text, is_one, is_usable):
    assert (is_one_line(text), is_plain(text)) == (is_one, is_usable)


@pytest.mark.parametrize(
    ("word", "near"),
    [("ibm_dmeo", "ibm_demo"), ("IBM-DEMO", "ibm_demo"), ("quebec", None), ("x" * 101, None), ("", None)],
)
def test_a_misspelled_word_is_found(word, near):
    assert near_match(word, ["ibm_demo", "pasqal"]) == near


@pytest.mark.parametrize(
    ("unknown", "known", "sentence"),
    [
        (["ibm_dmeo"], ["ibm_demo", "b"], "unknown QPU: ibm_dmeo (did you mean ibm_demo?); known QPUs: ibm_demo, b"),
        (["x", "y"], ["c", "b"], "unknown QPUs: x, y; known QPUs: c, b"),
        (["x"], [], "unknown QPU: x"),
        (["x\x1b[2J"], ["a\n"], "unknown QPU: x\\x1b[2J; known QPUs: a\\n"),
    ],
)
def test_the_sentence_about_unknown_names(unknown, known, sentence):
    assert unknown_names(unknown, known) == sentence


def test_the_sentence_about_ignored_names_lists_no_known_ones():
    assert unknown_names(["dmeo", "x"], ["demo"], are_ignored=True) == (
        "unknown QPUs, ignored: dmeo (did you mean demo?), x"
    )


def test_only_the_first_unknown_name_is_compared_with_the_known_ones():
    """And with no more than a thousand of them, since this takes time."""
    assert unknown_names(["x", "dmeo"], ["demo"]) == "unknown QPUs: x, dmeo; known QPUs: demo"
    many = [f"q{number}" for number in range(1000)]
    assert "(did you mean demo?)" in unknown_names(["dmeo"], ["demo", *many[:999]])
    assert "did you mean" not in unknown_names(["dmeo"], ["demo", *many])


def test_at_most_twenty_known_names_are_listed():
    """And how to see all of them."""
    ending = ", q19, ... and 3 more (list all: qrmi-slurm qpus)"
    assert unknown_names(["x"], [f"q{number}" for number in range(23)]).endswith(ending)
    assert unknown_names([f"x{number}" for number in range(60)], ["q"]).endswith(
        ", x20, ... and 39 more; known QPUs: q"
    )
