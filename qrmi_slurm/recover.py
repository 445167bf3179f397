"""Recovering: releasing what the hooks could not, by looking at the records and at Slurm's jobs again."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from qrmi_slurm import exports, inventory, release
from qrmi_slurm.broker import launch
from qrmi_slurm.errors import BrokerError, RecordBusyError, RecordError
from qrmi_slurm.inventory import Item
from qrmi_slurm.logs import HookLog
from qrmi_slurm.plugstack import SiteOptions
from qrmi_slurm.record import Entry, Record, State
from qrmi_slurm.scheduler import Job

# Back-off between attempts at the same session: 30 s, 1 min, 2 min, ... up to 30 min. A session costs money by
# the second, so it begins short; a service that is down for a day is asked 50 times.
_FIRST_RETRY_S: Final = 30.0
_LAST_RETRY_S: Final = 1800.0

# The folder of a job whose cluster Slurm did not name to the hooks (context._cluster).
_UNNAMED_CLUSTER: Final = "cluster"


class Step(StrEnum):
    """What recover does about a job's record."""

    RELEASE = "release"
    WAIT = "wait"  # not due again yet
    LEAVE = "leave"  # the job lives, or nobody can say that it does not
    FORGET = "forget"  # nothing can be open any more


@dataclass(frozen=True, slots=True)
class World:
    """What is known outside of the records, at one moment.

    Args:
        cluster: the name of the cluster that `jobs` are of; None where slurm.conf says none.
        jobs: the jobs that Slurm knows; None where it cannot be asked.
        boots: the running boot id of the nodes that are known to this process, by name.
    """

    cluster: str | None
    jobs: Mapping[int, Job] | None
    boots: Mapping[str, str]

    def jobs_of(self, cluster: str) -> Mapping[int, Job] | None:
        """Return the jobs of a cluster; None where that is another one: on a shared state directory there are more."""
        own = (self.cluster or "").lower()  # Slurm folds the name
        return self.jobs if own and cluster.lower() in (own, _UNNAMED_CLUSTER) else None

    def living_word(self, record: Record) -> str:
        """Return what a human has to know before a job's QPUs are taken; empty where its run has ended."""
        if _why_ended(record, self) is not None:
            return ""
        jobs = self.jobs_of(record.cluster)
        if jobs is None:
            return f"Slurm cannot be asked whether job {record.job_id} lives"
        return f"Job {record.job_id} is {jobs[record.job_id].state}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done about one record, and why.

    Args:
        step: what.
        reason: why; a clause for humans.
        is_fault: whether something is held that nothing and nobody uses.
        only_pending: release only what an earlier release has left; the rest is the living job's.
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
        outcome: what came of it; empty where nothing was done.
        is_left: whether something is held still that nothing uses, so that an admin may have to look.
    """

    cluster: str
    job_id: int
    qpus: tuple[str, ...]
    plan: Plan
    outcome: str = ""
    is_left: bool = False


@dataclass(frozen=True, slots=True)
class Mode:
    """How recover goes about it.

    Args:
        dry_run: only say what would be done.
        now: pass over back-off.
    """

    dry_run: bool = False
    now: bool = False


def next_try_s(entry: Entry, now_s: float) -> float:
    """Return when a release that failed is due again; seconds since the epoch, never further away than the back-off.

    Args:
        entry: the QPU.
        now_s: seconds since the epoch; the clock may have been set back since the last attempt.
    """
    if entry.attempts == 0:
        return 0.0
    backoff_s = min(_LAST_RETRY_S, _FIRST_RETRY_S * 2.0 ** min(entry.attempts - 1, 16))
    return min(entry.since_s, now_s) + backoff_s


def plan(record: Record, world: World, now_s: float, *, now: bool = False) -> Plan:
    """Decide what is to be done about a record.

    Args:
        record: the job's.
        world: what Slurm and the kernel say.
        now_s: seconds since the epoch.
        now: whether back-off is passed over.
    """
    pending = [entry for entry in record.entries if entry.is_pending]
    if not pending:
        return _plan_for_nothing(record, world)
    ended = _why_ended(record, world)
    if ended is None:
        pending = [entry for entry in pending if entry.state is State.RELEASING]
        if not pending:
            known = world.jobs_of(record.cluster) is not None
            return Plan(Step.LEAVE, "the job lives") if known else _not_known(record, world)
    known_tokens = [entry for entry in pending if entry.token is not None]
    if not known_tokens:
        return _plan_without_token(pending, now_s)
    due_s = min(next_try_s(entry, now_s) for entry in known_tokens)
    if due_s > now_s and not now:
        return Plan(Step.WAIT, f"its release failed, the next attempt is due in {due_s - now_s:.0f} s", is_fault=True)
    return Plan(Step.RELEASE, ended or "its release is pending", only_pending=ended is None)


def _plan_for_nothing(record: Record, world: World) -> Plan:
    """Nothing is held; a living job's exports stay all the same: they tell its tasks why."""
    jobs = world.jobs_of(record.cluster)
    job = jobs.get(record.job_id) if jobs is not None else None
    if jobs is None or (job is not None and not job.is_over):
        return Plan(Step.LEAVE, "nothing is held")
    return Plan(Step.FORGET, "nothing is held, and the job has ended")


def _not_known(record: Record, world: World) -> Plan:
    if world.jobs is None:
        return Plan(Step.LEAVE, "Slurm cannot be asked whether the job lives", is_fault=True)
    return Plan(Step.LEAVE, f"the job is cluster {record.cluster}'s to ask about")


def _plan_without_token(pending: list[Entry], now_s: float) -> Plan:
    ends = [entry.expires_s for entry in pending]
    if None in ends:
        return Plan(
            Step.WAIT,
            "no token came: whether a session is open has to be seen at the service, then: "
            "qrmi-slurm release --forget JOBID",
            is_fault=True,
        )
    left_s = max(end for end in ends if end is not None) - now_s
    if left_s > 0:
        return Plan(Step.WAIT, f"no token came: a session, if there is one, ends by itself within {left_s:.0f} s")
    return Plan(Step.FORGET, "no token came, and a session, if there was one, has ended by itself")


def _why_ended(record: Record, world: World) -> str | None:
    """Say why a job's run cannot use its QPUs any more; None where it may."""
    booted = world.boots.get(record.node)
    if booted and record.boot_id and booted != record.boot_id:
        return f"node {record.node} has booted since"
    jobs = world.jobs_of(record.cluster)
    if jobs is None:
        return None
    job = jobs.get(record.job_id)
    if job is None or job.is_over:
        return "the job has ended"
    if not job.is_living_run(record.restart_count):
        return f"this run of the job has ended, it is {job.state} now"
    return None


def run(options: SiteOptions, ask: Callable[[], World], mode: Mode) -> list[Result]:
    """Release what is pending, and what belongs to jobs that no longer live.

    Args:
        options: the site's.
        ask: asks Slurm and the kernel; called once, and not where there is no record.
        mode: how to go about it.

    Raises:
        RecordError: the state directory cannot be read.
    """
    # The records first, then Slurm: of a job that begins after the answer there is nothing here to take from it.
    items = inventory.read(options.state_dir)
    if not items:
        return []
    runner = _Run(options, ask(), mode)
    return [result for result in map(runner.recover, items) if result is not None]


@dataclass(frozen=True, slots=True)
class _Run:
    options: SiteOptions = field(repr=False)
    world: World
    mode: Mode

    def recover(self, item: Item) -> Result | None:
        """Do what is to be done about one job's folder; None where that is nothing to speak of."""
        folder = item.folder
        try:
            if self.mode.dry_run:
                return self._faulty(item, item.fault) if item.fault is not None else self._planned(item, item.record)
            with folder.locked(0):
                record, fault = folder.read_or_set_aside()
                if fault is not None:
                    _log_of("recover", item).error("record-set-aside", reason=fault)
                    return self._faulty(item, fault)
                return self._carried_out(item, record)
        except RecordBusyError:
            return self._left_alone(item, "another process is at it")
        except RecordError as error:
            # Epilog was quicker, where the folder is gone.
            return self._faulty(item, error) if folder.exists() else None

    def _planned(self, item: Item, record: Record | None) -> Result | None:
        if record is None:
            # Prolog makes the folder before the record, and leaves it without one where it acquired nothing.
            jobs = self.world.jobs_of(item.folder.cluster)
            job = jobs.get(item.folder.job_id) if jobs is not None else None
            if jobs is None or (job is not None and not job.is_over):
                return None
            step = Plan(Step.FORGET, "nothing was acquired, and the job has ended")
            return Result(item.folder.cluster, item.folder.job_id, (), step)
        if item.record is None or _run_of(record) != _run_of(item.record):
            return self._left_alone(item, "it has changed meanwhile")
        step = plan(record, self.world, time.time(), now=self.mode.now)
        qpus = tuple(entry.name for entry in record.entries if entry.is_pending)
        return Result(record.cluster, record.job_id, qpus, step, is_left=step.is_fault)

    def _carried_out(self, item: Item, record: Record | None) -> Result | None:
        result = self._planned(item, record)
        if result is None or result.plan.step in (Step.WAIT, Step.LEAVE):
            return self._with_broker(result, item, record)
        if record is None:
            item.folder.remove()
            return replace(result, outcome="removed")
        if result.plan.step is Step.FORGET:
            release.forget(item.folder, record, _log_of("recover", item))
            return replace(result, outcome="removed")
        only_pending = result.plan.only_pending
        left = release.release(
            item.folder,
            record,
            self.options,
            _log_of("recover", item),
            which=lambda entry: entry.state is State.RELEASING or not only_pending,
        )
        return _after_release(result, left, only_pending=only_pending)

    def _with_broker(self, result: Result | None, item: Item, record: Record | None) -> Result | None:
        """Start a living job's credential broker again, where it has ended."""
        if result is None or record is None or record.broker is None or _why_ended(record, self.world) is not None:
            return result
        if self.world.jobs_of(record.cluster) is None:
            return result
        try:
            revived = launch.revive(item.folder, record, _log_of("recover", item))
        except BrokerError as error:
            _log_of("recover", item).error("no-broker", reason=error)
            return replace(result, outcome=str(error), is_left=True)
        return replace(result, outcome="its credential broker was started again") if revived is not None else result

    def _left_alone(self, item: Item, reason: str) -> Result:
        return Result(item.folder.cluster, item.folder.job_id, (), Plan(Step.LEAVE, reason))

    def _faulty(self, item: Item, error: RecordError) -> Result:
        step = Plan(Step.LEAVE, str(error), is_fault=True)
        return Result(item.folder.cluster, item.folder.job_id, (), step, is_left=True)


def take_back(item: Item, options: SiteOptions, *, is_living: bool, forget: bool = False) -> Record | None:
    """Release all that a job holds, on an admin's word.

    Args:
        item: the job's, as the admin was shown it.
        options: the site's.
        is_living: whether the job may go on: its next steps are then told why they have no QPU.
        forget: drop what no token is known of.

    Returns:
        What is left of the record; None where nothing is.

    Raises:
        RecordError: the record is held by another process, has changed, or cannot be written.
    """
    folder = item.folder
    with folder.locked(options.release_timeout_s):
        record = folder.read()
        if record is None or item.record is None or _run_of(record) != _run_of(item.record):
            raise RecordError(f"what job {folder.job_id} holds has changed meanwhile", "look again: qrmi-slurm status")
        log = _log_of("release", item)
        if forget:
            record = release.forget_tokenless(folder, record, log)
        left = release.release(folder, record, options, log, keep_folder=is_living)
        if is_living:
            note = f"{exports.PREFIX}: job {folder.job_id} has no QPU: an admin has released it"
            told = exports.Exports(folder.job_id, record.restart_count, is_ready=False, notes=(note,))
            folder.write_exports(exports.render(told), record.uid)
    return left


def _log_of(command: str, item: Item) -> HookLog:
    return HookLog(command, item.folder.job_id, echo=False)


def _run_of(record: Record) -> tuple[int, float, str]:
    """Return what tells one run of a job, and its Prolog, from another."""
    return record.restart_count, record.created_s, record.boot_id


def _after_release(result: Result, left: Record | None, *, only_pending: bool) -> Result:
    entries = left.entries if left is not None else ()
    if only_pending:  # what the job uses is none of ours
        entries = tuple(entry for entry in entries if entry.state is State.RELEASING)
    if not entries:
        return replace(result, outcome="released")
    reasons = "; ".join(f"{entry.name}: {entry.reason}" for entry in entries)
    # One without a token ends by itself, and is no fault to be mended.
    is_left = any(entry.token is not None or entry.expires_s is None for entry in entries)
    return replace(result, outcome=f"still held: {reasons}", is_left=is_left)
