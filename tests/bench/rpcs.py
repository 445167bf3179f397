"""Remote procedure calls to slurmctld, as slurmctld itself counts them (sdiag)."""

import re
from collections.abc import Callable

from slurm.cluster import Cluster

# RPCs without any job, our own (sdiag, sinfo), and srun polling for the end of Prolog.
_NOT_OF_HOOKS = re.compile(r"NODE_REGISTRATION|PING|STATS_INFO|NODE_INFO|PARTITION_INFO|JOB_READY")


def calls_during(cluster: Cluster, run: Callable[[], object]) -> int:
    """Return how many RPCs slurmctld answered while `run` ran, without those unrelated to hooks."""
    cluster.wait_nodes_idle()
    before = rpcs(cluster)
    run()
    cluster.wait_nodes_idle()
    after = rpcs(cluster)
    return sum(count - before.get(name, 0) for name, count in after.items() if not _NOT_OF_HOOKS.search(name))


def rpcs(cluster: Cluster) -> dict[str, int]:
    """Return slurmctld's count of each RPC, from sdiag."""
    text = cluster.slurm("sdiag").partition("by message type")[2].partition("by user")[0]
    return {name: int(count) for name, count in re.findall(r"^\s*(\w+)\s+\(\s*\d+\)\s+count:(\d+)", text, re.MULTILINE)}
