"""The workers: processes that do the same work on many things side by side; for the command, not for the hooks."""

import multiprocessing
import multiprocessing.connection
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from typing import Final, NamedTuple, TypeVar

from qrmi_slurm.calls.places import Service, Turns
from qrmi_slurm.deadline import Deadline

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

# How long to wait for a process that was killed to be gone, in seconds.
_END_S: Final = 1.0


class Limits(NamedTuple):
    """How much work there may be.

    Args:
        at_once: how many processes at a time.
        each_s: how long the work on one thing may take, in seconds; then it is killed.
    """

    at_once: int
    each_s: float


class Unfinished(NamedTuple):
    """Why there is no outcome, in words."""

    reason: str

    def __str__(self) -> str:
        return self.reason


class _Worker(NamedTuple):
    number: int
    process: ForkProcess
    told: Connection
    deadline: Deadline


def side_by_side(
    work: Callable[[Item], Outcome],
    items: Sequence[Item],
    services: Sequence[Service],
    begin_s: Sequence[float],
    limits: Limits,
) -> "list[Outcome | Unfinished]":
    """Do the same work on many things, each in a process of its own; return the outcomes in the order of the things.

    Args:
        work: what to do; its outcome has to be picklable.
        items: with what.
        services: the service that each waits for; each has its share of the processes.
        begin_s: until when the work on each may begin, in seconds from now.
        limits: how much at a time, and for how long.
    """
    outcomes: dict[int, Outcome | Unfinished] = {}
    turns = Turns(services, limits.at_once)
    begins = [Deadline.after(seconds) for seconds in begin_s]
    running: list[_Worker] = []
    try:
        while True:
            while (number := turns.next()) is not None:
                if begins[number].left_s <= 0:
                    turns.end(number)
                    continue
                running.append(_start(number, work, items[number], limits.each_s))
            if not running:
                break
            soonest_s = min(worker.deadline.left_s for worker in running)
            multiprocessing.connection.wait([worker.told for worker in running], soonest_s)
            for worker in [worker for worker in running if worker.told.poll() or worker.deadline.left_s <= 0]:
                outcomes[worker.number] = _outcome(worker, limits.each_s)
                running.remove(worker)
                turns.end(worker.number)
    finally:
        for worker in running:
            worker.process.kill()
    late = Unfinished("this run had no time left for it; the next one goes on")
    return [outcomes.get(number, late) for number in range(len(items))]


def _start(number: int, work: Callable[[Item], Outcome], item: Item, limit_s: float) -> _Worker:
    context = multiprocessing.get_context("fork")
    told, tell = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(work, item, tell))
    process.start()
    tell.close()
    return _Worker(number, process, told, Deadline.after(limit_s))


def _work(work: Callable[[Item], Outcome], item: Item, tell: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C: the command itself says so
    tell.send(work(item))


def _outcome(worker: _Worker, limit_s: float) -> "Outcome | Unfinished":
    """Return what a process has told, which is then ended."""
    try:
        if not worker.told.poll():
            return Unfinished(f"working on it took longer than {limit_s:g} s")
        outcome: Outcome = worker.told.recv()
        return outcome
    except EOFError:
        worker.process.join(_END_S)
        return Unfinished(f"the process that worked on it has ended with status {worker.process.exitcode}")
    finally:
        worker.told.close()
        worker.process.kill()
        worker.process.join(_END_S)
