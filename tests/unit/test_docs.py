"""The pages name what the code knows."""

from pathlib import Path

import pytest

from qrmi_slurm.resource_types import KNOWN

PAGE = Path(__file__).resolve().parents[2] / "docs" / "environment.md"


@pytest.mark.parametrize("known", KNOWN.values(), ids=KNOWN)
def test_the_environment_page_has_each_types_variables_as_the_code_has_them(known):
    """A variable that becomes required, secret or an address in the code has to become so on the page."""
    section = PAGE.read_text().partition(f"### `{known.name}`\n")[2].partition("\n###")[0]
    rows = dict(line.strip("|").split("|") for line in section.splitlines() if line.startswith("| `"))
    shown = {name.strip().strip("`"): kinds.strip().split(", ") for name, kinds in rows.items()}
    assert shown.keys() == known.variables
    for name, kinds in shown.items():
        assert ("required" in kinds) == (name in known.required)
        assert ("secret" in kinds) == (name in known.secrets)
        assert ("address" in kinds) == (name in known.endpoints)
