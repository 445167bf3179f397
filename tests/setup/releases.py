"""Runs all checks and tests on this machine, and a part of those on real clusters on other releases of Slurm.

    releases.py [ARGUMENT ...]    what `make test` does; the arguments go to pytest

The roots of the other releases are made while the tests run here; then their tests run side by side. Each release has a
summary, and its failures are named once more at the end. The exit status is 0 if all passed, 1 if anything failed.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from setup import environment
from setup.environment import CHECKOUT, SetupError

# What runs on each other release: what depends on Slurm's behavior, which differs between them. The longest first: all
# workers are busy to the end. Of cases that differ only in what a service or a user does, one or two run there.
SELECTED = (
    "test_fail_closed.py",
    "test_fault_of_the_service.py",
    "test_broker.py",
    "test_identity.py",
    "test_fault_of_a_process.py",
    "test_hostile_processes.py",
    "test_task_prolog_by_plugin.py",
    "test_attached_steps.py",
    "test_users_environment.py",
    "test_time_limits.py",
    "test_session_end.py",
    "test_inner_jobs.py",
    "test_prolog_flags.py",
    "test_licenses.py",
    "test_slots.py",
    "test_requeue.py",
    "test_failed_starts.py",
    "test_why.py",
    "test_cluster.py",
    "test_security.py",
    "test_watchdog.py",
    "test_launch_forms.py",
    "test_qpu_job.py",
    "test_environment_contract.py",
    "test_plugin_keyword.py",
    "test_bad_input.py",
    "test_unknown_users.py",
    "test_support.py",
)
NOT_THERE = ("-m", "not one_release")
# Both other releases together have as many workers as this machine's.
WORKERS_THERE = "--numprocesses=2"
OTHER_RELEASES = ("trixie", "forky")
HERE = "this machine"

ROOTS = ("/usr/bin/python3", str(CHECKOUT / "tests/setup/roots.py"))
ENVIRONMENT = ("/usr/bin/python3", str(CHECKOUT / "tests/setup/environment.py"))
IN_ROOT = PYTEST = (*ENVIRONMENT, "python", "-I", "-m", "pytest")
LINT = ("make", "lint")
NO_TESTS = 5  # pytest's exit status if the arguments select none
PIECE_BYTES = 65536
# Lines at the end of pytest's output.
FAILURE = re.compile(r"^(?:FAILED|ERROR) .*$", re.MULTILINE)
LAST_LINE = re.compile(r"^.*\b(?:passed|failed|errors?|no tests ran)\b.* in [\d.]+s.*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one part of the run has ended.

    Args:
        name: a release, or what was checked here.
        status: its exit status.
        output: what it printed, if that was not shown while it ran.
    """

    name: str
    status: int
    output: str = ""

    def summary(self) -> list[str]:
        """Return a line on the whole, and one for each failure."""
        last = LAST_LINE.findall(self.output)
        failures = FAILURE.findall(self.output)
        word = last[-1].strip("= ") if last else "passed" if self.status == 0 else f"exit status {self.status}"
        return [f"  {self.name:14}{word}", *(f"  {self.name:14}{failure}" for failure in failures)]


class Run:
    """All parts of one run, and the processes that have to be ended with it."""

    def __init__(self, arguments: Sequence[str], folder: Path) -> None:
        self.arguments = list(arguments)
        self._folder = folder
        self._running: list[subprocess.Popen[bytes]] = []

    def outcomes(self) -> list[Outcome]:
        """Run everything, and return how each part has ended."""
        with ThreadPoolExecutor(1) as background, ThreadPoolExecutor(len(OTHER_RELEASES)) as side_by_side:
            try:
                prepared = [background.submit(self._prepare, suite) for suite in OTHER_RELEASES]
                ended = [self._shown("lint", LINT)]
                ended.append(self._shown(HERE, [*PYTEST, *self.arguments, str(CHECKOUT / "tests")]))
                tested = []
                for suite, future in zip(OTHER_RELEASES, prepared, strict=True):
                    ready = future.result()
                    tested.append(side_by_side.submit(self._test, suite) if ready.status == 0 else future)
                for one in tested:
                    outcome = one.result()
                    print(f"\n--- {outcome.name} ---\n{outcome.output}", flush=True)
                    ended.append(outcome)
                return ended
            except BaseException:
                background.shutdown(wait=False, cancel_futures=True)
                self._end()
                raise

    def _prepare(self, suite: str) -> Outcome:
        """Make a root and the tests' environment in it, with what the tests here leave of the machine."""
        return self._captured(suite, ["nice", "-n5", *ROOTS, suite, *ENVIRONMENT])

    def _test(self, suite: str) -> Outcome:
        files = [str(CHECKOUT / "tests/slurm" / name) for name in SELECTED]
        given = [WORKERS_THERE if word.startswith("--numprocesses=") else word for word in self.arguments]
        outcome = self._captured(suite, [*ROOTS, suite, *IN_ROOT, *NOT_THERE, *given, *files])
        if outcome.status == NO_TESTS and self.arguments:
            return Outcome(suite, 0, outcome.output)
        return outcome

    def _shown(self, name: str, command: Sequence[str]) -> Outcome:
        """Run a command, and show its output as it comes."""
        process = subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE)
        self._running.append(process)
        assert process.stdout is not None
        output = b""
        with process.stdout as stream:
            while piece := os.read(stream.fileno(), PIECE_BYTES):
                sys.stdout.buffer.write(piece)
                sys.stdout.buffer.flush()
                output += piece
        return Outcome(name, process.wait(), output.decode(errors="replace"))

    def _captured(self, name: str, command: Sequence[str]) -> Outcome:
        """Run a command, and keep its output."""
        with tempfile.NamedTemporaryFile(dir=self._folder) as output:
            process = subprocess.Popen(
                command, cwd=CHECKOUT, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
            self._running.append(process)
            return Outcome(name, process.wait(), Path(output.name).read_text(errors="replace"))

    def _end(self) -> None:
        for process in self._running:
            process.terminate()  # roots.py ends everything in its root then
        for process in self._running:
            process.wait()


def main(arguments: Sequence[str]) -> int:
    """Run everything and print the summary.

    Returns:
        The exit status.
    """
    started_s = time.monotonic()
    try:
        environment.start()
        with tempfile.TemporaryDirectory(prefix="qrmi-slurm-run-") as folder:
            ended = Run(arguments, Path(folder)).outcomes()
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print(f"--- summary, after {(time.monotonic() - started_s) / 60:.1f} minutes ---")
    for outcome in ended:
        print("\n".join(outcome.summary()))
    return 1 if any(outcome.status for outcome in ended) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
