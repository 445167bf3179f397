"""The JSON reader: the same values as Python's json, with positions, and with all mistakes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrmi_slurm.validation import json_text
from qrmi_slurm.validation.json_text import FaultKind, Position

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(JSON_VALUES, st.sampled_from([None, 0, 2]), st.booleans())
def test_valid_json_reads_as_in_python(value, indent, ascii_only):
    """Valid JSON gives the same value as Python's json, without a fault."""
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    document = json_text.read(text)
    assert document.value == value
    assert document.complete
    assert document.faults == ()


@given(st.text(alphabet="{}[]\":,\\/'#tfn0-1.eE \n\tTrue\u00a0\ud800", max_size=40))
def test_no_text_makes_the_reader_raise(text):
    """And a text without faults gives the same value as Python's json."""
    document = json_text.read(text)
    if document.complete and not document.faults:
        assert document.value == json.loads(text)
    else:
        assert document.faults


@given(st.binary(max_size=3), st.integers(0, 60))
def test_invalid_json_has_a_fault(inserted, place):
    """A text that Python's json rejects has at least one fault."""
    text = '{"resources": [{"name": "a", "environment": {"A": "1"}}]}'
    text = text[:place] + inserted.decode("latin-1") + text[place:]
    try:
        json.loads(text)
    except json.JSONDecodeError:
        assert json_text.read(text).faults


TEXT = """{
  "resources": [
    {"name": "a", "environment": {"X": "1"}},
    {"name": "\u00e4", "type":
        "t"}
  ]
}
"""


@pytest.mark.parametrize(
    ("path", "of_key", "expected"),
    [
        ((), False, Position(1, 1)),
        (("resources",), True, Position(2, 3)),
        (("resources",), False, Position(2, 16)),
        (("resources", 0), False, Position(3, 5)),
        (("resources", 0, "environment", "X"), True, Position(3, 35)),
        (("resources", 0, "environment", "X"), False, Position(3, 40)),
        (("resources", 1, "type"), True, Position(4, 19)),
        (("resources", 1, "type"), False, Position(5, 9)),
        (("resources", 1, "nothing"), False, Position(4, 5)),
        (("resources", 7), False, Position(2, 16)),
    ],
)
def test_positions_of_keys_and_values(path, of_key, expected):
    """Keys and values have their line and column; a missing one has that of its nearest existing parent."""
    assert json_text.read(TEXT).position(path, of_key=of_key) == expected


def test_duplicate_keys_are_reported_and_the_last_is_used():
    """Each repetition of a key in an object is a fault at the repetition."""
    document = json_text.read('{"a": 1,\n "b": {"a": 2},\n "a": 3}')
    assert document.value == {"a": 3, "b": {"a": 2}}
    (fault,) = document.faults
    assert (fault.kind, fault.position, fault.path) == (FaultKind.DUPLICATE_KEY, Position(3, 2), ("a",))
    assert "line 1" in fault.message


@pytest.mark.parametrize(
    ("text", "value", "message"),
    [
        ('{"a": 1,}', {"a": 1}, "trailing comma before the closing }"),
        ("[1, 2, ]", [1, 2], "trailing comma before the closing ]"),
        ('{"a": 1,, "b": 2}', {"a": 1, "b": 2}, "extra comma"),
        ('{"a": 1 "b": 2}', {"a": 1, "b": 2}, "a comma is missing after this value"),
        ('{"a": 1} // so', {"a": 1}, "JSON has no comments"),
        ('{"a": /* so */ 1}', {"a": 1}, "JSON has no comments"),
        ('# so\n{"a": 1}', {"a": 1}, "JSON has no comments"),
        ("{'a': 'b'}", {"a": "b"}, "the key is in single quotes"),
        ('{"a": True}', {"a": True}, "True is not a JSON value"),
        ('{"a": NaN}', {"a": 0}, "this is not a JSON number"),
        ('{"a": 007}', {"a": 0}, "this is not a JSON number"),
        ('{"a": "x\ty"}', {"a": "x\ty"}, "the string contains a raw control character"),
        ('{"a": "x\\y"}', {"a": "x\\y"}, "the string contains an escape that JSON does not have"),
        ('{"a":\u00a01}', {"a": 1}, "U+00A0 is not whitespace in JSON"),
        ('\ufeff{"a": 1}', {"a": 1}, "the file begins with a byte order mark (BOM), which QRMI rejects"),
    ],
)
def test_reading_goes_on_after_common_mistakes(text, value, message):
    """After a mistake with a clear meaning the rest is read too, so that its faults are reported."""
    document = json_text.read(text)
    assert document.complete
    assert document.value == value
    assert document.faults[0].message == message
    assert document.faults[0].hint


@pytest.mark.parametrize(
    ("text", "position", "message"),
    [
        ("", Position(1, 1), "the file is empty"),
        (" \n ", Position(2, 2), "the file is empty"),
        ('{"a": 1', Position(1, 8), "the file ends where } is expected"),
        ('{"a": 1]', Position(1, 8), "found ] where } is expected"),
        ('{"a" 1}', Position(1, 6), "a colon is missing after the key"),
        ('{"a": }', Position(1, 7), "a value is missing here"),
        ('{"a": b}', Position(1, 7), "the string is not in quotes"),
        ("{a: 1}", Position(1, 2), "the key is not in quotes"),
        ('{"a": "b\n}', Position(1, 7), "the string is not closed on this line"),
        ('{"a": \u201cb\u201d}', Position(1, 7), "a typographic quote cannot begin a string"),
        ("{} {}", Position(1, 4), "text after the end of the JSON value"),
        ("[" * 200 + "]" * 200, Position(1, 128), "nested deeper than 128 levels, which QRMI rejects"),
    ],
)
def test_reading_stops_where_the_meaning_is_unclear(text, position, message):
    """It stops at that mistake and leaves the document incomplete."""
    document = json_text.read(text)
    assert not document.complete
    assert (document.faults[-1].position, document.faults[-1].message) == (position, message)


def test_half_of_a_surrogate_pair_is_a_fault():
    """Such a string cannot be written in UTF-8, and QRMI rejects it."""
    (fault,) = json_text.read(r'{"a": "\ud800"}').faults
    assert fault.kind is FaultKind.ENCODING


def test_numbers_with_too_many_digits():
    """A number with more digits than Python converts is a fault, not an exception."""
    (fault,) = json_text.read("1" * 5000).faults
    assert fault.message == "the number has too many digits"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ((), "$"),
        (("resources", 3, "environment", "QRMI_X"), "resources[3].environment.QRMI_X"),
        (("a b", 0), '["a b"][0]'),
        (("a", "x\ny"), 'a["x\\ny"]'),
    ],
)
def test_paths_as_text(path, text):
    """A path has dots and indices; keys that are not plain words are quoted."""
    assert json_text.describe_path(path) == text
