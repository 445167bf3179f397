import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrmi_slurm.validation import json_text
from qrmi_slurm.validation.excerpt import masked_line
from qrmi_slurm.validation.json_text import FaultKind, Position

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(JSON_VALUES, st.sampled_from([None, 0, 2]), st.booleans())
def test_reads_what_json_reads(value, indent, ascii_only):
    """Every JSON text is read to the same value as by Python's json, without a fault."""
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    document = json_text.read(text)
    assert document.value == value
    assert document.complete
    assert document.faults == ()


@given(st.text(alphabet="{}[]\":,\\/'#tfn0-1.eE \n\tTrue\u00a0\ud800", max_size=40))
def test_any_text_is_read_without_raising(text):
    """No text makes the reader raise, and a text without faults is one that json reads to the same value."""
    document = json_text.read(text)
    if document.complete and not document.faults:
        assert document.value == json.loads(text)
    else:
        assert document.faults


@given(st.binary(max_size=3), st.integers(0, 60))
def test_a_refusal_of_json_is_a_fault(inserted, place):
    """A text that json refuses has at least one fault."""
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
def test_every_key_and_value_has_its_place(path, of_key, expected):
    """A key and a value are found at their own line and column; what is missing, at what should hold it."""
    assert json_text.read(TEXT).position(path, of_key=of_key) == expected


def test_duplicate_keys_are_reported_and_the_last_counts():
    """Each repetition of a key in one object is a fault at the repetition; the last value counts."""
    document = json_text.read('{"a": 1,\n "b": {"a": 2},\n "a": 3}')
    assert document.value == {"a": 3, "b": {"a": 2}}
    (fault,) = document.faults
    assert (fault.kind, fault.position, fault.path) == (FaultKind.DUPLICATE_KEY, Position(3, 2), ("a",))
    assert "line 1" in fault.message


@pytest.mark.parametrize(
    ("text", "value", "message"),
    [
        ('{"a": 1,}', {"a": 1}, "a comma stands before the closing }"),
        ("[1, 2, ]", [1, 2], "a comma stands before the closing ]"),
        ('{"a": 1,, "b": 2}', {"a": 1, "b": 2}, "one comma too many"),
        ('{"a": 1 "b": 2}', {"a": 1, "b": 2}, "a comma is missing behind this value"),
        ('{"a": 1} // so', {"a": 1}, "JSON has no comments"),
        ('{"a": /* so */ 1}', {"a": 1}, "JSON has no comments"),
        ('# so\n{"a": 1}', {"a": 1}, "JSON has no comments"),
        ("{'a': 'b'}", {"a": "b"}, "a key stands in single quotes"),
        ('{"a": True}', {"a": True}, "True is not a JSON value"),
        ('{"a": NaN}', {"a": 0}, "this is not a JSON number"),
        ('{"a": 007}', {"a": 0}, "this is not a JSON number"),
        ('{"a": "x\ty"}', {"a": "x\ty"}, "the string holds a raw control character"),
        ('{"a": "x\\y"}', {"a": "x\\y"}, "the string holds an escape that JSON does not know"),
        ('{"a":\u00a01}', {"a": 1}, "U+00A0 is not a blank in JSON"),
        ('\ufeff{"a": 1}', {"a": 1}, "the file begins with a byte order mark, which QRMI refuses"),
    ],
)
def test_reads_on_after_the_usual_mistakes(text, value, message):
    """After a mistake whose meaning is clear the rest of the text is read, so that its faults are told too."""
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
        ('{"a": 1]', Position(1, 8), "] stands where } is expected"),
        ('{"a" 1}', Position(1, 6), "a colon is missing behind the key"),
        ('{"a": }', Position(1, 7), "a value is missing here"),
        ('{"a": b}', Position(1, 7), "a string stands without quotes"),
        ("{a: 1}", Position(1, 2), "a key stands without quotes"),
        ('{"a": "b\n}', Position(1, 7), "the string does not end on its line"),
        ('{"a": \u201cb\u201d}', Position(1, 7), "a typographic quote does not begin a string"),
        ("{} {}", Position(1, 4), "text after the end of the JSON value"),
        ("[" * 200 + "]" * 200, Position(1, 128), "nested deeper than 128 levels, which QRMI refuses"),
    ],
)
def test_stops_where_the_meaning_is_lost(text, position, message):
    """Where nobody can tell what was meant, reading ends there, and the document says that it is not complete."""
    document = json_text.read(text)
    assert not document.complete
    assert (document.faults[-1].position, document.faults[-1].message) == (position, message)


def test_half_of_a_surrogate_pair_is_a_fault():
    """A string that no program can write in UTF-8 is a fault, as QRMI refuses it."""
    (fault,) = json_text.read(r'{"a": "\ud800"}').faults
    assert fault.kind is FaultKind.ENCODING


def test_long_numbers_are_a_fault_and_no_surprise():
    """A number with more digits than Python converts is a fault."""
    (fault,) = json_text.read("1" * 5000).faults
    assert fault.message == "the number is too long"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ((), "$"),
        (("resources", 3, "environment", "QRMI_X"), "resources[3].environment.QRMI_X"),
        (("a b", 0), '["a b"][0]'),
        (("a", "x\ny"), 'a["x\\ny"]'),
    ],
)
def test_paths_are_written_as_people_do(path, text):
    """A path is written with dots and indices, and quoted where a key is no word."""
    assert json_text.describe_path(path) == text


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
def test_an_excerpt_shows_only_what_is_public(line, column, before_caret, from_caret):
    """Under a syntax error stands the line with all but public words masked, and the caret at the fault."""
    text, at = masked_line(line, Position(1, column))
    assert (text[:at], text[at:]) == (before_caret, from_caret)


def test_an_excerpt_of_a_long_line_is_cut():
    """Of a config on one line only the neighbourhood of the fault is shown."""
    line = '{"name": "a"},' * 1000
    text, at = masked_line(line, Position(1, 7001))
    assert len(text) < 120
    assert text.startswith("...")
    assert text.endswith("...")
    assert 0 <= at < len(text)
