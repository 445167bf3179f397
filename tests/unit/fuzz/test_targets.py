"""The fuzzers' targets still fit the modules they fuzz; `make fuzz` itself is rarely run."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).resolve().parents[2] / "fuzz"

# Each in its own process, since targets change what modules read. The tests do not install atheris.
ONE_RUN = """
import contextlib, sys, types
sys.modules["atheris"] = types.SimpleNamespace(instrument_imports=lambda include: contextlib.nullcontext())
sys.path.insert(0, sys.argv[1])
import python_targets
for data in sys.argv[3:]:
    python_targets.TARGETS[sys.argv[2]](bytes.fromhex(data))
"""


def fuzz():
    spec = importlib.util.spec_from_file_location("fuzz", FUZZ / "fuzz.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", fuzz().PYTHON_TARGETS)
def test_a_target_accepts_its_seeds_whole_and_truncated(name):
    inputs = [b"", *(seed[:length] for seed in fuzz().SEEDS[name] for length in (len(seed), len(seed) // 2))]
    command = [sys.executable, "-I", "-c", ONE_RUN, FUZZ, name, *(data.hex() for data in inputs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["stub", "directives"])
def test_a_compiled_target_accepts_its_seeds_whole_and_truncated(name, tmp_path):
    target = tmp_path / "target"
    flags = ["-O1", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined", "-DSTANDALONE"]
    subprocess.run(["gcc", *flags, "-fno-sanitize-recover=all", "-o", target, FUZZ / f"{name}_target.c"], check=True)
    inputs = []
    for number, seed in enumerate(fuzz().SEEDS[name]):
        for length in (len(seed), len(seed) // 2):
            inputs.append(tmp_path / f"{number}-{length}")
            inputs[-1].write_bytes(seed[:length])
    done = subprocess.run([target, *inputs], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("program", ["shell_target.py", "lua_target.py"])
def test_a_differential_target_finds_nothing_in_a_second(program):
    command = [sys.executable, "-P", FUZZ / program, "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "no finding" in done.stdout) == (0, True), done.stdout + done.stderr
