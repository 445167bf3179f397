"""The site shared by the tests on real Slurm; its daemons' last log lines are shown with each failure."""

import signal
from collections.abc import Generator, Iterator
from types import FrameType
from typing import NoReturn

import pytest

from slurm.cluster import ClusterOptions, sweep
from slurm.site import Site, SiteOptions
from slurm.standins import Services


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
    )
    with Site(options) as site:
        yield site


@pytest.fixture
def site(shared_site: Site) -> Site:
    """Return the shared site in its initial state: idle nodes, no jobs, no faults."""
    shared_site.reset()
    return shared_site


@pytest.fixture(scope="session")
def services(shared_site: Site) -> Services:
    """Return stand-ins for the services of all types except IBM's sessions, for the whole session."""
    return Services(shared_site.cluster)
