"""A private Slurm cluster on this machine with its own ports, folders, munge and user, removed without a trace.

`python -m slurm.cluster` lists and stops clusters that were left up.
"""

import argparse
import contextlib
import json
import os
import pwd
import random
import re
import secrets
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from slurm.database import Database, slurmdbd_conf
from slurm.polling import DeadlineError, wait_for
from slurm.processes import Belongings, end_all, living, start_ticks

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Not $TMPDIR: the job's user needs access, and munge's socket path must stay below 108 characters.
PARENT = Path("/tmp")
FOLDER_PREFIX = "qrmi-slurm-"
HOOKS_FOLDER = Path("/run/qrmi-slurm")  # where our Prologs wait for their turn
USER_PREFIX = "qrmi-"

START_ATTEMPTS = 3  # another program may take a port before slurmd binds to it
DAEMON_DEADLINE_S = 20.0
COMMAND_DEADLINE_S = 60.0
LOG_TAIL_LINES = 15
# What Slurm logs at every start of such a cluster, which only distracts from the reason of a failure.
EXPECTED_IN_LOGS = re.compile(
    r"mpi/pmix|hwloc_topo_load|Node configuration differs|CPU frequency|state file|state save"
)
# Outside Linux's ephemeral range (32768 and up), from which srun takes its ports.
PORTS = range(20000, 32000)

OWNER = "owner.json"  # which process started the cluster, and the users it has made
KEEP = "keep"  # present if the cluster outlives that process on purpose

# PLANNED is a note of the backfill scheduler on an idle node; it stays for a while after the planned job has run.
IDLE = frozenset({"idle", "planned"})
TERMINAL_STATES = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}
    | {"TIMEOUT"}
)
# What srun says on standard error where slurmctld is busy with the job's last step (src/srun/launch.c).
STEP_WAITS = re.compile(
    r"^srun: (?:Job \d+ step creation (?:temporarily|still) disabled, retrying|Step created for \S+)(?: \(.*\))?\n",
    re.MULTILINE,
)


class ClusterError(Exception):
    """The cluster cannot be started, or one of its commands failed; the message has the end of the log."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """The Prolog, TaskProlog and Epilog of slurm.conf: paths; the first and last may be globs."""

    prolog: str | Path | None = None
    task_prolog: str | Path | None = None
    epilog: str | Path | None = None


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """What a cluster consists of.

    Args:
        nodes: how many slurmd; they are called n1, n2, ...
        cpus_per_node: what each node claims to have, whatever the machine has.
        users: how many unprivileged users to make.
        hooks: the scripts around each job.
        plugstack: lines of plugstack.conf.
        settings: settings of slurm.conf, over ours; an empty one is left out.
        conf_lines: whole lines to add to slurm.conf.
        path: folders to put first in the PATH of the users' commands.
        slurmdbd: run a slurmdbd with its own MariaDB, in which the users have no account yet.
        requeue_after_s: how long a requeued job waits before it starts again. This is the lifetime of a job's
            credential (cred_expire in slurm.conf(5)), so Prolog must not take longer. slurmd runs no Prolog for a job
            whose earlier credential it still has, so StartTime=now would not do.
    """

    nodes: int = 2
    cpus_per_node: int = 8
    users: int = 1
    hooks: Hooks = Hooks()
    plugstack: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    conf_lines: tuple[str, ...] = ()
    path: tuple[Path, ...] = ()
    slurmdbd: bool = False
    requeue_after_s: int = 120  # Slurm's default


@dataclass(frozen=True, slots=True)
class User:
    """An unprivileged user made for one cluster, with a home in its folder."""

    name: str
    uid: int
    gid: int
    home: Path


@dataclass(frozen=True, slots=True)
class JobInfo:
    """What `scontrol show job` says of a job.

    Args:
        exit_code: status and signal as Slurm writes them: `3:0`.
        fields: everything else, under Slurm's names.
    """

    job_id: int
    state: str
    reason: str
    exit_code: str
    nodes: str
    restarts: int
    fields: Mapping[str, str]


class Cluster:
    """The daemons, users and commands of one private cluster; `with Cluster(options) as cluster:`."""

    def __init__(self, options: ClusterOptions | None = None) -> None:
        self.options = options or ClusterOptions()
        self.token = secrets.token_hex(4)
        self.folder = PARENT / f"{FOLDER_PREFIX}{self.token}"
        self.users: list[User] = []
        # Prefix of each daemon and of root's Slurm commands: nsenter, if they are to run on another machine.
        self.enter: tuple[str, ...] = ()
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._sessions: set[int] = set()

    # --- paths --------------------------------------------------------------------------------------

    @property
    def etc(self) -> Path:
        """The folder of slurm.conf, plugstack.conf and all other configuration."""
        return self.folder / "etc"

    @property
    def slurm_conf(self) -> Path:
        """The cluster's slurm.conf."""
        return self.etc / "slurm.conf"

    @property
    def user(self) -> User:
        """The first unprivileged user."""
        return self.users[0]

    @property
    def nodes(self) -> list[str]:
        """The names of the nodes."""
        return [f"n{number}" for number in range(1, self.options.nodes + 1)]

    def log(self, daemon: str) -> Path:
        """Return the log of a daemon: munged, slurmctld, or a node's name."""
        return self.folder / "log" / f"{daemon}.log"

    def slurmd_log(self, node: str) -> str:
        """Return what a node's slurmd and slurmstepds have logged."""
        return self.log(node).read_text(errors="replace")

    # --- start and stop -----------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Start the cluster."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the cluster and remove its folder and users."""
        self.stop()

    def start(self) -> None:
        """Start all daemons and wait until every node is idle; stop everything again if that fails.

        Raises:
            ClusterError: it did not start; the message ends with the last lines of the relevant log.
        """
        try:
            self.make()
            for attempts_left in reversed(range(START_ATTEMPTS)):
                try:
                    self._start_daemons()
                    return
                except ClusterError as error:
                    if attempts_left == 0 or "in use" not in str(error):
                        raise
                    self._end_processes()
        except BaseException:
            self.stop()
            raise

    def make(self) -> None:
        """Make the folder and the users; `start` does so if needed."""
        if not self.users:
            self._require_root()
            self._make_folders()
            self._make_users()

    def stop(self) -> None:
        """End every process of the cluster, remove its users and its folder; harmless when repeated."""
        try:
            self._end_processes()
        finally:
            for name in self._user_names():
                _remove_user(name)
            shutil.rmtree(self.folder, ignore_errors=True)
            shutil.rmtree(HOOKS_FOLDER / f"throwaway-{self.token}", ignore_errors=True)

    def leave_up(self) -> Path:
        """Let the cluster outlive this process (`stop_left_up` ends it), and return a file to source."""
        (self.folder / KEEP).touch()
        env = self.env()
        ours = f"export SLURM_CONF={env['SLURM_CONF']} PATH={env['PATH']}"
        user = self.user
        as_user = ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--clear-groups", "env"]
        as_user += [f"{name}={env[name]}" for name in ("HOME", "USER", "LOGNAME", "SHELL")]
        env_sh = self.folder / "env.sh"
        env_sh.write_text(
            f"# Source this: the commands of this throwaway cluster, and `as_user` to run one as {user.name}.\n"
            f'{ours}:"$PATH"\n'
            f'as_user() {{ (cd {user.home} && {shlex.join(as_user)} "$@"); }}\n'
        )
        return env_sh

    def start_daemon(self, name: str, command: Sequence[str | Path], env: Mapping[str, str]) -> int:
        """Start a program that ends with the cluster, with its output in its log; return its process id."""
        with self.log(name).with_suffix(".out").open("ab") as output:
            daemon = subprocess.Popen(
                [*self.enter, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env={"PATH": SYSTEM_PATH, "LANG": "C.UTF-8", "SLURM_CONF": str(self.slurm_conf), **env},
                start_new_session=True,
                umask=0o022,
            )
        self._daemons[name] = daemon
        self._sessions.add(daemon.pid)
        return daemon.pid

    def check_daemons(self) -> None:
        """Make sure that every daemon is alive.

        Raises:
            ClusterError: one has ended; the message has the end of its log.
        """
        for name, daemon in self._daemons.items():
            if daemon.poll() is not None:
                raise ClusterError(f"{name} ended with status {daemon.returncode}\n{self.log_tail(name)}")

    def is_alive(self, name: str) -> bool:
        """Tell whether a daemon runs."""
        return name in self._daemons and self._daemons[name].poll() is None

    def pid_of(self, name: str) -> int:
        """Return the process id of a daemon."""
        return self._daemons[name].pid

    def kill_daemon(self, name: str) -> None:
        """Kill one daemon but not its children, as a crash would."""
        daemon = self._daemons.pop(name)
        daemon.kill()
        daemon.wait()

    def stop_daemon(self, name: str) -> None:
        """Ask one daemon to end, and wait until it has saved its state."""
        daemon = self._daemons.pop(name)
        daemon.terminate()
        daemon.wait(DAEMON_DEADLINE_S)

    def lose_state(self) -> None:
        """Kill all of Slurm but munge, jobs included, empty StateSaveLocation, and start it again: ids begin at 1.

        It takes at least until the next second, as any restart does: Slurm's times are in seconds.
        """
        killed_s = int(time.time())
        for name in ("slurmctld", *self.nodes):
            self.kill_daemon(name)
        end_all(self._of_jobs)
        shutil.rmtree(self.folder / "slurmctld")
        (self.folder / "slurmctld").mkdir(mode=0o755)
        for path in self.folder.glob("spool/*/cred_state*"):  # a step of the same second would count as a replay
            path.unlink()
        self.start_daemon("slurmctld", ["slurmctld", "-D"], {})
        self._wait_until("slurmctld", lambda: "UP" in (self.try_slurm("scontrol", "ping") or ""), "slurmctld")
        for node in self.nodes:
            self.start_slurmd(node)
        self._wait_until(self.nodes[0], self._all_idle, "the nodes to be idle")
        wait_for(lambda: int(time.time()) > killed_s, "the next second", 5)

    def signal_daemon(self, name: str, number: int) -> None:
        """Send a signal to one daemon."""
        self._daemons[name].send_signal(number)

    def kill_slurmd(self, node: str) -> None:
        """Kill a node's slurmd; its jobs' slurmstepds live on."""
        self.kill_daemon(node)

    def start_slurmd(self, node: str) -> None:
        """Start a node's slurmd."""
        self.start_daemon(node, ["slurmd", "-D", "-N", node], {})

    def restart_slurmd(self, node: str) -> None:
        """Kill a node's slurmd if it is running, start it again and wait until it answers."""
        if node in self._daemons:
            self.kill_slurmd(node)
        self.start_slurmd(node)
        self._wait_until(node, lambda: self.try_slurm("scontrol", "show", "slurmd", SLURMD_NODENAME=node), "slurmd")

    # --- commands -----------------------------------------------------------------------------------

    def env(self, user: User | None = None) -> dict[str, str]:
        """Return the environment for a user's commands (the first user by default)."""
        user = user or self.user
        return {
            "PATH": os.pathsep.join([*map(str, self.options.path), SYSTEM_PATH]),
            "LANG": "C.UTF-8",
            "HOME": str(user.home),
            "USER": user.name,
            "LOGNAME": user.name,
            "SHELL": "/bin/bash",
            "SLURM_CONF": str(self.slurm_conf),
        }

    def slurm(self, *command: str, **env: str) -> str:
        """Run a Slurm command as root and return its output.

        Raises:
            ClusterError: it failed.
        """
        done = self._run_slurm(command, env)
        if done.returncode != 0:
            raise ClusterError(f"{shlex.join(command)}: exit status {done.returncode}\n{done.stderr}".rstrip())
        return done.stdout

    def try_slurm(self, *command: str, **env: str) -> str | None:
        """Run a Slurm command as root and return its output, or None if it failed."""
        done = self._run_slurm(command, env)
        return done.stdout if done.returncode == 0 else None

    def run_as_user(
        self,
        command: Sequence[str | Path],
        *,
        user: User | None = None,
        env: Mapping[str, str] | None = None,
        stdin: str = "",
        deadline_s: float = COMMAND_DEADLINE_S,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command (srun, salloc, anything) as an unprivileged user, in that user's home.

        Args:
            command: what to run.
            user: as whom; the first user by default.
            env: variables over those of `env()`.
            stdin: text for its standard input.
            deadline_s: killed after this many seconds.

        Raises:
            DeadlineError: it took too long.
        """
        with self.popen_as_user(command, user=user, env=env, stdin=subprocess.PIPE) as process:
            try:
                out, err = process.communicate(stdin, timeout=deadline_s)
            except subprocess.TimeoutExpired as error:
                process.kill()
                out, err = process.communicate()
                what = shlex.join(map(str, command))
                raise DeadlineError(f"waited {deadline_s:g} s for {what}\n{out}{err}") from error
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(list(command), process.returncode, out, err)

    def popen_as_user(
        self,
        command: Sequence[str | Path],
        *,
        user: User | None = None,
        env: Mapping[str, str] | None = None,
        stdin: int | IO[str] = subprocess.DEVNULL,
    ) -> subprocess.Popen[str]:
        """Start a command as an unprivileged user, with its output in pipes."""
        user = user or self.user
        return subprocess.Popen(
            command,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            cwd=user.home,
            env={**self.env(user), **(env or {})},
            user=user.uid,
            group=user.gid,
            extra_groups=[],
            umask=0o022,
            start_new_session=True,
        )

    # --- jobs ---------------------------------------------------------------------------------------

    def sbatch(
        self, script: str | Path, *args: str, user: User | None = None, env: Mapping[str, str] | None = None
    ) -> int:
        """Submit a batch job and return its id.

        Args:
            script: the path of a job script, or its text (a text has more than one line).
            args: options of sbatch.
            user: as whom; the first user by default.
            env: variables over those of `env()`.

        Raises:
            ClusterError: sbatch refused.
        """
        is_text = isinstance(script, str) and "\n" in script
        command = ["sbatch", "--parsable", *args, *([] if is_text else [str(script)])]
        done = self.run_as_user(command, user=user, env=env, stdin=str(script) if is_text else "")
        if done.returncode != 0:
            raise ClusterError(f"{shlex.join(command)}: exit status {done.returncode}\n{done.stderr}".rstrip())
        return int(done.stdout.strip().partition(";")[0])

    def job(self, job_id: int | str) -> JobInfo:
        """Return what Slurm knows of a job."""
        return self.jobs(job_id)[0]

    def jobs(self, job_id: int | str) -> list[JobInfo]:
        """Return what Slurm knows of a job: for an array, of each task; for a het job, of each component."""
        lines = self.slurm("scontrol", "show", "job", "--oneliner", str(job_id)).splitlines()
        return [_parse_job(line) for line in lines if line.strip()]

    def wait_job(
        self,
        job_id: int | str,
        states: frozenset[str] | set[str] = TERMINAL_STATES,
        deadline_s: float = 30.0,
    ) -> JobInfo:
        """Wait until a job is in one of the states (COMPLETING does not count as a final one).

        RUNNING means that Prolog has ended: before that Slurm says RUNNING with the reason "Prolog".

        Raises:
            DeadlineError: it was not; the message has what Slurm says of it and the nodes' logs.
        """

        def in_state() -> JobInfo | None:
            info = self.job(job_id)
            in_prolog = (info.state, info.reason) == ("RUNNING", "Prolog")
            return info if info.state in states and not in_prolog else None

        def last_words() -> str:
            return "\n".join([str(self.job(job_id)), *(self.log_tail(node) for node in self.nodes)])

        return wait_for(in_state, f"job {job_id} in {sorted(states)}", deadline_s, on_timeout=last_words)

    def wait_job_over(self, job_id: int | str, deadline_s: float = 30.0) -> JobInfo:
        """Wait until a job and the Epilogs on all its nodes have ended and the nodes are idle again."""
        info = self.wait_job(job_id, deadline_s=deadline_s)
        self.wait_nodes_idle(deadline_s)
        return info

    def job_output(self, job_id: int | str) -> str:
        """Return a batch job's standard output, or an empty string if there is no file.

        Without what its srun says where slurmctld lets it wait for its step.
        """
        path = Path(self.job(job_id).fields["StdOut"])
        return STEP_WAITS.sub("", path.read_text(errors="replace")) if path.exists() else ""

    # --- nodes --------------------------------------------------------------------------------------

    def node_states(self) -> dict[str, str]:
        """Return each node's state in sinfo's long, lower-case words, flags (`*`) included."""
        lines = self.slurm("sinfo", "--noheader", "--Node", "--format=%N %T").splitlines()
        return dict(line.split() for line in lines)

    def node_reason(self, node: str) -> str:
        """Return why a node is down or drained, or an empty string."""
        shown = self.slurm("scontrol", "show", "node", node)
        reason = re.search(r"^\s*Reason=(.*)$", shown, re.MULTILINE)
        return reason.group(1) if reason else ""

    def wait_nodes_idle(self, deadline_s: float = 20.0) -> None:
        """Wait until every node is idle: none drained, nothing running, no Prolog or Epilog either."""

        def idle() -> bool:
            return set(self.node_states().values()) <= IDLE

        def states() -> str:
            return "\n".join([str(self.node_states()), *(self.log_tail(node) for node in self.nodes)])

        wait_for(idle, "all nodes to be idle", deadline_s, on_timeout=states)

    def revive_nodes(self) -> None:
        """Start dead slurmds, resume drained and down nodes, and wait until all are idle."""
        for node in self.nodes:
            if node not in self._daemons or self._daemons[node].poll() is not None:
                self._daemons.pop(node, None)
                self.restart_slurmd(node)
        for node, state in self.node_states().items():
            if re.match("down|drain", state):
                self.slurm("scontrol", "update", f"NodeName={node}", "State=RESUME")
        self.wait_nodes_idle()

    def log_tail(self, daemon: str) -> str:
        """Return the last lines of a daemon's log, headed by its path."""
        # A daemon that fails before it reads its configuration says so only on standard error.
        paths = (self.log(daemon), self.log(daemon).with_suffix(".out"))
        path = next((path for path in paths if path.exists() and path.stat().st_size), paths[0])
        text = path.read_text(errors="replace") if path.exists() else "(nothing)"
        lines = [line for line in text.splitlines() if not EXPECTED_IN_LOGS.search(line)]
        return "\n".join([f"--- the end of {path}:", *lines[-LOG_TAIL_LINES:]])

    # --- inside -------------------------------------------------------------------------------------

    def _require_root(self) -> None:
        if os.geteuid() != 0:
            raise ClusterError("the cluster needs root: slurmd starts each job as the user who submitted it")
        for program in ("munged", "slurmctld", "slurmd", "sbatch"):
            if shutil.which(program, path=SYSTEM_PATH) is None:
                raise ClusterError(f"{program} is not installed; run `make setup`")

    def _make_folders(self) -> None:
        self.folder.mkdir(mode=0o700)
        for name in ("etc", "log", "munge", "slurmctld", "spool", "home"):
            (self.folder / name).mkdir()
            (self.folder / name).chmod(0o755)
        self.folder.chmod(0o755)
        owner = {"pid": os.getpid(), "started": start_ticks(os.getpid()), "users": self._user_names()}
        (self.folder / OWNER).write_text(json.dumps(owner))
        key = self.folder / "munge" / "key"
        key.touch(mode=0o400)
        key.write_bytes(secrets.token_bytes(128))

    def _user_names(self) -> list[str]:
        return [f"{USER_PREFIX}{self.token}-{number}" for number in range(1, self.options.users + 1)]

    def _make_users(self) -> None:
        for name in self._user_names():
            home = self.folder / "home" / name
            _change_users("useradd", "--system", "--user-group", "--no-create-home", "--home-dir", str(home), name)
            entry = pwd.getpwnam(name)
            home.mkdir(mode=0o700)
            os.chown(home, entry.pw_uid, entry.pw_gid)
            self.users.append(User(name, entry.pw_uid, entry.pw_gid, home))

    def _start_daemons(self) -> None:
        ctld_port, dbd_port, *slurmd_ports = _free_ports(2 + self.options.nodes)
        (self.etc / "plugstack.conf").write_text("".join(f"{line}\n" for line in self.options.plugstack))
        self.slurm_conf.write_text(self._render_slurm_conf(ctld_port, dbd_port, slurmd_ports))
        munge = self.folder / "munge"
        self.start_daemon(
            "munged",
            [
                "munged",
                "--foreground",
                f"--socket={munge}/socket",
                f"--key-file={munge}/key",
                f"--pid-file={munge}/pid",
                f"--seed-file={munge}/seed",
                f"--log-file={self.log('munged')}",
            ],
            {},
        )
        self._wait_until("munged", lambda: (munge / "socket").exists(), "munged")
        if self.options.slurmdbd:
            self._start_slurmdbd(dbd_port)
        self.start_daemon("slurmctld", ["slurmctld", "-D"], {})
        self._wait_until("slurmctld", lambda: "UP" in (self.try_slurm("scontrol", "ping") or ""), "slurmctld")
        for node in self.nodes:
            self.start_slurmd(node)
        self._wait_until(self.nodes[0], self._all_idle, "the nodes to be idle")

    def _start_slurmdbd(self, port: int) -> None:
        """Start MariaDB and slurmdbd, and register this cluster, without which slurmctld does not start."""
        database = Database(self.folder / "mariadb")
        database.make()
        self.start_daemon("mariadbd", database.command(), {})
        self._wait_until("mariadbd", database.socket.exists, "mariadbd")
        conf = self.etc / "slurmdbd.conf"
        conf.touch(mode=0o600)  # slurmdbd insists
        conf.write_text(slurmdbd_conf(self.folder, port))
        self.start_daemon("slurmdbd", ["slurmdbd", "-D"], database.client_env())
        self._wait_until("slurmdbd", lambda: self.try_slurm("sacctmgr", "show", "cluster") is not None, "slurmdbd")
        self.slurm("sacctmgr", "--immediate", "add", "cluster", f"throwaway-{self.token}")

    def _all_idle(self) -> bool:
        lines = self.try_slurm("sinfo", "--noheader", "--Node", "--format=%T")
        return lines is not None and set(lines.split()) <= IDLE

    def _wait_until(self, log_of: str, ask: Callable[[], object], what: str) -> None:
        """Wait for a condition of the daemons, all of which must stay alive."""

        def so_far() -> bool:
            self.check_daemons()
            return bool(ask())

        try:
            wait_for(so_far, what, DAEMON_DEADLINE_S, on_timeout=lambda: self.log_tail(log_of))
        except DeadlineError as error:
            raise ClusterError(str(error)) from error

    def _render_slurm_conf(self, ctld_port: int, dbd_port: int, slurmd_ports: Sequence[int]) -> str:
        host = socket.gethostname().partition(".")[0]
        hooks = self.options.hooks
        settings = {
            "ClusterName": f"throwaway-{self.token}",
            "SlurmctldHost": f"{host}(127.0.0.1)",
            "SlurmctldPort": str(ctld_port),
            "SlurmUser": "root",
            "SlurmdUser": "root",
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={self.folder}/munge/socket,cred_expire={self.options.requeue_after_s}",
            "CredType": "cred/munge",
            "StateSaveLocation": f"{self.folder}/slurmctld",
            "SlurmdSpoolDir": f"{self.folder}/spool/%n",
            "SlurmctldPidFile": f"{self.folder}/slurmctld.pid",
            "SlurmdPidFile": f"{self.folder}/%n.pid",
            "SlurmctldLogFile": str(self.log("slurmctld")),
            "SlurmdLogFile": str(self.log("%n")),
            "SlurmctldSyslogDebug": "quiet",
            "SlurmdSyslogDebug": "quiet",
            "MailProg": "/bin/true",
            # No cgroups: the machine's own are left alone, and a container may have none.
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "JobAcctGatherType": "jobacct_gather/none",
            "MpiDefault": "none",
            "PropagateResourceLimits": "NONE",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_CPU",
            "SlurmdParameters": "config_overrides",
            "ReturnToService": "2",
            "PrologFlags": "Alloc",
            # All of Slurm's short waits are made shorter.
            "SchedulerParameters": "sched_min_interval=0,batch_sched_delay=0,sched_interval=2,bf_interval=1",
            "KillWait": "2",
            "CompleteWait": "0",
            "MinJobAge": "3600",
            "PlugStackConfig": f"{self.etc}/plugstack.conf",
        }
        for name, path in (("Prolog", hooks.prolog), ("TaskProlog", hooks.task_prolog), ("Epilog", hooks.epilog)):
            if path is not None:
                settings[name] = str(path)
        if self.options.slurmdbd:
            settings |= {
                "AccountingStorageType": "accounting_storage/slurmdbd",
                "AccountingStorageHost": "localhost",
                "AccountingStoragePort": str(dbd_port),
                "AccountingStoragePass": f"{self.folder}/munge/socket",  # slurm.conf(5): munge's socket, not a password
            }
        settings |= self.options.settings
        lines = [f"{name}={value}" for name, value in settings.items() if value]
        lines += self.options.conf_lines
        lines += [
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port}"
            f" CPUs={self.options.cpus_per_node} RealMemory=1000 State=UNKNOWN"
            for node, port in zip(self.nodes, slurmd_ports, strict=True)
        ]
        lines.append("PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=60 State=UP")
        return "".join(f"{line}\n" for line in lines)

    def _run_slurm(self, command: Sequence[str], env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*self.enter, *command],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_DEADLINE_S,
            env={"PATH": SYSTEM_PATH, "LANG": "C.UTF-8", "SLURM_CONF": str(self.slurm_conf), **env},
        )

    def _of_jobs(self) -> set[int]:
        """Return the processes of the cluster's jobs: its slurmstepds, and whatever runs as its users."""
        uids = frozenset(user.uid for user in self.users)
        found = {process.pid for process in living() if process.uid in uids}
        for pid in Belongings(self.folder, uids, frozenset(self._sessions)).pids() - found:
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == "slurmstepd":
                    found.add(pid)
        return found

    def _end_processes(self) -> None:
        end_all(Belongings(self.folder, _uids(self._user_names()), frozenset(self._sessions)).pids)
        for daemon in self._daemons.values():
            daemon.wait()
        self._daemons.clear()


def left_up() -> list[Path]:
    """Return the folders of the clusters that were left up on purpose."""
    return sorted(folder.parent for folder in PARENT.glob(f"{FOLDER_PREFIX}*/{KEEP}"))


def sweep() -> list[Path]:
    """Stop the clusters whose owner died without doing so (SIGKILL), and return their former folders."""
    stopped = []
    for path in PARENT.glob(f"{FOLDER_PREFIX}*/{OWNER}"):
        with contextlib.suppress(FileNotFoundError):  # its owner is just removing it
            owner = json.loads(path.read_text())
            if not (path.parent / KEEP).exists() and start_ticks(owner["pid"]) != owner["started"]:
                stop_left_up(path.parent)
                stopped.append(path.parent)
    return stopped


def stop_left_up(folder: Path) -> None:
    """End every process of a cluster that another process has started, remove its users and its folder."""
    users = json.loads((folder / OWNER).read_text())["users"]
    end_all(Belongings(folder, _uids(users)).pids)
    for name in users:
        _remove_user(name)
    shutil.rmtree(folder)
    shutil.rmtree(HOOKS_FOLDER / f"throwaway-{folder.name.removeprefix(FOLDER_PREFIX)}", ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    """Return ports that nothing is listening on."""
    ports: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            ports.append(port)
        if len(ports) == count:
            return ports
    raise ClusterError(f"fewer than {count} free ports in {PORTS}")


def _find_user(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def _uids(names: Iterable[str]) -> list[int]:
    return [entry.pw_uid for entry in map(_find_user, names) if entry is not None]


def _remove_user(name: str) -> None:
    if _find_user(name) is not None:
        # --force: if process 1 does not reap, zombies of the user stay, and userdel takes them for a login.
        _change_users("userdel", "--force", name)


def _change_users(*command: str) -> None:
    """Run useradd or userdel, and retry while another program has /etc/passwd locked.

    Raises:
        ClusterError: it failed for another reason, or the lock stayed for 20 s.
    """

    def changed() -> bool:
        # Never interrupted: if it is killed half-way, it leaves the lock or an unrecorded user.
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={"PATH": SYSTEM_PATH},
            start_new_session=True,
        ) as process:
            assert process.stderr is not None
            said = process.stderr.read()
        # useradd(8): 1 can't update the password file, 10 the group file; userdel(8) has the same.
        if process.returncode not in (0, 1, 10):
            raise ClusterError(f"{shlex.join(command)}: exit status {process.returncode}\n{said}".rstrip())
        return process.returncode == 0

    try:
        wait_for(changed, shlex.join(command), DAEMON_DEADLINE_S)
    except DeadlineError as error:
        raise ClusterError(str(error)) from error


def _parse_job(line: str) -> JobInfo:
    """Read a line of `scontrol show job --oneliner`: `Name=value` pairs, whose values may contain spaces."""
    pairs = re.findall(r"(?:^|\s)([A-Z][\w/:]*)=(.*?)(?=\s+[A-Z][\w/:]*=|\s*$)", line)
    fields = dict(pairs)
    return JobInfo(
        job_id=int(fields["JobId"]),
        state=fields["JobState"],
        reason=fields["Reason"],
        exit_code=fields["ExitCode"],
        nodes=fields.get("NodeList", ""),
        restarts=int(fields.get("Restarts", "0")),
        fields=fields,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """List or stop the clusters that were left up.

    Returns:
        The exit status: 0, or 1 if the given folder is not a cluster's.
    """
    parser = argparse.ArgumentParser(prog="slurm.cluster", description="Clusters that were left up.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="print their folders")
    stop = commands.add_parser("stop", help="end their processes, remove their users and folders")
    stop.add_argument("folder", nargs="?", type=Path, help="which one; by default all that were left up")
    chosen = parser.parse_args(arguments)

    folders = [chosen.folder] if getattr(chosen, "folder", None) else left_up()
    if chosen.command == "list":
        print("\n".join(map(str, folders)) or "no cluster was left up")
        return 0
    for folder in folders:
        if not (folder / OWNER).is_file():
            print(f"error: {folder} is not the folder of a throwaway cluster", file=sys.stderr)
            return 1
        stop_left_up(folder)
        print(f"stopped and removed {folder}")
    if not folders:
        print("no cluster was left up")
    return 0


if __name__ == "__main__":
    sys.exit(main())
