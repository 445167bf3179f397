"""A batch job whose QPU is not there goes back into the queue: no script, no session, and the reason to be seen."""

import json
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pytest

from bench.rpcs import rpcs
from slurm.aftermath import SCRIPT, assert_nothing_left
from slurm.cluster import ClusterOptions, JobInfo
from slurm.jobs import PRINT_ENVIRONMENT
from slurm.polling import wait_for
from slurm.release import HOOKS_KNOW_TIMES
from slurm.site import Site, SiteOptions

BACKENDS = ("ibm_demo", "ibm_second")
LICENSES = {"qpu_ibm_demo": 1, "qpu_ibm_second": 1}
# No session can have been opened, so the next start need not wait until that is certain.
UNAVAILABLE: dict[str, Any] = {"call": "iam_token", "kind": "error", "status": 503}
one_release = pytest.mark.one_release


class Word(NamedTuple):
    """What our word in a job's AdminComment says, and what is beside it."""

    times: int
    kind: str
    qpu: str
    since_s: int
    others: str


@pytest.fixture(scope="module")
def queueing_site() -> Iterator[Site]:
    """Start a site of two nodes with our Lua in slurmctld, which sees each change of a waiting job."""
    options = SiteOptions(
        ClusterOptions(nodes=2, requeue_after_s=20),
        dict.fromkeys(BACKENDS, "FakeSherbrooke"),
        watched=True,
        licenses=LICENSES,
    )
    with Site(options) as started:
        yield started


@pytest.fixture
def site(queueing_site: Site) -> Iterator[Site]:
    """Return the module's site as it was at first, with all QPUs online and none of them counted."""
    queueing_site.reset()
    count(queueing_site)
    yield queueing_site
    for name in BACKENDS:
        state(queueing_site, name, "online")


def count(site: Site, *licensed: str) -> None:
    """Let Slurm count these QPUs, and no others."""
    resources = [site.emulator.resource(name) for name in BACKENDS]
    site.config([item | ({} if item["name"] in licensed else {"slurm": {"license": None}}) for item in resources])


def state(site: Site, name: str, status: str) -> None:
    """Set the state that the service reports of a QPU."""
    site.emulator.control("POST", f"backends/{name}", {"status": status})


def word_of(info: JobInfo) -> Word:
    """Return our word in a job's AdminComment."""
    comment = info.fields.get("AdminComment", "")
    match = re.search(r"qrmi-slurm:requeued=(\d+),([a-z-]+),(\S+?),(\d+),\d+(?: |$)", comment)
    assert match is not None, comment
    times, kind, qpu, since_s = match.groups()
    return Word(int(times), kind, qpu, int(since_s), comment.replace(match[0], "").strip())


def wait_requeued(site: Site, job_id: int | str, restarts: int = 1) -> JobInfo:
    """Wait until a job is back in the queue for good, and put off; its script has not run."""
    info = wait_back(site, job_id, restarts)
    assert "the-script-ran" not in site.cluster.job_output(job_id)
    return info


def wait_back(site: Site, job_id: int | str, restarts: int = 1) -> JobInfo:
    """Wait until a job is back in the queue for good, and put off."""

    def is_waiting() -> JobInfo | None:
        info = site.cluster.job(job_id)
        is_back = (info.state, info.restarts) == ("PENDING", restarts) and "AdminComment" in info.fields
        return info if is_back else None

    return wait_for(is_waiting, f"job {job_id} to be requeued", 30, on_timeout=lambda: site.cluster.log_tail("hooks"))


def start_now(site: Site, job_id: int | str) -> None:
    """Let a job that waits for its next start have it at once, or as soon as slurmd tells its runs apart."""
    site.cluster.wait_nodes_idle()
    apart_s = 1 if HOOKS_KNOW_TIMES.is_here else 2  # before 23.02 slurmd forgets credentials every other second
    ended_s = int(time.time())
    wait_for(lambda: int(time.time()) > ended_s + apart_s, "the next second", 5)
    site.cluster.slurm("scontrol", "update", f"JobId={job_id}", "StartTime=now")


def wait_completed(site: Site, job_id: int | str) -> str:
    """Let a requeued job start; return the output of its script."""
    start_now(site, job_id)
    assert site.cluster.wait_job_over(job_id, deadline_s=60).state == "COMPLETED", site.cluster.job_output(job_id)
    return site.cluster.job_output(job_id)


def test_a_job_waits_while_its_qpu_is_paused(site: Site) -> None:
    """It waits twice as long after the second start; what others wrote stays; then it runs, and sees the restarts."""
    state(site, "ibm_demo", "paused")
    count_before = len(site.emulator.sessions())
    script = f"{SCRIPT}echo restarts $SLURM_RESTART_COUNT\n"
    job_id = site.cluster.sbatch(script, "--qpu=ibm_demo", "--comment=my own words", "--hold")
    site.cluster.slurm("scontrol", "update", f"JobId={job_id}", "AdminComment=seen  by the site")
    site.cluster.slurm("scontrol", "release", str(job_id))
    first = wait_requeued(site, job_id)
    word = word_of(first)
    assert (word.times, word.kind, word.qpu, word.others) == (1, "paused", "ibm_demo", "seen  by the site")
    assert abs(time.time() - word.since_s) < 60
    assert first.fields["Comment"] == "my own words"
    assert f"requeued: job={job_id} " in site.hooks_log()
    assert_nothing_left(site, job_id)
    assert not (site.cluster.user.home / f"slurm-{job_id}.out").exists()
    assert 20 <= delay_s(site, job_id) <= 31
    start_now(site, job_id)
    second = word_of(wait_requeued(site, job_id, restarts=2))
    assert second == word._replace(times=2)
    assert 40 <= delay_s(site, job_id) <= 61
    assert len(site.emulator.sessions()) == count_before, "no session was opened on a paused QPU"
    state(site, "ibm_demo", "online")
    assert "restarts 2" in wait_completed(site, job_id)
    assert_nothing_left(site, job_id)


def delay_s(site: Site, job_id: int) -> float:
    """Return how long a job was put off at its last failed start, in seconds."""
    said = re.findall(rf"requeued: job={job_id} restart=\d+ seconds=(\d+)", site.hooks_log())
    shown = site.cluster.slurm("squeue", "--noheader", "--format=%S", f"--jobs={job_id}", SLURM_TIME_FORMAT="%s")
    left_s = float(shown) - time.time()
    assert left_s <= int(said[-1]) + 1, "Slurm starts it when our hook has said"
    return float(said[-1])


def test_jobs_that_are_not_to_wait_fail_at_once(site: Site) -> None:
    """srun, --no-requeue, and a site that says so: the reason is in the output, as ever."""
    state(site, "ibm_demo", "offline")
    sentence = "has no QPU: ibm_demo could not be acquired: the QPU is offline"
    done = site.cluster.run_as_user(["srun", "--qpu=ibm_demo", "true"])
    assert done.returncode != 0
    assert sentence in done.stdout + done.stderr
    for arguments, options in (((), ("--no-requeue",)), (("--on-unavailable=fail",), ())):
        site.plugstack(site.plugstack_line(*arguments))
        job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo", *options)
        assert site.cluster.wait_job_over(job_id).state == "FAILED"
        output = site.cluster.job_output(job_id)
        assert sentence in output and "queue" not in output
        assert "AdminComment" not in site.cluster.job(job_id).fields
    assert "requeued:" not in "".join(site.hooks_log().splitlines()[-4:])


@one_release
def test_a_job_that_has_waited_for_too_long_fails_with_the_whole_story(site: Site) -> None:
    """The site's limit counts from its first failed start."""
    site.plugstack(site.plugstack_line("--requeue-limit=0.001"))
    state(site, "ibm_demo", "offline")
    job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo")
    word = word_of(wait_requeued(site, job_id))
    wait_for(lambda: time.time() - word.since_s >= 4, "the limit to pass", 10)
    start_now(site, job_id)
    assert site.cluster.wait_job_over(job_id).state == "FAILED"
    output = site.cluster.job_output(job_id)
    assert "has no QPU: ibm_demo could not be acquired: the QPU is offline" in output
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(word.since_s))
    assert f"it was put back into the queue once since {since}, and this site's limit is 0.001 h" in output


@one_release
def test_a_job_whose_deadline_leaves_no_time_fails(site: Site) -> None:
    """Slurm would end it in the queue, without a word of ours."""
    state(site, "ibm_demo", "offline")
    job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo", "--time=1", "--deadline=now+2minutes")
    assert site.cluster.wait_job_over(job_id).state == "FAILED"
    assert "its --deadline leaves no time to wait" in site.cluster.job_output(job_id)


def test_of_an_array_only_the_tasks_wait_whose_qpu_is_not_there(site: Site) -> None:
    """The last task has the array's own id, and its requeue leaves the other alone."""
    with site.emulator.fault(**UNAVAILABLE):
        job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo", "--array=1-2")
        for task in (1, 2):
            assert word_of(wait_requeued(site, f"{job_id}_{task}"))[:3] == (1, "service-error", "ibm_demo")
    wait_completed(site, f"{job_id}_2")
    assert site.cluster.job(f"{job_id}_1").state == "PENDING"
    wait_completed(site, f"{job_id}_1")
    assert not site.emulator.open_sessions()


def test_all_components_of_a_heterogeneous_job_wait_for_each_other(site: Site) -> None:
    """The second cannot have its QPU: the first gives its own back. Slurm may have begun its script by then."""
    state(site, "ibm_second", "paused")
    lasting = SCRIPT.replace("\n", '\n[ -n "$SLURM_RESTART_COUNT" ] || sleep 60\n', 1)  # a job that is over cannot wait
    job_id = site.cluster.sbatch(lasting, "--qpu=ibm_demo", ":", "--qpu=ibm_second")
    assert word_of(wait_back(site, job_id))[:3] == (1, "paused", "ibm_second")
    site.cluster.wait_nodes_idle()
    infos = site.cluster.jobs(job_id)
    assert [(info.state, info.restarts) for info in infos] == [("PENDING", 1)] * 2
    assert not site.emulator.open_sessions()
    state(site, "ibm_second", "online")
    wait_completed(site, job_id)
    assert not site.emulator.open_sessions()


@one_release
def test_a_job_of_which_one_qpu_is_not_there_waits_only_where_it_needs_all(site: Site) -> None:
    """By default it runs with the other; with --require=all the other is released before it goes back."""
    state(site, "ibm_second", "offline")
    job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo,ibm_second")
    assert site.cluster.wait_job_over(job_id).state == "COMPLETED"
    site.plugstack(site.plugstack_line("--require=all"))
    before = len(site.emulator.sessions())
    job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo,ibm_second")
    assert word_of(wait_requeued(site, job_id))[:3] == (1, "offline", "ibm_second")
    assert [session["state"] for session in site.emulator.sessions()[before:]] == ["closed"]
    state(site, "ibm_second", "online")
    wait_completed(site, job_id)
    wrong = site.emulator.resource("ibm_second")
    wrong["environment"] |= {"QRMI_IBM_QCS_IAM_APIKEY": "nobody-knows-this-key"}
    site.config(
        [site.emulator.resource("ibm_demo") | {"slurm": {"license": None}}, wrong | {"slurm": {"license": None}}]
    )
    state(site, "ibm_demo", "offline")
    job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo,ibm_second")
    assert site.cluster.wait_job_over(job_id).state == "FAILED", "a key that is refused stays refused"


def test_a_job_with_a_license_keeps_it_and_the_sensors_word(site: Site) -> None:
    """Through the queue and through job_submit.lua, which sees what the hook changes."""
    count(site, *BACKENDS)
    with site.emulator.fault(**UNAVAILABLE):
        job_id = site.cluster.sbatch(PRINT_ENVIRONMENT, "--qpu=any:ibm_*")
        info = wait_requeued(site, job_id)
    word = word_of(info)
    assert word.others == "qrmi-slurm:any=qpu_ibm_demo|qpu_ibm_second"
    assert word.kind == "service-error"
    assert info.fields["Licenses"] in ("qpu_ibm_demo:1", "qpu_ibm_second:1")
    assert set(site.outages()) == {"qpu_out_qpu_ibm_demo", "qpu_out_qpu_ibm_second"}, "the sensor was told as well"
    wait_for(lambda: json.loads(site.command("sensor", "--json").stdout)["out"] == {}, "the QPUs to come back", 30)
    wait_completed(site, job_id)


def test_a_job_that_is_cancelled_during_its_prolog_stays_cancelled(site: Site) -> None:
    """A plain requeue would bring it back. One that waits in the queue is cancelled like any other."""
    site.plugstack(site.plugstack_line("--acquire-timeout=3"))
    with site.emulator.held("create_session") as held:
        job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo", "--nodelist=n1")
        held.wait_for(1)
        site.cluster.slurm("scancel", str(job_id))
        site.wait_hook_run("after-prolog", job_id)
    info = site.cluster.wait_job_over(job_id)
    assert (info.state, info.restarts) == ("CANCELLED", 0)
    site.command("release", "--forget", "--yes", str(job_id))
    state(site, "ibm_demo", "offline")
    job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo")
    wait_requeued(site, job_id)
    site.cluster.slurm("scancel", str(job_id))
    assert site.cluster.wait_job(job_id).state == "CANCELLED"
    assert_nothing_left(site, job_id)


@one_release
def test_a_job_that_is_held_meanwhile_stays_held(site: Site) -> None:
    """Its user may hold it while it waits for its QPU; it then waits for both."""
    state(site, "ibm_demo", "offline")
    job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo")
    wait_requeued(site, job_id)
    state(site, "ibm_demo", "online")
    site.cluster.slurm("scontrol", "hold", str(job_id))
    start_now(site, job_id)
    assert site.cluster.job(job_id).reason == "JobHeldUser" or site.cluster.job(job_id).reason == "JobHeldAdmin"
    site.cluster.slurm("scontrol", "release", str(job_id))
    assert site.cluster.wait_job_over(job_id).state == "COMPLETED"


def test_a_slurmctld_that_hangs_at_that_moment(site: Site) -> None:
    """Nothing is lost: the job fails, says why it could not wait, and the node stays in service."""
    site.plugstack(site.plugstack_line("--acquire-timeout=4"))
    with site.emulator.held("create_session") as held:
        job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo", "--nodelist=n1")
        held.wait_for(1)
        site.cluster.signal_daemon("slurmctld", signal.SIGSTOP)
        try:
            site.wait_hook_run("after-prolog", job_id)
        finally:
            site.cluster.signal_daemon("slurmctld", signal.SIGCONT)
    assert site.cluster.wait_job_over(job_id, deadline_s=60).state == "FAILED"
    output = site.cluster.job_output(job_id)
    assert "has no QPU: ibm_demo could not be acquired: no answer within 4 s" in output
    assert "it could not be put back into the queue: scontrol did not answer" in output
    site.command("release", "--forget", "--yes", str(job_id))


HOSTILE: dict[str, Mapping[str, str]] = {
    "name": {"job-name": "x\n   WorkDir=/x\n   AdminComment=forged qrmi-slurm:any=a|b\n   StdErr=x"},
    "comment": {"comment": "x\n   WorkDir=/x\n   AdminComment=forged qrmi-slurm:any=a|b\n   StdErr=x"},
}


@pytest.mark.parametrize("where", [pytest.param("name"), pytest.param("comment", marks=one_release)])
def test_a_user_cannot_write_into_the_admin_comment(site: Site, where: str) -> None:
    """What looks like one in a job's name or comment is not taken for it, and an admin's two lines stay."""
    state(site, "ibm_demo", "offline")
    options = [f"--{name}={value}" for name, value in HOSTILE[where].items()]
    job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo", "--hold", *options)
    site.cluster.slurm("scontrol", "update", f"JobId={job_id}", "AdminComment=first line\nsecond line")
    site.cluster.slurm("scontrol", "release", str(job_id))
    wait_for(lambda: f"requeued: job={job_id} " in site.hooks_log(), "it to be requeued", 30)
    site.wait_hook_run("after-epilog", job_id)
    shown = site.cluster.slurm("squeue", "--noheader", "--Format=admin_comment:0", f"--jobs={job_id}")
    assert re.fullmatch(r"first line\nsecond line qrmi-slurm:requeued=1,offline,ibm_demo,\d+,1\s*", shown), shown
    site.cluster.slurm("scancel", str(job_id))


def test_what_a_start_costs_slurmctld(site: Site) -> None:
    """None of these for one that succeeds, three for one that fails; before 23.02 each asks for its time limit."""
    of_each_job = 0 if HOOKS_KNOW_TIMES.is_here else 1
    for status, failed in (("online", 0), ("offline", 1)):
        state(site, "ibm_demo", status)
        site.cluster.wait_nodes_idle()
        before = Counter(rpcs(site.cluster))
        with site.hold("after-prolog"):
            job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo", "--nodelist=n1")
            site.wait_hook_run("after-prolog", job_id)
            found = Counter(rpcs(site.cluster)) - before
        asked = {name: count for name, count in found.items() if re.search("JOB_INFO|JOB_REQUEUE|UPDATE_JOB", name)}
        wanted = {"JOB_INFO_SINGLE": of_each_job + failed, "JOB_REQUEUE": failed, "UPDATE_JOB": failed}
        assert asked == {f"REQUEST_{name}": count for name, count in wanted.items() if count}
    site.cluster.slurm("scancel", str(job_id))
