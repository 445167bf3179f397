"""Parsing faults, and which requests they hit."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrmi_emulator.faults import FaultBook, FaultError, FaultSpec, fault_from_json, parse_fault_spec


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("create_session:error=500,times=2", FaultSpec("create_session", "error", status=500, times=2)),
        ("*:delay=0.1", FaultSpec("*", "delay", delay_s=0.1)),
        ("create_session:hang,when=after", FaultSpec("create_session", "hang", when="after")),
        ("job_results:drop_after=10", FaultSpec("job_results", "drop_after", bytes=10)),
        ("iam_token:reset,probability=0.5", FaultSpec("iam_token", "reset", probability=0.5)),
        ("*:error=503,body=busy", FaultSpec("*", "error", status=503, body="busy")),
    ],
)
def test_a_fault_is_parsed_from_the_command_line(text, spec):
    """The documented forms are parsed."""
    assert parse_fault_spec(text) == spec


@pytest.mark.parametrize(
    "text",
    [
        "",
        "error",
        "create_session",
        "create_session:",
        "create_session:explode",
        "create_session:hang=3",
        "create_session:error=banana",
        "create_session:error=500,times",
        "create_session:error=500,times=0",
        "create_session:error=500,status=501,status=502",
        "create_session:error=500,color=red",
        "Create Session:error=500",
        "*:delay=-1",
        "*:error,when=later",
    ],
)
def test_an_invalid_fault_is_refused(text):
    """A mistake is an error instead of a fault that never hits."""
    with pytest.raises(FaultError):
        parse_fault_spec(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda s: (
            st.lists(s)
            | st.dictionaries(st.sampled_from(["call", "kind", "status", "times", "probability", "when", "x"]), s)
        ),
    )
)
def test_any_json_is_parsed_or_refused(data):
    """Parsing a fault never raises another error."""
    with suppress(FaultError):
        assert isinstance(fault_from_json(data), FaultSpec)


def test_a_fault_hits_as_often_as_specified():
    """`times` counts the requests that are hit; other calls are not."""
    book = FaultBook([parse_fault_spec("create_session:error=500,times=2")])
    assert book.take("get_session") == ()
    assert [len(book.take("create_session")) for _ in range(3)] == [1, 1, 0]


def test_delays_are_combined_with_another_fault():
    """Every delay hits, and the first of the other faults."""
    specs = ["*:delay=0.1", "get_job:error", "*:hang", "get_job:delay=1"]
    book = FaultBook(map(parse_fault_spec, specs))
    assert [fault.spec.kind for fault in book.take("get_job")] == ["delay", "error", "delay"]
    assert [fault.spec.kind for fault in book.take("list_jobs")] == ["delay", "hang"]


def test_a_fault_with_a_probability_hits_at_random():
    """It hits if the number drawn is below its probability."""
    draws = iter([0.49, 0.5])
    book = FaultBook([parse_fault_spec("*:error,probability=0.5")], draw=lambda: next(draws))
    assert [len(book.take("get_job")) for _ in range(2)] == [1, 0]


def test_removing_a_fault_releases_its_requests():
    """Requests that a removed fault holds continue."""
    book = FaultBook()
    fault = book.add(parse_fault_spec("*:hold"))
    assert book.remove(fault.id) and fault.released.is_set()
    assert not book.remove(fault.id) and not book.release(fault.id)
    assert book.to_json() == []
