"""Files of the state: places that only root can change, atomic replacement, locks."""

import errno
import os
import stat
import threading
import time

import pytest

from qrmi_slurm import files
from qrmi_slurm.config import config_file
from qrmi_slurm.errors import ConfigError, RecordError
from qrmi_slurm.state.job_folder import JobFolder

NOBODY_UID = 65534


@pytest.fixture
def place(tmp_path):
    made = tmp_path / "a" / "b" / "c"
    made.mkdir(parents=True)
    return made


def test_a_path_that_only_root_can_change_has_no_weak_place(place):
    assert files.weak_place(place) is None
    assert files.weak_place(place / "not" / "there" / "yet") is None


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_a_parent_that_others_may_write_is_weak(place, mode, depth):
    weak = (place, *place.parents)[depth]
    weak.chmod(mode)
    assert files.weak_place(place) == weak


def test_a_parent_that_another_user_owns_is_weak(place):
    os.chown(place.parent, NOBODY_UID, -1)
    assert files.weak_place(place) == place.parent


def test_in_a_sticky_folder_roots_files_are_safe(place):
    """But a file that another user made in it is still theirs."""
    place.parent.chmod(0o1777)
    assert files.weak_place(place) is None
    os.chown(place, NOBODY_UID, -1)
    assert files.weak_place(place) == place


def test_a_link_is_followed_to_where_it_leads(place, tmp_path):
    """Step by step: a link of root's may lead through a user's folder."""
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


def test_a_loop_of_links_is_weak(tmp_path):
    (tmp_path / "x").symlink_to("y")
    (tmp_path / "y").symlink_to("x")
    assert files.weak_place(tmp_path / "x") is not None


@pytest.mark.parametrize("use", [JobFolder.create, JobFolder.read])
def test_a_state_directory_whose_parent_users_may_write_is_refused(place, use):
    """They could replace it with one of their own, whose records root would act on."""
    folder = JobFolder(place / "state", "c", 12)
    folder.create()
    place.chmod(0o777)
    with pytest.raises(RecordError, match=f"{place} is owned by uid 0 with mode 0777.*chmod go-w {place}"):
        use(folder)


@pytest.mark.parametrize(("uid", "mode"), [(NOBODY_UID, 0o600), (0, 0o620), (0, 0o602)])
def test_a_config_that_others_can_change_is_refused(tmp_path, uid, mode):
    """It sets the addresses that keys are sent to, and programs that root runs."""
    path = tmp_path / "qrmi_config.json"
    path.write_text('{"resources": []}')
    os.chown(path, uid, -1)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"users other than root can change .*owner uid {uid}, mode {mode:04o}"):
        config_file.load(path)
    os.chown(path, 0, -1)
    path.chmod(0o640)
    assert config_file.load(path).resources == {}


# --- writing ---------------------------------------------------------------------------------------------------


@pytest.fixture
def loose_umask():
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.parametrize("umask", [0, 0o077])
def test_a_made_folder_has_its_mode_whatever_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        files.make_folder(tmp_path / "new" / "private", 0o700)
    finally:
        os.umask(before)
    files.make_folder(tmp_path / "new" / "private", 0o711)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "new/private")]
    assert modes == [0o711, 0o700], "missing parents get 0711, and a folder that exists is left alone"


@pytest.mark.usefixtures("loose_umask")
def test_a_replaced_file_has_its_content_mode_and_owner(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    files.replace(path, b"new", 0o400, uid=NOBODY_UID)
    status = path.stat()
    assert (path.read_bytes(), stat.S_IMODE(status.st_mode), status.st_uid) == (b"new", 0o400, NOBODY_UID)
    assert os.listdir(tmp_path) == ["file"]


def test_a_reader_of_a_replaced_file_keeps_the_old_content(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with path.open() as reader:
        files.replace(path, b"new", 0o600)
        assert reader.read() == "old"


def test_only_a_durable_file_is_synced(tmp_path, monkeypatch):
    """The file, and then the folder with its name."""
    synced = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(stat.S_ISDIR(os.fstat(fd).st_mode)))
    files.replace(tmp_path / "file", b"1", 0o600, is_durable=False)
    assert synced == []
    files.replace(tmp_path / "file", b"2", 0o600)
    assert synced == [False, True]


@pytest.mark.parametrize("step", ["fsync", "fchown", "rename"])
def test_a_file_that_cannot_be_replaced_stays_as_it_was(tmp_path, monkeypatch, step):
    path = tmp_path / "file"
    path.write_text("old")

    def full(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(path) if step == "rename" else os, step, full)
    with pytest.raises(OSError, match="No space"):
        files.replace(path, b"new", 0o600, uid=0)
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_link_is_neither_read_nor_written_through(tmp_path):
    (tmp_path / "target").write_text("untouched")
    (tmp_path / "link").symlink_to("target")
    with pytest.raises(OSError, match="symbolic links"):
        files.read(tmp_path / "link")
    files.replace(tmp_path / "link", b"new", 0o600)
    assert (tmp_path / "target").read_text() == "untouched"
    assert files.read(tmp_path / "link") == b"new"


# --- locks -----------------------------------------------------------------------------------------------------


def test_a_lock_is_held_by_one_at_a_time(tmp_path):
    lock = tmp_path / "lock"
    with files.locked(lock, 1) as is_held, files.locked(lock, 0.05) as is_held_twice:
        assert (is_held, is_held_twice) == (True, False)
    with files.locked(lock, 0) as is_held:
        assert is_held


def test_a_lock_that_is_freed_in_time_is_acquired(tmp_path):
    lock, is_waiting, got = tmp_path / "lock", threading.Event(), []

    def wait():
        is_waiting.set()
        with files.locked(lock, 10) as is_held:
            got.append(is_held)

    thread = threading.Thread(target=wait)
    with files.locked(lock, 1):
        thread.start()
        assert is_waiting.wait(5)
        time.sleep(0.05)
        assert got == []
    thread.join(10)
    assert got == [True]


def test_a_lock_in_a_folder_that_is_gone_is_an_error_unless_it_can_be_made_again(tmp_path):
    folder = tmp_path / "gone"
    with pytest.raises(FileNotFoundError), files.locked(folder / "lock", 1):
        pass
    with files.locked(folder / "lock", 5, make_again=folder.mkdir) as is_held:
        assert is_held
    assert (folder / "lock").exists()


def test_a_lock_whose_file_was_removed_while_waiting_does_not_count(tmp_path, monkeypatch):
    """Otherwise two processes could hold it: one the removed file, one the new."""
    lock = tmp_path / "lock"
    real_flock, removed = files.fcntl.flock, []

    def remove_first(fd, operation):
        real_flock(fd, operation)
        if not removed:
            removed.append(lock.unlink())

    monkeypatch.setattr(files.fcntl, "flock", remove_first)
    with files.locked(lock, 5) as is_held:
        assert is_held
        assert lock.exists()
    assert removed == [None]
