"""What each kind of job costs on real Slurm, counted in Python processes and RPCs to slurmctld, never in time."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bench.rpcs import calls_during
from slurm.cluster import ClusterOptions, Hooks
from slurm.polling import wait_for
from slurm.release import HOOKS_KNOW_TIMES
from slurm.site import BIN, Site, SiteOptions

TASKS = 8


class CountedSite:
    """A site whose hooks start a Python that notes each of its runs.

    Args:
        site: not started yet.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self._bin = site.cluster.folder / "bin"
        self._runs = site.cluster.folder / "python-runs"
        names = ("qrmi-slurm-prolog", "qrmi-slurm-task-prolog", "qrmi-slurm-epilog")
        hooks = Hooks(*(self._bin / name for name in names))
        site.cluster.options = replace(site.cluster.options, hooks=hooks)
        site.cluster.make()
        self._bin.mkdir(mode=0o755)
        for name in names:
            self._script(name, (BIN / name).read_text())
        self._runs.touch()
        self._runs.chmod(0o666)  # tasks' Pythons run as their users
        self._script("python3", f'#!/bin/sh\necho "$4" >>{self._runs}\nexec {sys.executable} "$@"\n')

    def _script(self, name: str, text: str) -> None:
        (self._bin / name).write_text(text)
        (self._bin / name).chmod(0o755)

    def python_runs(self) -> list[str]:
        """Return the hooks that have started Python since the last call."""
        self.site.cluster.wait_nodes_idle()
        found = [Path(line).name.removeprefix("qrmi-slurm-") for line in self._runs.read_text().splitlines()]
        self._runs.write_text("")
        return found


@pytest.fixture(scope="module")
def counted() -> Iterator[CountedSite]:
    """One node with room for all tasks of a step."""
    site = Site(SiteOptions(cluster=ClusterOptions(nodes=1, cpus_per_node=4 * TASKS), hooks_log=False))
    try:
        counted = CountedSite(site)
        site.start()
        yield counted
    finally:
        site.stop()


def run_batch(counted: CountedSite, *options: str) -> None:
    """Run a batch job with one step of several tasks."""
    cluster = counted.site.cluster
    job_id = cluster.sbatch("#!/bin/sh\nsrun true\n", f"-n{TASKS}", "--time=5", *options)
    info = cluster.wait_job_over(job_id)
    assert info.state == "COMPLETED", cluster.job_output(job_id)


def run_direct(counted: CountedSite, *options: str, tasks: int = TASKS) -> None:
    """Run a step in an allocation of its own."""
    done = counted.site.cluster.run_as_user(["srun", f"-n{tasks}", "--time=5", *options, "true"])
    assert done.returncode == 0, done.stderr


def test_a_job_without_qpu_starts_no_python(counted: CountedSite) -> None:
    """Neither in its hooks nor in its tasks."""
    run_batch(counted)
    run_direct(counted)
    assert counted.python_runs() == []


def test_a_qpu_job_starts_python_twice_whatever_the_number_of_its_tasks(counted: CountedSite) -> None:
    """To acquire and to release; a shell hands Prolog's result to the script and to its steps' tasks."""
    run_batch(counted, "--qpu=ibm_demo")
    assert counted.python_runs() == ["prolog", "epilog"]
    run_direct(counted, "--qpu=ibm_demo")
    assert counted.python_runs() == ["prolog", "epilog"]


def test_a_task_asks_slurmctld_for_nothing(counted: CountedSite) -> None:
    """A QPU job's RPCs do not grow with its tasks, and are no more than one above a plain job's."""
    cluster = counted.site.cluster

    def calls(tasks: int, *options: str) -> int:
        return calls_during(cluster, lambda: run_direct(counted, *options, tasks=tasks))

    calls(1, "--qpu=ibm_demo")  # a command's one-time queries
    few, many = calls(2, "--qpu=ibm_demo"), calls(4 * TASKS, "--qpu=ibm_demo")
    plain = calls(2)
    assert many == few
    # Before 23.02 Prolog is not told when the job ends, and asks once.
    assert few - plain <= (0 if HOOKS_KNOW_TIMES.is_here else 1)


def test_the_hooks_really_run(counted: CountedSite) -> None:
    """The sessions counted here were really opened and closed."""
    run_direct(counted, "--qpu=ibm_demo")
    wait_for(lambda: not counted.site.emulator.open_sessions(), "the session to be closed", 20)
    assert counted.site.emulator.sessions()
