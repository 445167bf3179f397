"""Which places only root controls."""

import os

import pytest

from qrmi_slurm import files
from qrmi_slurm.config import config_file
from qrmi_slurm.errors import ConfigError, RecordError
from qrmi_slurm.state.job_folder import JobFolder

NOBODY_UID = 65534


@pytest.fixture
def place(tmp_path):
    path = tmp_path / "a" / "b" / "c"
    path.mkdir(parents=True)
    return path


def test_a_path_that_only_root_controls(place):
    assert files.weak_place(place) is None
    assert files.weak_place(place / "not" / "there" / "yet") is None


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_parent_folder_that_others_can_write(place, mode, depth):
    weak = (place, *place.parents)[depth]
    weak.chmod(mode)
    assert files.weak_place(place) == weak


def test_a_parent_folder_of_another_user(place):
    os.chown(place.parent, NOBODY_UID, -1)
    assert files.weak_place(place) == place.parent


def test_a_sticky_folder_protects_roots_files(place):
    """And only that: what somebody else has created in it belongs to that user."""
    place.parent.chmod(0o1777)
    assert files.weak_place(place) is None
    os.chown(place, NOBODY_UID, -1)
    assert files.weak_place(place) == place


def test_each_step_of_a_link_is_checked(place, tmp_path):
    """At each step: a link of root's may lead through a user's folder."""
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    (open_to_all / "second").symlink_to(place)
    first = tmp_path / "first"
    first.symlink_to("open/second")
    assert files.weak_place(first) == open_to_all
    open_to_all.chmod(0o755)
    assert files.weak_place(first / ".." / "c") is None
    os.chown(open_to_all / "second", NOBODY_UID, -1, follow_symlinks=False)
    assert files.weak_place(first) == open_to_all / "second"


def test_circular_links_are_not_trusted(tmp_path):
    (tmp_path / "x").symlink_to("y")
    (tmp_path / "y").symlink_to("x")
    assert files.weak_place(tmp_path / "x") is not None


@pytest.mark.parametrize("use", [JobFolder.create, JobFolder.read])
def test_a_state_directory_whose_parent_users_may_write_is_refused(place, use):
    """They could move it away and create their own there, whose records root would trust."""
    folder = JobFolder(place / "state", "c", 12)
    folder.create()
    place.chmod(0o777)
    with pytest.raises(RecordError, match=f"{place} is owned by uid 0 with mode 0777.*chmod go-w {place}"):
        use(folder)


@pytest.mark.parametrize(("uid", "mode"), [(NOBODY_UID, 0o600), (0, 0o620), (0, 0o602)])
def test_a_config_that_others_can_change_is_refused(tmp_path, uid, mode):
    """It names addresses that keys go to, and programs that root runs."""
    path = tmp_path / "qrmi_config.json"
    path.write_text('{"resources": []}')
    os.chown(path, uid, -1)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"users other than root can change .*owner uid {uid}, mode {mode:04o}"):
        config_file.load(path)
    os.chown(path, 0, -1)
    path.chmod(0o640)
    assert config_file.load(path).resources == {}
