"""Each command of the user's page does what the page says, typed verbatim."""

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

from slurm import pages
from slurm.emulator import API_KEY, SERVICE_CRN
from slurm.pages import ROOT
from slurm.site import Site

PAGE = "docs/user.md"
OWN = "Your own credentials"


def users_own_set(site: Site) -> str:
    """Return the page's file of a user's own variables, with the emulator's values in it."""
    text = re.sub(r"https://\S+", site.emulator.url, pages.block(PAGE, OWN, "bash").text)
    return text.replace("APIKEY=...", f"APIKEY={API_KEY}").replace("CRN=crn:...", f"CRN={SERVICE_CRN}")


def test_every_command_of_the_users_page_works(site: Site) -> None:
    """A researcher who types a section from beginning to end sees no error, and holds nothing afterwards.

    The sections run side by side: `sbatch --wait` polls its job every two seconds, and there are many of them.
    """
    home = site.cluster.user.home
    for name in ("bell.sh", "bell.py"):
        shutil.copy(ROOT / "examples" / name, home)
    (home / "my-key").write_text(API_KEY)
    (home / "my-qpu.sh").write_text(users_own_set(site))
    shutil.chown(home / "my-qpu.sh", site.cluster.user.name)
    sections: dict[str, list[str]] = {}
    for block in pages.blocks(PAGE):
        if block.language == "console":
            sections.setdefault(block.section, ["set -eux"]).extend(block.commands)

    def type_all(commands: list[str]) -> subprocess.CompletedProcess[str]:
        return site.cluster.run_as_user(["bash", "-c", "\n".join(commands)], deadline_s=180)

    own = sections.pop(OWN)
    with ThreadPoolExecutor() as shells:
        printed = dict(zip(sections, shells.map(type_all, sections.values()), strict=True))
    second = {**site.emulator.resource("ibm_second"), "environment": {}}  # the site has only its name
    site.config([site.emulator.resource("ibm_demo"), second])
    printed[OWN] = type_all(own)
    sections[OWN] = own
    outputs = "\n".join(path.read_text() for path in home.glob("*.out"))
    for section, done in printed.items():
        assert done.returncode == 0, f"{section}\n{done.stdout}\n{done.stderr}\n{outputs}"
    site.cluster.wait_nodes_idle()
    assert not site.emulator.open_sessions()
    of_bell = sum(command.endswith("bell.sh") for commands in sections.values() for command in commands)
    assert outputs.count("1000 shots on ibm_") == of_bell >= 3
    assert "QRMI_JOB_QPU_RESOURCES=ibm_second\n" in outputs  # the step that chose
    for task in range(1, 5):
        assert f"task {task} holds ibm_demo\n" in outputs
    assert f"ibm_second_QRMI_IBM_QCS_ENDPOINT={site.emulator.url}\n" in printed[OWN].stdout


def test_the_script_on_the_users_page_runs(site: Site) -> None:
    """The page's first script, saved to a file and submitted without an option."""
    home = site.cluster.user.home
    shutil.copy(ROOT / "examples" / "bell.py", home)
    (home / "first.sh").write_text(pages.block(PAGE, "Your first job", "bash").text)
    job_id = site.cluster.sbatch(home / "first.sh")
    assert site.cluster.wait_job_over(job_id, 60).state == "COMPLETED"
    assert "1000 shots on ibm_demo" in site.cluster.job_output(job_id)
