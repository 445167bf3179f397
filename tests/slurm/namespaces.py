"""A node that differs from this machine: its slurmd runs in a mount namespace of its own."""

from collections.abc import Iterator
from contextlib import contextmanager

from slurm.polling import wait_for
from slurm.site import Site


@contextmanager
def node_with(site: Site, node: str, mounts: str) -> Iterator[None]:
    """Run a node's slurmd, and with it hooks and tasks, over some mounts until the block ends.

    Args:
        site: the site.
        node: the node's name.
        mounts: shell commands that mount something.
    """
    cluster = site.cluster
    cluster.kill_slurmd(node)
    command = f"set -e; {mounts}; exec slurmd -D -N {node}"
    cluster.start_daemon(node, ["unshare", "--mount", "--propagation", "private", "bash", "-c", command], {})
    try:
        shown = ("scontrol", "show", "slurmd")
        wait_for(lambda: cluster.try_slurm(*shown, SLURMD_NODENAME=node), f"slurmd on {node}", 20)
        cluster.wait_nodes_idle()
        yield
    finally:
        cluster.restart_slurmd(node)
