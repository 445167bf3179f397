"""The moves: which waiting jobs to give another license, because a QPU that would also do is free.

A job that asked for any of several QPUs (`--qpu='any:...'`) waits for the license of one of them. job_submit has
written into its AdminComment, which users cannot change, which licenses would do:

    qrmi-slurm:any=qpu_a|qpu_b|qpu_c
"""

import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from qrmi_slurm.deadline import Deadline
from qrmi_slurm.slurm import commands, licenses

_CHOICE: Final = re.compile(r"(?:^|\s)qrmi-slurm:any=([A-Za-z0-9_.@|-]+)(?=\s|$)")
_JOB: Final = re.compile(r"(\d+)(?:_(\d+))?(?:\+\d+)?")

Option = TypeVar("Option")

_TIMEOUT_S: Final = 30.0  # squeue may have to look through 100,000 jobs


class Waiting(NamedTuple):
    """A job that waits for licenses.

    Args:
        job: its id as scontrol takes it: `12`, or `12_3` for a task of an array.
        priority: Slurm's; the highest is next.
        licenses: how many of each it asks for.
        choices: for each QPU that it left open, the licenses that would do.
    """

    job: str
    priority: int
    licenses: Mapping[str, int]
    choices: tuple[tuple[str, ...], ...] = ()

    @property
    def turn(self) -> tuple[int, int, int]:
        """The sort key for whose turn it is: the highest priority first, then the oldest."""
        number, _, task = self.job.partition("_")
        return (-self.priority, int(number), int(task or 0))


class Move(NamedTuple):
    """A job and the licenses it is to get instead of its own.

    Args:
        job: its id as scontrol takes it.
        before: all licenses that it has.
        after: all licenses that it gets.
    """

    job: str
    before: Mapping[str, int]
    after: Mapping[str, int]


def waiting(of: Sequence[str], slurm_conf: Path) -> list[Waiting]:
    """Return the jobs that wait for licenses and ask for at least one of these.

    Args:
        of: the licenses' names; at least one.
        slurm_conf: Slurm's configuration file.

    Raises:
        SchedulerError: slurmctld cannot be asked.
    """
    # An admin comment may have several lines. Only squeue's own have the mark, which nobody could have guessed.
    mark = f"|{secrets.token_hex(8)}|"
    # A colon without a number: as wide as needed (src/squeue/opts.c).
    fields = f"JobArrayID:{mark},PriorityLong:|,Reason:|,Licenses:|,admin_comment:"
    command = ["squeue", "--noheader", "--all", "--local", "--array", "--states=PENDING"]
    command += [f"--licenses={','.join(of)}", f"--Format={fields}"]
    return list(parse(commands.run(command, slurm_conf, _TIMEOUT_S), mark))


def parse(text: str, mark: str) -> Iterator[Waiting]:
    """Yield the jobs in squeue's answer that wait for licenses.

    Args:
        text: the answer.
        mark: what follows the job's id in each of squeue's own lines.
    """
    comment, choices = "", tuple[tuple[str, ...], ...]()
    for line in text.splitlines():
        number, is_ours, rest = line.partition(mark)
        words = rest.split("|", 3)
        match = _JOB.fullmatch(number)
        if not is_ours or match is None or len(words) != 4 or not words[0].isdecimal() or words[1] != "Licenses":
            continue
        asked = licenses.parse_counts(words[2])
        if not asked:
            continue
        if words[3] != comment:  # the tasks of an array have the same, and it may have hundreds of kilobytes
            comment = words[3]
            choices = tuple(tuple(dict.fromkeys(choice.split("|"))) for choice in _CHOICE.findall(comment))
        yield Waiting(number, int(words[0]), asked, choices)


def plan(jobs: Sequence[Waiting], free: Mapping[str, int], deadline: Deadline) -> Iterator[Move]:
    """Yield the moves after which jobs could start; each free license is given away once.

    Args:
        jobs: the jobs that wait for licenses.
        free: how many of each license are free.
        deadline: after it no further job is looked at; users may have tens of thousands waiting that cannot start.
    """
    left = dict(free)
    # What could not start cannot start with less: the tasks of an array all ask for the same.
    hopeless: set[tuple[frozenset[tuple[str, int]], tuple[tuple[str, ...], ...]]] = set()
    for job in sorted(jobs, key=lambda job: job.turn):
        if deadline.left_s <= 0:
            return
        asked = (frozenset(job.licenses.items()), job.choices)
        if asked in hopeless:
            continue
        after = _next_to_take(job, left)
        if after is None:
            hopeless.add(asked)
            continue
        for license, count in after.items():
            left[license] -= count
        if after != job.licenses:
            yield Move(job.job, job.licenses, after)


def _next_to_take(job: Waiting, free: Mapping[str, int]) -> Mapping[str, int] | None:
    """Return free licenses with which a job could start, its own if they are free; None if there are none."""
    if _are_free(job.licenses, free):
        return job.licenses  # Slurm starts the job by itself
    open_units = {license for choice in job.choices for license in choice} & job.licenses.keys()
    # With more of these licenses than choices, some are for QPUs that it named, and nothing says which.
    if not 0 < sum(job.licenses[license] for license in open_units) == len(job.choices):
        return None
    units = [license for license in job.licenses if license in open_units for _ in range(job.licenses[license])]
    places = [[place for place, unit in enumerate(units) if unit in choice] for choice in job.choices]
    if not _is_complete(_matched(places)):
        return None
    fixed = {license: count for license, count in job.licenses.items() if license not in open_units}
    if not _are_free(fixed, free):
        return None
    taken = _take(job, fixed, free)
    return None if taken is None else {**fixed, **taken}


def _take(job: Waiting, fixed: Mapping[str, int], free: Mapping[str, int]) -> dict[str, int] | None:
    """Return a different free license for each choice, as many as possible that the job has; None if impossible."""
    usable = [[name for name in choice if free.get(name, 0) > 0 and name not in fixed] for choice in job.choices]
    # First only its own: what is matched then stays matched, if perhaps to another choice.
    kept = _matched([[name for name in choice if name in job.licenses] for choice in usable])
    taken = _matched(usable, kept)
    return {name: 1 for name in taken if name is not None} if _is_complete(taken) else None


def _matched(options: Sequence[Sequence[Option]], before: Sequence[Option | None] = ()) -> list[Option | None]:
    """Return a maximum matching: a different option for each choice, None where none is left.

    Augmenting paths: the work grows with the number of choices times the number of all their options. Options that were
    matched before stay matched.

    Args:
        options: of each choice, the preferred first.
        before: a matching to start from, as this function returns it.
    """
    found: list[Option | None] = list(before) or [None] * len(options)
    owner = {option: choice for choice, option in enumerate(found) if option is not None}

    def give(choice: int, asked: set[Option]) -> bool:
        for option in options[choice]:
            if option in asked:
                continue
            asked.add(option)
            if option not in owner or give(owner[option], asked):
                owner[option], found[choice] = choice, option
                return True
        return False

    for choice, option in enumerate(found):
        if option is None:
            give(choice, set())
    return found


def _is_complete(matching: Sequence[object | None]) -> bool:
    return None not in matching


def _are_free(wanted: Mapping[str, int], free: Mapping[str, int]) -> bool:
    return all(free.get(license, 0) >= count for license, count in wanted.items())


def carry_out(move: Move, slurm_conf: Path) -> None:
    """Give a waiting job its new licenses.

    Raises:
        SchedulerError: Slurm refused, because the job has started or ended meanwhile; or Slurm cannot be asked.
    """
    wanted = licenses.list_text(move.after)
    commands.run(["scontrol", "update", f"JobId={move.job}", f"Licenses={wanted}"], slurm_conf)
