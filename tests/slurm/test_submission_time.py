"""How long slurmctld takes for a submission at a site with 5000 QPUs, as it measures itself (sdiag).

slurmctld does nothing else while job_submit.lua runs: what a submission costs it, all users wait for. The bounds here
are generous, since other work on the machine counts too; tests/unit/lua/test_work.py has exact ones.
"""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.cluster import Cluster, ClusterOptions
from slurm.polling import wait_for
from slurm.site import Site, SiteOptions

NAMES = [f"ibm_{number:04}" for number in range(5000)]
SELECTIONS = {
    "a name": "ibm_4999",
    "64 names": ",".join(NAMES[-64:]),
    "64 typos": ",".join(name.replace("ibm", "imb") for name in NAMES[:64]),
    "240 typos": ",".join(f"ibm_x{number:03}" for number in range(240)),
    "2048 stars": ",".join("*" * 2048),
    "any:*": "any:*",
    "8 stars": ",".join("*" * 8),
    "8 types": ",".join(["any:ibm-quantum-compute-service"] * 8),
    "8 impossible patterns": ",".join(f"*{number}*z[0-9]" for number in range(8)),
}
SUBMISSIONS = 40

# What 2 ms may come to on a busy machine.
MAX_MS = 10.0
MAX_MS_WITHOUT_QPU = 2.0

# How long other users may wait for slurmctld while somebody submits such jobs in four loops, in seconds. Slurm's own
# commands give up after 10 s (MessageTimeout).
MAX_WAIT_S = 3.0


@pytest.fixture(scope="module")
def large_site() -> Iterator[Site]:
    """Start a site with 5000 QPUs, each with a license."""
    licenses = {f"qpu_{name}": 1 for name in NAMES}
    with Site(SiteOptions(ClusterOptions(nodes=1), licenses=licenses)) as site:
        site.config([{"name": name, "type": "ibm-quantum-compute-service", "environment": {}} for name in NAMES])
        yield site


@pytest.fixture(scope="module")
def program(large_site: Site) -> Path:
    """Return a program that submits many jobs quickly."""
    path = large_site.cluster.folder / "submit_many"
    source = Path(__file__).with_name("submit_many.c")
    subprocess.run(["gcc", "-Wall", "-Wextra", "-Werror", "-o", path, source, "-lslurm"], check=True)
    return path


def restart_slurmctld(cluster: Cluster) -> None:
    """Stop slurmctld and start it again."""
    cluster.stop_daemon("slurmctld")
    cluster.start_daemon("slurmctld", ["slurmctld", "-D"], {})
    wait_for(lambda: "UP" in (cluster.try_slurm("scontrol", "ping") or ""), "slurmctld", 20)


def mean_ms(site: Site, program: Path, *entries: str) -> float:
    """Submit jobs and return how long slurmctld took for each, in milliseconds; the jobs are cancelled."""
    cluster = site.cluster
    cluster.run_as_user([program, "1", *entries])  # the first one after a change reads the catalogue
    cluster.slurm("sdiag", "--reset")
    cluster.run_as_user([program, str(SUBMISSIONS), *entries], deadline_s=60)
    found = re.search(r"REQUEST_SUBMIT_BATCH_JOB .* count:(\d+) +ave_time:(\d+)", cluster.slurm("sdiag"))
    assert found
    assert int(found[1]) == SUBMISSIONS
    cluster.slurm("scancel", f"--user={cluster.user.name}")
    return int(found[2]) / 1000


def test_slurmctld_takes_a_bounded_time_for_any_selection(large_site: Site, program: Path) -> None:
    """Compared with slurmctld without Lua, by sdiag. `pytest -s` prints the figures."""
    cluster = large_site.cluster
    with_lua = {name: mean_ms(large_site, program, f"QRMI_QPU={text}") for name, text in SELECTIONS.items()}
    without_qpu = min(mean_ms(large_site, program) for _ in range(2))  # other work on the machine only adds to it
    conf = cluster.slurm_conf.read_text()
    cluster.slurm_conf.write_text(re.sub("^JobSubmitPlugins=.*\n", "", conf, flags=re.MULTILINE))
    try:
        restart_slurmctld(cluster)
        plain = mean_ms(large_site, program)
    finally:
        cluster.slurm_conf.write_text(conf)
        restart_slurmctld(cluster)
    print(f"\n  without Lua {plain:.2f} ms; more than that:")
    for name, ms in {"no --qpu": without_qpu, **with_lua}.items():
        print(f"  {name:25} {ms - plain:6.2f} ms")
    assert without_qpu - plain <= MAX_MS_WITHOUT_QPU
    assert {name: ms for name, ms in with_lua.items() if ms - plain > MAX_MS} == {}


def test_refused_submissions_in_loops_delay_nobody(large_site: Site, program: Path) -> None:
    """Four loops of one user; commands of others are answered meanwhile."""
    cluster = large_site.cluster
    loops = [
        cluster.popen_as_user([program, "2000", f"QRMI_QPU={SELECTIONS[name]}"])
        for name in ("240 typos", "64 typos", "2048 stars", "8 impossible patterns")
    ]
    try:
        for _ in range(10):
            done = cluster.run_as_user(["timeout", str(MAX_WAIT_S), "sinfo", "--noheader"])
            assert done.returncode == 0, f"sinfo took longer than {MAX_WAIT_S} s: {done.stderr}"
            assert all(loop.poll() is None for loop in loops), "the loops ended too early to show anything"
    finally:
        for loop in loops:
            loop.kill()
            loop.communicate()
