"""An attacker's equipment: programs and a service of their own, and the mark a successful attack leaves."""

import contextlib
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from slurm.cluster import ClusterError, User
from slurm.polling import wait_for
from slurm.site import Site
from standins import rogue

SOURCES = Path(rogue.__file__).parent

# Ends as soon as it is told to; prints what a task sees.
HOLDING = "#!/bin/sh\nenv\necho begun\nwhile [ ! -e go-$SLURM_JOB_ID ]; do sleep 0.05; done\n"


class Attacker:
    """A malicious user of the cluster, its first user. The second user is the victim."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.user, self.victim = site.cluster.users
        self.home = self.user.home
        self.mark = self.home / "mark-of-success"
        self.mark.unlink(missing_ok=True)
        self._programs = site.cluster.folder / "attacker"
        self._programs.mkdir(mode=0o755, exist_ok=True)

    def run(self, script: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a shell script as the attacker."""
        return self.site.cluster.run_as_user(["bash", "-c", script], user=self.user, env=env)

    def library(self) -> Path:
        """Return a library that leaves the mark wherever it is loaded."""
        made = self._programs / "evil.so"
        if not made.exists():
            _compile(SOURCES / "evil.c", made, "-shared", "-fPIC", f'-DMARK="{self.mark}"')
        return made

    def package(self) -> Path:
        """Return a folder of Python modules that leave the mark wherever one is imported."""
        made = self._programs / "python"
        for name in ("sitecustomize", "usercustomize", "qrmi_slurm/__init__", "qrmi/__init__", "json", "os", "gc"):
            path = made / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"open({str(self.mark)!r}, 'a').write('imported {name}\\n')\n")
        return made

    def submit(self, *control: str, own: Sequence[str] = ()) -> int:
        """Submit a job that bypasses sbatch and our plugin, with a job-control environment of the attacker's choice.

        Args:
            control: `NAME=VALUE`, or `NAME@COUNT` for a value of that many bytes.
            own: variables of the job.

        Raises:
            ClusterError: slurmctld refused it.
        """
        program = self._programs / "forged_submit"
        if not program.exists():
            _compile(SOURCES / "forged_submit.c", program, "-lslurm")
        script = self.home / "forged.sh"
        script.write_text("#!/bin/sh\nenv\n")
        command: list[str | Path] = [program, script, self.home / "forged-%j.out", *control, "-q", *own]
        done = self.site.cluster.run_as_user(command, user=self.user)
        if done.returncode != 0:
            raise ClusterError(done.stderr)
        return int(done.stdout)

    @contextlib.contextmanager
    def lurking(self, action: str, *, as_root_on: int | None = None) -> Iterator["Lurker"]:
        """Run standins/lurker.c until the block ends.

        Args:
            action: what it does to each call to QRMI with the attacker's uid: `read`, `seize`, `kill` or `stop`; with
                `probe`, what it tries on these, on hooks and on brokers.
            as_root_on: the only process to do it to, as root; None for all of the attacker's, as the attacker.
        """
        program = self._programs / "lurker"
        if not program.exists():
            _compile(SOURCES / "lurker.c", program, "-O2")
        words: list[str | Path] = [program, action, *([str(as_root_on)] if as_root_on is not None else [])]
        caught = self.home / "caught.txt"
        with caught.open("w") as out:
            identity: dict[str, Any] = {"user": self.user.uid, "group": self.user.gid, "extra_groups": []}
            process = subprocess.Popen(words, stdout=out, cwd="/", **({} if as_root_on is not None else identity))
        try:
            lurker = Lurker(caught)
            wait_for(lambda: lurker.lines(), "the lurker to begin", 10)
            yield lurker
        finally:
            process.kill()
            process.wait()

    def hold(self, user: User, *options: str) -> tuple[int, str]:
        """Start a long job with ibm_demo on n1 for a user; return its id and its output so far."""
        cluster = self.site.cluster
        job_id = cluster.sbatch(HOLDING, "--qpu=ibm_demo", "--nodelist=n1", *options, user=user)
        wait_for(lambda: "begun" in cluster.job_output(job_id), f"job {job_id} to begin", 30)
        return job_id, cluster.job_output(job_id)

    def let_go(self, user: User, job_id: int) -> None:
        """Let such a job end."""
        (user.home / f"go-{job_id}").touch()
        self.site.cluster.wait_job_over(job_id)


class Lurker:
    """A running lurker.

    Args:
        caught: the file that it prints to.
    """

    def __init__(self, caught: Path) -> None:
        self._caught = caught

    def lines(self) -> list[str]:
        """Return what it has printed."""
        return self._caught.read_text(errors="replace").splitlines()

    def pids(self) -> list[int]:
        """Return the processes that it got hold of."""
        return [int(line.split()[1]) for line in self.lines()[1:]]


def _compile(source: Path, program: Path, *options: str) -> None:
    command = ["gcc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-o", str(program), str(source), *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise ClusterError(f"{shlex.join(command)}\n{done.stderr}")


class RogueService:
    """A service under the attacker's control; standins/rogue.py says what each path makes it do."""

    def __init__(self, site: Site, name: str = "rogue") -> None:
        self._site = site
        port_file = site.cluster.folder / f"{name}.port"
        site.cluster.start_daemon(name, [sys.executable, rogue.__file__, str(port_file)], {})
        ports = wait_for(
            lambda: port_file.read_text().split() if port_file.exists() else None, "the rogue to listen", 20
        )
        self.url = f"http://127.0.0.1:{ports[0]}"

    def resource(self, what: str) -> dict[str, Any]:
        """Return the config's entry for ibm_demo, for an attack by its service."""
        resource = self._site.emulator.resource("ibm_demo")
        url = f"{self.url}/{what}"
        resource["environment"] = {
            "QRMI_IBM_QCS_ENDPOINT": url,
            "QRMI_IBM_QCS_IAM_ENDPOINT": url,
            "QRMI_IBM_QCS_IAM_APIKEY": "attackers-own-key",
            "QRMI_IBM_QCS_SERVICE_CRN": "crn:v1:attackers",
        }
        return resource
