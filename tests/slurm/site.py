"""A site: a private cluster with qrmi-slurm installed as an admin would, and an emulated QPU service."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from slurm.cluster import COMMAND_DEADLINE_S, SYSTEM_PATH, Cluster, ClusterError, ClusterOptions, Hooks
from slurm.emulator import Emulator
from slurm.polling import wait_for
from slurm.processes import living

BIN = Path(sys.executable).parent
STUB = Path(sys.prefix) / "lib" / "spank_qrmi.so"
TASK_PROLOG = BIN / "qrmi-slurm-task-prolog"
LUA_DIR = STUB.parent / "lua"
HOLDABLE = ("before-prolog", "after-prolog", "before-epilog", "after-epilog")
HOLD_AT_MOST_S = 60

TaskPrologBy = Literal["slurm", "plugin", "both"]

WATCHER = f"""#!/bin/sh
# Notes that a hook has reached this moment, and holds it there while a test asks for that.
echo "$SLURM_JOB_ID $SLURMD_NODENAME" >>{{marks}}/{{moment}}
left={HOLD_AT_MOST_S * 20}
while [ -e {{holds}}/{{moment}} ] && [ $left -gt 0 ]; do
    /bin/sleep 0.05
    left=$((left - 1))
done
"""

LOGGER = """#!/bin/sh
# Runs the installed hook and keeps its output: slurmd discards it, and the machine may have no syslog.
exec {installed} >>{log} 2>&1
"""


@dataclass(frozen=True, slots=True)
class SiteOptions:
    """What a site consists of.

    Args:
        cluster: the cluster; the site sets its hooks and plugstack lines.
        backends: maps resource names to the emulator's fake backends.
        plugstack_args: arguments on the plugin's line, after the config and the state directory.
        watched: wrap Prolog and Epilog in scripts that note each run and can be held.
        hooks_log: keep the output of Prolog and Epilog, which otherwise only syslog has. If False, slurm.conf names
            the installed scripts directly, as an admin's does.
        task_prolog_by: who runs TaskProlog: Slurm, by TaskProlog= of slurm.conf (`slurm`), or the plugin, by
            --task-prolog (`plugin`); with `either`, `run_task_prolog_by` says so, and it is Slurm at first.
        licenses: the counts for `Licenses=` in slurm.conf. With any, Slurm loads job_submit.lua and cli_filter.lua, and
            each new config is written together with its catalogue.
    """

    cluster: ClusterOptions = field(default_factory=ClusterOptions)
    backends: Mapping[str, str] = field(default_factory=lambda: {"ibm_demo": "FakeSherbrooke"})
    plugstack_args: tuple[str, ...] = ()
    watched: bool = False
    hooks_log: bool = True
    task_prolog_by: Literal["slurm", "plugin", "either"] = "slurm"
    licenses: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class HookRun:
    """One run of a watched hook."""

    job_id: int
    node: str


class Site:
    """Cluster, emulator, configuration and state directory; `with Site(options) as site:`."""

    def __init__(
        self, options: SiteOptions | None = None, make_cluster: Callable[[ClusterOptions], Cluster] = Cluster
    ) -> None:
        self.options = options or SiteOptions()
        # The hooks' paths are in the cluster's folder, whose name the cluster chooses.
        self.cluster = make_cluster(self.options.cluster)
        self.emulator = Emulator(self.cluster, self.options.backends)
        self.config_path = self.cluster.etc / "qrmi_config.json"
        self.state_dir = self.cluster.folder / "qrmi-state"
        self._marks = self.cluster.folder / "hook-runs"
        self._holds = self.cluster.folder / "hook-holds"
        self._is_run_by_plugin = self.options.task_prolog_by == "plugin"
        self._task_prolog = self.cluster.etc / "by_turns" if self.options.task_prolog_by == "either" else TASK_PROLOG
        task_prolog = None if self._is_run_by_plugin else self._task_prolog
        hooks = Hooks(self._path_of("prolog"), task_prolog, self._path_of("epilog"))
        self.cluster.options = replace(
            self.cluster.options,
            hooks=hooks,
            settings={**self._lua_settings(), **self.cluster.options.settings},
            plugstack=(self.plugstack_line(*self.options.plugstack_args),),
            path=(*self.options.cluster.path, BIN),
        )

    def __enter__(self) -> Self:
        """Start the site."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the site and remove what it has created."""
        self.stop()

    def start(self) -> None:
        """Start everything, or stop it all again if that fails.

        Raises:
            ClusterError: a daemon did not start; the message has the end of its log.
        """
        try:
            self.start_cluster()
            self.start_emulator()
        except BaseException:
            self.stop()
            raise

    def start_cluster(self) -> None:
        """Start the cluster with its hooks."""
        self.cluster.make()
        for hook in ("prolog", "epilog"):
            self._install(hook)
        if self.options.task_prolog_by == "either":
            self._task_prolog.symlink_to(TASK_PROLOG)
        for script in ("job_submit.lua", "cli_filter.lua") if self.options.licenses else ():
            shutil.copy(LUA_DIR / script, self.cluster.etc)
        self.cluster.start()

    def start_emulator(self) -> None:
        """Start the emulator and write the configuration that names it."""
        self.emulator.start()
        self.emulator.wait_ready()
        self.config([self.emulator.resource(name) for name in self.options.backends])

    def stop(self) -> None:
        """End every process and remove users and folders; harmless when repeated."""
        self.cluster.stop()

    def config(self, resources: Sequence[Mapping[str, Any]]) -> None:
        """Write qrmi_config.json, readable by root only."""
        new = self.config_path.with_suffix(".new")
        new.touch(mode=0o600)
        new.write_text(json.dumps({"resources": list(resources)}, indent=2) + "\n")
        new.replace(self.config_path)
        if self.options.licenses:
            done = self.command("catalogue")
            assert done.returncode == 0, done.stderr

    def plugstack_line(self, *args: str, requirement: str = "optional") -> str:
        """Return the plugin's line with these arguments after the config and the state directory."""
        words = [requirement, str(STUB), str(self.config_path), f"--state-dir={self.state_dir}", *args]
        if self._is_run_by_plugin and not any(word.startswith("--task-prolog=") for word in args):
            words.append(f"--task-prolog={TASK_PROLOG}")
        return " ".join(words)

    def run_task_prolog_by(self, who: TaskPrologBy) -> None:
        """Let Slurm or the plugin run TaskProlog, or both, from the next step on; without it Slurm runs /bin/true."""
        self._is_run_by_plugin = who != "slurm"
        new = self._task_prolog.with_suffix(".new")
        new.symlink_to("/bin/true" if who == "plugin" else TASK_PROLOG)
        new.replace(self._task_prolog)
        self.plugstack(self.plugstack_line(*self.options.plugstack_args))

    def plugstack(self, *lines: str) -> None:
        """Write plugstack.conf; it takes effect with the next job."""
        (self.cluster.etc / "plugstack.conf").write_text("".join(f"{line}\n" for line in lines))

    def reset(self) -> None:
        """Reset a shared site to its initial state: no jobs, records, faults or held hooks, all nodes idle."""
        for hold in self._holds.glob("*"):
            hold.unlink()
        self.emulator.clear_faults()
        # What waits for late answers would do so for half a minute.
        for pid in [*self.call_pids("prolog"), *self._users_calls()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.cluster.slurm("scancel", "--full", "--signal=KILL", f"--user={self.cluster.user.name}")
        self.cluster.slurm("scancel", f"--user={self.cluster.user.name}")
        for name in self.outages() if self.options.licenses else ():
            self.cluster.slurm("scontrol", "delete", f"ReservationName={name}")
        self.config([self.emulator.resource(name) for name in self.options.backends])
        self.plugstack(self.plugstack_line(*self.options.plugstack_args))
        self.cluster.revive_nodes()
        shutil.rmtree(self.state_dir, ignore_errors=True)

    def outages(self) -> dict[str, str]:
        """Return scontrol's line of each reservation that keeps a license out of service, by the reservation's name."""
        shown = self.cluster.slurm("scontrol", "show", "reservations", "--oneliner")
        return {match[1]: match[0] for match in re.finditer(r"^ReservationName=(qpu_out_\S+) .*$", shown, re.MULTILINE)}

    def hooks_log(self) -> str:
        """Return the output of Prolog and Epilog so far, on all nodes."""
        path = self.cluster.log("hooks")
        return path.read_text(errors="replace") if path.exists() else ""

    # --- the admin's command and the hooks' state ---------------------------------------------------

    def command(self, *words: str, node: str = "n1", stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run `qrmi-slurm` as root on a node, under that node's name and boot id."""
        return subprocess.run(
            [BIN / "qrmi-slurm", *words],
            env=self.root_env(node),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=COMMAND_DEADLINE_S,
        )

    def popen_command(self, *words: str, node: str = "n1") -> subprocess.Popen[str]:
        """Start `qrmi-slurm` as root on a node."""
        return subprocess.Popen(
            [BIN / "qrmi-slurm", *words],
            env=self.root_env(node),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def recover(self, *words: str, node: str = "n1") -> dict[str, Any]:
        """Run `qrmi-slurm recover --json`, check that its exit status agrees, and return its output."""
        done = self.command("recover", "--json", *words, node=node)
        if done.returncode not in (0, 1):
            raise ClusterError(f"recover: exit status {done.returncode}\n{done.stderr}")
        said: dict[str, Any] = json.loads(done.stdout)
        assert done.returncode == (1 if said["left"] else 0), said
        return said

    def root_env(self, node: str) -> dict[str, str]:
        """Return the environment of root's commands on a node."""
        return {"PATH": SYSTEM_PATH, "SLURM_CONF": str(self.cluster.slurm_conf), "SLURMD_NODENAME": node}

    def run_hook(self, hook: str, job_id: int, **env: str) -> subprocess.CompletedProcess[str]:
        """Run the installed Prolog or Epilog once more, as slurmd would on n1 for a job with `--qpu=ibm_demo`."""
        return subprocess.run(
            [BIN / f"qrmi-slurm-{hook}"],
            env={**self.hook_env(job_id), **env},
            capture_output=True,
            text=True,
            timeout=COMMAND_DEADLINE_S,
        )

    def hook_env(self, job_id: int) -> dict[str, str]:
        """Return what slurmd gives Prolog and Epilog on n1 for a job with `--qpu=ibm_demo`, from 23.02 on.

        The job has started when its record says that it has.
        """
        start_s = 1000
        with contextlib.suppress(ValueError):  # a test has broken it
            start_s = (self.record_of(job_id) or {}).get("start_s") or start_s
        return {
            **self.root_env("n1"),
            "SLURM_CLUSTER_NAME": f"throwaway-{self.cluster.token}",
            "SLURM_JOB_ID": str(job_id),
            "SLURM_JOB_UID": str(self.cluster.user.uid),
            "SLURM_JOB_NODELIST": "n1",
            "SLURM_JOB_START_TIME": str(start_s),
            "SLURM_JOB_END_TIME": str(start_s + 300),
            "SPANK_QRMI_QPU": "ibm_demo",
        }

    def folder_of(self, job_id: int) -> Path:
        """Return the path of a job's folder in the state directory."""
        return self.state_dir / f"throwaway-{self.cluster.token}" / str(job_id)

    def record_of(self, job_id: int) -> dict[str, Any] | None:
        """Return a job's record, or None if it has none."""
        path = self.folder_of(job_id) / "record.json"
        try:
            record: dict[str, Any] = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        return record

    def change_record(self, job_id: int, change: Callable[[dict[str, Any]], object]) -> None:
        """Change a job's record."""
        record = self.record_of(job_id)
        assert record is not None
        change(record)
        (self.folder_of(job_id) / "record.json").write_text(json.dumps(record))

    def hook_pids(self, hook: str) -> list[int]:
        """Return the hooks' running Python processes, without their shells and QRMI's calls."""
        return [pid for pid, is_call in self._pythons_of(hook) if not is_call]

    def kill_prolog(self) -> None:
        """Kill Prolog's Python, as the kernel does when memory runs out."""
        for pid in wait_for(lambda: self.hook_pids("prolog") or None, "Prolog's Python", 20):
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not self.hook_pids("prolog"), "it to end", 5)

    def call_pids(self, hook: str) -> list[int]:
        """Return the processes in which a hook is calling QRMI."""
        return [pid for pid, is_call in self._pythons_of(hook) if is_call]

    def _pythons_of(self, hook: str) -> list[tuple[int, bool]]:
        found = []
        name = f"/qrmi-slurm-{hook}".encode()
        for process in living():
            try:
                words = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
                environ = Path(f"/proc/{process.pid}/environ").read_bytes()
            except OSError:
                continue  # it has ended meanwhile
            is_ours = f"SLURM_CONF={self.cluster.slurm_conf}".encode() in environ.split(b"\0")
            if is_ours and words[0].endswith(b"python3") and any(word.endswith(name) for word in words):
                found.append((process.pid, process.session == process.pid))
        return found

    def _users_calls(self) -> list[int]:
        """Return the processes in which QRMI is called as one of the cluster's users."""
        uids = {str(user.uid) for user in self.cluster.users}
        found = []
        for process in living():
            try:
                words = Path(f"/proc/{process.pid}/cmdline").read_bytes()
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                continue  # it has ended meanwhile
            (uid,) = re.findall(r"^Uid:\t(\d+)", status, re.MULTILINE)
            if b"qrmi_slurm.calls" in words and uid in uids:
                found.append(process.pid)
        return found

    # --- watched hooks ------------------------------------------------------------------------------

    def hook_runs(self, moment: str) -> list[HookRun]:
        """Return the runs that have reached a moment so far: before-prolog, after-epilog, ..."""
        path = self._marks / _holdable(moment)
        lines = path.read_text().splitlines() if path.exists() else []
        return [HookRun(int(job_id), node) for job_id, node in map(str.split, lines)]

    def wait_hook_run(self, moment: str, job_id: int, deadline_s: float = 20.0) -> HookRun:
        """Wait until a job's hook has reached a moment, on whichever node is first."""

        def reached() -> HookRun | None:
            return next((run for run in self.hook_runs(moment) if run.job_id == job_id), None)

        return wait_for(reached, f"{moment} of job {job_id}", deadline_s)

    @contextmanager
    def hold(self, moment: str) -> Iterator[None]:
        """Hold every hook at a moment (before-prolog, ...) until the block ends, for 60 s at most."""
        path = self._holds / _holdable(moment)
        path.touch()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)

    @contextmanager
    def hooks_of(self, folder: Path) -> Iterator[None]:
        """Use another installation's Prolog and Epilog until the block ends."""
        paths = [self.cluster.etc / f"{hook}.d" / "50-qrmi" for hook in ("prolog", "epilog")]
        kept = [path.read_text() for path in paths]
        try:
            for path, text in zip(paths, kept, strict=True):
                _write_script(path, text.replace(str(BIN), str(folder)))
            yield
        finally:
            for path, text in zip(paths, kept, strict=True):
                _write_script(path, text)

    def _lua_settings(self) -> dict[str, str]:
        if not self.options.licenses:
            return {}
        counts = ",".join(f"{name}:{count}" for name, count in self.options.licenses.items())
        return {"Licenses": counts, "JobSubmitPlugins": "lua", "CliFilterPlugins": "lua"}

    def _path_of(self, hook: str) -> Path:
        """Return what slurm.conf names as Prolog or Epilog: the installed script, our wrapper, or a glob."""
        if self.options.watched:
            return self.cluster.etc / f"{hook}.d" / "*"
        return self.cluster.etc / hook if self.options.hooks_log else BIN / f"qrmi-slurm-{hook}"

    def _install(self, hook: str) -> None:
        """Install what slurm.conf names."""
        path = self._path_of(hook)
        if self.options.watched:
            self._marks.mkdir(exist_ok=True)
            self._holds.mkdir(exist_ok=True)
            path = path.with_name("50-qrmi")
            path.parent.mkdir()
            # Slurm runs the scripts of a glob in reverse order.
            for name, moment in (("90-watch", f"before-{hook}"), ("10-watch", f"after-{hook}")):
                watcher = WATCHER.format(marks=self._marks, holds=self._holds, moment=moment)
                _write_script(path.with_name(name), watcher)
        installed = BIN / f"qrmi-slurm-{hook}"
        if self.options.hooks_log:
            _write_script(path, LOGGER.format(installed=installed, log=self.cluster.log("hooks")))
        elif self.options.watched:
            path.symlink_to(installed)


def _write_script(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def _holdable(moment: str) -> str:
    if moment not in HOLDABLE:
        raise ValueError(f"{moment!r} is not one of {HOLDABLE}")
    return moment
