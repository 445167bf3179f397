"""A site on machines that boot: Slurm's daemons, munge and our timers are units, and Slurm has control groups."""

import json
import re
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from booted import starter
from booted.container import NEEDED, Container, is_memory_on_v1
from booted.debian import USER, USER_UID, Content, Debian
from booted.network import ADDRESS, SERVICE_NAME, Authority, Network, Service
from setup import roots
from setup.environment import CACHE, CHECKOUT, install_debian_packages
from slurm.cluster import IDLE, STEP_WAITS, TERMINAL_STATES, Cluster, ClusterError, ClusterOptions, sweep
from slurm.emulator import Emulator
from slurm.polling import wait_for

SUITE = "trixie"
QPU = "ibm_demo"
# This one is a license: without job_submit.lua here, jobs do not ask for it.
LICENSED = "ibm_second"
STATE_DIR = "/var/spool/qrmi-slurm"
OPT = "/opt/qrmi-slurm"
# slurmctld writes its state for slurm's user, as Debian's unit starts it.
SLURM_CONF = """\
ClusterName=booted
SlurmctldHost={controller}
SlurmUser=slurm
AuthType=auth/munge
CredType=cred/munge
StateSaveLocation=/var/lib/slurm/slurmctld
SlurmdSpoolDir=/var/lib/slurm/slurmd
SlurmctldPidFile=/run/slurmctld.pid
SlurmdPidFile=/run/slurmd.pid
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/cgroup
TaskPlugin=task/cgroup
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=50
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0,sched_interval=2,bf_interval=1
KillWait=2
CompleteWait=0
MinJobAge=3600
{settings}
Prolog={opt}/bin/qrmi-slurm-prolog
TaskProlog={opt}/bin/qrmi-slurm-task-prolog
Epilog={opt}/bin/qrmi-slurm-epilog
PrologFlags=Alloc
Licenses=qpu_{qpu}:1
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=60 State=UP
"""
CGROUP_CONF = "ConstrainRAMSpace=yes\nConstrainSwapSpace=yes\nAllowedSwapSpace=0\n"
PREPARE = (
    f"useradd --create-home --uid {USER_UID} --shell /bin/bash {USER}",
    "chown slurm: /etc/slurm",
    "chmod 0600 /etc/slurm/qrmi_config.json",
    "update-ca-certificates >/dev/null 2>&1",
    "chown munge: /etc/munge/munge.key",
    "mkdir -p /etc/systemd/system",
    "install -m 0644 /units/* /etc/systemd/system/",
    # There is no package index to ask.
    "SYSTEMD_OFFLINE=1 systemctl --quiet mask apt-daily.timer apt-daily-upgrade.timer",
)
MASK_CONTROLLER = "SYSTEMD_OFFLINE=1 systemctl --quiet mask slurmctld"
SLURMD_PORT = 6818
TIMERS = tuple(f"qrmi-slurm-{name}.timer" for name in ("recover", "sensor", "qpus"))


class BootedSite:
    """A controller and nodes that boot, and an emulated service behind HTTPS; `with BootedSite() as site:`.

    Args:
        nodes: how many. The first is `node`, and the controller as well.
    """

    def __init__(self, nodes: int = 1) -> None:
        self._nodes = [f"n{number}" for number in range(1, nodes + 1)]
        self.cluster = Cluster(ClusterOptions(users=0))
        self.emulator = Emulator(self.cluster, dict.fromkeys((QPU, LICENSED), "FakeSherbrooke"))
        self.url = ""
        self.controller: Debian
        self.node: Debian
        self._machines: list[Container] = []

    def __enter__(self) -> Self:
        """Start the site."""
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the site and remove what it has created."""
        self.stop()

    def stop(self) -> None:
        """End every process, remove control groups and folders."""
        for machine in self._machines:
            machine.stop()
        self.cluster.stop()

    def _start(self) -> None:
        sweep()
        install_debian_packages(NEEDED)
        root = roots.made(SUITE)
        suite = suite_in(root)
        self.cluster.make()
        network = Network(self.cluster)
        authority = Authority(self.cluster.folder / "authority")
        self.emulator.start()
        self.emulator.wait_ready()
        self.url = Service(self.emulator.url, network, authority).url
        self._make_machines(root, suite, network, authority)

    def _make_machines(self, root: Path, suite: Path, network: Network, authority: Authority) -> None:
        """Make and boot the machines, each in a container."""
        v1 = f"CgroupPlugin=cgroup/v1\nCgroupMountpoint={starter.V1_INSIDE}\n" if is_memory_on_v1() else ""
        files = {
            **self.files(suite, authority, controller="n1"),
            "/etc/hosts": f"127.0.0.1 localhost\n{ADDRESS} {' '.join(self._nodes)} {SERVICE_NAME}\n",
            "/etc/slurm/cgroup.conf": f"{v1}{CGROUP_CONF}",
        }
        for name in self._nodes:
            others = [] if name == "n1" else [MASK_CONTROLLER]
            content = Content(
                {**files, "/etc/hostname": f"{name}\n"}, SECRET, (*prepare(suite), *others, enable(*TIMERS))
            )
            self._machines.append(Container(name, self.cluster, network, root, content, {roots.cache_of(root): CACHE}))
        self.controller = self.node = self._machines[0]
        for machine in self._machines:
            machine.start()
        for machine in self._machines:
            machine.wait_booted()
        self.wait_idle()

    def files(self, suite: Path, authority: Authority, *, controller: str, settings: str = "") -> dict[str, str]:
        """Return the files that every machine has."""
        plugin = suite / "lib" / "spank_qrmi.so"
        units = {f"/units/{path.name}": path.read_text() for path in (CHECKOUT / "systemd").iterdir()}
        return {
            **units,
            "/etc/slurm/slurm.conf": SLURM_CONF.format(
                controller=controller, nodes=self._node_lines(), opt=OPT, qpu=LICENSED, settings=settings
            ),
            "/etc/slurm/plugstack.conf": f"optional {plugin} /etc/slurm/qrmi_config.json\n",
            "/etc/slurm/qrmi_config.json": self._config(self.resource()),
            "/etc/munge/munge.key": self.cluster.token * 16,
            "/usr/local/share/ca-certificates/test.crt": authority.certificate.read_text(),
        }

    def _node_lines(self) -> str:
        """Return the lines of slurm.conf about the nodes, which may share an address."""
        return "\n".join(
            f"NodeName={name} CPUs=8 RealMemory=1000 State=UNKNOWN Port={SLURMD_PORT + index}"
            for index, name in enumerate(self._nodes)
        )

    def _config(self, resource: dict[str, Any]) -> str:
        return json.dumps({"resources": [resource, self.resource(LICENSED)]})

    def resource(self, name: str = QPU, **slurm: object) -> dict[str, Any]:
        """Return a QPU's entry of qrmi_config.json, as the machines see the service.

        Args:
            name: the QPU.
            slurm: our own section.
        """
        text = json.dumps(self.emulator.resource(name)).replace(self.emulator.url, self.url)
        return {**json.loads(text), "slurm": slurm}

    def config(self, **slurm: object) -> None:
        """Write qrmi_config.json; see `resource`."""
        self.node.write("/etc/slurm/qrmi_config.json", self._config(self.resource(QPU, **slurm)), mode="0600")

    def reset(self) -> None:
        """Return to the initial state: no jobs, no records, no faults, the QPU online and reached directly."""
        self.emulator.clear_faults()
        self.emulator.control("POST", f"backends/{QPU}", {"status": "online"})
        self.config()
        self.controller.out("scancel", f"--user={USER}")
        self.wait_idle()
        self.node.out("qrmi-slurm", "recover", "--now")

    # --- jobs ---------------------------------------------------------------------------------------

    def sbatch(self, script: str, *options: str, **env: str) -> int:
        """Submit a batch job as the user, with these variables too, and return its id."""
        words = ["env", *(f"{name}={value}" for name, value in env.items()), "sbatch", "--parsable", *options]
        return int(self.controller.out(*words, user=USER, stdin=script).strip())

    def job(self, job_id: int) -> dict[str, str]:
        """Return what `scontrol show job` says."""
        shown = self.controller.out("scontrol", "show", "job", "--oneliner", str(job_id))
        return dict(re.findall(r"(?:^|\s)([A-Z][\w/:]*)=(\S*)", shown))

    def wait_job(self, job_id: int, states: frozenset[str] = TERMINAL_STATES, deadline_s: float = 60.0) -> str:
        """Wait until a job is in one of the states, and return it."""

        def state() -> str | None:
            found = self.job(job_id)["JobState"]
            return found if found in states else None

        def last_words() -> str:
            return f"{self.job(job_id)}\n{self.journal('slurmd')}"

        return wait_for(state, f"job {job_id} in {sorted(states)}", deadline_s * self.slowness, on_timeout=last_words)

    def output(self, job_id: int) -> str:
        """Return a batch job's output so far, as `Cluster.job_output` does."""
        done = self.node.run("cat", f"/home/{USER}/slurm-{job_id}.out")
        return STEP_WAITS.sub("", done.stdout)

    def wait_output(self, job_id: int, text: str) -> None:
        """Wait until a job has printed something."""

        def printed() -> bool:
            is_over = self.job(job_id)["JobState"] in TERMINAL_STATES
            if text in self.output(job_id):
                return True
            assert not is_over, last_words()
            return False

        def last_words() -> str:
            return f"{self.job(job_id)}\n{self.output(job_id)}\n{self.journal('slurmd')}"

        wait_for(printed, f"{text} from job {job_id}", 60 * self.slowness, on_timeout=last_words)

    def wait_idle(self) -> None:
        """Wait until the nodes are idle, and every Epilog has ended."""

        def idle() -> bool:
            states = self.controller.run("sinfo", "--noheader", "--format=%T").stdout.split()
            return bool(states) and set(states) <= IDLE

        def last_words() -> str:
            return f"{self.controller.run('sinfo', '-R').stdout}\n{self.journal('slurmd')}"

        wait_for(idle, "the node to be idle", 60 * self.slowness, on_timeout=last_words)

    @property
    def slowness(self) -> float:
        """How much longer than on this machine everything takes."""
        return self.node.slowness

    def journal(self, unit: str) -> str:
        """Return the last lines of a unit's journal on the node."""
        return self.node.run("journalctl", "--no-pager", "--lines=30", f"--unit={unit}").stdout

    def folder_of(self, job_id: int) -> str:
        """Return the path of a job's folder in the state directory."""
        return f"{STATE_DIR}/booted/{job_id}"

    def record_of(self, job_id: int) -> dict[str, Any]:
        """Return a job's record."""
        record: dict[str, Any] = json.loads(self.node.out("cat", f"{self.folder_of(job_id)}/record.json"))
        return record


SECRET = frozenset({"/etc/slurm/qrmi_config.json", "/etc/munge/munge.key"})


def prepare(suite: Path) -> tuple[str, ...]:
    """Return the commands that set up a machine before its first boot."""
    return (*PREPARE, f"ln -sfn {suite} {OPT}", f"ln -sfn {OPT}/bin/qrmi-slurm /usr/local/bin/qrmi-slurm")


def enable(*units: str) -> str:
    """Return the command that enables units before the first boot."""
    return f"SYSTEMD_OFFLINE=1 systemctl --quiet enable {' '.join(units)}"


def suite_in(root: Path) -> Path:
    """Return the folder of the suite for a root's Python and Slurm, made in that root if needed.

    Raises:
        ClusterError: it cannot be made.
    """
    words = roots.entering(root, ["/usr/bin/python3", CHECKOUT / "tests" / "setup" / "environment.py"])
    words[0] = "/usr/bin/python3"
    done = subprocess.run(words, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    if done.returncode != 0:
        raise ClusterError(f"the suite cannot be made in {root}; the reason is above")
    return Path(done.stdout.splitlines()[-1])
