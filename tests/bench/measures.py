"""The measurements, in the sections of the table: each function returns its figures."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from bench.arms import FLAGS, QPUS, Arm, Bench, with_flags
from bench.figures import FLOOR, OURS, Figure, spread
from bench.rpcs import calls_during
from qrmi_slurm.slurm import jobs
from qrmi_slurm.state import inventory
from qrmi_slurm.state import record as records
from qrmi_slurm.state.job_folder import JobFolder
from qrmi_slurm.state.record import Record
from slurm.cluster import SYSTEM_PATH, Cluster
from slurm.polling import wait_for
from slurm.release import HOOKS_KNOW_TIMES
from slurm.site import BIN, STUB

_TRUE = "/bin/true"
_DELAYS_S = (0.0, 0.02, 0.1)
_COUNTS = (1, 8, 16, 64)

# Targets: a step, over the floor; a job with so many QPUs, over one with one, at 100 ms a request.
_STEP_AT_MOST = 1.03
_DIRECT_AT_MOST = 1.05
_QPUS_AT_MOST = {16: 1.3, 64: 2.5}


@dataclass(frozen=True, slots=True)
class Rounds:
    """How often to measure.

    Args:
        steps: `srun` with 64 tasks, and jobs.
        wide_steps: `srun` with 256 tasks.
        latency: jobs for each number of QPUs and delay.
        hooks: single hooks.
        jobs: the sizes of the streams of jobs.
        resources: the sizes of configs.
    """

    steps: int = 15
    wide_steps: int = 4
    latency: int = 5
    hooks: int = 40
    jobs: tuple[int, ...] = (100, 1000)
    resources: tuple[int, ...] = (10, 1000, 10000)


QUICK = Rounds(steps=5, wide_steps=2, latency=2, hooks=10, jobs=(20,), resources=(10, 1000))


# --- (a) a job without a QPU ---------------------------------------------------------------------------------


def plain_job(bench: Bench, rounds: Rounds) -> list[Figure]:
    """A job without `--qpu`: srun from start to return, sbatch from allocation to end as logged by slurmctld.

    When a batch job gets its node depends on the scheduler's cycle, which varies by tenths of a second.
    """
    by_srun = Figure("a", "srun -n1 without QPU, submit to end", "ms", at_most=_STEP_AT_MOST, judged=bench.best)
    by_sbatch = Figure("a", "sbatch without QPU, allocation to end", "ms")
    for _ in range(rounds.steps):
        for arm in bench.arms:
            by_srun.add(arm.name, _srun_ms(arm, "-n1"))
        for arm in bench.arms:
            job_id = arm.cluster.sbatch("#!/bin/sh\n:\n", "--output=/dev/null")
            completed_s = _completed_s(arm.cluster, job_id)
            by_sbatch.add(arm.name, (completed_s - _allocated_s(arm.cluster, job_id)) * 1000)
    return [by_srun, by_sbatch]


def _srun_ms(arm: Arm, *options: str) -> float:
    began_s = time.perf_counter()
    done = arm.cluster.run_as_user(["srun", *options, _TRUE])
    took_ms = (time.perf_counter() - began_s) * 1000
    if done.returncode != 0:
        raise RuntimeError(f"srun {' '.join(options)} on {arm.name}: {done.stdout}{done.stderr}")
    arm.cluster.wait_nodes_idle()
    return took_ms


def _completed_s(cluster: Cluster, job_id: int) -> float:
    """Return when slurmctld recorded a job's end, in seconds since the epoch."""
    completed_s = _logged_s(cluster, rf"_job_complete: JobId={job_id} done", "its end")
    cluster.wait_nodes_idle()
    return completed_s


def _allocated_s(cluster: Cluster, job_id: int) -> float:
    """Return when slurmctld gave a batch job its node, in seconds since the epoch."""
    return _logged_s(cluster, rf"(?:sched: Allocate|sched/backfill: \w+: Started) JobId={job_id} ", "its allocation")


def _logged_s(cluster: Cluster, line: str, what: str) -> float:
    """Return the time of a line in slurmctld's log. Asking slurmctld would add load of its own."""
    pattern = re.compile(rf"^\[([^\]]+)\] {line}", re.MULTILINE)
    found = wait_for(lambda: pattern.search(cluster.log("slurmctld").read_text(errors="replace")), what, 30)
    return datetime.fromisoformat(found.group(1)).timestamp()


# --- (b) steps -----------------------------------------------------------------------------------------------

# srun returns before the step's slurmstepd has gone, and the rest of its work would slow down the next one.
_SETTLE_S = 0.2

_STEPPER = """#!/bin/sh
while read -r command <{asks}; do
    began=$(date +%s%N)
    eval "$command" || exit 1
    ended=$(date +%s%N)
    echo $((ended - began)) >{answers}
done
"""


@contextmanager
def _stepper(arm: Arm, *options: str) -> Iterator[Callable[[str], float]]:
    """Run a batch job that carries out commands, and yield a function that runs one and returns its milliseconds."""
    with tempfile.TemporaryDirectory(dir=arm.cluster.folder) as folder_name:
        folder = Path(folder_name)
        folder.chmod(0o755)
        asks, answers = folder / "asks", folder / "answers"
        for fifo in (asks, answers):
            os.mkfifo(fifo)
            os.chown(fifo, arm.cluster.user.uid, arm.cluster.user.gid)
        job_id = arm.cluster.sbatch(_STEPPER.format(asks=asks, answers=answers), "-n256", "--overcommit", *options)
        arm.cluster.wait_job(job_id, {"RUNNING"})

        def ask(command: str) -> float:
            time.sleep(_SETTLE_S)
            asks.write_text(f"{command}\n")
            return int(answers.read_text()) / 1e6

        try:
            yield ask
        finally:
            arm.cluster.slurm("scancel", str(job_id))
            arm.cluster.wait_job_over(job_id)


def steps(bench: Bench, rounds: Rounds) -> list[Figure]:
    """`srun -n64` and `-n256`: without QPU, in a QPU batch job, and direct."""
    figures = []
    for tasks, count in ((64, rounds.steps), (256, rounds.wide_steps)):
        target: dict[str, Any] = {"at_most": _STEP_AT_MOST, "judged": bench.best}
        plain = Figure("b", f"srun -n{tasks} in a batch job without QPU", "ms", **target)
        control = Figure("b", f"the same again on the floor: what chance does to a ratio (-n{tasks})", "ms")
        within = Figure("b", f"srun -n{tasks} in a QPU batch job", "ms", **target)
        with ExitStack() as stack:
            ask = {arm.name: stack.enter_context(_stepper(arm)) for arm in bench.all_but_no_hold}
            for _ in range(count):
                for name, one in ask.items():
                    plain.add(name, one(f"srun -n{tasks} {_TRUE}"))
                control.add(FLOOR, ask[FLOOR](f"srun -n{tasks} {_TRUE}"))
        control.base = plain.values[FLOOR]
        with ExitStack() as stack:
            ask = {arm.name: stack.enter_context(_stepper(arm, *arm.qpu_option())) for arm in bench.all_but_no_hold}
            for _ in range(count):
                for name, one in ask.items():
                    within.add(name, one(f"srun -n{tasks} {_TRUE}"))
        direct = Figure("b", f"direct srun --qpu -n{tasks}, submit to end", "ms")
        for _ in range(count):
            for arm in bench.arms:
                direct.add(arm.name, _srun_ms(arm, f"-n{tasks}", *arm.qpu_option()))
        figures += [plain, control, within, direct]
    return figures


# --- (c) latency ---------------------------------------------------------------------------------------------


def latency(bench: Bench, rounds: Rounds) -> list[Figure]:
    """From submission and allocation to the script's first line, and from its last line to the last session's end."""
    figures: list[Figure] = []
    for delay_s in _DELAYS_S:
        delay = f"{delay_s * 1000:.0f} ms a request"
        submits, begins, ends = (
            {count: Figure("c", f"{what}, {count} QPU, {delay}", "ms") for count in _COUNTS}
            for what in ("submit to first line", "allocation to first line", "last line to sessions closed")
        )
        with bench.site.emulator.fault(call="*", kind="delay", delay_s=delay_s):
            for _ in range(rounds.latency):
                for count in _COUNTS:
                    for arm in bench.with_qpus:
                        submit_ms, begin_ms, end_ms = _latency_ms(bench, arm, count)
                        submits[count].add(arm.name, submit_ms)
                        begins[count].add(arm.name, begin_ms)
                        if arm.has_qpus:
                            ends[count].add(arm.name, end_ms)
        for count, figure in ends.items():
            figure.base, begins[count].base = ends[1].values[OURS], begins[1].values[OURS]
            if delay_s == _DELAYS_S[-1]:
                figure.at_most = begins[count].at_most = _QPUS_AT_MOST.get(count)
        figures += [*submits.values(), *begins.values(), *ends.values()]
    return figures


def _latency_ms(bench: Bench, arm: Arm, count: int) -> tuple[float, float, float]:
    before = len(bench.site.emulator.sessions())
    began_s = time.time()
    job_id = arm.cluster.sbatch("#!/bin/sh\ndate +%s.%N\ndate +%s.%N\n", "--time=5", *arm.qpu_option(count))
    info = arm.cluster.wait_job_over(job_id)
    if info.state != "COMPLETED":
        raise RuntimeError(f"job {job_id} on {arm.name}: {arm.cluster.job_output(job_id)}")
    first_s, last_s = map(float, arm.cluster.job_output(job_id).split())
    closed = [datetime.fromisoformat(one["closed"]).timestamp() for one in bench.site.emulator.sessions()[before:]]
    if arm.has_qpus and len(closed) != count:
        raise RuntimeError(f"job {job_id} on {arm.name} had {len(closed)} sessions, not {count}")
    submit_ms, begin_ms = (first_s - began_s) * 1000, (first_s - _allocated_s(arm.cluster, job_id)) * 1000
    return submit_ms, begin_ms, (max(closed, default=last_s) - last_s) * 1000


# --- (d) the hooks alone -------------------------------------------------------------------------------------

# Only QRMI's calls, in a process of their own; the rest of a hook's time is the hook's own.
_CALLS = """
import json, os, sys, time
import qrmi
qrmi.set_log_callback(None)
began = time.perf_counter()
resource = qrmi.QuantumResource(sys.argv[1], qrmi.ResourceType.IBMQuantumComputeService)
token = resource.acquire()
acquired = time.perf_counter()
os.environ[f"{sys.argv[1]}_QRMI_JOB_ACQUISITION_TOKEN"] = token
again = time.perf_counter()
qrmi.QuantumResource(sys.argv[1], qrmi.ResourceType.IBMQuantumComputeService).release(token)
print(json.dumps([acquired - began, time.perf_counter() - again]))
"""


@dataclass(frozen=True, slots=True)
class _Run:
    wall_ms: float
    cpu_ms: float
    peak_mb: float


def hooks(bench: Bench, rounds: Rounds) -> list[Figure]:
    """Each hook alone, with the environment that slurmd gives it: CPU, wall time, memory."""
    figures = _hooks_without_qpu(bench, rounds)
    environment = _hook_environment(bench)
    more = {
        hook: Figure("d", f"{hook}, 1 QPU: beyond QRMI's calls", "ms", at_most=30, is_ratio=False) for hook in _HOOKS
    }
    whole = {hook: Figure("d", f"{hook}, 1 QPU: from start to end", "ms") for hook in _HOOKS}
    cpu = {hook: Figure("d", f"{hook}, 1 QPU: CPU", "ms") for hook in _HOOKS}
    both = Figure("d", "prolog and epilog, 1 QPU: CPU", "ms", at_most=70, is_ratio=False)
    peak = {hook: Figure("d", f"{hook}, 1 QPU: peak memory", "MB", at_most=40, is_ratio=False) for hook in _HOOKS}
    for number in range(rounds.hooks):
        calls_ms = dict(zip(_HOOKS, _calls_ms(bench), strict=True))
        for hook in _HOOKS:
            run = _run_hook(hook, {**environment, "SLURM_JOB_ID": str(900_000 + number)})
            more[hook].add(OURS, run.wall_ms - calls_ms[hook])
            whole[hook].add(OURS, run.wall_ms)
            cpu[hook].add(OURS, run.cpu_ms)
            peak[hook].add(OURS, run.peak_mb)
        both.add(OURS, sum(cpu[hook].values[OURS][-1] for hook in _HOOKS))
    figures += [*more.values(), *whole.values(), *cpu.values(), both, *peak.values()]
    loaded = Figure("d", "the stub, as slurmstepd maps it", "kB", 0, at_most=32, is_ratio=False)
    loaded.add(OURS, _loaded_bytes(STUB) / 1000)
    return [*figures, loaded]


_HOOKS = ("prolog", "epilog")


def _hooks_without_qpu(bench: Bench, rounds: Rounds) -> list[Figure]:
    cpu = Figure("d", "all three hooks without QPU: CPU", "ms", 2, at_most=3, is_ratio=False)
    environment = {"SLURM_JOB_ID": "1", "SLURM_CONF": str(bench.ours.cluster.slurm_conf)}
    for _ in range(rounds.hooks):
        runs = [_run_hook(hook, environment) for hook in ("prolog", "task-prolog", "epilog")]
        cpu.add(OURS, sum(run.cpu_ms for run in runs))
    return [cpu]


def _hook_environment(bench: Bench) -> dict[str, str]:
    now_s = int(time.time())
    return {
        "SLURMD_NODENAME": "n1",
        "SLURM_JOB_UID": str(bench.ours.cluster.user.uid),
        "SLURM_CLUSTER_NAME": f"throwaway-{bench.ours.cluster.token}",
        "SLURM_CONF": str(bench.ours.cluster.slurm_conf),
        # As from 23.02: without them Prolog asks squeue.
        "SLURM_JOB_START_TIME": str(now_s),
        "SLURM_JOB_END_TIME": str(now_s + 300),
        "SPANK_QRMI_QPU": QPUS[0],
    }


def _run_hook(hook: str, environment: dict[str, str]) -> _Run:
    return _run_program([BIN / f"qrmi-slurm-{hook}"], environment)


def _run_program(command: Sequence[str | Path], environment: dict[str, str]) -> _Run:
    began_s = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    wall_ms = (time.perf_counter() - began_s) * 1000
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{command}: exit status {process.returncode}")
    return _Run(wall_ms, (used.ru_utime + used.ru_stime) * 1000, used.ru_maxrss / 1000)


def _calls_ms(bench: Bench) -> tuple[float, float]:
    name = QPUS[0]
    variables = bench.site.emulator.resource(name)["environment"]
    environment = {f"{name}_{variable}": value for variable, value in variables.items()}
    done = subprocess.run(
        [sys.executable, "-I", "-c", _CALLS, name], env=environment, capture_output=True, text=True, check=True
    )
    acquire_s, release_s = json.loads(done.stdout)
    return acquire_s * 1000, release_s * 1000


def _loaded_bytes(path: Path) -> int:
    """Return the loaded size of a shared object's file: everything but debugging information."""
    with tempfile.NamedTemporaryFile() as stripped:
        subprocess.run(["strip", "-o", stripped.name, path], check=True)
        return Path(stripped.name).stat().st_size


# --- (e) remote procedure calls ------------------------------------------------------------------------------


def remote_calls(bench: Bench, rounds: Rounds) -> list[Figure]:
    """RPCs to slurmctld by its own count: a batch job with a step, and a direct srun, each with one QPU."""
    at_most = 0.0 if HOOKS_KNOW_TIMES.is_here else 1.0
    figures = []
    batch = Figure("e", "RPCs of a QPU batch job with srun -n16, more than without QPU", "RPCs", 1)
    direct = Figure("e", "RPCs of a direct srun --qpu -n16, more than without QPU", "RPCs", 1)
    wide = Figure("e", "RPCs of a direct srun --qpu -n64, more than without QPU", "RPCs", 1)
    script = f"#!/bin/sh\nsrun -n16 {_TRUE}\n"

    def run_batch(arm: Arm, qpus: int) -> None:
        options = ["-n16", "--time=5", "--output=/dev/null", *arm.qpu_option(qpus)]
        _completed_s(arm.cluster, arm.cluster.sbatch(script, *options))

    ways: list[tuple[Figure, Callable[[Arm, int], object]]] = [
        (batch, run_batch),
        (direct, lambda arm, qpus: _srun_ms(arm, "-n16", *arm.qpu_option(qpus))),
        (wide, lambda arm, qpus: _srun_ms(arm, "-n64", *arm.qpu_option(qpus))),
    ]
    for figure, run in ways:
        figure.at_most, figure.is_ratio = at_most, False
        for _ in range(max(3, rounds.latency // 2)):
            for arm in bench.with_qpus:
                without, with_qpu = (calls_during(arm.cluster, partial(run, arm, qpus)) for qpus in (0, 1))
                figure.add(arm.name, with_qpu - without)
        figures.append(figure)
    return figures


# --- (f) a stream of jobs ------------------------------------------------------------------------------------


def stream(bench: Bench, rounds: Rounds) -> list[Figure]:
    """Short jobs, one in twenty with a QPU, as fast as one user's sbatch can submit them."""
    figures = []
    for size in rounds.jobs:
        rate = Figure("f", f"{size} short jobs, 5 % with a QPU", "jobs/s", 2)
        for _ in range(3 if size <= 100 else 1):
            for arm in bench.streamed:
                rate.add(arm.name, size / _stream_s(arm, size))
        figures.append(rate)
    return figures


# At most eight jobs at a time. With many more, Slurm 22.05 sometimes drains a node even without any hook
# ("REQUEST_LAUNCH_PROLOG notification failed").
_STREAM_TASKS = 32


def _stream_s(arm: Arm, size: int) -> float:
    qpu = " ".join(arm.qpu_option())
    script = arm.cluster.user.home / "short.sh"
    script.write_text("#!/bin/sh\n:\n")
    submit = f"""
n=0
while [ $n -lt {size} ]; do
    if [ $((n % 20)) = 0 ]; then option="{qpu}"; else option=; fi
    sbatch --quiet --output=/dev/null --time=5 --ntasks={_STREAM_TASKS} $option {script} || exit 1
    n=$((n + 1))
done >/dev/null"""
    began_s = time.perf_counter()
    done = arm.cluster.run_as_user(["/bin/sh", "-c", submit], deadline_s=600)
    if done.returncode != 0:
        raise RuntimeError(f"sbatch on {arm.name}: {done.stderr}")
    wait_for(lambda: not arm.cluster.slurm("squeue", "--noheader").strip(), f"{size} jobs to end", 300)
    took_s = time.perf_counter() - began_s
    arm.cluster.wait_nodes_idle()
    return took_s


# --- (g) validate-config -------------------------------------------------------------------------------------


def validate_config(bench: Bench, rounds: Rounds) -> list[Figure]:
    """The admin's check of a config, and Prolog with the same one; the sizes in turn."""
    check = {size: Figure("g", f"validate-config, {size} resources", "ms", 0) for size in rounds.resources}
    prolog = {size: Figure("g", f"Prolog with 1 QPU of {size} resources", "ms") for size in rounds.resources}
    cpu = {size: Figure("g", f"Prolog with 1 QPU of {size} resources: CPU", "ms") for size in rounds.resources}
    memory = {
        size: Figure("g", f"Prolog with 1 QPU of {size} resources, peak memory", "MB") for size in rounds.resources
    }
    smallest = min(rounds.resources)
    kept = bench.site.config_path.read_text()
    one = bench.site.emulator.resource(QPUS[0])
    try:
        for number in range(max(2, rounds.hooks // 2)):
            for size in rounds.resources:
                bench.site.config([*({**one, "name": f"other{n}"} for n in range(size - 1)), one])
                if number < 7:
                    began_s = time.perf_counter()
                    subprocess.run(
                        [BIN / "qrmi-slurm", "validate-config", bench.site.config_path],
                        env={"PATH": SYSTEM_PATH, "LANG": "C.UTF-8"},
                        stdout=subprocess.DEVNULL,
                        check=True,
                    )
                    check[size].add(OURS, (time.perf_counter() - began_s) * 1000)
                environment = {**_hook_environment(bench), "SLURM_JOB_ID": str(990_000 + number)}
                run = _run_hook("prolog", environment)
                _run_hook("epilog", environment)
                prolog[size].add(OURS, run.wall_ms)
                cpu[size].add(OURS, run.cpu_ms)
                memory[size].add(OURS, run.peak_mb)
    finally:
        bench.site.config_path.write_text(kept)
    figures = [*check.values(), *prolog.values(), *cpu.values(), *memory.values()]
    if 1000 in prolog:
        more = Figure("g", f"Prolog with 1000 resources, more than with {smallest}", "ms", at_most=5.0, is_ratio=False)
        pairs = zip(prolog[1000].values[OURS], prolog[smallest].values[OURS], strict=True)
        more.values = {OURS: [large - small for large, small in pairs]}
        figures.append(more)
    return figures


# --- (h) at scale --------------------------------------------------------------------------------------------

_ASKED = 200
_WAITING_JOBS = 2000
_CLUSTER_NODES = 1000
_FOLDERS = 20_000


def at_scale(bench: Bench, rounds: Rounds) -> list[Figure]:
    """`recover` on 1000 nodes: each run on its node, and slurmctld's processor time for all; 20,000 folders on one."""
    cluster = bench.ours.cluster
    vain = Figure("h", "recover with nothing recorded: CPU", "ms", at_most=90.0, is_ratio=False)
    whole = Figure("h", "recover --now with nothing recorded, as if something were: CPU", "ms", 0)
    environment = bench.site.root_env("n1")
    for _ in range(rounds.hooks):
        vain.add(OURS, _run_program([BIN / "qrmi-slurm", "recover"], environment).cpu_ms)
        whole.add(OURS, _run_program([BIN / "qrmi-slurm", "recover", "--now"], environment).cpu_ms)
    jobs_known = f"slurmctld knows {_WAITING_JOBS} jobs"
    one = Figure("h", f"slurmctld's CPU while 1000 nodes ask for a job each, {jobs_known}", "ms", 0, at_most=2000.0)
    one.is_ratio = False
    every = Figure("h", f"slurmctld's CPU while 1000 nodes list all jobs, {jobs_known}", "ms", 0)
    half = f"for i in $(seq {_WAITING_JOBS // 2}); do sbatch --hold -o /dev/null --wrap true >/dev/null || exit; done"
    submitting = [cluster.popen_as_user(["sh", "-c", half]) for _ in range(2)]
    for process in submitting:
        _, said = process.communicate()
        if process.returncode != 0:
            raise RuntimeError(f"sbatch: {said}")
    try:
        (job_id, *_) = map(int, cluster.slurm("squeue", "--noheader", "--format=%A").split())
        for _ in range(3):
            # The double of a cluster with many nodes: one after the other, since 2 CPUs run all of this.
            one.add(OURS, _controllers_ms(cluster, [job_id]))
            every.add(OURS, _controllers_ms(cluster, range(1, 100)))
    finally:
        cluster.slurm("scancel", f"--user={cluster.user.name}")
    return [vain, whole, one, every, *_folders(bench, rounds)]


def _folders(bench: Bench, rounds: Rounds) -> list[Figure]:
    """Return what thousands of folders cost in which nothing is held: those of a cluster that was renamed."""
    what = f"{_FOLDERS} folders of ended jobs"
    status = Figure("h", f"status with {what}", "ms", 0, at_most=1000.0, is_ratio=False)
    recover = Figure("h", f"recover with {what}: CPU", "ms", 0)
    waiting = Figure("h", f"a Prolog's look for who holds a license among {what}: CPU", "ms", 0)
    environment = bench.site.root_env("n1")
    with tempfile.TemporaryDirectory(dir=bench.ours.cluster.folder) as name:
        place = Path(name)
        for job_id in range(1, _FOLDERS + 1):
            folder = JobFolder(place, "renamed", job_id)
            folder.path.mkdir(parents=True)
            record = Record(folder.cluster, job_id, 1000, "n1", "b", 0, 1.0, selection=QPUS[0])
            (folder.path / "record.json").write_bytes(records.encode(record))
            folder.exports_path.touch()
        for _ in range(max(3, rounds.latency)):
            for figure, command in ((status, "status"), (recover, "recover")):
                run = _run_program([BIN / "qrmi-slurm", command, "--state-dir", place], environment)
                figure.add(OURS, run.wall_ms if figure is status else run.cpu_ms)
            began_s = time.process_time()
            assert inventory.mentioning(place, "renamed", "qpu_ibm_demo") == []
            waiting.add(OURS, (time.process_time() - began_s) * 1000)
    return [status, recover, waiting]


def _controllers_ms(cluster: Cluster, job_ids: Collection[int]) -> float:
    """Return slurmctld's processor time while 1000 nodes ask for some jobs, in milliseconds."""
    asked = _ASKED if len(job_ids) == 1 else _ASKED // 10
    clock = ~cluster.pid_of("slurmctld") << 3 | 2  # CPUCLOCK_SCHED of a process, linux/posix-timers.h
    before_s = time.clock_gettime(clock)
    for _ in range(asked):
        if jobs.jobs(job_ids, cluster.slurm_conf) is None:
            raise RuntimeError("slurmctld did not answer")
    return (time.clock_gettime(clock) - before_s) * 1000 * _CLUSTER_NODES / asked


# --- (i) PrologFlags -----------------------------------------------------------------------------------------


def flags(bench: Bench, rounds: Rounds) -> list[Figure]:
    """`srun` with each PrologFlags that sites have: the floor, and ours in both ways, in turn."""
    figures = []
    prolog_ms = spread([_prolog_ms(bench, number) for number in range(max(3, rounds.latency))]).median
    for name in FLAGS:
        shown = f"PrologFlags={name}" if name else "no PrologFlags"
        target: dict[str, Any] = {"at_most": _STEP_AT_MOST, "judged": bench.best}
        one = Figure("i", f"{shown}: srun -n1 without QPU", "ms", **target)
        many = Figure("i", f"{shown}: srun -n64 without QPU", "ms", **target)
        # Without Alloc, Prolog runs before the first task is launched, which srun then waits for.
        qpu = Figure("i", f"{shown}: srun --qpu -n1; the floor is without QPU", "ms")
        beyond = Figure("i", f"{shown}: srun --qpu -n1, over the floor and Prolog's {prolog_ms:.0f} ms", "ms")
        beyond.at_most, beyond.judged = _DIRECT_AT_MOST, bench.best
        with with_flags(bench, name) as arms:
            for _ in range(rounds.steps):
                for arm in arms:
                    one.add(arm.name, _srun_ms(arm, "-n1"))
                for arm in arms:
                    many.add(arm.name, _srun_ms(arm, "-n64"))
                for arm in arms:
                    qpu.add(arm.name, _srun_ms(arm, "-n1", *arm.qpu_option()))
        beyond.values = {arm: values for arm, values in qpu.values.items() if arm != FLOOR}
        beyond.base = [value + prolog_ms for value in qpu.values[FLOOR]]
        figures += [one, many, qpu, beyond]
    return figures


def _prolog_ms(bench: Bench, number: int) -> float:
    """Return how long Prolog takes with one QPU, from its start to its end."""
    environment = {**_hook_environment(bench), "SLURM_JOB_ID": str(980_000 + number)}
    run = _run_hook("prolog", environment)
    _run_hook("epilog", environment)
    return run.wall_ms


SECTIONS: dict[str, Callable[[Bench, Rounds], list[Figure]]] = {
    "a": plain_job,
    "b": steps,
    "c": latency,
    "d": hooks,
    "e": remote_calls,
    "f": stream,
    "g": validate_config,
    "h": at_scale,
    "i": flags,
}
