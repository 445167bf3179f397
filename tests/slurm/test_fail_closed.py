"""What cannot be decided or proven is refused or kept, on real nodes: access, licenses, tokens and sessions."""

import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from slurm.aftermath import SCRIPT, assert_why, let_go, start_long_job
from slurm.cluster import ClusterOptions
from slurm.jobs import PRINT_ENVIRONMENT, environment_of
from slurm.polling import wait_for
from slurm.release import LICENSES_IN_FIRST_COMPONENT
from slurm.site import Site, SiteOptions
from slurm.test_fault_of_the_state import fill

BACKENDS = ("ibm_demo", "ibm_second")
LICENSES = {"qpu_ibm_demo": 1, "qpu_ibm_second": 1}
HOLD_PREFIX = "qpu_held_"
one_release = pytest.mark.one_release
# What submits a job as if there were no job_submit.lua of ours: slurmctld reads the file again when it has changed.
NO_JOB_SUBMIT = """function slurm_job_submit() return slurm.SUCCESS end
function slurm_job_modify() return slurm.SUCCESS end
return slurm.SUCCESS
"""


@pytest.fixture(scope="module")
def closed_site() -> Iterator[Site]:
    """Start a site of two nodes whose QPUs are licenses, and whose login nodes have no filter."""
    cluster = ClusterOptions(nodes=2, settings={"CliFilterPlugins": ""})
    options = SiteOptions(cluster, dict.fromkeys(BACKENDS, "FakeSherbrooke"), watched=True, licenses=LICENSES)
    with Site(options) as started:
        yield started


@pytest.fixture
def site(closed_site: Site) -> Iterator[Site]:
    """Return the module's site as it was at first."""
    closed_site.reset()
    yield closed_site
    # What a test has left out of service.
    for name in holds(closed_site):
        closed_site.cluster.slurm("scontrol", "delete", f"ReservationName={name}")


def write_config(site: Site, **sections: Mapping[str, Any]) -> None:
    """Write the config with these `slurm` sections."""
    site.config([{**site.emulator.resource(name), "slurm": dict(sections.get(name, {}))} for name in BACKENDS])


@contextmanager
def without_job_submit(site: Site) -> Iterator[None]:
    """Submit jobs to a controller that gives them no license, as for a site without our Lua, until the block ends."""
    path = site.cluster.etc / "job_submit.lua"
    kept = path.read_text()
    _write_later(path, NO_JOB_SUBMIT)
    try:
        yield
    finally:
        _write_later(path, kept)


def _write_later(path: Path, text: str) -> None:
    """Write a file with a time later than any that it had: slurmctld compares seconds, and misses a second change."""
    later_s = max(time.time(), path.stat().st_mtime) + 1
    path.write_text(text)
    os.utime(path, (later_s, later_s))


def run(site: Site, selection: str, *options: str, script: str = PRINT_ENVIRONMENT) -> tuple[str, str]:
    """Run a batch job, and return its state and its output."""
    job_id = site.cluster.sbatch(script, f"--qpu={selection}", *options)
    state, output = site.cluster.wait_job(job_id).state, site.cluster.job_output(job_id)
    if state == "FAILED":
        reason = output.partition(" has no QPU: ")[2].partition("\n")[0]
        assert_why(site, job_id, f"failed: {reason[:200]}")
    return state, output


def licenses_of(site: Site, job_id: int | str) -> list[str]:
    """Return the licenses of each job of an array, or component."""
    return [info.fields["Licenses"] for info in site.cluster.jobs(job_id)]


def holds(site: Site) -> list[str]:
    """Return the reservations that keep licenses until a release is proven."""
    shown = site.cluster.slurm("scontrol", "show", "reservations", "--oneliner")
    return re.findall(rf"ReservationName=({HOLD_PREFIX}\S+)", shown)


# --- who may use a QPU -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"slurm": {"alow": {"users": ["root"]}}}, 'unknown key "alow" in "slurm"'),
        pytest.param({"slurm": {"allow": "root"}}, "expected an object {...}, found a string", marks=one_release),
        pytest.param({"slrum": {"allow": {"users": ["root"]}}}, 'unknown key "slrum"', marks=one_release),
    ],
)
def test_a_rule_that_is_misspelled_lets_nobody_in(site: Site, section: dict[str, Any], told: str) -> None:
    """The user learns which QPU and whom to tell, the admin which key; the site's other QPUs go on."""
    site.config([{**site.emulator.resource("ibm_demo"), **section}, site.emulator.resource("ibm_second")])
    done = site.command("validate-config")
    assert (done.returncode, told in done.stdout) == (1, True), done.stdout
    refused = site.cluster.run_as_user(["sbatch", "--qpu=ibm_demo", "--wrap=true"])
    assert "may not use ibm_demo: it is for nobody until an admin has fixed its configuration" in refused.stderr
    count = len(site.emulator.sessions())
    with without_job_submit(site):
        state, output = run(site, "ibm_demo")
        assert state == "FAILED"
        sentence = "the site's configuration of it cannot be used; please tell an admin"
        assert f"has no QPU: ibm_demo could not be acquired: {sentence}" in output
        assert len(site.emulator.sessions()) == count
        assert environment_of(run(site, "ibm_*")[1])["QRMI_JOB_QPU_RESOURCES"] == "ibm_second"
    key = next(iter(section)) if "slurm" not in section else next(iter(section["slurm"]))
    assert re.search(rf"not-acquired: job=\d+ qpu=ibm_demo .*{key}", site.hooks_log())


def test_a_rule_that_waits_for_a_newer_version_keeps_waiting_jobs_waiting(site: Site) -> None:
    """The sensor takes the license of a QPU that the hooks refuse out of service, and puts it back."""
    write_config(site, ibm_demo={"of_a_newer_version": True})
    assert "ibm_demo" in site.command("sensor", "--json").stdout
    shown = site.cluster.slurm("scontrol", "show", "reservations")
    assert "qpu_out_qpu_ibm_demo" in shown
    assert "misconfigured" in shown
    write_config(site)
    site.command("sensor")
    assert "qpu_out" not in site.cluster.slurm("scontrol", "show", "reservations")


@one_release
def test_a_config_that_others_can_change_is_no_valid_config(site: Site) -> None:
    """By its mode or its owner: the hooks refuse it, and validate-config says so and what to do."""
    for change in ((0, 0o666), (site.cluster.user.uid, 0o600)):
        write_config(site)
        site.config_path.chmod(change[1])
        subprocess.run(["chown", str(change[0]), site.config_path], check=True)
        done = site.command("validate-config")
        assert done.returncode == 1
        assert "error QS111: users other than root can change the file" in done.stdout
        assert "chown root:root FILE && chmod 0600 FILE" in done.stdout
    state, output = run(site, "ibm_demo")
    assert state == "FAILED"
    assert "the site's QPU configuration cannot be used; please tell an admin" in output


# --- a licensed QPU has its license ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "selection",
    [
        "ibm_*",
        pytest.param("any:ibm-quantum-compute-service", marks=one_release),
        pytest.param("least-busy:ibm_*", marks=one_release),
    ],
)
def test_a_choice_beside_a_qpu_without_license_takes_no_license_of_another_job(site: Site, selection: str) -> None:
    """The preferred QPU is another job's; the one that nothing counts is there for everybody."""
    write_config(site, ibm_second={"license": None})
    site.emulator.control("POST", "backends/ibm_second", {"status": "online", "queue": 9})
    try:
        first = start_long_job(site)
        output = run(site, selection)[1]
        assert environment_of(output)["QRMI_JOB_QPU_RESOURCES"] == "ibm_second", output
        let_go(site, first)
        site.cluster.wait_job_over(first)
        job_id = site.cluster.sbatch(PRINT_ENVIRONMENT, f"--qpu={selection}")
        assert site.cluster.wait_job_over(job_id).state == "COMPLETED"
        assert environment_of(site.cluster.job_output(job_id))["QRMI_JOB_QPU_RESOURCES"] == "ibm_demo"
        assert licenses_of(site, job_id) == ["qpu_ibm_demo:1"]
    finally:
        site.emulator.control("POST", "backends/ibm_second", {"status": "online", "queue": 0})


def test_a_job_that_was_submitted_past_job_submit_gets_its_license_in_prolog(site: Site) -> None:
    """As over a controller without our Lua. The second finds it taken, and gets nothing."""
    with without_job_submit(site):
        first = start_long_job(site)
        assert licenses_of(site, first) == ["qpu_ibm_demo:1"]
        state, output = run(site, "ibm_demo", "--no-requeue")
        assert state == "FAILED"
        assert "has no QPU: ibm_demo is held by other jobs" in output
        waiting = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo")
        wait_for(lambda: site.cluster.job(waiting).restarts == 1, "it to be requeued", 30)
        wait_for(lambda: ",license,ibm_demo," in site.cluster.job(waiting).fields.get("AdminComment", ""), "why", 20)
        site.cluster.slurm("scancel", str(waiting))
        assert len(site.emulator.open_sessions()) == 1
        let_go(site, first)
        site.cluster.wait_job_over(first)


def test_each_task_of_an_array_gets_a_license_of_its_own(site: Site) -> None:
    """The last task has the array's id: an update of that would change all of them."""
    with without_job_submit(site):
        script = "#!/bin/sh\necho begun\nwhile [ ! -e go-all ]; do sleep 0.05; done\n"
        job_id = site.cluster.sbatch(script, "--qpu=ibm_*", "--array=1-2")
        wait_for(lambda: len(site.emulator.open_sessions()) == 2, "both tasks to have a QPU", 30)
        found = [info.fields["Licenses"] for info in site.cluster.jobs(job_id)]
        assert sorted(found) == ["qpu_ibm_demo:1", "qpu_ibm_second:1"]
        (site.cluster.user.home / "go-all").touch()
        site.cluster.wait_nodes_idle()
    assert not site.emulator.open_sessions()


def test_a_component_without_license_gets_no_qpu(site: Site) -> None:
    """Slurm changes the licenses of all components at once, so none is changed."""
    count = len(site.emulator.sessions())
    with without_job_submit(site):
        job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo", ":", "--qpu=ibm_second")
        infos = [site.cluster.wait_job(info.job_id) for info in site.cluster.jobs(job_id)]
        site.cluster.wait_nodes_idle()
    assert infos[0].state == "FAILED"
    assert len(site.emulator.sessions()) == count
    assert "a component of a heterogeneous job cannot change its licenses" in site.hooks_log()
    assert_why(site, f"{job_id}+0", "failed: ibm_demo could not be acquired: a component of a heterogeneous job cannot")
    if LICENSES_IN_FIRST_COMPONENT.is_here:
        assert "Slurm accepts licenses only in a heterogeneous job's first component" in site.hooks_log()


@one_release
def test_a_device_behind_a_dynamic_resource_keeps_its_own_rules(site: Site) -> None:
    """A QPU with an entry of its own has that entry's license and access rules, whatever name found it."""
    dynamic = {**site.emulator.resource("instance"), "is_dynamic": True, "slurm": {"license": None}}
    own = {**site.emulator.resource("ibm_demo"), "slurm": {"allow": {"users": ["root"]}}}
    site.emulator.control("POST", "backends/ibm_second", {"status": "online", "queue": 9})
    try:
        site.config([dynamic, own])
        assert environment_of(run(site, "instance")[1])["QRMI_JOB_QPU_RESOURCES"] == "ibm_second"
        site.config([dynamic, site.emulator.resource("ibm_demo")])
        first = start_long_job(site)
        assert environment_of(run(site, "instance")[1])["QRMI_JOB_QPU_RESOURCES"] == "ibm_second"
        let_go(site, first)
        site.cluster.wait_job_over(first)
    finally:
        site.emulator.control("POST", "backends/ibm_second", {"status": "online", "queue": 0})


# --- no token is thrown away -------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(site: Site) -> Iterator[Path]:
    """Put the state directory on a file system of its own, of one megabyte."""
    place = site.cluster.folder / "small"
    place.mkdir(mode=0o711, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=0711", "tmpfs", place], check=True)
    kept, site.state_dir = site.state_dir, place
    site.plugstack(site.plugstack_line())
    try:
        yield place
    finally:
        site.state_dir = kept
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.mark.one_release
@pytest.mark.parametrize("fault", [{}, {"call": "update_session", "kind": "error", "status": 500, "times": 1}])
def test_a_token_that_no_disk_takes_is_released_at_once(site: Site, small_disk: Path, fault: dict[str, Any]) -> None:
    """The disk is full when the service answers; where the first release fails as well, it is tried again."""
    with site.emulator.held("create_session", when="after") as held:
        job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo", "--nodelist=n1")
        held.wait_for(1)
        fill(small_disk)
        if fault:
            site.emulator.control("POST", "faults", fault)
        held.go_on()
    assert site.cluster.wait_job(job_id).state == "FAILED"
    wait_for(lambda: not site.emulator.open_sessions(), "the session to be closed", 30)
    assert len(site.emulator.sessions()) > 0
    log = site.hooks_log()
    assert f'not-journaled: job={job_id} qpu=ibm_demo type=ibm-quantum-compute-service reason="No space left' in log
    assert f"given-back: job={job_id} qpus=ibm_demo" in log
    assert_why(site, job_id, "failed: ", as_user=True)
    (small_disk / "filler").unlink()
    site.cluster.wait_nodes_idle()
    assert site.recover("--now")["left"] == 0


@one_release
def test_exports_that_cannot_be_written_keep_no_qpu(site: Site) -> None:
    """Its tasks would never learn of it, and an allocation without a task might last for hours."""
    with site.emulator.held("create_session") as held:
        job_id = site.cluster.sbatch("#!/bin/sh\nsleep 300\n", "--qpu=ibm_demo", "--nodelist=n1")
        held.wait_for(1)
        (site.folder_of(job_id) / "exports").mkdir()  # a file cannot replace it
        held.go_on()
    wait_for(lambda: f"given-back: job={job_id} qpus=ibm_demo" in site.hooks_log(), "Prolog to say so", 20)
    wait_for(lambda: not site.emulator.open_sessions(), "the session to be closed", 20)
    (site.folder_of(job_id) / "exports").rmdir()
    assert site.cluster.wait_job_over(job_id).state == "FAILED"
    assert_why(site, job_id, "failed: cannot write ")


# --- a late answer -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "are_users",
    [pytest.param(False, id="the site's key"), pytest.param(True, id="the user's own", marks=one_release)],
)
@pytest.mark.parametrize("is_epilog_first", [True, False])
def test_a_late_answer_is_awaited_and_released(site: Site, are_users: bool, is_epilog_first: bool) -> None:
    """The session is closed soon after the answer, without recover; Prolog and the job do not wait for it."""
    site.plugstack(site.plugstack_line("--acquire-timeout=2"))
    resource = site.emulator.resource("ibm_demo")
    env = {f"ibm_demo_{name}": value for name, value in resource["environment"].items()} if are_users else {}
    if are_users:
        site.config([{**resource, "environment": {}}])
    with site.hold("after-prolog" if not is_epilog_first else "after-epilog"):
        with site.emulator.held("create_session", when="after") as held:
            job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo", "--nodelist=n1", "--no-requeue", env=env)
            held.wait_for(1)
            site.wait_hook_run("after-epilog" if is_epilog_first else "after-prolog", job_id)
            record = site.record_of(job_id)
            assert record is not None
            assert record["entries"][0]["state"] == "indeterminate"
            assert "the answer is awaited for another 30 s" in record["entries"][0]["reason"]
            assert len(site.emulator.open_sessions()) == 1
        wait_for(lambda: not site.emulator.open_sessions(), "the session to be closed", 20)
    assert site.cluster.wait_job_over(job_id).state == "FAILED"
    assert f"awaited: job={job_id} qpu=ibm_demo" in site.hooks_log()
    assert "no answer within 2 s" in site.cluster.job_output(job_id)
    assert_why(site, job_id, "failed: ibm_demo could not be acquired: no answer within 2 s")
    wait_for(lambda: not site.folder_of(job_id).exists(), "the record to be gone", 20)


@pytest.mark.one_release
def test_a_late_answer_whose_waiting_process_was_killed_is_recovered(site: Site) -> None:
    """The call has written the token to its journal, and recover does not wait for the session's own end."""
    site.plugstack(site.plugstack_line("--acquire-timeout=2"))
    with site.emulator.held("create_session", when="after") as held:
        job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo", "--nodelist=n1", "--no-requeue")
        held.wait_for(1)
        site.wait_hook_run("after-epilog", job_id)
        call, waiting = sorted(site.call_pids("prolog"))
        subprocess.run(["kill", "-KILL", str(waiting)], check=True)
    wait_for(lambda: (site.folder_of(job_id) / "token-0").stat().st_size, "the token in its journal", 20)
    assert call not in [waiting]
    (result,) = site.recover()["jobs"]
    assert result["outcome"] == "released"
    assert not site.emulator.open_sessions()


# --- a failed release --------------------------------------------------------------------------------------------


@contextmanager
def releases_fail(site: Site) -> Iterator[None]:
    """Let the service refuse to close ibm_demo's sessions until the block ends."""
    with site.emulator.fault(call="update_session", kind="error", status=500, times=1000):
        yield


def test_a_job_has_its_license_until_its_epilog_has_ended(site: Site) -> None:
    """What everything below builds on: Slurm gives nothing back before that."""
    with site.hold("before-epilog"):
        job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo", "--nodelist=n1")
        site.wait_hook_run("before-epilog", job_id)
        wait_for(lambda: site.cluster.job(job_id).state == "COMPLETING", "slurmctld to know that it has ended", 20)
        assert " Used=1 " in site.cluster.slurm("scontrol", "--oneliner", "show", "lic", "qpu_ibm_demo")
    site.cluster.wait_job_over(job_id)


def test_a_qpu_counts_as_held_until_its_release_is_proven(site: Site) -> None:
    """The next job waits in the queue, and starts as soon as recover has released the session."""
    with releases_fail(site):
        first = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo", "--nodelist=n1")
        site.cluster.wait_job_over(first)
        (held,) = holds(site)
        second = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo")
        wait_for(lambda: site.cluster.job(second).reason == "Licenses", "it to wait for the license", 20)
        assert_why(site, second, f"waits for ibm_demo: job {first} has ended, and its session is not proven closed; ")
        assert site.recover("--now")["left"] == 1
        assert holds(site) == [held]
        assert site.cluster.job(second).state == "PENDING"
        assert len(site.emulator.open_sessions()) == 1
    site.recover("--now")
    assert holds(site) == []
    assert site.cluster.wait_job_over(second).state == "COMPLETED"
    assert not site.emulator.open_sessions()


@pytest.mark.one_release
def test_a_hold_ends_with_the_session(site: Site) -> None:
    """Nothing has to run for that: it is in Slurm, which ends it with the session's time to live."""
    with releases_fail(site):
        job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo", "--time=2", "--nodelist=n1")
        site.cluster.wait_job_over(job_id)
    record = site.record_of(job_id)
    assert record is not None
    entry = record["entries"][0]
    shown = site.cluster.slurm("scontrol", "show", "reservations", "--oneliner", SLURM_TIME_FORMAT="%s")
    (end,) = re.findall(rf"ReservationName={entry['hold']} StartTime=\d+ EndTime=(\d+)", shown)
    assert abs(int(end) - entry["expires_s"]) < 60
    site.recover("--now")
    assert holds(site) == []


def test_an_epilog_that_is_killed_keeps_the_license(site: Site) -> None:
    """Its shell starts Python once more, which has the time for that."""
    with site.emulator.held("update_session") as held:
        job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo", "--nodelist=n1")
        held.wait_for(1)
        for pid in site.hook_pids("epilog"):
            subprocess.run(["kill", "-KILL", str(pid)], check=True)
        wait_for(lambda: len(holds(site)) == 1, "the license to be kept", 20)
        site.cluster.wait_job_over(job_id)
    site.recover("--now")
    assert holds(site) == []
    assert not site.emulator.open_sessions()


def test_a_job_that_meets_an_open_session_goes_back_to_the_queue(site: Site) -> None:
    """Without a reservation, as after the death of a node: Prolog finds the other job's record in time."""
    site.plugstack(site.plugstack_line("--acquire-timeout=4"))
    with releases_fail(site):
        first = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo", "--nodelist=n1")
        site.cluster.wait_job_over(first)
        (held,) = holds(site)
        site.cluster.slurm("scontrol", "delete", f"ReservationName={held}")
        second = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo", "--nodelist=n2")
        wait_for(lambda: site.cluster.job(second).restarts == 1, "it to be requeued", 30)
        site.cluster.wait_nodes_idle()
        assert site.cluster.job(second).state == "PENDING"
        assert "the-script-ran" not in site.cluster.job_output(second)
        assert f"requeued: job={second}" in site.hooks_log()
        done = site.cluster.run_as_user(["srun", "--qpu=ibm_demo", "true"])
        assert done.returncode != 0
        assert f"ibm_demo is still held: the session of job {first} is not proven closed" in done.stdout + done.stderr
        assert len(site.emulator.open_sessions()) == 1
        site.cluster.slurm("scancel", str(second))
    site.recover("--now")
    assert not site.emulator.open_sessions()
