"""What `qrmi-slurm slurm-conf` prints works verbatim: hooks, plugin, and a site's own TaskProlog beside ours."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slurm.jobs import PRINT_ENVIRONMENT, environment_of
from slurm.site import BIN, STUB, Site

# Its last line has no newline, as in a script that ends with printf.
OWN = """#!/bin/sh
[ -z "$FAIL_PLEASE" ] || { echo "print the site says no"; exit 3; }
echo "print the site says hello"
printf 'export SITE_SCRATCH=/scratch/%s' "$SLURM_JOB_ID"
"""


def parts(text: str) -> dict[str, str]:
    """Return the lines for each file without comments, by the path in the heading."""
    found = {}
    for block in re.split(r"^### ", text, flags=re.MULTILINE)[1:]:
        heading, _, content = block.partition("\n")
        found[heading] = re.sub(r"\A(# .*\n)*", "", content).rstrip("\n") + "\n"
    return found


def printed(site: Site, *words: str) -> dict[str, str]:
    """Return the parts that the command prints."""
    done = site.command("slurm-conf", *words)
    assert done.returncode == 0, done.stderr
    return parts(done.stdout)


@contextmanager
def task_prolog(site: Site, path: Path) -> Iterator[None]:
    """Give n1 another TaskProlog until the block ends."""
    conf = site.cluster.slurm_conf
    before = conf.read_text()
    try:
        _use(site, re.sub("^TaskProlog=.*$", f"TaskProlog={path}", before, flags=re.MULTILINE))
        yield
    finally:
        _use(site, before)


def _use(site: Site, conf: str) -> None:
    """Write slurm.conf; slurmctld reads it now, and so does n1, on which the jobs run."""
    site.cluster.slurm_conf.write_text(conf)
    site.cluster.slurm("scontrol", "reconfigure")
    site.cluster.restart_slurmd("n1")


def test_the_lines_match_this_installation(site: Site) -> None:
    """The paths are absolute, exist, and are those this site works with."""
    found = printed(site)
    assert found[f"{site.cluster.slurm_conf}: add"] == (
        f"Prolog={BIN}/qrmi-slurm-prolog\nEpilog={BIN}/qrmi-slurm-epilog\nPrologFlags=Alloc\n"
    )
    program = BIN / "qrmi-slurm-task-prolog"
    line = f"optional {STUB} {site.config_path} --task-prolog={program} --state-dir={site.state_dir}\n"
    assert found[f"{site.cluster.etc}/plugstack.conf: add"] == line
    units = {name: text for name, text in found.items() if name.startswith("/etc/systemd/system/")}
    assert len(units) == 6
    for text in units.values():
        for program in re.findall(r"^ExecStart=(\S+)", text, re.MULTILINE):
            assert Path(program) == BIN / "qrmi-slurm"
            assert f"\nEnvironment=SLURM_CONF={site.cluster.slurm_conf}\n" in text
        assert "/opt/qrmi-slurm" not in "".join(line for line in text.splitlines() if not line.startswith("#"))


def test_a_sites_own_task_prolog_still_runs(site: Site) -> None:
    """With the printed script both TaskPrologs run: every job gets the site's lines, and those with QPUs get ours."""
    own = site.cluster.etc / "task_prolog.sh"
    own.write_text(OWN)
    own.chmod(0o755)
    found = printed(site, "--existing-task-prolog", str(own))
    wrapper = site.cluster.etc / "task_prolog"
    assert f"TaskProlog={wrapper}\n" in found[f"{site.cluster.slurm_conf}: add"]
    wrapper.write_text(found[f"{wrapper} (mode 0755)"])
    wrapper.chmod(0o755)
    with task_prolog(site, wrapper):
        with_qpu = site.cluster.sbatch(PRINT_ENVIRONMENT, "--qpu=ibm_demo", "--nodelist=n1")
        without = site.cluster.sbatch(PRINT_ENVIRONMENT, "--nodelist=n1")
        refused = site.cluster.sbatch("#!/bin/sh\necho ran\n", "--qpu=ibm_dmeo", "--nodelist=n1")
        failing = site.cluster.sbatch("#!/bin/sh\necho ran\n", "--nodelist=n1", env={"FAIL_PLEASE": "yes"})
        states = {job: site.cluster.wait_job(job).state for job in (with_qpu, without, refused, failing)}
        lines = site.command("doctor", "--json").stdout
    outputs = {job: site.cluster.job_output(job) for job in states}
    assert states == {with_qpu: "COMPLETED", without: "COMPLETED", refused: "FAILED", failing: "FAILED"}
    for job in (with_qpu, without):
        assert outputs[job].startswith("the site says hello\n")
        assert environment_of(outputs[job])["SITE_SCRATCH"] == f"/scratch/{job}"
    assert environment_of(outputs[with_qpu])["QRMI_JOB_QPU_RESOURCES"] == "ibm_demo"
    assert "QRMI" not in outputs[without]
    assert "unknown QPU: " in outputs[refused]
    assert "ran" not in outputs[refused] + outputs[failing]
    assert outputs[failing].startswith("the site says no\n")
    assert f"{BIN}/qrmi-slurm-task-prolog through {wrapper}" in lines
    site.cluster.wait_nodes_idle()
