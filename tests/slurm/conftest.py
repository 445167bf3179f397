"""The site shared by the tests on real Slurm; its daemons' last log lines are shown with each failure."""

import signal
from collections.abc import Generator, Iterator
from types import FrameType
from typing import NoReturn

import pytest

from slurm.cluster import ClusterOptions, sweep
from slurm.site import Site, SiteOptions, TaskPrologBy
from slurm.standins import Services

# The modules in which the plugin runs TaskProlog; in all others Slurm does, by slurm.conf. Two run either way.
BY_PLUGIN = frozenset(
    {"test_attached_steps", "test_users_environment", "test_inner_jobs", "test_identity", "test_requeue"}
)


def pytest_configure() -> None:
    """Let SIGTERM end the run like Ctrl-C: every cluster is stopped."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """When a test fails, show the last log lines of the shared site's daemons."""
    report = yield
    site = getattr(item, "funcargs", {}).get("site")
    if report.failed and isinstance(site, Site):
        for daemon in ("hooks", "slurmctld", *site.cluster.nodes, "emulator"):
            report.sections.append((f"log of {daemon}", site.cluster.log_tail(daemon)))
    return report


@pytest.fixture(scope="session")
def shared_site() -> Iterator[Site]:
    """Start one site for the whole session: three nodes, two users, two QPUs, hooks that can be held."""
    sweep()
    options = SiteOptions(
        cluster=ClusterOptions(nodes=3, users=2),
        backends={"ibm_demo": "FakeSherbrooke", "ibm_second": "FakeSherbrooke"},
        watched=True,
        task_prolog_by="either",
    )
    with Site(options) as site:
        yield site


@pytest.fixture
def site(shared_site: Site, request: pytest.FixtureRequest) -> Site:
    """Return the shared site in its initial state: idle nodes, no jobs, no faults.

    Who runs TaskProlog is the fixture's parameter ; else that depends on the module.
    """
    shared_site.reset()
    is_by_plugin = request.module.__name__.rpartition(".")[2] in BY_PLUGIN
    who: TaskPrologBy = getattr(request, "param", "plugin" if is_by_plugin else "slurm")
    shared_site.run_task_prolog_by(who)
    return shared_site


@pytest.fixture(scope="session")
def services(shared_site: Site) -> Services:
    """Return stand-ins for the services of all types except IBM's sessions, for the whole session."""
    return Services(shared_site.cluster)
