"""Stand-ins for modules that the hooks' Python would load for a few names of theirs.

Each QPU job would pay for loading them twice, in Prolog and in Epilog. A stand-in has just those names. Whoever asks
for anything else gets the real module, which takes the stand-in's place.

- `logging`: QRMI's package asks for a logger, which only its helpers for users' programs write to.
- `urllib.parse`: pathlib asks for a function for `Path.as_uri`.
"""

import sys
from _frozen_importlib_external import PathFinder
from types import ModuleType


def install() -> None:
    """Put them in the place of modules that are not loaded yet; before anything else of ours, and QRMI."""
    _put("logging", getLogger=_Logger)
    if "urllib.parse" not in sys.modules:
        import urllib

        _put("urllib.parse", quote_from_bytes=_quote_from_bytes)
        urllib.__dict__["parse"] = sys.modules["urllib.parse"]


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


class _Logger:
    """A logger that loads `logging` when it is used."""

    def __init__(self, name: str | None = None) -> None:
        self._logger_name = name

    def __getattr__(self, name: str) -> object:
        return getattr(_real("logging").getLogger(self._logger_name), name)


def _quote_from_bytes(*arguments: object, **options: object) -> object:
    return _real("urllib.parse").quote_from_bytes(*arguments, **options)
