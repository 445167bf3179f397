"""Imports point one way, and the hooks carry nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import qrmi_slurm

PACKAGE = Path(qrmi_slurm.__file__).parent

# What each layer may import stands in a layer before it, or in its own; none imports in a circle (below).
LAYERS = (
    ("names", "errors", "secret", "outcomes", "confinement", "trust", "authorities", "slurm_commands"),
    (
        "selection",
        "sharing",
        "resource_types",
        "environ",
        "config",
        "plugstack",
        "context",
        "credentials",
        "reasons",
        "near_match",
        "access",
    ),
    ("scheduler", "backend", "record", "ledger", "exports", "logs"),
    ("stored_secrets", "licenses", "choice", "broker.spec", "broker.variables", "broker.process", "broker.launch"),
    ("release", "draft", "acquire"),
    ("hooks", "task_hook"),
)
HOOK_MODULES = tuple(module for layer in LAYERS for module in layer)


def imports_of(module):
    """Return what a module imports, anywhere in it: ours without the package's name, others by their first part."""
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
            elif rest.partition(".")[0] == "broker":
                ours.add(rest if "." in rest else f"broker.{member}")
            else:
                ours.add(rest.partition(".")[0] or member)
    return ours, others


def source_of(module):
    return (PACKAGE / f"{module.replace('.', '/')}.py").read_text()


def all_modules():
    found = {path.stem for path in PACKAGE.glob("*.py")}
    found |= {f"broker.{path.stem}" for path in (PACKAGE / "broker").glob("*.py")}
    return sorted(name for name in found if not name.endswith("__init__"))


@pytest.mark.parametrize("module", HOOK_MODULES)
def test_a_module_of_the_hooks_imports_only_its_layer_and_those_before(module):
    place = next(index for index, layer in enumerate(LAYERS) if module in layer)
    allowed = {name for layer in LAYERS[: place + 1] for name in layer} - {module}
    assert imports_of(module)[0] <= allowed


def test_no_module_imports_itself_through_others():
    graph = {module: imports_of(module)[0] for module in all_modules()}
    while graph:
        free = [module for module, needed in graph.items() if not needed & graph.keys()]
        assert free, f"these import each other: {sorted(graph)}"
        for module in free:
            del graph[module]


def test_nothing_imports_the_command_but_itself():
    for module in set(all_modules()) - {"cli"}:
        assert "cli" not in imports_of(module)[0]


@pytest.mark.parametrize(
    ("package", "modules"),
    [
        ("qrmi", {"backend"}),
        ("typer", {"cli", "render"}),
        ("rich", {"cli", "render"}),
        ("click", {"cli", "render"}),
        ("requests", {"service_check"}),
        ("h11", {"broker.connection"}),
        ("jsonschema", {"config_schema"}),
    ],
)
def test_a_third_partys_package_has_its_few_places(package, modules):
    assert {module for module in all_modules() if package in imports_of(module)[1]} <= modules


@pytest.mark.parametrize("module", sorted(set(all_modules()) - {*HOOK_MODULES, "cli", "render"}))
def test_a_module_of_the_command_prints_nothing(module):
    """Only cli and render know of terminals; what they call returns values."""
    assert not imports_of(module)[0] & {"cli", "render"}
    calls = [node.func for node in ast.walk(ast.parse(source_of(module))) if type(node) is ast.Call]
    assert "print" not in [getattr(function, "id", "") for function in calls]


@pytest.mark.parametrize("module", HOOK_MODULES)
def test_a_module_of_the_hooks_needs_nothing_but_python_and_qrmi(module):
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


def test_the_hooks_load_nothing_heavy():
    everything = "import qrmi_slurm.hooks, qrmi_slurm.acquire, qrmi_slurm.release, qrmi_slurm.record, qrmi_slurm.logs"
    heavy = {"typer", "rich", "click", "jsonschema", "requests", "urllib3", "asyncio", "pydantic"}
    assert not loaded_by(everything) & heavy


def test_the_hooks_load_nothing_of_the_brokers_own_process():
    """It is a fresh process, so that its memory holds only what it needs; and the hooks pay nothing for it."""
    hooks = loaded_by("import qrmi_slurm.hooks, qrmi_slurm.acquire, qrmi_slurm.release, qrmi_slurm.broker.launch")
    launching = {f"qrmi_slurm.broker.{name}" for name in ("launch", "process", "spec", "variables")}
    assert {name for name in hooks if name.startswith("qrmi_slurm.broker.")} == launching
    assert not hooks & {"h11", "ssl", "http.client", "threading", "dataclasses"}


def test_the_hooks_load_nothing_of_a_broker_that_is_not_needed():
    hooks = loaded_by("import qrmi_slurm.hooks, qrmi_slurm.acquire, qrmi_slurm.release")
    assert not {name for name in hooks if name.startswith("qrmi_slurm.broker")}


def test_taskprolog_loads_neither_qrmi_nor_what_only_root_needs():
    before_anything = loaded_by("from qrmi_slurm import environ, task_hook")
    assert not before_anything & {"qrmi", "subprocess", "syslog", "json", "qrmi_slurm.backend", "qrmi_slurm.acquire"}


@pytest.mark.parametrize("module", HOOK_MODULES)
def test_importing_does_nothing(module):
    """The environment stays as it was, and QRMI is not loaded."""
    check = "import os; before = dict(os.environ); import qrmi_slurm.{0}; assert dict(os.environ) == before"
    assert "qrmi" not in loaded_by(check.format(module))
