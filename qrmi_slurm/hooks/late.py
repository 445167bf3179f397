"""Late answers: a process of its own waits for what Prolog could not wait for, and gives it back.

A service may answer just after the deadline, with a session that nobody uses. So the call goes on, with its own alarm,
and a fork of Prolog without its files, its lock and its session waits for it: for LATE_S and no longer, and for so many
calls of a node at a time (calls/places.py). The same process gives back what Prolog has neither time nor disk for.
Where it is killed, the journal has the token, and recover releases it.
"""

import _signal as signal  # type: ignore[import-not-found]  # `signal` adds enums of the numbers, which takes 0.7 ms
import contextlib
import os
import select
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from qrmi_slurm.calls import backend
from qrmi_slurm.calls.backend import LATE_S, Child
from qrmi_slurm.calls.places import LATE, Node, Places
from qrmi_slurm.calls.protocol import Answer, Verdict
from qrmi_slurm.deadline import Deadline
from qrmi_slurm.errors import RecordBusyError, RecordError
from qrmi_slurm.hooks import release
from qrmi_slurm.hooks.hook_run import HookRun
from qrmi_slurm.log import HookLog
from qrmi_slurm.state import inventory
from qrmi_slurm.state import record as records
from qrmi_slurm.state.job_folder import JobFolder
from qrmi_slurm.state.record import Entry, Record, State
from qrmi_slurm.text import shown

# How long to wait for the record's lock, in seconds: Prolog has it until it ends, and Epilog may follow.
_LOCK_S: Final = 60.0

# How often a release is tried whose QPU no disk remembers, and how long to wait after the first try, in seconds.
_TRIES: Final = 6
_FIRST_PAUSE_S: Final = 2.0

# How long the hook waits for this process to be out of its process group and to have its places, in milliseconds.
_BEGIN_MS: Final = 500

# How much longer than all these waits this process may live, in seconds.
_GRACE_S: Final = 30.0


def go_on(children: Sequence[Child], entries: Mapping[str, Entry], record: Record, run: HookRun, node: Node) -> None:
    """Let another process wait for calls, and release what they have acquired; return at once.

    Args:
        children: the calls.
        entries: of the record, by the QPU's name.
        record: the job's, as it is now.
        run: of Prolog.
        node: where the calls have their places.
    """

    def work(run: HookRun, begin: Callable[[], None]) -> None:
        waited_for = _with_places(children, node)  # before the hook gives its own places back
        begin()
        backend.await_late(waited_for, LATE_S, lambda answers: _settle(answers, entries, record, run))

    kept = [fd for child in children for fd in (child.answer_fd, child.log_fd, child.pid_fd) if fd is not None]
    _in_background(work, run, kept, LATE_S + _LOCK_S + run.options.release_timeout_s)


def give_back(record: Record, run: HookRun) -> None:
    """Let another process release what a job holds and no disk remembers, and try again; return at once."""
    longest_s = _TRIES * run.options.release_timeout_s + 2**_TRIES * _FIRST_PAUSE_S

    def work(run: HookRun, begin: Callable[[], None]) -> None:
        begin()
        _give_back(record, run)

    _in_background(work, run, (), longest_s)


def _in_background(
    work: Callable[[HookRun, Callable[[], None]], None], run: HookRun, kept: Sequence[int], limit_s: float
) -> None:
    """Do work in a process of its own; it tells the hook when that may go on."""
    try:
        begun, begin = os.pipe()
        pid = os.fork()
    except OSError as error:  # the calls end by their own alarms, and their journals have the tokens
        run.log.error("not-awaited", reason=f"no process could be started: {error.strerror}")
        return
    if pid != 0:
        os.close(begin)
        poll = select.poll()
        poll.register(begun, select.POLLIN)
        poll.poll(_BEGIN_MS)
        os.close(begun)
        return
    log = HookLog(run.log.hook, run.folder.job_id, echo=False)
    try:
        os.setsid()  # slurmd kills the hook's process group as soon as the hook has ended
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, limit_s + _GRACE_S)
        _keep_only((*kept, begin))  # the hook's lock is among the others
        work(run._replace(log=log), lambda: os.close(begin))
    except BaseException:  # the process's last line: none of the hook's own may run here
        log.exception("surprise")
    finally:
        os._exit(0)


def _keep_only(kept: Sequence[int]) -> None:
    """Close every file of the hook but these: slurmd waits for the end of its output."""
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    for fd in [int(name) for name in os.listdir("/proc/self/fd")]:
        if fd > 2 and fd not in kept:
            with contextlib.suppress(OSError):
                os.close(fd)


def _with_places(children: Sequence[Child], node: Node) -> list[Child]:
    """Return the calls that have a place; the others are killed."""
    places, found = Places(node, LATE), list[Child]()
    for child in children:
        try:
            has_place = places.take()
        except RecordError:
            has_place = False
        if has_place:
            found.append(child)
        else:
            backend.kill_late(child)
    return found  # this process keeps the places until it ends


def _settle(answers: Sequence[Answer], entries: Mapping[str, Entry], record: Record, run: HookRun) -> None:
    """Put late answers into the record, and release what they have opened."""
    told: dict[int, Answer] = {}
    for answer in answers:
        entry = entries[answer.call.resource]
        hidden = records.secrets_of([entry])
        run.log.hide(hidden)
        run.log.qrmi(entry.name, answer.log)
        if answer.token is not None:
            run.log.hide([answer.token])
        said = answer.verdict if answer.verdict is Verdict.DONE else shown(answer.reason, hidden, 300)
        run.log.warning("late-answer", qpu=entry.name, type=entry.type, seconds=answer.duration_s, said=said)
        if answer.token is not None or answer.verdict is Verdict.REFUSED:
            told[entry.journal] = answer
    if not told:
        return
    try:
        folder = _folder_of(record, run.folder)
        with folder.locked(_LOCK_S):
            found = folder.read()
            if found is None or found.created_s != record.created_s:
                raise RecordError(f"the record in {folder.path} is gone")
            _release(told, found, run._replace(folder=folder))
    except (RecordBusyError, RecordError) as error:
        # The folder is gone, or the disk is full: what is in hand is released all the same, with a record of its own.
        run.log.error("not-recorded", reason=error)
        lost = [_answered(entry, told) for entry in entries.values() if entry.journal in told]
        own = run.folder.beside()
        with contextlib.suppress(RecordError):
            own.create()
        _give_back(record._replace(entries=tuple(lost)), run._replace(folder=own))


def _folder_of(record: Record, folder: JobFolder) -> JobFolder:
    """Return the folder that has a job's record now: Prolog of a later run of the job may have moved it.

    Raises:
        RecordError: the state directory cannot be read.
    """
    for item in inventory.of_job(folder.state_dir, folder.job_id):
        if (
            item.folder.cluster == folder.cluster
            and item.record is not None
            and item.record.created_s == record.created_s
        ):
            return item.folder
    return folder


def _release(told: Mapping[int, Answer], found: Record, run: HookRun) -> None:
    """Release, with the record's lock held."""
    # One that its hook has taken over after all is the job's.
    places = [index for index, entry in enumerate(found.entries) if entry.journal in told and not _is_held(entry)]
    for index in places:
        found = found.with_entry(index, _answered(found.entries[index], told))
    journals = {found.entries[index].journal for index in places}
    if not journals:
        return
    timeout = run._replace(deadline=Deadline.after(run.options.release_timeout_s))
    # Where the exports are gone, Epilog has been here, and nothing else removes the folder.
    is_wanted = run.folder.exports_path.exists()
    release.release(found, timeout, keep_folder=is_wanted, which=lambda entry: entry.journal in journals)


def _is_held(entry: Entry) -> bool:
    return entry.state is State.ACQUIRED


def _answered(entry: Entry, told: Mapping[int, Answer]) -> Entry:
    answer = told[entry.journal]
    if answer.token is not None:
        return entry.to(State.RELEASING, token=answer.token, reason="the answer came too late for the job")
    return entry.to(State.FAILED, reason=shown(answer.reason, records.secrets_of([entry]), 300))


def _give_back(record: Record, run: HookRun) -> None:
    """Release what is in hand until it is proven, or the disk remembers it again."""
    pause_s = _FIRST_PAUSE_S
    for _ in range(_TRIES):
        again = run._replace(deadline=Deadline.after(run.options.release_timeout_s))
        try:
            release.release(record, again, keep_folder=not run.folder.is_aside)
        except RecordError:
            time.sleep(pause_s)
            pause_s *= 2
        else:
            return  # released, or recorded: recover goes on
    run.log.error("given-up", hint="a session may be open until its time to live")
