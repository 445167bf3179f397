"""Why a job had no QPU is kept beyond its folder, for root and its user, and does not grow."""

import os
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest

from qrmi_slurm.errors import RecordError
from qrmi_slurm.state import exports, failures
from qrmi_slurm.state.exports import Exports
from qrmi_slurm.state.job_folder import JobFolder

NOTE = "qrmi-slurm: job 12 has no QPU: a could not be acquired"
FAILED = exports.render(Exports(12, 1, False, (NOTE,), start_s=1000, selection="a"))
READY = exports.render(Exports(12, 1, True, (), {"QRMI_JOB_QPU_RESOURCES": "a"}))


@pytest.fixture
def folder():
    """A job's folder in a place that other users can enter, which pytest's own is not."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        found = JobFolder(Path(place) / "state", "test", 12)
        found.create()
        yield found


def kept(folder, job_id=12):
    return failures.read(folder.state_dir, "test", job_id)


def test_a_failure_outlives_its_folder(folder):
    folder.write_exports(FAILED, os.getuid())
    folder.remove()
    found = kept(folder)
    assert (found.notes, found.restart_count, found.start_s) == ((NOTE,), 1, 1000)
    assert kept(folder, 13) is None


def test_success_leaves_nothing(folder):
    folder.write_exports(READY, os.getuid())
    assert not (folder.path.parent / failures.FOLDER).exists()


def test_only_root_and_its_user_can_read_it_and_only_root_can_change_it(folder):
    folder.write_exports(FAILED, 65534)
    path = folder.path.parent / failures.FOLDER / "12"
    assert (path.stat().st_uid, stat.S_IMODE(path.stat().st_mode) & 0o007) == (0, 0)
    reads = ["/usr/bin/head", "-c", "1", str(path)]
    assert subprocess.run(reads, user=65534, group=65534, extra_groups=[], check=False).returncode == 0
    assert subprocess.run(reads, user=65533, group=65534, extra_groups=[], check=False).returncode == 1
    writes = ["/bin/sh", "-c", f"chmod 777 {path}; echo x >>{path}"]
    assert subprocess.run(writes, user=65534, group=65534, extra_groups=[], check=False).returncode != 0


def test_a_file_system_without_access_control_lists(folder, monkeypatch):
    """Then only root reads it."""

    def refuse(*_arguments, **_named):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "setxattr", refuse)
    folder.write_exports(FAILED, os.getuid())
    assert kept(folder).notes == (NOTE,)


def test_a_full_disk_is_no_fault_of_the_jobs(folder):
    (folder.path.parent / failures.FOLDER).write_text("in the way")
    folder.write_exports(FAILED, os.getuid())
    assert folder.exports_path.exists()
    assert kept(folder) is None


def test_the_oldest_go(folder, monkeypatch):
    monkeypatch.setattr(failures, "_MAX_KEPT", 10)
    monkeypatch.setattr(failures, "_REMOVED_AT_ONCE", 3)
    place = folder.path.parent / failures.FOLDER
    place.mkdir()
    for number in range(100, 110):
        (place / str(number)).touch()
        os.utime(place / str(number), (number, number))
    folder.write_exports(FAILED, os.getuid())
    assert sorted(path.name for path in place.iterdir()) == sorted([*map(str, range(103, 110)), "12"])


@pytest.mark.parametrize("content", ["", "x", FAILED[:-10], FAILED.replace("job=12", "job=13")])
def test_what_is_none_of_ours_is_nothing(folder, content):
    folder.write_exports(FAILED, os.getuid())
    (folder.path.parent / failures.FOLDER / "12").write_text(content)
    assert kept(folder) is None


def test_what_cannot_be_read_is_an_error(folder):
    place = folder.path.parent / failures.FOLDER
    place.mkdir()
    (place / "12").symlink_to("/etc/hostname")
    with pytest.raises(RecordError):
        kept(folder)
