"""What the hooks log, where and at which level; and that no secret is in any log, output or readable file."""

import re
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import pytest

from slurm.jobs import environment_of
from slurm.polling import wait_for
from slurm.site import Site
from slurm.standins import Services
from slurm.syslog_listener import Syslog, listening
from standins.resources import resource
from standins.services import BEARER

DAEMON_INFO, DAEMON_ERROR = 3 * 8 + 6, 3 * 8 + 3  # facility and level, RFC 3164


@dataclass(frozen=True, slots=True)
class Planted:
    """Values that only QRMI and the job may see, different in each run."""

    site_key: str
    user_key: str
    proxy_password: str

    def all(self) -> list[str]:
        """All of them, and the token the service issues for a key."""
        return [self.site_key, self.user_key, self.proxy_password, BEARER]


@pytest.fixture
def syslog() -> Iterator[Syslog | None]:
    """The messages sent to syslog during the test."""
    with listening() as end:
        yield end


def sent_once(syslog: Syslog, pattern: str) -> bool:
    """Tell whether a matching message was sent to syslog."""
    return len([text for text in syslog.messages() if re.fullmatch(pattern, text)]) == 1


def test_each_event_is_a_line_with_job_qpu_and_duration(site: Site, services: Services, syslog: Syslog | None) -> None:
    """In syslog and on standard output alike: acquisitions, releases and failures, each at its level."""
    kind = "ibm-quantum-compute-service"
    # Names unique to this run: other runs on this machine may be writing to syslog as well.
    good, bad = (f"{name}_{secrets.token_hex(4)}" for name in ("good", "bad"))
    site.config(
        [
            {**resource(kind, f"{services.url}/online"), "name": good},
            {**resource(kind, f"{services.url}/401"), "name": bad},
        ]
    )
    job_id = site.cluster.sbatch("#!/bin/sh\ntrue\n", f"--qpu={good},{bad}")
    site.cluster.wait_job_over(job_id)
    took = r"seconds=\d+\.\d\d\d"
    expected = [
        (DAEMON_INFO, "prolog", rf"info: acquired: job={job_id} qpu={good} type={kind} {took}"),
        (DAEMON_ERROR, "prolog", rf"error: not-acquired: job={job_id} qpu={bad} type={kind} {took} .*reason=.*"),
        (DAEMON_INFO, "epilog", rf"info: released: job={job_id} qpu={good} type={kind} {took} how=done"),
        # QRMI's own records keep their level.
        (DAEMON_ERROR, "prolog", rf"error: qrmi: job={job_id} qpu={bad} says=.* ERROR qrmi::ibm::.*Token renewal.*"),
    ]
    printed = site.hooks_log().splitlines()
    for priority, hook, line in expected:
        assert len([text for text in printed if re.fullmatch(f"qrmi-slurm-{hook}: {line}", text)]) == 1, line
        if syslog is not None:
            sent = rf"<{priority}>.* qrmi-slurm-{hook}\[\d+\]: {line}"
            wait_for(partial(sent_once, syslog, sent), line, 5)


def test_no_secret_is_anywhere_but_in_the_jobs_own_environment(
    site: Site, services: Services, syslog: Syslog | None
) -> None:
    """Planted: the site's key, a user's key, a proxy's password, a token. One service echoes what it was sent."""
    planted = Planted(*(f"planted-{secrets.token_hex(12)}" for _ in range(3)))
    session, echoing, users = (
        resource(kind, "http://qpu.invalid/online")
        for kind in ("ibm-quantum-compute-service", "qiskit-runtime-service", "iqm-server")
    )
    session["environment"]["QRMI_IBM_QCS_IAM_APIKEY"] = planted.site_key
    echoing["environment"] |= {
        "QRMI_IBM_QRS_IAM_APIKEY": planted.site_key,
        "QRMI_IBM_QRS_ENDPOINT": "http://qpu.invalid/echo",
    }
    users["environment"] = {}
    site.config([session, echoing, users])
    proxy = services.url.replace("http://", f"http://me:{planted.proxy_password}@")
    site.plugstack(site.plugstack_line(f"--env:http_proxy={proxy}", "--env:RUST_LOG=trace"))
    env_file, names = site.cluster.user.home / "environment.txt", [session["name"], echoing["name"], users["name"]]
    job_id = site.cluster.sbatch(
        f"#!/bin/sh\numask 077\nenv >{env_file}\nsrun env >>{env_file}\necho ready\nsleep 300\n",
        f"--qpu={','.join(names)}",
        env={
            f"{users['name']}_QRMI_IQM_ISA_ENDPOINT": "http://qpu.invalid/echo",
            f"{users['name']}_QRMI_IQM_ISA_TOKEN": planted.user_key,
        },
    )
    wait_for(lambda: "ready" in site.cluster.job_output(job_id) or None, "the job to be ready", 20)
    env = environment_of(env_file.read_text())
    token = env[f"{session['name']}_QRMI_JOB_ACQUISITION_TOKEN"]
    assert env[f"{session['name']}_QRMI_IBM_QCS_IAM_APIKEY"] == planted.site_key
    [folder] = site.state_dir.glob(f"*/{job_id}")
    assert planted.site_key in (folder / "record.json").read_text()
    holders = {path.name: path.stat() for path in folder.iterdir()}
    assert all(stat.S_IMODE(status.st_mode) & 0o077 == 0 for status in holders.values()), holders
    site.cluster.slurm("scancel", str(job_id))
    site.cluster.wait_job_over(job_id)

    # The reasons for both failures were given, including the request.
    output = site.cluster.job_output(job_id)
    for name, what in (
        (echoing["name"], "tell whether the QPU is accessible"),
        (users["name"], "get the QPU's status"),
    ):
        assert f"{name} could not be acquired: QRMI cannot {what}: invalid input" in output
    released = f"released: job={job_id} qpu={session['name']}"
    assert released in site.hooks_log()
    if syslog is not None:
        wait_for(lambda: released in "\n".join(syslog.messages()), "its line in syslog", 5)
    seen = {
        "the job's output": output,
        "the hooks' output": site.hooks_log(),
        "syslog": "\n".join(syslog.messages()) if syslog is not None else "",
        **{f"the log of {name}": site.cluster.slurmd_log(name) for name in site.cluster.nodes},
        "the log of slurmctld": site.cluster.log("slurmctld").read_text(errors="replace"),
        "what scontrol shows": site.cluster.slurm("scontrol", "show", "job", str(job_id)),
    }
    found = [(where, secret) for where, text in seen.items() for secret in planted.all() if secret in text]
    assert found == []
    said = [line for line in site.hooks_log().splitlines() if f"job={job_id} " in line]
    assert not [line for line in said if re.search(rf"{token}\b", line)]
