"""What must hold after every fault: no open session, no drained node, and later jobs run."""

import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from slurm.polling import wait_for
from slurm.site import BIN, Site

SCRIPT = "#!/bin/sh\necho the-script-ran\n"
# It runs until a test lets it go, or the test's site ends.
LONG_SCRIPT = "#!/bin/sh\necho begun\nwhile [ ! -e go-$SLURM_JOB_ID ]; do sleep 0.05; done\n"


def start_long_job(site: Site, *options: str, then: str = "") -> int:
    """Submit a job that holds its QPU until `let_go`, and wait until its script has begun; `then` is appended to it."""
    job_id = site.cluster.sbatch(LONG_SCRIPT + then, "--qpu=ibm_demo", "--nodelist=n1", *options)
    wait_for(lambda: "begun" in site.cluster.job_output(job_id), f"job {job_id} to begin", 30)
    return job_id


def let_go(site: Site, job_id: int) -> None:
    """Let the script of such a job end."""
    (site.cluster.user.home / f"go-{job_id}").touch()


def finish_with(site: Site, make_fault: Callable[[int], object]) -> int:
    """Run a job to its end, with a fault between its last line and Epilog; return its id."""
    with site.hold("before-epilog"):
        job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo", "--nodelist=n1")
        site.wait_hook_run("before-epilog", job_id)
        make_fault(job_id)
    return job_id


def assert_nothing_left(site: Site, job_id: int) -> None:
    """The nodes are idle, no session is open, and the job has no record."""
    site.cluster.wait_nodes_idle()
    assert site.emulator.open_sessions() == []
    assert not site.folder_of(job_id).exists()


def assert_next_job_is_fine(site: Site) -> None:
    """A job on the same node gets the QPU and releases it."""
    job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo", "--nodelist=n1")
    assert site.cluster.wait_job_over(job_id).state == "COMPLETED", site.cluster.job_output(job_id)
    assert_nothing_left(site, job_id)


def assert_why(site: Site, job_id: int | str, cause: str, detail: str = "", *, as_user: bool = False) -> None:
    """`qrmi-slurm why` names a job's cause in its first line, on one screen.

    Args:
        site: the site.
        job_id: the job.
        cause: what follows `Job N ` in the first line.
        detail: what one of the others contains.
        as_user: ask as the job's user, the cluster's first one; otherwise as root.
    """
    command = ["why", str(job_id)]
    done = site.cluster.run_as_user([BIN / "qrmi-slurm", *command]) if as_user else site.command(*command)
    first, *others = done.stdout.splitlines() or [""]
    assert first.startswith(f"Job {job_id} {cause}"), done.stdout + done.stderr
    assert detail in "\n".join(others), done.stdout
    assert len(others) < 23, done.stdout


def why_without(site: Site, says: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `qrmi-slurm why` as root where slurmctld says nothing of any job.

    Args:
        site: the site.
        says: what squeue says instead.
        words: the command's arguments.
    """
    with tempfile.TemporaryDirectory() as folder:
        squeue = Path(folder) / "squeue"
        squeue.write_text(f"#!/bin/sh\necho 'slurm_load_jobs error: {says}' >&2\nexit 1\n")
        squeue.chmod(0o755)
        env = site.root_env("n1")
        return subprocess.run(
            [BIN / "qrmi-slurm", "why", *words],
            env={**env, "PATH": f"{folder}:{env['PATH']}"},
            capture_output=True,
            text=True,
            timeout=60,
        )
