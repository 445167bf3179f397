"""Doubles shared by the unit tests: a site in a folder, whose config, options and hook environments they vary."""

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qrmi_slurm.deadline import HOOK_GRACE_S, Deadline
from qrmi_slurm.errors import SchedulerError
from qrmi_slurm.hooks.hook_run import HookRun
from qrmi_slurm.hooks.task_prolog import TaskOutcome
from qrmi_slurm.log import HookLog
from qrmi_slurm.slurm import job_context, plugstack
from qrmi_slurm.slurm.commands import RefusedError
from qrmi_slurm.state import job_folder


def _copy_for_users(folder: Path) -> Path:
    """Return a copy of a folder that all users can read, until the tests end; the checkout may be in root's home."""
    place = Path(tempfile.mkdtemp(prefix="qrmi-slurm-fakes-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    place.chmod(0o755)
    copy = shutil.copytree(folder, place / folder.name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (copy, *copy.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return copy


FAKES = _copy_for_users(Path(__file__).resolve().parents[1] / "fakes")

# Traces a process up to the moment of its end, and never waits for it: ptrace(2), PTRACE_SEIZE and PTRACE_O_TRACEEXIT.
_TRACER = """
import ctypes, sys, time
libc = ctypes.CDLL(None, use_errno=True)
print(libc.ptrace(0x4206, int(sys.argv[1]), ctypes.c_void_p(0), ctypes.c_void_p(0x40)), flush=True)
time.sleep(60)
"""


@contextmanager
def traced(pid: int) -> Iterator[None]:
    """Trace a process until the block ends: killed, it is not gone, and its parent cannot reap it."""
    command = [sys.executable, "-I", "-c", _TRACER, str(pid)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as tracer:
        try:
            assert tracer.stdout is not None
            assert tracer.stdout.readline() == "0\n"
            yield
        finally:
            tracer.kill()


# Planted wherever a secret can be; no log line, error, repr or note may contain it.
SECRET = "test-secret-Kq7"

COMPUTE_SERVICE = {
    "QRMI_IBM_QCS_ENDPOINT": "http://service.invalid",
    "QRMI_IBM_QCS_IAM_ENDPOINT": "http://iam.invalid",
    "QRMI_IBM_QCS_IAM_APIKEY": f"{SECRET}-apikey",
    "QRMI_IBM_QCS_SERVICE_CRN": "crn:v1:test",
}


@contextmanager
def fake_qrmi_in_front() -> Iterator[None]:
    """Let `import qrmi` find the fake, here and in the children, and the real one again afterwards."""
    real = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "qrmi"}
    sys.path.insert(0, str(FAKES))
    try:
        yield
    finally:
        sys.path.remove(str(FAKES))
        for name in [name for name in sys.modules if name.partition(".")[0] == "qrmi"]:
            del sys.modules[name]
        sys.modules.update(real)


class FakeSlurm:
    """slurmctld with licenses, reservations and waiting jobs, which answers like scontrol and squeue.

    Args:
        knows_comments: whether reservations have one, from 23.02 on.
    """

    def __init__(self, *, knows_comments: bool = True) -> None:
        self.knows_comments = knows_comments
        self.is_up = True
        self.refuses_update = False
        self.licenses: dict[str, tuple[int, int]] = {}  # total, used
        self.reservations: dict[str, dict[str, str]] = {}
        self.jobs: list[tuple[str, int, str, str, str]] = []  # number, priority, reason, licenses, admin comment
        self.changes: list[str] = []
        self.asked: list[str] = []
        self.full: set[str] = set()  # licenses of which no more can be reserved, at any time
        self.now_s = 1_000_000.0

    def run(self, command, slurm_conf, timeout_s=10.0, time_format="standard") -> str:
        """Replaces commands.run()."""
        if not self.is_up:
            raise SchedulerError("scontrol failed: Unable to contact slurm controller", "is slurmctld running?")
        program, *words = command
        self.asked.append(" ".join(words[:2]))
        if program == "squeue":
            return self._squeue(words)
        if words[0] == "show":
            return self._licenses() if words[1] == "licenses" else self._shown(time_format)
        self.changes.append(" ".join(words))
        told = dict(word.split("=", 1) for word in words if "=" in word)
        if "Comment" in told and not self.knows_comments:
            _refuse(f"scontrol: error: Unknown parameter Comment={told['Comment']}.\nslurm_update error: No error\n")
        if "JobId" in told:
            return self._move(told)
        name = told.pop("ReservationName")
        if words[0] == "delete":
            if self.reservations.pop(name, None) is None:
                _refuse("delete_reservation: Requested reservation is invalid\n")
            return ""
        if words[0] == "update" and self.refuses_update:
            _refuse("Error updating the reservation: Invalid time specified\n")
        if words[0] == "update":
            if {"EndTime", "Duration"} & told.keys():
                self.reservations[name].pop("EndTime", "")
                self.reservations[name].pop("Duration", "")
            self.reservations[name].update(told)
            return ""
        if name in self.reservations:
            _refuse("Error creating the reservation: Duplicate reservation name\n")
        license, _, count = told["Licenses"].partition(":")
        is_later = told.get("StartTime", "now") != "now"
        reserved = 0 if is_later else self._reserved(license)
        if license in self.full or reserved + int(count) > self.licenses.get(license, (0, 0))[0]:
            _refuse("Error creating the reservation: Invalid license specification\n")
        self.reservations[name] = told
        return ""

    def _reserved(self, license: str) -> int:
        words = [told["Licenses"].partition(":") for told in self.reservations.values()]
        return sum(int(count) for name, _, count in words if name == license)

    def _licenses(self) -> str:
        return "".join(
            f"LicenseName={name} Total={total} Used={used} Free={total - used} "
            f"Reserved={self._reserved(name)} Remote=no\n"
            for name, (total, used) in self.licenses.items()
        )

    def _shown(self, time_format: str) -> str:
        assert time_format == "%s"
        return "".join(self._line(name, told) for name, told in self.reservations.items()) or "No reservations\n"

    def _line(self, name: str, told: dict[str, str]) -> str:
        ends = "now+525600minutes" if told.get("Duration") == "UNLIMITED" else told.get("EndTime", "now+1minutes")
        minutes = int(ends.removeprefix("now+").removesuffix("minutes"))
        comment = f" Comment={told['Comment']}" if "Comment" in told else ""
        return (
            f"ReservationName={name} StartTime={self.now_s:.0f} EndTime={self.now_s + minutes * 60:.0f} Duration=x "
            f"Nodes=(null) NodeCnt=0 CoreCnt=0 Features={told.get('Features', '(null)')} PartitionName=(null) "
            f"Flags=ANY_NODES TRES=(null) Users=root Groups=(null) Accounts=(null) Licenses={told['Licenses']} "
            f"State=ACTIVE BurstBuffer=(null) MaxStartDelay=(null){comment}\n"
        )

    def _squeue(self, words: list[str]) -> str:
        (fields,) = [word.removeprefix("--Format=") for word in words if word.startswith("--Format=")]
        mark = fields.split(",")[0].removeprefix("JobArrayID:")
        return "".join(f"{number}{mark}{'|'.join(map(str, rest))}\n" for number, *rest in self.jobs)

    def _move(self, told: dict[str, str]) -> str:
        for place, (number, priority, reason, _, comment) in enumerate(self.jobs):
            if number == told["JobId"] and "gone" not in comment:
                self.jobs[place] = (number, priority, reason, told["Licenses"], comment)
                return ""
        return _refuse("Job/step already completing or completed\n")


def _refuse(said: str) -> str:
    raise RefusedError(f"scontrol failed: {said.splitlines()[-1]}", "are slurmctld and munged running?", said)


class Site:
    """A site in one folder: slurm.conf, plugstack.conf, the config, the state directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state_dir = path / "state"
        self.slurm_conf = path / "slurm.conf"
        self.calls_path = path / "calls"
        self.resources: list[dict[str, object]] = []
        self.slurm_conf.write_text("ClusterName=test\n")
        self.configure()

    def add(
        self,
        name: str,
        *,
        type: str = "ibm-quantum-compute-service",
        slurm: dict[str, object] | None = None,
        is_dynamic: bool = False,
        **fake: str,
    ) -> "Site":
        """Add a QPU; `acquire="hang"` and the like tell the fake what to do."""
        base = COMPUTE_SERVICE if type.replace("_", "-") == "ibm-quantum-compute-service" else {}
        told = {f"QRMI_FAKE_{key.upper()}": value for key, value in fake.items()}
        environment = {**base, "QRMI_FAKE_CALLS": str(self.calls_path), **told}
        entry = {"name": name, "type": type, "environment": environment, "is_dynamic": is_dynamic}
        self.resources.append(entry | ({"slurm": slurm} if slurm is not None else {}))
        self.write_config(json.dumps({"resources": self.resources}))
        return self

    def write_config(self, text: str) -> None:
        (self.path / "qrmi_config.json").write_text(text)

    def configure(self, *arguments: str) -> None:
        """Write the plugin's line; later arguments are the site's own. There is no Slurm that could requeue a job."""
        words = [str(self.path / "qrmi_config.json"), f"--state-dir={self.state_dir}", *arguments]
        words += [] if any(word.startswith("--on-unavailable") for word in words) else ["--on-unavailable=fail"]
        (self.path / "plugstack.conf").write_text(f"optional /opt/spank_qrmi.so {' '.join(words)}\n")

    def hook_environment(self, selection: str | None, **changes: str | None) -> dict[str, str]:
        """Return the environment slurmd gives Prolog and Epilog of job 12 on n1."""
        return _without_none(
            {
                "SLURMD_NODENAME": "n1",
                "SLURM_CLUSTER_NAME": "test",
                "SLURM_CONF": str(self.slurm_conf),
                "SLURM_JOB_ID": "12",
                "SLURM_JOB_UID": str(os.getuid()),
                "SLURM_JOB_NODELIST": "n[1-2]",
                "SLURM_JOB_START_TIME": "1000",
                "SLURM_JOB_END_TIME": "1300",
                "SLURM_JOB_RESTART_COUNT": "0",
                "SPANK_QRMI_QPU": selection,
                **changes,
            }
        )

    def task_environment(self, selection: str | None, **changes: str | None) -> dict[str, str]:
        """Return the initial environment of the batch script of job 12 on n1."""
        return _without_none(
            {
                "SLURMD_NODENAME": "n1",
                "SLURM_CLUSTER_NAME": "test",
                "SLURM_CONF": str(self.slurm_conf),
                "SLURM_JOB_ID": "12",
                "SLURM_JOB_NODELIST": "n[1-2]",
                "SLURM_PROCID": "0",
                "SLURM_SPANK_QRMI_QPU": selection,
                "QRMI_SLURM_QPU": selection,
                **changes,
            }
        )

    def job(self, selection: str, **changes: str | None) -> job_context.JobContext:
        return job_context.of_job(self.hook_environment(selection, **changes))

    def options(self) -> plugstack.SiteOptions:
        return plugstack.read(self.slurm_conf)

    def folder(self, job_id: int = 12) -> job_folder.JobFolder:
        return job_folder.JobFolder(self.state_dir, "test", job_id)

    def hook_run(self, hook: str, options: plugstack.SiteOptions | None = None) -> HookRun:
        """Return the arguments of Prolog's and Epilog's work at this site."""
        options = options or self.options()
        limit_s = options.acquire_timeout_s + HOOK_GRACE_S if hook == "prolog" else options.release_timeout_s
        return HookRun(options, self.folder(), HookLog(hook, 12), Deadline.after(limit_s))

    def calls(self) -> list[str]:
        """Return the calls to the fake, in order."""
        return self.calls_path.read_text().splitlines() if self.calls_path.exists() else []


def _without_none(environment: dict[str, str | None]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if value is not None}


def variables_of(lines: tuple[str, ...] | list[str]) -> dict[str, str]:
    """Return the variables that `export NAME=value` lines set in a task's environment."""
    exported = [line.removeprefix("export ") for line in lines if line.startswith("export ")]
    return {line.partition("=")[0]: line.partition("=")[2] for line in exported}


def printed(outcome: TaskOutcome) -> list[str]:
    """Return what TaskProlog writes to the job's output."""
    return [line.removeprefix("print ") for line in outcome.lines if line.startswith("print ")]
