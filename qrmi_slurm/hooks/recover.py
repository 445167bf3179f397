"""Recovering: releases what the hooks could not, by looking at the records and at Slurm's jobs again.

Records whose release is due are worked on side by side, each in a process of its own.
"""

import contextlib
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from qrmi_slurm.broker import launch
from qrmi_slurm.calls.installed import import_qrmi
from qrmi_slurm.calls.places import AT_ONCE, Service, service_of
from qrmi_slurm.deadline import Deadline
from qrmi_slurm.errors import BackendError, BrokerError, NewerRecordError, RecordBusyError, RecordError
from qrmi_slurm.hooks import release, renewal, workers
from qrmi_slurm.hooks.hook_run import HookRun
from qrmi_slurm.log import HookLog
from qrmi_slurm.slurm.jobs import Job
from qrmi_slurm.slurm.plugstack import SiteOptions
from qrmi_slurm.state import exports, inventory
from qrmi_slurm.state.inventory import Item
from qrmi_slurm.state.job_folder import JobFolder
from qrmi_slurm.state.record import Entry, Record, State

# Back-off between attempts at the same session: 30 s, 1 min, 2 min, ... up to 30 min. Sessions cost money by the
# second, so it starts short; a service that is down for a day is asked 50 times.
_FIRST_RETRY_S: Final = 30.0
_LAST_RETRY_S: Final = 1800.0

# Where nothing is held it is not urgent to know whether the job has ended: Slurm is asked this often.
_IDLE_LOOK_S: Final = 3600.0

# Nodes that share the records share the questions: what another node has found out this short a time ago is not asked
# again. It is less than the minute between two runs on a node, so that one of them asks each minute.
_OTHERS_LOOK_S: Final = 45.0

# How long a run goes on to new records, in seconds: what falls due meanwhile has to wait for the next run, which the
# timer starts a minute later.
_RUN_S: Final = 60.0

# The same for releases with users' own credentials: one user may have hundreds of sessions at a service that does not
# answer, and what fails meanwhile waits for the end of this run.
_USERS_RUN_S: Final = 10.0

# How much longer than --acquire-timeout and --release-timeout the work on one record may take, in seconds: for its
# broker, and the disk.
_RECORD_GRACE_S: Final = 15.0


class Step(StrEnum):
    """What recover does with a job's record."""

    RELEASE = "release"
    WAIT = "wait"  # the next attempt is not due yet
    LEAVE = "leave"  # the job lives, or may live
    RENEW = "renew"  # its session has ended, and the job goes on
    FORGET = "forget"  # nothing can be open any more


@dataclass(frozen=True, slots=True)
class World:
    """What is known at one moment besides the records.

    Args:
        cluster: the name of the cluster that `jobs` belong to; None where slurm.conf names none.
        jobs: the jobs that Slurm was asked about; None where it cannot be asked.
        boots: by name, the running boot id of each node that this process knows.
        has_another_run: whether the record in question was put aside by another run of the job, or another job with its
            number.
    """

    cluster: str | None
    jobs: Mapping[int, Job] | None
    boots: Mapping[str, str]
    has_another_run: bool = False

    def is_own(self, cluster: str) -> bool:
        """Tell whether `jobs` belong to a cluster; another one may share the state directory."""
        return self.cluster is not None and cluster.lower() == self.cluster.lower()  # Slurm folds the name

    def job(self, cluster: str, job_id: int) -> Job | None:
        """Return what Slurm says of a job; None where it has not been asked, or cannot be."""
        return self.jobs.get(job_id) if self.jobs is not None and self.is_own(cluster) else None

    def of(self, folder: JobFolder) -> "World":
        """Return what is known for the record in a folder."""
        return replace(self, has_another_run=folder.is_aside)

    def living_word(self, record: Record) -> str:
        """Return what an admin has to know before a job's QPUs are taken away; empty where its run has ended."""
        if _why_ended(record, self) is not None:
            return ""
        job = self.job(record.cluster, record.job_id)
        if job is None:
            return f"Slurm cannot be asked whether job {record.job_id} is running"
        return f"Job {record.job_id} is {job.state}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do with one record, and why.

    Args:
        step: what to do.
        reason: why; a clause for people.
        is_fault: whether something may be held that nothing uses, and that recover does not release now.
        only_pending: release only what an earlier release left over; the rest belongs to the living job.
    """

    step: Step
    reason: str
    is_fault: bool = False
    only_pending: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """What recover did about one job.

    Args:
        cluster: the cluster's name.
        job_id: Slurm's id.
        qpus: the names that were pending.
        plan: what was to be done.
        outcome: how that ended; empty where nothing was done.
        is_left: whether something is still held that nothing uses, so that an admin may have to look.
    """

    cluster: str
    job_id: int
    qpus: tuple[str, ...]
    plan: Plan
    outcome: str = ""
    is_left: bool = False


@dataclass(frozen=True, slots=True)
class Mode:
    """How recover works.

    Args:
        dry_run: only say what would be done.
        now: ignore the back-off.
    """

    dry_run: bool = False
    now: bool = False


def next_try_s(entry: Entry, now_s: float) -> float:
    """Return when a failed release is due again; seconds since the epoch, never further away than the back-off.

    Args:
        entry: the QPU.
        now_s: seconds since the epoch; the clock may have been set back since the last attempt.
    """
    if entry.attempts == 0:
        return 0.0
    backoff_s = min(_LAST_RETRY_S, _FIRST_RETRY_S * 2.0 ** min(entry.attempts - 1, 16))
    return min(entry.since_s, now_s) + backoff_s


def plan(record: Record, world: World, now_s: float, *, now: bool = False) -> Plan:
    """Decide what to do with a record.

    Args:
        record: the job's.
        world: what Slurm and the kernel say.
        now_s: seconds since the epoch.
        now: whether the back-off is ignored.
    """
    if not world.is_own(record.cluster):
        return _plan_for_another_cluster(record.cluster, world)
    pending = [entry for entry in record.entries if entry.is_pending]
    if not pending:
        return _plan_for_nothing(record, world)
    ended = _why_ended(record, world)
    if ended is None:
        if _sessions_to_renew(record, world, now_s, now=now) is not None:
            return Plan(Step.RENEW, "its session has ended, and the job goes on")
        pending = [entry for entry in pending if entry.state is State.RELEASING]
        if not pending:
            known = world.job(record.cluster, record.job_id) is not None
            return Plan(Step.LEAVE, "the job is running") if known else _not_known(world)
    known_tokens = [entry for entry in pending if entry.token is not None]
    if not known_tokens:
        return _plan_without_token(pending, now_s)
    due_s = min(next_try_s(entry, now_s) for entry in known_tokens)
    if due_s > now_s and not now:
        return Plan(Step.WAIT, f"its release failed; the next attempt is due in {due_s - now_s:.0f} s", is_fault=True)
    return Plan(Step.RELEASE, ended or "its release is pending", only_pending=ended is None)


def _sessions_to_renew(
    record: Record, world: World, now_s: float, *, now: bool = False
) -> Mapping[int, int | None] | None:
    """Return the sessions that a running job has to get anew, as of `renewal.due`; None where nothing is to be done."""
    job = world.job(record.cluster, record.job_id)
    if job is None:
        return None
    found = {
        place: failed
        for place, failed in renewal.due(record, job, now_s).items()
        if now or failed is None or next_try_s(record.entries[failed], now_s) <= now_s
    }
    return found if found or renewal.is_unfinished(record) else None


def _plan_for_another_cluster(cluster: str, world: World) -> Plan:
    """Plan for a record whose jobs, nodes and services only its own cluster's nodes know."""
    if world.cluster is None:
        return Plan(Step.LEAVE, "slurm.conf names no cluster", is_fault=True)
    return Plan(Step.LEAVE, f"it belongs to cluster {cluster}")


def _plan_for_nothing(record: Record, world: World) -> Plan:
    """Plan for a record that holds nothing: a living job's exports stay, since they tell its tasks why."""
    job = world.job(record.cluster, record.job_id)
    has_ended = job is not None and (job.is_over or not job.has_started_at(record.start_s))
    if not has_ended and not world.has_another_run:
        return Plan(Step.LEAVE, "nothing is held")
    return Plan(Step.FORGET, "nothing is held, and the job has ended")


def _not_known(world: World) -> Plan:
    if world.jobs is None:
        return Plan(Step.LEAVE, "Slurm cannot be asked whether the job is running", is_fault=True)
    return Plan(Step.LEAVE, "Slurm was not asked whether the job is running")


def _plan_without_token(pending: list[Entry], now_s: float) -> Plan:
    ends = [entry.expires_s for entry in pending]
    if None in ends:
        return Plan(
            Step.WAIT,
            "no token arrived: check at the service whether a session is open, then run: "
            "qrmi-slurm release --forget JOBID",
            is_fault=True,
        )
    left_s = max(end for end in ends if end is not None) - now_s
    if left_s > 0:
        return Plan(Step.WAIT, f"no token arrived; if a session was opened, it expires within {left_s:.0f} s")
    return Plan(Step.FORGET, "no token arrived; if a session was opened, it has expired")


def _why_ended(record: Record, world: World) -> str | None:
    """Say why a job's run cannot be using its QPUs any more; None where it may."""
    if world.has_another_run:
        return "this run of the job has ended"
    if _has_rebooted(record, world):
        return f"node {record.node} has rebooted since"
    job = world.job(record.cluster, record.job_id)
    if job is None:
        return None
    if job.is_over:
        return "the job has ended"
    if not job.has_started_at(record.start_s):
        return "the job has ended, and a later one has its number"
    if not job.is_living_run(record.restart_count):
        return f"this run of the job has ended; the job is {job.state} now"
    return None


def _has_rebooted(record: Record, world: World) -> bool:
    """Tell whether no process of the job can be left, since its only node has booted again."""
    if record.node_count > 1:  # it may live on without this node; Slurm notices what has become of it
        return False
    booted = world.boots.get(record.node) if world.is_own(record.cluster) else None
    return bool(booted and record.boot_id and booted != record.boot_id)


def run(
    options: SiteOptions,
    here: World,
    ask: Callable[[Collection[int]], Mapping[int, Job] | None],
    mode: Mode,
) -> list[Result]:
    """Release what is pending, and what belongs to jobs that have ended.

    Args:
        options: the site's.
        here: what is known without asking Slurm.
        ask: asks Slurm about jobs; called at most once, for those on which something depends.
        mode: how to work.

    Raises:
        RecordError: the state directory cannot be read.
    """
    # The records first, then Slurm: a job that starts after the answer is not among these records.
    items = inventory.read(options.state_dir)
    now_s = time.time()
    asked = dict.fromkeys(item.folder.job_id for item in items if _depends_on_slurm(item, here, mode, now_s))
    runner = _Run(options, replace(here, jobs=ask(list(asked)) if asked else {}), mode, asked.keys())
    are_slow = [runner.is_slow(item) for item in items]
    results = runner.side_by_side([item for item, is_slow in zip(items, are_slow, strict=True) if is_slow])
    for item, is_slow in zip(items, are_slow, strict=True):
        if not is_slow:
            results[id(item)] = runner.recover(item)
    return [result for item in items if (result := results[id(item)]) is not None]


def _depends_on_slurm(item: Item, here: World, mode: Mode, now_s: float) -> bool:
    """Tell whether what is done with a folder depends on its job: each question costs slurmctld two RPCs, every minute.

    A release that is pending goes on whatever the job does. A folder in which nothing is held can wait; a job over
    many nodes has one on each of them.
    """
    record = item.record
    if not here.is_own(item.folder.cluster) or item.folder.is_aside:
        return False
    if item.fault is not None:
        return isinstance(item.fault, NewerRecordError)
    if record is None or not any(entry.is_pending for entry in record.entries):
        return mode.now or abs(now_s - item.folder.looked_at_s()) >= _IDLE_LOOK_S
    is_releasing = all(entry.state is State.RELEASING for entry in record.entries)
    if is_releasing or _has_rebooted(record, here):
        return False
    return mode.now or item.folder.signed_by(now_s, _OTHERS_LOOK_S) in (None, *here.boots)


@dataclass(frozen=True, slots=True)
class _Run:
    options: SiteOptions = field(repr=False)
    world: World
    mode: Mode
    asked: Collection[int]

    def is_slow(self, item: Item) -> bool:
        """Tell whether the work on a record may have to wait: for a service, or for a broker that is started."""
        record = item.record
        if self.mode.dry_run or record is None:
            return False
        return record.broker is not None or self._plan(item, record).step in (Step.RELEASE, Step.RENEW)

    def side_by_side(self, items: Sequence[Item]) -> dict[int, Result | None]:
        """Do what has to be done with jobs' folders at the same time; return the results by the items' id()."""
        if len(items) < 2:
            return {id(item): self.recover(item) for item in items}
        with contextlib.suppress(BackendError):
            import_qrmi()  # once, before the forks
        # The site's own services first: a user may name as many others as they like.
        items = sorted(items, key=_is_users)
        begin_s = [_USERS_RUN_S if _is_users(item) else _RUN_S for item in items]
        each_s = self.options.release_timeout_s + self.options.acquire_timeout_s + _RECORD_GRACE_S
        limits = workers.Limits(AT_ONCE, each_s)
        outcomes = workers.side_by_side(self.recover, items, list(map(_service_of, items)), begin_s, limits)
        return {
            id(item): self._unfinished(item, outcome) if isinstance(outcome, workers.Unfinished) else outcome
            for item, outcome in zip(items, outcomes, strict=True)
        }

    def recover(self, item: Item) -> Result | None:
        """Do what has to be done with one job's folder; None where that is not worth a line."""
        folder = item.folder
        if item.fault is not None and not self.world.is_own(folder.cluster):
            return self._left_alone(item, f"it belongs to cluster {folder.cluster}")
        try:
            if item.fault is None and self.world.job(folder.cluster, folder.job_id) is None:
                planned = self._planned(item, item.record)
                if planned is None or planned.plan.step in (Step.WAIT, Step.LEAVE):
                    return planned  # there may be thousands: none is locked and read again for nothing
            if self.mode.dry_run:
                return self._faulty(item, item.fault) if item.fault is not None else self._planned(item, item.record)
            with folder.locked(0):
                record, fault = folder.read_or_set_aside()
                if fault is not None:
                    _log_of("recover", item).error("record-set-aside", reason=fault)
                    return self._faulty(item, fault)
                return self._carried_out(item, record)
        except RecordBusyError:
            return self._left_alone(item, "another process is working on it")
        except RecordError as error:
            # Where the folder is gone, Epilog was faster.
            return self._faulty(item, error) if folder.exists() else None

    def _plan(self, item: Item, record: Record) -> Plan:
        return plan(record, self.world.of(item.folder), time.time(), now=self.mode.now)

    def _planned(self, item: Item, record: Record | None) -> Result | None:
        if record is None:
            # Prolog makes the folder before the record; where it acquired nothing, there is only the folder.
            job = self.world.job(item.folder.cluster, item.folder.job_id)
            if job is None or not job.is_over:
                return None
            step = Plan(Step.FORGET, "nothing was acquired, and the job has ended")
            return Result(item.folder.cluster, item.folder.job_id, (), step)
        if item.record is None or record.identity != item.record.identity:
            return self._left_alone(item, "it has changed in the meantime")
        step = self._plan(item, record)
        qpus = tuple(entry.name for entry in record.entries if entry.is_pending)
        return Result(record.cluster, record.job_id, qpus, step, is_left=step.is_fault)

    def _carried_out(self, item: Item, record: Record | None) -> Result | None:
        result = self._planned(item, record)
        if result is None or result.plan.step in (Step.WAIT, Step.LEAVE):
            self._note_look(item, record)
            return self._kept_up(result, item, record)
        if record is None:
            item.folder.remove()
            return replace(result, outcome="removed")
        if result.plan.step is Step.RENEW:
            return self._renewed(result, item, record)
        if result.plan.step is Step.FORGET:
            release.forget(record, self._run_of(item))
            return replace(result, outcome="removed")
        only_pending = result.plan.only_pending
        left = release.release(
            record, self._run_of(item), which=lambda entry: entry.state is State.RELEASING or not only_pending
        )
        return _after_release(result, left, only_pending=only_pending)

    def _renewed(self, result: Result, item: Item, record: Record) -> Result:
        """Open new sessions for a job that goes on, and release those in whose place they come."""
        world, now_s = self.world.of(item.folder), time.time()
        job = world.job(record.cluster, record.job_id)
        assert job is not None  # noqa: S101 else this was not planned
        places = _sessions_to_renew(record, world, now_s, now=self.mode.now) or {}
        run = self._run_of(item)
        try:
            record = renewal.renew(record, places, job, run._replace(deadline=_acquiring(self.options)))
        except BackendError as error:
            run.log.error("not-renewed", reason=error)
            return replace(result, outcome=f"not renewed: {error}", is_left=True)
        if any(entry.state is State.RELEASING for entry in record.entries):
            release.release(record, self._run_of(item), which=lambda entry: entry.state is State.RELEASING)
        names = {record.entries[place].name for place in places}
        got = {entry.name for entry in record.held if not entry.has_expired(now_s)}
        if not names - got:
            return replace(result, outcome="has a new session")
        reasons = [entry.reason for entry in record.entries if entry.name in names - got and entry.reason]
        return replace(result, outcome=f"has no new session yet: {'; '.join(reasons)}")

    def _note_look(self, item: Item, record: Record | None) -> None:
        """Note in the folder of a job that goes on that it was asked for."""
        folder = item.folder
        if self.world.job(folder.cluster, folder.job_id) is None:
            return
        if folder.job_id in self.asked:
            folder.look_at()
        if record is not None and any(entry.is_pending for entry in record.entries):
            folder.sign(next(iter(self.world.boots), ""))

    def _kept_up(self, result: Result | None, item: Item, record: Record | None) -> Result | None:
        """Note where a living job's end has moved, and restart its credential broker where that has ended."""
        if result is None or record is None or item.folder.is_aside:
            return result
        job = self.world.job(record.cluster, record.job_id)
        if job is None or _why_ended(record, self.world) is not None:
            return result
        ends_s = renewal.moved_end_s(record, job)
        if ends_s is not None:
            record = launch.tell_end(item.folder, record._replace(job_ends_s=ends_s), ends_s)
            item.folder.write(record)
        if record.broker is None:
            return result
        try:
            revived = launch.revive(item.folder, record, _log_of("recover", item))
        except BrokerError as error:
            _log_of("recover", item).error("no-broker", reason=error)
            return replace(result, outcome=str(error), is_left=True)
        return replace(result, outcome="restarted its credential broker") if revived is not None else result

    def _run_of(self, item: Item) -> HookRun:
        deadline = Deadline.after(self.options.release_timeout_s)
        return HookRun(self.options, item.folder, _log_of("recover", item), deadline)

    def _unfinished(self, item: Item, why: workers.Unfinished) -> Result:
        qpus = tuple(entry.name for entry in item.record.entries if entry.is_pending) if item.record else ()
        step = Plan(Step.WAIT, str(why), is_fault=True)
        return Result(item.folder.cluster, item.folder.job_id, qpus, step, is_left=True)

    def _left_alone(self, item: Item, reason: str) -> Result:
        return Result(item.folder.cluster, item.folder.job_id, (), Plan(Step.LEAVE, reason))

    def _faulty(self, item: Item, error: RecordError) -> Result:
        job = self.world.job(item.folder.cluster, item.folder.job_id)
        # What a newer version has recorded is that one's to release; here it is only known whether a job may use it.
        has_ended = item.folder.is_aside or (job is not None and job.is_over)
        is_left = has_ended or not isinstance(error, NewerRecordError)
        step = Plan(Step.LEAVE, str(error), is_fault=True)
        return Result(item.folder.cluster, item.folder.job_id, (), step, is_left=is_left)


def take_back(item: Item, options: SiteOptions, *, is_living: bool, forget: bool = False) -> Record | None:
    """Release all that a job holds, because an admin says so.

    Args:
        item: the job's, as the admin saw it.
        options: the site's.
        is_living: whether the job may go on: its next steps are then told why they have no QPU.
        forget: drop the QPUs whose token nobody has.

    Returns:
        What is left of the record; None where nothing is.

    Raises:
        RecordError: the record is held by another process, has changed, or cannot be written.
    """
    folder = item.folder
    with folder.locked(options.release_timeout_s):
        record = folder.read()
        if record is None or item.record is None or record.identity != item.record.identity:
            raise RecordError(f"what job {folder.job_id} holds has just changed", "look again: qrmi-slurm status")
        run = HookRun(options, folder, _log_of("release", item), Deadline.after(options.release_timeout_s))
        if forget:
            record = release.forget_tokenless(record, run)
        left = release.release(record, run, keep_folder=is_living)
        if is_living:
            note = f"{exports.PREFIX}: job {folder.job_id} has no QPU: an admin released it"
            told = exports.Exports(folder.job_id, record.restart_count, is_ready=False, notes=(note,))
            folder.write_exports(exports.render(told), record.uid)
    return left


def _acquiring(options: SiteOptions) -> Deadline:
    return Deadline.after(options.acquire_timeout_s)


def _is_users(item: Item) -> bool:
    return item.record is not None and any(entry.run_as_uid is not None for entry in item.record.entries)


def _service_of(item: Item) -> Service:
    """Return what stands for the services that hold a job's QPUs; all those that one user has named count as one."""
    if item.record is None:
        return ()
    if _is_users(item):
        return ("user", str(item.record.uid))
    return tuple(word for entry in item.record.entries for word in service_of(entry.name, entry.environment))


def _log_of(command: str, item: Item) -> HookLog:
    return HookLog(command, item.folder.job_id, echo=False)


def _after_release(result: Result, left: Record | None, *, only_pending: bool) -> Result:
    entries = left.entries if left is not None else ()
    if only_pending:  # the living job uses the others
        entries = tuple(entry for entry in entries if entry.state is State.RELEASING)
    if not entries:
        return replace(result, outcome="released")
    reasons = "; ".join(f"{entry.name}: {entry.reason}" for entry in entries)
    # One without a token expires by itself: nothing for an admin to do.
    is_left = any(entry.token is not None or entry.expires_s is None for entry in entries)
    return replace(result, outcome=f"still held: {reasons}", is_left=is_left)
