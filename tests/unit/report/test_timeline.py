"""The picture of a report."""

import itertools
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledger_lines import NOW_S, TODAY_S, failed, line, usage_of

from qrmi_slurm.report import canvas, timeline, usage
from qrmi_slurm.report.usage import Usage


def svg_of(found, who="user"):
    text = timeline.svg(found, usage.KEYS[who], is_alone=True)
    return text, ElementTree.fromstring(text)  # noqa: S314 written by us


def titles(root):
    return [element.text for element in root.iter("{http://www.w3.org/2000/svg}title")]


def test_texts_of_a_ledger_are_not_read_as_markup():
    evil = "</title><script>alert(1)</script>&\x00\x1b\ud800"
    found = usage_of(line(1, user=evil, qpu=f"q{evil}", account=evil, node=evil), failed(2, user=evil, qpu=f"q{evil}"))
    text, root = svg_of(found)
    assert "\x00" not in text
    assert any("script" in title for title in titles(root))


def test_each_acquisition_has_a_bar_and_a_title():
    text, root = svg_of(
        usage_of(
            line(4711, array_job_id=4700, array_task_id=11, restart=1, het_job_id=4000),
            failed(3, user="carol"),
            line(5, result="held", by="", at_s=NOW_S - 60, held_s=60.0, account=""),
        )
    )
    bar, mark, now = (next(title for title in titles(root) if word in title) for word in ("4711", "carol", "held now"))
    assert bar.splitlines()[:2] == ["a: job 4700_11 (4711) of 4000, run 2 on n1", "alice, account physics"]
    assert bar.endswith("01:00:00, released by epilog")
    assert mark.endswith("failed")
    assert "account (none)" in now
    assert "not acquired" in text


def test_bars_in_a_lane_never_overlap():
    many = [line(number, at_s=TODAY_S + 3600 * (number % 7), held_s=5000.0) for number in range(10)]
    _, root = svg_of(usage_of(*many, a=4))
    bars = [
        (float(rect.get("y")), float(rect.get("x")), float(rect.get("width")))
        for rect in root.iter("{http://www.w3.org/2000/svg}rect")
        if rect.find("{http://www.w3.org/2000/svg}title") is not None
    ]
    assert len(bars) == 10
    for y in {bar[0] for bar in bars}:
        lane = sorted((x, width) for at, x, width in bars if at == y)
        assert all(x + width <= after + 0.2 for (x, width), (after, _) in itertools.pairwise(lane))


@pytest.mark.parametrize("qpus", [1, 40])
def test_many_acquisitions_make_a_small_file(qpus):
    many = [
        line(number, at_s=TODAY_S + number * 1.5, held_s=1.0, user=f"u{number % 30}", qpu=f"q{number % qpus}")
        for number in range(20_000)
    ]
    text, root = svg_of(usage_of(*many))
    assert len(text) < 120_000 * qpus + 200_000
    assert len(text) < 4_000_000
    assert any("% held; " in title for title in titles(root))
    assert "others" in text


@given(
    st.lists(
        st.tuples(st.floats(-1e5, 2e5), st.floats(0, 3e5), st.sampled_from(["released", "failed", "held", "unknown"])),
        max_size=30,
    ),
    st.integers(1, 5),
)
def test_anything_can_be_drawn(times, capacity):
    lines = [
        line(number, id=str(number), at_s=TODAY_S + at_s, held_s=held_s, result=result,
             **({} if result in ("released", "held") else {"acquired_s": None, "token": None}))
        for number, (at_s, held_s, result) in enumerate(times)
    ]  # fmt: skip
    found = usage_of(*lines, a=capacity)
    chosen = tuple(one for one in found.acquisitions if one.touches(found.span))
    found = Usage(found.span, chosen, found.capacities)
    _, root = svg_of(found)
    for rect in root.iter("{http://www.w3.org/2000/svg}rect"):
        assert float(rect.get("width")) >= 0
        assert 0 <= float(rect.get("x", 0)) <= canvas.WIDTH
    assert sum(row.held_s for row in usage.group(found, ["day"])) == pytest.approx(usage.total(found).held_s, abs=1e-3)
