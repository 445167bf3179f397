"""Runs cli_filter/qrmi_slurm.lua under a real Lua, with a fake of what Slurm gives its scripts."""

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

INTERPRETERS = ("lua5.1", "lua5.2", "lua5.3", "lua5.4")
SOURCES = Path(__file__).parents[3] / "cli_filter"
FAKE_SLURM = Path(__file__).with_name("fake_slurm.lua")
_NOT_PLAIN = re.compile(rb"[^A-Za-z0-9_.,:=/@ -]")


def literal(value):
    """Return a value as Lua source."""
    if value is None:
        return "nil"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        data = value.encode("utf-8", "surrogateescape")
        return '"' + _NOT_PLAIN.sub(lambda found: b"\\%03d" % ord(found[0]), data).decode("ascii") + '"'
    if isinstance(value, dict):
        return "{" + ", ".join(f"[{literal(key)}] = {literal(item)}" for key, item in value.items()) + "}"
    return "{" + ", ".join(map(literal, value)) + "}"


def spank(*entries):
    """Return a job's SPANK environment as Slurm passes it: a table whose first index is 0."""
    return dict(enumerate(entries))


@dataclass
class Outcome:
    """The outcome of one call.

    Args:
        code: what the call returned to Slurm.
        user: the sentences shown to the user.
        log: the lines of slurmctld's log, or of the command's standard error.
        job: the job's fields after the call.
        instructions: how many instructions of Lua's virtual machine it took, to within a hundred.
        searched: how many bytes string functions searched for it, if `count_searches` was called.
        microseconds: how long it took.
    """

    code: int
    user: list
    log: list
    job: dict
    instructions: int = 0
    searched: int = 0
    microseconds: int = 0

    @property
    def is_taken(self):
        return self.code == 0


class Lua:
    """An interpreter with a catalogue. Calls are queued; `run` makes them all in one Lua state."""

    def __init__(self, interpreter, folder):
        self.interpreter = interpreter
        self.catalogue = folder / "qrmi_catalogue.lua"
        self._lines = []

    def do(self, text):
        """Queue a line of Lua."""
        self._lines.append(text)

    def submit(self, qpu=None, parts=None, **job):
        """Queue a call of slurm_job_submit() for a job of alice."""
        job = {"user_id": 1000, "user_name": "alice", "group_id": 1000, **job}
        if qpu is not None:
            job.setdefault("spank_job_env", spank("OTHER=1", f"QRMI_QPU={qpu}"))
        self.do(f"submit(qrmi, {literal(job)}, {literal(parts or {})})")

    def modify(self, change, had, qpu=None, uid=None, parts=None):
        """Queue a call of slurm_job_modify() for a job of alice."""
        had = {"user_id": 1000, "user_name": "alice", "group_id": 1000, "job_state": 0, **had}
        if qpu is not None:
            had["spank_job_env"] = spank(f"QRMI_QPU={qpu}")
        change = {"user_id": 1000, "user_name": "alice", **change}
        self.do(f"modify(qrmi, {literal(change)}, {literal(had)}, {literal(parts or {})}, {literal(uid)})")

    def cli(self, qpu=None, **options):
        """Queue a call of slurm_cli_pre_submit()."""
        options = {"type": "sbatch", "spank": {"spank_qrmi": {"qpu": qpu}, "other": {}}, **options}
        self.do(f"cli(qrmi, {literal(options)})")

    def run(self, env=None):
        """Run the queue and return the outcome of each call."""
        head = [
            f"dofile({literal(str(FAKE_SLURM))})",
            f"package.path = {literal(str(SOURCES / '?.lua'))}",
            'local qrmi = require("qrmi_slurm")',
            f"qrmi.catalogue = {literal(str(self.catalogue))}",
        ]
        script = "\n".join([*head, *self._lines])
        self._lines = []
        done = subprocess.run(
            [self.interpreter, "-"], input=script, capture_output=True, text=True, timeout=60, env=env or {}
        )
        assert done.returncode == 0, done.stderr
        return [self._outcome(json.loads(line)) for line in done.stdout.split("\n") if line]

    @staticmethod
    def _outcome(said):
        return Outcome(said["code"], list(said["user"]), list(said["log"]), said["job"], **said["cost"])
