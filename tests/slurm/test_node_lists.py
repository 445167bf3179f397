"""The first host we read from a node list is the one Slurm itself expands it to."""

import pytest

from qrmi_slurm.slurm import job_context
from slurm.site import Site

# Slurm 22.05 cannot expand a list with text after its last bracket.
NODE_LISTS = (
    "n1",
    "n[1-3]",
    "n[001-003,7]",
    "n[7,1-3]",
    "n[08-11]",
    "r[1-2]n[1-4]",
    "r[01-02]c[3,5]n[1-4]",
    "gpu-a100-[1-2]",
    "login,n[1-2]",
    "n[1-2],login",
    "a,b,c[1-3]",
    "rack1-node[0001-1000]",
)


@pytest.mark.parametrize("node_list", NODE_LISTS)
def test_the_first_host_is_slurms(shared_site: Site, node_list: str) -> None:
    """Whatever its form, padding and suffixes."""
    expanded = shared_site.cluster.slurm("scontrol", "show", "hostnames", node_list).split()
    assert job_context.first_host(node_list) == expanded[0]
