"""Which settings of Prolog, TaskProlog and Epilog run this installation's hooks."""

import os

import pytest
from checkups import levels, settings_of

from qrmi_slurm.checks import hook_checks
from qrmi_slurm.checks.installation import Installation


@pytest.fixture
def installation(tmp_path):
    """An installation in a folder, beside a folder of the site's own hooks."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    found = Installation(tmp_path / "venv")
    for path in (found.prolog, found.task_prolog, found.epilog):
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    (tmp_path / "site").mkdir()
    return found


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def check_prolog(installation, *values):
    return hook_checks._check_hook("Prolog", [str(value) for value in values], installation.prolog)


def test_the_path_of_our_hook(installation):
    """A setting that names our hook is ok."""
    assert check_prolog(installation, installation.prolog).level == "ok"


def test_a_link_in_a_folder_of_hooks(installation, tmp_path):
    """A link to our hook in the folder of a glob is ok, also beside other scripts."""
    script(tmp_path / "site" / "10-own", "true")
    (tmp_path / "site" / "50-qrmi").symlink_to(installation.prolog)
    result = check_prolog(installation, tmp_path / "site" / "*")
    assert (result.level, result.message) == ("ok", f"{installation.prolog} through {tmp_path}/site/50-qrmi")


def test_a_script_that_runs_our_hook(installation, tmp_path):
    """A site's script that runs our hook is ok; one that only mentions it in a comment is not."""
    script(tmp_path / "site" / "prolog", f"exec {installation.prolog}")
    assert check_prolog(installation, tmp_path / "site" / "prolog").level == "ok"
    script(tmp_path / "site" / "prolog", f"# exec {installation.prolog}")
    assert check_prolog(installation, tmp_path / "site" / "prolog").level == "error"


def test_a_hook_that_runs_twice(installation, tmp_path):
    """The second Prolog would find the record of the first."""
    for name in ("50-qrmi", "60-qrmi"):
        (tmp_path / "site" / name).symlink_to(installation.prolog)
    assert "2 times" in check_prolog(installation, tmp_path / "site" / "*").message


def test_a_hook_of_another_installation(installation, tmp_path):
    """A hook of another venv works, but this command cannot judge it."""
    other = tmp_path / "site" / "qrmi-slurm-prolog"
    script(other, "true")
    assert check_prolog(installation, other).level == "warning"


def test_a_glob_that_matches_nothing(installation, tmp_path):
    """Slurm drains a node whose Prolog glob matches nothing."""
    result = check_prolog(installation, tmp_path / "site" / "*")
    assert (result.level, "drain" in result.message) == ("error", True)


def test_slurmd_runs_as_another_user(installation):
    """Prolog needs root."""
    settings = settings_of(SlurmdUser="slurm(64030)", TaskProlog="(null)")
    assert levels(hook_checks.run(settings, installation))["SlurmdUser"] == "error"


def test_a_hook_in_the_installation_itself_is_told_of(installation):
    """It works, but without the installation every job drains its node; through a script of the site it does not."""
    settings = settings_of(Prolog=str(installation.prolog), Epilog=str(installation.epilog), TaskProlog="(null)")
    found = {result.name: result for result in hook_checks.run(settings, installation, installation.task_prolog)}
    assert (found["Prolog"].level, found["Epilog"].level) == ("warning", "warning")
    assert f"make -C cli_filter install PREFIX={installation.prefix}" in found["Prolog"].hint
    assert found["Prolog"].hint.endswith("Prolog=/usr/local/lib/qrmi-slurm/prolog")


@pytest.fixture
def by_plugin(installation, tmp_path):
    """Check a TaskProlog that the plugin runs, beside those of slurm.conf."""

    def check(path=installation.task_prolog, *by_slurm):
        return hook_checks._check_task_prolog(path, [str(value) for value in by_slurm], installation.task_prolog)

    return check


def test_the_plugin_runs_our_task_prolog(installation, by_plugin):
    result = by_plugin()
    assert (result.level, result.message) == (
        "ok",
        f"{installation.task_prolog}, run by the plugin for jobs with --qpu",
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: path.unlink(), "No such file"),
        (lambda path: (path.unlink(), path.mkdir()), "is not a file"),
        (lambda path: path.chmod(0o775), "can be changed by others than root"),
        (lambda path: os.chown(path, 65534, -1), "can be changed by others than root"),
        (lambda path: path.chmod(0o744), "is not executable for users"),
    ],
)
def test_a_task_prolog_that_the_plugin_does_not_run(installation, by_plugin, change, words):
    """By the rules of the plugin itself."""
    change(installation.task_prolog)
    result = by_plugin()
    assert (result.level, words in result.message) == ("error", True), result


def test_another_program_than_task_prolog(by_plugin, tmp_path):
    """A script of the site may run ours."""
    script(tmp_path / "site" / "own", "true")
    assert by_plugin(tmp_path / "site" / "own").level == "error"


def test_both_ways_at_once(installation, by_plugin, tmp_path):
    """The second one does nothing; if it is another version, that is said."""
    assert "which runs the same" in by_plugin(installation.task_prolog, installation.task_prolog).message
    other = tmp_path / "site" / "qrmi-slurm-task-prolog"
    script(other, "true")
    result = by_plugin(installation.task_prolog, other)
    assert (result.level, "which runs another version" in result.message) == ("warning", True)
    own = tmp_path / "site" / "own"
    script(own, "true")
    assert by_plugin(installation.task_prolog, own).level == "ok"
    assert by_plugin(other).level == "warning"
