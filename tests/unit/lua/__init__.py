"""Runs cli_filter/qrmi_slurm.lua under a real Lua, with what Slurm would give it."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

INTERPRETERS = ("lua5.1", "lua5.2", "lua5.3", "lua5.4")
SOURCES = Path(__file__).parents[3] / "cli_filter"
FAKE_SLURM = Path(__file__).with_name("fake_slurm.lua")


class Text(str):
    """Lua's own words, not a string of it."""


def literal(value):
    """Return a value as Lua writes it."""
    if isinstance(value, Text):
        return str(value)
    if value is None:
        return "nil"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return '"' + "".join(f"\\{byte:03}" for byte in value.encode("utf-8", "surrogateescape")) + '"'
    if isinstance(value, dict):
        return "{" + ", ".join(f"[{literal(key)}] = {literal(item)}" for key, item in value.items()) + "}"
    return "{" + ", ".join(map(literal, value)) + "}"


def spank(*entries):
    """Return SPANK's job environment as Slurm's plugin gives it: a table that begins at 0."""
    return dict(enumerate(entries))


@dataclass
class Outcome:
    """What came of one call.

    Args:
        code: what Slurm gets.
        user: what the user reads, a sentence each.
        log: what the admin reads.
        job: the job's fields, as they are then.
    """

    code: int
    user: list
    log: list
    job: dict

    @property
    def is_taken(self):
        return self.code == 0


class Lua:
    """One interpreter with a catalogue; each `call` is prepared, `run` makes them in one state."""

    def __init__(self, interpreter, folder):
        self.interpreter = interpreter
        self.catalogue = folder / "qrmi_catalogue.lua"
        self._lines = []

    def do(self, text):
        """Have a line of Lua run."""
        self._lines.append(text)

    def submit(self, qpu=None, parts=None, **job):
        """Have slurm_job_submit() called for a job of alice's."""
        job = {"user_id": 1000, "user_name": "alice", "group_id": 1000, **job}
        if qpu is not None:
            job.setdefault("spank_job_env", spank("OTHER=1", f"QRMI_QPU={qpu}"))
        self.do(f"submit(qrmi, {literal(job)}, {literal(parts or {})})")

    def modify(self, change, had, qpu=None, uid=None, parts=None):
        """Have slurm_job_modify() called for a job of alice's."""
        had = {"user_id": 1000, "user_name": "alice", "group_id": 1000, "job_state": 0, **had}
        if qpu is not None:
            had["spank_job_env"] = spank(f"QRMI_QPU={qpu}")
        change = {"user_id": 1000, "user_name": "alice", **change}
        self.do(f"modify(qrmi, {literal(change)}, {literal(had)}, {literal(parts or {})}, {literal(uid)})")

    def cli(self, qpu=None, **options):
        """Have slurm_cli_pre_submit() called."""
        options = {"type": "sbatch", "spank": {"spank_qrmi": {"qpu": qpu}, "other": {}}, **options}
        self.do(f"cli(qrmi, {literal(options)})")

    def run(self, env=None):
        """Run what was prepared, and return an outcome of each call."""
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
        return Outcome(said["code"], list(said["user"]), list(said["log"]), said["job"])
