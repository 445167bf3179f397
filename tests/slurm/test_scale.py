"""What a large cluster costs slurmctld and the services: counted on three nodes, within the limits of a page."""

import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

from bench.rpcs import rpcs
from slurm.aftermath import let_go, start_long_job
from slurm.cluster import Cluster, ClusterOptions, Hooks
from slurm.pages import ROOT
from slurm.polling import wait_for
from slurm.site import BIN, Site, SiteOptions
from slurm.wire import Wire, counted

NODES = 3
QPUS = ("ibm_demo", "ibm_second")
OTHER_JOBS = 20

# RPCs without any job, and this module's own: sdiag; sinfo, which waits for idle nodes.
NOISE = re.compile(r"NODE_REGISTRATION|PING|STATS_INFO")
WAITING = re.compile(r"NODE_INFO|PARTITION_INFO|JOB_READY")
# What slurmctld gets for a Prolog at the allocation and for an Epilog, whatever they are, from each node.
OF_SLURM = {"REQUEST_COMPLETE_PROLOG", "MESSAGE_EPILOG_COMPLETE"}


class Cost(NamedTuple):
    """What something costs others.

    Args:
        rpcs: to slurmctld, by type.
        requests: to the service, in order.
    """

    rpcs: Counter[str]
    requests: list[str]

    @property
    def counts(self) -> tuple[int, int]:
        """How many RPCs and requests."""
        return self.rpcs.total(), len(self.requests)

    def is_within(self, what: str, times: int = 1) -> bool:
        """Tell whether it is within a limit of the page."""
        return all(count <= limit * times for count, limit in zip(self.counts, LIMITS[what], strict=True))


def limits() -> dict[str, tuple[int, int]]:
    """Return the page's limits on RPCs and requests, by what costs them."""
    section = (ROOT / "docs" / "benchmarks.md").read_text().partition("\n## At scale\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+) \| (\d+) \| (\d+) \|", section, re.MULTILINE)
    return {what: (int(calls), int(requests)) for what, calls, requests in rows}


LIMITS = limits()


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """A cluster with our hooks, and two QPUs."""
    backends = dict.fromkeys(QPUS, "FakeSherbrooke")
    with Site(SiteOptions(cluster=ClusterOptions(nodes=NODES), backends=backends, hooks_log=False)) as site:
        yield site


@pytest.fixture(scope="module")
def plain() -> Iterator[Cluster]:
    """A cluster whose hooks do nothing."""
    with Cluster(ClusterOptions(nodes=NODES, hooks=Hooks(*["/bin/true"] * 3))) as cluster:
        yield cluster


def cost_of(site: Site, run: Callable[[], object]) -> Cost:
    """Return what `run` costs."""
    before, asked = Counter(rpcs(site.cluster)), len(site.emulator.requests())
    run()
    after = Counter(rpcs(site.cluster)) - before
    found = Counter({name: count for name, count in after.items() if not NOISE.search(name)})
    return Cost(found, [request["call"] for request in site.emulator.requests()[asked:]])


def run_job(cluster: Cluster, *options: str) -> None:
    """Run a job to its end, Epilogs included, without asking slurmctld about it."""
    done = cluster.user.home / "done"
    done.unlink(missing_ok=True)
    cluster.sbatch("#!/bin/sh\nsrun true\ntouch done\n", "--time=5", *options)
    wait_for(done.exists, "the job to run", 30)
    cluster.wait_nodes_idle()


def cost_of_job(site: Site, *options: str) -> Cost:
    """Return what a job costs."""
    asked = len(site.emulator.requests())
    found = rpcs_of_job(site.cluster, *options)
    return Cost(found, [request["call"] for request in site.emulator.requests()[asked:]])


def rpcs_of_job(cluster: Cluster, *options: str) -> Counter[str]:
    """Return the RPCs of a job by their type."""
    cluster.wait_nodes_idle()
    before = Counter(rpcs(cluster))
    run_job(cluster, *options)
    found = Counter(rpcs(cluster)) - before
    is_other = re.compile(f"{NOISE.pattern}|{WAITING.pattern}")
    return Counter({name: count for name, count in found.items() if not is_other.search(name)})


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_recover_with_nothing_recorded(site: Site, words: list[str]) -> None:
    """On the 1000 nodes of a cluster, most of the time: nobody is asked anything."""
    site.cluster.wait_nodes_idle()
    cost = cost_of(site, lambda: site.command("recover", *words))
    assert cost.counts == LIMITS["`recover`, nothing recorded"] == (0, 0)


def submit_others(site: Site) -> None:
    """Submit other jobs, which wait."""
    for _ in range(OTHER_JOBS):
        site.cluster.sbatch("#!/bin/sh\n:\n", "--hold")


def cancel_others(site: Site) -> None:
    """Cancel them."""
    site.cluster.slurm("scancel", "--state=PENDING", f"--user={site.cluster.user.name}")
    site.cluster.wait_nodes_idle()
    assert site.emulator.open_sessions() == []


@pytest.fixture
def running(site: Site) -> Iterator[list[int]]:
    """Two jobs that hold a QPU and run their scripts, among others that wait."""
    submit_others(site)
    jobs = [start_long_job(site), start_long_job(site)]
    yield jobs
    for job_id in jobs:
        let_go(site, job_id)
    cancel_others(site)


def test_recover_beside_jobs_that_hold_a_qpu(site: Site, running: list[int]) -> None:
    """slurmctld is asked for each of them; it never has to list all jobs. The service is not asked."""
    cost = cost_of(site, site.recover)
    assert cost.is_within("`recover`, for each running job that holds a QPU", times=len(running))
    assert cost.rpcs["REQUEST_JOB_INFO_SINGLE"] == len(running)
    assert "REQUEST_JOB_INFO" not in cost.rpcs
    assert all(site.record_of(job_id) for job_id in running)


def test_nodes_that_share_the_records_share_the_questions(site: Site, running: list[int]) -> None:
    """A minute's runs on all nodes cost what one of them costs."""

    def recover_everywhere() -> None:
        for node in site.cluster.nodes:
            site.recover(node=node)

    cost = cost_of(site, recover_everywhere)
    assert cost.rpcs["REQUEST_JOB_INFO_SINGLE"] == len(running)


def test_recover_moves_no_more_bytes_with_more_jobs(site: Site, running: list[int]) -> None:
    """What a run sends and receives grows with the jobs that it asks for alone."""

    def recover(wire: Wire) -> int:
        wire.reset()
        done = subprocess.run(
            [BIN / "qrmi-slurm", "recover", "--now"],
            env={**site.root_env("n1"), "SLURM_CONF": str(wire.slurm_conf)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return wire.size_bytes

    with counted(site.cluster) as wire:
        few = recover(wire)
        assert wire.connections == 2 * len(running)
        submit_others(site)
        many = recover(wire)
    assert 0 < few < 16_000 * len(running)
    assert abs(many - few) < 1000 * len(running)


def test_recover_on_the_other_nodes_of_a_wide_job(site: Site, running: list[int]) -> None:
    """A folder in which nothing is held is looked at once an hour, and stays as long as the job runs."""
    state_dir = site.folder_of(1).parent
    folders = site.cluster.folder / "another-nodes-state" / state_dir.name
    folder = folders / str(running[0])
    folder.mkdir(parents=True, mode=0o711)

    def recover() -> None:
        done = site.command("recover", "--state-dir", str(folders.parent), node="n2")
        assert (done.returncode, done.stdout) == (0, ""), done.stderr

    assert cost_of(site, recover).counts == (0, 0)
    os.utime(folder, (0, time.time() - 3601))
    assert cost_of(site, recover).is_within("`recover`, hourly, on each other node of a job with a QPU")
    assert cost_of(site, recover).counts == (0, 0)
    assert folder.exists()


def test_recover_while_the_service_is_down(site: Site) -> None:
    """A pending release costs slurmctld nothing; the service is asked by one of the nodes that share the records."""
    with site.emulator.fault(call="update_session", kind="error", status=500):
        job_id = site.cluster.sbatch("#!/bin/sh\n:\n", "--qpu=ibm_demo", "--nodelist=n1")
        site.cluster.wait_job_over(job_id)
        assert cost_of(site, site.recover).counts == (0, 0), "the next attempt is not due yet"
        site.change_record(job_id, lambda record: record["entries"][0].update(since_s=time.time() - 4000))
        with ThreadPoolExecutor() as nodes:
            cost = cost_of(site, lambda: list(nodes.map(lambda n: site.recover(node=f"n{n}"), range(1, NODES + 1))))
    assert cost.is_within("`recover`, for each attempt to release")
    assert cost.requests.count("update_session") == 1
    assert cost_of(site, lambda: site.recover("--now")).is_within("`recover`, for each attempt to release")
    assert not site.folder_of(job_id).exists()


@pytest.mark.parametrize("nodes", [1, NODES])
def test_a_job_without_a_qpu(site: Site, plain: Cluster, nodes: int) -> None:
    """The hooks of 5000 nodes without a QPU cost what hooks that do nothing cost: two RPCs from each node."""
    ours, empty = cost_of_job(site, f"-N{nodes}"), rpcs_of_job(plain, f"-N{nodes}")
    more = Cost((ours.rpcs - empty) + (empty - ours.rpcs), ours.requests)
    assert more.counts == LIMITS["job without a QPU, more than with hooks that do nothing"] == (0, 0)
    of_slurm = Cost(Counter({name: ours.rpcs[name] for name in OF_SLURM}), [])
    assert of_slurm.is_within("job without a QPU, on each of its nodes, for hooks that do nothing", times=nodes)


@pytest.mark.parametrize("nodes", [1, NODES])
def test_a_job_with_a_qpu(site: Site, nodes: int) -> None:
    """Whatever the number of its nodes, one of them acquires and releases."""
    without, with_qpu = cost_of_job(site, f"-N{nodes}"), cost_of_job(site, f"-N{nodes}", "--qpu=ibm_demo")
    more = Cost(with_qpu.rpcs - without.rpcs, with_qpu.requests)
    assert more.is_within("job with a QPU, more than without, on any number of nodes")
    assert {"create_session", "update_session"} <= set(more.requests)


def test_a_job_that_chooses_a_qpu(site: Site) -> None:
    """Prolog asks the service of each QPU that matches whether it is online, and how long its queue is."""
    named, chosen = cost_of_job(site, "-N1", "--qpu=ibm_demo"), cost_of_job(site, "-N1", "--qpu=least-busy:ibm_*")
    more = Cost(chosen.rpcs - named.rpcs, chosen.requests[len(named.requests) :])
    assert more.is_within("job that chooses a QPU, more for each that matches", times=len(QPUS))
    assert len(chosen.requests) > len(named.requests)


def test_a_start_that_fails_because_its_qpu_is_not_there(site: Site) -> None:
    """One question, the requeue, and an update of the waiting job."""
    without = cost_of_job(site, "-N1")
    before, asked = Counter(rpcs(site.cluster)), len(site.emulator.requests())
    with site.emulator.fault(call="create_session", kind="error", status=503) as fault:
        job_id = site.cluster.sbatch("#!/bin/sh\n:\n", "--qpu=ibm_demo")
        wait_for(lambda: fault.hits() > 0, "the service to be asked", 30)
        site.cluster.wait_nodes_idle()
    more = Counter(rpcs(site.cluster)) - before - without.rpcs
    found = Counter(
        {name: count for name, count in more.items() if not re.search(f"{NOISE.pattern}|{WAITING.pattern}", name)}
    )
    requests = [request["call"] for request in site.emulator.requests()[asked:]]
    site.cluster.slurm("scancel", str(job_id))
    assert found["REQUEST_JOB_REQUEUE"] == found["REQUEST_UPDATE_JOB"] == 1
    assert Cost(found, requests).is_within(
        "start that fails because its QPU is not there, more than for a job without one"
    )
