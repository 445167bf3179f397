"""The inventory: all records of a state directory, read quickly and with the same distrust as one alone."""

import os
import shutil

import pytest

from qrmi_slurm.errors import RecordError, RecordFormatError
from qrmi_slurm.state import inventory
from qrmi_slurm.state.job_folder import JobFolder
from qrmi_slurm.state.record import Entry, Record


@pytest.fixture
def write(site):
    """Write the record of a job that uses a license."""

    def write_record(job_id, license="qpu_a", cluster="test", name=""):
        folder = JobFolder(site.state_dir, cluster, job_id, name)
        folder.create()
        entry = Entry("a", "t", {}, license=license)
        folder.write(Record(cluster, job_id, os.getuid(), "n1", "b", 0, 1.0, (entry,)))
        return folder

    return write_record


def told(items):
    return [(item.folder.cluster, item.folder.path.name, item.record is not None) for item in items]


def test_all_records_are_in_order(site, write):
    """By cluster, job and run; what has no job's name is none."""
    for job_id, cluster, name in [(10, "test", ""), (9, "test", ""), (9, "test", "9.5"), (1, "other", "")]:
        write(job_id, cluster=cluster, name=name)
    for name in (".set-aside", "9.x", "x", "9.", "\u0663"):
        (site.state_dir / "test" / name).mkdir()
    JobFolder(site.state_dir, "test", 11).create()
    found = [("other", "1", True), ("test", "9", True), ("test", "9.", False), ("test", "9.5", True)]
    assert told(inventory.read(site.state_dir)) == [*found, ("test", "10", True), ("test", "11", False)]
    assert [item.folder.path.name for item in inventory.of_job(site.state_dir, 9)] == ["9", "9.", "9.5"]


def test_a_large_record_is_read_whole(site, write):
    folder = write(12, license="x" * 100_000)
    [item] = inventory.read(site.state_dir)
    assert item.record == folder.read()
    (record_file,) = folder.path.glob("record.json")
    record_file.write_text(record_file.read_text().ljust(inventory._PIECE_BYTES * 8))
    assert inventory.read(site.state_dir)[0].record == item.record


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\0" * 20_000])
def test_a_broken_record_is_a_fault(site, write, content):
    folder = write(12)
    (folder.path / "record.json").write_bytes(content)
    [item] = inventory.read(site.state_dir)
    assert isinstance(item.fault, RecordFormatError)


def test_a_record_of_another_job_is_a_fault(site, write):
    shutil.copytree(write(12).path, site.state_dir / "test" / "13")
    assert [item.fault is None for item in inventory.read(site.state_dir)] == [True, False]


@pytest.mark.parametrize("weak", ["folder", "cluster", "link", "record"])
def test_what_others_can_write_is_not_believed(site, write, tmp_path, weak):
    folder = write(12)
    if weak == "folder":
        folder.path.chmod(0o777)
    elif weak == "cluster":
        folder.path.parent.chmod(0o777)
    elif weak == "link":
        theirs = tmp_path / "theirs"
        shutil.move(folder.path, theirs)
        theirs.chmod(0o777)
        folder.path.symlink_to(theirs)
    else:
        record_file = folder.path / "record.json"
        record_file.rename(tmp_path / "record.json")
        record_file.symlink_to(tmp_path / "record.json")
    [item] = inventory.read(site.state_dir)
    assert item.record is None
    with pytest.raises(RecordError) as error:
        folder.read()
    assert item.fault is not None
    assert item.fault.message == error.value.message


def test_only_records_that_mention_a_license_are_decoded(site, write, monkeypatch):
    """In a cluster with thousands of them."""
    for job_id in range(1, 20):
        write(job_id, license="qpu_\u00e9" if job_id == 7 else "qpu_b")
    write(8, license="qpu_\u00e9", cluster="other")
    decoded = []
    decode = JobFolder.decoded
    monkeypatch.setattr(
        JobFolder, "decoded", lambda folder, text: decoded.append(folder.job_id) or decode(folder, text)
    )
    assert told(inventory.mentioning(site.state_dir, "test", "qpu_\u00e9")) == [("test", "7", True)]
    assert decoded == [7]
    assert inventory.mentioning(site.state_dir, "nowhere", "qpu_b") == []
