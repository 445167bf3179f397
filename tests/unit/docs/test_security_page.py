"""The security page names tests that are there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "security.md").read_text()
NAMED = sorted(set(re.findall(r"`(tests/[a-z_/]+\.py)::(test_\w+)`", PAGE)))


@pytest.mark.parametrize(("path", "name"), NAMED, ids=[name for _, name in NAMED])
def test_each_test_that_is_named_is_there(path, name):
    functions = [node.name for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.FunctionDef)]
    assert name in functions


def test_each_attack_has_its_test():
    rows = re.findall(r"^\| .* \|$", PAGE.partition("## Defenses")[2].partition("\n## ")[0], re.MULTILINE)
    assert len(rows) > 20
    assert not [row for row in rows[1:] if "::test_" not in row]


def test_each_test_of_attacks_is_named():
    """What is shown there is worth a row here."""
    for path in ("tests/slurm/test_security.py", "tests/slurm/test_secrets.py"):
        tests = re.findall(r"^def (test_\w+)", (ROOT / path).read_text(), re.MULTILINE)
        assert {(path, name) for name in tests} <= set(NAMED)
