"""The plugin runs a TaskProlog in slurmstepd: whatever that is and whatever its user does to it, only their step fails.

The programs here stand in for TaskProlog. There is no Prolog, so that nothing else says why a job has no QPU. The line
says `required`: with it, whatever a callback returned in slurmstepd would drain nodes.
"""

import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.cluster import Cluster, ClusterOptions
from slurm.polling import wait_for
from slurm.processes import living
from slurm.site import STUB
from standins import rogue

SOURCES = Path(rogue.__file__).parent

# A third of it is the program's time.
UNKILLABLE_STEP_TIMEOUT_S = 9
TIME_S = UNKILLABLE_STEP_TIMEOUT_S // 3

# Signals 32 and 33, which it lets nobody change; the tests' own Python may pass them on ignored.
OF_THE_C_LIBRARY = 0b11 << 31

WORKING = "echo 'export ANSWER=42'\necho 'unset UNWANTED'\necho 'print told once'\necho end\n"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster without hooks."""
    settings = {"UnkillableStepTimeout": str(UNKILLABLE_STEP_TIMEOUT_S)}
    with Cluster(ClusterOptions(nodes=2, users=2, settings=settings)) as cluster:
        yield cluster


def use(cluster: Cluster, body: str, name: str = "program") -> Path:
    """Write a program and let the plugin run it, from the next step on."""
    program = cluster.folder / name
    program.write_text(f"#!/bin/sh\n{body}")
    program.chmod(0o755)
    name_on_line(cluster, str(program))
    return program


def name_on_line(cluster: Cluster, path: str) -> None:
    """Let the plugin run a program, from the next step on."""
    (cluster.etc / "plugstack.conf").write_text(f"required {STUB} --task-prolog={path}\n")


def refused(cluster: Cluster, reason: str) -> None:
    """Check that a QPU job of two tasks on two nodes fails for a reason, which its user and the admin read."""
    began = {node: len(cluster.slurmd_log(node)) for node in cluster.nodes}
    done = cluster.run_as_user(["srun", "-N2", "-n2", "--qpu=a", "sh", "-c", "echo it-ran"])
    assert done.returncode == 1, done.stdout + done.stderr
    [line] = [line for line in done.stdout.splitlines() if line]
    assert re.fullmatch(rf"qrmi-slurm: no QPU: TaskProlog \S+ {reason}; please tell an admin", line)
    for node in cluster.nodes:
        assert re.search(rf"spank_qrmi: job \d+: TaskProlog \S+ {reason}\n", cluster.slurmd_log(node)[began[node] :])
    cluster.wait_nodes_idle()


def test_what_the_program_prints_is_done_for_each_task_of_a_qpu_job(cluster: Cluster) -> None:
    """It runs once per step and node; only the first task prints. A step without a QPU does not run it at all."""
    use(cluster, f"{WORKING}echo run >>{cluster.user.home}/runs\n")
    show = ["sh", "-c", "echo answer=$ANSWER unwanted=$UNWANTED"]
    done = cluster.run_as_user(["srun", "-N2", "-n6", "--qpu=a", *show], env={"UNWANTED": "here"})
    assert sorted(done.stdout.splitlines()) == ["answer=42 unwanted="] * 6 + ["told once"], done.stderr
    runs = cluster.user.home / "runs"
    assert runs.read_text() == "run\n" * 2
    done = cluster.run_as_user(["srun", "-N2", "-n6", *show], env={"UNWANTED": "here"})
    assert done.stdout.splitlines() == ["answer= unwanted=here"] * 6, done.stderr
    assert runs.read_text() == "run\n" * 2
    job_id = cluster.sbatch("#!/bin/sh\necho answer=$ANSWER\nANSWER= srun sh -c 'echo answer=$ANSWER'\n", "--qpu=a")
    cluster.wait_job_over(job_id)
    assert cluster.job_output(job_id).splitlines() == ["told once", "answer=42"] * 2
    assert runs.read_text() == "run\n" * 4


def test_the_program_has_the_users_rights_and_nothing_of_root_or_the_job(cluster: Cluster) -> None:
    """No groups, capabilities, descriptors or protection, and of the environment what it needs, the rest as data."""
    program = use(
        cluster,
        "status=$(cat /proc/self/status)\n"
        "for word in Uid Gid Groups NoNewPrivs CapInh CapPrm CapEff CapBnd CapAmb SigBlk SigIgn SigCgt; do\n"
        "    echo \"print $(echo \"$status\" | grep ^$word: | tr -s '\\t ' ' ')\"\ndone\n"
        "echo print adj: $(cat /proc/self/oom_score_adj) fds: $(cd /proc/$$/fd && readlink *)\n"
        "echo print names: $(env -0 | tr '\\n' ' ' | tr '\\0' '\\n' | sed 's/=.*//' | sort)\n"
        "tr '\\0' '\\n' <&4 | sed -n 's/^\\(LD_NOTHING=\\|SLURM_PROCID=\\)/print &/p'\necho end\n",
    )
    foreign = {"LD_NOTHING": "x", "BASH_ENV": "/x", "ENV": "/x", "PATH_X": "x"}
    done = cluster.run_as_user(["srun", "--qpu=a", "true"], env=foreign)
    told = dict(re.findall(r"^(\w+): ?(.*)$", done.stdout, re.MULTILINE))
    uid, gid = cluster.user.uid, cluster.user.gid
    assert (told["Uid"], told["Gid"], told["Groups"].strip()) == (
        " ".join([str(uid)] * 4),
        " ".join([str(gid)] * 4),
        "",
    )
    masks = {int(told[name], 16) & ~OF_THE_C_LIBRARY for name in told if name.startswith(("Cap", "Sig"))}
    assert masks == {0}, done.stdout
    assert told["NoNewPrivs"] == "1"
    # dash keeps its script open, and reads an output of its own.
    assert re.sub(r":\[\d+\]", "", told["adj"]).startswith("0 fds: /dev/null pipe "), done.stdout
    opened = set(told["adj"].partition("fds: ")[2].replace(" (deleted)", "").split())
    assert {re.sub(r":\[\d+\]", "", name) for name in opened} == {
        "/dev/null",
        "pipe",
        "/memfd:qrmi-slurm",
        str(program),
    }
    ours = {
        "LC_ALL",
        "PATH",
        "PWD",
        "SLURMD_NODENAME",
        "SLURM_CLUSTER_NAME",
        "SLURM_JOB_ID",
        "SLURM_PROCID",
        "SRUN_DEBUG",
    }
    allowed = ours | {"OLDPWD", "_", "SHLVL", "SLURM_JOB_START_TIME", "SLURM_SPANK_QRMI_QPU"}
    names = {name for name in told["names"].split() if not name.startswith("QRMI_SLURM_")}
    assert names <= allowed and names >= ours - {"SRUN_DEBUG"}, names
    assert "LD_NOTHING=x" in done.stdout and "SLURM_PROCID=0" in done.stdout
    cluster.wait_nodes_idle()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param(
            "yes | head -c 100000000\n", "printed more than 4 MiB", id="100 MB", marks=pytest.mark.one_release
        ),
        pytest.param(
            "yes export A=b | head -20000\necho end\n",
            "printed more than 8192 lines",
            id="lines",
            marks=pytest.mark.one_release,
        ),
        pytest.param(
            "printf 'export A=1\\nexport B='\n",
            "was cut off in the middle of a line",
            id="half a line",
            marks=pytest.mark.one_release,
        ),
        pytest.param("echo export A=1\n", "was cut off: .*", id="no end"),
        pytest.param(":\n", "printed nothing", id="nothing", marks=pytest.mark.one_release),
        pytest.param(
            "printf 'a\\0b\\n'\n", "printed something that is not text", id="binary", marks=pytest.mark.one_release
        ),
        pytest.param(
            f"{WORKING}kill -9 $$\n", "ended with exit status 137", id="killed", marks=pytest.mark.one_release
        ),
        pytest.param(f"{WORKING}exit 3\n", "ended with exit status 3", id="status"),
        pytest.param("if\n", "ended with exit status 2", id="half a script", marks=pytest.mark.one_release),
        pytest.param("exec sleep 1000\n", f"did not end within {TIME_S} s", id="hangs"),
        pytest.param(
            f"{WORKING}kill -STOP $$\n",
            f"did not end within {TIME_S} s",
            id="stopped by its user",
            marks=pytest.mark.one_release,
        ),
    ],
)
def test_a_program_that_fails_is_no_reason_to_drain(cluster: Cluster, body: str, reason: str) -> None:
    """The user reads one sentence, the admin a line, and no task runs."""
    use(cluster, body)
    refused(cluster, reason)


@pytest.mark.one_release
def test_a_path_that_no_program_is_at(cluster: Cluster) -> None:
    """The same for what an admin may write on the line or do to the file."""
    program = use(cluster, WORKING)
    for path, reason in (
        (f"{program}-not-there", "does not exist on this node"),
        (program.name, "is not an absolute path"),
        ("", "is not an absolute path"),
        (str(cluster.folder), "is not a file"),
    ):
        name_on_line(cluster, path)
        refused(cluster, reason) if path else None
    name_on_line(cluster, str(program))
    for mode, reason in ((0o775, "can be changed by others than root"), (0o700, "is not executable for users")):
        program.chmod(mode)
        refused(cluster, reason)
    program.chmod(0o755)
    program.write_text("#!/no/interpreter\n")
    refused(cluster, "is missing, or the program that its first line names")
    hidden = cluster.folder / "hidden"
    hidden.mkdir(mode=0o700)
    program.rename(hidden / "program")
    name_on_line(cluster, str(hidden / "program"))
    refused(cluster, "cannot be run by users")


def test_a_reason_to_refuse_is_the_users_alone(cluster: Cluster) -> None:
    """Exit status 1, as in slurm.conf's way: its own sentences, in one place, and exit code 1 for each task."""
    use(cluster, "echo 'print qrmi-slurm: not for you'\necho end\nexit 1\n")
    done = cluster.run_as_user(["srun", "-n3", "--qpu=a", "echo", "it-ran"])
    assert (done.returncode, done.stdout) == (1, "qrmi-slurm: not for you\n"), done.stderr
    job_id = cluster.sbatch("#!/bin/sh\necho it-ran\n", "--qpu=a")
    info = cluster.wait_job_over(job_id)
    assert (info.state, info.exit_code) == ("FAILED", "1:0")
    assert cluster.job_output(job_id) == "qrmi-slurm: not for you\n"


def test_an_output_that_somebody_keeps_open_delays_nothing(cluster: Cluster) -> None:
    """What the program has started and left behind is ended with it."""
    use(cluster, f"sleep 1000 &\n{WORKING}")
    began_s = time.monotonic()
    done = cluster.run_as_user(["srun", "--qpu=a", "sh", "-c", "echo answer=$ANSWER"])
    assert done.stdout.splitlines() == ["told once", "answer=42"], done.stderr
    assert time.monotonic() - began_s < TIME_S + 20
    cluster.wait_nodes_idle()
    owned = [
        process for process in living() if Path(f"/proc/{process.pid}").exists() and _is(process.pid, "sleep", cluster)
    ]
    assert owned == []


def test_a_step_that_waits_for_its_program_holds_up_nobody_else(cluster: Cluster) -> None:
    """Nor does one that is cancelled meanwhile drain its node."""
    use(cluster, f"echo run >>{cluster.user.home}/waits\nexec sleep 1000\n")
    waiting = cluster.popen_as_user(["srun", "--nodelist=n1", "--qpu=a", "true"])
    wait_for((cluster.user.home / "waits").exists, "the program to run", 20)
    other = cluster.run_as_user(["srun", "--nodelist=n1", "echo", "it-ran"], user=cluster.users[1])
    assert (other.returncode, other.stdout) == (0, "it-ran\n")
    assert waiting.poll() is None
    cluster.slurm("scancel", f"--user={cluster.user.name}")
    waiting.communicate(timeout=60)
    cluster.wait_nodes_idle(UNKILLABLE_STEP_TIMEOUT_S * 4)


def test_a_tracer_that_never_lets_go_delays_only_its_own_step(cluster: Cluster) -> None:
    """The program cannot be reaped then, even once it is killed; slurmstepd leaves it behind."""
    lurker = cluster.folder / "lurker"
    subprocess.run(["gcc", "-std=gnu11", "-O2", "-o", lurker, SOURCES / "lurker.c"], check=True)
    use(cluster, f"echo $$ >{cluster.user.home}/pid\n{WORKING}exec sleep 1000\n")
    waiting = cluster.popen_as_user(["srun", "--nodelist=n1", "--qpu=a", "true"])
    pid_file = cluster.user.home / "pid"
    pid = int(wait_for(lambda: pid_file.read_text().strip() if pid_file.exists() else "", "the program to run", 20))
    with subprocess.Popen([lurker, "seize", str(pid)], stdout=subprocess.PIPE) as tracer:
        out, _ = waiting.communicate(timeout=60)
        assert Path(f"/proc/{pid}").exists(), "the tracer has held it all the time"
        tracer.kill()
    assert (waiting.returncode, f"did not end within {TIME_S} s" in out) == (1, True)
    cluster.wait_nodes_idle()


def _is(pid: int, name: str, cluster: Cluster) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return words[0] == name.encode() and Path(f"/proc/{pid}").stat().st_uid == cluster.user.uid
    except OSError:
        return False
