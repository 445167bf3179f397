"""A cluster with two slurmctlds on one machine: each has its own host name, and the address that belongs to it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from slurm.cluster import Cluster, ClusterOptions
from slurm.polling import wait_for

PRIMARY, BACKUP = "slurmctld", "slurmctld2"  # daemons, and their logs
HOSTS = {PRIMARY: ("ctl1", "127.0.0.1"), BACKUP: ("ctl2", "127.0.0.2")}

# The backup takes over when it has not heard of the primary for this long; a heartbeat is written four times as often.
TIMEOUT_S = 4
TAKEOVER_DEADLINE_S = 60.0

# slurmctld finds its SlurmctldHost by the machine's name, and with NoCtldInAddrAny listens at that name's address. It
# ends the process in its pid file when it starts, so each needs a folder of its own for that.
AS_HOST = """
set -e
echo {name} >/proc/sys/kernel/hostname
mount --bind {folder}/hosts /etc/hosts
mount -t tmpfs none {folder}/pid
exec {command}
"""


class TwoControllers(Cluster):
    """A cluster with a backup controller, which shares the primary's StateSaveLocation."""

    def __init__(self, options: ClusterOptions) -> None:
        name, address = HOSTS[PRIMARY]
        settings = {
            "SlurmctldHost": f"{name}({address})",
            "SlurmctldTimeout": str(TIMEOUT_S),
            "CommunicationParameters": "NoCtldInAddrAny",
            **options.settings,
        }
        name, address = HOSTS[BACKUP]
        lines = (*options.conf_lines, f"SlurmctldHost={name}({address})")
        super().__init__(replace(options, settings=settings, conf_lines=lines))
        pid_file = {"SlurmctldPidFile": f"{self.folder}/pid/slurmctld.pid"}
        self.options = replace(self.options, settings={**self.options.settings, **pid_file})

    def make(self) -> None:
        """Make the folder and the users, and the files that make two hosts of one machine."""
        super().make()
        (self.folder / "pid").mkdir(exist_ok=True)
        lines = [f"{address} {host}\n" for host, address in HOSTS.values()]
        (self.folder / "hosts").write_text("".join([*lines, "127.0.0.1 localhost\n"]))

    def start_daemon(self, name: str, command: Sequence[str | Path], env: Mapping[str, str]) -> int:
        """Start a daemon, a controller on its own host."""
        if name not in HOSTS:
            return super().start_daemon(name, command, env)
        script = AS_HOST.format(name=HOSTS[name][0], folder=self.folder, command=" ".join(map(str, command)))
        unshare = ["unshare", "--uts", "--mount", "--propagation", "private", "sh", "-c", script]
        return super().start_daemon(name, unshare, env)

    def start_slurmd(self, node: str) -> None:
        """Start a node's slurmd; before the first one, the backup controller, with a log of its own.

        It needs the heartbeat of a primary that has started (24.11).
        """
        if not self.is_alive(BACKUP):
            self.start_daemon(BACKUP, ["slurmctld", "-D", "-L", self.log(BACKUP)], {})
        super().start_slurmd(node)

    def save_state(self, job_id: int) -> None:
        """Make the primary save its state with a job as it is now; what came after is unknown to the backup.

        Slurm saves it 5 s after a change, and a job that backfill starts is not a change (slurmctld/state_save.c).
        """
        file = self.folder / "slurmctld" / "job_state"
        before_ns = file.stat().st_mtime_ns
        self.slurm("scontrol", "update", f"JobId={job_id}", "Comment=saved")
        wait_for(lambda: file.stat().st_mtime_ns > before_ns, "slurmctld to save its state", 20)

    def wait_takeover(self) -> None:
        """Wait until the backup has taken over, end a primary that hangs, and wait for the backup's first answer.

        As long as a hung primary's machine accepts connections, Slurm's commands wait for it.
        """

        def has_taken_over() -> bool:
            return "Running as primary controller" in self.log(BACKUP).read_text()

        def logs() -> str:
            return "\n".join(self.log_tail(name) for name in HOSTS)

        wait_for(has_taken_over, "the backup to take over", TAKEOVER_DEADLINE_S, on_timeout=logs)
        if self.is_alive(PRIMARY):
            self.kill_daemon(PRIMARY)
        answers = ["squeue", "--noheader"]
        wait_for(lambda: self.try_slurm(*answers) is not None, "an answer", TAKEOVER_DEADLINE_S, on_timeout=logs)
