"""TaskProlog's shell against its Python: exports with any names, values and notes, whole and cut off.

The shell must print what Python would, and nothing from a file that is cut off.
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

from qrmi_slurm.errors import ExportsError  # noqa: E402
from qrmi_slurm.hooks import task_prolog  # noqa: E402
from qrmi_slurm.slurm import plugstack  # noqa: E402
from qrmi_slurm.state import exports  # noqa: E402

PARTS = ["", "a", "b1", "_", "-", "é", "量子", "x" * 5000, "RUST_LOG", "QRMI_JOB_QPU_RESOURCES", "exit 9", "by=python"]
PARTS += ["'", "''", "'\\''", '"', "\\", "\\n", "$x", "$(exit 9)", "`exit 9`", "${", "<<", ";", "&", "|", "(", ")", "#"]
PARTS += ["*", "~", "!", "%s", "-n ", "=", " ", "  ", "export ", "print ", "unset ", "# end", "{", "}", "[", "?"]
PARTS += ["\udcff", "\udc81", "\udc88", "\udcc3", "\n", "\t", "\r", "\x1b[2J", "\x85", "\u2028", "\x7f"]


def text(rng: random.Random) -> str:
    return "".join(rng.choice(PARTS) for _ in range(rng.randrange(6)))


def exports_of(rng: random.Random) -> exports.Exports:
    variables = {text(rng): text(rng) for _ in range(rng.randrange(4))}
    variables |= {"a_QRMI_KEY": text(rng), "QRMI_JOB_QPU_RESOURCES": "a", "QRMI_JOB_ID": "12"}
    notes = tuple(text(rng) for _ in range(rng.randrange(3)))
    return exports.Exports(12, rng.choice((0, 1)), is_ready=rng.random() < 0.9, notes=notes, variables=variables)


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
        python.write_text("#!/bin/sh\necho left\n")  # what is left to Python
        script.chmod(0o755)
        python.chmod(0o755)
        plugstack.read = lambda _slurm_conf: plugstack.SiteOptions(Path("/nowhere"), state)
        ends_s = time.monotonic() + seconds
        while time.monotonic() < ends_s:
            try:
                content = exports.render(exports_of(rng)).encode("utf-8", "surrogateescape")
            except ExportsError:
                continue
            count += 1
            is_whole = rng.random() < 0.8
            content = content if is_whole else content[: rng.randrange(len(content) - 1)]
            file.unlink(missing_ok=True)
            file.write_bytes(content)
            task = {"SLURM_JOB_ID": "12", "SLURM_SPANK_QRMI_QPU": "a", "QRMI_SLURM_QPU": "a", "SLURMD_NODENAME": "n1"}
            task |= {"SLURM_CLUSTER_NAME": "c", "SLURM_PROCID": rng.choice("01"), "QRMI_SLURM_STATE_DIR": str(state)}
            done = subprocess.run(
                [rng.choice(("dash", "bash")), script],
                env={**task, "LC_ALL": rng.choice(("C", "C.UTF-8"))},
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=20,
            )
            by_shell = os.fsdecode(done.stdout).split("\n")[:-1]
            printed += by_shell != ["left"]
            by_python = list(task_prolog.task_prolog(task).lines)
            is_right = by_shell == ["left"] or (is_whole and by_shell == by_python)
            if not is_right or done.stderr or done.returncode:
                print(f"finding: {content!r}\n  shell: {by_shell}\n  python: {by_python}\n  {done.stderr!r}")
                return 1
    print(f"{count} inputs, {printed} of them printed by the shell, no finding (seed {seed})")
    return 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns() % 10**6))
