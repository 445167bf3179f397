"""docs/support.md names what the tests run on, on this release as on the others."""

import json
import platform
from importlib import metadata

from setup import environment
from setup.environment import CHECKOUT
from slurm.release import installed, version
from slurm.site import Site

RECORDED = CHECKOUT / "tests" / "recordings" / "ran"
SEEN = CHECKOUT / "build" / "ran"


def test_the_page_names_what_runs_here(site: Site) -> None:
    """A release of Slurm, Python or QRMI that the page does not name fails the run; a patch release may differ."""
    system = platform.freedesktop_os_release()
    suite = system["VERSION_CODENAME"]
    [oldest] = environment.oldest_qrmi().glob("qrmi-*.dist-info")
    seen = {
        "debian": system.get("VERSION_ID", "testing"),
        "slurm": str(version(site.cluster.slurm("scontrol", "show", "config").partition("SLURM_VERSION")[2])),
        "python": platform.python_version(),
        "qrmi": metadata.version("qrmi"),
        "oldest_qrmi": oldest.name.removeprefix("qrmi-").removesuffix(".dist-info"),
    }
    assert seen["slurm"] == str(installed())
    # `make docs` takes it from here into the recordings.
    SEEN.mkdir(parents=True, exist_ok=True)
    (SEEN / f"{suite}.json").write_text(json.dumps(seen, indent=2) + "\n")
    recorded = json.loads((RECORDED / f"{suite}.json").read_text())
    assert _releases(recorded) == _releases(seen), f"docs/support.md differs from what runs on {suite}: run make docs"


def test_the_page_has_each_recorded_system() -> None:
    """Each version in a recording is on the page."""
    page = (CHECKOUT / "docs" / "support.md").read_text()
    recordings = sorted(RECORDED.glob("*.json"))
    assert [path.stem for path in recordings] == ["bookworm", "forky", "trixie"]
    for path in recordings:
        row = next(line for line in page.splitlines() if f"({path.stem})" in line)
        ran = json.loads(path.read_text())
        assert [ran[name] for name in ("slurm", "python", "qrmi")] == row.split(" | ")[1:4]
        assert f"QRMI {ran['oldest_qrmi']}, the oldest" in page


def _releases(versions: dict[str, str]) -> dict[str, list[str]]:
    """Return year and month, or major and minor, of each version."""
    return {name: value.split(".")[:2] for name, value in versions.items()}
