"""Imports point one way between rooms, and the hooks load nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import qrmi_slurm

PACKAGE = Path(qrmi_slurm.__file__).parent

# The base modules, which every room may import, in their own order.
BASE = ("stand_ins", "names", "errors", "secret", "deadline", "processes", "text", "files", "log", "failure")
BASE_MAX_MODULES = 12

# What each room may import besides the base modules and itself. Two chains share their beginning:
#   base, slurm, config, {calls, state}, outages, broker, hooks, {scripts, command}
#   base, slurm, config, {calls, state, validation}, outages, {scheduling, report}, checks, command
_FIRST = {"slurm", "config"}
_BELOW_OUTAGES = _FIRST | {"calls", "state"}
MAY_IMPORT = {
    "slurm": set(),
    "config": {"slurm"},
    "calls": _FIRST,
    "state": _FIRST,
    "validation": _FIRST | {"calls", "state"},
    "outages": _BELOW_OUTAGES,
    "broker": _BELOW_OUTAGES | {"outages"},
    "hooks": _BELOW_OUTAGES | {"outages", "broker"},
    "scheduling": _BELOW_OUTAGES | {"validation", "outages"},
    "report": _BELOW_OUTAGES | {"validation", "outages"},
    "checks": _BELOW_OUTAGES | {"validation", "outages", "scheduling", "report"},
    "command": _BELOW_OUTAGES | {"validation", "outages", "broker", "hooks", "scheduling", "report", "checks"},
}
# Rooms that run as root in every QPU job: standard library and QRMI only, loaded piece by piece.
HOOK_ROOMS = ("slurm", "config", "calls", "state", "outages", "hooks")

# Rooms for terminals and admins; hooks and broker never load them.
ADMIN_ROOMS = {"validation", "checks", "scheduling", "report", "command"}

MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py"
)


def room_of(module):
    """Return a module's room, or an empty string for a base module."""
    return module.partition(".")[0] if "." in module else ""


# The modules of the broker's room that the hooks load, and only for a job that needs a broker.
LAUNCHING = {f"broker.{name}" for name in ("launch", "process", "spec", "variables")}
HOOK_MODULES = [module for module in MODULES if room_of(module) in HOOK_ROOMS or module in LAUNCHING]


def source_of(module):
    return (PACKAGE / f"{module.replace('.', '/')}.py").read_text()


def imports_of(module):
    """Return what a module imports anywhere: our modules without the package name, others by first part."""
    ours, others = set(), set()
    for node in ast.walk(ast.parse(source_of(module))):
        if isinstance(node, ast.Import):
            names = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            names = [(node.module, alias.name) for alias in node.names]
        else:
            continue
        for name, member in names:
            first, _, rest = name.partition(".")
            if first != "qrmi_slurm":
                others.add(first)
                continue
            candidates = [f"{rest}.{member}" if rest else str(member), rest]
            ours.add(next(candidate for candidate in candidates if candidate in MODULES))
    return ours, others


def test_all_base_modules_are_known():
    assert {module for module in MODULES if "." not in module} <= set(BASE)
    assert len(BASE) <= BASE_MAX_MODULES


def test_each_room_is_known():
    """A new room must be listed here with its allowed imports."""
    assert {room_of(module) for module in MODULES} - {""} == set(MAY_IMPORT)


def test_package_files_are_empty():
    assert not [path for path in PACKAGE.rglob("__init__.py") if path.stat().st_size]


@pytest.mark.parametrize("module", [module for module in MODULES if "." not in module])
def test_a_base_module_imports_only_those_before_it(module):
    assert imports_of(module)[0] <= set(BASE[: BASE.index(module)])


@pytest.mark.parametrize("module", [module for module in MODULES if "." in module])
def test_a_room_imports_only_what_it_may(module):
    room = room_of(module)
    rooms = {room_of(name) for name in imports_of(module)[0]} - {""}
    assert rooms <= MAY_IMPORT[room] | {room}


def test_no_module_imports_itself_through_others():
    graph = {module: imports_of(module)[0] for module in MODULES}
    while graph:
        free = [module for module, needed in graph.items() if not needed & graph.keys()]
        assert free, f"these import each other: {sorted(graph)}"
        for module in free:
            del graph[module]


def test_nothing_imports_the_command():
    for module in MODULES:
        if room_of(module) != "command":
            assert not [name for name in imports_of(module)[0] if room_of(name) == "command"]


def test_nothing_imports_the_emulator():
    """It is started as a program."""
    assert not [module for module in MODULES if "qrmi_emulator" in imports_of(module)[1]]


def test_the_emulator_imports_only_base_modules():
    """It is a package of its own."""
    trees = [ast.parse(path.read_text()) for path in (PACKAGE.parent / "qrmi_emulator").glob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert "qrmi_emulator.service" in names
    assert {name for name in names if name.startswith("qrmi_slurm")} <= {"qrmi_slurm.errors", "qrmi_slurm.secret"}


@pytest.mark.parametrize(
    ("package", "rooms"),
    [
        ("qrmi", {"calls"}),
        ("typer", {"command"}),
        ("rich", {"command"}),
        ("click", {"command"}),
        ("requests", {"checks"}),
        ("jsonschema", {"validation"}),
        ("h11", {"broker"}),
    ],
)
def test_a_third_party_package_stays_in_its_room(package, rooms):
    assert {room_of(module) for module in MODULES if package in imports_of(module)[1]} <= rooms


@pytest.mark.parametrize("module", [module for module in MODULES if room_of(module) != "command" and module != "log"])
def test_only_the_command_prints(module):
    """The functions it calls return values; only the hooks' log also writes to standard output."""
    calls = [node.func for node in ast.walk(ast.parse(source_of(module))) if type(node) is ast.Call]
    assert "print" not in [getattr(function, "id", "") for function in calls]


@pytest.mark.parametrize("module", HOOK_MODULES)
def test_the_hooks_modules_need_only_python_and_qrmi(module):
    assert imports_of(module)[1] <= sys.stdlib_module_names | {"qrmi"}


def loaded_by(code):
    """Return the modules that a fresh isolated Python has after `code`."""
    path = f"import sys; sys.path.insert(0, {str(PACKAGE.parent)!r})"
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"{path}; {code}; print('\\n'.join(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    return set(done.stdout.split())


ALL_HOOKS = "from qrmi_slurm.hooks import acquire, epilog, prolog, release"


def test_the_hooks_load_nothing_heavy():
    heavy = {"typer", "rich", "click", "jsonschema", "requests", "urllib3", "asyncio", "pydantic"}
    assert not loaded_by(ALL_HOOKS) & heavy


def test_hooks_and_broker_load_no_admin_room():
    loaded = loaded_by(f"{ALL_HOOKS}, recover, task_prolog; from qrmi_slurm.broker import launch, server")
    rooms = {name.split(".")[1] for name in loaded if name.startswith("qrmi_slurm.")}
    assert not rooms & ADMIN_ROOMS


def test_the_hooks_load_no_module_of_the_broker_process():
    """It is a new process with only what it needs in memory, so the hooks do not pay for it."""
    hooks = loaded_by(f"{ALL_HOOKS}; from qrmi_slurm.broker import launch")
    assert not hooks & {"h11", "ssl", "http.client", "threading"}
    assert {name for name in hooks if name.startswith("qrmi_slurm.broker.")} == {f"qrmi_slurm.{m}" for m in LAUNCHING}
    assert not [name for name in loaded_by(ALL_HOOKS) if name.startswith("qrmi_slurm.broker")]


def test_taskprolog_loads_neither_qrmi_nor_root_only_modules():
    before_anything = loaded_by("from qrmi_slurm.slurm import environ; from qrmi_slurm.hooks import task_prolog")
    root_only = {"qrmi_slurm.calls.backend", "qrmi_slurm.hooks.acquire", "qrmi_slurm.state.record"}
    assert not before_anything & ({"qrmi", "subprocess", "syslog", "json"} | root_only)


@pytest.mark.parametrize("module", HOOK_MODULES)
def test_importing_does_nothing(module):
    """The environment is unchanged, and QRMI is not loaded."""
    check = f"import os; before = dict(os.environ); import qrmi_slurm.{module}; assert dict(os.environ) == before"
    assert "qrmi" not in loaded_by(check)


def test_recover_in_vain_loads_little_and_starts_nothing(tmp_path):
    """A timer runs it every minute on every node."""
    (tmp_path / "slurm.conf").touch()
    (tmp_path / "plugstack.conf").write_text(f"optional spank_qrmi.so --state-dir={tmp_path}/state\n")
    loaded = loaded_by(
        "import os; sys.argv = ['qrmi-slurm', 'recover'];"
        f"os.environ['SLURM_CONF'] = '{tmp_path}/slurm.conf';"
        "started = ('subprocess', 'os.fork', 'os.exec', 'os.posix_spawn', 'socket.');"
        "sys.addaudithook(lambda event, _: event.startswith(started) and os._exit(9));"
        "from qrmi_slurm.command import start; start.main()"
    )
    assert "qrmi_slurm.state.inventory" in loaded
    assert not loaded & {"typer", "rich", "dataclasses", "inspect", "subprocess", "qrmi_slurm.command.cli"}
    assert not [name for name in loaded if name.startswith(("qrmi_slurm.calls", "qrmi_slurm.hooks"))]
