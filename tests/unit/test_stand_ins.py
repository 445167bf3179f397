"""The stand-ins cost nothing, and give way to the real modules as soon as these are used."""

import subprocess
import sys

import pytest

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
