"""Requeueing: a batch job whose QPUs are not there for a time goes back into the queue instead of failing.

It waits longer after each such start. How often it was put back and since when is in its AdminComment, which users
cannot change, and which outlives the nodes it has had.
"""

import os
import re
import time
from collections.abc import Sequence
from typing import Final

from qrmi_slurm.deadline import Deadline
from qrmi_slurm.errors import SchedulerError
from qrmi_slurm.failure import Failure
from qrmi_slurm.hooks.hook_run import HookRun
from qrmi_slurm.slurm import admin_comment, conf_file, prolog_flags, requeue
from qrmi_slurm.slurm.admin_comment import Requeued
from qrmi_slurm.slurm.job_context import JobContext
from qrmi_slurm.slurm.requeue import Standing

# The first wait and the longest, in seconds; each is twice the one before. Up to a quarter less, so that the jobs of an
# outage do not come back at one moment.
_FIRST_S: Final = 30
_LONGEST_S: Final = 600
_JITTER: Final = 0.25

# Slurm ends a job with a --deadline as soon as it cannot be over by then, and looks for jobs to start once a minute.
_BEFORE_DEADLINE_S: Final = 60

# slurmd takes a job for the run before if it comes back within the same second (slurmd/req.c, _rpc_prolog()).
_LEAST_S: Final = 5

# How long slurmd keeps the credential of a run that has ended: cred_expire in slurm.conf(5), by default.
_CREDENTIAL_S: Final = 120

# slurmctld answers in milliseconds. A service that hangs has left no more of the hook's time than its grace, so some of
# the watchdog's is used as well.
_MAX_S: Final = 5.0
_MORE_S: Final = 0.6


def put_back(job: JobContext, run: HookRun, failures: Sequence[Failure]) -> str | None:
    """Put a job back into the queue.

    Slurm effect: the job waits, its script has not started; Prolog has to exit 0.

    Args:
        job: the job; it has no QPU any more.
        run: of Prolog.
        failures: the transient ones that it waits for to pass; at least one.

    Returns:
        None where the job waits again; else why not, in a sentence, which is empty where that is as it should be.
    """
    deadline = Deadline.after(min(run.deadline.left_s + _MORE_S, _MAX_S))
    if run.options.on_unavailable == "fail" or _has_begun(job):
        return ""
    slurm_conf = run.options.slurm_conf
    try:
        standing = requeue.ask(
            job.het_job_id or job.job_id, job.work_dir, slurm_conf, deadline.within(deadline.left_s / 2)
        )
        if not standing.may_wait:
            return ""
        if not standing.is_running:  # it was cancelled, or another component's Prolog was faster
            run.log.warning("not-requeued", reason="it does not run any more")
            return ""
        now_s = time.time()
        before = _before(standing, now_s)
        delay_s = _delay_s(before.times, _forgotten_s(job), standing, now_s)
        refusal = _refusal(standing, before, run, now_s, deadline)
        if refusal:
            return refusal
        if delay_s < _LEAST_S:
            return "its --deadline leaves no time to wait"
        requeue.put_back(standing.name, slurm_conf, deadline.call_s)
    except SchedulerError as error:
        run.log.error("not-requeued", reason=error)
        return f"it could not be put back into the queue: {error.message}"
    failure = failures[0]
    after = Requeued(before.times + 1, failure.kind, failure.qpu, before.since_s, standing.restarts + 1)
    run.log.warning("requeued", restart=standing.restarts, seconds=delay_s, qpu=failure.qpu, kind=failure.kind)
    comment = admin_comment.with_word(standing.comment, after) if standing.comment is not None else None
    try:
        requeue.put_off(standing, delay_s, comment, slurm_conf, deadline.call_s)
    except SchedulerError as error:  # it waits as long as Slurm lets a requeued job wait
        run.log.error("not-put-off", reason=error)
    return None


def _has_begun(job: JobContext) -> bool:
    """Tell whether the job's script may run by now, in another component of a heterogeneous job.

    Without PrologFlags=Alloc, Prolog runs at a component's first step.
    """
    if job.het_job_id in (None, job.job_id):
        return False
    flags = conf_file.setting(job.slurm_conf, "PrologFlags") or ""
    return not prolog_flags.runs_at_start(word.strip() for word in flags.split(","))


def _before(standing: Standing, now_s: float) -> Requeued:
    """Return what the job has been through, since it last ran: one that ran and was restarted begins anew."""
    told = admin_comment.read(standing.comment or "")
    if told is None or told.restarts not in (None, standing.restarts):
        return Requeued(0, "", "", int(now_s))
    return told._replace(since_s=min(told.since_s, int(now_s)))  # the clock may have been set back


def _forgotten_s(job: JobContext) -> int:
    """Return after how many seconds slurmd is sure to run Prolog for a job again on the same node.

    Before 23.02 slurmd drops the credential of the run before only once in two seconds, whatever job it does so for
    (src/common/slurm_cred.c, _clear_expired_job_states()). Where it just did, it takes a job that comes back sooner for
    the run before, and starts its script without Prolog. Slurm's own requeues wait as long.
    """
    if job.time_limit_s is not None:  # from 23.02 on slurmd tells it
        return 0
    told = re.search(r"cred_expire=(\d{1,5})", conf_file.setting(job.slurm_conf, "AuthInfo") or "")
    return (int(told[1]) if told else _CREDENTIAL_S) + 2


def _delay_s(times: int, least_s: int, standing: Standing, now_s: float) -> int:
    """Return how long a job waits, in seconds.

    Args:
        times: how often it was put back before.
        least_s: what is the least for Slurm.
        standing: its own; it does not wait longer than it may.
        now_s: seconds since the epoch.
    """
    longest_s = max(min(_FIRST_S * 2 ** min(times, 10), _LONGEST_S), least_s / (1 - _JITTER))
    seconds = longest_s * (1 - _JITTER * os.urandom(1)[0] / 255)
    if standing.latest_start_s is not None:
        seconds = min(seconds, standing.latest_start_s - _BEFORE_DEADLINE_S - now_s)
    return int(seconds)


def _refusal(standing: Standing, before: Requeued, run: HookRun, now_s: float, deadline: Deadline) -> str:
    """Return why the site does not let a job wait any longer, or Slurm cannot; empty where it may."""
    limit_h = run.options.requeue_limit_h
    if before.times and now_s - before.since_s >= limit_h * 3600:
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(before.since_s))
        count = f"{before.times} times" if before.times > 1 else "once"
        return f"it was put back into the queue {count} since {since}, and this site's limit is {limit_h:g} h"
    if standing.has_licenses:
        version = requeue.version(run.options.slurm_conf, deadline.call_s).strip()
        if requeue.loses_licenses(version):
            return f"it cannot wait in the queue, since {version} drops a job's licenses when it puts it back"
    return ""
