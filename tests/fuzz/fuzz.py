"""Fuzzes everything that reads users' text, and prints the number of inputs and the findings: `fuzz.py MINUTES`.

Coverage-guided: the Python modules by atheris, the SPANK plugin and what it reads of TaskProlog's output by libFuzzer
with ASan and UBSan, and libFuzzer's corpora once more under valgrind. Differential: TaskProlog's shell against its
Python, the Lua module against Prolog's Python. Corpora stay in the cache folder and grow from run to run.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "setup"))

import environment  # noqa: E402
from environment import CACHE, CHECKOUT  # noqa: E402

PYTHON_TARGETS: Final = (
    "selection",
    "node_list",
    "context",
    "plugstack",
    "config",
    "record",
    "exports",
    "stored_secret",
)
VALGRIND_INPUTS: Final = 300
SANITIZE: Final = "-fsanitize=fuzzer,address,undefined"

# One valid input of each kind: a fuzzer takes long to come up with a whole record by itself.
SEEDS: Final[dict[str, Sequence[bytes]]] = {
    "selection": [b"ibm_quebec, any:iqm-server ,least-busy:ibm_*,q[0-9]?"],
    "node_list": [b"n[001-003,7],r[1-2]n[1-4]"],
    "context": [
        b"SLURM_JOB_ID=12\0SLURM_JOB_UID=1000\0SLURMD_NODENAME=n1\0SLURM_JOB_NODELIST=n[1-2]\0SPANK_QRMI_QPU=a\0"
        b"SLURM_CLUSTER_NAME=c\0SLURM_JOB_START_TIME=1\0SLURM_JOB_END_TIME=61\0SLURM_JOB_RESTART_COUNT=1\0"
        b"SRUN_DEBUG=3\0SPANK_a_QRMI_KEY=k\0SLURM_JOB_LICENSES=qpu_a:1\0QRMI_SLURM_JOB_ID=13\0SLURM_PROCID=0"
    ],
    "plugstack": [
        b"PlugStackConfig=/x/plugstack.conf\nClusterName=c\nInclude more.conf\nrequired /l/spank_qrmi.so "
        b"/etc/qrmi.json --state-dir=/s --acquire-timeout=5.5 --release-timeout=30 --require=all "
        b"--on-unavailable=fail --requeue-limit=1 --env:A=b #\ninclude *.conf"
    ],
    "config": [
        b'{"resources": [{"name": "a", "type": "iqm-server", "is_dynamic": false, "environment": {"QRMI_A": "b"}, '
        b'"slurm": {"license": "l", "capacity": 2, "allow": {"users": ["u"], "qos": []}, '
        b'"secrets": {"QRMI_B": {"file": "/f"}}}}]}'
    ],
    "record": [
        b'{"version": 1, "cluster": "c", "job_id": 1, "uid": 2, "node": "n", "boot_id": "b", "restart_count": 0, '
        b'"created_s": 1.5, "entries": [{"name": "a", "type": "t", "environment": {"A": "b"}, "run_as_uid": null, '
        b'"state": "acquired", "since_s": 1, "token": "t", "restart_count": 0, "journal": 0, "attempts": 1, '
        b'"reason": "", "expires_s": null}]}'
    ],
    "exports": [
        b"# qrmi-slurm exports 3\njob=12 restart=1 start=1000 outcome=ready\nselection='a'\nheld='a,b'\n"
        b"notes='print a'\\''b\n'\nlines='"
        b"export QRMI_JOB_QPU_RESOURCES=a,b\nexport QRMI_JOB_QPU_TYPES=x,y\nexport QRMI_SLURM_CHOICES=any:x=a\n"
        b"export QRMI_SLURM_QPU=b,any:x\n'\nlevel=''\nby=shell\n"
    ],
    "stored_secret": [b"key\r\n"],
    "stub": [
        b"\0a,b\xffa_QRMI_KEY=k\xff!b\xffb_QRMI_X=1\xffSLURM_SPANK__SLURM_SPANK_OPTION_spank_qrmi_qpu=a",
        b"\2a,b\xffSLURM_JOB_ID=7\xffSLURM_QRMI_HET_QPU=a\nb\xffSLURM_SPANK_QRMI_QPU=a",
        b"\1any:ibm_*\xffSLURM_JOB_ID=7\xffSLURM_SPANK_a_QRMI_X=1\xffSLURM_SPANK_QRMI_QPU=a",
        b"\0least-busy:[ab]*\xffa_QRMI_b_QRMI_X=1\xffb_QRMI_JOB_ACQUISITION_TOKEN=t\xff!a",
    ],
    "directives": [
        b"print a\nexport A=b\nexport  B = c\nunset A\nunset  B \nexport a-b_QRMI_X=1=2\n\nexport C\nend\n",
        b"export =x\nexport \nunset \nunset =\nexport A\tB=c\nprint\nend",
    ],
}


def main(minutes: float) -> int:
    """Run every target for its share of the time.

    Returns:
        0 without findings, otherwise 1.
    """
    environment.install_debian_packages(("clang-14", "libclang-rt-14-dev", *environment.DEBIAN_PACKAGES))
    python = environment.venv("fuzz", "atheris") / "bin" / "python3"
    # The plugin, the shell and the Lua module have more states than any of the modules.
    share_s = minutes * 60 / (len(PYTHON_TARGETS) + 7)
    outcomes = [_python(python, name, share_s) for name in PYTHON_TARGETS]
    outcomes += [_differential(python, "TaskProlog's shell", "shell_target.py", 2 * share_s)]
    outcomes += [_differential(python, "the Lua module", "lua_target.py", 2 * share_s)]
    outcomes += [*_compiled("stub", "plugin", 2 * share_s), *_compiled("directives", "TaskProlog's output", share_s)]
    return 0 if all(outcomes) else 1


def _python(python: Path, name: str, seconds: float) -> bool:
    command: list[str | Path] = [python, HERE / "python_targets.py", name, *_options(seconds), _corpus(name)]
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    return _report(
        name, subprocess.run(command, capture_output=True, text=True, errors="replace", env=env, cwd=_cache())
    )


def _compiled(name: str, shown: str, seconds: float) -> list[bool]:
    target, fuzzer, plain = HERE / f"{name}_target.c", _cache() / f"{name}-fuzzer", _cache() / f"{name}-plain"
    strict = ["-g", "-std=gnu11", "-Wall", "-Wextra"]
    build = ["clang-14", "-O1", *strict, *SANITIZE.split(), "-fno-sanitize-recover=all", "-o", fuzzer, target]
    subprocess.run(build, check=True)
    subprocess.run(["gcc", "-O1", *strict, "-DSTANDALONE", "-o", plain, target], check=True)
    corpus = _corpus(name)
    command = [fuzzer, *_options(seconds), corpus]
    found = _report(
        f"{shown}, ASan", subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=_cache())
    )
    inputs = sorted(corpus.iterdir(), key=lambda path: path.name)[
        :VALGRIND_INPUTS
    ]  # their names are hashes: any of them
    watch = ["valgrind", "--quiet", "--leak-check=full", "--errors-for-leak-kinds=definite", "--error-exitcode=99"]
    done = subprocess.run([*watch, plain, *inputs], capture_output=True, text=True, errors="replace")
    _say(f"{shown}, valgrind", len(inputs), done.returncode == 0, done.stderr)
    return [found, done.returncode == 0]


def _differential(python: Path, name: str, program: str, seconds: float) -> bool:
    done = subprocess.run([python, HERE / program, str(seconds)], capture_output=True, text=True)
    count = re.match(r"(\d+) inputs", done.stdout)
    _say(name, int(count[1]) if count else 0, done.returncode == 0, done.stdout + done.stderr)
    return done.returncode == 0


def _options(seconds: float) -> list[str]:
    return [f"-max_total_time={max(round(seconds), 1)}", "-max_len=8192", "-rss_limit_mb=2000", "-print_final_stats=1"]


def _corpus(name: str) -> Path:
    corpus = _cache() / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(SEEDS[name]):
        (corpus / f"seed-{number}").write_bytes(seed)
    return corpus


def _cache() -> Path:
    folder = CACHE / "fuzz"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _report(name: str, done: subprocess.CompletedProcess[str]) -> bool:
    count = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    _say(name, int(count[1]) if count else 0, done.returncode == 0, done.stderr)
    return done.returncode == 0


def _say(name: str, count: int, is_fine: bool, details: str) -> None:
    print(f"  {name:20} {count:>11,} inputs   {'no finding' if is_fine else 'FOUND'}", flush=True)
    if not is_fine:
        print("\n".join(details.splitlines()[-40:]))


if __name__ == "__main__":
    if shutil.which("valgrind") is None and os.geteuid() != 0:
        sys.exit("error: this needs root: it installs packages")
    try:
        sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 5.0))
    except environment.SetupError as error:
        sys.exit(f"error: {error}")
