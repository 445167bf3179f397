"""`required` and `optional` on the plugin's line: no fault of the plugin drains a node with either of them.

Slurm ignores an error of an optional plugin. One of a required plugin in slurmstepd drains the node, one after another.
"""

import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from slurm.site import Site
from standins import services

OTHER_PLUGIN = Path(services.__file__).with_name("other_qpu_option.c")

# --qpu as slurmstepd finds it in a job's environment (spank_get_remote_options_env() in src/common/spank.c).
OPTION = "_SLURM_SPANK_OPTION_spank_qrmi_qpu"

# A batch step, and a step of srun's.
SCRIPT = "#!/bin/sh\nsrun echo the-step-ran\necho the-script-ran\n"


@dataclass(frozen=True)
class Fault:
    """What is wrong with a job, or with what its user passes to slurmstepd, and what the job does then.

    Args:
        qpu: of sbatch; empty for none.
        variables: the job's own, which slurmstepd looks into.
        refusal: why the job does not run; empty where it does.
    """

    qpu: str = ""
    variables: Mapping[str, str] = field(default_factory=dict)
    refusal: str = ""


PLAIN = Fault()
OF_USERS = (
    Fault(variables={OPTION: "a,,b"}),
    Fault(variables={OPTION: "x" * 5000}),
    Fault(variables={"SLURM_QRMI_HET_QPU": "x\n" * 20000}),
    Fault(qpu="nowhere", refusal="unknown QPU: nowhere"),
)

# The lines of plugstack.conf on the compute nodes, and what jobs do there; `{ours}` is the plugin's line.
FAULTS = {
    "another plugin has --qpu": (["optional {other}", "{ours}"], (PLAIN,)),
    "two lines load it": (["{ours}", "{ours}"], (PLAIN,)),
    "options that it does not know": ([f"{{ours}} --nonsense --state-dir=/{'x' * 5000}"], (PLAIN,)),
    "what users do": (["{ours}"], OF_USERS),
}


@pytest.fixture
def other_plugin(site: Site) -> Path:
    """Return a plugin that has an option --qpu of its own, which users can load."""
    made = site.cluster.etc / "other_qpu_option.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", made, OTHER_PLUGIN], check=True)
    return made


@pytest.fixture
def login_conf(site: Site) -> Path:
    """Return the slurm.conf of a login node, whose plugstack.conf has the plugin's line alone."""
    login = site.cluster.etc / "login"
    login.mkdir(exist_ok=True)
    (login / "plugstack.conf").write_text(f"{site.plugstack_line()}\n")
    text = site.cluster.slurm_conf.read_text()
    ours = re.sub("^PlugStackConfig=.*$", f"PlugStackConfig={login}/plugstack.conf", text, flags=re.MULTILINE)
    (login / "slurm.conf").write_text(ours)
    return login / "slurm.conf"


@pytest.mark.parametrize("keyword", ["required", pytest.param("optional", marks=pytest.mark.one_release)])
def test_no_fault_of_the_plugin_drains_a_node(site: Site, login_conf: Path, other_plugin: Path, keyword: str) -> None:
    """On the compute nodes something is wrong with it, or with what a user passes to it."""
    words = {"ours": site.plugstack_line(requirement=keyword), "other": str(other_plugin)}
    for name, (lines, faults) in FAULTS.items():
        site.plugstack(*(line.format(**words) for line in lines))
        jobs = {submit(site, login_conf, fault): fault for fault in faults}
        for job_id, fault in jobs.items():
            info = site.cluster.wait_job(job_id)
            output = site.cluster.job_output(job_id)
            assert not [node for node in site.cluster.nodes if site.cluster.node_reason(node)], name
            if fault.refusal:
                assert (info.state, fault.refusal in output) == ("FAILED", True), (name, output)
                continue
            ran = output.splitlines()[-2:]  # Slurm may say before that two plugins have the option
            assert (info.state, ran) == ("COMPLETED", ["the-step-ran", "the-script-ran"]), (name, output)
        site.cluster.wait_nodes_idle()


def submit(site: Site, login_conf: Path, fault: Fault) -> int:
    """Submit a job with a fault from the login node; return its id."""
    options = [f"--qpu={fault.qpu}"] if fault.qpu else []
    return site.cluster.sbatch(SCRIPT, *options, env={"SLURM_CONF": str(login_conf), **fault.variables})
