"""docs/support.md: what was tested on what, from the recordings of CI's runs and the lists that CI runs by."""

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Final

from made.text import CHECKOUT, made_from, wrapped
from qrmi_slurm.config.resource_types import KNOWN

sys.path.insert(0, str(CHECKOUT / "tests"))

from booted.site import SUITE as BOOTED
from setup.releases import OTHER_RELEASES, SELECTED
from slurm.release import DIFFERENCES

RECORDINGS: Final = CHECKOUT / "tests" / "recordings"
RAN: Final = RECORDINGS / "ran"
# Written by tests/slurm/test_support.py wherever it runs.
SEEN: Final = CHECKOUT / "build" / "ran"
_SOURCES: Final = "tests/recordings/, tests/setup/releases.py, tests/booted/site.py and tests/slurm/release.py"

MACHINE: Final = "bookworm"
_NAMES: Final = {"bookworm": "Debian {} (bookworm)", "trixie": "Debian {} (trixie)", "forky": "Debian {} (forky)"}

_IN_JOBS: Final = "acquired, listed by QRMI in a task, and released"
_STAND_IN: Final = "a stand-in for its HTTP service"
_EMULATED: Final = "the emulator: sessions, circuits with noise, faults"
# For each type: what played its service, and what ran against that.
_TYPES: Final[Mapping[str, tuple[str, str]]] = {
    "ibm-quantum-compute-service": (_EMULATED, "jobs in every launch form, programs with Qiskit, faults, broker"),
    "qiskit-runtime-service": (_EMULATED, "as above, under its former name"),
    "ibm-quantum-system": (f"{_STAND_IN} and S3", "acquired and released; broker with signed requests"),
    "direct-access": (_STAND_IN, f"{_IN_JOBS}, under its former name"),
    "pasqal-cloud": (_STAND_IN, _IN_JOBS),
    "pasqal-local": (f"{_STAND_IN} (Warden), with a real munge", _IN_JOBS),
    "iqm-server": (_STAND_IN, _IN_JOBS),
    "alice-bob-felis": ("nothing: QRMI asks the service only for a task", _IN_JOBS),
    "oqtopus": ("a stand-in for its library", _IN_JOBS),
}
_NEVER: Final = (
    "A real quantum computer, or a vendor's real service. Whether a service answers as the stand-ins do is taken from "
    "QRMI's sources and the vendors' documentation.",
    "A circuit on any type except IBM's compute service.",
    "A distribution other than Debian, an architecture other than x86-64, SELinux, AppArmor profiles.",
    "Python 3.12, or a Python newer than those above.",
    "Slurm before 22.05, and daemons of a release that is not in the first table. Of {recorded}, only the hooks' "
    "environments were recorded, by hand; the unit tests read them.",
    "systemd on another release than Debian 13's.",
    "More than a handful of nodes, nodes on different machines, and a shared file system.",
    "`AuthType=auth/slurm`: all clusters use munge.",
)


def take_over() -> None:
    """Copy what the tests last saw on each system into the recordings."""
    for path in SEEN.glob("*.json"):
        if path.stem in _NAMES:
            RAN.mkdir(parents=True, exist_ok=True)
            (RAN / path.name).write_text(path.read_text())


def page() -> str:
    """Return the page."""
    _require_all_types()
    lines = [
        "# What is tested on what",
        "",
        made_from(_SOURCES),
        "",
        *wrapped(
            "Each row is a system on which `make test` starts real clusters. A run that sees another release of Slurm, "
            "Python or QRMI than the row fails; the patch release is the one of the last recording. What is not on "
            "this page was not tried."
        ),
        "",
        *_rows(("system", "Slurm", "Python", "QRMI", "tests"), map(_system, _NAMES)),
        "",
        *wrapped(
            f"QRMI {_ran(MACHINE)['oldest_qrmi']}, the oldest that is supported, makes each type's calls on the first "
            "system, without Slurm (`tests/contract/test_qrmi_versions.py`). `make newer-qrmi` tells whether a newer "
            "one is out. All of the tests on real clusters can run on each system: "
            f"{' or '.join(f'`make test-slurm ON={suite}`' for suite in OTHER_RELEASES)}."
        ),
        "",
        *wrapped(
            f"On all three systems, in `tests/slurm/`: {', '.join(f'`{name}`' for name in sorted(SELECTED))}. "
            "Of cases that differ only in what a service or a user does, one or two run there."
        ),
        "",
        "## systemd and control groups",
        "",
        *wrapped(
            f"`make test` also boots {_NAMES[BOOTED].format(_ran(BOOTED)['debian'])} under systemd, in containers: "
            "slurmctld, slurmd, munge and our timers are units, Slurm has `proctrack/cgroup`, `task/cgroup` and "
            "`ConstrainRAMSpace`, a job dies at its memory limit, and a node crashes under its job (`tests/booted/`). "
            "Its control groups are those of the machine's kernel: v2 where that has its memory controller there, "
            "else v1. `make vm`, run by hand, does most of it on Debian's own kernel with v2, in a virtual machine "
            "that is reset."
        ),
        "",
        "## How the releases differ",
        "",
        *_rows(
            ("from", "Slurm", "qrmi-slurm"),
            [(f"{one.since[0]}.{one.since[1]:02}", one.what, one.so) for one in DIFFERENCES],
        ),
        "",
        *wrapped("The first column is the first release that was seen to do it, in a test or in a recording."),
        "",
        "## Resource types",
        "",
        *_rows(
            ("type", "its service was", "what ran"),
            [(f"`{name}`", *_TYPES[name]) for name in KNOWN],
        ),
        "",
        *wrapped(
            "The emulator is [described in README](../README.md#the-emulator), the stand-ins are in `tests/standins/`. "
            "No type was tried with its real service."
        ),
        "",
        "## Never tried",
        "",
    ]
    for text in _NEVER:
        lines += wrapped("- " + text.format(recorded=_recorded()), indent="  ")
    return "\n".join(lines) + "\n"


def _system(suite: str) -> tuple[str, ...]:
    ran = _ran(suite)
    what = "all" if suite == MACHINE else "those below"
    return (_NAMES[suite].format(ran["debian"]), ran["slurm"], ran["python"], ran["qrmi"], what)


def _ran(suite: str) -> Mapping[str, str]:
    path = RAN / f"{suite}.json"
    if not path.exists():
        raise LookupError(f"{path.relative_to(CHECKOUT)} is missing: run make test, then make docs")
    ran: Mapping[str, str] = json.loads(path.read_text())
    return ran


def _recorded() -> str:
    """Return the releases with recordings of the hooks but without a system in the table."""
    ran = {_ran(suite)["slurm"].rpartition(".")[0] for suite in _NAMES}
    releases = sorted(path.name for path in RECORDINGS.iterdir() if path.name[0].isdigit())
    *others, last = [release for release in releases if release not in ran]
    return f"{', '.join(others)} and {last}"


def _rows(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    cells = [head, ("---",) * len(head), *rows]
    return ["| " + " | ".join(row) + " |" for row in cells]


def _require_all_types() -> None:
    """Check that the page describes exactly the known types.

    Raises:
        LookupError: it does not.
    """
    if KNOWN.keys() != _TYPES.keys():
        raise LookupError(
            f"docs/made/support.py and resource_types.py differ in {sorted(KNOWN.keys() ^ _TYPES.keys())}"
        )
