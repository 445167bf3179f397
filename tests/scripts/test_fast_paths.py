"""The three scripts as Slurm runs them: when they start Python, and their exit statuses."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qrmi_slurm.hooks import task_prolog, turnstile
from qrmi_slurm.slurm import plugstack
from qrmi_slurm.state import exports

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
FAKES = Path(__file__).resolve().parents[1] / "fakes"
NAMES = {"prolog": "qrmi-slurm-prolog", "task_prolog": "qrmi-slurm-task-prolog", "epilog": "qrmi-slurm-epilog"}


class Bin:
    """A bin folder as pip makes it: the three scripts beside a python3."""

    def __init__(self, path):
        self.path = path
        self.mark = path.parent / "python-ran"
        path.mkdir()
        for script, name in NAMES.items():
            shutil.copy(SCRIPTS / f"{script}.py", path / name)

    def python(self, body):
        """Install a python3 that leaves a mark and then runs `body` in sh."""
        self.interpreter(f'#!/bin/sh\necho "$*" >> "{self.mark}"\n{body}\n')

    def interpreter(self, text):
        (self.path / "python3").write_text(text)
        (self.path / "python3").chmod(0o755)

    def run(self, script, environment=None, path=None):
        """Run a script as slurmd does: by absolute path, with only the given environment."""
        return subprocess.run(
            [path or self.path / NAMES[script]],
            env={os.fsencode(name): os.fsencode(value) for name, value in (environment or {}).items()},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )

    @property
    def python_runs(self):
        return len(self.mark.read_text().splitlines()) if self.mark.exists() else 0


@pytest.fixture
def folder(tmp_path):
    made = Bin(tmp_path / "venv-bin")
    made.python("exit 0")
    return made


QPU_HOOK = {"SPANK_QRMI_QPU": "a", "SLURM_JOB_ID": "12"}
QPU_TASK = {"SLURM_SPANK_QRMI_QPU": "a", "QRMI_SLURM_QPU": "a", "SLURM_JOB_ID": "12"}
IN_STEP = {**QPU_TASK, "QRMI_JOB_ID": "12", "QRMI_JOB_QPU_RESOURCES": "a"}


@pytest.mark.parametrize(
    ("script", "environment"),
    [
        ("prolog", {}),
        ("epilog", {}),
        ("task_prolog", {}),
        ("prolog", {"SLURM_JOB_ID": "12", "SLURM_SPANK_QRMI_QPU": "a"}),
        ("task_prolog", {"SLURM_JOB_ID": "12", "SLURM_SPANK_QRMI_QPU": "", "QRMI_SLURM_QPU": ""}),
        ("task_prolog", {"SLURM_JOB_ID": "12", "SRUN_DEBUG": "5"}),
        ("task_prolog", IN_STEP),
        ("task_prolog", {**IN_STEP, "SRUN_DEBUG": "3"}),
        ("task_prolog", {**IN_STEP, "QRMI_SLURM_BROKER": "n1", "SLURMD_NODENAME": "n1"}),
        ("task_prolog", {**IN_STEP, "SLURMD_NODENAME": "n1"}),
    ],
)
def test_without_work_no_python_starts(folder, script, environment):
    done = folder.run(script, environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert folder.python_runs == 0


@pytest.mark.parametrize(
    ("script", "environment"),
    [
        ("prolog", QPU_HOOK),
        ("epilog", QPU_HOOK),
        ("prolog", {"SPANK_QRMI_QPU": ""}),
        ("task_prolog", QPU_TASK),
        ("task_prolog", {"SLURM_SPANK_QRMI_QPU": "a", "SLURM_JOB_ID": "12"}),
        ("task_prolog", {"QRMI_SLURM_QPU": "a", "SLURM_JOB_ID": "12"}),
        ("task_prolog", {"QRMI_JOB_ID": "7", "SLURM_JOB_ID": "12"}),
        ("task_prolog", {**IN_STEP, "QRMI_JOB_ID": "7"}),
        ("task_prolog", {**IN_STEP, "QRMI_SLURM_QPU": "b"}),
        ("task_prolog", {**IN_STEP, "SRUN_DEBUG": "5"}),
        ("task_prolog", {**IN_STEP, "QRMI_JOB_QPU_RESOURCES": "a,ibm-x"}),
        ("task_prolog", {**IN_STEP, "QRMI_JOB_QPU_RESOURCES": "a,1x"}),
        ("task_prolog", {**IN_STEP, "QRMI_SLURM_BROKER": "n1", "SLURMD_NODENAME": "n2"}),
    ],
)
def test_with_work_python_runs_once_isolated(folder, script, environment):
    done = folder.run(script, environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert folder.python_runs == 1
    assert folder.mark.read_text().startswith("-I -X utf8 ")


def test_a_task_that_inherited_only_the_job_id_does_not_run_without_its_qpus(folder):
    """`srun --export=QRMI_JOB_ID` passes nothing else along."""
    folder.run("task_prolog", {**QPU_TASK, "QRMI_JOB_ID": "12"})
    assert folder.python_runs == 1


@pytest.mark.parametrize("script", NAMES)
def test_a_symlinked_script_uses_the_python_beside_its_target(folder, tmp_path, script):
    (tmp_path / "prolog.d").mkdir()
    first, second = tmp_path / "prolog.d" / "50-qrmi", tmp_path / "second link"
    first.symlink_to(folder.path / NAMES[script])
    second.symlink_to(first)
    folder.run(script, {**QPU_HOOK, **QPU_TASK}, path=second)
    assert folder.mark.read_text().split()[3] == str(folder.path / NAMES[script])


@pytest.mark.parametrize("name", ["with blank", "quote'and\"", "$(touch x)", "new\nline", "-dash", "*"])
def test_the_folder_may_have_any_name(tmp_path, name):
    strange = Bin(tmp_path / name)
    strange.mark = tmp_path / "python-ran"
    strange.python("exit 0")
    assert strange.run("prolog", QPU_HOOK).returncode == 0
    assert strange.mark.exists()


def break_python(folder, how):
    python = folder.path / "python3"
    python.unlink()
    if how == "dangling":
        python.symlink_to(folder.path / "nowhere")
    elif how == "not executable":
        python.write_text("#!/bin/sh\n")
    elif how == "another machine's":
        folder.interpreter("\x7fELF\x02\x01\x01")
    elif how == "folder":
        python.mkdir()
    elif how == "killed":
        folder.python("kill -9 $$")
    elif how == "fails":
        folder.python("exit 1")


BROKEN = ["missing", "dangling", "not executable", "another machine's", "folder", "killed", "fails"]


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("script", ["prolog", "epilog"])
def test_a_broken_python_does_not_drain_the_node(folder, script, how):
    break_python(folder, how)
    done = folder.run(script, QPU_HOOK)
    assert done.returncode == 0
    assert NAMES[script] in done.stdout


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_python_fails_the_task_with_a_message(folder, how):
    break_python(folder, how)
    done = folder.run("task_prolog", QPU_TASK)
    assert done.returncode == 1
    [line] = done.stdout.splitlines()
    assert line.startswith("print qrmi-slurm: ")
    assert "python3" in line
    assert "please tell an admin" in line


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_python_does_not_stop_a_job_without_qpus(folder, how):
    """Submitted from within a QPU job, it has inherited that job's variables, which is no reason to fail it."""
    break_python(folder, how)
    assert folder.run("task_prolog", {"SLURM_JOB_ID": "12", "QRMI_JOB_ID": "7"}).returncode == 0


@pytest.mark.parametrize(
    ("script", "status", "expected"),
    [
        *((script, status, 0) for script in ("prolog", "epilog") for status in (0, 1, 2, 64, 120, 126, 137)),
        ("task_prolog", 0, 0),
        ("task_prolog", 64, 1),
        *(("task_prolog", status, 1) for status in (1, 2, 120, 126, 137)),
    ],
)
def test_exit_statuses(folder, script, status, expected):
    folder.python(f"exit {status}")
    assert folder.run(script, {**QPU_HOOK, **QPU_TASK}).returncode == expected


@pytest.mark.parametrize("script", ["prolog", "epilog"])
@pytest.mark.parametrize("status", [1, 137, 142])
def test_a_python_that_failed_is_started_again_for_its_last_words(folder, script, status):
    """It is told how the first one ended; that it succeeds is the end of it."""
    folder.python(f'[ -n "$6" ] || exit {status}')
    done = folder.run(script, QPU_HOOK)
    assert (done.returncode, done.stdout) == (0, "")
    first, second = folder.mark.read_text().splitlines()
    assert second == f"{first} {status}"


# --- Many Prologs at once ------------------------------------------------------------------------------------


@pytest.fixture
def room(folder, tmp_path):
    """The folder in which Prologs and Epilogs wait; not the machine's."""
    for hook in ("prolog", "epilog"):
        script = folder.path / NAMES[hook]
        assert script.read_text().count(" room=/run/qrmi-slurm/") == 1
        script.write_text(script.read_text().replace("/run/qrmi-slurm/", f"{tmp_path}/run/"))
    made = tmp_path / "run" / "here" / "n1"
    made.mkdir(parents=True)
    return made


WAITING = {**QPU_HOOK, "SLURM_JOB_UID": "1000", "SLURM_CLUSTER_NAME": "here", "SLURMD_NODENAME": "n1"}


# Job 12 of user 1000 has this lane of five.
LANES = {"prolog": "1000.2", "epilog": "release-1000.2"}


@pytest.mark.parametrize("hook", LANES)
@pytest.mark.parametrize("shell", ["dash", "bash"])
def test_a_hook_waits_in_the_lane_of_its_user_before_python_starts(folder, room, shell, hook):
    script = folder.path / NAMES[hook]
    script.write_text(script.read_text().replace("#!/bin/sh", f"#!/bin/{shell}"))
    (room / "lanes").write_text("5 60 1 5 60\n")
    folder.python("")
    with (room / LANES[hook]).open("w") as lane:
        fcntl.flock(lane, fcntl.LOCK_EX)
        waiting = subprocess.Popen([script], env=WAITING)
        folder.run(hook, {**WAITING, "SLURM_JOB_ID": "13"})
        folder.run(hook, {**WAITING, "SLURM_JOB_UID": "1001"})
        assert folder.python_runs == 2
        assert waiting.poll() is None
    assert waiting.wait(20) == 0
    assert folder.python_runs == 3


@pytest.mark.parametrize("hook", LANES)
def test_python_has_the_lock_of_the_lane_from_its_shell(folder, room, hook):
    """And may unlock it while the shell has the file open."""
    (room / "lanes").write_text("5 60 1 5 60\n")
    lane = f'"{room}/{LANES[hook]}"'
    folder.python(f"flock -n {lane} true && exit 1\nflock -u 9 && exec 9>&- && flock -n {lane} echo free")
    assert folder.run(hook, WAITING).stdout == "free\n"


@pytest.mark.parametrize("hook", LANES)
def test_a_wait_ends_after_its_time(folder, room, hook):
    (room / "lanes").write_text("5 0 0 5 0\n")
    with (room / LANES[hook]).open("w") as lane:
        fcntl.flock(lane, fcntl.LOCK_EX)
        assert folder.run(hook, WAITING).returncode == 0
    assert folder.python_runs == 1


def test_those_that_are_too_late_go_on_one_after_the_other(folder, room):
    """Each asks slurmctld to put its job back."""
    (room / "lanes").write_text("1 0 60\n")
    with (room / "1000.0").open("w") as lane, (room / "late.0").open("w") as late:
        fcntl.flock(lane, fcntl.LOCK_EX)
        fcntl.flock(late, fcntl.LOCK_EX)
        waiting = subprocess.Popen([folder.path / NAMES["prolog"]], env=WAITING)
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(0.5)
        assert folder.python_runs == 0
        fcntl.flock(late, fcntl.LOCK_UN)
        assert waiting.wait(20) == 0
    assert folder.python_runs == 1


@pytest.mark.parametrize(
    ("lanes", "environment"),
    [
        (None, {}),
        ("", {}),
        ("\n", {}),
        ("0 5 1\n", {}),
        ("-1 5 1\n", {}),
        ("5 5\n", {}),
        ("x 5 1\n", {}),
        ("5 x 1\n", {}),
        ("5 5 1\n", {}),
        ("5 5 1 0 5\n", {}),
        ("5 5 1 -1 5\n", {}),
        ("5 5 1 5\n", {}),
        ("5 5 1 x 5\n", {}),
        ("5 5 1 5 x\n", {}),
        ("5 5 1 5 5 5\n", {}),
        ("5 5 1 5 5\n", {"SLURM_JOB_ID": ""}),
        ("5 5 1 5 5\n", {"SLURM_JOB_ID": "12 % 0"}),
        ("5 5 1 5 5\n", {"SLURM_JOB_UID": "../1"}),
        ("5 5 1 5 5\n", {"SLURM_CLUSTER_NAME": ""}),
        ("folder", {}),
        ("no lane", {}),
    ],
)
@pytest.mark.parametrize("shell", ["dash", "bash"])
@pytest.mark.parametrize("hook", LANES)
def test_without_a_lane_a_hook_goes_on(folder, room, lanes, environment, shell, hook):
    """Whatever is wrong there: no redirection and no arithmetic ends the shell, which would drain the node."""
    script = folder.path / NAMES[hook]
    script.write_text(script.read_text().replace("#!/bin/sh", f"#!/bin/{shell}"))
    if lanes == "folder":
        (room / "lanes").mkdir()
    elif lanes == "no lane":
        (room / "lanes").write_text("5 5 1 5 5\n")
        (room / LANES[hook]).mkdir()
    elif lanes is not None:
        (room / "lanes").write_text(lanes)
    done = folder.run(hook, {**WAITING, **environment})
    assert (done.returncode, done.stderr) == (0, "")
    assert folder.python_runs == 1


def test_a_refusal_is_not_printed_twice(folder):
    folder.python("echo print why; exit 64")
    assert folder.run("task_prolog", QPU_TASK).stdout == "print why\n"


# --- With a real Python ------------------------------------------------------------------------------------

# The hooks' locks are in a folder of this name, beside those of clusters that run here.
CLUSTER = f"scripts-{os.getpid()}"


@pytest.fixture
def site(folder, tmp_path):
    """A site of its own name whose python3 finds the package under test and a fake qrmi."""
    import qrmi_slurm

    package = Path(qrmi_slurm.__file__).resolve().parents[1]
    setup = f"import sys; sys.path[:0] = [{str(FAKES)!r}, {str(package)!r}]"
    (tmp_path / "run.py").write_text(
        f"{setup}\nimport runpy\nsys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    folder.interpreter(f'#!/bin/sh\nshift 3\nexec "{sys.executable}" -I -X utf8 "{tmp_path}/run.py" "$@"\n')
    (tmp_path / "slurm.conf").write_text("")
    (tmp_path / "plugstack.conf").write_text(f"optional spank_qrmi.so --state-dir={tmp_path}/state\n")
    resources = [{"name": name, "type": "oqtopus", "environment": {"QRMI_OQTOPUS_URL": "u"}} for name in ("a", "ibm-x")]
    (tmp_path / "qrmi_config.json").write_text(json.dumps({"resources": resources}))
    yield folder
    shutil.rmtree(turnstile.FOLDER / CLUSTER, ignore_errors=True)


def environment_of(tmp_path, selection):
    return {
        "SLURMD_NODENAME": "n1",
        "SLURM_CLUSTER_NAME": CLUSTER,
        "SLURM_JOB_ID": "12",
        "SLURM_JOB_UID": str(os.getuid()),
        "SLURM_CONF": str(tmp_path / "slurm.conf"),
        "SLURM_JOB_START_TIME": "1000",
        "SLURM_JOB_END_TIME": "1300",
        "SPANK_QRMI_QPU": selection,
        "SLURM_SPANK_QRMI_QPU": selection,
        "QRMI_SLURM_QPU": selection,
    }


def test_a_job_from_prolog_to_epilog(site, tmp_path):
    """Including a variable whose name no shell passes on."""
    environment = environment_of(tmp_path, "ibm-x")
    environment["SPANK_ibm-x_QRMI_OQTOPUS_API_TOKEN"] = "test-secret-mine"
    prolog = site.run("prolog", environment)
    assert prolog.returncode == 0
    assert "acquired: job=12 qpu=ibm-x" in prolog.stdout
    assert "test-secret" not in prolog.stdout + prolog.stderr
    task = site.run("task_prolog", environment)
    assert task.returncode == 0
    assert "export ibm-x_QRMI_JOB_ACQUISITION_TOKEN=session-ibm-x" in task.stdout.splitlines()
    assert "export ibm-x_QRMI_OQTOPUS_API_TOKEN=test-secret-mine" in task.stdout.splitlines()
    assert site.run("epilog", environment).returncode == 0
    assert not (tmp_path / "state" / CLUSTER / "12").exists()


def test_an_epilog_whose_service_does_not_answer_lets_the_next_one_begin(site, tmp_path):
    """It keeps its lane for a second of that; its own wait in the lane is a part of its time."""
    config = tmp_path / "qrmi_config.json"
    config.write_text(config.read_text().replace('"u"', '"u", "QRMI_FAKE_RELEASE": "hang"'))
    (tmp_path / "plugstack.conf").write_text(
        f"optional spank_qrmi.so --state-dir={tmp_path}/state --release-timeout=8\n"
    )
    environment = environment_of(tmp_path, "a")
    assert "acquired" in site.run("prolog", environment).stdout
    room = turnstile.FOLDER / CLUSTER / "n1"
    lanes = int((room / "lanes").read_text().split()[3])
    with (room / f"release-{os.getuid()}.{12 % lanes}").open("w") as lane:
        fcntl.flock(lane, fcntl.LOCK_EX)
        began_s = time.monotonic()
        epilog = subprocess.Popen([site.path / NAMES["epilog"]], env=environment, stdout=subprocess.PIPE, text=True)
        time.sleep(1.0)
        fcntl.flock(lane, fcntl.LOCK_UN)
        while not is_locked(lane):
            assert epilog.poll() is None
            time.sleep(0.01)
        fcntl.flock(lane, fcntl.LOCK_EX)  # what the next Epilog does
        assert epilog.poll() is None
    said, _ = epilog.communicate(timeout=20)
    assert (epilog.returncode, "not-released" in said) == (0, True)
    assert time.monotonic() - began_s < 8 + 2


def is_locked(file):
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    return False


def test_a_job_without_a_qpu_is_told_why_only_once(site, tmp_path):
    environment = environment_of(tmp_path, "unknown")
    assert site.run("prolog", environment).returncode == 0
    task = site.run("task_prolog", environment)
    assert task.returncode == 1
    assert task.stdout == "print qrmi-slurm: job 12 has no QPU: unknown QPU: unknown; known QPUs: a, ibm-x\n"
    assert task.stderr == ""
    other = site.run("task_prolog", {**environment, "SLURM_PROCID": "1"})
    assert (other.returncode, other.stdout) == (1, "")


@pytest.mark.parametrize("script", NAMES)
def test_a_venv_that_lost_the_package_does_not_drain_the_node(folder, script):
    """The machine's Python was upgraded under the venv."""
    folder.interpreter(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$4" "$5"\n')
    done = folder.run(script, {**QPU_HOOK, **QPU_TASK})
    assert done.returncode == (1 if script == "task_prolog" else 0)
    assert any(NAMES[script] in line or line.startswith("print qrmi-slurm") for line in done.stdout.splitlines())


@pytest.mark.parametrize("script", ["prolog", "epilog"])
def test_an_unwritable_standard_output_does_not_drain_the_node(site, tmp_path, script):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [site.path / NAMES[script]],
            env=environment_of(tmp_path, "a"),
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.DEVNULL,
            timeout=20,
            check=False,
        )
    assert done.returncode == 0


def test_prolog_with_all_standard_files_closed_still_acquires(site, tmp_path):
    done = subprocess.run(
        ["/bin/sh", "-c", f'"{site.path}/{NAMES["prolog"]}" <&- >&- 2>&-'],
        env=environment_of(tmp_path, "a"),
        timeout=20,
        check=False,
    )
    assert done.returncode == 0
    assert "session-a" in (tmp_path / "state" / CLUSTER / "12" / "exports").read_text()


def fail_first(site, how):
    """Let the first Python of Prolog and Epilog end in some way, in sh."""
    text = (site.path / "python3").read_text().removeprefix("#!/bin/sh\n")
    site.interpreter(f"#!/bin/sh\ncase $4$6 in *-task-prolog | *[0-9]) ;; *) {how} ;; esac\n{text}")


@pytest.mark.parametrize(
    ("how", "fate"),
    [
        ("kill -ALRM $$", "did not end within 32 s"),
        ("kill -KILL $$", "was killed by signal 9"),
        ("exit 3", "ended with exit status 3"),
    ],
)
def test_a_job_whose_prolog_ended_early_is_told_so(site, tmp_path, how, fate):
    fail_first(site, how)
    environment = environment_of(tmp_path, "a")
    prolog = site.run("prolog", environment)
    assert prolog.returncode == 0
    assert f'failed: job=12 reason="Prolog {fate}"' in prolog.stdout
    task = site.run("task_prolog", environment)
    assert task.returncode == 1
    assert task.stdout == f"print qrmi-slurm: job 12 has no QPU: Prolog on n1 {fate}; please tell an admin\n"
    epilog = site.run("epilog", environment)
    assert epilog.returncode == 0
    assert f'failed: job=12 reason="Epilog {fate}"' in epilog.stdout
    assert "recover goes on from the record" in epilog.stdout


def test_what_prolog_had_told_the_tasks_stays(site, tmp_path):
    """It ended early, but late enough; or a restarted slurmd had it run again, under a job that has its QPU."""
    environment = environment_of(tmp_path, "a")
    site.run("prolog", environment)
    fail_first(site, "exit 1")
    site.run("prolog", environment)
    assert "session-a" in site.run("task_prolog", environment).stdout
    site.run("prolog", {**environment, "SLURM_JOB_RESTART_COUNT": "1"})
    assert "Prolog on n1 ended with exit status 1" in site.run("task_prolog", environment).stdout


def test_only_the_first_node_tells_the_tasks(site, tmp_path):
    """On a shared state directory the first node's Prolog may still have a QPU for them."""
    fail_first(site, "exit 1")
    environment = {**environment_of(tmp_path, "a"), "SLURMD_NODENAME": "n2", "SLURM_JOB_NODELIST": "n[1-2]"}
    assert site.run("prolog", environment).returncode == 0
    assert list((tmp_path / "state" / CLUSTER / "12").iterdir()) == []


# --- What the shell itself prints of the exports -------------------------------------------------------------

TEXT = "\"double\" 'single' $HOME `id` \\n \\\\ %s * # é 量子 \udc81\udc88\udcff end "
VARIABLES = {
    "a_QRMI_OQTOPUS_URL": "http://h:1/?a=b",
    "ibm-x_QRMI_OQTOPUS_API_TOKEN": TEXT,
    "a_QRMI_EMPTY": "",
    "QRMI_JOB_QPU_RESOURCES": "a,ibm-x",
    "QRMI_JOB_ID": "12",
}
READY = exports.Exports(12, 1, is_ready=True, notes=("a note",), variables=VARIABLES, start_s=1000)
TASK = {**environment_of(Path("/nowhere"), "a,ibm-x"), "SLURM_CLUSTER_NAME": "c"}


class Job:
    """The exports Prolog left for job 12, and the task that gets them."""

    def __init__(self, folder, state_dir):
        self.folder = folder
        self.state_dir = state_dir
        self.exports = state_dir / "c" / "12" / "exports"
        self.exports.parent.mkdir(parents=True)
        self.leave(exports.render(READY))

    def leave(self, text):
        self.exports.unlink(missing_ok=True)
        self.exports.write_bytes(text.encode("utf-8", "surrogateescape"))

    def task(self, shell="/bin/sh", **environment):
        """Return TaskProlog's lines; empty if it has handed over to Python."""
        env = {**TASK, "QRMI_SLURM_STATE_DIR": str(self.state_dir), **environment}
        done = subprocess.run(
            [shell, self.folder.path / NAMES["task_prolog"]],
            env={name: os.fsencode(value) for name, value in env.items() if value is not None},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=20,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        return [line for line in os.fsdecode(done.stdout).split("\n") if not line.startswith("#")][:-1]


@pytest.fixture
def job(folder, tmp_path):
    return Job(folder, tmp_path / "state dir")


@pytest.mark.parametrize("shell", ["dash", "bash"])
@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_PROCID": "0", "SRUN_DEBUG": "3"},
        {"SLURM_PROCID": "7"},
        {"SLURM_JOB_RESTART_COUNT": "1", "LC_ALL": "C", "IFS": "=_a"},
        {"LC_ALL": "C.UTF-8"},
        {"SLURM_SPANK_QRMI_QPU": None},
        {"SLURM_SPANK_QRMI_QPU": "a,unknown", "QRMI_SLURM_QPU": "a,unknown"},
    ],
)
def test_the_shell_prints_the_same_as_python(job, monkeypatch, shell, environment):
    options = plugstack.SiteOptions(Path("/nowhere"), job.state_dir)
    monkeypatch.setattr(plugstack, "read", lambda _slurm_conf: options)
    told = {name: value for name, value in {**TASK, **environment}.items() if value is not None}
    outcome = task_prolog.task_prolog(told)
    assert outcome.lines
    assert job.task(shell, **environment) == list(outcome.lines)
    assert job.folder.python_runs == 0


def test_the_sites_own_log_level_is_kept(job):
    job.leave(exports.render(READY._replace(variables={**VARIABLES, "RUST_LOG": "warn"})))
    assert [line for line in job.task() if "RUST_LOG" in line] == ["export RUST_LOG=warn"]
    assert job.folder.python_runs == 0


@pytest.mark.parametrize(
    "environment",
    [
        {"RUST_LOG": "debug"},
        {"RUST_LOG": ""},
        {"SRUN_DEBUG": "5"},
        {"QRMI_SLURM_QPU": "a"},
        {"QRMI_SLURM_QPU": "a", "SLURM_SPANK_QRMI_QPU": None},
        {"QRMI_SLURM_QPU": "a,ibm-x,unknown", "SLURM_SPANK_QRMI_QPU": None},
        {"QRMI_SLURM_QPU": None},
        {"QRMI_JOB_ID": "7"},
        {"QRMI_SLURM_JOB_ID": "13"},
        {"QRMI_SLURM_STATE_DIR": None},
        {"QRMI_SLURM_STATE_DIR": ""},
        {"QRMI_SLURM_STATE_DIR": "/nowhere"},
        {"SLURM_CLUSTER_NAME": "d"},
        {"SLURM_JOB_ID": "13"},
        {"SLURM_JOB_RESTART_COUNT": "0"},
        {"SLURM_JOB_RESTART_COUNT": ""},
        {"SLURM_JOB_RESTART_COUNT": "*"},
        {"SLURM_JOB_START_TIME": "1001"},
        {"SLURM_JOB_START_TIME": ""},
    ],
)
def test_unusual_exports_are_left_to_python(job, environment):
    assert job.task(**environment) == []
    assert job.folder.python_runs == 1


RENDERED = exports.render(READY)


@pytest.mark.parametrize("shell", ["dash", "bash"])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        RENDERED.replace("job=12", "job=13"),
        RENDERED.replace("=ready", "=failed"),
        RENDERED.replace("by=shell", "by=python"),
        RENDERED.replace("by=shell\n", ""),
        RENDERED.replace("by=shell", "by=shell too"),
        RENDERED[: len(RENDERED) // 2],
        RENDERED[: RENDERED.index("lines='") + 7],
        RENDERED.replace("lines='", "lines=("),
        "exit 0\n",
        "return 0\n",
        "# qrmi-slurm exports 1 job=12 restart=1 ready\nexport A=$(exit 9)\n# end\n",
        bytes(range(1, 256)).decode("latin-1"),
    ],
)
def test_foreign_or_damaged_exports_are_left_to_python(job, shell, text):
    """Python reports the fault, and nothing from them has been printed by then, not even by a shell that dies."""
    job.leave(text)
    assert job.task(shell) == []
    assert job.folder.python_runs == 1


@pytest.mark.parametrize("shell", ["dash", "bash"])
@pytest.mark.parametrize("head", ["", "# qrmi-slurm exports 1 job=12 restart=1 ready\n", "# qrmi-slurm exports 30\n"])
def test_nothing_in_another_file_is_run(job, tmp_path, shell, head):
    """Such as those of another version of ours, with unescaped values, or any other file of the user's."""
    job.leave(f"{head}export A=$(touch '{tmp_path}/it-ran')\ntouch '{tmp_path}/it-ran'\n")
    assert job.task(shell) == []
    assert job.folder.python_runs == 1
    assert not (tmp_path / "it-ran").exists()


def test_exports_of_another_user_are_left_to_python(job):
    os.chown(job.exports, 12345, -1)
    assert job.task() == []
    job.exports.unlink()
    job.exports.mkdir()
    assert job.task() == []
    assert job.folder.python_runs == 2


# --- What Python loads when it starts ------------------------------------------------------------------------

# Each of these was weighed: `dataclasses` alone takes 5 ms, `subprocess` as much, and a QPU job pays it twice. Every
# QPU job of a cluster pays for additions; docs/benchmarks-appendix.md gives the cost of the large ones.
COMMON = """
    collections collections.abc contextlib copyreg enum errno fnmatch functools gc itertools keyword
    ntpath operator pathlib pwd re re._casefix re._compiler re._constants re._parser reprlib types typing
    typing.io typing.re urllib urllib.parse warnings
    qrmi_slurm qrmi_slurm.errors qrmi_slurm.hooks qrmi_slurm.names qrmi_slurm.secret qrmi_slurm.slurm
    qrmi_slurm.slurm.conf_file qrmi_slurm.slurm.environ qrmi_slurm.slurm.job_context qrmi_slurm.slurm.plugstack
    qrmi_slurm.slurm.selection qrmi_slurm.state qrmi_slurm.state.exports qrmi_slurm.text
"""
OF_HOOKS = """
    logging qrmi_slurm.stand_ins fcntl json json.decoder json.encoder json.scanner resource select signal syslog
    qrmi_slurm.calls qrmi_slurm.calls.backend qrmi_slurm.calls.ca_bundle
    qrmi_slurm.calls.child qrmi_slurm.calls.confinement qrmi_slurm.calls.environment qrmi_slurm.calls.installed
    qrmi_slurm.calls.places
    qrmi_slurm.calls.protocol qrmi_slurm.config qrmi_slurm.config.resource_types qrmi_slurm.deadline qrmi_slurm.files
    qrmi_slurm.hooks.guard qrmi_slurm.hooks.hook_run qrmi_slurm.hooks.turnstile qrmi_slurm.hooks.watchdog
    qrmi_slurm.log
    qrmi_slurm.processes qrmi_slurm.state.job_folder qrmi_slurm.state.journal qrmi_slurm.state.record
"""
OF_PROLOG = """
    qrmi_slurm.config.config_file qrmi_slurm.config.credentials qrmi_slurm.config.slurm_section
    qrmi_slurm.hooks.acquire qrmi_slurm.hooks.assignment qrmi_slurm.hooks.choice qrmi_slurm.hooks.earlier
    qrmi_slurm.hooks.job_environment qrmi_slurm.hooks.job_facts qrmi_slurm.hooks.planning qrmi_slurm.hooks.prolog
    qrmi_slurm.failure qrmi_slurm.hooks.rounds
"""
MAY_LOAD = {
    "prolog": COMMON + OF_HOOKS + OF_PROLOG,
    "epilog": COMMON + OF_HOOKS + " qrmi_slurm.hooks.epilog qrmi_slurm.hooks.release qrmi_slurm.state.ledger",
    "task_prolog": COMMON + " ipaddress qrmi_slurm.hooks.task_prolog",
}


@pytest.mark.parametrize("script", NAMES)
def test_a_hook_loads_only_the_listed_modules(site, tmp_path, script):
    """From its first line to its last, in a usual QPU job."""
    environment = environment_of(tmp_path, "a")
    for before in {"prolog": [], "task_prolog": ["prolog"], "epilog": ["prolog"]}[script]:
        assert site.run(before, environment).returncode == 0
    note = f"open({str(tmp_path / 'loaded')!r}, 'w').write(' '.join(sys.modules))"
    (tmp_path / "run.py").write_text(
        "import os, sys\n"
        f"sys.path[:0] = [{str(FAKES)!r}, {str(Path(exports.__file__).parents[2])!r}]\n"
        "end, hook = os._exit, os.getpid()\n"
        f"os._exit = lambda status: ({note} if os.getpid() == hook else None, end(status))\n"
        "sys.argv = sys.argv[1:]\n"
        "exec(compile(open(sys.argv[0]).read(), sys.argv[0], 'exec'))\n"
    )
    assert site.run(script, environment).returncode == 0
    bare = [sys.executable, "-I", "-c", "import sys; print(*sys.modules)"]
    loaded = set((tmp_path / "loaded").read_text().split())
    loaded -= set(subprocess.run(bare, capture_output=True, text=True, check=True).stdout.split())
    # Without the C halves of modules, and the fake QRMI.
    ours = {name for name in loaded if not name.startswith("_") and name.partition(".")[0] != "qrmi"}
    assert ours - set(MAY_LOAD[script].split()) == set()
