"""Each acquisition leaves one line in the ledger, and `qrmi-slurm report` agrees with Slurm's own accounting."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from slurm import pages
from slurm.aftermath import SCRIPT, let_go, start_long_job, why_without
from slurm.cluster import ClusterOptions, User
from slurm.emulator import API_KEY
from slurm.polling import wait_for
from slurm.site import BIN, Site, SiteOptions

# How long Prolog may take to acquire, and Epilog to release: a fraction of a second, but more on a busy machine.
HOOKS_S = 15.0


def ledger_files(site: Site) -> list[Path]:
    """Return the ledger's files."""
    return sorted(site.state_dir.glob("*/.accounting/*"))


def lines(site: Site) -> list[dict[str, Any]]:
    """Return the ledger's lines in the order they were written."""
    return [json.loads(line) for path in ledger_files(site) for line in path.read_text().splitlines()]


def report(site: Site, *words: str) -> Any:
    """Return the report's JSON; standard error must be empty."""
    done = site.command("report", "--json", *words)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def acquisitions(site: Site, *words: str) -> list[dict[str, Any]]:
    """Return the report's acquisitions."""
    found: list[dict[str, Any]] = report(site, "--by", "acquisition", *words)["rows"]
    return found


def test_a_job_of_two_qpus_leaves_a_line_for_each(site: Site) -> None:
    """For root only, with the sessions' ids and no secret; while the job runs, the report shows them as held."""
    user = site.cluster.user
    job_id = site.cluster.sbatch(
        f"#!/bin/sh\necho begun\nwhile [ ! -e {user.home}/go ]; do sleep 0.05; done\n",
        "--qpu=ibm_demo,ibm_second",
        "--account=physics",
        "--nodelist=n1",
    )
    wait_for(lambda: site.cluster.job_output(job_id) or None, "the script to begin", 20)
    held = acquisitions(site)
    assert [(one["qpu"], one["job_id"], one["result"], one["token"]) for one in held] == [
        ("ibm_demo", job_id, "held", None),
        ("ibm_second", job_id, "held", None),
    ]
    assert all(0 < one["held_s"] < 30 for one in held)
    assert ledger_files(site) == []
    (user.home / "go").touch()
    site.cluster.wait_job_over(job_id)
    (path,) = ledger_files(site)
    assert re.fullmatch(r"n1\.\d{4}-\d{2}\.jsonl", path.name)
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert API_KEY not in path.read_text()
    found = sorted(lines(site), key=lambda line: str(line["qpu"]))
    assert [line["qpu"] for line in found] == ["ibm_demo", "ibm_second"]
    assert {line["token"] for line in found} == {session["id"] for session in site.emulator.sessions()[-2:]}
    for line in found:
        assert (line["job_id"], line["user"], line["uid"]) == (job_id, user.name, user.uid)
        assert (line["account"], line["node"], line["restart"]) == ("physics", "n1", 0)
        assert (line["result"], line["by"], line["array_job_id"], line["het_job_id"]) == (
            "released",
            "epilog",
            None,
            None,
        )
        assert line["asked_s"] <= line["acquired_s"] < line["ended_s"]
        assert line["held_s"] == pytest.approx(line["ended_s"] - line["acquired_s"], abs=0.01)
    assert {one["id"] for one in acquisitions(site)} == {one["id"] for one in held}


def test_users_cannot_read_the_ledger(site: Site) -> None:
    """The report says so, and the file cannot be opened."""
    job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo", "--nodelist=n1")
    site.cluster.wait_job_over(job_id)
    done = site.cluster.run_as_user([BIN / "qrmi-slurm", "report"])
    assert (done.returncode, done.stdout) == (2, "")
    assert "run this as root" in done.stderr
    (path,) = ledger_files(site)
    assert site.cluster.run_as_user(["cat", path]).returncode != 0


def test_a_canceled_job_and_the_tasks_of_an_array(site: Site) -> None:
    """Each has its line; tasks have the array id from Slurm, not from the user's environment."""
    long_id = start_long_job(site)
    site.cluster.slurm("scancel", str(long_id))
    site.cluster.wait_job_over(long_id)
    array_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo", "--array=3,5%1", env={"SLURM_ARRAY_JOB_ID": "99"})
    wait_for(lambda: len(lines(site)) >= 3, "three lines", 30)
    site.cluster.wait_nodes_idle()
    found = {(line["array_job_id"], line["array_task_id"]): line for line in lines(site)}
    assert set(found) == {(None, None), (array_id, 3), (array_id, 5)}
    assert found[None, None]["job_id"] == long_id
    assert {line["result"] for line in found.values()} == {"released"}
    table = site.command("report", "--by", "acquisition").stdout
    assert f" {array_id}_3 " in table and f" {array_id}_5 " in table


def test_a_failed_acquire(site: Site) -> None:
    """The line has the reason, but no token, no time held and no part of the key."""
    wrong = site.emulator.resource("ibm_demo")
    wrong["environment"]["QRMI_IBM_QCS_IAM_APIKEY"] = "planted-secret-key"
    site.config([wrong])
    job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo", "--nodelist=n1")
    assert site.cluster.wait_job_over(job_id).state == "FAILED"
    site.command("release", "--forget", str(job_id), "--yes")
    (line,) = lines(site)
    assert line["result"] in ("failed", "forgotten")
    assert (line["token"], line["acquired_s"], line["held_s"]) == (None, None, 0.0)
    assert line["reason"]
    assert "planted-secret-key" not in json.dumps(line)
    (row,) = report(site)["rows"]
    assert (row["jobs"], row["acquired"], row["failed"], row["held_s"]) == (1, 0, 1, 0.0)


def test_both_runs_of_a_requeued_job(site: Site) -> None:
    """Each run has its own line with the run's number."""
    job_id = start_long_job(site, "--requeue", "--open-mode=append")
    site.cluster.slurm("scontrol", "requeue", str(job_id))
    site.cluster.wait_job(job_id, {"PENDING"})
    site.cluster.wait_nodes_idle()
    let_go(site, job_id)
    site.cluster.slurm("scontrol", "update", f"JobId={job_id}", "StartTime=now+2")
    site.cluster.wait_job(job_id, {"COMPLETED"}, deadline_s=60)
    site.cluster.wait_nodes_idle()
    found = lines(site)
    assert [(line["job_id"], line["restart"], line["result"]) for line in found] == [
        (job_id, 0, "released"),
        (job_id, 1, "released"),
    ]
    assert len({line["id"] for line in found}) == len({line["token"] for line in found}) == 2
    (row,) = report(site)["rows"]
    assert (row["jobs"], row["acquired"]) == (1, 2)


def test_recover_accounts_for_a_qpu_left_by_a_killed_epilog(site: Site) -> None:
    """It counts as held until then; the line is in the file of the node where recover ran."""
    with site.emulator.held("update_session") as hold:
        job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo", "--nodelist=n1")
        hold.wait_for(1)
        for pid in site.hook_pids("epilog") + site.call_pids("epilog"):
            os.kill(pid, signal.SIGKILL)
        site.cluster.wait_job_over(job_id)
    assert lines(site) == []
    assert [one["result"] for one in acquisitions(site)] == ["held"]
    site.recover("--now", node="n2")
    (line,) = lines(site)
    assert (line["job_id"], line["node"], line["by"]) == (job_id, "n1", "recover")
    assert line["result"] in ("released", "gone")
    assert [path.name[:3] for path in ledger_files(site)] == ["n2."]


def test_a_ledger_that_cannot_be_written_does_not_stop_a_release(site: Site) -> None:
    """The node is free, and the log has everything the line would have had, except the token."""
    job_id = start_long_job(site)
    place = site.folder_of(job_id).parent / ".accounting"
    place.touch()
    let_go(site, job_id)
    site.cluster.wait_job_over(job_id)
    place.unlink()
    assert site.emulator.open_sessions() == []
    assert not site.folder_of(job_id).exists()
    (logged,) = [line for line in site.hooks_log().splitlines() if f"not-accounted: job={job_id} " in line]
    assert "qpu=ibm_demo" in logged and "held_s=" in logged and f"user={site.cluster.user.name}" in logged
    assert site.emulator.sessions()[-1]["id"] not in site.hooks_log()


# --- with slurmdbd ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def billed() -> Iterator[Site]:
    """Start a site with slurmdbd, whose QPU is a license."""
    cluster = ClusterOptions(
        nodes=2,
        users=2,
        slurmdbd=True,
        conf_lines=("Licenses=qpu_ibm_demo:1",),
        settings={"AccountingStorageTRES": "license/qpu_ibm_demo", "AccountingStorageEnforce": "associations"},
    )
    with Site(SiteOptions(cluster=cluster)) as site:
        yield site


@pytest.fixture(scope="module")
def accounts(billed: Site) -> dict[str, str]:
    """Give each user an account, and return the accounts by user name."""
    cluster = billed.cluster
    found = dict(zip((user.name for user in cluster.users), ("physics", "chemistry"), strict=True))
    cluster.slurm("sacctmgr", "--immediate", "add", "account", ",".join(found.values()))
    for user, account in found.items():
        cluster.slurm("sacctmgr", "--immediate", "add", "user", user, f"account={account}")
    return found


def submit(site: Site, user: User, seconds: int, *options: str) -> int:
    """Submit a job that holds the QPU and its license for some seconds."""
    script = f"#!/bin/sh\nsleep {seconds}\n"
    return site.cluster.sbatch(script, "--qpu=ibm_demo", "--licenses=qpu_ibm_demo:1", *options, user=user)


def sacct(site: Site, job_ids: Sequence[int]) -> dict[int, dict[str, str]]:
    """Return slurmdbd's jobs by id, once it knows when each one ended."""
    fields = "JobIDRaw,JobID,User,Account,ElapsedRaw,AllocTRES,State,Start,End"

    def ended() -> dict[int, dict[str, str]] | None:
        jobs = ",".join(map(str, job_ids))
        text = site.cluster.slurm("sacct", "--allocations", "--parsable2", f"--jobs={jobs}", f"--format={fields}")
        heading, *rows = [line.split("|") for line in text.splitlines()]
        found = {int(row[0]): dict(zip(heading, row, strict=True)) for row in rows}
        has_all = len(found) == len(job_ids) and all(row["End"] != "Unknown" for row in found.values())
        return found if has_all else None

    return wait_for(ended, "slurmdbd to have the jobs' ends", 20)


def test_the_report_agrees_with_sacct_and_sreport(billed: Site, accounts: dict[str, str]) -> None:
    """With sacct job by job, in user, account, array and, except for the hooks, seconds; with sreport by account."""
    began_s = time.time()
    first, second = billed.cluster.users
    jobs = [submit(billed, first, 2), submit(billed, second, 1), submit(billed, second, 300)]
    array = submit(billed, first, 1, "--array=7")
    canceled = jobs[2]
    billed.cluster.wait_job(canceled, {"RUNNING"}, deadline_s=40)
    billed.cluster.slurm("scancel", str(canceled))
    for job_id in (*jobs, array):
        billed.cluster.wait_job(job_id, deadline_s=40)
    billed.cluster.wait_nodes_idle()

    rows = {row["job_id"]: row for row in acquisitions(billed)}
    of_slurm = sacct(billed, [*jobs, array])
    assert rows.keys() == of_slurm.keys()
    for job_id, job in of_slurm.items():
        row = rows[job_id]
        assert (row["user"], row["account"]) == (job["User"], job["Account"])
        assert row["account"] == accounts[row["user"]]
        assert job["AllocTRES"].count("license/qpu_ibm_demo=1") == 1
        # A QPU is held from within Prolog, which Slurm counts, to Epilog, which it does not; Slurm truncates to
        # seconds.
        prolog_s, epilog_s = row["acquired_s"] - epoch_s(job["Start"]), row["ended_s"] - epoch_s(job["End"])
        assert 0 < prolog_s < HOOKS_S
        assert -1 < epilog_s < HOOKS_S
        assert row["held_s"] == pytest.approx(int(job["ElapsedRaw"]) - prolog_s + epilog_s, abs=0.01)
        shown = job_id if row["array_job_id"] is None else f"{row['array_job_id']}_{row['array_task_id']}"
        assert str(shown) == job["JobID"]
    assert f"{array}_7" in {job["JobID"] for job in of_slurm.values()}

    since, until = hours_around(began_s)
    billed.cluster.slurm("sacctmgr", "--immediate", "rollup", since, until)
    for account in ("physics", "chemistry"):
        (ours,) = [row for row in report(billed, "--by", "account")["rows"] if row["account"] == account]
        slurms = sum(int(job["ElapsedRaw"]) for job in of_slurm.values() if job["Account"] == account)
        assert sreport(billed, account, since, until) == slurms
        assert abs(ours["held_s"] - slurms) <= HOOKS_S * ours["jobs"]
        assert abs(ours["held_s"] - slurms) / 60 < 1

    # slurmdbd still knows what slurmctld has forgotten.
    for shown, said in ((str(canceled), "was cancelled, at "), (f"{array}_7", "has completed, at ")):
        done = why_without(billed, "Invalid job id specified", shown)
        assert done.stdout.startswith(f"Job {shown} {said}"), done.stderr


def epoch_s(text: str) -> float:
    """Return one of sacct's times, which are local and in whole seconds."""
    return datetime.fromisoformat(text).timestamp()


def hours_around(began_s: float) -> tuple[str, str]:
    """Return the full hours that enclose a moment and now, as Slurm writes them; slurmdbd adds up full hours."""
    since = datetime.fromtimestamp(began_s).replace(minute=0, second=0, microsecond=0)
    until = datetime.now().replace(minute=0, second=0, microsecond=0) + timedelta(hours=1)
    return since.isoformat(), until.isoformat()


def sreport(site: Site, account: str, since: str, until: str) -> int:
    """Return for how many seconds an account had the QPU's license, according to slurmdbd's roll-up."""
    words = ["sreport", "--parsable2", "--noheader", "--tres=license/qpu_ibm_demo", "-t", "Seconds"]
    words += ["cluster", "AccountUtilizationByUser", f"accounts={account}", f"start={since}", f"end={until}"]
    words.append("format=Account,Login,Used")
    rows = [line.split("|") for line in site.cluster.slurm(*words).splitlines()]
    return sum(int(used) for name, login, used in rows if name == account and not login)


def test_a_sites_table_csv_and_charts(billed: Site, tmp_path: Path) -> None:
    """The commands in the admin's page and their output."""
    heading, *rows = billed.command("report", "--since", "1h", "--by", "account", "--csv").stdout.splitlines()
    assert heading == "account,jobs,acquired,failed,held_s,utilization"
    assert sorted(row.partition(",")[0] for row in rows) == ["chemistry", "physics"]
    table = billed.command("report", "--by", "qpu").stdout
    assert re.search(r"^ibm_demo +4 +4 +0 +00:00:\d\d +100 % +", table, re.MULTILINE)
    page, picture = tmp_path / "qpus.html", tmp_path / "qpus.svg"
    done = billed.command("report", "--since", "1h", "--html", str(page), "--svg", str(picture))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    for path in (page, picture):
        text = path.read_text()
        assert all(user.name in text for user in billed.cluster.users)
        assert "<script" not in text
        assert not any(session["id"] in text for session in billed.emulator.sessions())


@pytest.mark.parametrize(
    "command",
    dict.fromkeys(
        command for page in pages.pages() for command in pages.commands(page) if command.startswith(pages.OF_SLURMDBD)
    ),
)
def test_a_command_in_the_pages_that_queries_slurmdbd(billed: Site, accounts: dict[str, str], command: str) -> None:
    """Typed by root as on the page, and confirmed with yes."""
    assert accounts
    if " qos " in command:
        billed.cluster.slurm("sacctmgr", "--immediate", "add", "qos", "quantum")
    done = subprocess.run(
        ["bash", "-c", command.replace("ibm_quebec", "ibm_demo")],
        env=billed.root_env("n1"),
        input="y\n",
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_remote_license_counts_slots(billed: Site, accounts: dict[str, str]) -> None:
    """One that slurmdbd has, for a job that has it and one that has not."""
    cluster = billed.cluster
    ours = f"cluster=throwaway-{cluster.token}"
    words = ["name=lanes", "server=there", "servertype=x", "type=License", "count=4", "percentallowed=100", ours]
    cluster.slurm("sacctmgr", "--immediate", "add", "resource", *words)
    wait_for(lambda: "lanes@there" in cluster.slurm("scontrol", "show", "licenses"), "slurmctld to know it", 20)
    billed.plugstack(billed.plugstack_line("--qpu-slots-license:ibm_demo=lanes@there"))
    try:
        job_id = cluster.sbatch("#!/bin/sh\nenv\n", "--qpu=ibm_demo", "--licenses=qpu_ibm_demo:1,lanes@there:2")
        assert cluster.wait_job_over(job_id).state == "COMPLETED", cluster.job_output(job_id)
        assert "\nibm_demo_QRMI_JOB_QPU_SLOTS=2\n" in cluster.job_output(job_id)
        without = cluster.sbatch("#!/bin/sh\nenv\n", "--qpu=ibm_demo", "--licenses=qpu_ibm_demo:1")
        assert cluster.wait_job_over(without).state == "FAILED"
        assert "this job has none: ask for some with --licenses=lanes@there:NUMBER" in cluster.job_output(without)
        said = {line["name"]: line for line in json.loads(billed.command("doctor", "--json").stdout)["lines"]}
        assert (said["slots"]["level"], said["slots"]["message"]) == ("ok", "ibm_demo: lanes@there, 4")
    finally:
        billed.plugstack(billed.plugstack_line())
