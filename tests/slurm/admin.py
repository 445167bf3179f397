"""An admin and a user who type the pages' commands on a machine, and the comparison of output with the pages."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from slurm.machine import Machine
from slurm.pages import Block

# Commands that are not typed, and why. For `make`, its targets are checked.
NOT_TYPED = {
    "/opt/qrmi-slurm-0.1.0/bin/pip install --no-deps --no-index --no-build-isolation .": "test_supply_chain.py",
    "/opt/qrmi-slurm-0.1.0/bin/pip install --require-hashes -r requirements.lock": "test_supply_chain.py",
    "dnf install python3.11 gcc make slurm-devel": "this is Debian",
    "make bench ARGS='--plugin /path/other.so,{config},--option --json figures.json'": "it needs another plugin",
    "make bench ARGS=--docs": "it writes the page",
    "make bench": "a quarter of an hour",
    "make audit": "PyPI's advisories may be unreachable here",
    "make fuzz MINUTES=5": "minutes",
    "make licenses": "it installs the lock's packages, and writes the page",
    "make lock": "it asks for the newest versions, and writes the lock",
    "make newer-qrmi": "it asks the package index",
    "make sbom": "it installs the lock's packages",
    "make soak JOBS=300": "some minutes",
    "make crowd CROWD=200": "some minutes",
    "make test": "this is a part of it",
    "make test-slurm ON=forky": "this is a part of it",
    "make test-slurm ON=trixie": "this is a part of it",
    "make vm": "a virtual machine, whose processor is emulated in software",
    "mkdir -p /etc/systemd/system/slurmd.service.d": "test_configless.py",
    "pip install": "a mention of what other lines type",
    "printf '[Unit]\\nConditionPathExists=\\n' "
    ">/etc/systemd/system/slurmd.service.d/configless.conf": "test_configless.py",
    "scontrol show job": "a mention",
    "scontrol update": "a mention, too",
    "systemctl daemon-reload && systemctl restart slurmd": "the machine has no systemd",
    "systemd-analyze security": "tests/booted/test_systemd.py",
    "umask 022 && python3 -m venv /opt/qrmi-slurm-0.1.0": "test_supply_chain.py",
}


@dataclass
class Admin:
    """Types the pages' commands on a machine, as root and as its user, and keeps the output of each."""

    machine: Machine
    printed: dict[str, str] = field(default_factory=dict)

    def type(
        self, command: str, *, as_user: bool = False, status: int = 0, env: Mapping[str, str] | None = None
    ) -> str:
        """Type a command, check its exit status, and return its output."""
        cluster = self.machine.cluster
        done = self.machine.type(command, user=cluster.user if as_user else None, env=env)
        logs = "\n".join(cluster.log_tail(name) for name in ("slurmctld", "n1"))
        assert done.returncode == status, f"{command}\n{done.stdout}\n{logs}"
        self.printed[command] = done.stdout
        return done.stdout

    def follow(self, block: Block) -> None:
        """Type each command of a block."""
        for command in block.commands:
            if command not in NOT_TYPED:
                self.type(command, as_user=f"$ {command}\n" in block.text)

    def play(self, block: Block, names: Mapping[str, str]) -> None:
        """Type a console's commands, and compare the output of each with what the block shows.

        Args:
            block: the console.
            names: maps names on the page to names here. The id of a job submitted in the console is found out.
        """
        names = dict(names)
        for written, shown in block.session:
            command, wanted = renamed(written, names), renamed("\n".join(shown), names)
            status = 1 if any(" error: " in line for line in shown) else 0
            as_user = f"$ {written}\n" in block.text
            printed = self.type(command, as_user=as_user, status=status)
            # Slurm determines why a job waits on its next pass over all jobs.
            end_s = time.monotonic() + 10
            while command.startswith("squeue ") and not shows(printed.splitlines(), wanted.splitlines()):
                assert time.monotonic() < end_s, f"{command}\n{printed}\nis not\n{wanted}"
                printed = self.type(command, as_user=as_user)
            assert shows(printed.splitlines(), wanted.splitlines()), f"{command}\n{printed}\nis not\n{wanted}"
            for id_there, id_here in zip(_job_ids(shown), _job_ids(printed.splitlines()), strict=True):
                names[id_there] = id_here

    def sbatch(self, script: str, *options: str) -> int:
        """Submit a job as the user, and return its id."""
        words = " ".join(["sbatch", "--parsable", *options])
        printed = self.type(f"{words} <<'END'\n#!/bin/bash\n{script}\nEND", as_user=True)
        return int(printed.splitlines()[-1])  # the site may have printed something before

    def output(self, job_id: int) -> str:
        """Wait until a job has ended and all nodes are idle, and return the job's output."""
        self.machine.cluster.wait_job_over(job_id)
        return self.machine.cluster.job_output(job_id)


def shows(printed: Sequence[str], shown: Sequence[str]) -> bool:
    """Tell whether the output matches the page, where `...` stands for any number of lines."""
    parts: list[list[str]] = [[]]
    for line in masked(shown):
        if line in ("...", "| ..."):
            parts.append([])
        else:
            parts[-1].append(line)
    lines = masked(printed)
    first, *others = parts
    if not others:
        return lines == first
    if lines[: len(first)] != first:
        return False
    at = len(first)
    for part in others:
        while lines[at : at + len(part)] != part:
            at += 1
            if at > len(lines):
                return False
        at += len(part)
    return not parts[-1] or at == len(lines)


def masked(lines: Sequence[str]) -> list[str]:
    """Return lines without what differs between runs: numbers, ids, users, bars, blanks."""
    text = "\n".join(lines)
    text = re.sub(r"\b[0-9a-f]{8}\b|\d+(\.\d+)*", "0", text)
    text = re.sub(r"^\S+\$ ", "$ ", text, flags=re.MULTILINE)
    return [re.sub(r"#+", "#", " ".join(line.split())) for line in text.splitlines() if line.strip()]


def renamed(text: str, names: Mapping[str, str]) -> str:
    """Return a page's text with the names used here."""
    for there, here in names.items():
        text = text.replace(there, here)
    return text


def _job_ids(lines: Sequence[str]) -> list[str]:
    return re.findall(r"^Submitted batch job (\d+)$", "\n".join(lines), re.MULTILINE)
