"""Stand-ins for modules that the hooks' Python would load for a few names of theirs.

Each QPU job would pay for loading them twice, in Prolog and in Epilog. A stand-in has just those names. Whoever asks
for anything else gets the real module, which takes the stand-in's place.

- `logging`: QRMI's package asks for a logger, which only its helpers for users' programs write to.
- `urllib.parse`: pathlib asks for a function for `Path.as_uri`.
- `json`: what reads and writes JSON is in C; the module around it compiles regular expressions.
- `typing`: annotations are there for mypy, and a NamedTuple is one of `collections`.
"""

import sys
from _frozen_importlib_external import PathFinder
from types import ModuleType

# In later releases annotations are no longer in a class's namespace, and nobody has tried the rest there.
_LAST_TRIED = (3, 13)


def install() -> None:
    """Put them in the place of modules that are not loaded yet; before anything else of ours, and QRMI."""
    _put("logging", getLogger=_Logger)
    if "urllib.parse" not in sys.modules:
        import urllib

        _put("urllib.parse", quote_from_bytes=_quote_from_bytes)
        urllib.__dict__["parse"] = sys.modules["urllib.parse"]
    if sys.version_info[:2] <= _LAST_TRIED:
        _put("json", loads=_loads, dumps=_dumps)
        _put("typing", TYPE_CHECKING=False, NamedTuple=_NamedTuple, **dict.fromkeys(_ANNOTATIONS, _Annotation()))


def _put(name: str, **has: object) -> None:
    if name not in sys.modules:
        sys.modules[name] = _StandIn(name, **has)


class _StandIn(ModuleType):
    """A module that is loaded when something is asked of it that it does not have.

    Args:
        name: the module's.
        has: what it has.
    """

    def __init__(self, name: str, **has: object) -> None:
        super().__init__(name)
        self.__dict__.update(has)

    def __getattr__(self, name: str) -> object:
        if name == "__path__":  # which each `from ... import` asks for
            spec = PathFinder.find_spec(self.__name__) if "." not in self.__name__ else None
            if spec is None or spec.submodule_search_locations is None:
                raise AttributeError(name)
            return spec.submodule_search_locations
        return getattr(_real(self.__name__), name)

    def __setattr__(self, name: str, value: object) -> None:
        if name.startswith("__"):  # the import system's
            super().__setattr__(name, value)
        else:
            setattr(_real(self.__name__), name, value)


def _real(name: str) -> ModuleType:
    if isinstance(sys.modules.get(name), _StandIn):
        del sys.modules[name]
    __import__(name)
    return sys.modules[name]


# --- logging and urllib.parse ---------------------------------------------------------------------------------


class _Logger:
    """A logger that loads `logging` when it is used."""

    def __init__(self, name: str | None = None) -> None:
        self._logger_name = name

    def __getattr__(self, name: str) -> object:
        return getattr(_real("logging").getLogger(self._logger_name), name)


def _quote_from_bytes(*arguments: object, **options: object) -> object:
    return _real("urllib.parse").quote_from_bytes(*arguments, **options)


# --- json -----------------------------------------------------------------------------------------------------

_BLANKS = " \t\n\r"
_CONSTANTS = {"-Infinity": float("-inf"), "Infinity": float("inf"), "NaN": float("nan")}


class _Context:
    """What the scanner of `_json` asks for, as of json.JSONDecoder."""

    strict = True
    object_hook = None
    parse_float = float
    parse_int = int
    parse_constant = _CONSTANTS.__getitem__

    def __init__(self, object_pairs_hook: object) -> None:
        self.object_pairs_hook = object_pairs_hook


def _loads(text: str | bytes | bytearray, *, object_pairs_hook: object = None) -> object:
    """Do what json.loads does; where that is more than usual, such as saying what is wrong, the real one does it."""
    try:
        from _json import make_scanner

        told = text if isinstance(text, str) else text.decode()
        value, end = make_scanner(_Context(object_pairs_hook))(  # type: ignore[arg-type]
            told, len(told) - len(told.lstrip(_BLANKS))
        )
        if not told[end:].strip(_BLANKS):
            return value
    except Exception:  # noqa: BLE001, S110 it fails again below, with its own words
        pass
    return _real("json").loads(text, object_pairs_hook=object_pairs_hook)


def _dumps(value: object, **options: object) -> str:
    """Do what json.dumps does; with unusual options or values, the real one does it."""
    if not options or options == {"ensure_ascii": True}:
        try:
            from _json import encode_basestring_ascii, make_encoder

            encode = make_encoder({}, _refuse, encode_basestring_ascii, None, ": ", ", ", False, False, True)
            return "".join(encode(value, 0))
        except Exception:  # noqa: BLE001, S110 as above
            pass
    text: str = _real("json").dumps(value, **options)
    return text


def _refuse(_value: object) -> object:
    raise TypeError


# --- typing ---------------------------------------------------------------------------------------------------

_ANNOTATIONS = ("Any", "Final", "Literal", "NoReturn", "Self")

# What typing.NamedTuple does not copy from the class's namespace either.
_NOT_COPIED = frozenset({"__module__", "__name__", "__annotations__"})


class _Annotation:
    """What stands in an annotation, and means nothing to Python."""

    def __getitem__(self, _of: object) -> "_Annotation":
        return self

    def __or__(self, _other: object) -> "_Annotation":
        return self

    __ror__ = __or__


class _ToNamedTuple(type):
    """Makes `class Name(NamedTuple)` a named tuple of `collections`, as typing.NamedTuple does."""

    def __new__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, object]) -> type:
        if not bases:
            return super().__new__(cls, name, bases, namespace)
        from collections import namedtuple

        annotations = namespace["__annotations__"]
        assert isinstance(annotations, dict)  # noqa: S101
        defaults = [namespace[field] for field in annotations if field in namespace]
        made = namedtuple(name, annotations, defaults=defaults, module=str(namespace["__module__"]))  # type: ignore[misc]
        made.__annotations__ = annotations
        for key, value in namespace.items():
            if key not in annotations and key not in _NOT_COPIED:
                setattr(made, key, value)
        return made


class _NamedTuple(metaclass=_ToNamedTuple):
    """In place of typing.NamedTuple."""
