"""Nothing in a user's environment changes what our shell and our Python do, with dash and with bash as /bin/sh."""

import json
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from slurm.attackers import Attacker
from slurm.namespaces import node_with
from slurm.site import BIN, Site

NODE = "n1"  # where forged_submit.c sends its jobs
SHELLS = {"dash": "true", "bash": "mount --bind /bin/bash $(readlink -f /bin/sh)"}

TOKEN = "ibm_demo_QRMI_JOB_ACQUISITION_TOKEN"
COMMANDS = ("[", "test", "printf", "echo", "read", "trap", "exit", "unset", ".", "set", "export", "readlink", "env")


class Step(NamedTuple):
    """How a step has ended: its exit status, what it said, and the environment that its task saw."""

    name: str
    status: int
    said: str
    seen: dict[str, str]


@pytest.fixture(params=SHELLS)
def node(site: Site, request: pytest.FixtureRequest) -> Iterator[str]:
    """A node whose /bin/sh is one of the shells."""
    with node_with(site, NODE, SHELLS[request.param]):
        yield NODE


@pytest.fixture
def attacker(site: Site) -> Attacker:
    """The user, with programs and modules that leave a mark."""
    return Attacker(site)


def forms(attacker: Attacker) -> dict[str, dict[str, str]]:
    """Return environments of which a shell, the loader, the C library or Python reads something."""
    folder = attacker.home / "evil"
    folder.mkdir(exist_ok=True)
    script = f"#!/bin/sh\nPATH=/bin\necho ran $0 >>{attacker.mark}\nexit 0\n"
    for name in (*COMMANDS, "python3"):
        if name != ".":
            (folder / name).write_text(script)
            (folder / name).chmod(0o755)
    (folder / "rc").write_text(f"echo sourced >>{attacker.mark}\n")
    (folder / "libexpat.so.1").write_text("not a library\n")  # Python needs it; srun does not
    evil, package = str(folder), str(attacker.package())
    forged = f"() {{ : >>{attacker.mark}; return 0; }}"
    return {
        "functions": {f"BASH_FUNC_{name}%%": forged for name in COMMANDS},
        "functions of old": {name: forged for name in COMMANDS} | {f"BASH_FUNC_{name}()": forged for name in COMMANDS},
        "noexec": {"SHELLOPTS": "noexec"},
        "xtrace": {"SHELLOPTS": "xtrace:verbose", "PS4": "\nexport EVIL=$(env >&2)\n", "BASH_XTRACEFD": "1"},
        "other options": {"SHELLOPTS": "errexit:nounset:noglob:keyword", "BASHOPTS": "extdebug:failglob:nocasematch"},
        "files": {"ENV": f"{evil}/rc", "BASH_ENV": f"{evil}/rc", "HOME": evil},
        "path": {"PATH": f"{evil}:%builtin:/usr/bin:/bin"},
        "path of functions": {"PATH": f"{evil}%func:/usr/bin:/bin", "CDPATH": evil},
        "words": {"IFS": "qrmi/_ \t", "POSIXLY_CORRECT": "1", "GLOBIGNORE": "*", "BASH_COMPAT": "x", "TMOUT": "1"},
        "shell variables": {"PPID": "x", "LINENO": "x", "EUID": "0", "BASH_ARGV0": "x", "FUNCNEST": "1", "_": "x"},
        "locale": {"LC_ALL": "xx_YY.UTF-8", "LANG": "\x1b[2J", "LOCPATH": evil, "LANGUAGE": "x", "NLSPATH": evil},
        "loader": {"LD_LIBRARY_PATH": evil, "LD_AUDIT": "/none.so", "LD_PRELOAD": "/none.so"},
        "loader's output": {"LD_DEBUG": "files", "LD_SHOW_AUXV": "1"},
        "C library": {
            "GLIBC_TUNABLES": "glibc.malloc.check=3:glibc.rtld.nns=99999",
            "MALLOC_PERTURB_": "165",
            "GCONV_PATH": evil,
            "GETCONF_DIR": evil,
            "TZ": "/etc/passwd",
            "TMPDIR": "/none",
        },
        "python": {
            "PYTHONPATH": package,
            "PYTHONHOME": "/none",
            "PYTHONSTARTUP": f"{package}/json.py",
            "PYTHONUSERBASE": package,
            "PYTHONINSPECT": "1",
            "PYTHONVERBOSE": "1",
            "PYTHONDONTWRITEBYTECODE": "",
            "PYTHONPYCACHEPREFIX": evil,
            "PYTHONUTF8": "0",
            "PYTHONIOENCODING": "ascii:strict",
            "PYTHONWARNINGS": "error",
            "PYTHONMALLOC": "debug",
            "PYTHONDEVMODE": "1",
            "PYTHONINTMAXSTRDIGITS": "x",
            "__PYVENV_LAUNCHER__": f"{evil}/python3",
        },
        "names": {"x y": "1", "1a": "1", "ü": "ü", "%": "1", "a\nexport EVIL": "1", "a.b": "\x01", "unset PATH": "1"},
        "values": {"BIG": "x" * 100_000, "LINES": "a\nexport EVIL=1\nprint EVIL\n", "ODD": "\x7f$(exit)`exit`'\""},
        # Names that the script itself uses.
        "our own": {
            **{"wanted": "", "by": "shell", "job": "1", "outcome": "ready", "restart": "9", "status": "0"},
            **{"held": "evil", "lines": "export EVIL=1\n", "notes": "print EVIL\n", "level": "export EVIL=1\n"},
            **{
                "self": "/bin/true",
                "file": "/etc/passwd",
                "exports": "/none",
                "head": "x",
                "job_dir": "/",
                "job_id": "1",
            },
        },
    }


# A job's script: starts a step with each environment, so that either the shell alone or Python has to answer.
DRIVER = r"""#!/usr/bin/python3 -I
import json, os, subprocess
from concurrent.futures import ThreadPoolExecutor
ours = ("QRMI_JOB_ID", "RUST_LOG", "QRMI_SLURM_RUST_LOG")
base = {name: value for name, value in os.environ.items() if name not in ours}
def run(more, answer, option):
    env = {**base, **({"RUST_LOG": "warn"} if answer == "python" else {}), **more}
    library_path = env.pop("LD_LIBRARY_PATH", None)  # srun itself would not work with it
    export = [f"--export=ALL,LD_LIBRARY_PATH={library_path}"] if library_path else []
    command = ["/usr/bin/srun", "--overlap", *option, *export, "/bin/cat", "/proc/self/environ"]
    done = subprocess.run(command, env=env, capture_output=True)
    first, *others = done.stdout.decode(errors="replace").split("\0")
    seen = dict(one.partition("=")[::2] for one in others)
    return done.returncode, first + done.stderr.decode(errors="replace"), seen
with ThreadPoolExecutor(6) as pool:
    runs = {
        f"{form}, {answer}, {' '.join(option)}": pool.submit(run, more, answer, option)
        for form, more in json.load(open("forms.json")).items()
        for answer in ("shell", "python")
        for option in OPTIONS
        if (answer, option) != ("shell", ["--qpu=ibm_second"])
    }
    results = {name: one.result() for name, one in runs.items()}
json.dump(results, open("results.json", "w"))
"""


def run_steps(site: Site, attacker: Attacker, options: list[list[str]], *args: str) -> list[Step]:
    """Run a job's steps in each environment, with each of some options."""
    (attacker.home / "forms.json").write_text(json.dumps(forms(attacker)))
    driver = DRIVER.replace("OPTIONS", repr(options))
    job_id = site.cluster.sbatch(driver, f"--nodelist={NODE}", "--time=5", *args)
    info = site.cluster.wait_job(job_id, deadline_s=120)
    assert info.state == "COMPLETED", site.cluster.job_output(job_id)
    results = json.loads((attacker.home / "results.json").read_text())
    assert len(results) >= len(forms(attacker)) * 2
    return [Step(name, *result) for name, result in results.items()]


def test_a_tasks_verdict_and_what_is_set_stay_right(site: Site, attacker: Attacker, node: str) -> None:
    """A task gets its QPU; one whose job does not hold the QPU ends with the reason, and nothing else is run or set."""
    steps = run_steps(site, attacker, [["--qpu=ibm_demo"], ["--qpu=ibm_second"]], "--qpu=ibm_demo")
    token = site.emulator.sessions()[-1]["id"]
    sentence = "qrmi-slurm: this job does not hold ibm_second; it holds ibm_demo"
    for step in steps:
        assert "EVIL" not in step.seen and "EVIL" not in step.said, step
        if "ibm_demo" in step.name:
            assert (step.status, step.seen.get(TOKEN)) == (0, token), step
        else:
            assert step.status != 0 and sentence in step.said, step
            assert not step.seen and token not in step.said, step
    assert not attacker.mark.exists(), attacker.mark.read_text()


def test_a_job_without_qpus_is_not_disturbed(site: Site, attacker: Attacker, node: str) -> None:
    """TaskProlog lets its tasks run, and sets nothing."""
    for step in run_steps(site, attacker, [[]]):
        assert step.status == 0 and "EVIL" not in step.seen and "EVIL" not in step.said, step
    assert not attacker.mark.exists(), attacker.mark.read_text()


def test_prolog_and_epilog_are_not_configured_by_a_job(site: Site, attacker: Attacker, node: str) -> None:
    """Slurm gives them the job-control environment, of any names and twice over, with a prefix of its own."""
    words = []
    for variables in forms(attacker).values():
        for name, value in variables.items():
            words += [f"{name}={value}", f"SPANK_{name}={value}"]
    words += ["QRMI_QPU=ibm_demo", "=empty", "SPANK_=x", "SPANK_QRMI_QPU=ibm_demo", "noequalsign"]
    before = len(site.hooks_log())
    job_id = attacker.submit(*words)
    info = site.cluster.wait_job_over(job_id)
    logged = site.hooks_log()[before:]
    assert info.state == "COMPLETED", logged
    assert f"acquired: job={job_id} " in logged and f"released: job={job_id} " in logged
    assert not attacker.mark.exists(), attacker.mark.read_text()
    assert not site.emulator.open_sessions()


@pytest.mark.parametrize(
    ("form", "command"),
    [
        ("functions", ["bash", "-c", "[ x ]"]),
        ("files", ["bash", "-c", "true"]),
        ("path", ["dash", "-c", "[ x ]"]),
        ("python", [f"{BIN}/python3", "-c", "import json"]),
    ],
)
def test_the_traps_work(site: Site, attacker: Attacker, form: str, command: list[str]) -> None:
    """Outside of our scripts such an environment has its effect."""
    env = forms(attacker)[form]
    env = {name: value for name, value in env.items() if not name.startswith("PYTHON") or name == "PYTHONPATH"}
    site.cluster.run_as_user(command, user=attacker.user, env=env)
    assert attacker.mark.exists()
