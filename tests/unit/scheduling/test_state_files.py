"""Files that scheduling keeps in the state directory: whole, readable by all, and locks."""

import os
import stat

import pytest

from qrmi_slurm.errors import RecordError
from qrmi_slurm.scheduling import state_files


def test_a_file_is_replaced_whole_and_readable_by_all(tmp_path):
    state_dir = tmp_path / "state"
    before = os.umask(0o077)
    try:
        state_files.write_json(state_dir, "x.json", {"a": 1})
    finally:
        os.umask(before)
    inode = (state_dir / "x.json").stat().st_ino
    assert stat.S_IMODE(state_dir.stat().st_mode) == 0o711
    assert stat.S_IMODE((state_dir / "x.json").stat().st_mode) == 0o644
    state_files.write_json(state_dir, "x.json", {"a": 2})
    assert (state_dir / "x.json").stat().st_ino != inode
    assert [path.name for path in state_dir.iterdir()] == ["x.json"]


def test_a_lock_has_one_holder(tmp_path):
    with state_files.locked(tmp_path, "x.lock", 0.0) as first, state_files.locked(tmp_path, "x.lock", 0.1) as second:
        assert (first, second) == (True, False)
    with state_files.locked(tmp_path, "x.lock", 0.0) as third:
        assert third


def test_a_state_directory_that_is_a_file_is_reported(tmp_path):
    (tmp_path / "state").touch()
    with pytest.raises(RecordError, match=r"cannot write .*/state/x\.json: Not a directory"):
        state_files.write_json(tmp_path / "state", "x.json", {})
    lock = state_files.locked(tmp_path / "state", "x.lock", 0.0)
    with pytest.raises(RecordError, match=r"cannot open .*/state/x\.lock: "), lock:
        pass
