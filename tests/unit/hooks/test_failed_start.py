"""A start that failed takes the QPU's license out of service, once, if it was the site's own call that failed."""

import json
import threading
import time

import pytest

from qrmi_slurm.failure import Failure, Kind
from qrmi_slurm.hooks import failed_start
from qrmi_slurm.outages import reservations

ASKED_FIRST = ["show reservations", "show licenses", "create reservation"]


def failure(**changes):
    return Failure(Kind.NO_ANSWER, "a", "no answer within 30 s", license="qpu_a", is_sites=True)._replace(**changes)


@pytest.fixture
def run(site, slurm, syslog_lines, monkeypatch):
    """The run of a Prolog on n1 at a site whose QPUs a and b are licenses."""
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    slurm.licenses = {"qpu_a": (2, 1), "qpu_b": (1, 0), "shared": (1, 0)}
    site.add("a").add("b").add("c", slurm={"license": "shared"}).add("d", slurm={"license": "shared"})
    site.folder().create()
    return site.hook_run("prolog")


def test_the_first_failure_takes_the_license_out_of_service(slurm, run, syslog_lines):
    """All of it, for five minutes, with a text that says which job on which node and since when."""
    failed_start.tell([failure()], run)
    assert slurm.asked == ASKED_FIRST
    outage = reservations.read(run.options.slurm_conf).outages["qpu_a"]
    assert (outage.count, outage.reason, outage.by, outage.is_drained) == (2, "no-answer", "job 12 on n1", False)
    assert outage.since.startswith("20")
    assert outage.notice == "offline: no-answer"
    assert slurm.reservations["qpu_out_qpu_a"]["EndTime"] == "now+5minutes"
    assert any("out-of-service" in line and "license=qpu_a" in line for _, line in syslog_lines)


def test_the_next_failures_cost_one_question_or_none(slurm, run):
    """None for a start that began before Slurm was told on this node, one for a later one."""
    failed_start.tell([failure()], run)
    slurm.asked.clear()
    failed_start.tell([failure()], run)
    assert slurm.asked == []
    failed_start.tell([failure()], run.within(20))
    assert slurm.asked == ["show reservations"]
    (told,) = (run.folder.path.parent / failed_start.FOLDER).iterdir()
    told.write_text(f"{time.time() + 3600}\n")
    failed_start.tell([failure()], run)
    assert slurm.asked == ["show reservations"] * 2, "the clock was set back"


def test_an_admins_drain_is_left_alone(slurm, run):
    slurm.reservations["qpu_out_qpu_a"] = {"Licenses": "qpu_a:2", "Comment": "drained by root at x: y"}
    failed_start.tell([failure()], run)
    assert slurm.changes == []


@pytest.mark.parametrize(
    "changes",
    [
        {"license": ""},
        {"is_sites": False},
        {"kind": Kind.PERMANENT},
        {"kind": Kind.LICENSE},
        {"qpu": "any:*"},
        {"qpu": "c", "license": "shared"},
        {"qpu": "x", "license": "qpu_x"},
    ],
)
def test_what_concerns_that_job_alone_asks_slurm_nothing(slurm, run, changes):
    """No license, the user's credentials, a refused key, a license that is taken, no QPU of the config, another that
    shares the license and has not failed."""
    failed_start.tell([failure(**changes)], run)
    assert slurm.asked == []


def test_a_shared_license_goes_out_with_all_its_qpus(slurm, run):
    failed_start.tell([failure(qpu="c", license="shared"), failure(qpu="d", license="shared")], run)
    assert set(slurm.reservations) == {"qpu_out_shared"}


def test_each_failed_qpu_of_a_job_goes_out(slurm, run):
    failed_start.tell([failure(), failure(qpu="b", license="qpu_b", kind=Kind.PAUSED)], run)
    found = reservations.read(run.options.slurm_conf).outages
    assert {name: outage.notice for name, outage in found.items()} == {
        "qpu_a": "offline: no-answer",
        "qpu_b": "offline: paused",
    }


@pytest.mark.parametrize("knows_comments", [True, False], ids=["24.11", "22.05"])
def test_a_license_that_the_site_has_reserved(slurm, run, knows_comments):
    slurm.knows_comments = knows_comments
    slurm.reservations["course"] = {"Licenses": "qpu_a:1", "EndTime": "now+90minutes"}
    slurm.now_s = 2_000_000_000.0
    failed_start.tell([failure()], run)
    assert slurm.changes[-1] == "update ReservationName=qpu_out_qpu_a StartTime=now EndTime=now+5minutes"
    assert reservations.read(run.options.slurm_conf).outages["qpu_a"].is_of_job


def test_another_node_was_faster(slurm, run, syslog_lines, monkeypatch):
    """Between the question and the reservation: Slurm refuses the second one, and nothing that exists is changed."""
    real = slurm.run

    def other_first(command, *arguments, **named):
        if command[1] == "create" and not slurm.reservations:
            slurm.reservations["qpu_out_qpu_a"] = {"Licenses": "qpu_a:2", "Comment": "offline: paused"}
            slurm.full = {"qpu_a"}  # where slurmctld compares the licenses before the names
        return real(command, *arguments, **named)

    monkeypatch.setattr("qrmi_slurm.slurm.commands.run", other_first)
    failed_start.tell([failure()], run)
    assert reservations.read(run.options.slurm_conf).outages["qpu_a"].notice == "offline: paused"
    assert not [change for change in slurm.changes if not change.startswith("create")]
    assert not [line for level, line in syslog_lines if "sensor-not-told" in line]


def test_many_prologs_at_once_ask_once(slurm, run):
    """The first asks while the others wait for it, for no longer than their own time."""
    threads = [threading.Thread(target=failed_start.tell, args=([failure()], run)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert slurm.asked == ASKED_FIRST


def test_without_slurm_the_job_goes_on(slurm, run, syslog_lines):
    """The log says so; so does it where no time is left, or the state directory cannot be used."""
    slurm.is_up = False
    failed_start.tell([failure()], run)
    failed_start.tell([failure(license="qpu_b", qpu="b")], run.within(0.1))
    run.folder.path.rmdir()
    told = run.folder.path.parent / failed_start.FOLDER / "qpu_a"
    told.unlink()
    told.mkdir()
    failed_start.tell([failure()], run)
    assert [line.split(": ")[1] for _, line in syslog_lines] == ["sensor-not-told"] * 3


def test_a_config_that_has_just_broken(slurm, run, site):
    site.write_config(json.dumps({"resources": 1}))
    failed_start.tell([failure()], run)
    assert slurm.asked == []
