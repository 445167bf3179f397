"""Attacks by users and by services. Each one was seen to succeed with its defense removed."""

import json
import re
import time
from collections.abc import Iterator

import pytest

from qrmi_slurm.state.exports import Exports, parse, render
from slurm.attackers import Attacker, RogueService
from slurm.cluster import ClusterError
from slurm.jobs import environment_of
from slurm.release import TASK_PROLOG_LINE_HAS_A_TIME
from slurm.site import BIN, Site

TOKEN = "ibm_demo_QRMI_JOB_ACQUISITION_TOKEN"
KEY = "ibm_demo_QRMI_IBM_QCS_IAM_APIKEY"


@pytest.fixture
def attacker(site: Site) -> Attacker:
    """The attacking user."""
    return Attacker(site)


@pytest.fixture(scope="session")
def rogue(shared_site: Site) -> RogueService:
    """The attacking service, one for the whole session."""
    return RogueService(shared_site)


@pytest.fixture
def victim(attacker: Attacker) -> Iterator[tuple[int, str]]:
    """A running job of another user on n1, which holds a session on ibm_demo: its id and its token."""
    job_id, output = attacker.hold(attacker.victim)
    yield job_id, environment_of(output)[TOKEN]
    attacker.let_go(attacker.victim, job_id)


def assert_clean(*texts: str) -> None:
    """Every line comes from us or from slurmstepd, and none contains terminal escapes or bidirectional controls."""
    for text in texts:
        stepd = r"\[[-0-9T:.]+\]" if TASK_PROLOG_LINE_HAS_A_TIME.is_here else "slurmstepd-n.:"
        assert all(re.match(f"qrmi-slurm|{stepd} error: TaskProlog failed", line) for line in text.splitlines())
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text)


# --- a forged job-control environment ------------------------------------------------------------------------------


def test_forged_variables_never_configure_a_hook(site: Site, attacker: Attacker) -> None:
    """Neither what Slurm passes to the hooks with a SPANK_ prefix, nor what slurmd itself was started with."""
    library, package = str(attacker.library()), str(attacker.package())
    forged = {
        "LD_PRELOAD": library,
        "LD_AUDIT": library,
        "PYTHONPATH": package,
        "PYTHONUSERBASE": package,
        "PYTHONSTARTUP": f"{package}/json.py",
        "PATH": package,
        "BASH_ENV": f"{package}/json.py",
        "ENV": f"{package}/json.py",
        "IFS": "/",
    }
    words = [f"{prefix}{name}={value}" for name, value in forged.items() for prefix in ("", "SPANK_")]
    job_id = attacker.submit("QRMI_QPU=ibm_demo", "noequalsign", "=x", *words)
    assert site.cluster.wait_job_over(job_id).state == "COMPLETED"
    assert f"acquired: job={job_id} " in site.hooks_log()
    # The same with such variables in slurmd's own environment: the hooks' Python ignores all of them.
    for name in ("PYTHONPATH", "PYTHONUSERBASE", "PYTHONSTARTUP", "ENV", "BASH_ENV"):
        done = site.run_hook("prolog", 4000, **{name: forged[name], "HOME": package})
        assert "acquired: job=4000 " in done.stdout, done.stdout
        assert "released: job=4000 " in site.run_hook("epilog", 4000, **{name: forged[name]}).stdout
    assert not attacker.mark.exists(), attacker.mark.read_text()
    # The trap works.
    attacker.run("true", LD_PRELOAD=library)
    assert attacker.mark.exists()


@pytest.mark.parametrize(
    "selection",
    ["ibm_demo\nexport LD_PRELOAD=/evil.so\n# end", "../../etc\r\x1b[2Jevil", "q@120000"],
    ids=["directive", "escapes", "120 kB"],
)
def test_a_forged_selection_is_refused_in_one_clean_line(site: Site, attacker: Attacker, selection: str) -> None:
    """sbatch refuses these selections. A job submitted without sbatch gets no QPU."""
    before = len(site.hooks_log())
    word = f"QRMI_QPU{selection[1:]}" if selection.startswith("q@") else f"QRMI_QPU={selection}"
    own = ["QRMI_SLURM_QPU=ibm_demo", "SLURM_SPANK_QRMI_QPU=ibm_demo", f"QRMI_SLURM_STATE_DIR={site.state_dir}"]
    job_id = attacker.submit(word, own=own)
    assert site.cluster.wait_job_over(job_id).state == "FAILED"
    output = (attacker.home / f"forged-{job_id}.out").read_text()
    logged = site.hooks_log()[before:]
    assert_clean(output, logged)
    assert "has no QPU" in output
    assert not site.emulator.open_sessions()


def test_a_megabyte_of_qpu_is_refused_at_submission(site: Site) -> None:
    """An argument of that length is too long for the shell, but not for a script's #SBATCH line."""
    with pytest.raises(ClusterError, match="--qpu has more than 4096 bytes"):
        site.cluster.sbatch(f"#!/bin/sh\n#SBATCH --qpu={'q' * 1_000_000}\ntrue\n")


@pytest.mark.parametrize(
    ("selection", "what"),
    [
        (",".join(f"q{number}" for number in range(65)), "64 terms"),
        ("ibm_demo,*,*,*,*,*,*,*,*,*", "8 choices (patterns, any: and least-busy:)"),
        ("ibm_demo," * 500, "4096 bytes"),
    ],
)
def test_more_than_a_job_may_ask_for_is_refused_by_prolog_too(
    site: Site, attacker: Attacker, selection: str, what: str
) -> None:
    """Before anything is asked about a QPU, for jobs that bypass the plugin at a site without job_submit.lua."""
    count = len(site.emulator.sessions())
    own = ["QRMI_SLURM_QPU=ibm_demo", "SLURM_SPANK_QRMI_QPU=ibm_demo", f"QRMI_SLURM_STATE_DIR={site.state_dir}"]
    job_id = attacker.submit(f"QRMI_QPU={selection}", own=own)
    assert site.cluster.wait_job_over(job_id).state == "FAILED"
    sentence = f"job {job_id} has no QPU: --qpu has more than {what}; ask for fewer QPUs in one job\n"
    assert sentence in (attacker.home / f"forged-{job_id}.out").read_text()
    assert len(site.emulator.sessions()) == count


def test_too_many_variables_for_execve_do_not_drain_the_node(site: Site, attacker: Attacker) -> None:
    """With a raised stack limit a user's environment can exceed what slurmd's execve() accepts for Prolog."""
    job = attacker.home / "job.sh"
    job.write_text("#!/bin/sh\ntrue\n")
    many = "for i in $(seq 40); do export ibm_demo_QRMI_A$i=$x; done"
    script = (
        f"ulimit -s unlimited; x=$(head -c 65000 /dev/zero | tr '\\0' x); {many}; sbatch --export=NONE --qpu=ibm_demo"
    )
    done = attacker.run(f"{script} -o /dev/null {job}")
    assert done.returncode != 0
    assert "total more than 1 MiB" in done.stderr
    time.sleep(0.5)
    site.cluster.wait_nodes_idle()


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("ibm_demo_QRMI_NOTE", "a\nexport LD_PRELOAD=/evil.so", "contains a line break or control character"),
        ("ibm_demo_QRMI_A\nexport LD_PRELOAD", "/evil.so", "is not a valid variable name"),
    ],
    ids=["value", "name"],
)
def test_a_forged_variable_cannot_inject_a_taskprolog_directive(
    site: Site, attacker: Attacker, name: str, value: str, sentence: str
) -> None:
    """A line break in the value would start a new directive, such as one that sets LD_PRELOAD for the job."""
    own = ["QRMI_SLURM_QPU=ibm_demo", "SLURM_SPANK_QRMI_QPU=ibm_demo"]
    job_id = attacker.submit("QRMI_QPU=ibm_demo", f"{name}={value}", own=own)
    site.cluster.wait_job_over(job_id)
    output = (attacker.home / f"forged-{job_id}.out").read_text()
    assert "LD_PRELOAD" not in environment_of(output)
    # Slurm 22.05 passes such names on; a shell wrapper around the hooks, as in this test, drops them.
    done = site.run_hook("prolog", 4001, **{f"SPANK_{name}": value})
    assert sentence in done.stdout
    exports = (site.folder_of(4001) / "exports").read_text()
    assert parse(exports).variables == {}
    site.run_hook("epilog", 4001)


def test_a_forged_token_neither_uses_nor_closes_another_jobs_session(
    site: Site, attacker: Attacker, victim: tuple[int, str]
) -> None:
    """A user who knows another job's token gets a session of their own, and only that one is closed."""
    _, token = victim
    own = ["QRMI_SLURM_QPU=ibm_demo", "SLURM_SPANK_QRMI_QPU=ibm_demo"]
    names = (TOKEN, "ibm_demo_QRMI_IBM_QCS_SESSION_ID", "ibm_demo_QRMI_IBM_QRS_SESSION_ID")
    job_id = attacker.submit("QRMI_QPU=ibm_demo", *(f"{name}={token}" for name in names), own=own)
    info = site.cluster.wait_job(job_id)
    env = environment_of((attacker.home / f"forged-{job_id}.out").read_text())
    assert info.state == "COMPLETED", env
    assert token not in env.values()
    [session] = site.emulator.open_sessions()
    assert session["id"] == token


def test_a_forged_identity_grants_no_access(site: Site, attacker: Attacker) -> None:
    """The user's identity comes from Slurm; whatever they pass has a SPANK_ prefix."""
    victim = attacker.victim
    site.config([{**site.emulator.resource("ibm_demo"), "slurm": {"allow": {"users": [victim.name]}}}])
    forged = [f"SLURM_JOB_UID={victim.uid}", f"SLURM_JOB_USER={victim.name}", f"SLURM_JOB_ID={10**6}", "SLURM_UID=0"]
    own = ["QRMI_SLURM_QPU=ibm_demo", "SLURM_SPANK_QRMI_QPU=ibm_demo"]
    before = len(site.emulator.sessions())
    job_id = attacker.submit("QRMI_QPU=ibm_demo", *forged, *(f"SPANK_{word}" for word in forged), own=own)
    assert site.cluster.wait_job_over(job_id).state == "FAILED"
    output = (attacker.home / f"forged-{job_id}.out").read_text()
    assert f"user {attacker.user.name} may not use ibm_demo: " in output
    assert len(site.emulator.sessions()) == before
    job_id = site.cluster.sbatch("#!/bin/sh\ntrue\n", "--qpu=ibm_demo", user=victim)
    assert site.cluster.wait_job_over(job_id).state == "COMPLETED"


# --- the state directory -------------------------------------------------------------------------------------------


def test_only_the_jobs_user_can_access_what_prolog_leaves(
    site: Site, attacker: Attacker, victim: tuple[int, str]
) -> None:
    """Another user on the same node cannot read, change, link, move, lock or remove any of it."""
    job_id, token = victim
    folder = site.folder_of(job_id)
    assert {path.name for path in folder.iterdir()} >= {"exports", "record.json", "lock"}
    tries = [f"cat {folder}/{name}" for name in ("exports", "record.json", "lock", "token-0")]
    tries += [f"ln {folder}/exports {attacker.home}/linked && cat {attacker.home}/linked"]
    tries += [f"{tool} {folder}/{name}" for tool in ("rm -f", "touch", "flock -n") for name in ("exports", "lock")]
    tries += [
        f"ls {folder}",
        f"mv {folder} {folder}x",
        f"ln -s /etc {folder}/.exports.1",
        f"mkdir {folder.parent}/77777",
    ]
    tries += [f"ln -s {attacker.home} {site.state_dir}/x", f"chmod 777 {folder}", f"rmdir {folder}"]
    for script in tries:
        script = f"{script} true" if script.startswith("flock") else script
        done = attacker.run(script)
        assert done.returncode != 0, (script, done.stdout)
        assert token not in done.stdout
    # TaskProlog, which runs with the attacker's rights, does not read it for them either.
    selection = {"SLURM_SPANK_QRMI_QPU": "ibm_demo", "QRMI_SLURM_QPU": "ibm_demo", "SLURMD_NODENAME": "n1"}
    cluster_name = {"SLURM_CLUSTER_NAME": f"throwaway-{site.cluster.token}"}
    job = {"SLURM_JOB_ID": str(job_id), "QRMI_SLURM_STATE_DIR": str(site.state_dir), "SLURM_PROCID": "0"}
    done = attacker.run(str(BIN / "qrmi-slurm-task-prolog"), **selection, **cluster_name, **job)
    assert done.returncode == 1, done.stdout
    assert token not in done.stdout and "export " not in done.stdout


def test_another_jobs_id_in_a_tasks_environment_gives_no_access(
    site: Site, attacker: Attacker, victim: tuple[int, str]
) -> None:
    """Not even for the steps of a job of the attacker's own."""
    job_id, token = victim
    script = (
        f"#!/bin/sh\nexport SLURM_JOB_ID={job_id} SLURM_JOBID={job_id}\n"
        f"export QRMI_JOB_ID={job_id} QRMI_SLURM_JOB_ID={job_id}\n"
        f"srun --overlap env\nunset QRMI_JOB_ID\nsrun --overlap env\nsrun --jobid={job_id} --overlap env\n"
        f"{BIN}/qrmi-slurm-task-prolog\n"
    )
    own = site.cluster.sbatch(script, "--qpu=ibm_demo", "--nodelist=n1", user=attacker.user)
    site.cluster.wait_job(own)
    output = site.cluster.job_output(own)
    assert "error" in output  # srun was refused another user's job
    assert token not in output


def test_swapping_files_under_taskprolog_reveals_nothing(
    site: Site, attacker: Attacker, victim: tuple[int, str]
) -> None:
    """It checks the exports more than once; in between, the attacker swaps in a link to another job's file."""
    job_id, token = victim
    state = attacker.home / "state"
    folder = state / f"throwaway-{site.cluster.token}" / "4711"
    target = site.folder_of(job_id) / "exports"
    script = f"""
        mkdir -p {folder}; cd {folder}
        cat >own <<'END'
{render(Exports(4711, 0, is_ready=True, notes=(), variables={"QRMI_JOB_QPU_RESOURCES": "q", "MINE": "1"}))}END
        swap() {{ ln -sf {target} new; mv -T new exports; ln -f own new; mv -f new exports; }}
        while [ ! -e stop ]; do swap; done 2>/dev/null &
        for i in $(seq 60); do
            SLURM_JOB_ID=4711 SLURM_SPANK_QRMI_QPU=q QRMI_SLURM_QPU=q QRMI_SLURM_STATE_DIR={state} SLURM_PROCID=0 \\
            SLURM_CLUSTER_NAME=throwaway-{site.cluster.token} SLURMD_NODENAME=n1 {BIN}/qrmi-slurm-task-prolog
        done
        touch stop; wait
    """
    done = attacker.run(script)
    assert "export MINE=1" in done.stdout  # the swap did happen in between
    assert token not in done.stdout + done.stderr


def test_an_attacker_cannot_create_the_next_jobs_folder_first(site: Site, attacker: Attacker) -> None:
    """Job ids are easy to guess: the attacker tries before Prolog starts and keeps trying."""
    first = site.cluster.sbatch("#!/bin/sh\ntrue\n", "--qpu=ibm_demo", "--nodelist=n1")
    site.cluster.wait_job_over(first)
    cluster_folder = site.folder_of(first).parent
    loop = f"""
        while [ ! -e {attacker.home}/stop ]; do for id in {first + 1} {first + 2}; do
            mkdir {cluster_folder}/$id && echo mkdir-$id
            ln -s {attacker.home} {cluster_folder}/$id && echo link-$id
            for name in exports .exports.1 record.json lock token-0; do
                ln -sf /etc/hostname {cluster_folder}/$id/$name && echo $name-$id
            done
        done; done 2>/dev/null; rm {attacker.home}/stop
    """
    with site.cluster.popen_as_user(["bash", "-c", loop], user=attacker.user) as racing:
        for _ in range(2):
            job_id = site.cluster.sbatch("#!/bin/sh\nenv\n", "--qpu=ibm_demo", "--nodelist=n1", user=attacker.victim)
            assert site.cluster.wait_job_over(job_id).state == "COMPLETED"
        (attacker.home / "stop").touch()
        out, _ = racing.communicate(timeout=20)
    assert out == ""
    assert not site.emulator.open_sessions()


@pytest.mark.one_release
def test_hooks_reject_a_state_directory_that_users_can_replace(site: Site, attacker: Attacker) -> None:
    """The folder above is world-writable, and the attacker has planted a record there that names a library."""
    above = site.cluster.folder / "above"
    above.mkdir(mode=0o755, exist_ok=True)
    kept, site.state_dir = site.state_dir, above / "state"
    site.plugstack(site.plugstack_line())
    try:
        job_id, _ = attacker.hold(attacker.user)
        above.chmod(0o777)
        evil = site.record_of(job_id)
        assert evil is not None
        library = {"PY_BRIDGE_PATH": str(attacker.library()), "PYTHON_LIBRARY": str(attacker.library())}
        service = {"q_QRMI_OQTOPUS_URL": "http://x.invalid", "q_QRMI_OQTOPUS_API_TOKEN": "x"}
        evil["entries"][0] |= {"name": "q", "type": "oqtopus", "environment": library | service, "run_as_uid": None}
        planted = attacker.home / "record.json"
        planted.write_text(json.dumps(evil))
        folder = site.folder_of(job_id)
        done = attacker.run(
            f"mv {above}/state {above}/real; mkdir -p {folder}; cp {planted} {folder}; chmod 711 {above}/state"
        )
        assert done.returncode == 0, done.stderr
        attacker.let_go(attacker.user, job_id)
        assert f'failed: job={job_id} reason="{above} is owned by uid 0 with mode 0777' in site.hooks_log()
        assert not attacker.mark.exists(), attacker.mark.read_text()
        refused = site.cluster.sbatch("#!/bin/sh\ntrue\n", "--qpu=ibm_demo")
        assert site.cluster.wait_job_over(refused).state == "FAILED"
        attacker.run(f"mv {above}/state {above}/evil; mv {above}/real {above}/state")
        above.chmod(0o755)
        assert site.recover("--now")["left"] == 0
        assert not site.emulator.open_sessions()
    finally:
        site.state_dir = kept


# --- a service that wants something --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "whose"), [("words", "the site's"), ("login-words", "the user's"), ("lines", "the user's")]
)
def test_a_services_error_text_is_escaped(
    site: Site, attacker: Attacker, rogue: RogueService, what: str, whose: str
) -> None:
    """Terminal escapes, directives and forged log records in an error message are escaped and kept on one line."""
    resource = rogue.resource(what)
    own = {f"ibm_demo_{name}": value for name, value in resource["environment"].items()}
    site.config([resource] if whose == "the site's" else [site.emulator.resource("ibm_demo")])
    before = len(site.hooks_log())
    env = own if whose == "the user's" else {}
    job_id = site.cluster.sbatch("#!/bin/sh\nenv\n", "--qpu=ibm_demo", user=attacker.user, env=env)
    assert site.cluster.wait_job_over(job_id).state == "FAILED"
    output, logged = site.cluster.job_output(job_id), site.hooks_log()[before:]
    assert "could not be acquired: " in output
    assert "invalid input: " in output or "the service refused the API key" in output
    assert len(logged.splitlines()) < 10
    assert_clean(output, logged)


@pytest.mark.one_release
@pytest.mark.parametrize(
    ("what", "timeout_s", "sentence"),
    # A busy machine takes seconds to fill the memory that a call may use.
    [("flood", 15, "QRMI was killed by signal 6"), ("drip", 3, "no answer within 3 s")],
)
def test_an_endless_answer_costs_only_the_job(
    site: Site, attacker: Attacker, rogue: RogueService, what: str, timeout_s: int, sentence: str
) -> None:
    """It exhausts neither the node's memory nor the time limit: gigabytes at once, or a byte now and then."""
    site.plugstack(site.plugstack_line(f"--acquire-timeout={timeout_s}"))
    site.config([site.emulator.resource("ibm_demo")])
    own = {f"ibm_demo_{name}": value for name, value in rogue.resource(what)["environment"].items()}
    began_s = time.monotonic()
    options = ["--qpu=ibm_demo", "--nodelist=n1", "--no-requeue"]
    job_id = site.cluster.sbatch("#!/bin/sh\nenv\n", *options, user=attacker.user, env=own)
    assert site.cluster.wait_job_over(job_id).state == "FAILED"
    assert time.monotonic() - began_s < timeout_s + 5
    assert sentence in site.cluster.job_output(job_id)
    site.cluster.wait_nodes_idle()
