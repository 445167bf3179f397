"""The context: what Slurm tells a hook about the job, in the environment that slurmd sets."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from qrmi_slurm import names
from qrmi_slurm.errors import ContextError
from qrmi_slurm.secret import masked_repr
from qrmi_slurm.slurm import conf_file

# A cluster's name becomes a folder. Slurm allows more characters, but not by default.
_NAME_CHARS: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")
_MAX_NAME_CHARS: Final = 255
_MAX_EPOCH_DIGITS: Final = 12

_DIGITS: Final = "0123456789"

# What Slurm calls a user whom neither the job's credential nor the node names (uid_to_string() in src/common/uid.c).
_UNKNOWN_USER: Final = "nobody"

# How long a job without a time limit lasts according to its end time (slurmctld: 365 * 24 * 60 * 60). A limit of a year
# counts as none.
ENDLESS_S: Final = 365 * 24 * 3600
_DEFAULT_CLUSTER: Final = "cluster"


class JobContext(NamedTuple):
    """What Prolog and Epilog know about the job.

    Args:
        job_id: Slurm's id; each array task and each component of a heterogeneous job has its own.
        uid: user id of the job's owner.
        cluster: the cluster's name.
        node: this node, as Slurm calls it.
        first_node: the first node of the allocation, which acquires the QPUs.
        restart_count: how often the job was requeued.
        time_limit_s: end time minus start time, in seconds; ENDLESS_S where there is no limit. None if
            unknown (Slurm 22.05).
        selection_text: the value of `--qpu`, as the user wrote it.
        user_environment: the user's own variables that the stub passed on, without Slurm's prefix; not shown in a repr.
        slurm_conf: Slurm's configuration file.
        account: the job's Slurm account; None if it has none.
        partition: its partition; None if unknown.
        qos: its quality of service; None if unknown (Slurm before 26.05).
        licenses_text: its licenses; None if unknown (Slurm 22.05).
        user: login name of the job's owner, by Slurm; empty if unknown.
        gid: group id that the job runs with; None if unknown.
        het_job_id: the id of the heterogeneous job that this job is a component of; None if it is not one.
        start_s: when it started, by slurmctld's clock, in seconds since the epoch; None if unknown (Slurm 22.05).
        node_count: how many nodes it has.
        work_dir: its working directory, the user's text; None if unknown.
        is_leaving: in Epilog: whether the job goes on without this node. Slurm lists only the nodes that are taken from
            the job then, and still counts all of them (22.05 to 26.05).
    """

    job_id: int
    uid: int
    cluster: str
    node: str
    first_node: str
    restart_count: int
    time_limit_s: int | None
    selection_text: str
    user_environment: Mapping[str, str]
    slurm_conf: Path
    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    licenses_text: str | None = None
    user: str = ""
    het_job_id: int | None = None
    start_s: int | None = None
    node_count: int = 1
    is_leaving: bool = False
    gid: int | None = None
    work_dir: str | None = None

    def __repr__(self) -> str:
        return masked_repr(self, "user_environment")

    @property
    def is_first_node(self) -> bool:
        """Whether this node acquires the job's QPUs."""
        return self.node == self.first_node


class TaskContext(NamedTuple):
    """What TaskProlog knows about the task that it runs for.

    Args:
        job_id: Slurm's id of the job; a component of a heterogeneous job has its own.
        uid: user id that the task runs as.
        cluster: the cluster's name.
        node: this node, as Slurm calls it.
        restart_count: how often the job was requeued; None if unknown (Slurm before 26.05).
        start_s: when the job started, by slurmctld's clock, in seconds since the epoch; None if unknown (Slurm 22.05).
            From 23.02 on, slurmstepd sets it over what the user's environment has.
        task_rank: rank of the task in its step; 0 for a batch script.
        is_untold: whether its environment does not tell if the job has QPUs: the step was attached from elsewhere, or
            runs in a later component of a heterogeneous job.
        job_selection_text: the value of the job's `--qpu`; None if it has none or it is unknown.
        step_selection_text: the value of the step's `--qpu`; None if it has none.
        inherited_job_id: the job whose QPU environment the task has inherited; None if it has inherited none.
        srun_debug: srun's verbosity: 2 quiet, 3 default, 4 verbose, 5 and more for `-vv`.
        rust_log: the task's RUST_LOG; None if it is not set.
        slurm_conf: Slurm's configuration file.
        time_limit_s: how long TaskProlog may take, in seconds; None if only Slurm limits it.
    """

    job_id: int
    uid: int
    cluster: str
    node: str
    restart_count: int | None
    start_s: int | None
    task_rank: int
    is_untold: bool
    job_selection_text: str | None
    step_selection_text: str | None
    inherited_job_id: str | None
    srun_debug: int
    rust_log: str | None
    slurm_conf: Path
    time_limit_s: int | None = None


def of_job(environment: Mapping[str, str]) -> JobContext:
    """Return the job's context from the environment of Prolog or Epilog.

    Args:
        environment: what slurmd set; all `SPANK_*` values are the user's text.

    Raises:
        ContextError: the job, its owner or the node is missing.
    """
    node = environment.get(names.SLURMD_NODENAME, "")
    if not node:
        raise ContextError(f"{names.SLURMD_NODENAME} is not set", "Slurm sets it in Prolog and Epilog")
    node_list = environment.get(names.SLURM_JOB_NODELIST) or environment.get(names.SLURM_NODELIST) or node
    node_count = _number(environment, names.SLURM_JOB_NUM_NODES, default=1)
    return JobContext(
        job_id=_number(environment, names.SLURM_JOB_ID),
        uid=_number(environment, names.SLURM_JOB_UID),
        cluster=_cluster(environment),
        node=node,
        first_node=first_host(node_list),
        restart_count=_number(environment, names.SLURM_JOB_RESTART_COUNT, default=0),
        time_limit_s=_time_limit_s(environment),
        selection_text=environment.get(names.SPANK_QRMI_QPU, ""),
        user_environment={
            key.removeprefix(names.SPANK_PREFIX): value
            for key, value in environment.items()
            if key.startswith(names.SPANK_PREFIX) and key != names.SPANK_QRMI_QPU
        },
        slurm_conf=_slurm_conf(environment),
        account=environment.get(names.SLURM_JOB_ACCOUNT),
        partition=environment.get(names.SLURM_JOB_PARTITION),
        qos=environment.get(names.SLURM_JOB_QOS),
        # Slurm does not set it for a job without licenses; a start time shows that this is 23.02 or newer.
        licenses_text=environment.get(names.SLURM_JOB_LICENSES)
        or ("" if names.SLURM_JOB_START_TIME in environment else None),
        user=_user(environment),
        het_job_id=_number(environment, names.SLURM_HET_JOB_ID, default=0) or None,
        start_s=_epoch_s(environment, names.SLURM_JOB_START_TIME),
        node_count=node_count,
        is_leaving=_is_leaving(node_list, node_count),
        gid=_number(environment, names.SLURM_JOB_GID) if names.SLURM_JOB_GID in environment else None,
        work_dir=environment.get(names.SLURM_JOB_WORK_DIR),
    )


def of_task(environment: Mapping[str, str], uid: int) -> TaskContext:
    """Return the task's context from its environment.

    Args:
        environment: the task's; users may have changed everything that slurmstepd does not set.
        uid: the user id that the task runs as.

    Raises:
        ContextError: the job's id is missing.
    """
    is_untold = names.QRMI_SLURM_JOB_ID in environment
    return TaskContext(
        # In a later component SLURM_JOB_ID is that of the first (slurmstepd/task.c, het_job_id).
        job_id=_number(environment, names.QRMI_SLURM_JOB_ID if is_untold else names.SLURM_JOB_ID),
        uid=uid,
        cluster=_cluster(environment),
        node=environment.get(names.SLURMD_NODENAME, ""),
        restart_count=_restart_count(environment),
        start_s=_epoch_s(environment, names.SLURM_JOB_START_TIME),
        task_rank=_number(environment, names.SLURM_PROCID, default=0),
        is_untold=is_untold,
        job_selection_text=None if is_untold else environment.get(names.SLURM_SPANK_QRMI_QPU),
        step_selection_text=environment.get(names.QRMI_SLURM_QPU),
        inherited_job_id=environment.get(names.QRMI_JOB_ID),
        srun_debug=_number(environment, names.SRUN_DEBUG, default=3),
        rust_log=environment.get(names.RUST_LOG),
        slurm_conf=_slurm_conf(environment),
        time_limit_s=_number(environment, names.QRMI_SLURM_TIME_LIMIT, default=0) or None,
    )


def first_host(node_list: str) -> str:
    """Return the first host of a Slurm node list: `n[001-003,7]` gives `n001`, `r[1-2]n[1-4]` gives `r1n1`.

    Args:
        node_list: Slurm's hostlist expression; zero padding is part of a host's name.

    Raises:
        ContextError: a bracket is not closed, or does not contain a number.
    """
    first = []
    rest = node_list.strip()
    while rest and rest[0] != ",":
        end = min((at for at in map(rest.find, "[],") if at >= 0), default=len(rest))
        first.append(rest[:end])
        rest = rest[end:]
        if rest.startswith("["):
            inside, bracket, rest = rest[1:].partition("]")
            number = inside[: len(inside) - len(inside.lstrip(_DIGITS))]
            if not bracket or not number:
                raise ContextError(f"cannot read Slurm's node list {node_list[:200]!r}")
            first.append(number)
        elif rest.startswith("]"):
            raise ContextError(f"cannot read Slurm's node list {node_list[:200]!r}")
    host = "".join(first)
    if not host:
        raise ContextError("Slurm's node list is empty")
    return host


def _is_leaving(node_list: str, node_count: int) -> bool:
    try:
        return node_count > 1 and host_count(node_list) < node_count
    except ContextError:  # of several dimensions, as on a torus: the job counts as ended
        return False


def host_count(node_list: str) -> int:
    """Return how many hosts a Slurm node list has: 4 for `n[001-003,7]`.

    Args:
        node_list: Slurm's hostlist expression.

    Raises:
        ContextError: a bracket is not closed, or has something else than numbers in it.
    """
    total, hosts = 0, 1
    rest = node_list.strip() + ","
    while rest:
        end = min(at for at in (rest.find("["), rest.find(",")) if at >= 0)
        mark, rest = rest[end], rest[end + 1 :]
        if mark == ",":
            total, hosts = total + hosts, 1
            continue
        inside, bracket, rest = rest.partition("]")
        pairs = [part.partition("-")[::2] for part in inside.split(",")]
        if not bracket or not all(_is_range(*pair) for pair in pairs):
            raise ContextError(f"cannot read Slurm's node list {node_list[:200]!r}")
        hosts *= sum(int(last or first) - int(first) + 1 for first, last in pairs)
    return total


def _is_range(first: str, last: str) -> bool:
    numbers = (first, last or first)
    return all(text.isascii() and text.isdecimal() and len(text) <= 10 for text in numbers)


def _user(environment: Mapping[str, str]) -> str:
    name = environment.get(names.SLURM_JOB_USER, "")
    return "" if name == _UNKNOWN_USER else name


def _restart_count(environment: Mapping[str, str]) -> int | None:
    if names.SLURM_JOB_RESTART_COUNT not in environment:
        return None
    return _number(environment, names.SLURM_JOB_RESTART_COUNT, default=0)


def _cluster(environment: Mapping[str, str]) -> str:
    name = environment.get(names.SLURM_CLUSTER_NAME)
    if name is None:  # Slurm folds the name that it sets
        name = (conf_file.cluster_name(_slurm_conf(environment)) or _DEFAULT_CLUSTER).lower()
    if not name or name[0] in ".-" or len(name) > _MAX_NAME_CHARS or not _NAME_CHARS.issuperset(name):
        raise ContextError(f"{names.SLURM_CLUSTER_NAME} cannot be used as a folder name")
    return name


def _slurm_conf(environment: Mapping[str, str]) -> Path:
    return Path(environment.get(names.SLURM_CONF) or conf_file.DEFAULT_SLURM_CONF)


def _time_limit_s(environment: Mapping[str, str]) -> int | None:
    start_s = _epoch_s(environment, names.SLURM_JOB_START_TIME)
    end_s = _epoch_s(environment, names.SLURM_JOB_END_TIME)
    if start_s is None or end_s is None:
        return None
    seconds = end_s - start_s
    return seconds if seconds > 0 else None


def _epoch_s(environment: Mapping[str, str], name: str) -> int | None:
    """Return a moment in seconds since the epoch; None where Slurm did not say, or has none (0)."""
    text = environment.get(name, "")
    is_number = text.isascii() and text.isdecimal() and len(text) <= _MAX_EPOCH_DIGITS
    return int(text) or None if is_number else None


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name, "")
    if text.isascii() and text.isdecimal() and len(text) <= 10:
        return int(text)
    if default is None:
        raise ContextError(f"{name} is not set to a number", "Slurm sets it in every hook")
    return default
