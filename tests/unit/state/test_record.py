"""The record and its folder: what is on disk about a job."""

import errno
import fcntl
import json
import os
import stat
import threading
import time
from pathlib import Path

import pytest
from doubles import SECRET
from hypothesis import given
from hypothesis import strategies as st

from qrmi_slurm.errors import NewerRecordError, RecordBusyError, RecordError, RecordFormatError
from qrmi_slurm.secret import Secret
from qrmi_slurm.state import inventory, job_folder, record
from qrmi_slurm.state.job_folder import JobFolder
from qrmi_slurm.state.record import Broker, Entry, Record, State

ENTRY = Entry("a", "ibm-quantum-compute-service", {"a_QRMI_IBM_QCS_IAM_APIKEY": f"{SECRET}-key"}, state=State.ACQUIRING)


def record_of(*entries, **changes):
    values = {
        "cluster": "test",
        "job_id": 12,
        "uid": 1001,
        "node": "n1",
        "boot_id": "b",
        "restart_count": 0,
        "created_s": 1000.0,
        "entries": entries,
    }
    return Record(**{**values, **changes})


@pytest.fixture
def folder(tmp_path):
    made = JobFolder(tmp_path / "state", "test", 12)
    made.create()
    return made


texts = st.text(max_size=12)
seconds = st.floats(0, 4e9)
# What a newer version has added.
others = st.dictionaries(st.sampled_from(["new", "more"]), st.none() | texts | st.integers(), max_size=2)
entries = st.builds(
    Entry,
    name=texts,
    type=texts,
    environment=st.dictionaries(texts, texts, max_size=3),
    run_as_uid=st.none() | st.integers(0, 2**32 - 2),
    state=st.sampled_from(State),
    since_s=seconds,
    token=st.none() | texts.map(Secret),
    restart_count=st.integers(0, 99),
    attempts=st.integers(0, 99),
    reason=texts,
    expires_s=st.none() | seconds,
    asked_s=seconds,
    acquired_s=st.none() | seconds,
    ends_s=st.none() | seconds,
    session_cap_s=st.none() | st.integers(1, 2**31 - 1),
    renewal=st.integers(0, 2000),
    others=others,
)
brokers = st.builds(
    Broker,
    pid=st.integers(1, 2**22),
    start_ticks=st.integers(0),
    port=st.integers(1, 65535),
    restart_count=st.integers(0, 99),
    keys=st.dictionaries(texts, texts.map(Secret), max_size=2),
    space=texts,
    ends_s=seconds,
    sessions=st.dictionaries(texts, texts.map(Secret), max_size=2),
    margin_s=seconds,
    renewals=st.integers(0, 2000),
    others=others,
)
records = st.builds(
    Record,
    cluster=st.just("test"),
    job_id=st.just(12),
    uid=st.integers(0, 2**32 - 2),
    node=texts,
    boot_id=texts,
    restart_count=st.integers(0, 99),
    created_s=seconds,
    entries=st.lists(entries, max_size=3).map(tuple),
    user=texts,
    account=texts,
    het_job_id=st.none() | st.integers(1, 2**32 - 2),
    broker=st.none() | brokers,
    start_s=st.none() | st.integers(0, 2**40),
    selection=texts,
    node_count=st.integers(1, 9),
    has_left=st.booleans(),
    job_ends_s=st.none() | seconds,
    over_s=st.integers(0, 2**31 - 1),
    others=others,
)


@given(records)
def test_a_record_is_read_as_it_was_written(tmp_path_factory, before):
    folder = JobFolder(tmp_path_factory.getbasetemp() / "round-trip", "test", 12)
    folder.create()
    folder.write(before)
    assert folder.read() == before


def test_any_bytes_of_the_environment_survive(folder):
    """A user's value may hold bytes that are not UTF-8."""
    entry = Entry("a", "t", {"a_QRMI_X": b"\xff\xfe".decode("utf-8", "surrogateescape")})
    folder.write(record_of(entry))
    assert folder.read().entries[0].environment == entry.environment


def test_only_root_can_read_the_record_and_list_the_folder(folder):
    folder.write(record_of(ENTRY))
    with folder.locked(1):
        pass
    os.close(folder.journals.open(0))
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.path.iterdir()}
    assert modes == {"record.json": 0o600, "lock": 0o600, "token-0": 0o600}
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder.path, folder.path.parent, folder.state_dir)] == [
        0o711
    ] * 3


def test_only_the_jobs_user_can_read_the_exports(folder):
    folder.write_exports("x", 65534)
    status = folder.exports_path.stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (65534, 0o400)


def test_modes_do_not_depend_on_the_umask(tmp_path):
    before = os.umask(0)
    try:
        loose = JobFolder(tmp_path / "s", "c", 1)
        loose.create()
        loose.write(record_of())
    finally:
        os.umask(before)
    assert stat.S_IMODE(loose.path.stat().st_mode) == 0o711
    assert stat.S_IMODE((loose.path / "record.json").stat().st_mode) == 0o600


def test_users_can_enter_every_folder_that_was_made(tmp_path):
    """systemd may give slurmd a umask of 077; TaskProlog still has to reach the exports."""
    before = os.umask(0o077)
    try:
        made = JobFolder(tmp_path / "new" / "deeper" / "state", "c", 1)
        made.create()
    finally:
        os.umask(before)
    assert all(path.stat().st_mode & 0o001 for path in (tmp_path / "new", tmp_path / "new" / "deeper", made.path))


@pytest.mark.parametrize("which", ["state_dir", "cluster", "job"])
def test_a_folder_that_others_can_write_in_is_refused(tmp_path, which):
    folder = JobFolder(tmp_path / "state", "test", 12)
    folder.create()
    {"state_dir": folder.state_dir, "cluster": folder.path.parent, "job": folder.path}[which].chmod(0o777)
    with pytest.raises(RecordError, match="mode 0777"):
        folder.create()


def test_a_folder_of_another_user_is_refused(tmp_path):
    folder = JobFolder(tmp_path / "state", "test", 12)
    folder.create()
    os.chown(folder.path, 65534, -1)
    with pytest.raises(RecordError, match="owned by uid 65534"):
        folder.create()


def test_a_link_in_place_of_a_folder_is_refused(tmp_path):
    folder = JobFolder(tmp_path / "state", "test", 12)
    folder.path.parent.mkdir(parents=True, mode=0o711)
    folder.path.parent.chmod(0o711)
    folder.state_dir.chmod(0o711)
    folder.path.symlink_to(tmp_path)
    with pytest.raises(RecordError, match="not a folder"):
        folder.create()


@pytest.mark.parametrize("what", ["record", "exports", "journal"])
def test_a_link_in_place_of_a_file_is_not_followed(folder, tmp_path, what):
    target = tmp_path / "target"
    target.write_text("untouched")
    name = {"record": "record.json", "exports": "exports", "journal": "token-0"}[what]
    (folder.path / name).symlink_to(target)
    if what == "journal":
        with pytest.raises(RecordError):
            folder.journals.open(0)
    elif what == "record":
        folder.write(record_of(ENTRY))
    else:
        folder.write_exports("x", os.getuid())
    assert target.read_text() == "untouched"


def test_a_state_directory_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError):
        JobFolder(tmp_path / "file" / "state", "test", 12).create()


def test_a_folder_without_a_record_has_none(folder):
    assert folder.read() is None


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"null", b'{"version": 1}', b'{"version": 2}', b"\xff", b'{"version": 1, "entries": [1]}'),
        *(b"[" * 100_000, b'{"version": 1, "cluster": "test", "job_id": 1e999}'),
    ],
)
def test_a_file_that_is_not_a_record_is_an_error_that_names_it(folder, content):
    (folder.path / "record.json").write_bytes(content)
    with pytest.raises(RecordError, match=r"record\.json"):
        folder.read()


@pytest.mark.parametrize("cut", [0.25, 0.5, 0.75, 0.99])
def test_a_record_that_is_cut_off_is_an_error_without_a_secret(folder, cut):
    folder.write(record_of(ENTRY))
    path = folder.path / "record.json"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * cut)])
    with pytest.raises(RecordError) as caught:
        folder.read()
    assert SECRET not in str(caught.value)


def test_an_environment_with_other_values_than_text_is_an_error(folder):
    folder.write(record_of(ENTRY))
    path = folder.path / "record.json"
    document = json.loads(path.read_text())
    document["entries"][0]["environment"] = {"A": 1}
    path.write_text(json.dumps(document))
    with pytest.raises(RecordError):
        folder.read()


def test_a_full_disk_is_an_error_and_keeps_the_old_record(folder, monkeypatch):
    folder.write(record_of(ENTRY))

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecordError, match="No space left"):
        folder.write(record_of())
    monkeypatch.undo()
    assert folder.read() == record_of(ENTRY)
    assert sorted(path.name for path in folder.path.iterdir()) == ["record.json"]


def test_exports_that_no_file_can_hold_are_a_record_error(folder):
    with pytest.raises(RecordError):
        folder.write_exports("\ud800", os.getuid())


def test_a_token_in_a_journal_is_found_with_the_record(folder):
    folder.write(record_of(ENTRY))
    fd = folder.journals.open(0)
    os.write(fd, SECRET.encode())
    os.close(fd)
    [entry] = folder.read().entries
    assert entry.token == Secret(SECRET)
    assert entry.state is State.ACQUIRED


def test_an_empty_journal_is_no_token(folder):
    folder.write(record_of(ENTRY))
    os.close(folder.journals.open(0))
    assert folder.read().entries == (ENTRY,)


def test_removing_deletes_the_whole_folder_and_can_be_repeated(folder):
    folder.write(record_of(ENTRY))
    folder.write_exports("x", os.getuid())
    os.close(folder.journals.open(3))
    with folder.locked(1):
        folder.remove()
    folder.remove()
    assert not folder.exists()


def test_a_second_process_waits_for_the_lock_and_gives_up(folder):
    with folder.locked(1), pytest.raises(RecordError, match="another process has held"), folder.locked(0.05):
        pass


def test_the_lock_is_free_after_an_error_inside(folder):
    with pytest.raises(ValueError, match="inside"), folder.locked(1):
        raise ValueError("inside")
    with folder.locked(0):
        pass


def test_if_the_folder_is_removed_while_waiting_for_its_lock_it_is_made_again(folder, monkeypatch):
    """Epilog removes it while Prolog of the requeued job waits, and Prolog needs a folder."""
    waits = threading.Event()
    sleep = time.sleep

    def note_and_sleep(seconds):
        waits.set()
        sleep(seconds)

    monkeypatch.setattr("qrmi_slurm.files.time.sleep", note_and_sleep)
    outcome = []

    def wait_for_it():
        with folder.locked(5, make=True):
            folder.write(record_of(ENTRY))
            outcome.append("written")

    with folder.locked(1):
        thread = threading.Thread(target=wait_for_it)
        thread.start()
        assert waits.wait(5)
        folder.remove()
    thread.join(10)
    assert outcome == ["written"]


def test_a_folder_that_is_gone_cannot_be_locked(folder):
    folder.remove()
    with pytest.raises(RecordError, match="cannot lock"), folder.locked(1):
        pass


def test_the_lock_ends_with_its_process(folder):
    pid = os.fork()
    if pid == 0:
        with folder.locked(1):
            os._exit(0)
    os.waitpid(pid, 0)
    with folder.locked(0):
        fd = os.open(folder.path / "lock", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(fd)


def test_a_repr_shows_neither_token_nor_environment():
    shown = repr(record_of(ENTRY.to(State.ACQUIRED, token=Secret(f"{SECRET}-token"))))
    assert SECRET not in shown


def test_every_secret_of_an_entry_is_masked():
    environment = {"a_QRMI_X_TOKEN": "k1", "HTTPS_PROXY": "http://u:p@h", "a_QRMI_X_ENDPOINT": "http://s"}
    told = record.secrets_of([Entry("a", "t", environment, token=Secret("t1"))])
    assert {secret.reveal() for secret in told} == {"t1", "k1", "http://u:p@h"}


def test_an_entry_is_pending_unless_it_failed():
    assert {state for state in State if not Entry("a", "t", {}, state=state).is_pending} == {State.FAILED}


@pytest.mark.parametrize("other", [{"job_id": 13}, {"cluster": "other"}])
def test_a_record_of_another_job_is_refused(folder, other):
    """In a copied folder, the sessions belong to a job that may be running."""
    folder.write(record_of(ENTRY, **other))
    with pytest.raises(RecordFormatError, match="which has another folder"):
        folder.read()


@pytest.mark.parametrize("content", [b"", b"{", b'{"version": 0}', b'{"version": "2"}'])
def test_an_unreadable_record_is_set_aside_with_its_journals(folder, content):
    """A token that a child wrote, or is still writing, may be the last trace of a session."""
    (folder.path / "record.json").write_bytes(content)
    fd = folder.journals.open(1)
    found, fault = folder.read_or_set_aside()
    os.write(fd, b"late-token")
    os.close(fd)
    assert found is None
    [place] = (folder.path.parent / job_folder.SET_ASIDE).iterdir()
    assert str(place) in fault.message
    assert "recover" in fault.hint or "session" in fault.hint
    assert stat.S_IMODE(place.stat().st_mode) == 0o700
    assert (place / "record.json").read_bytes() == content
    assert (place / "token-1").read_bytes() == b"late-token"
    assert folder.read_or_set_aside() == (None, None)


def test_a_newer_versions_record_stays_where_it_is(folder):
    """It may be a living job's, and only that version knows what is in it."""
    path = folder.path / "record.json"
    path.write_text(json.dumps({"version": record.RECORD_VERSION + 1}))
    for read in (folder.read, folder.read_or_set_aside):
        with pytest.raises(NewerRecordError, match=r"record\.json has version 2 of a newer qrmi-slurm"):
            read()
    assert path.exists()


def test_what_a_newer_version_has_added_is_kept_and_not_shown(folder):
    """It may be the one that identifies the job, and it may be a secret."""
    broker = Broker(1, 2, 3, 0, {}, "s", 5.0)
    folder.write(record_of(ENTRY, broker=broker))
    path = folder.path / "record.json"
    document = json.loads(path.read_text())
    for place in (document, document["entries"][0], document["broker"]):
        place["added"] = SECRET
    path.write_text(json.dumps(document))
    found = folder.read()
    assert SECRET not in repr(found)
    folder.write(found.with_entry(0, found.entries[0].to(State.RELEASING)))
    again = json.loads(path.read_text())
    assert [place["added"] for place in (again, again["entries"][0], again["broker"])] == [SECRET] * 3
    assert again["entries"][0]["state"] == "releasing"


def test_what_is_put_aside_keeps_its_journals_and_its_lock(folder):
    """A child may still be writing its token; who had the lock still has it."""
    folder.write(record_of(ENTRY))
    fd = folder.journals.open(0)
    with folder.locked(1):
        aside = folder.put_aside()
        with pytest.raises(RecordBusyError), aside.locked(0):
            pass
        with folder.locked(0):
            assert folder.read() is None
    os.write(fd, b"late-token")
    os.close(fd)
    assert aside.read().entries[0].token == Secret("late-token")
    assert [item.folder.path for item in inventory.read(folder.state_dir)] == [folder.path, aside.path]
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o711


def test_a_lock_that_is_taken_is_not_the_same_error_as_a_fault(folder):
    with folder.locked(1), pytest.raises(RecordBusyError), folder.locked(0):
        pass


def test_the_lock_also_works_on_a_read_only_file_system(folder, monkeypatch):
    """Epilog has to release even then, and an existing file can be locked without writing."""
    with folder.locked(1):
        pass
    really_open = os.open

    def read_only(path, flags, *arguments):
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, "Read-only file system")
        return really_open(path, flags, *arguments)

    monkeypatch.setattr("qrmi_slurm.files.os.open", read_only)
    with folder.locked(0), pytest.raises(RecordBusyError), folder.locked(0):
        pass


def test_a_record_of_an_older_version_is_released_by_root():
    """It may have the site's secrets although it names a user: older versions called QRMI as whoever tuned a value."""
    entry = Entry("a", "t", {"a_QRMI_KEY": "x"}, run_as_uid=1001)
    text = record.encode(Record("c", 1, 1001, "n1", "b", 0, 1.0, (entry,)))
    assert record.decode(text, Path("record.json")).entries[0].run_as_uid == 1001
    older = json.loads(text)
    del older["entries"][0]["is_users"]
    assert record.decode(json.dumps(older).encode(), Path("record.json")).entries[0].run_as_uid is None
