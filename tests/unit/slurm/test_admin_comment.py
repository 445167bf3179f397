"""Our word in a job's AdminComment."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrmi_slurm.failure import Kind
from qrmi_slurm.slurm import admin_comment
from qrmi_slurm.slurm.admin_comment import Requeued

FIRST = Requeued(1, "unreachable", "ibm_quebec", 1795863459)
WORD = "qrmi-slurm:requeued=1,unreachable,ibm_quebec,1795863459"


def test_the_word():
    assert FIRST.word == WORD
    assert admin_comment.read(WORD) == FIRST
    third = FIRST._replace(times=3, restarts=4)
    assert third.word == "qrmi-slurm:requeued=3,unreachable,ibm_quebec,1795863459,4"
    assert admin_comment.read(third.word) == third


@pytest.mark.parametrize(
    "comment", ["", "seen by  bob", "qrmi-slurm:any=qpu_a|qpu_b", "two\nlines qrmi-slurm:any=a|b", "ends  "]
)
def test_what_others_wrote_stays(comment):
    once = admin_comment.with_word(comment, FIRST)
    again = admin_comment.with_word(once, FIRST._replace(times=2))
    assert again == f"{comment.rstrip()} qrmi-slurm:requeued=2,unreachable,ibm_quebec,1795863459".lstrip()
    assert admin_comment.read(again) == FIRST._replace(times=2)


def test_the_word_is_replaced_wherever_it_is():
    """An admin may have written after it; a site may have copied it."""
    comment = f"{WORD} then  a note {WORD} qrmi-slurm:any=a|b"
    assert admin_comment.with_word(comment, FIRST) == f"then  a note qrmi-slurm:any=a|b {WORD}"


@pytest.mark.parametrize(
    "comment",
    [
        "",
        "(null)",
        f"x{WORD}",
        f"{WORD}x",
        "qrmi-slurm:requeued=",
        "qrmi-slurm:requeued=1,busy,a",
        "qrmi-slurm:requeued=-1,busy,a,1",
        "qrmi-slurm:requeued=1,Busy,a,1",
        "qrmi-slurm:requeued=1,busy,a b,1",
        "qrmi-slurm:requeued=1,busy,,1",
        f"qrmi-slurm:requeued=1,busy,a,{'1' * 13}",
        f"qrmi-slurm:requeued={'1' * 7},busy,a,1",
    ],
)
def test_anything_else_is_not_our_word(comment):
    assert admin_comment.read(comment) is None


def test_something_that_begins_like_our_word_does_not_stay():
    assert admin_comment.with_word("a qrmi-slurm:requeued=nonsense b", FIRST) == f"a b {WORD}"


@given(st.text(max_size=300), st.integers(1, 10**9), st.sampled_from(sorted(Kind)))
def test_a_qpus_name_cannot_break_the_word(name, times, kind):
    """Names come from the config, or from a service that discovers QPUs."""
    requeued = Requeued(times, kind, name, 253402300799, 4294967295)
    word = requeued.word
    assert word.isascii() and word.isprintable() and len(word) < 200
    assert not set(word) & set("\"'`\\| ;$") and word.count("=") == 1 and word.count(",") == 4
    found = admin_comment.read(f"site's text {word}")
    assert found is not None
    assert (found.times, found.kind, found.since_s) == (min(times, 999_999), kind, 253402300799)
    assert found.word == word
