"""Secrets are only where they are needed, and in no log, output, process or file that others can read."""

import base64
import os
import secrets
import stat
import subprocess
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from slurm.attackers import RogueService
from slurm.polling import wait_for
from slurm.processes import PROC
from slurm.site import BIN, Site
from slurm.standins import Services
from slurm.syslog_listener import Syslog, listening
from standins.resources import resource
from standins.services import BEARER

COMMANDS = (
    ("status",),
    ("status", "--json"),
    ("qpus", "--json"),
    ("doctor",),
    ("validate-config", "--json"),
    ("validate-config", "--online"),
    ("recover", "--dry-run", "--json"),
)


@dataclass
class Planted:
    """A secret for each place, different in each run."""

    values: dict[str, str] = field(default_factory=dict)

    def __call__(self, place: str) -> str:
        """Return the secret of a place."""
        return self.values.setdefault(place, f"planted{secrets.token_hex(12)}")

    def found_in(self, text: str) -> list[str]:
        """Return the places whose secrets appear in a text."""
        return [place for place, secret in self.values.items() if secret in text]


class Watch:
    """Samples all command lines and readable environments on the machine, continuously."""

    def __init__(self) -> None:
        self.lines: set[str] = set()
        self.samples = 0
        self._ends = threading.Event()

    def look(self) -> None:
        """Sample until told to end."""
        while not self._ends.is_set():
            self.samples += 1
            for folder in PROC.iterdir():
                if folder.name.isdigit():
                    try:
                        self.lines.add((folder / "cmdline").read_text(errors="replace"))
                        self.lines.add((folder / "comm").read_text(errors="replace"))
                    except OSError:
                        continue
            self._ends.wait(0.02)

    def end(self) -> None:
        """End the sampling."""
        self._ends.set()


@contextmanager
def watching() -> Iterator[Watch]:
    """Watch the processes until the block ends."""
    watch = Watch()
    thread = threading.Thread(target=watch.look, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        watch.end()
        thread.join()


@pytest.fixture
def syslog() -> Iterator[Syslog | None]:
    """The messages sent to syslog during the test."""
    with listening() as end:
        yield end


@pytest.fixture(scope="module")
def rogue(shared_site: Site) -> RogueService:
    """A service that echoes requests, redirects, and sends endless answers."""
    return RogueService(shared_site, "rogue-of-secrets")


def said_by(site: Site, commands: Iterable[tuple[str, ...]]) -> dict[str, str]:
    """Return the output of the admin's commands, run side by side."""
    with ThreadPoolExecutor(4) as pool:
        done = {words: pool.submit(site.command, *words) for words in commands}
    return {f"qrmi-slurm {' '.join(words)}": one.result().stdout + one.result().stderr for words, one in done.items()}


def world_readable(top: Path, *, since_s: float) -> Iterator[Path]:
    """Yield each world-readable file below a folder that was written since a moment."""
    for folder, folders, names in os.walk(top):
        # Nobody can read what nobody can enter.
        folders[:] = [name for name in folders if os.lstat(Path(folder, name)).st_mode & stat.S_IXOTH]
        for name in names:
            path = Path(folder, name)
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue
            if stat.S_ISREG(status.st_mode) and status.st_mode & 0o044 and status.st_mtime >= since_s:
                yield path


def test_no_secret_leaks_whatever_happens_to_a_job(
    site: Site, services: Services, rogue: RogueService, syslog: Syslog | None
) -> None:
    """Planted everywhere; jobs succeed and fail in every way; then all output and all leftovers are searched."""
    planted = Planted()
    began_s = site.config_path.stat().st_mtime
    key_file = site.cluster.etc / "planted.key"
    key_file.touch(mode=0o600)
    key_file.write_text(planted("a key file"))
    command = site.cluster.etc / "planted-command"
    command.touch(mode=0o700)
    command.write_text(f"#!/bin/sh\n/bin/cat {key_file}.of-command\n")
    (site.cluster.etc / "planted.key.of-command").touch(mode=0o600)
    (site.cluster.etc / "planted.key.of-command").write_text(planted("a command"))

    def entry(kind: str, name: str, url: str) -> dict[str, object]:
        made = resource(kind, url)
        for variable in made["environment"]:
            if variable.endswith(("APIKEY", "TOKEN")):
                made["environment"][variable] = planted(f"the config, {name}")
            if variable.endswith("FELIS_API_KEY"):  # of base64's letters
                made["environment"][variable] = base64.b64encode(f"u:{planted(name)}".encode()).decode()
                planted.values[f"the config, {name}"] = made["environment"][variable]
        return {**made, "name": name}

    ibm = "ibm-quantum-compute-service"
    names = ("good", "filed", "commanded", "echoing", "refusing", "wordy", "iqm", "system", "users", "felis")
    good, filed, commanded, echoing, refusing, wordy, iqm, system, users, felis = names
    for_file, for_command = (entry(ibm, name, f"{services.url}/online") for name in (filed, commanded))
    for made, source in ((for_file, {"file": str(key_file)}), (for_command, {"command": [str(command)]})):
        assert isinstance(made["environment"], dict)
        del made["environment"]["QRMI_IBM_QCS_IAM_APIKEY"]
        made["slurm"] = {"secrets": {"QRMI_IBM_QCS_IAM_APIKEY": source}}
    site.config(
        [
            entry(ibm, good, f"{services.url}/online"),
            for_file,
            for_command,
            entry(ibm, echoing, f"{services.url}/echo"),
            entry(ibm, refusing, f"{services.url}/401"),
            entry(ibm, wordy, f"{rogue.url}/words"),
            entry("iqm-server", iqm, f"{services.url}/echo"),
            entry("ibm-quantum-system", system, f"{services.url}/online"),
            {"name": users, "type": "iqm-server", "environment": {}},
            entry("alice-bob-felis", felis, f"{services.url}/online"),
        ]
    )
    mine = {
        f"{users}_QRMI_IQM_ISA_ENDPOINT": f"{services.url}/echo",
        f"{users}_QRMI_IQM_ISA_TOKEN": planted("a user's own, refused"),
        f"{good}_QRMI_IBM_QCS_IAM_APIKEY": planted("a user's own, taken"),
    }
    proxied = services.url.replace("http://", f"http://me:{planted('a proxy of the plugin line')}@")
    site.plugstack(site.plugstack_line("--acquire-timeout=5", "--release-timeout=5", f"--env:NOTED_PROXY={proxied}"))
    cluster = site.cluster
    jobs = {
        "succeeds": (f"{good},{filed},{commanded},{system},{felis}", "exit 0"),
        "fails itself": (good, "exit 3"),
        "is refused": (f"{echoing},{refusing},{wordy},{iqm},{users}", "exit 0"),
        "gets some": (f"{good},{refusing},nowhere", "srun true"),
        "knows none": ("nowhere", "exit 0"),
        "is canceled": (good, "sleep 300"),
        "is killed": (good, "kill -9 $$"),
    }
    outputs = {}
    with watching() as watch:
        ids = {
            what: cluster.sbatch(f"#!/bin/sh\n{script}\n", f"--qpu={qpu}", "--comment=x", env=mine)
            for what, (qpu, script) in jobs.items()
        }
        canceled = ids["is canceled"]
        cluster.wait_job(canceled, {"RUNNING"})
        said = said_by(site, COMMANDS)
        cluster.slurm("scancel", str(canceled))
        for what, job_id in ids.items():
            cluster.wait_job(job_id)
            outputs[what] = cluster.job_output(job_id)
        direct = cluster.run_as_user(["srun", "-vvv", f"--qpu={good},{refusing}", "true"], env=mine)
        # An unusable record, one whose release fails, and a broken config.
        cluster.wait_nodes_idle()
        (site.folder_of(99001)).mkdir(parents=True, mode=0o711)
        (site.folder_of(99001) / "record.json").touch(mode=0o600)
        (site.folder_of(99001) / "record.json").write_text(
            '{"version": 1, "token": "' + planted("a broken record") + '"}'
        )
        kept = site.config_path.read_text()
        site.config_path.write_text(kept.replace('"resources"', f'"resource" {planted("a broken config")}'))
        broken = cluster.sbatch("#!/bin/sh\ntrue\n", f"--qpu={good}", env=mine)
        cluster.wait_job_over(broken)
        outputs["a broken config"] = cluster.job_output(broken)
        in_trouble = said_by(site, (("status",), ("doctor",), ("validate-config",), ("recover", "--now")))
        site.config_path.write_text(kept)
    states = {what: cluster.job(job_id).state for what, job_id in ids.items()}
    assert states == {
        "succeeds": "COMPLETED",
        "fails itself": "FAILED",
        "is refused": "FAILED",
        "gets some": "COMPLETED",
        "knows none": "FAILED",
        "is canceled": "CANCELLED",
        "is killed": "FAILED",
    }, outputs
    if syslog is not None:
        wait_for(lambda: f"job={broken} " in "\n".join(syslog.messages()), "the last job in syslog", 5)
    seen = {
        **{f"the output of the job that {what}": text for what, text in outputs.items()},
        **said,
        **{f"{words}, in trouble": text for words, text in in_trouble.items()},
        "srun -vvv": direct.stdout + direct.stderr,
        "syslog": "\n".join(syslog.messages()) if syslog is not None else "",
        "the hooks' output": site.hooks_log(),
        "command lines": "\n".join(watch.lines),
        **{f"the log of {name}": cluster.slurmd_log(name) for name in cluster.nodes},
        "the log of slurmctld": cluster.log("slurmctld").read_text(errors="replace"),
        "scontrol": cluster.slurm("scontrol", "--details", "show", "job"),
    }
    readable = list(world_readable(cluster.folder, since_s=began_s - 1))
    assert readable
    # plugstack.conf is the admin's own text, readable by all: docs/admin.md warns that a password there can be seen.
    own = {cluster.etc / "plugstack.conf"}
    seen |= {str(path): path.read_text(errors="replace") for path in readable if path not in own}
    planted.values["a login's answer"] = BEARER
    found = {where: places for where, text in seen.items() if (places := planted.found_in(text))}
    assert found == {}
    assert watch.samples > 20
    assert any("qrmi-slurm-prolog" in line for line in watch.lines)


def test_a_crash_leaves_no_core_with_secrets_in_it(site: Site) -> None:
    """Even where cores are allowed: the hooks are not dumpable, and a call's limit is 0."""
    crash = "import os, resource; resource.setrlimit(resource.RLIMIT_CORE, (2**20, 2**20)); "
    crash += "from qrmi_slurm.calls import confinement; confinement.hide_memory(); os.kill(os.getpid(), 11)"
    folder = site.cluster.folder / "cores"
    folder.mkdir(exist_ok=True)
    done = subprocess.run([BIN / "python3", "-I", "-c", crash], cwd=folder, capture_output=True)
    assert done.returncode == -11
    assert list(folder.iterdir()) == []
