"""Why a job waits, runs or has failed, in sentences, from what Slurm and this node say. Values in, values out."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from qrmi_slurm import names
from qrmi_slurm.command.render import counted, duration
from qrmi_slurm.config.slurm_section import LICENSE_PREFIX
from qrmi_slurm.failure import Kind
from qrmi_slurm.outages.outage import Outage
from qrmi_slurm.outages.reservations import HOLD_PREFIX, LESS_PREFIXES, Other
from qrmi_slurm.slurm import admin_comment
from qrmi_slurm.slurm.admin_comment import Requeued
from qrmi_slurm.slurm.job_details import Holder, JobDetails
from qrmi_slurm.slurm.licenses import License
from qrmi_slurm.state.exports import PREFIX, Exports
from qrmi_slurm.state.record import Entry, Record, State
from qrmi_slurm.text import printable

_MAX_CHARS: Final = 400
_MAX_ID_CHARS: Final = 60  # `12_[1,3,5,...]`
_MAX_HOLDERS: Final = 5
_MAX_NOTES: Final = 5

# How long before its end a session is shown as ending, in seconds.
ENDING_SOON_S: Final = 300.0

_LOOK_AGAIN: Final = "look again in a minute"
_BY_ITSELF: Final = "it starts by itself; nothing has to be done"
_OTHER_QPU: Final = "a job that takes any of several QPUs need not wait for one of them: --qpu='any:...'"

# States in which a job has ended; job_state_string() in src/common/slurm_protocol_defs.c, 22.05 to 26.05.
_ENDED: Final = {
    "BOOT_FAIL": "has ended, because its node did not boot",
    "CANCELLED": "was cancelled",
    "COMPLETED": "has completed",
    "DEADLINE": "has ended, because it could not run before its deadline",
    "FAILED": "failed",
    "NODE_FAIL": "has ended, because its node failed",
    "OUT_OF_MEMORY": "was ended, because it used more memory than it had asked for",
    "PREEMPTED": "was ended to make room for another job",
    "REVOKED": "was revoked: another cluster of the federation runs it",
    "TIMEOUT": "has reached its time limit",
}
# The state of a job that only this node knows about.
UNKNOWN: Final = "UNKNOWN"

_WAITING: Final = frozenset({"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"})

# What the reasons of waiting jobs mean (squeue(1), "JOB REASON CODES"), and what to do about them.
_REASONS: Final = {
    "None": ("Slurm has not looked at it yet", _LOOK_AGAIN),
    "Priority": ("other jobs are before it", _BY_ITSELF),
    "Resources": ("no nodes are free for it", _BY_ITSELF),
    "Dependency": ("the job that it depends on has not got there yet", "see: scontrol show job {job}"),
    "DependencyNeverSatisfied": ("the job that it depends on did not end as it has to", "scancel {job}"),
    "BeginTime": ("its start time has not come", _BY_ITSELF),
    "JobHeldUser": ("its owner holds it", "scontrol release {job}"),
    "JobHeldAdmin": ("an admin, or Slurm itself, holds it", "ask an admin, who can: scontrol release {job}"),
    "JobArrayTaskLimit": ("as many tasks of its array run as may at a time", _BY_ITSELF),
    "Reservation": ("its reservation has not begun, or is full", "see: scontrol show reservations"),
    "PartitionDown": ("its partition is down", "ask an admin"),
    "PartitionInactive": ("its partition is inactive", "ask an admin"),
    "PartitionTimeLimit": ("its partition has a shorter time limit", "scontrol update JobId={job} TimeLimit=..."),
    "PartitionNodeLimit": ("its partition does not allow so many nodes", "see: scontrol show partition"),
    "ReqNodeNotAvail": ("a node that it needs is not available", "see: sinfo --list-reasons"),
}

# What went wrong with a QPU, by the word of failure.Kind.
_KINDS: Final[Mapping[str, str]] = {
    Kind.OFFLINE: "is offline",
    Kind.PAUSED: "is paused",
    Kind.UNREACHABLE: "cannot be reached",
    Kind.NO_ANSWER: "does not answer",
    Kind.BUSY: "refuses requests for now (429)",
    Kind.SERVICE_ERROR: "has an error at its service (5xx)",
    Kind.LICENSE: "is held by other jobs",
}


class Cause(StrEnum):
    """What an explanation comes to, for programs."""

    LICENSE = "license-taken"
    OUT_OF_SERVICE = "out-of-service"
    NOT_RELEASED = "release-not-proven"
    RESERVED = "reserved"
    REQUEUED = "requeued"
    WAITS = "waits"  # for something that is not a QPU
    STARTS = "starts"
    RUNS = "runs"
    EXPIRED = "expired"  # it runs, and a session of its QPUs has ended
    NO_QPU = "no-qpu"  # it could not have its QPUs
    ENDED = "ended"  # however, and not because of a QPU
    UNKNOWN = "unknown"  # Slurm does not say anything about it


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known about a job.

    Args:
        job: what Slurm says about it.
        now_s: seconds since the epoch.
        licenses: Slurm's licenses, of those that the job waits for.
        outages: those of them that are out of service.
        others: the other reservations of them.
        holders: the jobs that have them.
        qpus: the QPUs behind a license, as far as they are known.
        record: the job's record on this node; None if there is none, or the caller may not read it.
        told: what Prolog on this node told the job's tasks; None likewise.
        kept: why the job had no QPU, by what this node has kept of it.
        output: the lines of ours in the job's output; empty if they were not looked for.
        faults: what is wrong on this node with what the job holds.
        unseen: what could not be looked at, and how it can be.
    """

    job: JobDetails
    now_s: float
    licenses: Mapping[str, License] = field(default_factory=dict)
    outages: Mapping[str, Outage] = field(default_factory=dict)
    others: Mapping[str, Sequence[Other]] = field(default_factory=dict)
    holders: Mapping[str, Sequence[Holder]] = field(default_factory=dict)
    qpus: Mapping[str, Sequence[str]] = field(default_factory=dict)
    record: Record | None = None
    told: Exports | None = None
    kept: Exports | None = None
    output: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer.

    Args:
        job: the job's id, as people know it.
        state: Slurm's word for its state.
        cause: what it comes to.
        answer: the answer, in one sentence.
        details: what else there is to know, a sentence each.
        advice: what to do, a sentence each.
        unseen: what could not be looked at, and how it can be.
        qpus: the QPUs that it is about, as far as they are known.
        requeues: how often it was put back into the queue because a QPU was not there.
        until_s: when that changes at the latest: the holder's end, the next try, the job's end; None if unknown.
    """

    job: str
    state: str
    cause: Cause
    answer: str
    details: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    qpus: tuple[str, ...] = ()
    requeues: int = 0
    until_s: float | None = None


def explain(found: Evidence) -> Explanation:
    """Return why a job waits, runs or has ended."""
    job = replace(found.job, shown=printable(found.job.shown, _MAX_ID_CHARS), state=printable(found.job.state))
    found = replace(found, job=job)
    if job.state == UNKNOWN:
        return _of_unknown(found)
    if job.state in _ENDED:
        return _of_ended(found)
    return _of_waiting(found) if job.state in _WAITING else _of_running(found)


def waits_for_licenses(job: JobDetails) -> bool:
    """Tell whether a job waits for its licenses, as far as Slurm has looked."""
    return job.state in _WAITING and job.reason == "Licenses"


def has_ended(job: JobDetails) -> bool:
    """Tell whether a job has ended for good."""
    return job.state in _ENDED


# --- waiting --------------------------------------------------------------------------------------------------


def _of_waiting(found: Evidence) -> Explanation:
    job = found.job
    requeued = _requeued(job)
    if job.reason == "Licenses":
        said = _for_licenses(found)
    elif requeued is not None and job.reason in ("BeginTime", "None", ""):
        return _put_back(found, requeued)
    else:
        said = _for_something_else(found)
    if requeued is None:
        return said
    return replace(said, details=(*said.details, f"it {_times(requeued, found)}", *_sentences(_last_failure(found))))


def _for_licenses(found: Evidence) -> Explanation:
    job = found.job
    for license in job.licenses:
        if license in found.outages:
            return _out_of_service(found, found.outages[license])
    for license, wanted in job.licenses.items():
        if license in found.licenses and found.licenses[license].left < wanted:
            return _taken(found, license, found.licenses[license])
    names_ = _listed([_named(license, found) for license in job.licenses]) or "licenses"
    answer = f"Job {job.shown} waits for {names_}, which {'is' if len(job.licenses) == 1 else 'are'} free by now"
    return replace(_base(found, Cause.LICENSE), answer=answer, advice=(_LOOK_AGAIN,))


def _for_something_else(found: Evidence) -> Explanation:
    job = found.job
    word = job.reason.partition(",")[0]
    meaning, advice = _REASONS.get(word, ("", "see JOB REASON CODES in: man squeue"))
    is_later = word == "BeginTime" and job.eligible_s is not None and job.eligible_s > found.now_s
    when = f" before {_moment(job.eligible_s, found.now_s)}" if is_later and job.eligible_s else ""
    said = f"Slurm says {printable(job.reason) or 'nothing'}"
    answer = f"Job {job.shown} waits: {meaning}{when} ({said})" if meaning else f"Job {job.shown} waits: {said}"
    until_s = job.eligible_s if is_later else None
    return replace(_base(found, Cause.WAITS), answer=answer, advice=(advice.format(job=job.shown),), until_s=until_s)


def _out_of_service(found: Evidence, outage: Outage) -> Explanation:
    since = outage.since.replace("T", " ") or (_moment(outage.began_s, found.now_s) if outage.began_s else "")
    by = printable(outage.by) if outage.by else "an admin" if outage.is_drained else "the sensor"
    answer = (
        f"Job {found.job.shown} waits for {_named(outage.license, found)}, which is out of service"
        f"{f' since {printable(since)}' if since else ''}: {printable(outage.notice, _MAX_CHARS)} (says {by})"
    )
    until_s: float | None = None
    if outage.is_drained:
        advice = "it starts by itself once an admin puts the QPU back: qrmi-slurm resume"
    else:
        advice = "it starts by itself once the sensor sees the QPU online, for which it looks every minute"
        if outage.is_of_job and outage.ends_s:
            until_s = outage.ends_s
            advice += f"; without a sensor, a job tries again at {_moment(until_s, found.now_s)}"
    base = _base(found, Cause.OUT_OF_SERVICE)
    qpus = _qpus(outage.license, found)
    return replace(base, answer=answer, advice=(advice, _OTHER_QPU), qpus=qpus, until_s=until_s)


def _taken(found: Evidence, license: str, counts: License) -> Explanation:
    """Explain a license of which others have too many: jobs, sessions that are not proven closed, reservations."""
    job, name = found.job, _named(license, found)
    base = replace(_base(found, Cause.LICENSE), qpus=_qpus(license, found))
    if job.licenses[license] > counts.total:
        answer = f"Job {job.shown} asks for {job.licenses[license]} of {name}, and there are only {counts.total}"
        return replace(base, answer=answer, advice=(f"it will never start: scancel {job.shown}, and ask for fewer",))
    begun = [other for other in found.others.get(license, ()) if other.begins_s <= found.now_s]
    less = [other for other in begun if other.name.startswith(LESS_PREFIXES)]
    reserved = [other for other in begun if other not in less]
    if less and not reserved and not counts.used:
        answer = f"Job {job.shown} waits for {name}: {printable(less[0].text)}"
        return replace(base, answer=answer, advice=(_BY_ITSELF, _OTHER_QPU))
    if reserved and counts.used < counts.total:
        return _reserved(found, license, reserved)
    holding = found.holders.get(license, ())
    ends = [one.end_s for one in holding if one.end_s is not None]
    until_s = min(ends) if ends and len(ends) >= counts.used else None
    limit = ""
    if until_s is not None:
        first = "the first of them " if counts.used > 1 else ""
        limit = f", {first}until {_moment(until_s, found.now_s)} at the latest"
    have = "has" if counts.used == 1 else "have"
    answer = f"Job {job.shown} waits for {name}: {_who(holding, counts.used)} {have} it{limit}"
    details = [f"{counts.used} of {counts.total} are in use"] if counts.total > 1 else []
    details += [_other(other, found) for other in reserved] + [printable(other.text) for other in less]
    if len(ends) < len(holding):
        details.append("a job without a time limit may have it for as long as it likes")
    advice = (_BY_ITSELF, _OTHER_QPU)
    return replace(base, answer=answer, details=tuple(details), advice=advice, until_s=until_s)


def _who(holding: Sequence[Holder], used: int) -> str:
    """Return who has a license, as far as the caller may see."""
    shown = [
        f"job {printable(one.shown)} ({printable(one.user)}{', which is ending' if one.state == 'COMPLETING' else ''})"
        for one in holding[:_MAX_HOLDERS]
    ]
    hidden = used - len(shown)
    if hidden > 0:
        shown.append(counted(hidden, "other job" if shown else "job") + ("" if shown else " that you may not see"))
    return _listed(shown)


def _reserved(found: Evidence, license: str, reserved: Sequence[Other]) -> Explanation:
    """Explain a license that a hold keeps from jobs, or a reservation of the site's."""
    start = f"Job {found.job.shown} waits for {_named(license, found)}"
    until_s = min(other.ends_s for other in reserved)
    hold = next((other for other in reserved if other.name.startswith(HOLD_PREFIX)), None)
    if hold is not None:
        base = _base(found, Cause.NOT_RELEASED)
        said = printable(hold.text) or "a session on it is not proven closed"
        answer = f"{start}: {said}; it counts as held until {_moment(until_s, found.now_s)} at the latest"
        advice = f"{_BY_ITSELF}; an admin can try the release again: qrmi-slurm recover --now"
    else:
        base = _base(found, Cause.RESERVED)
        answer = f"{start}: {_other(reserved[0], found)}"
        advice = "if it is for you, ask for it: --reservation=..."
    advices = (advice, _OTHER_QPU)
    return replace(base, answer=answer, advice=advices, qpus=_qpus(license, found), until_s=until_s)


def _other(other: Other, found: Evidence) -> str:
    text = f" ({printable(other.text)})" if other.text else ""
    return f"the reservation {printable(other.name)}{text} has it until {_moment(other.ends_s, found.now_s)}"


def _put_back(found: Evidence, requeued: Requeued) -> Explanation:
    """Explain a job that waits for its next try."""
    job = found.job
    next_s = job.eligible_s if job.eligible_s is not None and job.eligible_s > found.now_s else None
    when = f"at {_moment(next_s, found.now_s, '%H:%M:%S')}" if next_s else "as soon as Slurm has room for it"
    return replace(
        _base(found, Cause.REQUEUED),
        answer=f"Job {job.shown} {_times(requeued, found)}; it tries again {when}",
        details=tuple(_sentences(_last_failure(found))),
        advice=(f"nothing has to be done; to give up: scancel {job.shown}", _OTHER_QPU),
        qpus=(printable(requeued.qpu),),
        until_s=next_s,
    )


def _requeued(job: JobDetails) -> Requeued | None:
    """Return how often a job was put back since it last ran; None if it was not."""
    found = admin_comment.read(job.admin_comment)
    if found is None or (job.restarts is not None and found.restarts not in (None, job.restarts)):
        return None
    return found


def _times(requeued: Requeued, found: Evidence) -> str:
    """Say how often a job was put back, since when, and why the last time."""
    times = "once" if requeued.times == 1 else f"{requeued.times} times"
    since = f", {'at' if requeued.times == 1 else 'since'} {_moment(requeued.since_s, found.now_s)}"
    kind = _KINDS.get(requeued.kind, f"could not be acquired ({printable(requeued.kind)})")
    return f"was put back into the queue {times}{since}, because {printable(requeued.qpu)} {kind}"


def _last_failure(found: Evidence) -> Exports | None:
    """Return what the run before this one has left; None if that is not known."""
    kept, restarts = found.kept, found.job.restarts
    return kept if kept is not None and restarts is not None and kept.restart_count == restarts - 1 else None


# --- running --------------------------------------------------------------------------------------------------


def _of_running(found: Evidence) -> Explanation:
    job, told = found.job, found.told
    on = f" on {job.node}" if job.node else ""
    entries = found.record.entries if found.record is not None else ()
    qpus = _held(found, entries)
    base = replace(_base(found, Cause.RUNS), qpus=tuple(qpus), until_s=job.end_s)
    if job.state == "COMPLETING":
        what = f" releases {_listed(qpus)}" if qpus else " runs"
        return replace(base, answer=f"Job {job.shown} is ending: Epilog{on}{what}", advice=(_LOOK_AGAIN,))
    acquiring = [entry for entry in entries if entry.state is State.ACQUIRING]
    if acquiring:
        since = duration(max(0.0, found.now_s - min(entry.since_s for entry in acquiring)))
        which = _listed([printable(entry.name) for entry in acquiring])
        answer = f"Job {job.shown} is starting: Prolog{on} has been acquiring {which} for {since}"
        return replace(base, cause=Cause.STARTS, answer=answer, advice=(_LOOK_AGAIN,))
    if told is not None and not told.is_ready and _is_of_run(told, job):
        return _without(found, f"Job {job.shown} runs without its QPU", _sentences(told))
    if job.state == "CONFIGURING" or job.reason == "Prolog":  # slurmctld waits for the Prologs of all nodes
        answer = f"Job {job.shown} is starting: Prolog{on} has not ended"
        return replace(base, cause=Cause.STARTS, answer=answer, advice=(_LOOK_AGAIN,))
    word = "runs" if job.state == "RUNNING" else f"is {printable(job.state)}"
    until = f" until {_moment(job.end_s, found.now_s)} at the latest" if job.end_s else ", without a time limit"
    failed = [f"{printable(entry.name)}: {printable(entry.reason)}" for entry in entries if entry.reason]
    said = _sentences(told) if told is not None and _is_of_run(told, job) else failed
    requeued = _requeued(job)
    before = [f"it {_times(requeued, found)}"] if requeued is not None else []
    answer = f"Job {job.shown} {word}{f' with {_listed(qpus)}' if qpus else ''}{until}"
    ends_s = _session_ends(found)
    expired = {name: moment_s for name, moment_s in ends_s.items() if moment_s <= found.now_s}
    details = (*found.faults, *_ending(found, ends_s), *said[:_MAX_NOTES], *before)
    if not expired:
        return replace(base, answer=answer, details=details)
    which = _listed([printable(name) for name in expired])
    what = f"but the session on {which} has expired, at {_moment(max(expired.values()), found.now_s)}"
    return replace(base, cause=Cause.EXPIRED, answer=f"{answer}, {what}", details=details, advice=_renewal(found))


def _session_ends(found: Evidence) -> Mapping[str, float]:
    """Return when the sessions of a running job's QPUs end, as far as this node has recorded it."""
    if found.record is not None:
        return {entry.name: entry.ends_s for entry in found.record.held if entry.ends_s is not None}
    told = found.told
    return told.ends_s if told is not None and told.is_ready and _is_of_run(told, found.job) else {}


def _ending(found: Evidence, ends_s: Mapping[str, float]) -> list[str]:
    """Say which sessions end soon although the job may run longer."""
    soon = {name: moment_s for name, moment_s in ends_s.items() if 0 < moment_s - found.now_s < ENDING_SOON_S}
    job_ends_s = found.job.end_s
    if found.record is not None and job_ends_s is not None:
        job_ends_s += found.record.over_s
    return [
        f"its session on {printable(name)} ends at {_moment(moment_s, found.now_s, '%H:%M:%S')}, "
        f"in {duration(moment_s - found.now_s)}, and the job may run longer"
        for name, moment_s in soon.items()
        if job_ends_s is None or moment_s < job_ends_s
    ]


def _renewal(found: Evidence) -> tuple[str, ...]:
    """Say how a job gets a new session."""
    record = found.record
    if record is not None and record.broker is not None:
        return ("its next request opens a new one, through its credential broker",)
    return ('what a program sees, and when there is a new one: "When a session ends" in docs/user.md',)


def _held(found: Evidence, entries: Sequence[Entry]) -> list[str]:
    """Return the QPUs that a job has: by its record, its exports or its licenses."""
    told = found.told
    if entries:
        return [printable(entry.name) for entry in entries if entry.state in (State.ACQUIRED, State.RELEASING)]
    if told is not None and told.is_ready and _is_of_run(told, found.job):
        return [printable(name) for name in told.variables.get(names.QRMI_JOB_QPU_RESOURCES, "").split(",")]
    known = [name for license in found.job.licenses for name in _qpus(license, found)]
    return known or [_named(name, found) for name in found.job.licenses if name.startswith(LICENSE_PREFIX)]


# --- ended ----------------------------------------------------------------------------------------------------


def _of_ended(found: Evidence) -> Explanation:
    job = found.job
    failures = [one for one in (found.told, found.kept) if one is not None and not one.is_ready]
    told = next((one for one in failures if _is_of_run(one, job)), None)
    why = _sentences(told) or [_plain(line) for line in found.output]
    if why and job.state == "FAILED":
        return _without(found, f"Job {job.shown} failed", why)
    requeued = _requeued(job)
    details = _left_over(found) + ([f"it {_times(requeued, found)}"] if requeued is not None else [])
    when = f", at {_moment(job.end_s, found.now_s)}" if job.end_s else ""
    how = ""
    if job.state == "FAILED" and job.signal:
        how = f": signal {job.signal} ended it"
    elif job.state == "FAILED" and job.exit_code:
        how = f": its script ended with exit status {job.exit_code}"
    return replace(
        _base(found, Cause.ENDED),
        answer=f"Job {job.shown} {_ENDED[job.state]}{how}{when}",
        details=tuple(details),
        advice=("its output may say more",) if job.state in ("FAILED", "OUT_OF_MEMORY") else (),
    )


def _left_over(found: Evidence) -> list[str]:
    """Say what an ended job has left that is not released yet."""
    entries = found.record.entries if found.record is not None else ()
    return [_left(entry, found) for entry in entries if entry.is_pending]


def _left(entry: Entry, found: Evidence) -> str:
    name, reason = printable(entry.name), printable(entry.reason, _MAX_CHARS)
    because = f": {reason}" if reason else ""
    if entry.state is State.INDETERMINATE:
        end = f", and ends by itself by {_moment(entry.expires_s, found.now_s)}" if entry.expires_s else ""
        return f"a session on {name} may be open{end}{because}"
    return f"its session on {name} is not proven closed, and recover tries again{because}"


def _without(found: Evidence, what: str, why: Sequence[str]) -> Explanation:
    """Explain a job that could not have its QPUs."""
    node = f", on {found.job.node}" if found.job.node else ""
    requeued = _requeued(found.job)
    before = [f"it {_times(requeued, found)}"] if requeued is not None else []
    return replace(
        _base(found, Cause.NO_QPU),
        answer=f"{what}: {why[0]}" if why else what,
        details=(*why[1:_MAX_NOTES], *before, *_left_over(found)),
        advice=(
            'what that means, and what to do: "What messages mean" in docs/user.md',
            f"admins find more in: journalctl -t qrmi-slurm-prolog{node}",
        ),
    )


def _of_unknown(found: Evidence) -> Explanation:
    """Explain a job that Slurm says nothing about, by what this node has of it."""
    told = next((one for one in (found.told, found.kept) if one is not None and not one.is_ready), None)
    if told is not None:
        return _without(found, f"Job {found.job.shown} had no QPU", _sentences(told))
    entries = found.record.entries if found.record is not None else ()
    qpus = _held(found, entries)
    which = f"holds {_listed(qpus)}" if qpus else "holds nothing"
    base = replace(_base(found, Cause.UNKNOWN), qpus=tuple(qpus))
    details = tuple(_left(entry, found) for entry in entries if entry.state in (State.RELEASING, State.INDETERMINATE))
    return replace(base, answer=f"Job {found.job.shown} {which}, by what this node has recorded", details=details)


# --- words ----------------------------------------------------------------------------------------------------


def _base(found: Evidence, cause: Cause) -> Explanation:
    job = found.job
    requeued = _requeued(job)
    times = requeued.times if requeued is not None else 0
    return Explanation(job.shown, job.state, cause, "", unseen=found.unseen, requeues=times)


def _is_of_run(told: Exports, job: JobDetails) -> bool:
    """Tell whether Prolog said that to this run of this job, rather than to one that had its id before."""
    if job.restarts is not None and told.restart_count != job.restarts:
        return False
    # A job's start time may grow while its nodes power up; no job was submitted after it had started.
    return told.start_s is None or job.submit_s is None or told.start_s >= job.submit_s


def _sentences(told: Exports | None) -> list[str]:
    return [_plain(note) for note in told.notes] if told is not None else []


def _plain(note: str) -> str:
    """Return a line of a job's output without what is the same in all of them: `qrmi-slurm: job 12 has no QPU: `."""
    text = printable(note, _MAX_CHARS).removeprefix(f"{PREFIX}: ")
    head, found, rest = text.partition(" has no QPU: ")
    return rest if found and head.startswith("job ") else text


def _qpus(license: str, found: Evidence) -> tuple[str, ...]:
    return tuple(map(printable, found.qpus.get(license, ())))


def _named(license: str, found: Evidence) -> str:
    """Return the QPUs that a license counts; the license itself if they are not known."""
    return _listed(_qpus(license, found), "or") or f"the license {printable(license)}"


def _listed(words: Sequence[str], last: str = "and") -> str:
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _moment(epoch_s: float | None, now_s: float, clock: str = "%H:%M") -> str:
    """Return a moment as people say it, by this machine's clock: `14:05`, with the date if it is not today."""
    if epoch_s is None:
        return "an unknown time"
    try:
        moment, today = time.localtime(epoch_s), time.localtime(now_s)
    except (OverflowError, ValueError, OSError):
        return f"{epoch_s:.0f}"
    is_today = (moment.tm_year, moment.tm_yday) == (today.tm_year, today.tm_yday)
    return time.strftime(clock if is_today else f"%Y-%m-%d {clock}", moment)
