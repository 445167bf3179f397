"""The stand-ins cost nothing, and give way to the real modules as soon as these are used."""

import json
import subprocess
import sys
from enum import StrEnum
from typing import NamedTuple

import pytest

from qrmi_slurm import stand_ins

USES = {
    "nothing": ("", False),
    "QRMI's own import": ("from logging import getLogger\nlogger = getLogger('qrmi')", False),
    "QRMI": ("import qrmi\nassert qrmi.QuantumResource", False),
    "a logger": ("from logging import getLogger\nassert getLogger('qrmi').name == 'qrmi'", True),
    "the root logger": ("import logging\nlogging.getLogger().warning('%s', 'x')", True),
    "a constant": ("import logging\nassert logging.WARNING == 30", True),
    "a name of it": ("from logging import Handler\nassert issubclass(Handler, object)", True),
    "all of it": ("from logging import *\nassert callable(basicConfig)", True),
    "what it does not have": ("import logging\ntry:\n    logging.nothing\nexcept AttributeError:\n    pass", True),
    "a module in it": ("import logging.handlers\nassert logging.handlers.SysLogHandler", True),
    "a name of a module in it": ("from logging.handlers import SysLogHandler\nassert SysLogHandler", True),
    "a change": (
        "import logging as l\nl.lastResort = 1\nimport logging\nassert logging.lastResort == 1",
        True,
    ),
    "its other users": ("import concurrent.futures\nimport logging\nassert logging.WARNING", True),
}


@pytest.mark.parametrize(("use", "is_loaded"), USES.values(), ids=USES.keys())
def test_logging_is_loaded_when_it_is_used(use, is_loaded):
    end = "import sys\nprint('weakref' in sys.modules, type(sys.modules['logging']).__name__)"
    expected = "True module" if is_loaded else "False _StandIn"
    assert run(use, end) == expected


PATHS = {
    "pathlib": ("from pathlib import Path\nPath('/a b').parts", False),
    "its user": ("from pathlib import Path\nassert Path('/a b').as_uri() == 'file:///a%20b'", True),
    "an import": ("import urllib.parse\nassert urllib.parse.urlsplit('http://h:1/x').port == 1", True),
    "a name of it": ("from urllib.parse import quote\nassert quote(' ') == '%20'", True),
    "its sibling": ("import urllib.error\nimport urllib.parse\nassert urllib.parse.unquote('%20') == ' '", True),
    "no package": (
        "try:\n    import urllib.parse.x\nexcept ModuleNotFoundError:\n    pass\nimport urllib.parse",
        False,
    ),
}


@pytest.mark.parametrize(("use", "is_loaded"), PATHS.values(), ids=PATHS.keys())
def test_urllib_is_loaded_when_it_is_used(use, is_loaded):
    end = "import urllib.parse\nprint(*(type(one).__name__ for one in (sys.modules['urllib.parse'], urllib.parse)))"
    assert run(use, end) == ("module module" if is_loaded else "_StandIn _StandIn")


def test_what_is_there_already_stays():
    assert (
        run("assert logging.WARNING", "print(type(logging).__name__)", begin="import logging, urllib.parse") == "module"
    )


def run(use, end, begin=""):
    begin = f"import sys\nsys.path[:] = {sys.path!r}\n{begin}\nfrom qrmi_slurm import stand_ins\nstand_ins.install()"
    python = [sys.executable, "-I", "-S", "-c", f"{begin}\n{use}\n{end}"]
    return subprocess.run(python, capture_output=True, text=True, check=True).stdout.strip()


# --- json ----------------------------------------------------------------------------------------------------

TEXTS = [
    '{"a": [1, 2.5, -3e4, true, false, null, "\\u00e9\\n\\ud83d\\ude00"], "b": {"a": {}}}',
    " \t\r\n[1]\n ",
    '"text"',
    "17",
    "NaN",
    "[Infinity, -Infinity]",
    '"é 量子"',
    "\ufeff[1]",
    "",
    " ",
    "[1",
    "[1] x",
    "[1]\0",
    '{"a": 1,}',
    "{'a': 1}",
    '"a\nb"',
    '"\\ud800"',
    "01",
    "9" * 5000,
    "[" * 100_000,
    '{"a": 1, "a": 2}',
    "[1]\x0b",
]
CONTENTS = [*(text.encode() for text in TEXTS), b"\xff", "[1]".encode("utf-16"), b"\xef\xbb\xbf[1]", b'"\xed\xa0\x80"']


@pytest.mark.parametrize("text", [*TEXTS, *CONTENTS], ids=range(len(TEXTS) + len(CONTENTS)))
@pytest.mark.parametrize("hook", [None, list, dict])
def test_json_is_read_as_by_the_real_one(text, hook):
    assert repr(attempt(lambda: stand_ins._loads(text, object_pairs_hook=hook))) == repr(
        attempt(lambda: json.loads(text, object_pairs_hook=hook))
    )


class Word(StrEnum):
    A = "a"


LOOP: list[object] = []
LOOP.append(LOOP)
VALUES = [
    {"a": [1, 2.5, True, None, "é\n\ud800\x7f"], 7: Word.A, None: (1, 2), True: {}, 2.5: []},
    "text",
    Word.A,
    17,
    float("nan"),
    None,
    [float("inf")],
    {(1, 2): 3},
    object(),
    {"a": {1, 2}},
    LOOP,
    b"bytes",
    NamedTuple("Pair", [("a", int), ("b", str)])(1, "b"),
]


@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
@pytest.mark.parametrize("options", [{}, {"ensure_ascii": True}, {"ensure_ascii": False}, {"indent": 2}])
def test_json_is_written_as_by_the_real_one(value, options):
    assert attempt(lambda: stand_ins._dumps(value, **options)) == attempt(lambda: json.dumps(value, **options))


def attempt(work):
    try:
        return work()
    except (TypeError, ValueError, RecursionError) as error:
        return type(error).__name__, str(error)


JSON = {
    "what the hooks need": ("import json\nassert json.loads(json.dumps({'a': 1})) == {'a': 1}", False),
    "an error": (
        "import json\ntry:\n    json.loads('{')\nexcept json.JSONDecodeError as e:\n    assert e.pos == 1",
        True,
    ),
    "the rest": ("import json.tool\nimport json\nassert json.JSONEncoder().encode(1) == '1'", True),
}


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="there the real ones are used")
@pytest.mark.parametrize(("use", "is_loaded"), JSON.values(), ids=JSON.keys())
def test_json_is_loaded_when_it_is_used(use, is_loaded):
    assert run(use, "print('json.decoder' in sys.modules)") == str(is_loaded)


# --- typing --------------------------------------------------------------------------------------------------

ENTRY = """
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, NoReturn, Self
from collections.abc import Callable, Mapping
Result = Literal["a", "b"]
LIMIT: Final[int] = 3
NAMES: Final = ("a",)
class Entry(NamedTuple):
    '''An entry.'''
    name: str
    environment: Mapping[str, Any] | None
    token: Any | None = None
    work: Callable[[Any], Self] | Literal["x"] = "x"
    others: None | Any = ()
    def __repr__(self) -> str:
        return f"Entry({self.name})"
    @property
    def is_long(self) -> bool:
        return len(self.name) > LIMIT
    @classmethod
    def of(cls, name: str) -> Self:
        return cls(name, None)
    def to(self, name: str) -> Self:
        return self._replace(name=name)
def end() -> NoReturn: ...
assert not TYPE_CHECKING
one = Entry.of("abcd")
def attempt(work):
    try:
        return work()
    except (TypeError, ValueError, AttributeError) as error:
        return type(error).__name__, str(error)
import copy
print([
    one, tuple(one), one.is_long, one.to("a").is_long, one == Entry("abcd", None), hash(one) == hash(tuple(one)),
    one._asdict(), Entry._fields, Entry._field_defaults, Entry.__doc__, Entry.__name__, Entry.__qualname__,
    Entry.__module__, Entry.__slots__, Entry.__mro__, list(Entry.__annotations__), Entry.__match_args__,
    attempt(Entry), attempt(lambda: Entry("a", None, no=1)), attempt(lambda: one._replace(no=1)),
    attempt(lambda: setattr(one, "name", "b")), attempt(lambda: setattr(one, "no", "b")), copy.copy(one),
    isinstance(one, Entry), isinstance(one, tuple), Entry._make(["a", 1, 2, 3, 4]), one[0], one.others,
])
"""


def test_a_named_tuple_is_like_that_of_typing():
    real = subprocess.run([sys.executable, "-I", "-S", "-c", ENTRY], capture_output=True, text=True, check=True).stdout
    assert run(ENTRY, "") == real.strip()
    if sys.version_info < (3, 14):
        assert run(ENTRY, "print(type(sys.modules['typing']).__name__)").endswith("\n_StandIn")


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="there the real one is used")
def test_typing_is_loaded_when_it_is_used():
    use = "from typing import Any, get_type_hints\nassert get_type_hints(lambda: 0) == {}\nimport typing"
    assert run(use, "print(typing.Any is not Any, type(typing).__name__)") == "True module"
