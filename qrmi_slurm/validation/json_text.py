"""A JSON reader that records the position of each key and value, and reads on after common mistakes.

Python's `json` stops at the first fault and drops positions and duplicate keys. An admin who edits a config by hand
wants every fault at once, with its line and column.
"""

import json
import re
from bisect import bisect_right
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Final, NoReturn

Path = tuple[str | int, ...]

# The limit of serde_json, with which QRMI reads the same file.
MAX_DEPTH: Final = 128

# After this many mistakes the text is hardly JSON at all, and more of them only bury the first.
MAX_FAULTS: Final = 20

# Reads one string; strict, so raw control characters are faults.
_DECODER: Final = json.JSONDecoder()

_BLANKS: Final = re.compile(r"[ \t\r\n]*")
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?(?![\w.+-])")
_WORD: Final = re.compile(r"[^\s{}\[\],:\"'#/]+")
_STRING_ON_LINE: Final = re.compile(r'"(?:[^"\\\n]|\\[^\n])*"')
_SINGLE_QUOTED: Final = re.compile(r"'([^'\n]*)'")
_LITERALS: Final = {"true": True, "false": False, "null": None}
_MISSPELLED: Final = {
    "True": ("true", True),
    "TRUE": ("true", True),
    "False": ("false", False),
    "FALSE": ("false", False),
    "None": ("null", None),
    "NULL": ("null", None),
    "undefined": ("null", None),
}
_QUOTE_IT: Final = 'put it in double quotes: "..."'
_TYPOGRAPHIC_QUOTES: Final = "\u201c\u201d\u201e\u00ab\u00bb\u2018\u2019"


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """A place in a text.

    Args:
        line: counted from 1.
        column: counted from 1, in characters.
    """

    line: int
    column: int


class FaultKind(Enum):
    """The kind of a mistake."""

    SYNTAX = "syntax"
    DUPLICATE_KEY = "duplicate key"
    ENCODING = "encoding"


@dataclass(frozen=True, slots=True)
class Fault:
    """A mistake in the text; never contains a value from it.

    Args:
        kind: what kind of mistake.
        position: where.
        message: what is wrong.
        hint: what to write instead.
        path: the object or value it is in, as far as known.
    """

    kind: FaultKind
    position: Position
    message: str
    hint: str = ""
    path: Path = ()


@dataclass(frozen=True, slots=True)
class _Object:
    start: int
    keys: dict[str, int]
    members: dict[str, "_Shape"]


@dataclass(frozen=True, slots=True)
class _Array:
    start: int
    items: list["_Shape"]


# Where a value is: for a scalar only its offset.
_Shape = int | _Object | _Array


@dataclass(frozen=True, slots=True)
class Document:
    """What was read.

    Args:
        value: the JSON value; for a duplicate key the last one, as in QRMI. None if nothing could be read.
        complete: whether the text was read to its end.
        faults: every mistake, in the order of the text.
    """

    value: Any
    complete: bool
    faults: tuple[Fault, ...]
    _shape: _Shape = field(repr=False)
    _line_starts: tuple[int, ...] = field(repr=False)

    def position(self, path: Path, *, of_key: bool = False) -> Position:
        """Return the position of a value, or of its key.

        Args:
            path: keys and indices from the root. For one that does not exist, its nearest existing parent is used.
            of_key: return the key's position instead of the value's.
        """
        shape: _Shape = self._shape
        key_offset: int | None = None
        for step in path:
            if isinstance(shape, _Object) and isinstance(step, str) and step in shape.members:
                key_offset = shape.keys[step]
                shape = shape.members[step]
            elif isinstance(shape, _Array) and isinstance(step, int) and step < len(shape.items):
                key_offset = None
                shape = shape.items[step]
            else:
                break
        start = shape if isinstance(shape, int) else shape.start
        return _position(self._line_starts, key_offset if of_key and key_offset is not None else start)


def read(text: str) -> Document:
    """Read a JSON text and note all its mistakes; never raises.

    After comments, trailing or missing commas, single quotes and words such as `True` reading goes on. Any other
    mistake ends it and leaves the document incomplete: after a missing quote or colon a secret could be taken for a
    key, and keys are shown.
    """
    reader = _Reader(text)
    complete = True
    value: Any = None
    shape: _Shape = 0
    try:
        value, shape = reader.document()
    except _Stop:
        complete = False
    faults = sorted(reader.faults, key=lambda fault: fault.position)
    return Document(value, complete, tuple(faults), shape, reader.line_starts)


def describe_path(path: Path) -> str:
    """Return a path as text, as in `resources[3].environment.NAME`; the root is `$`."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif re.fullmatch(r"[A-Za-z_$][A-Za-z0-9_$-]*", step):
            text += f".{step}" if text else step
        else:
            text += f"[{json.dumps(step)}]"
    return text or "$"


def _position(line_starts: tuple[int, ...], offset: int) -> Position:
    line = bisect_right(line_starts, offset)
    return Position(line, offset - line_starts[line - 1] + 1)


class _Stop(Exception):
    """Reading cannot go on; the fault has been noted."""


class _Reader:
    """One pass over the text, from left to right."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.faults: list[Fault] = []
        self.line_starts = (0, *(match.end() for match in re.finditer("\n", text)))

    def document(self) -> tuple[Any, _Shape]:
        if self.text.startswith("\ufeff"):
            self.note(
                0,
                "the file begins with a byte order mark (BOM), which QRMI rejects",
                "save it as UTF-8 without a BOM",
                kind=FaultKind.ENCODING,
            )
            self.at = 1
        self.skip()
        if self.at == len(self.text):
            self.stop(self.at, "the file is empty", 'the smallest config is {"resources": []}')
        value, shape = self.value((), 1)
        self.skip()
        if self.at < len(self.text):
            self.stop(
                self.at, "text after the end of the JSON value", "remove it, or an extra closing bracket before it"
            )
        return value, shape

    # --- faults -------------------------------------------------------------------------------------------

    def note(
        self,
        offset: int,
        message: str,
        hint: str = "",
        *,
        kind: FaultKind = FaultKind.SYNTAX,
        path: Path = (),
    ) -> None:
        self.faults.append(Fault(kind, _position(self.line_starts, offset), message, hint, path))
        if kind is FaultKind.SYNTAX and sum(f.kind is kind for f in self.faults) >= MAX_FAULTS:
            raise _Stop

    def stop(self, offset: int, message: str, hint: str = "", path: Path = ()) -> NoReturn:
        self.note(offset, message, hint, path=path)
        raise _Stop

    # --- reading ------------------------------------------------------------------------------------------

    def peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def skip(self) -> None:
        """Skip whitespace. Comments and other whitespace are skipped too, and noted as faults."""
        while True:
            match = _BLANKS.match(self.text, self.at)
            self.at = match.end() if match else self.at
            char = self.peek()
            if char == "#" or self.text.startswith("//", self.at):
                end = self.text.find("\n", self.at)
            elif self.text.startswith("/*", self.at):
                end = self.text.find("*/", self.at + 2)
                end = end + 2 if end >= 0 else end
            elif char and char.isspace():
                self.note(self.at, f"U+{ord(char):04X} is not whitespace in JSON", "write an ordinary space")
                self.at += 1
                continue
            else:
                return
            self.note(self.at, "JSON has no comments", "remove the comment")
            self.at = end if end >= 0 else len(self.text)

    def value(self, path: Path, depth: int) -> tuple[Any, _Shape]:
        start = self.at
        char = self.peek()
        if char == '"':
            return self.string(path), start
        if char in "{[" and char:
            if depth >= MAX_DEPTH:
                self.stop(start, f"nested deeper than {MAX_DEPTH} levels, which QRMI rejects", path=path)
            return self.object(path, depth) if char == "{" else self.array(path, depth)
        number = _NUMBER.match(self.text, start)
        if number:
            self.at = number.end()
            return self.number(number, path), start
        return self.misspelled(path), start

    def number(self, match: re.Match[str], path: Path) -> int | float:
        if match[1] or match[2]:
            return float(match[0])
        try:
            return int(match[0])
        except ValueError:  # Python limits how many digits it converts
            self.note(match.start(), "the number has too many digits", path=path)
            return 0

    def string(self, path: Path) -> str:
        start = self.at
        try:
            text, self.at = _DECODER.raw_decode(self.text, start)
        except json.JSONDecodeError as error:
            return self.broken_string(start, error, path)
        if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
            self.note(
                start,
                "the string contains half of a surrogate pair, which is not a character",
                r"write both halves (\ud83d\ude00), or the character itself",
                kind=FaultKind.ENCODING,
                path=path,
            )
        return str(text)

    def broken_string(self, start: int, error: json.JSONDecodeError, path: Path) -> str:
        match = _STRING_ON_LINE.match(self.text, start)
        if match is None:
            self.stop(start, "the string is not closed on this line", 'close it with "', path)
        self.at = match.end()
        at = max(start, error.pos)
        if "escape" in error.msg:
            message = "the string contains an escape that JSON does not have"
            self.note(at, message, r"write a backslash as \\", path=path)
        else:
            message = "the string contains a raw control character"
            self.note(at, message, r"write a tab as \t, and remove other control characters", path=path)
        return match[0][1:-1]

    def misspelled(self, path: Path) -> Any:
        """Note that this is not a JSON value, and return the value that was meant where that is clear."""
        start = self.at
        single = _SINGLE_QUOTED.match(self.text, start)
        if single:
            self.at = single.end()
            self.note(start, "the string is in single quotes", _QUOTE_IT, path=path)
            return single[1]
        char = self.peek()
        if not char:
            self.stop(start, "the file ends before the JSON value does", "add the missing } or ]", path)
        if char in _TYPOGRAPHIC_QUOTES:
            self.stop(start, "a typographic quote cannot begin a string", 'write a plain quote: "', path)
        word = _WORD.match(self.text, start)
        if word is None:
            self.stop(start, "a value is missing here", 'write "text", {...}, [...], true or false', path)
        self.at = word.end()
        text = word[0]
        if text in _LITERALS:
            return _LITERALS[text]
        if text in _MISSPELLED:
            right, value = _MISSPELLED[text]
            self.note(start, f"{text} is not a JSON value", f"write {right}", path=path)
            return value
        if text[0] in "+-.0123456789" or text in ("NaN", "Infinity"):
            self.note(start, "this is not a JSON number", "values of variables are strings: quote it", path=path)
            return 0
        self.stop(start, "the string is not in quotes", _QUOTE_IT, path)

    def object(self, path: Path, depth: int) -> tuple[dict[str, Any], _Object]:
        shape = _Object(self.at, {}, {})
        result: dict[str, Any] = {}
        self.at += 1
        self.skip()
        while not self.closes("}", shape.start, path):
            key_start = self.at
            key = self.key(path)
            if key in result:
                first = _position(self.line_starts, shape.keys[key])
                self.note(
                    key_start,
                    f'the key "{key}" is already used in this object, on line {first.line}',
                    "keep one of the two: JSON parsers differ in which one they use",
                    kind=FaultKind.DUPLICATE_KEY,
                    path=(*path, key),
                )
            self.skip()
            if self.peek() != ":":
                self.stop(self.at, "a colon is missing after the key", 'write "key": value', path)
            self.at += 1
            self.skip()
            result[key], shape.members[key] = self.value((*path, key), depth + 1)
            shape.keys[key] = key_start
            self.comma("}", path)
        return result, shape

    def array(self, path: Path, depth: int) -> tuple[list[Any], _Array]:
        shape = _Array(self.at, [])
        result: list[Any] = []
        self.at += 1
        self.skip()
        while not self.closes("]", shape.start, path):
            value, item = self.value((*path, len(result)), depth + 1)
            result.append(value)
            shape.items.append(item)
            self.comma("]", path)
        return result, shape

    def closes(self, bracket: str, opened_at: int, path: Path) -> bool:
        char = self.peek()
        if char == bracket:
            self.at += 1
            return True
        if not char or char in "}]":
            opened = _position(self.line_starts, opened_at)
            what = f"found {char}" if char else "the file ends"
            opening = "{" if bracket == "}" else "["
            hint = f"the {opening} at line {opened.line} column {opened.column} is still open"
            self.stop(self.at, f"{what} where {bracket} is expected", hint, path)
        return False

    def key(self, path: Path) -> str:
        if self.peek() == '"':
            return self.string(path)
        start = self.at
        single = _SINGLE_QUOTED.match(self.text, start)
        if single is None:
            what = "the key is not in quotes" if _WORD.match(self.text, start) else "a key is missing here"
            self.stop(start, what, 'write "key": value', path)
        self.at = single.end()
        self.note(start, "the key is in single quotes", 'write "key": value', path=path)
        return single[1]

    def comma(self, bracket: str, path: Path) -> None:
        """Skip the comma after a value, and note a missing or extra one."""
        end_of_value = self.at
        self.skip()
        if self.peek() != ",":
            if self.peek() and self.peek() not in "}]":
                self.note(end_of_value, "a comma is missing after this value", "add a comma", path=path)
                if self.peek() not in '"{[':
                    raise _Stop
            return
        comma_at = self.at
        self.at += 1
        self.skip()
        while self.peek() == ",":
            self.note(self.at, "extra comma", "remove it", path=path)
            self.at += 1
            self.skip()
        if self.peek() == bracket:
            self.note(comma_at, f"trailing comma before the closing {bracket}", "remove the comma", path=path)
