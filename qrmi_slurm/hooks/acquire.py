"""Acquiring: from a job's `--qpu` to QPUs that are held, recorded and exported.

Planning says what to try, rounds call QRMI, job_environment says what tasks get; this module puts them together.
"""

import time
from collections.abc import Sequence
from typing import Final

from qrmi_slurm.calls import environment
from qrmi_slurm.errors import BrokerError, RecordBusyError
from qrmi_slurm.hooks import job_environment, planning
from qrmi_slurm.hooks.assignment import Assignment
from qrmi_slurm.hooks.choice import Slot
from qrmi_slurm.hooks.hook_run import HookRun
from qrmi_slurm.hooks.job_environment import Acquired
from qrmi_slurm.hooks.job_facts import JobFacts
from qrmi_slurm.hooks.planning import Plan
from qrmi_slurm.hooks.rounds import Rounds
from qrmi_slurm.slurm.job_context import JobContext
from qrmi_slurm.state.exports import Exports
from qrmi_slurm.state.record import Record, boot_id
from qrmi_slurm.text import printable

# With less time than this left, in seconds, giving QPUs back is left to Epilog, and to recover where no task comes.
_MIN_GIVE_BACK_S: Final = 0.2


def acquire(job: JobContext, run: HookRun) -> Exports:
    """Acquire the QPUs that a job asked for, and return what its tasks get.

    A fault of a QPU, the config or the selection goes into the exports; one of the state directory is raised, since
    nothing may be acquired without a record.

    Args:
        job: the job.
        run: of the hook; the folder exists, nobody else's record is in it, and its lock is held.

    Raises:
        RecordError: what is acquired cannot be put on disk.
    """
    if run.folder.read() is not None:
        raise RecordBusyError("another Prolog of the job has just acquired its QPUs")
    return _acquire(job, run, _new_record(job))


def give_up(run: HookRun) -> None:
    """Release what a job has just acquired, since its tasks cannot be told.

    Raises:
        RecordError: the record cannot be read, or what is left cannot be written.
    """
    record = run.folder.read()
    if record is not None and record.held:
        run.log.error("given-back", qpus=",".join(entry.name for entry in record.held))
        _give_back(record, run)


def _new_record(job: JobContext) -> Record:
    return Record(
        cluster=job.cluster,
        job_id=job.job_id,
        uid=job.uid,
        node=job.node,
        boot_id=boot_id(),
        restart_count=job.restart_count,
        created_s=time.time(),
        user=job.user,
        account=job.account or "",
        het_job_id=job.het_job_id,
        start_s=job.start_s,
        selection=job.selection_text,
        node_count=job.node_count,
    )


def _acquire(job: JobContext, run: HookRun, record: Record) -> Exports:
    facts = JobFacts(job, run)
    plan = planning.make(job, run, facts)
    problems = list(plan.problems)
    needs_all = run.options.require == "all"
    time_limit_s = 0
    is_waiting = False
    if plan.slots and not (problems and needs_all):
        time_limit_s = facts.time_limit_s()
        job = job._replace(start_s=facts.start_s())  # Slurm 22.05 tells both in one answer
        ends_s = record.created_s + facts.runs_s()
        record = record._replace(start_s=job.start_s, job_ends_s=ends_s, over_s=facts.over_s())
        record = _try_slots(plan, job, run, facts, record)
        held = {entry.name for entry in record.held}
        without = [slot for slot in plan.slots if slot.chosen is None or slot.chosen.name not in held]
        problems += dict.fromkeys(slot.problem for slot in without)  # one choice may be listed several times
        record, fault = _with_broker(plan.slots, record, run)
        problems += [fault] if fault else []
        if problems and (needs_all or not record.held):
            record = _give_back(record, run)
            _tell_sensor(plan.slots, run, facts)  # before the job is requeued, so that no second one starts meanwhile
            refusal = "" if fault else _put_back(job, run, without)
            is_waiting = refusal is None
            problems += [refusal] if refusal else []
    acquired = Acquired(record, plan.slots, time_limit_s, problems, plan.notes)
    result = job_environment.exports_of(job, acquired, run.options.env)
    if not result.is_ready:
        run.log.warning("job-waits" if is_waiting else "job-fails", reason="; ".join(result.notes))
    return result


def _tell_sensor(slots: Sequence[Slot], run: HookRun, facts: JobFacts) -> None:
    """Let jobs wait for the QPUs that are not there, where Slurm counts them."""
    failures = [failure for slot in slots for failure in slot.failures if facts.counts(failure.license)]
    if any(failure.is_sites and failure.kind.is_transient for failure in failures):
        from qrmi_slurm.hooks import failed_start  # only where such a QPU is not there

        failed_start.tell(failures, run)


def _put_back(job: JobContext, run: HookRun, without: Sequence[Slot]) -> str | None:
    """Put a job back into the queue whose QPUs may be there later.

    Args:
        job: the job.
        run: of the hook.
        without: its slots that have got no QPU; without them it cannot run.

    Returns:
        None where it waits again; else why not, which is empty where that goes without saying.
    """
    awaited = [failure for failure in (slot.awaited for slot in without) if failure is not None]
    if not awaited or (run.options.require == "all" and len(awaited) < len(without)):
        return ""
    from qrmi_slurm.hooks import requeue  # only where a QPU is not there

    return requeue.put_back(job, run, awaited)


def _try_slots(plan: Plan, job: JobContext, run: HookRun, facts: JobFacts, record: Record) -> Record:
    """Acquire a QPU for each slot, as far as possible."""
    longest_s = environment.longest_s(facts.lasts_s())
    for slot in plan.slots:
        slot.candidates = [item._replace(credentials=item.credentials.capped(longest_s)) for item in slot.candidates]
    possible = [item.resource for slot in plan.slots for item in slot.candidates]
    if any(resource.is_dynamic for resource in possible):  # what is found behind it may have an entry of its own
        possible += plan.resources.values()
    licenses = facts.licenses([resource.slurm.license for resource in possible])

    def ask_holder(license: str, capacity: int) -> int | None:
        from qrmi_slurm.hooks import holds  # only where Slurm counts a QPU

        return holds.holder(license, capacity, record, run)

    assignment = Assignment(plan.slots, licenses, facts.ask_timeout_s, run.deadline, ask_holder, facts.qpu_slots)
    planning.look_around(plan, job, run, facts, list(licenses.held) if licenses is not None else [])
    return Rounds(job, run, facts, record).acquire(assignment)


def _with_broker(slots: list[Slot], record: Record, run: HookRun) -> tuple[Record, str]:
    """Start the broker of the QPUs that need one; without it the job does not have them.

    Returns:
        The record, and why the broker did not start; empty where it did, or none is needed.
    """
    held = {entry.name for entry in record.held}
    items = [slot.chosen for slot in slots if slot.chosen is not None and slot.chosen.name in held]
    brokered = [item.name for item in items if item.credentials.need_broker]
    if not brokered:
        return record, ""
    from qrmi_slurm.broker import launch  # only where a resource has one

    try:
        ends_s = record.job_ends_s or time.time()
        margin_s = run.options.session_margin_s
        return launch.start(run.folder, record, brokered, ends_s, run.deadline.call_s, run.log, margin_s=margin_s), ""
    except BrokerError as error:
        from qrmi_slurm.hooks import release

        run.log.error("no-broker", qpus=",".join(brokered), reason=error)
        record = release.to_be_released(record, which=lambda entry: entry in record.held and entry.name in brokered)
        run.folder.write(record)
        return record, f"{printable(', '.join(brokered))}: {error.message}"


def _give_back(record: Record, run: HookRun) -> Record:
    """Release what the job cannot use without the rest; return what is left of the record."""
    from qrmi_slurm.hooks import release  # only where another QPU cannot be had

    if run.deadline.left_s < _MIN_GIVE_BACK_S:
        record = release.to_be_released(record)
        run.folder.write(record)
        return record
    left = release.release(record, run.within(run.options.release_timeout_s), keep_folder=True)
    return left if left is not None else record._replace(entries=())
