"""The arms of a benchmark: clusters that run side by side and differ only in their hooks and plugin.

Each has its own slurmctld and slurmd on the same machine. They are measured in turn, so that the values of one round
can be compared. A single cluster with a changing slurm.conf would need `scontrol reconfigure` between measurements,
which disturbs them.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bench.figures import EMPTY, NO_HOLD
from qrmi_slurm.slurm import prolog_flags
from qrmi_slurm.slurm.plugstack import DEFAULT_ACQUIRE_TIMEOUT_S
from slurm.cluster import Cluster, ClusterOptions, Hooks
from slurm.site import Site, SiteOptions

OURS = "ours"
NONE = "none"
QPUS = tuple(f"qpu{number}" for number in range(1, 9))

# One node runs 256 tasks, however many CPUs the machine has.
_CPUS = 256

# As printed by slurm-conf for steps that wait for Prolog.
_START_TIMEOUT_S = str(prolog_flags.start_timeout_s(DEFAULT_ACQUIRE_TIMEOUT_S))


@dataclass(frozen=True, slots=True)
class Arm:
    """One cluster.

    Args:
        name: `none`, `ours`, or the other plugin's file name.
        cluster: started.
        has_qpus: whether it knows `--qpu`.
    """

    name: str
    cluster: Cluster
    has_qpus: bool

    def qpu_option(self, count: int = 1) -> list[str]:
        """Return `--qpu` with this many QPUs, or nothing if the arm has no such option."""
        return [f"--qpu={','.join(QPUS[:count])}"] if self.has_qpus and count else []


@dataclass(frozen=True, slots=True)
class Bench:
    """All arms, and the site whose emulator they share."""

    site: Site
    arms: tuple[Arm, ...]

    @property
    def ours(self) -> Arm:
        """The arm with our hooks."""
        return next(arm for arm in self.arms if arm.name == OURS)

    @property
    def compared(self) -> tuple[Arm, ...]:
        """All arms except those for jobs and steps only."""
        return tuple(arm for arm in self.arms if arm.name not in (EMPTY, NO_HOLD))

    @property
    def all_but_no_hold(self) -> tuple[Arm, ...]:
        """All arms whose batch jobs and their steps can differ: NoHold affects only direct steps."""
        return tuple(arm for arm in self.arms if arm.name != NO_HOLD)

    @property
    def with_qpus(self) -> tuple[Arm, ...]:
        """The arms that know `--qpu`."""
        return tuple(arm for arm in self.compared if arm.has_qpus)


@contextmanager
def started(plugins: Sequence[str]) -> Iterator[Bench]:
    """Start `none`, ours, ours with NoHold, one whose hooks are /bin/true, and one cluster for each other SPANK plugin.

    Args:
        plugins: `PATH` or `PATH,ARGUMENT,...`, in which `{config}` is replaced by the path of qrmi_config.json.
    """
    options = ClusterOptions(nodes=1, cpus_per_node=_CPUS, requeue_after_s=3600)
    # A site without a Prolog has no PrologFlags either. With Alloc but no Prolog, srun still waits 100 ms, and slurmd
    # 22.05 may wait for a notice that has already arrived: half a second per job, and now and then a drained node.
    without_prolog = replace(options, settings={"PrologFlags": ""})
    with ExitStack() as stack:
        ours = SiteOptions(cluster=options, backends=dict.fromkeys(QPUS, "FakeSherbrooke"), hooks_log=False)
        no_hold = replace(options, settings={"PrologFlags": "Alloc,NoHold", "BatchStartTimeout": _START_TIMEOUT_S})
        site = stack.enter_context(Site(ours))
        arms = [
            Arm(NONE, stack.enter_context(Cluster(without_prolog)), has_qpus=False),
            Arm(OURS, site.cluster, has_qpus=True),
            Arm(NO_HOLD, stack.enter_context(Site(replace(ours, cluster=no_hold))).cluster, has_qpus=True),
        ]
        # Slurm's own cost for any hooks: for each TaskProlog it forks slurmstepd and then sleeps 10 ms
        # (_run_script_and_set_env() in slurmstepd/task.c).
        hooks = Hooks("/bin/true", "/bin/true", "/bin/true")
        arms.append(Arm(EMPTY, stack.enter_context(Cluster(replace(options, hooks=hooks))), has_qpus=False))
        for plugin in plugins:
            path, *arguments = plugin.replace("{config}", str(site.config_path)).split(",")
            line = " ".join(["optional", path, *arguments])
            other = Cluster(replace(without_prolog, plugstack=(line,)))
            name = re.sub(r"[^\w.-]", "_", Path(path).stem)
            arms.append(Arm(name, stack.enter_context(other), has_qpus=True))
        yield Bench(site, tuple(arms))
