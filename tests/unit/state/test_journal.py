"""The journals: a token that outlives the hook."""

import os
import stat

import pytest
from doubles import SECRET

from qrmi_slurm.errors import RecordError
from qrmi_slurm.secret import Secret
from qrmi_slurm.state.journal import Journals


@pytest.fixture
def journals(tmp_path):
    return Journals(tmp_path)


def write(journals, number, content):
    fd = journals.open(number)
    os.write(fd, content)
    os.close(fd)


def test_a_token_that_a_child_wrote_is_found(journals, tmp_path):
    write(journals, 3, SECRET.encode())
    assert journals.token(3) == Secret(SECRET)
    assert [path.name for path in journals.paths()] == ["token-3"]
    assert stat.S_IMODE((tmp_path / "token-3").stat().st_mode) == 0o600


def test_a_token_of_any_bytes_is_found(journals):
    write(journals, 0, b"\xff\n")
    assert journals.token(0).reveal().encode("utf-8", "surrogateescape") == b"\xff\n"


def test_an_empty_or_missing_journal_has_no_token(journals):
    write(journals, 0, b"")
    assert journals.token(0) is None
    assert journals.token(1) is None


def test_opening_a_journal_again_forgets_its_old_token(journals):
    write(journals, 0, b"old")
    write(journals, 0, b"")
    assert journals.token(0) is None


def test_a_journal_tells_when_the_token_was_written(journals, tmp_path):
    write(journals, 0, b"t")
    os.utime(tmp_path / "token-0", (1200.0, 1200.0))
    assert journals.written_s(0) == 1200.0
    assert journals.written_s(1) is None


def test_a_dropped_journal_is_gone_and_may_be_dropped_again(journals):
    write(journals, 0, b"t")
    journals.drop(0)
    journals.drop(0)
    assert journals.token(0) is None
    assert list(journals.paths()) == []


def test_a_journal_that_cannot_be_created_is_an_error_that_names_it(journals, tmp_path):
    (tmp_path / "token-0").mkdir()
    with pytest.raises(RecordError, match=f"cannot create {tmp_path}/token-0: "):
        journals.open(0)
