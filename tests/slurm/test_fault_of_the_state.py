"""Whatever happens to the state directory, the config, the record or the clock between Prolog and Epilog."""

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from slurm.aftermath import SCRIPT, assert_next_job_is_fine, assert_nothing_left, assert_why, finish_with
from slurm.polling import wait_for
from slurm.site import Site

AN_HOUR_S = 3600
PAGE_BYTES = 4096


@contextmanager
def file_system(place: Path, size: str) -> Iterator[Path]:
    """Mount a tmpfs of that size, and unmount it again."""
    place.mkdir(mode=0o711, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=0711", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture
def own_device(site: Site) -> Iterator[Path]:
    """Put the state directory on a file system of its own."""
    with file_system(site.cluster.folder / "qrmi-state-mount", "1m") as place:
        kept, site.state_dir = site.state_dir, place
        site.plugstack(site.plugstack_line())
        yield place
        site.state_dir = kept


def fill(place: Path) -> None:
    """Fill a file system."""
    with (place / "filler").open("wb", buffering=0) as filler:
        try:
            while True:
                filler.write(b"\0" * PAGE_BYTES)
        except OSError:
            pass


def remount(place: Path, option: str) -> None:
    """Change how a file system is mounted: `ro`, `rw`."""
    subprocess.run(["mount", "-o", f"remount,{option}", place], check=True)


# --- the state directory -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_an_unwritable_state_directory_fails_the_job_before_acquiring(site: Site, own_device: Path, fault: str) -> None:
    """What cannot be recorded is not acquired; the job's output says so and where an admin should look."""
    count = len(site.emulator.sessions())
    fill(own_device) if fault == "full" else remount(own_device, "ro")
    job_id = site.cluster.sbatch(SCRIPT, "--qpu=ibm_demo", "--nodelist=n1")
    assert site.cluster.wait_job_over(job_id).state == "FAILED"
    assert f"job {job_id} has no QPU" in site.cluster.job_output(job_id)
    assert_why(site, job_id, "failed: ", as_user=True)
    assert len(site.emulator.sessions()) == count
    (own_device / "filler").unlink(missing_ok=True) if fault == "full" else remount(own_device, "rw")
    site.recover()
    assert_next_job_is_fine(site)


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_an_unwritable_state_directory_leaves_no_session_open(site: Site, own_device: Path, fault: str) -> None:
    """Epilog releases all the same. The leftover record is resolved by recover once the disk is writable again."""
    change = fill if fault == "full" else lambda place: remount(place, "ro")
    job_id = finish_with(site, lambda _job_id: change(own_device))
    assert site.cluster.wait_job_over(job_id).state == "COMPLETED"
    assert site.emulator.open_sessions() == []
    (own_device / "filler").unlink(missing_ok=True) if fault == "full" else remount(own_device, "rw")
    assert site.recover("--now")["left"] == 0
    assert_nothing_left(site, job_id)
    assert_next_job_is_fine(site)


def test_a_missing_state_directory_returns_with_its_records(site: Site) -> None:
    """A file system missing at the job's end: Epilog reports that it finds nothing, and recover finds everything."""
    away = site.state_dir.with_name("qrmi-state-away")
    job_id = finish_with(site, lambda _job_id: site.state_dir.rename(away))
    site.cluster.wait_job_over(job_id)
    assert f"nothing-recorded: job={job_id}" in site.hooks_log()
    assert len(site.emulator.open_sessions()) == 1
    away.rename(site.state_dir)
    (result,) = site.recover()["jobs"]
    assert (result["reason"], result["outcome"]) == ("the job has ended", "released")
    assert_nothing_left(site, job_id)
    assert_next_job_is_fine(site)


def test_a_state_directory_on_a_device_of_its_own(site: Site, own_device: Path) -> None:
    """Nothing is moved between file systems, not even an unreadable record."""
    short_sessions(site)
    job_id = finish_with(site, lambda job_id: (site.folder_of(job_id) / "record.json").write_text("{"))
    assert site.cluster.wait_job_over(job_id).state == "COMPLETED"
    (aside,) = own_device.glob("*/.set-aside/*")
    assert (aside / "record.json").read_text() == "{"
    assert_ended_by_itself(site)


# --- the record --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", '{"version": 1, "clus', "\0" * 100], ids=["empty", "cut", "foreign"])
def test_an_unreadable_record_is_set_aside_and_blocks_nothing(site: Site, content: str) -> None:
    """Log, `status` and `recover` name its path; the node stays in service, and the job's folder is gone."""
    short_sessions(site)
    job_id = finish_with(site, lambda job_id: (site.folder_of(job_id) / "record.json").write_text(content))
    assert site.cluster.wait_job_over(job_id).state == "COMPLETED"
    assert f"record-set-aside: job={job_id}" in site.hooks_log()
    (aside,) = json.loads(site.command("status", "--json").stdout)["set_aside"]
    assert f"/.set-aside/{job_id}-" in aside
    assert "set aside" in site.command("status").stdout
    assert not site.folder_of(job_id).exists()
    assert_ended_by_itself(site)


def short_sessions(site: Site) -> None:
    """Let the service end each session by itself after two seconds: nothing else ends the session of a lost record."""
    resource = site.emulator.resource("ibm_demo")
    resource["environment"]["QRMI_IBM_QCS_SESSION_MAX_TTL"] = "2"
    site.config([resource])


def assert_ended_by_itself(site: Site) -> None:
    """The session without a record has reached its time to live, and later jobs run."""
    wait_for(lambda: not site.emulator.open_sessions(), "the session's own end", 10)
    assert_next_job_is_fine(site)


# --- the config --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda site, _job_id: site.config_path.unlink(),
        lambda site, _job_id: site.config_path.write_text('{"resources": ['),
        lambda site, _job_id: site.config([site.emulator.resource("ibm_second")]),
    ],
    ids=["removed", "broken", "without the QPU"],
)
def test_a_config_that_has_changed_under_the_job(site: Site, change: Callable[[Site, int], None]) -> None:
    """Epilog does not need it: the record has everything a release takes."""
    job_id = finish_with(site, lambda job_id: change(site, job_id))
    assert site.cluster.wait_job_over(job_id).state == "COMPLETED"
    assert_nothing_left(site, job_id)


def test_a_key_that_was_rotated_under_the_job(site: Site) -> None:
    """The recorded key is refused, so Epilog uses the config's new one at once."""

    def rotate(job_id: int) -> None:
        name = "ibm_demo_QRMI_IBM_QCS_IAM_APIKEY"
        site.change_record(job_id, lambda record: record["entries"][0]["environment"].update({name: "test-old-key"}))

    job_id = finish_with(site, rotate)
    assert site.cluster.wait_job_over(job_id).state == "COMPLETED"
    assert_nothing_left(site, job_id)
    assert "test-old-key" not in site.hooks_log()
    assert_next_job_is_fine(site)


# --- the clock ---------------------------------------------------------------------------------------------------


def test_a_clock_that_was_set_back_an_hour(site: Site) -> None:
    """Times of the record lie in the future: neither Epilog nor the back-off of recover waits for them."""

    def an_hour_later(record: dict[str, Any]) -> None:
        record["created_s"] += AN_HOUR_S
        for entry in record["entries"]:
            entry["since_s"] += AN_HOUR_S

    fault = {"call": "update_session", "kind": "error", "status": 500}

    def make(job_id: int) -> None:
        site.change_record(job_id, an_hour_later)
        site.emulator.control("POST", "faults", fault)

    job_id = finish_with(site, make)
    site.cluster.wait_job_over(job_id)
    site.change_record(job_id, an_hour_later)
    site.emulator.clear_faults()
    (waiting,) = site.recover()["jobs"]
    assert waiting["reason"] == "its release failed; the next attempt is due in 30 s"
    site.recover("--now")
    assert_nothing_left(site, job_id)
