"""The test site is what an admin would have: the wheel's files, in Slurm's own places."""

import sys
from pathlib import Path

import pytest

import qrmi_slurm
from slurm.cluster import ClusterOptions
from slurm.site import BIN, STUB, HookRun, Site, SiteOptions


def test_the_installed_wheel_is_tested() -> None:
    """The package, the hooks and the stub are those of the environment, not of the checkout."""
    assert Path(qrmi_slurm.__file__).is_relative_to(sys.prefix)
    assert STUB.is_relative_to(sys.prefix)
    for hook in ("prolog", "task-prolog", "epilog"):
        assert (BIN / f"qrmi-slurm-{hook}").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("watched", [False, True], ids=["by path", "by symlinks in a folder"])
def test_hooks_as_an_admin_installs_them(watched: bool) -> None:
    """slurm.conf names Prolog and Epilog by their own paths, or by a glob over symlinks to them."""
    options = SiteOptions(cluster=ClusterOptions(nodes=1), watched=watched, hooks_log=False)
    with Site(options) as site:
        job_id = site.cluster.sbatch("#!/bin/sh\necho $QRMI_JOB_QPU_RESOURCES\n", "--qpu=ibm_demo")
        assert site.cluster.wait_job_over(job_id).state == "COMPLETED"
        assert site.cluster.job_output(job_id) == "ibm_demo\n"
        assert [session["state"] for session in site.emulator.sessions()] == ["closed"]


def test_hooks_can_be_held_before_and_after(site: Site) -> None:
    """A held Prolog keeps the job from its session; a held Epilog that has released keeps its node."""
    with site.hold("before-prolog"):
        job_id = site.cluster.sbatch("#!/bin/sh\ntrue\n", "--qpu=ibm_demo", "--nodelist=n2")
        assert site.wait_hook_run("before-prolog", job_id) == HookRun(job_id, "n2")
        assert site.cluster.job(job_id).reason == "Prolog"
        assert not site.emulator.open_sessions()
    with site.hold("after-epilog"):
        site.wait_hook_run("after-epilog", job_id)
        assert site.cluster.job(job_id).state == "COMPLETING"
        assert not site.emulator.open_sessions()
    assert site.cluster.wait_job_over(job_id).state == "COMPLETED"
    assert f"acquired: job={job_id}" in site.hooks_log()
