"""`make vm`: the same on a node with a kernel of its own, in a virtual machine, which is reset under a job.

slurmctld is outside of it, so that Slurm notices and requeues the job. The kernel has its memory controller on cgroup
v2, whatever this machine has. Not part of `make test`: without the processor's help everything takes long.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from booted import jobs, starter
from booted.container import NEEDED as CONTAINER_NEEDS
from booted.container import Container, is_memory_on_v1
from booted.debian import Content
from booted.jobs import assert_nothing_left, let_go, wait_closed
from booted.machine import HOST, MACHINE, NEEDED, PACKAGES, VirtualMachine
from booted.network import ADDRESS, SERVICE_NAME, Authority, Network
from booted.site import CGROUP_CONF, MASK_CONTROLLER, SECRET, SUITE, BootedSite, enable, prepare

# The same tests, on this module's site.
from booted.test_cgroups import (  # noqa: F401
    test_a_batch_job_and_its_steps_have_the_qpu,
    test_a_broker_is_no_part_of_its_job_and_ends_with_it,
    test_a_broker_survives_a_step_at_the_memory_limit,
    test_a_heterogeneous_jobs_component_has_the_qpu,
    test_a_hooks_memory_is_not_the_jobs,
    test_a_job_at_its_memory_limit_still_has_its_qpu_released,
    test_an_interactive_job_has_the_qpu,
    test_each_task_of_an_array_has_its_own_session,
)
from booted.test_systemd import (  # noqa: F401
    test_a_broker_that_recover_restarts_outlives_the_run,
    test_a_crash_of_the_node_costs_no_qpu,
    test_a_unit_has_few_rights,
    test_recover_ends_the_broker_of_a_job_whose_epilog_never_ran,
    test_recover_releases_as_the_jobs_user,
    test_slurmd_is_restarted_under_a_job_with_a_broker,
    test_the_journal_has_what_the_hooks_did,
    test_the_list_of_qpus_is_refreshed,
)
from setup import roots
from setup.environment import CACHE, DEBIAN_PACKAGES, install_debian_packages
from slurm.polling import wait_for

# How long slurmd waits for systemd to make its scope, in milliseconds; one second by default.
PATIENCE = "SystemdTimeout=60000\n"
# The others are for one node of a cluster, and would keep this slow one busy.
RECOVER_TIMER = "qrmi-slurm-recover.timer"
# Slurm's waits for a node that is slow.
SETTINGS = "MessageTimeout=100\nBatchStartTimeout=100\nSlurmdTimeout=30\nTCPTimeout=20"


class VirtualSite(BootedSite):
    """A controller in a container, which is the node n2 as well, and the node n1 in a virtual machine."""

    def _make_machines(self, root: Path, suite: Path, network: Network, authority: Authority) -> None:
        install_debian_packages((*CONTAINER_NEEDS, *NEEDED))
        started_s = time.monotonic()
        vm_root = roots.made(SUITE, (*DEBIAN_PACKAGES, *PACKAGES))
        started_s = self._note("its root made, or found in the cache", started_s)
        hosts = f"127.0.0.1 localhost\n{ADDRESS} {SERVICE_NAME}\n{HOST} ctl\n{MACHINE} n1\n"
        files = {**self.files(suite, authority, controller="ctl", settings=SETTINGS), "/etc/hosts": hosts}
        cache = roots.cache_of(root)
        v1 = f"CgroupPlugin=cgroup/v1\nCgroupMountpoint={starter.V1_INSIDE}\n" if is_memory_on_v1() else ""
        on_controller = {**files, "/etc/hostname": "ctl\n", "/etc/slurm/cgroup.conf": f"{v1}{CGROUP_CONF}"}
        on_node = {**files, "/etc/hostname": "n1\n", "/etc/slurm/cgroup.conf": f"{CGROUP_CONF}{PATIENCE}"}
        content = Content(on_node, SECRET, (*prepare(suite), MASK_CONTROLLER, enable(RECOVER_TIMER)))
        copied = {cache / path.name: path for path in (suite, base_of(cache / suite.name))}
        self.node = VirtualMachine("n1", self.cluster, network, vm_root, content, copied)
        started_s = self._note("its disk written", started_s)
        controller = Container(
            "ctl", self.cluster, network, root, Content(on_controller, SECRET, prepare(suite)), {cache: CACHE}
        )
        self._machines.append(controller)
        self.controller = controller
        self.controller.start()
        self.node.start()
        self.controller.wait_booted()
        self.node.wait_booted()
        started_s = self._note("booted", started_s)
        self.wait_idle()

    def _node_lines(self) -> str:
        node = "CPUs=8 RealMemory=1000 State=UNKNOWN"
        return f"NodeName=n1 {node}\nNodeName=n2 NodeHostname=ctl NodeAddr={HOST} {node}"

    def _note(self, what: str, started_s: float) -> float:
        """Print how long a step took, and return when it ended."""
        now_s = time.monotonic()
        print(f"  vm        {what} in {now_s - started_s:.0f} s", flush=True)
        return now_s


def base_of(suite: Path) -> Path:
    """Return the folder of the layer below a suite's, as its Python names it."""
    [link] = suite.glob("lib/python3*/site-packages/base.pth")
    return Path(link.read_text().strip()).parents[2]


@pytest.fixture(scope="module")
def shared_booted() -> Iterator[BootedSite]:
    """Boot the controller and the node."""
    with VirtualSite() as site:
        yield site


def test_slurm_requeues_a_job_whose_node_was_reset(booted: BootedSite) -> None:
    """Its first session is released, and its second run has another one."""
    job_id, first = jobs.start(booted, "--requeue")
    started_s = time.monotonic()
    booted.node.crash()
    assert jobs.state_of(booted, first) != "closed"
    booted.node.wait_booted()
    print(f"  vm        reset and booted again in {time.monotonic() - started_s:.0f} s", flush=True)
    wait_closed(booted, first, 75)
    print(f"  vm        session closed {time.monotonic() - started_s:.0f} s after the reset", flush=True)

    def second() -> str | None:
        said = booted.output(job_id).split()
        return said[1] if said[:1] == ["begun"] and said[1:2] not in ([], [first]) else None

    token = wait_for(second, "the job's second run", 30 * booted.slowness)
    print(f"  vm        second run {time.monotonic() - started_s:.0f} s after the reset", flush=True)
    assert booted.job(job_id)["Restarts"] == "1"
    assert jobs.state_of(booted, token) != "closed"
    let_go(booted, job_id)
    assert booted.wait_job(job_id) == "COMPLETED", booted.output(job_id)
    assert_nothing_left(booted)
