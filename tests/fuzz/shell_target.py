"""The shell part of TaskProlog against Python's: exports files with faults, and what each of the two makes of them.

The shell may leave a file to Python, but what it prints has to be what Python would; it prints nothing but directives.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(CHECKOUT))

from qrmi_slurm import exports, plugstack, selection, task_hook  # noqa: E402

PARTS = [
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"=",
    b"export ",
    b"print ",
    b"unset ",
    b"# end\n",
    b"# ",
    b"$(id)",
    b"`id`",
    b"\\",
    b"'",
]
PARTS += [
    b'"',
    b"*",
    b"%s",
    b"\xff",
    b"\xe2\x80\xa8",
    b"export A=1\n",
    b"export RUST_LOG=x\n",
    b"x" * 5000,
    b"ready",
    b"-n ",
]
PARTS += [b"export QRMI_JOB_QPU_RESOURCES=b\n", b"print a\n", b"\x1b[2J", b"restart=1", b"job=12", b"\t"]


def changed(rng: random.Random, text: bytes) -> bytes:
    for _ in range(rng.randrange(4)):
        at, length = rng.randrange(len(text) + 1), rng.choice((0, 0, 1, 5, 40))
        text = text[:at] + rng.choice(PARTS) * rng.choice((1, 1, 2)) + text[at + length :]
    return text


def meaning(lines: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return what slurmstepd makes of lines: the last of a name counts."""
    exported = [line.removeprefix("export ").partition("=")[::2] for line in lines if line.startswith("export ")]
    return dict(exported), [line for line in lines if not line.startswith("export ")]


def main(seconds: float, seed: int) -> int:
    rng = random.Random(seed)  # noqa: S311
    count = printed = 0
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "state"
        file = state / "c" / "12" / "exports"
        file.parent.mkdir(parents=True)
        script = Path(folder) / "task-prolog"
        script.write_bytes((CHECKOUT / "scripts" / "task_prolog.py").read_bytes())
        python = Path(folder) / "python3"
        python.write_text("#!/bin/sh\nexit 0\n")  # what is left to Python prints nothing here
        script.chmod(0o755)
        python.chmod(0o755)
        plugstack.read = lambda _slurm_conf: plugstack.SiteOptions(Path("/nowhere"), state)
        variables = {"a_QRMI_KEY": "k \"'$x` \\n", "a-b_QRMI_E": "", "QRMI_JOB_QPU_RESOURCES": "a", "QRMI_JOB_ID": "12"}
        whole = exports.render(exports.Exports(12, 1, True, ("a note",), variables)).encode()
        ends_s = time.monotonic() + seconds
        while time.monotonic() < ends_s:
            count += 1
            text = changed(rng, whole).replace(b"\0", b"")  # which no shell sees
            file.unlink(missing_ok=True)
            file.write_bytes(text)
            task = {"SLURM_JOB_ID": "12", "SLURM_SPANK_QRMI_QPU": "a", "QRMI_SLURM_QPU": "a", "SLURMD_NODENAME": "n1"}
            task |= {"SLURM_CLUSTER_NAME": "c", "SLURM_PROCID": rng.choice("01"), "QRMI_SLURM_STATE_DIR": str(state)}
            done = subprocess.run(
                ["/bin/sh", script], env=task, capture_output=True, stdin=subprocess.DEVNULL, timeout=20
            )
            if not done.stdout:
                continue
            printed += 1
            by_shell = [line for line in os.fsdecode(done.stdout).split("\n") if not line.startswith("#")][:-1]
            by_python = list(task_hook.task_prolog(task).lines)
            # What only Python sees: a control character beyond ASCII.
            if not all(map(selection.is_one_line, by_shell)) and not any(line[:7] == "export " for line in by_python):
                continue
            if meaning(by_shell) != meaning(by_python) or done.stderr:
                print(f"finding: {text!r}\n  shell: {by_shell}\n  python: {by_python}\n  {done.stderr!r}")
                return 1
    print(f"{count} inputs, {printed} of them printed by the shell, no finding (seed {seed})")
    return 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns() % 10**6))
