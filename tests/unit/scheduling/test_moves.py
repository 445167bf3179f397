"""Which waiting jobs get another license, and what is read from squeue's answer."""

import sys
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrmi_slurm.deadline import Deadline
from qrmi_slurm.scheduling import moves
from qrmi_slurm.scheduling.moves import Move, Waiting
from qrmi_slurm.slurm import licenses

CONF = Path("/etc/slurm/slurm.conf")
MARK = "|mark|"
AMPLE = Deadline.after(3600)


def waiting(job, choices=(), priority=10, **asked):
    return Waiting(str(job), priority, asked, tuple(tuple(choice) for choice in choices))


def planned(jobs, **free):
    return {move.job: dict(move.after) for move in moves.plan(jobs, free, AMPLE)}


# --- the plan ---------------------------------------------------------------------------------------------------


def test_a_free_license_goes_to_the_job_whose_turn_it_is():
    """The highest priority first, then the oldest; each is given away once, and the other jobs keep theirs."""
    jobs = [waiting(number, ["abc"], priority, a=1) for number, priority in ((10, 5), (9, 5), (8, 4), (11, 6))]
    assert planned(jobs, a=0, b=1, c=1) == {"11": {"b": 1}, "9": {"c": 1}}


def test_tasks_of_an_array_take_turns_by_number():
    """Task 2 comes before task 10."""
    jobs = [waiting(f"7_{task}", ["ab"], a=1) for task in (10, 2)]
    assert planned(jobs, a=0, b=1) == {"7_2": {"b": 1}}


def test_a_license_that_another_job_is_about_to_take_is_not_given_away():
    """Slurm starts a job by itself if its own license is free."""
    jobs = [waiting(1, ["ab"], 5, a=1), waiting(2, [], 9, b=1), waiting(3, ["ab"], 8, b=1)]
    assert planned(jobs, a=0, b=1) == {}
    assert planned(jobs, a=0, b=2) == {}
    assert planned(jobs, a=0, b=3) == {"1": {"b": 1}}


def test_a_job_that_could_not_start_takes_nothing():
    """It waits for another license as well, so the free one goes to the next job."""
    jobs = [waiting(1, ["ab"], 9, a=1, matlab=1), waiting(2, ["ab"], 5, a=1)]
    assert planned(jobs, a=0, b=1, matlab=0) == {"2": {"b": 1}}
    assert planned(jobs, a=0, b=1, matlab=1) == {"1": {"matlab": 1, "b": 1}}


def test_two_choices_take_two_different_licenses():
    """A license that the job has already is kept if it is free."""
    jobs = [waiting(1, ["abc", "abc"], a=1, b=1)]
    assert planned(jobs, a=0, b=1, c=1) == {"1": {"b": 1, "c": 1}}
    assert planned(jobs, a=0, b=2, c=0) == {}
    assert planned([waiting(1, ["ab", "bc"], a=1, b=1)], a=0, b=1, c=1) == {"1": {"b": 1, "c": 1}}


@pytest.mark.parametrize(
    "job",
    [
        waiting(1, ["ab"], a=1, b=1),  # one of them is for a QPU that it named
        waiting(1, ["ab"], a=2),
        waiting(1, ["ab"], x=1),  # an admin has given it another license
        waiting(1, ["ab", "cd"], a=1, b=1),
        waiting(1, ["ab"] * 7, a=7),
        waiting(1, [], a=1),
    ],
)
def test_a_job_with_an_unclear_choice_is_left_alone(job):
    """Nothing says which of its licenses is for the QPU that it left open."""
    assert planned([job], a=0, b=9, c=9, d=9, x=0) == {}


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from("abc"), st.sets(st.sampled_from("abc"), min_size=1)), max_size=8
    ),
    st.fixed_dictionaries({name: st.integers(0, 2) for name in "abc"}),
)
def test_no_plan_gives_away_more_than_is_free(asked, free):
    """Each job gets a license of its choice, and all moves together take no more than is free."""
    jobs = [
        waiting(number, ["".join(sorted(choice | {has}))], priority, **{has: 1})
        for number, (priority, has, choice) in enumerate(asked, 1)
    ]
    by_number = {job.job: job for job in jobs}
    given_away = dict.fromkeys("abc", 0)
    for move in moves.plan(jobs, free, AMPLE):
        assert move.before == by_number[move.job].licenses
        (license,) = move.after
        assert license in by_number[move.job].choices[0]
        given_away[license] += 1
    assert all(given_away[name] <= free[name] for name in free)


LICENSES = "abcdef"


def most_kept(job, free):
    """Return how many of its licenses the job can keep at most, by trying everything; None if it cannot start."""
    ways = [way for way in product(*job.choices) if len(set(way)) == len(way) and all(free[name] for name in way)]
    return max((len(set(way) & job.licenses.keys()) for way in ways), default=None)


@st.composite
def choosing_jobs(draw):
    """Return a job with one to five choices, and a license that it waits for in each of them."""
    choices = draw(st.lists(st.sets(st.sampled_from(LICENSES), min_size=1), min_size=1, max_size=5))
    asked = {}
    for choice in choices:
        license = draw(st.sampled_from(sorted(choice)))
        asked[license] = asked.get(license, 0) + 1
    return waiting(1, [sorted(choice) for choice in choices], **asked)


@given(choosing_jobs(), st.fixed_dictionaries({name: st.integers(0, 1) for name in LICENSES}))
def test_a_job_moves_where_any_way_fits_and_keeps_what_it_can(job, free):
    """The same as trying every way, for jobs that are small enough for that."""
    found = [dict(move.after) for move in moves.plan([job], free, AMPLE)]
    could_start = all(free[name] >= count for name, count in job.licenses.items())
    if could_start or most_kept(job, free) is None:
        assert found == []
    else:
        (after,) = found
        assert set(after.values()) == {1}
        assert all(free[name] for name in after)
        assert len(after.keys() & job.licenses.keys()) == most_kept(job, free)
        assert any(set(way) == after.keys() and len(way) == len(after) for way in product(*job.choices))


def lines_run(work):
    """Return how many lines of moves.py some work runs: unlike seconds, the same on a busy machine."""
    count = 0

    def on_line(frame, event, _argument):
        nonlocal count
        if frame.f_code.co_filename != moves.__file__:
            return None
        count += event == "line"
        assert count < 1_000_000, "it does not end"
        return on_line

    before = sys.gettrace()
    sys.settrace(on_line)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("count", [5, 8, 64])
def test_a_job_that_cannot_start_is_found_out_soon(count):
    """All choices but one are satisfied easily, by 25 free licenses; the last one has none."""
    wide = [f"r{number}" for number in range(100)]
    choices = (*((*wide, f"x{number}") for number in range(count - 1)), ("x",))
    job = Waiting("1", 1, {**{f"x{number}": 1 for number in range(count - 1)}, "x": 1}, choices)
    free = {name: 1 for name in wide[:25]}
    assert lines_run(lambda: list(moves.plan([job], free, AMPLE))) < 2000 + 2000 * count


def test_a_job_that_asks_for_a_billion_licenses_costs_no_more():
    """`sbatch -L` takes such a number where a license has as many."""
    job = Waiting("1", 1, {"a": 999_999_999}, (("a", "b"),))
    assert list(moves.plan([job], {"a": 5, "b": 5}, AMPLE)) == []
    assert planned([waiting(1, ["ab"], a=1, m=999_999_999)], b=1, m=10**9) == {"1": {"m": 999_999_999, "b": 1}}


def test_no_job_is_looked_at_after_the_deadline():
    assert list(moves.plan([waiting(1, ["ab"], a=1)], {"b": 1}, Deadline.after(-1))) == []


def test_an_array_that_cannot_start_is_found_out_once():
    """10,000 tasks that wait for eight of 300 QPUs kept the sensor busy for half a minute."""
    wide = tuple(f"r{number}" for number in range(300))
    asked = {name: 1 for name in wide[:8]}
    tasks = [Waiting(f"1_{number}", 1, asked, (wide,) * 8) for number in range(1000)]
    free = {name: 1 for name in wide[100:107]}
    one = lines_run(lambda: list(moves.plan(tasks[:1], free, AMPLE)))
    assert lines_run(lambda: list(moves.plan(tasks, free, AMPLE))) < one + 10 * len(tasks)


def test_a_task_that_cannot_start_keeps_no_other_job_waiting():
    jobs = [waiting("1_1", ["ab"], a=1, c=1), waiting("1_2", ["ab"], a=1, c=1), waiting("2", ["ab"], a=1)]
    assert planned(jobs, b=1) == {"2": {"b": 1}}


# --- squeue's answer --------------------------------------------------------------------------------------------


def test_squeues_lines_are_read():
    """Id, priority and licenses come from Slurm, the choices from the admin comment."""
    text = (
        f"1{MARK}4294901759|Licenses|qpu_a|a note qrmi-slurm:any=qpu_a|qpu_b|qpu_b\n"
        f"2_3{MARK}5|Licenses|qpu_a:1,matlab@db:2|qrmi-slurm:any=qpu_a|qpu_b qrmi-slurm:any=qpu_c|qpu_d\n"
        f"4{MARK}5|Licenses|qpu_a:1|(null)\n"
    )
    assert list(moves.parse(text, MARK)) == [
        Waiting("1", 4294901759, {"qpu_a": 1}, (("qpu_a", "qpu_b"),)),
        Waiting("2_3", 5, {"qpu_a": 1, "matlab@db": 2}, (("qpu_a", "qpu_b"), ("qpu_c", "qpu_d"))),
        Waiting("4", 5, {"qpu_a": 1}),
    ]


@pytest.mark.parametrize(
    "line",
    [
        f"1{MARK}5|Priority|qpu_a|qrmi-slurm:any=qpu_a|qpu_b",
        f"1{MARK}5|Licenses|qpu_a|qpu_b|qrmi-slurm:any=qpu_a|qpu_b"[:20],
        f"1{MARK}5|Licenses|(null)|",
        f"1{MARK}5|Licenses|qpu_a:x|",
        f"1_[1-3%2]{MARK}5|Licenses|qpu_a|",
        f"x{MARK}5|Licenses|qpu_a|",
        f"1{MARK}|Licenses|qpu_a|",
        "2|5|Licenses|qpu_a|qrmi-slurm:any=qpu_a|qpu_b",
        "second line of a comment qrmi-slurm:any=qpu_a|qpu_b",
        "",
    ],
)
def test_other_lines_are_ignored(line):
    """Jobs with other reasons, lines that squeue does not print, and the second line of an admin comment."""
    assert list(moves.parse(line, MARK)) == []


@pytest.mark.parametrize("word", ["xqrmi-slurm:any=a|b", "qrmi-slurm:any=", "qrmi-slurm:any=a;b", "qrmi-slurm:any=a,b"])
def test_other_words_of_a_comment_are_not_a_choice(word):
    (job,) = moves.parse(f"1{MARK}5|Licenses|qpu_a|{word}", MARK)
    assert job.choices == ()


def test_the_comment_of_an_arrays_tasks_is_read_once(monkeypatch):
    """It has a list for each QPU that the job left open, hundreds of kilobytes in all."""

    class Pattern:
        read = 0

        def findall(self, text):
            Pattern.read += 1
            return real.findall(text)

    real = moves._CHOICE
    monkeypatch.setattr(moves, "_CHOICE", Pattern())
    lines = [f"7_{number}{MARK}1|Licenses|a|qrmi-slurm:any=a|b" for number in range(100)]
    lines += [f"8{MARK}1|Licenses|a|qrmi-slurm:any=a|c", f"9{MARK}1|Licenses|a|"]
    found = [job.choices for job in moves.parse("\n".join(lines), MARK)]
    assert found == [(("a", "b"),)] * 100 + [(("a", "c"),), ()]
    assert Pattern.read <= 3


def test_each_call_of_squeue_has_its_own_mark(slurm):
    """So nobody can write a line beforehand that looks like squeue's."""
    slurm.jobs = [("1", 5, "Licenses", "qpu_a", f"x\n2{MARK}5|Licenses|qpu_a|qrmi-slurm:any=qpu_a|qpu_b")]
    assert [job.job for job in moves.waiting(["qpu_a"], CONF)] == ["1"]


def test_a_move_is_one_update(slurm):
    """It names all of the job's licenses, including those that stay."""
    slurm.jobs = [("7_2", 5, "Licenses", "a", "")]
    moves.carry_out(Move("7_2", {"a": 1, "m": 2}, {"m": 2, "b": 1}), CONF)
    assert slurm.changes == ["update JobId=7_2 Licenses=m:2,b:1"]


# --- licenses ---------------------------------------------------------------------------------------------------


def test_reserved_licenses_are_not_free():
    """There may be more reserved and in use than exist."""
    text = (
        "LicenseName=qpu_a Total=2 Used=1 Free=1 Reserved=2 Remote=no\n"
        "LicenseName=m@db Total=5 Used=1 Free=4 Reserved=1 Remote=yes LastConsumed=0 LastDeficit=0 LastUpdate=x\n"
        "No licenses configured in Slurm.\n"
    )
    found = licenses.parse(text)
    assert {name: license.free for name, license in found.items()} == {"qpu_a": 0, "m@db": 3}
