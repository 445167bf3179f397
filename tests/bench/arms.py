"""The arms of a benchmark: clusters that run side by side and differ only in their hooks and plugin.

Each has its own slurmctld and slurmd on the same machine. They are measured in turn, so that the values of one round
can be compared. A single cluster with a changing slurm.conf would need `scontrol reconfigure` between measurements,
which disturbs them.
"""

import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from bench.figures import BY_PLUGIN, EMPTY, FLOOR, NO_HOLD, NONE, OURS
from qrmi_slurm.slurm import plugstack, prolog_flags
from qrmi_slurm.slurm.plugstack import DEFAULT_ACQUIRE_TIMEOUT_S
from slurm.cluster import Cluster, ClusterOptions, Hooks
from slurm.site import BIN, Site, SiteOptions

QPUS = tuple(f"qpu{number}" for number in range(1, 65))

# What sites have: `Alloc` runs Prolog before the first step, Contain adds a step for processes from elsewhere.
FLAGS = ("", "Alloc", "Alloc,Contain", "Alloc,NoHold")

# One node runs 256 tasks, however many CPUs the machine has.
_CPUS = 256

# As printed by slurm-conf for steps that wait for Prolog.
_START_TIMEOUT_S = str(prolog_flags.start_timeout_s(DEFAULT_ACQUIRE_TIMEOUT_S))

# Whether the plugin can run TaskProlog itself, once per step, instead of Slurm for each task.
CAN_RUN_TASK_PROLOG = "task_prolog" in plugstack.SiteOptions._fields

# A SPANK plugin that does nothing.
_IDLE_PLUGIN = """
#include <slurm/spank.h>
SPANK_PLUGIN(idle, 1)
int slurm_spank_init(spank_t spank, int count, char *arguments[]) { return ESPANK_SUCCESS; }
"""


@dataclass(frozen=True, slots=True)
class Arm:
    """One cluster.

    Args:
        name: what differs in it.
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
    """All arms, and the site whose emulator they share.

    Args:
        site: with our hooks as slurm.conf names them.
        arms: all of them.
        plugins: other SPANK plugins, for clusters that a section starts itself.
    """

    site: Site
    arms: tuple[Arm, ...]
    plugins: tuple[str, ...] = ()

    @property
    def ours(self) -> Arm:
        """The arm with our hooks."""
        return next(arm for arm in self.arms if arm.name == OURS)

    @property
    def best(self) -> str:
        """The name of the arm that targets are for: ours, with TaskProlog run by the plugin where it can."""
        return BY_PLUGIN if CAN_RUN_TASK_PROLOG else OURS

    @property
    def with_qpus(self) -> tuple[Arm, ...]:
        """The arms that know `--qpu`, each in one way only."""
        return tuple(arm for arm in self.arms if arm.has_qpus and arm.name not in (NO_HOLD, BY_PLUGIN))

    @property
    def all_but_no_hold(self) -> tuple[Arm, ...]:
        """All arms whose batch jobs and their steps can differ: NoHold affects only direct steps."""
        return tuple(arm for arm in self.arms if arm.name != NO_HOLD)

    @property
    def streamed(self) -> tuple[Arm, ...]:
        """The arms for a stream of jobs."""
        return tuple(arm for arm in self.arms if arm.name in (NONE, FLOOR, OURS, EMPTY))


@contextmanager
def started(plugins: Sequence[str]) -> Iterator[Bench]:
    """Start the arms of all sections but the flags'.

    Args:
        plugins: `PATH` or `PATH,ARGUMENT,...`, in which `{config}` is replaced by the path of qrmi_config.json.
    """
    options = ClusterOptions(nodes=1, cpus_per_node=_CPUS, requeue_after_s=3600)
    # A site without a Prolog has no PrologFlags either.
    without_prolog = replace(options, settings={"PrologFlags": ""})
    with ExitStack() as stack:
        ours = SiteOptions(cluster=options, backends=dict.fromkeys(QPUS, "FakeSherbrooke"), hooks_log=False)
        site = stack.enter_context(Site(ours))
        arms = [
            Arm(NONE, stack.enter_context(Cluster(without_prolog)), has_qpus=False),
            Arm(FLOOR, stack.enter_context(_floor(options)), has_qpus=False),
            Arm(OURS, site.cluster, has_qpus=True),
        ]
        if CAN_RUN_TASK_PROLOG:
            arms.append(Arm(BY_PLUGIN, stack.enter_context(_ours(site, options, by_plugin=True)), has_qpus=True))
        no_hold = replace(options, settings=_settings("Alloc,NoHold"))
        arms.append(Arm(NO_HOLD, stack.enter_context(_ours(site, no_hold)), has_qpus=True))
        # Slurm's own cost for any TaskProlog: for each, it forks slurmstepd and then sleeps 10 ms
        # (_run_script_and_set_env() in slurmstepd/task.c).
        hooks = Hooks("/bin/true", "/bin/true", "/bin/true")
        arms.append(Arm(EMPTY, stack.enter_context(Cluster(replace(options, hooks=hooks))), has_qpus=False))
        arms += [_other(stack, plugin, site, without_prolog) for plugin in plugins]
        yield Bench(site, tuple(arms), tuple(plugins))


@contextmanager
def with_flags(bench: Bench, flags: str) -> Iterator[tuple[Arm, ...]]:
    """Start clusters with the same PrologFlags: the floor, ours in both ways, and each other plugin."""
    options = ClusterOptions(nodes=1, cpus_per_node=_CPUS, requeue_after_s=3600, settings=_settings(flags))
    with ExitStack() as stack:
        arms = [
            Arm(FLOOR, stack.enter_context(_floor(options)), has_qpus=False),
            Arm(OURS, stack.enter_context(_ours(bench.site, options)), has_qpus=True),
        ]
        if CAN_RUN_TASK_PROLOG:
            arms.append(Arm(BY_PLUGIN, stack.enter_context(_ours(bench.site, options, by_plugin=True)), has_qpus=True))
        yield (*arms, *(_other(stack, plugin, bench.site, options) for plugin in bench.plugins))


def _settings(flags: str) -> Mapping[str, str]:
    return {"PrologFlags": flags, "BatchStartTimeout": _START_TIMEOUT_S}


@contextmanager
def _floor(options: ClusterOptions) -> Iterator[Cluster]:
    """Start what no plugin and no hooks can cost less than: a plugin that does nothing, and /bin/true around the job.

    With PrologFlags=Alloc and no Prolog, slurmd 22.05 may wait for a notice that has already arrived: half a second per
    job, and now and then a drained node.
    """
    cluster = Cluster(replace(options, hooks=Hooks(prolog="/bin/true", epilog="/bin/true")))
    plugin = cluster.etc / "spank_idle.so"
    cluster.options = replace(cluster.options, plugstack=(f"optional {plugin}",))
    cluster.make()
    try:
        command = ["cc", "-shared", "-fPIC", "-O2", "-xc", "-", "-o", str(plugin)]
        subprocess.run(command, input=_IDLE_PLUGIN, text=True, check=True)
    except BaseException:
        cluster.stop()
        raise
    with cluster:
        yield cluster


@contextmanager
def _ours(site: Site, options: ClusterOptions, *, by_plugin: bool = False) -> Iterator[Cluster]:
    """Start a cluster with our hooks and plugin, whose QPUs are those of a site."""
    cluster = Cluster(options)
    state_dir = cluster.folder / "qrmi-state"
    words = ["optional", site.plugstack_line().split()[1], str(site.config_path), f"--state-dir={state_dir}"]
    hooks = Hooks(*(BIN / f"qrmi-slurm-{hook}" for hook in ("prolog", "task-prolog", "epilog")))
    if by_plugin:
        words.append(f"--task-prolog={hooks.task_prolog}")
        hooks = replace(hooks, task_prolog=None)
    cluster.options = replace(options, hooks=hooks, plugstack=(" ".join(words),), path=(BIN,))
    with cluster:
        yield cluster


def _other(stack: ExitStack, plugin: str, site: Site, options: ClusterOptions) -> Arm:
    path, *arguments = plugin.replace("{config}", str(site.config_path)).split(",")
    other = Cluster(replace(options, plugstack=(" ".join(["optional", path, *arguments]),)))
    return Arm(re.sub(r"[^\w.-]", "_", Path(path).stem), stack.enter_context(other), has_qpus=True)
