"""Measures what the hooks cost a cluster: `make bench`, `make bench ARGS='--quick'`.

Each measurement is taken in turn on throwaway clusters that differ only in their hooks, so that the values of one round
can be compared; `--plugin` adds any other SPANK plugin. Compare ratios within one run: milliseconds depend on the
machine.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from bench.arms import Arm, started
from bench.figures import Figure, plot, table
from bench.measures import QUICK, SECTIONS, Rounds
from slurm.cluster import sweep

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGES = (DOCS / "benchmarks.md", DOCS / "benchmarks-appendix.md")
_END = "<!-- end of results -->"

# What the picture of a section shows, by what its figures say; a section without has none.
PLOTTED = {
    "a": r"srun",
    "b": r"-n64",
    "c": r"(allocation to first line|sessions closed).* 100 ms",
    "d": r"beyond|CPU",
    "f": r"",
    "g": r"Prolog with 1 QPU of \d+ resources$",
    "i": r"-n1 without|--qpu -n1; ",
}


def main() -> int:
    """Run the benchmark.

    Returns:
        0, or 1 if a target is missed.
    """
    options = _options()
    rounds = QUICK if options.quick else Rounds()
    figures: list[Figure] = []
    sweep()
    load = os.getloadavg()[0]
    with started(options.plugin) as bench:
        machine = _machine(bench.arms, load) + (" Few rounds (`--quick`)." if options.quick else "")
        for section in options.sections:
            what = (SECTIONS[section].__doc__ or "").partition("\n")[0]
            print(f"  bench     ({section}) {what}", file=sys.stderr, flush=True)
            figures += SECTIONS[section](bench, rounds)
            if options.json:  # after each section: a run is long
                document = {"machine": machine, "figures": [figure.json() for figure in figures]}
                options.json.write_text(json.dumps(document, indent=1) + "\n")
    print(machine)
    for section in options.sections:
        of_section = [figure for figure in figures if figure.section == section]
        print(f"\n({section})\n\n{table(of_section)}")
        if options.docs:
            _write_docs(section, machine, of_section)
    missed = [figure.what for figure in figures if figure.is_met() is False]
    for what in missed:
        print(f"not met: {what}", file=sys.stderr)
    return 1 if missed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="few rounds: enough to see that everything works, and the large ratios"
    )
    parser.add_argument("--sections", default="".join(SECTIONS), help="which of %(default)s to measure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every measured value to FILE")
    parser.add_argument("--docs", action="store_true", help="write the tables and pictures into the pages of docs")
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="PATH,ARGS",
        help="another SPANK plugin that registers --qpu, and its arguments; {config} is the path of qrmi_config.json",
    )
    options = parser.parse_args()
    unknown = sorted(set(options.sections) - SECTIONS.keys())
    if unknown:
        parser.error(f"no section {' '.join(unknown)}; there are {' '.join(SECTIONS)}")
    return options


def _machine(arms: Sequence[Arm], load: float) -> str:
    """Return a sentence with the machine, its load before the benchmark, and the measured versions."""
    found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    slurm = arms[0].cluster.slurm("sinfo", "--version").strip()
    shell = subprocess.run(["/usr/bin/readlink", "-f", "/bin/sh"], capture_output=True, text=True, check=True).stdout
    return (
        f"{os.cpu_count()} CPUs ({found.group(1) if found else platform.machine()}), {memory_gb:.0f} GB, "
        f"Linux {platform.release().partition('-')[0]}, {slurm}, Python {platform.python_version()}, "
        f"QRMI {version('qrmi')}, qrmi-slurm {version('qrmi-slurm')}, /bin/sh is {Path(shell.strip()).name}, "
        f"load average before {load:.1f}."
    )


def _write_docs(section: str, machine: str, figures: Sequence[Figure]) -> None:
    """Put a section's table and picture between its marks, on the page that has them."""
    begin = f"<!-- results {section}: written by `make bench ARGS=--docs` -->"
    page = next((page for page in PAGES if begin in page.read_text()), None)
    before, _, rest = page.read_text().partition(begin) if page is not None else ("", "", "")
    _, end, after = rest.partition(_END)
    if page is None or not end:
        raise SystemExit(f"error: {DOCS}: the marks around the results of section {section} are missing")
    parts = [table(figures)]
    shown = [figure for figure in figures if section in PLOTTED and re.search(PLOTTED[section], figure.what)]
    if shown:
        picture = DOCS / "images" / f"bench-{section}.svg"
        picture.parent.mkdir(exist_ok=True)
        picture.write_text(plot(shown))
        parts.append(f"![{shown[0].what}, and others](images/{picture.name})\n")
    parts.append(f"{machine}\n")
    content = "\n".join(parts)
    page.write_text(f"{before}{begin}\n\n{content}\n{_END}{after}")


if __name__ == "__main__":
    sys.exit(main())
