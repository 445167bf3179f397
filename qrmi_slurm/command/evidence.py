"""The evidence for `qrmi-slurm why`: what Slurm says about a job, then what this node's state directory has of it.

Slurm is asked once about a job. Where it waits for licenses, it is asked for these, for the reservations, and for the
jobs that have them.
"""

import contextlib
import os
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from qrmi_slurm.command import holdings
from qrmi_slurm.command.explanation import UNKNOWN, Evidence, has_ended, waits_for_licenses
from qrmi_slurm.config import config_file, slurm_section
from qrmi_slurm.errors import ConfigError, ExportsError, RecordError, SchedulerError
from qrmi_slurm.outages import reservations
from qrmi_slurm.outages.reservations import Reservations
from qrmi_slurm.scheduling import qpus
from qrmi_slurm.slurm import conf_file, job_details, licenses
from qrmi_slurm.slurm.job_details import JobDetails, JobId
from qrmi_slurm.slurm.plugstack import SiteOptions
from qrmi_slurm.state import exports, failures, ledger
from qrmi_slurm.state.exports import PREFIX
from qrmi_slurm.state.job_folder import JobFolder

# Of an array so many jobs are looked at on disk; all of them may be ten thousand.
_MAX_LOOKED_AT: Final = 16

# For so many licenses Slurm is asked who has them: each is a question about all jobs.
_MAX_LICENSES: Final = 4

# Our lines are at the top of a job's output.
_MAX_OUTPUT_BYTES: Final = 64 * 1024
_MAX_OUTPUT_LINES: Final = 20


def gather(job: JobId, options: SiteOptions) -> list[Evidence]:
    """Return what is known about a job, or about each job of an array or a heterogeneous job.

    Args:
        job: the id.
        options: the site's.

    Returns:
        An empty list if neither Slurm nor this node knows the job.

    Raises:
        SchedulerError: slurmctld cannot be asked, and this node knows nothing of the job.
    """
    fault: SchedulerError | None = None
    try:
        jobs = job_details.find(job, options.slurm_conf)
    except SchedulerError as error:
        jobs, fault = [], error
    if not jobs:
        found = _here(Evidence(JobDetails(str(job), job.number, UNKNOWN), time.time()), options)
        if job.part or (found.record, found.told, found.kept) == (None, None, None):
            if fault is not None:
                raise fault
            return []
        why = (
            f"Slurm cannot be asked: {fault.message}" if fault is not None else "Slurm does not know this job any more"
        )
        return [replace(found, unseen=(why,))]
    now_s = time.time()
    behind = _behind(options) if any(one.licenses for one in jobs) else {}
    evidence = [Evidence(one, now_s, qpus=behind) for one in jobs]
    evidence = _with_licenses(evidence, options.slurm_conf)
    return [_here(one, options) for one in evidence[:_MAX_LOOKED_AT]] + evidence[_MAX_LOOKED_AT:]


def _behind(options: SiteOptions) -> Mapping[str, Sequence[str]]:
    """Return the QPUs behind each license: by the config, which root can read, or by the list for users."""
    try:
        pairs = [(one.name, one.slurm.license) for one in config_file.load(options.config_path).resources.values()]
    except ConfigError:
        try:
            listed = qpus.read_published(options.state_dir).qpus
        except RecordError:
            return {}
        pairs = [(one.name, slurm_section.default_license(one.name)) for one in listed]
    found: dict[str, list[str]] = {}
    for name, license in pairs:
        if license is not None:
            found.setdefault(license, []).append(name)
    return found


def _with_licenses(evidence: Sequence[Evidence], slurm_conf: Path) -> list[Evidence]:
    """Return the evidence with what Slurm says about the licenses that its jobs wait for."""
    wanted = dict.fromkeys(license for one in evidence if waits_for_licenses(one.job) for license in one.job.licenses)
    if not wanted:
        return list(evidence)
    unseen: tuple[str, ...] = ()
    try:
        counts = licenses.read(slurm_conf)
        found = reservations.read(slurm_conf)
        short = [name for name in wanted if name in counts and counts[name].used and name not in found.outages]
        holders = {name: job_details.holders(name, slurm_conf) for name in short[:_MAX_LICENSES]}
    except SchedulerError as error:
        counts, found, holders = {}, Reservations({}, {}), {}
        unseen = (f"who has the licenses: {error.message}",)
    return [
        replace(
            one,
            licenses=counts,
            outages=found.outages,
            others=found.others,
            holders=holders,
            unseen=one.unseen + unseen,
        )
        for one in evidence
    ]


def _here(found: Evidence, options: SiteOptions) -> Evidence:
    """Return the evidence with what this node's state directory has of the job."""
    job, cluster = found.job, conf_file.cluster_name(options.slurm_conf)
    if cluster is None:
        return found
    folder = JobFolder(options.state_dir, cluster.lower(), job.job_id)
    is_root = os.geteuid() == 0
    unseen: list[str] = []
    record = kept = None
    try:
        record = folder.read() if is_root else None
    except RecordError as error:
        unseen.append(error.message)
    with contextlib.suppress(RecordError):  # another user's
        kept = failures.read(options.state_dir, folder.cluster, job.job_id)
    if record is not None and job.restarts is not None and record.restart_count != job.restarts:
        record = None  # of an earlier run
    faults = tuple(holdings.broker_fault(record, entry) for entry in record.entries) if record is not None else ()
    found = replace(found, record=record, told=_told(folder), kept=kept, faults=tuple(filter(None, faults)))
    is_known = (found.record, found.told, found.kept) != (None, None, None)
    if job.state == "FAILED" and not is_known:
        found, hint = _with_output(found, options.slurm_conf)
        unseen += [hint] if hint else []
    elif not is_known and job.node and not has_ended(job) and job.node != ledger.this_node():
        unseen.append(f"what it holds is recorded on {job.node}: qrmi-slurm why {job.shown}, there")
    return replace(found, unseen=(*found.unseen, *unseen))


def _told(folder: JobFolder) -> exports.Exports | None:
    """Return what Prolog told a job's tasks; None if that is nothing, or the job is another user's."""
    try:
        uid = folder.exports_path.lstat().st_uid if os.geteuid() == 0 else os.geteuid()
        return exports.read(folder.exports_path, uid, folder.job_id)
    except (OSError, ExportsError):
        return None


def _with_output(found: Evidence, slurm_conf: Path) -> tuple[Evidence, str]:
    """Look for our lines in the output of a job that has failed, if the caller owns it.

    Returns:
        The evidence, and where an admin can look.
    """
    job = found.job
    path = None if job.is_of_past else job_details.output_path(job.job_id, slurm_conf)
    lines = _own_lines(path) if path is not None and os.geteuid() != 0 else ()
    if lines:
        return replace(found, output=lines), ""
    places = [f"on {job.node}, by qrmi-slurm why {job.shown}"] if job.node else []
    places += [f"in its output, {path}"] if path is not None else []
    return found, f"whether it had its QPUs can be seen {' or '.join(places)}" if places else ""


def _own_lines(path: Path) -> tuple[str, ...]:
    """Return our lines in a file of the caller's own."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
                return ()
            text = file.read(_MAX_OUTPUT_BYTES).decode("utf-8", "replace")
    except OSError:
        return ()
    return tuple(line for line in text.splitlines() if line.startswith(f"{PREFIX}: "))[:_MAX_OUTPUT_LINES]
