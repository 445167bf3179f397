"""`make test` over all releases: each has its summary, and the exit status tells of all."""

import importlib
import re
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TESTS))
releases = importlib.import_module("setup.releases")
sys.path.remove(str(TESTS))

PASSED = "echo '=== 7 passed in 3.21s ==='"
FAILED = "echo 'FAILED tests/slurm/test_a.py::test_b - no'; echo '1 failed, 6 passed in 3.21s (0:00:03)'; exit 1"
NO_ROOT = "echo 'error: cannot make the forky root: no network' >&2; exit 1"


@pytest.fixture
def outcome(monkeypatch, capfd):
    """Run with shell scripts instead of programs; return the exit status and what was printed."""

    def run(*arguments, here=PASSED, root=PASSED, makes="true"):
        # The words after the script become its $0, $1, ...: `$1` is the suite, `$2` tells making from testing.
        script = f'case "$1 $2" in "forky test") {root} ;; "forky make") {makes} ;; *) {PASSED} ;; esac'
        monkeypatch.setattr(releases, "ROOTS", ("sh", "-c", script, "roots"))
        monkeypatch.setattr(releases, "ENVIRONMENT", ("make",))
        pytest_here = ("sh", "-c", here)
        # In a root the test's command follows the suite; here it is a program of its own.
        monkeypatch.setattr(releases, "PYTEST", pytest_here)
        monkeypatch.setattr(releases, "IN_ROOT", ("test",))
        monkeypatch.setattr(releases, "LINT", ("true",))
        monkeypatch.setattr(releases.environment, "start", lambda: None)  # it takes over signals
        status = releases.main(arguments)
        return status, capfd.readouterr().out

    return run


def summary(out):
    return re.sub(r"^.*?--- summary, after [\d.]+ minutes ---\n", "", out, flags=re.DOTALL)


def test_all_passed(outcome):
    status, out = outcome()
    assert status == 0
    assert summary(out).splitlines() == [
        "  lint          passed",
        "  this machine  7 passed in 3.21s",
        "  trixie        7 passed in 3.21s",
        "  forky         7 passed in 3.21s",
    ]


def test_a_failure_on_one_release_fails_the_run_and_is_named_with_it(outcome):
    status, out = outcome(root=FAILED)
    assert status == 1
    assert "  forky         1 failed, 6 passed in 3.21s (0:00:03)\n  forky         FAILED tests/slurm/test_a.py" in out
    assert "--- forky ---\nFAILED tests/slurm/test_a.py::test_b - no\n" in out


def test_a_failure_here_does_not_keep_the_releases_from_running(outcome):
    status, out = outcome(here=FAILED)
    assert status == 1
    assert "  this machine  FAILED tests/slurm/test_a.py::test_b - no\n" in out
    assert "  trixie        7 passed in 3.21s\n" in out


def test_a_root_that_cannot_be_made_is_a_failure(outcome):
    status, out = outcome(makes=NO_ROOT)
    assert status == 1
    assert "--- forky ---\nerror: cannot make the forky root: no network\n" in out
    assert summary(out).splitlines()[-1] == "  forky         exit status 1"


@pytest.mark.parametrize(("arguments", "status"), [(["-k", "name"], 0), ([], 1)])
def test_no_test_on_a_release_passes_only_where_arguments_select(outcome, arguments, status):
    assert outcome(*arguments, root="echo 'no tests ran in 0.01s'; exit 5")[0] == status


def test_the_selected_files_exist():
    """A renamed test does not drop out of the releases."""
    for name in releases.SELECTED:
        assert (TESTS / "slurm" / name).is_file()
