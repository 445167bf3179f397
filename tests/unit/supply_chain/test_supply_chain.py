"""What an installation is made of is written down, and in step with what pyproject.toml asks for."""

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests"))
supply_chain = importlib.import_module("setup.supply_chain")
sys.path.remove(str(ROOT / "tests"))

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = (ROOT / "requirements.lock").read_text()
LOCKED = dict(re.findall(r"^([a-z0-9-]+)==([^ ;\\]+)", LOCK, re.MULTILINE))


def normalized(name):
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("text", [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"]])
def test_the_lock_has_each_dependency_in_a_version_that_is_allowed(text):
    """Whoever changes pyproject.toml runs `make lock`."""
    wanted = Requirement(text)
    assert wanted.specifier.contains(LOCKED[normalized(wanted.name)])


def test_each_locked_package_is_one_version_with_hashes():
    """pip --require-hashes takes nothing else, from no index and no mirror."""
    entries = re.split(r"\n(?=[a-z])", re.sub(r"^#.*\n", "", LOCK, flags=re.MULTILINE).strip())
    assert len(entries) == len(LOCKED) >= 15
    for entry in entries:
        assert re.fullmatch(r"[a-z0-9-]+==\S+( ;[^\\]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+", entry), entry
    assert "://" not in LOCK


def test_the_list_of_licenses_is_of_the_locked_versions_and_each_is_compatible():
    """`make licenses` writes it."""
    page = (ROOT / "docs" / "third-party-licenses.md").read_text()
    rows = [re.split(r" *\| *", line)[1:4] for line in page.splitlines() if line.startswith("| ")][1:]
    assert {normalized(name): version for name, version, _ in rows} == LOCKED
    for name, _, license in rows:
        assert supply_chain.is_compatible(license), (name, license)


@pytest.mark.parametrize(
    ("license", "is_fine"),
    [
        ("MIT", True),
        ("GPL-3.0-only", False),
        ("Apache-2.0 OR GPL-3.0-only", True),
        ("MIT AND GPL-3.0-only", False),
        ("UNKNOWN", False),
    ],
)
def test_a_license_that_asks_for_more_is_noticed(license, is_fine):
    assert supply_chain.is_compatible(license) is is_fine


def test_the_lock_can_be_installed_as_the_page_says(tmp_path):
    """Each file has one of its hashes, and nothing that is needed is missing; from the index, as an admin would."""
    [block] = re.findall(r"```sh\n(umask[^`]*)```", (ROOT / "docs" / "security.md").read_text())
    typed = block.replace("/opt/qrmi-slurm-0.1.0", str(tmp_path / "venv"))
    assert typed.count(str(tmp_path)) == 3
    done = subprocess.run(["/bin/sh", "-ec", typed], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    check = subprocess.run([tmp_path / "venv/bin/pip", "check"], capture_output=True, text=True, timeout=60)
    assert check.returncode == 0, check.stdout
    shown = subprocess.run([tmp_path / "venv/bin/qrmi-slurm", "--version"], capture_output=True, text=True, timeout=60)
    assert shown.stdout.startswith("qrmi-slurm "), shown.stderr
