"""A site: a private cluster with qrmi-slurm installed in it as an admin would, and an emulated QPU service."""

import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from slurm.cluster import Cluster, ClusterOptions, Hooks
from slurm.emulator import Emulator
from slurm.polling import wait_for

BIN = Path(sys.executable).parent
STUB = Path(sys.prefix) / "lib" / "spank_qrmi.so"
HOLDABLE = ("before-prolog", "after-prolog", "before-epilog", "after-epilog")
HOLD_AT_MOST_S = 60

WATCHER = f"""#!/bin/sh
# Notes that a hook has come to this moment, and keeps it there while a test wants that.
echo "$SLURM_JOB_ID $SLURMD_NODENAME" >>{{marks}}/{{moment}}
left={HOLD_AT_MOST_S * 20}
while [ -e {{holds}}/{{moment}} ] && [ $left -gt 0 ]; do
    /bin/sleep 0.05
    left=$((left - 1))
done
"""

LOGGER = """#!/bin/sh
# Runs the installed hook, and keeps what it says: slurmd throws that away, and no syslog may be there.
exec {installed} >>{log} 2>&1
"""


@dataclass(frozen=True, slots=True)
class SiteOptions:
    """What a site is made of.

    Args:
        cluster: the cluster; its hooks and plugstack lines are the site's to set.
        backends: resource name to the fake backend of the emulator.
        plugstack_args: arguments on the plugin's line, after the config and the state directory.
        watched: put scripts around Prolog and Epilog that note each run and can be held.
        hooks_log: keep what Prolog and Epilog print, which else only syslog has; False, and slurm.conf names
            the installed scripts themselves, as an admin's does.
    """

    cluster: ClusterOptions = field(default_factory=ClusterOptions)
    backends: Mapping[str, str] = field(default_factory=lambda: {"ibm_demo": "FakeSherbrooke"})
    plugstack_args: tuple[str, ...] = ()
    watched: bool = False
    hooks_log: bool = True


@dataclass(frozen=True, slots=True)
class HookRun:
    """One run of a watched hook."""

    job_id: int
    node: str


class Site:
    """Cluster, emulator, configuration and state directory; `with Site(options) as site:`."""

    def __init__(self, options: SiteOptions | None = None) -> None:
        self.options = options or SiteOptions()
        # The hooks' paths lie in the cluster's folder, whose name the cluster chooses.
        self.cluster = Cluster(self.options.cluster)
        self.emulator = Emulator(self.cluster, self.options.backends)
        self.config_path = self.cluster.etc / "qrmi_config.json"
        self.state_dir = self.cluster.folder / "qrmi-state"
        self._marks = self.cluster.folder / "hook-runs"
        self._holds = self.cluster.folder / "hook-holds"
        hooks = Hooks(self._path_of("prolog"), BIN / "qrmi-slurm-task-prolog", self._path_of("epilog"))
        self.cluster.options = replace(
            self.options.cluster,
            hooks=hooks,
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
        """Stop the site and remove what it has made."""
        self.stop()

    def start(self) -> None:
        """Start everything, stop it again if that fails.

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

    def plugstack_line(self, *args: str, requirement: str = "optional") -> str:
        """Return the plugin's line with these arguments after the config and the state directory."""
        words = [requirement, str(STUB), str(self.config_path), f"--state-dir={self.state_dir}", *args]
        return " ".join(words)

    def plugstack(self, *lines: str) -> None:
        """Write plugstack.conf; it holds from the next job on."""
        (self.cluster.etc / "plugstack.conf").write_text("".join(f"{line}\n" for line in lines))

    def reset(self) -> None:
        """Bring a shared site back to how it started: no jobs, records, faults or held hooks, all nodes idle."""
        for hold in self._holds.glob("*"):
            hold.unlink()
        self.emulator.clear_faults()
        self.cluster.slurm("scancel", "--full", "--signal=KILL", f"--user={self.cluster.user.name}")
        self.cluster.slurm("scancel", f"--user={self.cluster.user.name}")
        self.config([self.emulator.resource(name) for name in self.options.backends])
        self.plugstack(self.plugstack_line(*self.options.plugstack_args))
        self.cluster.revive_nodes()
        shutil.rmtree(self.state_dir, ignore_errors=True)

    def hooks_log(self) -> str:
        """Return what Prolog and Epilog have said so far, on all nodes."""
        path = self.cluster.log("hooks")
        return path.read_text(errors="replace") if path.exists() else ""

    # --- watched hooks ------------------------------------------------------------------------------

    def hook_runs(self, moment: str) -> list[HookRun]:
        """Return the runs so far that reached a moment: before-prolog, after-epilog, ..."""
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
        """Keep every hook at a moment (before-prolog, ...) until the block ends, for 60 s at most."""
        path = self._holds / _holdable(moment)
        path.touch()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)

    def _path_of(self, hook: str) -> Path:
        """Return what slurm.conf names as Prolog or Epilog: the installed script, ours around it, or a glob."""
        if self.options.watched:
            return self.cluster.etc / f"{hook}.d" / "*"
        return self.cluster.etc / hook if self.options.hooks_log else BIN / f"qrmi-slurm-{hook}"

    def _install(self, hook: str) -> None:
        """Put what slurm.conf names in place."""
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
        raise ValueError(f"{moment!r} is none of {HOLDABLE}")
    return moment
