"""Each command of the user's page does what the page says, typed as it stands there."""

import re
import shutil
from pathlib import Path

from slurm.emulator import API_KEY
from slurm.site import Site

ROOT = Path(__file__).resolve().parents[2]


def commands_of(page: Path) -> list[str]:
    """Return the lines behind `$ ` in a page's console blocks, in their order."""
    blocks = re.findall(r"^```console\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def test_every_command_of_the_users_page_works(site: Site) -> None:
    """A researcher who types the page from its beginning to its end sees no error, and holds nothing after it."""
    home = site.cluster.user.home
    for name in ("bell.sh", "bell.py"):
        shutil.copy(ROOT / "examples" / name, home)
    (home / "my-key").write_text(API_KEY)
    commands = commands_of(ROOT / "docs" / "user.md")
    assert len(commands) >= 8
    script = "\n".join(["set -eu", "set -x", *commands])
    done = site.cluster.run_as_user(["bash", "-c", script], deadline_s=120)
    outputs = "\n".join(path.read_text() for path in home.glob("*.out"))
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{outputs}"
    site.cluster.wait_nodes_idle()
    assert not site.emulator.open_sessions()
    assert outputs.count("1000 shots on ibm_") >= 3  # bell.sh is submitted three times
    assert "QRMI_JOB_QPU_RESOURCES=ibm_second\n" in outputs  # the step that chose
