"""What the jobs of booted sites do, and what must hold when one has ended."""

import contextlib
from collections.abc import Iterator

from booted.debian import USER
from booted.site import QPU, STATE_DIR, BootedSite
from slurm.polling import wait_for

# It prints its token, and goes on until a test lets it go.
LONG = f"""\
#!/bin/sh
echo begun ${QPU}_QRMI_JOB_ACQUISITION_TOKEN
while [ ! -e go-$SLURM_JOB_ID ]; do sleep 0.2; done
"""

# A login at the broker, as every QRMI program begins. It prints the status of the answer.
ASK = f"""\
import os, urllib.error, urllib.parse, urllib.request
own = lambda name: os.environ["{QPU}_QRMI_IBM_QCS_" + name]
form = {{"grant_type": "urn:ibm:params:oauth:grant-type:apikey", "apikey": own("IAM_APIKEY")}}
url = own("IAM_ENDPOINT") + "/identity/token"
try:
    status = urllib.request.urlopen(url, urllib.parse.urlencode(form).encode(), timeout=60).status
except urllib.error.HTTPError as error:
    status = error.code
except OSError as error:
    status = error
print("asked", status, flush=True)
"""
# What a job writes to have it: the program has no quotes of the shell's.
ASK_BROKER = f"python3 - <<'EOF'\n{ASK}EOF\n"


def start(site: BootedSite, *options: str, then: str = "", **env: str) -> tuple[int, str]:
    """Start a job that holds the QPU until it is let go; return its id and its token.

    Args:
        options: of sbatch, besides --qpu.
        then: more of its script.
        env: variables of the user's.
    """
    job_id = site.sbatch(LONG + then, f"--qpu={QPU}", "--nodelist=n1", *options, **env)
    site.wait_output(job_id, "begun ")
    return job_id, site.output(job_id).split()[1]


def let_go(site: BootedSite, job_id: int) -> None:
    """Let the script of such a job end."""
    site.node.out("touch", f"go-{job_id}", user=USER)


def run(site: BootedSite, script: str, *options: str) -> str:
    """Run a batch job with the QPU to its end, and return its output."""
    job_id = site.sbatch(f"#!/bin/sh\n{script}", f"--qpu={QPU}", "--nodelist=n1", *options)
    assert site.wait_job(job_id) == "COMPLETED", site.output(job_id)
    site.wait_idle()
    return site.output(job_id)


def state_of(site: BootedSite, session: str) -> str:
    """Return the state of a session at the service."""
    [state] = [one["state"] for one in site.emulator.sessions() if one["id"] == session]
    return str(state)


def assert_nothing_left(site: BootedSite) -> None:
    """The node is idle; no session is open; no job has a folder, a process or a control group."""
    site.wait_idle()
    assert site.emulator.open_sessions() == []
    assert site.node.run("sh", "-c", f"ls -d {STATE_DIR}/booted/[0-9]*").stdout == ""
    assert job_groups(site) == []
    assert brokers(site) == []


def job_groups(site: BootedSite) -> list[str]:
    """Return the control groups of jobs on the node."""
    return site.node.sh("find /sys/fs/cgroup /cgroup-v1 -type d -name 'job_*' 2>/dev/null || true").split()


def brokers(site: BootedSite) -> list[int]:
    """Return the process ids of the credential brokers on the node."""
    # The brackets keep the pattern from matching its own command line.
    return [int(pid) for pid in site.node.run("pgrep", "--full", "[q]rmi_slurm.broker job=").stdout.split()]


@contextlib.contextmanager
def with_broker(site: BootedSite) -> Iterator[None]:
    """Let the QPU's jobs reach it through a credential broker until the block ends."""
    site.config(broker=True)
    try:
        yield
    finally:
        site.config()


def wait_closed(site: BootedSite, session: str, deadline_s: float = 20.0) -> None:
    """Wait until a session is closed at the service."""
    wait_for(lambda: state_of(site, session) == "closed", "the session to close", deadline_s * site.slowness)
