"""Debian under systemd: our units work with the rights they have, and a crash of the node costs no QPU."""

import json

import pytest

from booted import jobs
from booted.debian import USER
from booted.jobs import assert_nothing_left, let_go, wait_closed, with_broker
from booted.site import LICENSED, QPU, TIMERS, BootedSite
from slurm.jobs import print_token
from slurm.polling import wait_for

SERVICES = [timer.replace(".timer", ".service") for timer in TIMERS]
RECOVER = "qrmi-slurm-recover.service"
MOST_EXPOSURE = 4.0
# 30 s after boot, plus up to 20 s by chance, plus the run itself.
RECOVERED_AT_BOOT_S = 75.0


def start(booted: BootedSite, service: str) -> str:
    """Run a service once, and return its lines in the journal."""
    since = booted.node.out("date", "+%s").strip()
    booted.node.out("systemctl", "start", service)
    return booted.node.out("journalctl", "--no-pager", f"--since=@{since}", f"--unit={service}")


def test_systemd_finds_no_fault_in_the_units(booted: BootedSite) -> None:
    """`systemd-analyze verify` accepts them, and each timer waits for its next run."""
    done = booted.node.run("sh", "-c", "systemd-analyze verify /etc/systemd/system/qrmi-slurm-*")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    listed = json.loads(booted.node.out("systemctl", "list-timers", "--output=json"))
    assert set(TIMERS) <= {timer["unit"] for timer in listed}


@pytest.mark.parametrize("service", SERVICES)
def test_a_unit_has_few_rights(booted: BootedSite, service: str) -> None:
    """`systemd-analyze security` rates it from 0, the least exposed, to 10; it fails above the threshold."""
    done = booted.node.run(
        "systemd-analyze", "security", "--no-pager", f"--threshold={MOST_EXPOSURE * 10:.0f}", service
    )
    rating = done.stdout.splitlines()[-1]
    assert f"Overall exposure level for {service}: " in rating
    assert done.returncode == 0, rating


def test_the_journal_has_what_the_hooks_did(booted: BootedSite) -> None:
    """By the command of the admin's pages: journalctl -t qrmi-slurm-prolog -t qrmi-slurm-epilog --grep job=4711."""
    job_id = booted.sbatch(f"#!/bin/sh\n{print_token(QPU)}\n", f"--qpu={QPU}", "--nodelist=n1")
    assert booted.wait_job(job_id) == "COMPLETED", booted.output(job_id)
    booted.wait_idle()
    session = booted.output(job_id).strip()
    assert jobs.state_of(booted, session) == "closed"
    lines = booted.node.sh(f"journalctl -t qrmi-slurm-prolog -t qrmi-slurm-epilog --grep job={job_id}")
    assert f"acquired: job={job_id} qpu={QPU} " in lines
    assert f"released: job={job_id} qpu={QPU} " in lines
    assert session not in lines
    assert_nothing_left(booted)


def test_recover_releases_as_the_jobs_user(booted: BootedSite) -> None:
    """A variable of the user's makes the call run as them, over HTTPS; the unit may change to them."""
    job_id, session = jobs.start(booted, **{f"{QPU}_QRMI_IBM_QCS_SESSION_MODE": "batch"})
    with booted.emulator.fault(call="*", kind="error", status=503) as fault:
        let_go(booted, job_id)
        assert booted.wait_job(job_id) == "COMPLETED", booted.output(job_id)
        booted.wait_idle()
        assert fault.hits() > 0
    record = booted.record_of(job_id)
    [entry] = record["entries"]
    assert entry["state"] == "releasing"
    entry["since_s"] = 0  # so that the next attempt is due
    booted.node.write(f"{booted.folder_of(job_id)}/record.json", json.dumps(record), mode="0600")
    lines = start(booted, RECOVER)
    assert jobs.state_of(booted, session) == "closed", lines
    assert_nothing_left(booted)


def test_a_broker_that_recover_restarts_outlives_the_run(booted: BootedSite) -> None:
    """systemd ends what a service leaves behind, unless the unit says otherwise; the job goes on with its broker."""
    with with_broker(booted):
        job_id, _ = jobs.start(booted, then=jobs.ASK_BROKER)
        [before] = jobs.brokers(booted)
        booted.node.out("kill", "-KILL", str(before))
        lines = start(booted, RECOVER)
        assert f"broker-started: job={job_id} " in lines
        [after] = jobs.brokers(booted)
        assert after != before
        start(booted, RECOVER)
        assert jobs.brokers(booted) == [after]
        let_go(booted, job_id)
        assert booted.wait_job(job_id) == "COMPLETED"
    assert "asked 200" in booted.output(job_id)
    assert_nothing_left(booted)


def test_recover_ends_the_broker_of_a_job_whose_epilog_never_ran(booted: BootedSite) -> None:
    """The broker runs as nobody, which root without CAP_KILL could not end."""
    with with_broker(booted):
        job_id, session = jobs.start(booted)
        [broker] = jobs.brokers(booted)
        record = booted.record_of(job_id)
        record["restart_count"] += 1  # of another run than Slurm knows
        booted.node.write(f"{booted.folder_of(job_id)}/record.json", json.dumps(record), mode="0600")
        lines = start(booted, RECOVER)
        assert jobs.state_of(booted, session) == "closed", lines
        assert booted.node.run("kill", "-0", str(broker)).returncode != 0
        booted.controller.out("scancel", str(job_id))
        booted.wait_job(job_id)
    assert_nothing_left(booted)


def test_slurmd_is_restarted_under_a_job_with_a_broker(booted: BootedSite) -> None:
    """`systemctl restart slurmd` leaves the job and its broker alone; the new slurmd's Epilog ends both."""
    with with_broker(booted):
        job_id, _ = jobs.start(booted, then=jobs.ASK_BROKER)
        before = jobs.brokers(booted)
        booted.node.out("systemctl", "restart", "slurmd")
        assert jobs.brokers(booted) == before
        let_go(booted, job_id)
        assert booted.wait_job(job_id) == "COMPLETED", booted.output(job_id)
    assert "asked 200" in booted.output(job_id)
    assert_nothing_left(booted)


def test_the_sensor_takes_a_qpu_out_of_service(booted: BootedSite) -> None:
    """It changes Slurm and rewrites the catalogue in /etc/slurm, which belongs to Slurm's user here."""
    booted.controller.out("qrmi-slurm", "catalogue")
    try:
        booted.emulator.control("POST", f"backends/{LICENSED}", {"status": "offline"})
        start(booted, "qrmi-slurm-sensor.service")
        assert f"qpu_out_qpu_{LICENSED}" in booted.controller.out("scontrol", "show", "reservations")
        assert "offline" in booted.controller.out("cat", "/etc/slurm/qrmi_catalogue.lua")
        assert "offline" in booted.controller.out("qrmi-slurm", "qpus", user=USER)
    finally:
        booted.emulator.control("POST", f"backends/{LICENSED}", {"status": "online"})
    start(booted, "qrmi-slurm-sensor.service")
    assert "qpu_out_" not in booted.controller.out("scontrol", "show", "reservations")
    assert "offline" not in booted.controller.out("cat", "/etc/slurm/qrmi_catalogue.lua")


def test_the_list_of_qpus_is_refreshed(booted: BootedSite) -> None:
    """Its unit has no capabilities at all."""
    try:
        booted.emulator.control("POST", f"backends/{QPU}", {"status": "paused"})
        start(booted, "qrmi-slurm-qpus.service")
        assert "paused" in booted.controller.out("qrmi-slurm", "qpus", user=USER)
    finally:
        booted.emulator.control("POST", f"backends/{QPU}", {"status": "online"})
    start(booted, "qrmi-slurm-qpus.service")
    assert "paused" not in booted.controller.out("qrmi-slurm", "qpus", user=USER)


@pytest.mark.parametrize("slurmd", ["enable", "disable"])
def test_a_crash_of_the_node_costs_no_qpu(booted: BootedSite, slurmd: str) -> None:
    """The node dies under a job that holds the QPU. After the boot Epilog releases it, or recover, by its timer."""
    job_id, session = jobs.start(booted)
    before = booted.node.out("cat", "/proc/sys/kernel/random/boot_id")
    booted.node.out("systemctl", "--quiet", slurmd, "slurmd")
    booted.node.out("sync")
    booted.node.crash()
    assert jobs.state_of(booted, session) != "closed"
    booted.node.start()
    booted.node.wait_booted()
    assert booted.node.out("cat", "/proc/sys/kernel/random/boot_id") != before
    wait_closed(booted, session, RECOVERED_AT_BOOT_S)
    if slurmd == "disable":
        said = f"job {job_id} {QPU}: released (node n1 has rebooted since)"
        journal = f"journalctl --boot --unit={RECOVER}"
        wait_for(lambda: said in booted.node.sh(journal), "what recover says", 20 * booted.slowness)
        booted.node.out("systemctl", "--quiet", "enable", "--now", "slurmd")
    booted.controller.run("scancel", str(job_id))  # a controller that crashed too may have lost it
    assert_nothing_left(booted)
    assert jobs.run(booted, f"{print_token(QPU)}\n").strip() != session
    assert_nothing_left(booted)
