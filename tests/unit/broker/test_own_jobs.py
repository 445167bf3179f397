"""The jobs that were submitted through a broker."""

import os

from qrmi_slurm.broker.own_jobs import OwnJobs


def test_a_restarted_broker_knows_its_jobs(tmp_path):
    """Even if a full disk or a kill left half a line."""
    path = tmp_path / "broker"
    path.write_bytes(b"\n0 a\n\n1 b\n\n0 hal\n0 c\n\xff\n")
    fd = os.open(path, os.O_RDWR | os.O_APPEND)
    jobs = OwnJobs(fd)
    assert (set(jobs.of(0)), set(jobs.of(1)), set(jobs.of(2))) == ({"a", "c", "hal"}, {"b"}, set())
    assert jobs.add(2, "d")
    assert jobs.count == 5
    assert set(OwnJobs(fd).of(2)) == {"d"}
    assert not jobs.is_folder_gone()
    path.unlink()
    assert jobs.is_folder_gone()
    os.close(fd)
