"""The machines that the tests here share, and the end of their journals with each failure."""

import faulthandler
from collections.abc import Generator, Iterator

import pytest

from booted.site import BootedSite
from slurm.conftest import pytest_configure  # noqa: F401  SIGTERM ends the run as Ctrl-C does


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """When a test fails, show the last lines of the journal."""
    report = yield
    site = getattr(item, "funcargs", {}).get("booted")
    if report.failed and isinstance(site, BootedSite):
        for unit in ("slurmctld", "slurmd", "qrmi-slurm-recover"):
            report.sections.append((f"journal of {unit}", site.journal(unit)))
    return report


@pytest.fixture(scope="module")
def shared_booted() -> Iterator[BootedSite]:
    """Boot a site for a module."""
    faulthandler.cancel_dump_traceback_later()  # the first run makes a root, which takes minutes
    with BootedSite() as site:
        yield site


@pytest.fixture
def booted(shared_booted: BootedSite) -> BootedSite:
    """Return the site in its initial state: no jobs, no faults, the node idle."""
    shared_booted.reset()
    return shared_booted
