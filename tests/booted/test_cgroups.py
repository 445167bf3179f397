"""Slurm with control groups: the hooks and the broker are outside of the job's, whose end costs no QPU."""

import faulthandler
import re
from collections.abc import Iterator

import pytest

from booted import jobs
from booted.debian import USER
from booted.jobs import assert_nothing_left, let_go, with_broker
from booted.site import QPU, BootedSite
from slurm.cluster import TERMINAL_STATES
from slurm.jobs import print_token
from slurm.polling import wait_for

# A heterogeneous job has its components on different nodes.
NODES = 2
TOKEN = print_token(QPU)
# More than any job here may have, in chunks that are written to.
EATING = 'python3 -c \'x = [bytearray(b"x" * 2**20) for _ in range(400)]; print("ate")\''
OUT_OF_MEMORY = frozenset({"OUT_OF_MEMORY"})
# How much of a job's memory its own shell may take: far less than a hook's Python with QRMI.
SHELL_BYTES = 6 * 2**20


@pytest.fixture(scope="module")
def shared_booted() -> Iterator[BootedSite]:
    """Boot a site of two nodes."""
    faulthandler.cancel_dump_traceback_later()  # the first run makes a root, which takes minutes
    with BootedSite(NODES) as site:
        yield site


def groups_of(booted: BootedSite, pattern: str) -> list[str]:
    """Return the lines of /proc/PID/cgroup of every process whose command line fits a pattern of pgrep's."""
    script = f"for pid in $(pgrep --full '{pattern}'); do cat /proc/$pid/cgroup; done"
    return booted.node.sh(f"{script} 2>/dev/null || true").splitlines()


def peak_bytes(booted: BootedSite, job_id: int) -> int:
    """Return the most memory that a job's control group has had."""
    [group] = [group for group in jobs.job_groups(booted) if group.endswith(f"job_{job_id}") and "freezer" not in group]
    names = f"{group}/memory.max_usage_in_bytes {group}/memory.peak"
    return int(booted.node.sh(f"cat {names} 2>/dev/null || true").split()[0])


def test_a_batch_job_and_its_steps_have_the_qpu(booted: BootedSite) -> None:
    """The script, a step, a step without the script's environment, and two steps side by side."""
    steps = f"srun sh -c '{TOKEN}'\nsrun --export=NONE /bin/sh -c '{TOKEN}'\n"
    # --quiet: a step that had to wait says so.
    one = f"srun --quiet --exact -n1 -c1 sh -c '{TOKEN}' &"
    both = f"{one} {one} wait\n"
    lines = jobs.run(booted, f"{TOKEN}\n{steps}{both}", "--ntasks=2").splitlines()
    assert set(lines) == {booted.emulator.sessions()[-1]["id"]}
    assert len(lines) == 1 + 2 + 2 + 1 + 1, lines
    assert_nothing_left(booted)


@pytest.mark.parametrize("form", [["srun"], ["salloc", "srun"]], ids=["srun", "salloc"])
def test_an_interactive_job_has_the_qpu(booted: BootedSite, form: list[str]) -> None:
    """`srun` outside of a job, and a step in `salloc`; two tasks each."""
    words = [form[0], "-n2", "--nodelist=n1", f"--qpu={QPU}", *form[1:], "sh", "-c", TOKEN]
    said = booted.controller.out(*words, user=USER)
    assert said.splitlines() == [booted.emulator.sessions()[-1]["id"]] * 2
    assert_nothing_left(booted)


def test_each_task_of_an_array_has_its_own_session(booted: BootedSite) -> None:
    """Two jobs on one node, each in its own control group."""
    before = len(booted.emulator.sessions())
    script = f"#!/bin/sh\n{TOKEN}\n"
    job_id = booted.sbatch(script, f"--qpu={QPU}", "--nodelist=n1", "--array=1-2", "--output=array-%a.txt")

    def has_ended() -> bool:
        states = booted.controller.out("squeue", "--noheader", "--states=all", f"--jobs={job_id}", "--format=%T")
        return set(states.split()) <= TERMINAL_STATES

    wait_for(has_ended, "both array tasks", 60 * booted.slowness)
    booted.wait_idle()
    said = [booted.node.out("cat", f"/home/{USER}/array-{number}.txt").strip() for number in (1, 2)]
    assert sorted(said) == sorted(session["id"] for session in booted.emulator.sessions()[before:])
    assert_nothing_left(booted)


def test_a_heterogeneous_jobs_component_has_the_qpu(booted: BootedSite) -> None:
    """The second component has it, the first, on n1, has none."""
    show = f"sh -c 'echo has=${QPU}_QRMI_JOB_ACQUISITION_TOKEN'"
    script = f"#!/bin/sh\nsrun --het-group=0 {show}\nsrun --het-group=1 {show}\n"
    job_id = booted.sbatch(script, "--nodelist=n1", ":", "--nodelist=n2", f"--qpu={QPU}")
    assert booted.wait_job(job_id) == "COMPLETED", booted.output(job_id)
    booted.wait_idle()
    said = [line.partition("has=")[2] for line in booted.output(job_id).splitlines() if "has=" in line]
    assert said == ["", booted.emulator.sessions()[-1]["id"]]
    assert_nothing_left(booted)


def test_a_job_at_its_memory_limit_still_has_its_qpu_released(booted: BootedSite) -> None:
    """The kernel kills its script; Epilog runs all the same."""
    job_id, session = jobs.start(booted, "--mem=60M", then=f"{EATING}\n")
    assert jobs.state_of(booted, session) != "closed"
    let_go(booted, job_id)
    assert booted.wait_job(job_id) == "OUT_OF_MEMORY", booted.output(job_id)
    booted.wait_idle()
    assert "ate" not in booted.output(job_id).split()
    said = booted.node.out("qrmi-slurm", "why", str(job_id))
    assert said.startswith(f"Job {job_id} was ended, because it used more memory than it had asked for"), said
    assert jobs.state_of(booted, session) == "closed"
    assert_nothing_left(booted)


def test_a_broker_survives_a_step_at_the_memory_limit(booted: BootedSite) -> None:
    """The kernel kills the step alone; the job goes on with its QPU, and the broker ends with the job."""
    with with_broker(booted):
        job_id, session = jobs.start(booted, "--mem=60M", then=f"srun {EATING}\n{jobs.ASK_BROKER}")
        [broker] = jobs.brokers(booted)
        let_go(booted, job_id)
        assert booted.wait_job(job_id) in ("OUT_OF_MEMORY", "COMPLETED"), booted.output(job_id)
    said = booted.output(job_id)
    assert "ate" not in said.split()
    assert "asked 200" in said
    booted.wait_idle()
    assert jobs.state_of(booted, session) == "closed"
    assert booted.node.run("kill", "-0", str(broker)).returncode != 0
    assert_nothing_left(booted)


@pytest.mark.parametrize("signal", ["TERM", "KILL"])
def test_a_broker_is_no_part_of_its_job_and_ends_with_it(booted: BootedSite, signal: str) -> None:
    """It is in no control group of its job: Slurm kills it neither with a step nor with the job, Epilog does."""
    with with_broker(booted):
        job_id, session = jobs.start(booted)
        groups = groups_of(booted, "[q]rmi_slurm.broker job=")
        assert groups
        assert not [line for line in groups if re.search(r"job_\d", line)]
        booted.controller.out("scancel", "--full", f"--signal={signal}", str(job_id))
        booted.controller.out("scancel", str(job_id))
        booted.wait_job(job_id)
    booted.wait_idle()
    assert jobs.state_of(booted, session) == "closed"
    assert_nothing_left(booted)


def test_a_hooks_memory_is_not_the_jobs(booted: BootedSite) -> None:
    """Prolog, Epilog and QRMI's calls run in slurmd's control group; the job's has had its shell's memory alone."""
    with booted.emulator.held("create_session", "after") as fault:
        job_id = booted.sbatch(jobs.LONG, f"--qpu={QPU}", "--nodelist=n1", "--mem=30M")
        fault.wait_for(1)
        prologs = groups_of(booted, "[q]rmi-slurm-prolog")
        fault.go_on()
    booted.wait_output(job_id, "begun ")
    assert peak_bytes(booted, job_id) < SHELL_BYTES
    with booted.emulator.held("*") as fault:
        let_go(booted, job_id)
        fault.wait_for(1)
        epilogs = groups_of(booted, "[q]rmi-slurm-epilog")
        fault.go_on()
    assert booted.wait_job(job_id) == "COMPLETED"
    for lines in (prologs, epilogs):
        assert lines
        assert not [line for line in lines if re.search(r"job_\d", line)]
    assert_nothing_left(booted)


def test_with_runinjob_the_hooks_memory_is_the_jobs(booted: BootedSite) -> None:
    """Slurm runs the hooks in the job's control group then. The QPU is released all the same, and doctor warns."""
    change = "sed -i s/^PrologFlags=.*/PrologFlags={flags}/ /etc/slurm/slurm.conf; systemctl restart slurmctld slurmd"
    try:
        booted.node.sh(change.format(flags="Contain,RunInJob"))
        booted.wait_idle()
        job_id, session = jobs.start(booted, "--mem=60M", then=f"{EATING}\n")
        assert peak_bytes(booted, job_id) > SHELL_BYTES
        assert "RunInJob: the hooks' memory counts as the job's" in booted.node.run("qrmi-slurm", "doctor").stdout
        let_go(booted, job_id)
        assert booted.wait_job(job_id) == "OUT_OF_MEMORY", booted.output(job_id)
        booted.wait_idle()
        assert jobs.state_of(booted, session) == "closed"
    finally:
        booted.node.sh(change.format(flags="Alloc"))
    assert_nothing_left(booted)
