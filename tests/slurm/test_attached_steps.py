"""A step that is attached to a job from elsewhere has the job's QPUs, and nothing of another job's."""

import shlex
from collections.abc import Iterator

import pytest

from slurm.jobs import environment_of, print_token
from slurm.polling import wait_for
from slurm.site import Site

WAIT = "#!/bin/sh\necho begun\nwhile [ ! -e go-$SLURM_JOB_ID ]; do sleep 0.05; done\n"


class Running:
    """Jobs that run until the test's end."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._ids: list[int] = []

    def start(self, *options: str) -> int:
        """Start a batch job, and return its id once its script runs."""
        cluster = self._site.cluster
        job_id = cluster.sbatch(WAIT, "--nodelist=n1", *options)
        self._ids.append(job_id)
        wait_for(lambda: "begun" in cluster.job_output(job_id), f"job {job_id} to begin", 30)
        return job_id

    def end(self) -> None:
        """Let all of them end."""
        for job_id in self._ids:
            (self._site.cluster.user.home / f"go-{job_id}").touch()
        for job_id in self._ids:
            self._site.cluster.wait_job_over(job_id)


@pytest.fixture
def running(site: Site) -> Iterator[Running]:
    """Jobs that run until the test's end; no session is left then."""
    jobs = Running(site)
    yield jobs
    jobs.end()
    assert not site.emulator.open_sessions()


def tokens_of(env: dict[str, str]) -> dict[str, str]:
    """Return the tokens in a task's environment, by QPU."""
    end = "_QRMI_JOB_ACQUISITION_TOKEN"
    return {name.removesuffix(end): value for name, value in env.items() if name.endswith(end)}


def ours(env: dict[str, str]) -> set[str]:
    """Return the names of all variables that have to do with QPUs."""
    return {name for name in env if "QRMI" in name or "QPU" in name or name == "RUST_LOG"}


def sessions_by_qpu(site: Site) -> dict[str, str]:
    """Return the open sessions' ids, by QPU."""
    return {session["backend"]: session["id"] for session in site.emulator.open_sessions()}


def attach(site: Site, job_id: int, *words: str, prefix: tuple[str, ...] = ()) -> dict[str, str]:
    """Attach a step to a job from a login shell; return its environment."""
    command = [*prefix, "srun", f"--jobid={job_id}", "--overlap", *words, "/usr/bin/env"]  # it may have no PATH
    done = site.cluster.run_as_user(command)
    assert done.returncode == 0, done.stdout + done.stderr
    return environment_of(done.stdout)


@pytest.mark.parametrize("words", [(), ("--qpu=ibm_demo",), ("--export=NONE",), ("-v",)])
def test_a_step_from_a_login_shell_has_the_jobs_qpus(site: Site, running: Running, words: tuple[str, ...]) -> None:
    """`srun --jobid=N`: its environment tells nothing of the job, not even its cluster."""
    job_id = running.start("--qpu=ibm_demo")
    env = attach(site, job_id, *words)
    assert tokens_of(env) == sessions_by_qpu(site)
    assert (env["QRMI_JOB_ID"], env["QRMI_JOB_QPU_RESOURCES"]) == (str(job_id), "ibm_demo")
    assert env["SLURM_CLUSTER_NAME"] == f"throwaway-{site.cluster.token}"
    assert env["RUST_LOG"] == ("debug" if "-v" in words else "info")
    assert len(tokens_of(env)) == 1


def test_an_attached_step_chooses_among_the_jobs_qpus(site: Site, running: Running) -> None:
    """`srun --jobid=N --qpu=x`: one that the job does not hold is refused, and the message says what it holds."""
    job_id = running.start("--qpu=ibm_demo")
    command = ["srun", f"--jobid={job_id}", "--overlap", "--qpu=ibm_second", "env"]
    done = site.cluster.run_as_user(command)
    assert done.returncode != 0
    assert "qrmi-slurm: this job does not hold ibm_second; it holds ibm_demo" in done.stdout + done.stderr
    assert "ibm_demo_QRMI" not in done.stdout


@pytest.mark.parametrize("prefix", [(), ("env", "SLURM_CLUSTER_NAME=elsewhere")], ids=["plain", "forged"])
def test_a_step_attached_to_a_job_without_qpus_has_none(site: Site, running: Running, prefix: tuple[str, ...]) -> None:
    """It runs, and sees nothing of ours; with `--qpu` it is told why it cannot have one."""
    job_id = running.start()
    assert ours(attach(site, job_id, prefix=prefix)) == set()
    done = site.cluster.run_as_user(["srun", f"--jobid={job_id}", "--overlap", "--qpu=ibm_demo", "env"])
    assert done.returncode != 0
    assert f"job {job_id} holds no QPU, so a step of it cannot have ibm_demo" in done.stdout + done.stderr


def test_an_allocation_without_a_shell_is_used_later(site: Site) -> None:
    """`salloc --no-shell --qpu`, and all its steps from elsewhere, on both of its nodes."""
    done = site.cluster.run_as_user(["salloc", "--no-shell", "-N2", "-n2", "--qpu=ibm_demo"])
    assert done.returncode == 0, done.stderr
    [job_id] = [word for word in done.stderr.split() if word.isdecimal()][:1]
    try:
        show = ["srun", f"--jobid={job_id}", "-N2", "-n2", "sh", "-c", print_token("ibm_demo")]
        for _ in range(2):
            done = site.cluster.run_as_user(show)
            assert done.returncode == 0, done.stdout + done.stderr
            assert done.stdout.split() == [*sessions_by_qpu(site).values()] * 2
    finally:
        site.cluster.slurm("scancel", job_id)
    site.cluster.wait_nodes_idle()
    assert not site.emulator.open_sessions()


BARE = "env -i PATH=$PATH SLURM_CONF=$SLURM_CONF"


@pytest.mark.parametrize(
    "step",
    [
        f"{BARE} srun --jobid=$SLURM_JOB_ID --overlap env",
        f"{BARE} SLURM_JOB_ID=$SLURM_JOB_ID srun --overlap env",
        "env -u SLURM_CLUSTER_NAME srun --overlap env",
        "env SLURM_CLUSTER_NAME=elsewhere srun --overlap env",
        "env -u SLURM_CLUSTER_NAME srun --overlap --export=NONE /usr/bin/env",
        "env -u SLURM_CLUSTER_NAME -u QRMI_JOB_ID srun --overlap env",
        f"{BARE} srun --jobid=$SLURM_JOB_ID --overlap sh -c 'srun --overlap env'",
        f"{BARE} srun --jobid=$SLURM_JOB_ID --overlap sh -c 'unset QRMI_JOB_ID; srun --overlap env'",
    ],
)
def test_a_step_with_an_environment_of_the_users_making_has_the_qpus(site: Site, step: str) -> None:
    """Within the job as well, and in the shell of such a step."""
    job_id = site.cluster.sbatch(f"#!/bin/bash\n{print_token('ibm_demo')}\n{step}\n", "--qpu=ibm_demo")
    assert site.cluster.wait_job_over(job_id).state == "COMPLETED", site.cluster.job_output(job_id)
    token, *lines = site.cluster.job_output(job_id).splitlines()
    env = environment_of("\n".join(lines))
    assert tokens_of(env) == {"ibm_demo": token}
    assert env["QRMI_JOB_QPU_RESOURCES"] == "ibm_demo"
    assert env["SLURM_CLUSTER_NAME"] == f"throwaway-{site.cluster.token}"


@pytest.mark.parametrize("from_shell", [False, True], ids=["from a script", "from salloc's shell"])
def test_a_step_from_one_job_into_another_has_the_others_qpus(site: Site, running: Running, from_shell: bool) -> None:
    """The first job's variables are replaced and unset; in a job without QPUs nothing of them is left."""
    site.plugstack(site.plugstack_line("--env:QPU_PROXY=http://127.0.0.1:1"))
    into, without = running.start("--qpu=ibm_demo"), running.start()
    held = sessions_by_qpu(site)
    steps = [
        f"srun --jobid={into} --overlap env",
        f"srun --jobid={without} --overlap env",
        f"srun --jobid={into} --overlap --qpu=ibm_demo env",
        f"srun --jobid={into} --overlap --qpu=ibm_second env || echo refused",
        f"srun --jobid={into} --overlap sh -c 'srun --overlap env'",
        "env",
    ]
    script = "".join(f"{step}\necho ===\n" for step in steps)
    if from_shell:
        done = site.cluster.run_as_user(["salloc", "--nodelist=n1", "--qpu=ibm_second", "bash", "-c", script])
        output = done.stdout
    else:
        job_id = site.cluster.sbatch(f"#!/bin/bash\n{script}", "--nodelist=n1", "--qpu=ibm_second")
        site.cluster.wait_job(job_id)
        output = site.cluster.job_output(job_id)
    outer, nothing, asked, refused, nested, _ = [environment_of(part) for part in output.split("===\n")][:6]
    for env in (outer, asked, nested):
        assert tokens_of(env) == held, output
        assert env["QRMI_JOB_QPU_RESOURCES"] == "ibm_demo"
        assert env["QRMI_JOB_ID"] == env["SLURM_JOB_ID"] == str(into)
        assert not [name for name in env if name.startswith("ibm_second_")]
    assert ours(nothing) == set()
    assert "this job does not hold ibm_second; it holds ibm_demo" in output
    assert "refused" in output.splitlines() and not tokens_of(refused)


def test_a_step_cannot_be_attached_to_another_users_job(site: Site, running: Running) -> None:
    """Slurm refuses it, whatever the environment says."""
    job_id = running.start("--qpu=ibm_demo")
    forged = {"QRMI_SLURM_JOB_ID": str(job_id), "QRMI_SLURM_STATE_DIR": str(site.state_dir), "SLURM_JOB_ID": "1"}
    command = ["srun", f"--jobid={job_id}", "--overlap", "env"]
    done = site.cluster.run_as_user(command, user=site.cluster.users[1], env=forged)
    assert done.returncode != 0
    assert not set(sessions_by_qpu(site).values()) & set(shlex.split(done.stdout + done.stderr))
