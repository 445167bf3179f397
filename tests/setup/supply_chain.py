"""The contents of an installation: the lock it is made from, licenses, an SBOM, known vulnerabilities.

    supply_chain.py lock        write requirements.lock with the newest versions that pyproject.toml allows
    supply_chain.py licenses    write docs/third-party-licenses.md, from an installation of the lock
    supply_chain.py sbom        write build/sbom.cdx.json (CycloneDX), from that installation
    supply_chain.py audit       look up each locked version in PyPI's advisories; exit status 2 if they are unavailable

Its tools are in a venv of their own in the cache folder; see environment.py.
"""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from setup import environment
from setup.environment import CHECKOUT

LOCK: Final = CHECKOUT / "requirements.lock"
LICENSES: Final = CHECKOUT / "docs" / "third-party-licenses.md"
SBOM: Final = CHECKOUT / "build" / "sbom.cdx.json"
OLDEST_PYTHON: Final = "3.11"
TOOLS: Final = ("cyclonedx-bom>=7", "pip-audit>=2.9", "pip-licenses>=5")

# Compatible with our own Apache-2.0: these require no more than attribution, or the source of their own files (MPL).
COMPATIBLE: Final = (
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "MIT",
    "MPL-2.0",
    "PSF-2.0",
    "Unlicense",
)

# The classifiers of packages whose metadata has no SPDX expression.
SPDX: Final[Mapping[str, str]] = {
    "Apache Software License": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "MIT License": "MIT",
    "ISC License (ISCL)": "ISC",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Dual License": "Apache-2.0 OR BSD-3-Clause",  # python-dateutil
    "Apache Software License; BSD License": "Apache-2.0 OR BSD-3-Clause",
}

_PAGE: Final = """\
# Licenses

<!-- Made by `make licenses` from an installation by requirements.lock. -->

qrmi-slurm is Apache-2.0. These are the other packages in an installation by `requirements.lock`, with the license that
each declares; all of them are compatible. `make sbom` writes the same list as a CycloneDX document.

| package | version | license |
|---|---|---|
"""


def lock() -> int:
    """Write the lock: the dependencies of the wheel and of its build, with a hash for each file."""
    build = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["build-system"]["requires"]
    with environment.locked():
        uv, env = environment.uv()
    command: list[str | Path] = [uv, "pip", "compile", "--quiet", "--generate-hashes", "--universal"]
    command += ["--python-version", OLDEST_PYTHON, "--custom-compile-command", "make lock", "--no-annotate"]
    command += ["--upgrade", "--no-emit-package", "colorama", "--output-file", LOCK, "pyproject.toml", "-"]
    subprocess.run(command, cwd=CHECKOUT, input="\n".join(build), text=True, check=True, env=env)
    return 0


def licenses() -> int:
    """Write the list of licenses. Returns 1 if one is not known to be compatible."""
    found = _licenses()
    rows = [f"| {name} | {version} | {license} |\n" for name, version, license in found]
    LICENSES.write_text(_PAGE + "".join(rows))
    strange = [f"{name}: {license}" for name, _, license in found if not is_compatible(license)]
    print("\n".join(f"not known to be compatible: {line}" for line in strange), end="\n" if strange else "")
    return 1 if strange else 0


def is_compatible(license: str) -> bool:
    """Tell whether an SPDX expression offers a compatible license."""
    return any(all(part.strip(" ()") in COMPATIBLE for part in one.split(" AND ")) for one in license.split(" OR "))


def _licenses() -> list[tuple[str, str, str]]:
    command: list[str | Path] = [_tools() / "pip-licenses", "--python", _installation() / "bin" / "python3"]
    command += ["--format=json", "--from=mixed", "--with-system"]
    answer: list[dict[str, str]] = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return [
        (item["Name"], item["Version"], SPDX.get(item["License"], item["License"]))
        for item in sorted(answer, key=lambda item: item["Name"].lower())
        if item["Name"] not in ("pip", "setuptools", "qrmi-slurm")
    ]


def sbom() -> int:
    """Write the software bill of materials."""
    SBOM.parent.mkdir(exist_ok=True)
    command: list[str | Path] = [_tools() / "cyclonedx-py", "environment", "--output-format", "JSON"]
    command += ["--pyproject", CHECKOUT / "pyproject.toml", "--output-file", SBOM, _installation() / "bin" / "python3"]
    subprocess.run(command, check=True)
    print(f"{SBOM.relative_to(CHECKOUT)}: {len(json.loads(SBOM.read_text())['components'])} components")
    return 0


def audit() -> int:
    """Print which locked versions have known vulnerabilities.

    Returns:
        0 if none has any, 1 if one has, 2 if some could not be looked up.
    """
    command: list[str | Path] = [_tools() / "pip-audit", "--disable-pip", "--require-hashes", "--requirement", LOCK]
    done = subprocess.run([*command, "--format=json", "--progress-spinner=off"], capture_output=True, text=True)
    try:
        packages: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    except (json.JSONDecodeError, KeyError):
        print(f"cannot get the advisories from here:\n{done.stderr[-1000:]}")
        return 2
    unknown = [item["name"] for item in packages if "skip_reason" in item]
    faulty = [
        f"{item['name']} {item['version']}: {fault['id']}" for item in packages for fault in item.get("vulns", [])
    ]
    print("\n".join(faulty), end="\n" if faulty else "")
    if unknown:
        print(f"no advisories for {len(unknown)} of {len(packages)} packages; run this where PyPI itself is reachable")
    else:
        print(f"{len(packages)} packages, {len(faulty)} known vulnerabilities")
    return 1 if faulty else 2 if unknown else 0


def _tools() -> Path:
    """Return the bin folder of the tools' venv."""
    return environment.venv("tools", *TOOLS) / "bin"


def _installation() -> Path:
    """Return a venv with the lock installed, as docs/security.md says."""
    return environment.venv("locked", "--require-hashes", "--requirement", LOCK, content=[LOCK.read_text()])


COMMANDS: Final[Mapping[str, Callable[[], int]]] = {
    "lock": lock,
    "licenses": licenses,
    "sbom": sbom,
    "audit": audit,
}

if __name__ == "__main__":
    os.umask(0o022)
    if len(sys.argv) != 2 or sys.argv[1] not in COMMANDS:
        print(__doc__, file=sys.stderr)
        sys.exit(2)
    try:
        sys.exit(COMMANDS[sys.argv[1]]())
    except environment.SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
