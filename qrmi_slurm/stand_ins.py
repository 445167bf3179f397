"""Stand-ins for modules that the hooks' Python would load for one name and never use.

QRMI's package asks `logging` for a logger, which only its helpers for users' programs write to, and pathlib asks
`urllib.parse` for a function for `Path.as_uri`. Loading both takes 9 ms of processor time, and each QPU job would pay
that twice. A stand-in has that name only. Whoever uses what the name gives, or asks for anything else, gets the real
module, which takes the stand-in's place.
"""

import sys
from _frozen_importlib_external import PathFinder
from types import ModuleType


def install() -> None:
    """Put them in the place of modules that are not loaded yet; before QRMI and pathlib are."""
    if "logging" not in sys.modules:
        sys.modules["logging"] = _StandIn("logging", getLogger=_Logger)
    if "urllib.parse" not in sys.modules:
        import urllib

        stand_in = sys.modules["urllib.parse"] = _StandIn("urllib.parse", quote_from_bytes=_quote_from_bytes)
        urllib.__dict__["parse"] = stand_in


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


class _Logger:
    """A logger that loads `logging` when it is used."""

    def __init__(self, name: str | None = None) -> None:
        self._logger_name = name

    def __getattr__(self, name: str) -> object:
        return getattr(_real("logging").getLogger(self._logger_name), name)


def _quote_from_bytes(*arguments: object, **options: object) -> object:
    return _real("urllib.parse").quote_from_bytes(*arguments, **options)


def _real(name: str) -> ModuleType:
    if isinstance(sys.modules.get(name), _StandIn):
        del sys.modules[name]
    __import__(name)
    return sys.modules[name]
