"""The state directory: file systems, space, and folders that are private to jobs."""

import os
from pathlib import Path

import pytest
from checkups import settings_of

from qrmi_slurm.checks import state_checks
from qrmi_slurm.state.job_folder import JobFolder

MOUNTS = r"""22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:5 / /shared rw - nfs4 filer:/shared rw,vers=4.2
31 22 0:6 / /shared\040two rw - lustre there rw
32 22 0:7 / /run rw,nosuid - tmpfs tmpfs rw
33 32 0:8 / /run/state rw - ext4 /dev/vdb rw
34 32 0:9 / /run/state rw - xfs /dev/vdc rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/spool/qrmi-slurm", "ext4"),
        ("/shared/qrmi", "nfs4"),
        ("/sharedness", "ext4"),
        ("/shared two/x", "lustre"),
        ("/run/x", "tmpfs"),
        ("/run/state", "xfs"),
    ],
)
def test_the_file_system_of_a_path(path, kind):
    """The deepest mount is used, and the later of two in one place; spaces in a name are escaped in mountinfo."""
    assert state_checks.file_system(Path(path), MOUNTS) == kind


def test_records_that_need_somebody(tmp_path):
    """Those of a newer version are named, and so are those that cannot be read."""
    assert [result.level for result in state_checks._check_records(tmp_path)] == ["ok"]
    for job_id, content in ((1, '{"version": 2}'), (2, "garbage")):
        folder = JobFolder(tmp_path, "test", job_id)
        folder.create()
        (folder.path / "record.json").write_text(content)
    newer, others = state_checks._check_records(tmp_path)
    assert (newer.level, others.level) == ("warning", "warning")
    assert "1/record.json has version 2 of a newer qrmi-slurm" in newer.message
    assert "2/record.json is not a record" in others.message


@pytest.mark.parametrize(
    ("kind", "nodes", "level"), [("nfs4", 9, "ok"), ("ext4", 1, "ok"), ("ext4", 2, "warning"), ("tmpfs", 1, "warning")]
)
def test_sharing(tmp_path, monkeypatch, kind, nodes, level):
    """A local disk is a warning in a cluster with several nodes; a file system in memory always is."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"22 1 254:0 / / rw - {kind} there rw\n")
    monkeypatch.setattr(state_checks, "_MOUNTS", mounts)
    assert state_checks._check_sharing(tmp_path, tmp_path, nodes).level == level


@pytest.mark.parametrize(
    ("container", "conf", "place", "level"),
    [
        (
            "job_container/tmpfs",
            "AutoBasePath=true\nBasePath=/local Dirs=/scratch,/var/spool\n",
            "/var/spool/q",
            "error",
        ),
        ("job_container/tmpfs", "AutoBasePath=true\n", "/tmp/q", "error"),
        ("job_container/tmpfs", "BasePath=/local Dirs=/scratch\n", "/var/spool/q", "ok"),
        ("namespace/linux", "dirs: /dev/shm,/var/spool\n", "/var/spool/q", "error"),
        ("job_container/none", "", "/tmp/q", "warning"),
        ("job_container/none", "", "/var/spool/q", None),
    ],
)
def test_folders_private_to_jobs(tmp_path, container, conf, place, level):
    """A state directory in a folder that is private to each job is an error: tasks do not see their exports."""
    name = "namespace.yaml" if container.startswith("namespace") else "job_container.conf"
    (tmp_path / name).write_text(conf)
    settings = settings_of(JobContainerType=container)
    results = state_checks._check_visibility(Path(place), settings, tmp_path / "slurm.conf")
    assert [result.level.value for result in results] == ([level] if level else [])


@pytest.mark.parametrize(
    ("free", "files", "level"), [(10**6, 1, "ok"), (2000, 1, "warning"), (10, 1, "error"), (10**6, 0, "error")]
)
def test_free_space(tmp_path, monkeypatch, free, files, level):
    """Little space is a warning; no space or no inodes is an error, since without a record nothing is acquired."""
    real = os.statvfs(tmp_path)
    fields = [4096, 4096, 10**7, free, free, 10, files, files, 0, real.f_namemax]
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(fields))
    assert state_checks._check_space(tmp_path).level == level


def test_a_read_only_file_system(tmp_path, monkeypatch):
    """A read-only file system, as after a disk error, is an error."""
    fields = [4096, 4096, 10**7, 10**6, 10**6, 10, 10, 10, os.ST_RDONLY, 255]
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(fields))
    assert state_checks._check_space(tmp_path).level == "error"
