"""Which waiting jobs get another license, and what squeue's answer is trusted with."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrmi_slurm.scheduling import moves
from qrmi_slurm.scheduling.moves import Move, Waiting
from qrmi_slurm.slurm import licenses

CONF = Path("/etc/slurm/slurm.conf")
MARK = "|mark|"


def waiting(job, choices=(), priority=10, **asked):
    return Waiting(str(job), priority, asked, tuple(tuple(choice) for choice in choices))


def planned(jobs, **free):
    return {move.job: dict(move.after) for move in moves.plan(jobs, free)}


# --- the plan ---------------------------------------------------------------------------------------------------


def test_a_free_license_is_given_once_and_to_whose_turn_it_is():
    """The highest priority first, then the oldest; the others wait where they are."""
    jobs = [waiting(number, ["abc"], priority, a=1) for number, priority in ((10, 5), (9, 5), (8, 4), (11, 6))]
    assert planned(jobs, a=0, b=1, c=1) == {"11": {"b": 1}, "9": {"c": 1}}


def test_tasks_of_an_array_go_in_their_order():
    """Task 2 is before task 10."""
    jobs = [waiting(f"7_{task}", ["ab"], a=1) for task in (10, 2)]
    assert planned(jobs, a=0, b=1) == {"7_2": {"b": 1}}


def test_what_another_job_will_take_is_not_given_away():
    """A job that left nothing open, and whose license is free, begins as soon as Slurm comes to it."""
    jobs = [waiting(1, ["ab"], 5, a=1), waiting(2, [], 9, b=1), waiting(3, ["ab"], 8, b=1)]
    assert planned(jobs, a=0, b=1) == {}
    assert planned(jobs, a=0, b=2) == {}
    assert planned(jobs, a=0, b=3) == {"1": {"b": 1}}


def test_a_job_that_could_not_begin_takes_nothing():
    """It waits for another license as well, so the free one is the next job's."""
    jobs = [waiting(1, ["ab"], 9, a=1, matlab=1), waiting(2, ["ab"], 5, a=1)]
    assert planned(jobs, a=0, b=1, matlab=0) == {"2": {"b": 1}}
    assert planned(jobs, a=0, b=1, matlab=1) == {"1": {"matlab": 1, "b": 1}}


def test_two_choices_take_two_licenses():
    """No two alike, and the one that the job has already is kept where it is free."""
    jobs = [waiting(1, ["abc", "abc"], a=1, b=1)]
    assert planned(jobs, a=0, b=1, c=1) == {"1": {"b": 1, "c": 1}}
    assert planned(jobs, a=0, b=2, c=0) == {}
    assert planned([waiting(1, ["ab", "bc"], a=1, b=1)], a=0, b=1, c=1) == {"1": {"b": 1, "c": 1}}


@pytest.mark.parametrize(
    "job",
    [
        waiting(1, ["ab"], a=1, b=1),  # one of them is of a QPU that it named
        waiting(1, ["ab"], a=2),
        waiting(1, ["ab"], x=1),  # an admin has given it another one
        waiting(1, ["ab", "cd"], a=1, b=1),
        waiting(1, ["ab"] * 7, a=7),
        waiting(1, [], a=1),
    ],
)
def test_jobs_that_are_left_alone(job):
    """Where it is not plain which license stands for the choice, nothing is changed."""
    assert planned([job], a=0, b=9, c=9, d=9, x=0) == {}


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from("abc"), st.sets(st.sampled_from("abc"), min_size=1)), max_size=8
    ),
    st.fixed_dictionaries({name: st.integers(0, 2) for name in "abc"}),
)
def test_no_plan_gives_more_than_there_is(asked, free):
    """Each move is to licenses that the job would take, and all moves together fit into what is free."""
    jobs = [
        waiting(number, ["".join(sorted(choice | {has}))], priority, **{has: 1})
        for number, (priority, has, choice) in enumerate(asked, 1)
    ]
    by_number = {job.job: job for job in jobs}
    given_away = dict.fromkeys("abc", 0)
    for move in moves.plan(jobs, free):
        assert move.before == by_number[move.job].licenses
        (license,) = move.after
        assert license in by_number[move.job].choices[0]
        given_away[license] += 1
    assert all(given_away[name] <= free[name] for name in free)


# --- squeue's answer --------------------------------------------------------------------------------------------


def test_lines_of_squeue():
    """Number, priority and licenses are Slurm's; the choices are those of the admin's comment."""
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
def test_lines_that_are_passed_over(line):
    """Other reasons, what is not of squeue's form, and what an admin comment's second line may hold."""
    assert list(moves.parse(line, MARK)) == []


@pytest.mark.parametrize("word", ["xqrmi-slurm:any=a|b", "qrmi-slurm:any=", "qrmi-slurm:any=a;b", "qrmi-slurm:any=a,b"])
def test_words_that_are_no_choice(word):
    """A job with other words has left nothing open."""
    (job,) = moves.parse(f"1{MARK}5|Licenses|qpu_a|{word}", MARK)
    assert job.choices == ()


def test_each_question_has_its_own_mark(slurm):
    """Nobody can write a line today that passes for one of squeue's."""
    slurm.jobs = [("1", 5, "Licenses", "qpu_a", f"x\n2{MARK}5|Licenses|qpu_a|qrmi-slurm:any=qpu_a|qpu_b")]
    assert [job.job for job in moves.waiting(["qpu_a"], CONF)] == ["1"]


def test_a_move_is_one_update(slurm):
    """All of the job's licenses are written, those that stay as well."""
    slurm.jobs = [("7_2", 5, "Licenses", "a", "")]
    moves.carry_out(Move("7_2", {"a": 1, "m": 2}, {"m": 2, "b": 1}), CONF)
    assert slurm.changes == ["update JobId=7_2 Licenses=m:2,b:1"]


# --- licenses ---------------------------------------------------------------------------------------------------


def test_licenses_of_scontrol():
    """What is reserved is not free, and what is in use and reserved at once counts once."""
    text = (
        "LicenseName=qpu_a Total=2 Used=1 Free=1 Reserved=2 Remote=no\n"
        "LicenseName=m@db Total=5 Used=1 Free=4 Reserved=1 Remote=yes LastConsumed=0 LastDeficit=0 LastUpdate=x\n"
        "No licenses configured in Slurm.\n"
    )
    found = licenses.parse(text)
    assert {name: license.free for name, license in found.items()} == {"qpu_a": 0, "m@db": 3}
