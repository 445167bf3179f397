"""An installation that is gone, unreadable or half there hurts QPU jobs alone: each fails with a sentence.

What Slurm's files name stays in place: the plugin, and the scripts of `make install`, which run the hooks of the
installation in use. Who runs TaskProlog makes no difference.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from slurm.aftermath import let_go, start_long_job
from slurm.cluster import ClusterOptions, Hooks
from slurm.pages import ROOT
from slurm.site import BIN, Site, SiteOptions, TaskPrologBy

SCRIPT = "#!/bin/sh\necho it-ran $QRMI_JOB_QPU_RESOURCES\n"
HOOKS = ("prolog", "task-prolog", "epilog")


class Installed:
    """An installation of this site's own: a link to the version in use, and the scripts that run its hooks.

    Args:
        site: the site, whose hooks it sets before the site starts.
    """

    def __init__(self, site: Site, by: TaskPrologBy) -> None:
        self.folder = site.cluster.folder / "installation"
        self.link = self.folder / "qrmi-slurm"
        self.scripts = self.folder / "permanent"
        task_prolog = self.scripts / "task-prolog" if by == "slurm" else None
        hooks = Hooks(self.scripts / "prolog", task_prolog, self.scripts / "epilog")
        arguments = [] if by == "slurm" else [f"--task-prolog={self.link}/bin/qrmi-slurm-task-prolog"]
        site.cluster.options = replace(site.cluster.options, hooks=hooks, plugstack=(site.plugstack_line(*arguments),))

    def install(self) -> None:
        """Install a version, and the scripts as an admin does."""
        self.folder.mkdir()
        self.version("1")
        self.link.symlink_to("1")
        words = [f"SLURM_PLUGIN_DIR={self.scripts}", f"PREFIX={self.link}"]
        subprocess.run(["make", "-s", "-C", ROOT / "cli_filter", "install-hooks", *words], check=True)

    def version(self, name: str) -> Path:
        """Make a venv with the packages of the one that this runs in, and hooks of its own."""
        folder = self.folder / name
        (folder / "bin").mkdir(parents=True)
        shutil.copy(Path(sys.prefix) / "pyvenv.cfg", folder)
        (folder / "lib").symlink_to(Path(sys.prefix) / "lib")
        (folder / "bin" / "python3").symlink_to((BIN / "python3").resolve())
        for hook in HOOKS:
            shutil.copy(BIN / f"qrmi-slurm-{hook}", folder / "bin")
        return folder

    def use(self, name: str) -> None:
        """Let the link point to a version."""
        new = self.link.with_name("new")
        new.symlink_to(name)
        new.replace(self.link)


@pytest.fixture(scope="module")
def broken(request: pytest.FixtureRequest) -> Iterator[tuple[Site, Installed]]:
    """A site with one node whose hooks are of an installation that tests may break."""
    site = Site(SiteOptions(cluster=ClusterOptions(nodes=1)))
    installed = Installed(site, request.param)
    try:
        site.cluster.make()
        installed.install()
        site.start()
        yield site, installed
    finally:
        site.stop()


def gone(installed: Installed) -> None:
    """The link and what it names."""
    installed.link.unlink()
    shutil.rmtree(installed.folder / "1")


def unreadable(installed: Installed) -> None:
    """For everybody but root."""
    (installed.folder / "1").chmod(0o700)


def without_python(installed: Installed) -> None:
    """As after an upgrade of the system's."""
    (installed.folder / "1" / "bin" / "python3").unlink()


def without_packages(installed: Installed) -> None:
    """As in a pip install that has not ended."""
    (installed.folder / "1" / "lib").unlink()


def with_empty_scripts(installed: Installed) -> None:
    """As on a disk that was full."""
    for hook in HOOKS:
        (installed.folder / "1" / "bin" / f"qrmi-slurm-{hook}").write_text("")


def with_half_a_script(installed: Installed) -> None:
    """The shell's part of each, cut off where it is about to begin."""
    for hook in HOOKS:
        path = installed.folder / "1" / "bin" / f"qrmi-slurm-{hook}"
        text = path.read_text()
        path.write_text(text[: text.index("\n[ -n ") if hook != "task-prolog" else text.index("wanted=qpu")])


FAULTS = (
    *(("slurm", fault) for fault in (gone, without_python, with_half_a_script)),
    *(
        ("plugin", fault)
        for fault in (gone, unreadable, without_python, without_packages, with_empty_scripts, with_half_a_script)
    ),
)


@pytest.mark.parametrize(
    ("broken", "fault"), FAULTS, indirect=["broken"], ids=[f"{by}-{fault.__name__}" for by, fault in FAULTS]
)
def test_only_qpu_jobs_fail(broken: tuple[Site, Installed], fault: Callable[[Installed], None]) -> None:
    """Jobs without a QPU run, the others say why they do not, and no node drains."""
    site, installed = broken
    fault(installed)
    jobs = [site.cluster.sbatch(SCRIPT, *options) for options in ((), ("--qpu=ibm_demo", "--no-requeue"))]
    states = [site.cluster.wait_job_over(job).state for job in jobs]
    outputs = [site.cluster.job_output(job) for job in jobs]
    shutil.rmtree(installed.folder / "1", ignore_errors=True)
    installed.version("1")
    installed.use("1")
    assert (states[0], outputs[0]) == ("COMPLETED", "it-ran\n")
    assert states[1] == "FAILED"
    assert re.match(r"qrmi-slurm: .*", outputs[1]), outputs[1]
    assert "it-ran" not in outputs[1]
    assert not site.emulator.open_sessions()


@pytest.mark.parametrize("broken", ["slurm", "plugin"], indirect=True)
@pytest.mark.parametrize("versions", [("1", "2"), ("2", "1")], ids=["upgrade", "downgrade"])
def test_a_running_job_sees_another_version(broken: tuple[Site, Installed], versions: tuple[str, str]) -> None:
    """Its later steps and its Epilog are the new one's."""
    site, installed = broken
    before, after = versions
    if not (installed.folder / "2").exists():
        installed.version("2")
    installed.use(before)
    job = start_long_job(site, then="srun sh -c 'echo step has $QRMI_JOB_QPU_RESOURCES'\n")
    installed.use(after)
    away = (installed.folder / before).rename(installed.folder / "away")
    try:
        let_go(site, job)
        assert site.cluster.wait_job_over(job).state == "COMPLETED"
    finally:
        away.rename(installed.folder / before)
        installed.use("1")
    assert site.cluster.job_output(job).endswith("step has ibm_demo\n")
    assert not site.emulator.open_sessions()
