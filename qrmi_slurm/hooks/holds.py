"""The holds: a licensed QPU counts as held until its release is proven, or its session has ended by itself.

Slurm gives a job's license back when the job's Epilog has ended, whatever Epilog could do. So a release that has failed
keeps the license from other jobs with a reservation, and they wait in the queue. Where nobody was left to make that, as
where a node has died, the next Prolog finds the record, if it has the same state directory, and does not acquire.

What was acquired with a user's own credentials counts for neither: the user can make each release fail.
"""

import time
from collections.abc import Sequence
from typing import Final

from qrmi_slurm.calls.backend import LATE_S
from qrmi_slurm.calls.places import WORK
from qrmi_slurm.deadline import Deadline
from qrmi_slurm.errors import RecordError, SchedulerError
from qrmi_slurm.hooks.hook_run import HookRun
from qrmi_slurm.state import inventory
from qrmi_slurm.state.inventory import Item
from qrmi_slurm.state.record import Ended, Entry, Record, State

# How long a hold lasts where nobody knows when the session ends; each failed release renews it. recover tries again
# after half an hour at most.
_UNKNOWN_END_S: Final = 3600.0

# The least time for all of this, in seconds: releasing may have taken all that there was. What does not fit into it is
# left to recover, which tries the release again.
_LEAST_S: Final = 0.6

# How soon to look again whether another job's release has ended.
_LOOK_AGAIN_S: Final = 0.1


# --- after a release ------------------------------------------------------------------------------------------


def keep(record: Record, run: HookRun) -> Record:
    """Keep the licenses of QPUs from other jobs whose release has just failed; return the record that says so."""
    from qrmi_slurm.outages import reservations  # loads dataclasses, which a Prolog never needs

    now_s, deadline = time.time(), _deadline(run)
    for index, entry in enumerate(record.entries):
        if entry.state is not State.RELEASING or not _counts(entry) or _has_ended(entry, now_s):
            continue
        if entry.hold and entry.expires_s is not None:
            continue  # it lasts until then
        if deadline.left_s <= 0:
            break
        name = f"{reservations.HOLD_PREFIX}{entry.license}_{record.job_id}_{int(record.created_s)}_{entry.journal}"
        seconds = _UNKNOWN_END_S if entry.expires_s is None else entry.expires_s - now_s
        text = f"job {record.job_id} has ended, and its session is not proven closed"
        try:
            is_held = reservations.hold(name, entry.license, seconds, text, run.options.slurm_conf, deadline.call_s)
        except SchedulerError as error:
            run.log.error("license-not-held", qpu=entry.name, license=entry.license, reason=error.message)
            continue
        if is_held:
            run.log.warning("license-held", qpu=entry.name, license=entry.license, reservation=name)
            record = record.with_entry(index, entry._replace(hold=name))
    return record


def let_go(ended: Sequence[Ended], run: HookRun) -> tuple[list[Ended], list[Entry]]:
    """Give licenses back whose QPUs are proven released.

    Returns:
        Those that have ended; and the entries of those whose license Slurm has not taken back, for the next attempt.
    """
    from qrmi_slurm.outages import reservations

    deadline = _deadline(run)
    over, stuck = list[Ended](), list[Entry]()
    for item in ended:
        try:
            if item.entry.hold:
                reservations.let_go(item.entry.hold, run.options.slurm_conf, deadline.call_s)
                run.log.info("license-back", reservation=item.entry.hold)
        except SchedulerError as error:
            run.log.error("license-still-held", reservation=item.entry.hold, reason=error.message)
            stuck.append(item.entry.to(State.RELEASING, reason="it is released, but its license is not given back"))
        else:
            over.append(item)
    return over, stuck


def _deadline(run: HookRun) -> Deadline:
    return Deadline.after(max(run.deadline.left_s, _LEAST_S))


# --- before an acquisition ------------------------------------------------------------------------------------


def holder(license: str, capacity: int, own: Record, run: HookRun) -> int | None:
    """Wait until a QPU's license covers one more job, for half of the time that is left; return who still holds it.

    Args:
        license: that counts the QPU, and that the job has.
        capacity: how many jobs may hold the QPU at a time.
        own: the job's own record: an earlier run of a requeued job may hold the QPU still.
        run: of Prolog.

    Returns:
        The id of a job; None where the QPU may be acquired.
    """
    until_s = time.monotonic() + run.deadline.left_s / 2
    items, are_all = _mentioning(license, run), True
    while True:
        found = _holders(license, items, own)
        if len(found) < capacity and are_all:
            return None
        if len(found) < capacity:  # of those that were there at first; another job may have come meanwhile
            items, are_all = _mentioning(license, run), True
            continue
        # An attempt that has failed is repeated by recover, later than this hook can wait.
        are_lasting = sum(entry.state is State.RELEASING and bool(entry.reason) for _, entry in found)
        if are_lasting >= capacity or time.monotonic() >= until_s:
            return found[0][0]
        WORK.end()  # it only waits from here on
        time.sleep(_LOOK_AGAIN_S)
        items, are_all = _read_again(items), False


def _mentioning(license: str, run: HookRun) -> list[Item]:
    """Return the records of the cluster's other jobs that may hold a license; Slurm counts for each cluster its own."""
    try:
        items = inventory.mentioning(run.options.state_dir, run.folder.cluster, license)
    except RecordError:
        return []
    return [item for item in items if item.folder.path != run.folder.path]


def _read_again(items: Sequence[Item]) -> list[Item]:
    """Return the same records as they are now; looking at all of them ten times a second would take a processor."""
    found = []
    for item in items:
        try:
            found.append(item._replace(record=item.folder.read()))
        except RecordError:
            continue
    return found


def _holders(license: str, items: Sequence[Item], own: Record) -> list[tuple[int, Entry]]:
    """Return what the cluster's other jobs, and earlier runs of this one, hold of a license in this state directory."""
    now_s = time.time()
    return [
        (record.job_id, entry)
        for record in (*(item.record for item in items if item.record is not None), own)
        for entry in record.entries
        if entry.license == license
        and _counts(entry)
        and _may_be_open(entry, now_s)
        and (record is not own or _is_left_over(entry, own))
    ]


def _counts(entry: Entry) -> bool:
    return bool(entry.license) and entry.run_as_uid is None


def _is_left_over(entry: Entry, own: Record) -> bool:
    return entry.restart_count != own.restart_count or entry.state is State.RELEASING


def _may_be_open(entry: Entry, now_s: float) -> bool:
    """Tell whether a session is open, or may be: without a token only while its answer is awaited."""
    if not entry.is_pending or _has_ended(entry, now_s):
        return False
    return entry.state is not State.INDETERMINATE or now_s < entry.since_s + LATE_S


def _has_ended(entry: Entry, now_s: float) -> bool:
    return entry.expires_s is not None and entry.expires_s <= now_s
