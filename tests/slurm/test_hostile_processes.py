"""What a user's processes on the node can do to QRMI's calls: nothing to the site's key, nobody else, and no node."""

import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from slurm.aftermath import LONG_SCRIPT, assert_nothing_left, let_go
from slurm.attackers import Attacker
from slurm.emulator import API_KEY, SERVICE_CRN
from slurm.jobs import PRINT_ENVIRONMENT, environment_of
from slurm.polling import wait_for
from slurm.processes import holds, living
from slurm.site import Site
from slurm.standins import Services
from standins.resources import SECRET
from standins.resources import resource as pasqal

PREFIX = "ibm_demo_QRMI_IBM_QCS_"
KEY, CRN = f"{PREFIX}IAM_APIKEY", f"{PREFIX}SERVICE_CRN"
MODE, TTL, TIMEOUT = (f"{PREFIX}{name}" for name in ("SESSION_MODE", "SESSION_MAX_TTL", "TIMEOUT_SECONDS"))

# The site's values where the user's own are those that the emulator accepts.
SITES_KEY, SITES_CRN = "another-key-of-the-site", "crn:of-the-site"

# A busy machine gives an attack a different chance each time.
ATTEMPTS = 5

TIMEOUT_S = 2.0
# What Slurm's and Python's starts and ends take on a busy machine; who waits for a tracer waits for ever.
SPARE_S = 13.0


@pytest.fixture
def attacker(site: Site) -> Attacker:
    """The attacking user, whose processes outlive their jobs."""
    return Attacker(site)


@pytest.fixture
def quick(site: Site) -> Iterator[Site]:
    """Return a site with short timeouts and short sessions, so that those that a test leaves open end soon."""
    site.plugstack(site.plugstack_line(f"--acquire-timeout={TIMEOUT_S:g}", f"--release-timeout={TIMEOUT_S:g}"))
    yield site
    site.emulator.clear_faults()
    wait_for(lambda: not site.emulator.open_sessions(), "the sessions to end", 20)


def resource(site: Site, changes: Mapping[str, str] = MappingProxyType({}), *, broker: bool = False) -> dict[str, Any]:
    """Return the config's entry for ibm_demo, with these variables changed."""
    described = site.emulator.resource("ibm_demo")
    described["environment"] |= {f"QRMI_IBM_QCS_{name}": value for name, value in changes.items()}
    return {**described, "slurm": {"broker": broker}}


def foreign(own: Mapping[str, str]) -> dict[str, str]:
    """Return the site's values for what a user brings, which the emulator does not accept."""
    return {
        **({"IAM_APIKEY": SITES_KEY} if API_KEY in own.values() else {}),
        **({"SERVICE_CRN": SITES_CRN} if CRN in own else {}),
    }


def children_of_hook(site: Site, hook: str) -> list[tuple[int, int]]:
    """Return the pid and the uid of each process that a hook has started."""
    hooks = site.hook_pids(hook)
    return [(process.pid, process.uid) for process in living() if process.parent in hooks]


def run(site: Site, own: Mapping[str, str], *options: str) -> str:
    """Run a job to its end, and return its output."""
    job_id = site.cluster.sbatch(PRINT_ENVIRONMENT, "--qpu=ibm_demo", "--nodelist=n1", *options, env=dict(own))
    assert site.cluster.wait_job_over(job_id).state == "COMPLETED", site.cluster.job_output(job_id)
    return site.cluster.job_output(job_id)


# --- reading the site's key --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "own",
    [
        pytest.param({MODE: "batch"}, id="mode", marks=pytest.mark.one_release),
        pytest.param({TTL: "100"}, id="ttl"),
        pytest.param({TIMEOUT: "100"}, id="timeout", marks=pytest.mark.one_release),
        pytest.param({KEY: API_KEY}, id="their own key", marks=pytest.mark.one_release),
    ],
)
def test_the_sites_key_never_appears_in_a_process_of_the_user(
    site: Site, attacker: Attacker, own: dict[str, str]
) -> None:
    """Whatever users set, their processes can read nothing of QRMI's calls: not the site's key, not even their own."""
    site.config([resource(site, foreign(own), broker=True)])
    decoy = "# qrmi_slurm.calls\nimport os, time\nos.write(os.memfd_create('decoy'), b'readable')\ntime.sleep(60)"
    with attacker.lurking("read") as lurker:
        seen = site.cluster.popen_as_user([sys.executable, "-I", "-c", decoy])
        wait_for(lambda: any("readable" in line for line in lurker.lines()), "the lurker to read another process", 10)
        seen.kill()
        seen.communicate()
        for _ in range(ATTEMPTS):
            run(site, own)
        assert not [line for line in lurker.lines() if API_KEY in line or SITES_KEY in line]
    assert_nothing_left(site, 0)


@pytest.mark.parametrize(
    "own",
    [
        pytest.param({}, id="the site's key"),
        pytest.param({KEY: API_KEY}, id="their own key", marks=pytest.mark.one_release),
    ],
)
def test_there_is_no_way_into_a_hook_a_call_or_a_broker(site: Site, attacker: Attacker, own: dict[str, str]) -> None:
    """From its exec to its end: not by /proc, not by tracing, not by taking one of its files."""
    site.config([resource(site, foreign(own), broker=True)])
    decoy = "import time  # qrmi_slurm.calls\ntime.sleep(60)"
    mine = site.cluster.popen_as_user([sys.executable, "-I", "-c", decoy])
    with attacker.lurking("probe") as lurker:
        ways = {"reads", "writes", "sees", "process_vm_readv", "pidfd_getfd", "ptrace"}

        def found() -> bool:
            return {line.split()[2] for line in lurker.lines()[1:] if line.split()[1] == str(mine.pid)} == ways

        wait_for(found, "the lurker to get into a process of its own", 10)
        for _ in range(2):
            run(site, own)
    mine.kill()  # while it is traced, it does not end
    mine.communicate()
    assert {line.split()[1] for line in lurker.lines()[1:]} == {str(mine.pid)}
    assert_nothing_left(site, 0)


@pytest.mark.parametrize("broker", [False, True], ids=["no broker", "broker"])
def test_a_call_with_the_sites_key_does_not_run_as_the_user(site: Site, broker: bool) -> None:
    """Whatever is tuned beside it: acquiring and releasing run with root's uid."""
    site.config([resource(site, broker=broker)])
    own = {MODE: "batch", TTL: "100", TIMEOUT: "100"}
    with site.emulator.held("create_session") as hold:
        job_id = site.cluster.sbatch(PRINT_ENVIRONMENT, "--qpu=ibm_demo", "--nodelist=n1", env=own)
        hold.wait_for(1)
        assert [uid for _, uid in children_of_hook(site, "prolog")] == [0]
        hold.go_on()
        with site.emulator.held("update_session") as hold:
            hold.wait_for(1)
            assert [uid for _, uid in children_of_hook(site, "epilog")] == [0]
            hold.go_on()
            assert site.cluster.wait_job_over(job_id).state == "COMPLETED", site.cluster.job_output(job_id)
    assert_nothing_left(site, job_id)


@pytest.mark.one_release
def test_a_call_with_the_users_key_has_no_secret_of_the_site(site: Site) -> None:
    """It runs as the user, who has that key anyway; the hook's other secrets are in no memory that is theirs."""
    second = {**site.emulator.resource("ibm_second"), "slurm": {"broker": True}}
    site.config([resource(site, foreign({KEY: API_KEY, CRN: SERVICE_CRN})), second])
    with site.emulator.held("create_session") as hold:
        job_id = site.cluster.sbatch(
            PRINT_ENVIRONMENT, "--qpu=ibm_demo,ibm_second", "--nodelist=n1", env={KEY: API_KEY, CRN: SERVICE_CRN}
        )
        hold.wait_for(2)
        children = children_of_hook(site, "prolog")
        assert sorted(uid for _, uid in children) == [0, site.cluster.user.uid]
        (mine,) = [pid for pid, uid in children if uid != 0]
        assert holds(mine, API_KEY.encode()), "the search has to find something"
        assert not holds(mine, SITES_KEY.encode())
        assert not holds(mine, SITES_CRN.encode())
        files = [str(fd.readlink()) for fd in Path(f"/proc/{mine}/fd").iterdir()]
        assert not [file for file in files if "memfd" in file or "record" in file or "config" in file]
    assert site.cluster.wait_job_over(job_id).state == "COMPLETED", site.cluster.job_output(job_id)
    assert_nothing_left(site, job_id)


# --- delaying others ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "action", ["seize", *(pytest.param(action, marks=pytest.mark.one_release) for action in ("stop", "kill"))]
)
@pytest.mark.parametrize(
    "own",
    [
        pytest.param({MODE: "batch"}, id="a tuned value"),
        pytest.param({KEY: API_KEY}, id="their own key", marks=pytest.mark.one_release),
    ],
)
def test_a_user_who_interferes_with_every_call_delays_no_hook(
    quick: Site, attacker: Attacker, own: dict[str, str], action: str
) -> None:
    """Prolog, Epilog and the node go on, whatever becomes of that user's job."""
    site = quick
    site.config([resource(site, {"SESSION_MAX_TTL": "3", **foreign(own)})])
    with attacker.lurking(action) as lurker:
        for _ in range(ATTEMPTS):
            options = ["--qpu=ibm_demo", "--nodelist=n1", "--no-requeue"]
            job_id = site.cluster.sbatch(PRINT_ENVIRONMENT, *options, env=own)
            site.cluster.wait_job_over(job_id, deadline_s=2 * (TIMEOUT_S + 2) + 5)
        assert KEY in own or lurker.pids() == []
        other = site.cluster.sbatch("#!/bin/sh\ntrue\n", "--nodelist=n1", user=attacker.victim)
        assert site.cluster.wait_job_over(other).state == "COMPLETED"


@pytest.mark.parametrize("hook", ["prolog", "epilog", pytest.param("recover", marks=pytest.mark.one_release)])
def test_a_tracer_that_never_lets_go_delays_no_hook(quick: Site, attacker: Attacker, hook: str) -> None:
    """Even root's own: a traced process stays after its death until its tracer waits for it, and is left behind."""
    site = quick
    site.config([resource(site, {"SESSION_MAX_TTL": "3"})])
    call = "create_session" if hook == "prolog" else "update_session"
    if hook == "recover":
        with site.emulator.fault(call=call, kind="error", status=503):
            run(site, {})
    with site.emulator.held(call) as hold:
        if hook == "recover":
            process = site.popen_command("recover", "--now")
        else:
            job_id = site.cluster.sbatch("#!/bin/sh\ntrue\n", "--qpu=ibm_demo", "--nodelist=n1", "--no-requeue")
        hold.wait_for(1)
        parents = [process.pid] if hook == "recover" else site.hook_pids(hook)
        (traced,) = [child.pid for child in living() if child.parent in parents]
        with attacker.lurking("seize", as_root_on=traced) as lurker:
            wait_for(lurker.pids, "the tracer", 10)
            began_s = time.monotonic()
            if hook == "recover":
                process.communicate(timeout=TIMEOUT_S + SPARE_S)
            else:
                site.cluster.wait_job_over(job_id, deadline_s=TIMEOUT_S + SPARE_S)
            assert time.monotonic() - began_s < TIMEOUT_S + SPARE_S
            assert Path(f"/proc/{traced}").exists(), "the tracer has held it all the time"


def test_a_stopped_call_delays_no_hook(quick: Site, attacker: Attacker) -> None:
    """Users may stop their own processes; the deadline holds all the same."""
    site = quick
    site.config([resource(site, {"SESSION_MAX_TTL": "3", "IAM_APIKEY": SITES_KEY})])
    with site.emulator.held("create_session") as hold:
        options = ["--qpu=ibm_demo", "--nodelist=n1", "--no-requeue"]
        job_id = site.cluster.sbatch(PRINT_ENVIRONMENT, *options, env={KEY: API_KEY})
        hold.wait_for(1)
        ((pid, uid),) = children_of_hook(site, "prolog")
        assert uid == attacker.user.uid
        assert attacker.run(f"kill -STOP {pid}").returncode == 0
        site.cluster.wait_job_over(job_id, deadline_s=TIMEOUT_S + 5)
    assert "no answer within 2 s" in site.cluster.job_output(job_id)


# --- keeping a session open --------------------------------------------------------------------------------------


@pytest.mark.one_release
def test_a_user_cannot_keep_the_sites_session_open(site: Site, attacker: Attacker) -> None:
    """They ask for the longest life there is, and kill every call that they can: each session ends with its job."""
    site.config([resource(site)])
    with attacker.lurking("kill") as lurker:
        for _ in range(4):
            environment = environment_of(run(site, {TTL: "2147483647", TIMEOUT: "2147483647"}, "--time=2"))
            assert (environment[TTL], environment[TIMEOUT]) == ("180", "180")
        assert lurker.pids() == []
    assert site.emulator.open_sessions() == []
    assert [session["max_ttl"] for session in site.emulator.sessions()[-4:]] == [180] * 4


@pytest.mark.one_release
def test_a_user_who_kills_the_releases_of_their_own_key_delays_only_themselves(quick: Site, attacker: Attacker) -> None:
    """The record stays for recover, other jobs on the node go on, and the record goes once the session has ended."""
    site = quick
    site.config([resource(site, {"IAM_APIKEY": SITES_KEY}), site.emulator.resource("ibm_second")])
    own = {KEY: API_KEY, TTL: "3"}
    job_id = site.cluster.sbatch(LONG_SCRIPT, "--qpu=ibm_demo", "--nodelist=n1", env=own)
    wait_for(lambda: "begun" in site.cluster.job_output(job_id), f"job {job_id} to begin", 30)
    with attacker.lurking("kill") as lurker:
        let_go(site, job_id)
        assert site.cluster.wait_job_over(job_id).state == "COMPLETED"
        assert len(lurker.pids()) == 1
        (entry,) = (site.record_of(job_id) or {})["entries"]
        assert entry["state"] == "releasing"
        other = site.cluster.sbatch("#!/bin/sh\ntrue\n", "--qpu=ibm_second", "--nodelist=n1", user=attacker.victim)
        assert site.cluster.wait_job_over(other).state == "COMPLETED"
        wait_for(lambda: site.recover("--now") and site.record_of(job_id) is None, "recover to give up", 20)
    assert not site.folder_of(job_id).exists()


@pytest.mark.one_release
@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        ({TTL: "8h"}, f"{TTL} is not a whole number of seconds"),
        ({TIMEOUT: "-1"}, f"{TIMEOUT} is not a whole number of seconds"),
        ({MODE: "exclusive"}, f"{MODE} is neither dedicated nor batch"),
    ],
    ids=["ttl", "timeout", "mode"],
)
def test_a_tuned_value_that_makes_no_sense_is_refused(site: Site, own: dict[str, str], sentence: str) -> None:
    """QRMI would silently take its default, or the service would refuse it as the site's mistake."""
    before = len(site.emulator.sessions())
    job_id = site.cluster.sbatch(PRINT_ENVIRONMENT, "--qpu=ibm_demo", env=own)
    assert site.cluster.wait_job_over(job_id).state == "FAILED"
    assert sentence in site.cluster.job_output(job_id)
    assert len(site.emulator.sessions()) == before


@pytest.mark.parametrize(
    ("limit", "asked", "granted"),
    [
        pytest.param("2", "60", 60, marks=pytest.mark.one_release),
        ("2", "28800", 180),
        pytest.param("10:00:00", "2147483647", 28800, marks=pytest.mark.one_release),
        ("UNLIMITED", "99999", 28800),
    ],
)
def test_a_session_lives_as_long_as_its_job_at_most(site: Site, limit: str, asked: str, granted: int) -> None:
    """With the site's key and with the user's own, and never longer than the service allows."""
    for own in ({TTL: asked}, {TTL: asked, KEY: API_KEY}):
        site.config([resource(site, foreign(own))])
        environment = environment_of(run(site, own, f"--time={limit}"))
        assert environment[TTL] == str(granted)
        assert site.emulator.sessions()[-1]["max_ttl"] == granted


# --- how values merge --------------------------------------------------------------------------------------------

NOT_BESIDE = "which cannot be combined with the site's credentials: unset it, or bring credentials of your own"
ADDRESS = f"you set {PREFIX}ENDPOINT, so the site's credentials are not used: also set {PREFIX}IAM_APIKEY"

# What a user sets, and then whose uid calls QRMI, or why the job does not get its QPU.
COMBINATIONS: dict[str, tuple[dict[str, str], str]] = {
    "nothing": ({}, "root"),
    "tuned values": ({MODE: "batch", TTL: "100", TIMEOUT: "100"}, "root"),
    "their key": ({KEY: API_KEY}, "user"),
    "their key and tuned values": ({KEY: API_KEY, MODE: "batch", TTL: "100"}, "user"),
    "their key and CRN": ({KEY: API_KEY, CRN: SERVICE_CRN}, "user"),
    "their key under an older name": ({"ibm_demo_QRMI_IBM_QRS_IAM_APIKEY": API_KEY}, "user"),
    "their CRN": ({CRN: SERVICE_CRN}, f"you set {CRN}, {NOT_BESIDE}"),
    "a variable that QRMI does not know": ({f"{PREFIX}NOTE": "x"}, f"you set {PREFIX}NOTE, {NOT_BESIDE}"),
    "an address": ({f"{PREFIX}ENDPOINT": "URL/."}, ADDRESS),
    "an address and their CRN": ({f"{PREFIX}ENDPOINT": "URL/.", CRN: SERVICE_CRN}, ADDRESS),
    "an address and all credentials": (
        {f"{PREFIX}ENDPOINT": "URL/.", f"{PREFIX}IAM_ENDPOINT": "URL/.", KEY: API_KEY, CRN: SERVICE_CRN},
        "user",
    ),
}


@pytest.mark.one_release
@pytest.mark.parametrize("broker", [False, True], ids=["no broker", "broker"])
@pytest.mark.parametrize("combination", COMBINATIONS)
def test_how_a_users_values_merge_with_the_sites(site: Site, combination: str, broker: bool) -> None:
    """Either the site's secrets and tuned values, with root's uid, or none of the site's secrets, as the user."""
    own, outcome = COMBINATIONS[combination]
    own = {name: value.replace("URL/.", f"{site.emulator.url}/.") for name, value in own.items()}
    site.config([resource(site, foreign(own), broker=broker)])
    uid = {"root": 0, "user": site.cluster.user.uid}.get(outcome)
    with site.emulator.held("create_session") as hold:
        job_id = site.cluster.sbatch(PRINT_ENVIRONMENT, "--qpu=ibm_demo", "--nodelist=n1", env=own)
        if uid is not None:
            hold.wait_for(1)
            assert [found for _, found in children_of_hook(site, "prolog")] == [uid]
            hold.go_on()
        info = site.cluster.wait_job_over(job_id)
    output = site.cluster.job_output(job_id)
    if uid is None:
        assert info.state == "FAILED"
        assert outcome in output
        assert API_KEY not in output
        return
    assert info.state == "COMPLETED", output
    environment = environment_of(output)
    assert {name: environment[name] for name in own} == own
    assert SITES_KEY not in output
    assert (API_KEY in output) is (API_KEY in own.values() or not broker)
    assert_nothing_left(site, job_id)


def test_one_secret_of_the_users_leaves_none_of_the_sites(site: Site, services: Services) -> None:
    """They have the site's address and project, and neither its token nor the secret of another way to log in."""
    described = pasqal("pasqal-cloud", f"{services.url}/online")
    described["environment"]["QRMI_PASQAL_CLOUD_CLIENT_SECRET"] = SITES_KEY
    site.config([described])
    own = {f"{described['name']}_QRMI_PASQAL_CLOUD_AUTH_TOKEN": "the-users-own"}
    before = len(services.requests())
    job_id = site.cluster.sbatch(PRINT_ENVIRONMENT, f"--qpu={described['name']}", env=own)
    assert site.cluster.wait_job_over(job_id).state == "COMPLETED", site.cluster.job_output(job_id)
    environment = environment_of(site.cluster.job_output(job_id))
    assert environment.items() >= own.items()
    assert environment[f"{described['name']}_QRMI_PASQAL_CLOUD_PROJECT_ID"] == "test-project"
    seen = str(environment) + str(services.requests()[before:])
    assert SECRET not in seen and SITES_KEY not in seen


OLDER = {"name": "ibm_demo", "type": "qiskit-runtime-service"}


@pytest.mark.parametrize("broker", [False, True], ids=["no broker", "broker"])
def test_a_job_in_a_job_does_not_take_the_sites_values_for_the_users(site: Site, broker: bool) -> None:
    """Where the config has a variable's older name, tasks see both: neither is the user's own."""
    environment = {
        name.replace("_QCS_", "_QRS_"): value
        for name, value in site.emulator.resource("ibm_demo")["environment"].items()
    }
    site.config([{**OLDER, "environment": environment, "slurm": {"broker": broker}}])
    (site.cluster.user.home / "inner.sh").write_text("#!/bin/sh\nenv\n")
    script = "#!/bin/sh\nsbatch --qpu=ibm_demo --nodelist=n2 --output=inner.txt --wait inner.sh\n"
    once: dict[str, Any] = {"call": "create_session", "kind": "hold", "times": 1}
    with site.emulator.fault(**once) as first, site.emulator.fault(**once) as second:
        outer = site.cluster.sbatch(script, "--qpu=ibm_demo", "--nodelist=n1")
        for hold in (first, second):
            hold.wait_for(1)
            assert [uid for _, uid in children_of_hook(site, "prolog")] == [0]
            hold.go_on()
        assert site.cluster.wait_job_over(outer, deadline_s=60).state == "COMPLETED", site.cluster.job_output(outer)
    site.cluster.wait_nodes_idle()
    assert site.emulator.open_sessions() == []


def test_a_job_in_a_job_is_not_held_to_the_limit_of_the_job_around_it(site: Site) -> None:
    """Its session may live as long as the inner job, although what it inherits was capped for the outer."""
    (site.cluster.user.home / "inner.sh").write_text("#!/bin/sh\nenv\n")
    script = "#!/bin/sh\nsbatch --qpu=ibm_demo --time=9 --output=inner.txt --wait inner.sh\n"
    outer = site.cluster.sbatch(script, "--qpu=ibm_demo", "--time=2", env={TTL: "28800"})
    assert site.cluster.wait_job_over(outer, deadline_s=60).state == "COMPLETED", site.cluster.job_output(outer)
    site.cluster.wait_nodes_idle()
    assert [session["max_ttl"] for session in site.emulator.sessions()[-2:]] == [180, 600]
