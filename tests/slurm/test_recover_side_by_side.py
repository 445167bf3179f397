"""A service that does not answer delays the release of its own QPUs, and of no others."""

import time
from pathlib import Path

import pytest

from qrmi_slurm.calls.places import AT_ONCE
from slurm.polling import wait_for
from slurm.processes import living
from slurm.site import Site
from slurm.standins import Services
from standins.resources import resource

TIMEOUT_S = 5
HEALTHY = 900_100


@pytest.fixture
def dead(site: Site, services: Services) -> list[int]:
    """Leave 20 records of QPUs of a service that never answers a release; return the jobs' ids."""
    site.plugstack(site.plugstack_line(f"--release-timeout={TIMEOUT_S}"))
    hanging = {**resource("ibm-quantum-compute-service", f"{services.url}/hang-release"), "name": "hanging"}
    site.config([hanging, site.emulator.resource("ibm_demo")])
    jobs = [900_000 + number for number in range(20)]
    for job_id in jobs:
        assert "acquired" in site.run_hook("prolog", job_id, SPANK_QRMI_QPU="hanging").stdout
    return jobs


def test_a_dead_service_does_not_delay_a_healthy_ones_release(site: Site, dead: list[int]) -> None:
    """The healthy one's job comes last, and its session is closed first; the others stay on record."""
    site.run_hook("prolog", HEALTHY)
    assert len(site.emulator.open_sessions()) == 1
    began_s = time.monotonic()
    recover = site.popen_command("recover", "--json")
    wait_for(lambda: not site.emulator.open_sessions(), "the session to be closed", TIMEOUT_S)
    assert time.monotonic() - began_s < TIMEOUT_S
    out, err = recover.communicate(timeout=60)
    assert recover.returncode == 1, err
    # Half of the 16 places at first, all of them once the other service is done.
    assert time.monotonic() - began_s < 3 * (TIMEOUT_S + 3)
    assert not site.folder_of(HEALTHY).exists()
    assert all(site.folder_of(job_id).exists() for job_id in dead)
    assert out.count('"is_left": true') == len(dead)


def recovering(site: Site) -> int:
    """Return how many processes of recover there are, its calls to QRMI included."""
    count = 0
    for process in living():
        try:
            words = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
            environ = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended meanwhile
        count += b"recover" in words and f"SLURM_CONF={site.cluster.slurm_conf}".encode() in environ
    return count


def test_only_so_many_releases_run_at_a_time(site: Site, dead: list[int]) -> None:
    recover = site.popen_command("recover")
    most = 0
    while recover.poll() is None:
        most = max(most, recovering(site))
        time.sleep(0.05)
    recover.communicate()
    assert 1 < most <= 33, most  # the command, 16 that work on a record each, and their calls
    assert all(site.folder_of(job_id).exists() for job_id in dead)


def test_a_users_own_services_delay_no_others(site: Site, services: Services) -> None:
    """However many addresses they have: all of a user's together have the share of one service."""
    site.plugstack(site.plugstack_line(f"--release-timeout={TIMEOUT_S}"))
    own = {**resource("ibm-quantum-compute-service", "http://127.0.0.1:1"), "name": "own", "environment": {}}
    site.config([own, site.emulator.resource("ibm_demo")])
    for number in range(24):
        theirs = resource("ibm-quantum-compute-service", f"{services.url}/hang-release-{number}")["environment"]
        variables = {f"SPANK_own_{name}": value for name, value in theirs.items()}
        done = site.run_hook("prolog", 900_000 + number, SPANK_QRMI_QPU="own", **variables)
        assert "acquired" in done.stdout, done.stdout
    site.run_hook("prolog", HEALTHY)
    recover = site.popen_command("recover")
    wait_for(lambda: not site.emulator.open_sessions(), "the session to be closed", TIMEOUT_S)
    recover.communicate(timeout=120)


def test_a_users_own_services_delay_no_release_of_the_sites_in_their_job(site: Site, services: Services) -> None:
    """They come first in the selection, each has an address of its own, and together they fill all places."""
    site.plugstack(site.plugstack_line(f"--release-timeout={TIMEOUT_S}"))
    own = [f"own{number}" for number in range(AT_ONCE)]
    empty = {**resource("ibm-quantum-compute-service", "http://127.0.0.1:1"), "environment": {}}
    site.config([*({**empty, "name": name} for name in own), site.emulator.resource("ibm_demo")])
    variables: dict[str, str] = {}
    for name in own:
        theirs = resource("ibm-quantum-compute-service", f"{services.url}/hang-release-{name}")["environment"]
        variables |= {f"SPANK_{name}_{variable}": value for variable, value in theirs.items()}
    done = site.run_hook("prolog", HEALTHY, SPANK_QRMI_QPU=",".join([*own, "ibm_demo"]), **variables)
    assert "acquired" in done.stdout, done.stdout
    assert len(site.emulator.open_sessions()) == 1
    site.run_hook("epilog", HEALTHY)
    assert not site.emulator.open_sessions()
