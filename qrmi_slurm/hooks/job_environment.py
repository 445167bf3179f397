"""The job's environment: what its tasks get, from what was acquired. Values in, values out."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from qrmi_slurm import names
from qrmi_slurm.calls.environment import with_name
from qrmi_slurm.hooks.choice import Candidate, Slot
from qrmi_slurm.names import of_resource
from qrmi_slurm.slurm.job_context import JobContext
from qrmi_slurm.state.exports import PREFIX, Exports, fingerprint, moment
from qrmi_slurm.state.record import Record
from qrmi_slurm.text import printable


class Acquired(NamedTuple):
    """What Prolog has acquired for a job.

    Args:
        record: the job's.
        slots: the job's, each with the candidate that was chosen for it.
        time_limit_s: the job's, in seconds.
        problems: why other QPUs could not be had, one sentence each.
        notes: what else the user should know.
    """

    record: Record
    slots: Sequence[Slot]
    time_limit_s: int
    problems: Sequence[str]
    notes: Sequence[str]


def failed(job: JobContext, reason: str) -> Exports:
    """Return the exports of a job that has no QPU, for a reason that is not a QPU's."""
    return _without_qpu(job, [reason])


def exports_of(job: JobContext, acquired: Acquired, site_env: Mapping[str, str]) -> Exports:
    """Return what a job's tasks get: the environment of its QPUs, or why it has none.

    Args:
        job: the job.
        acquired: its QPUs.
        site_env: the site's `--env:` variables.
    """
    tokens = {entry.name: entry.token.reveal() for entry in acquired.record.held if entry.token is not None}
    called_with = {entry.name: entry.environment for entry in acquired.record.held}
    held = [(slot, slot.chosen) for slot in acquired.slots if slot.chosen is not None and slot.chosen.name in tokens]
    if not held:
        return _without_qpu(job, [*acquired.problems, *acquired.notes])
    chosen = [(slot.term.text, item.name) for slot, item in held if slot.is_choice_of(item)]
    said = [f"{printable(text)} is {printable(name)}" for text, name in chosen]
    early = _early_ends(acquired.record)
    notes = tuple(f"{PREFIX}: {note}" for note in (*said, *acquired.notes, *early, *acquired.problems))
    variables = dict(site_env)
    given = dict(site_env)
    for _, item in held:
        own = _of_qpu(item, job, acquired.record)
        variables |= own
        given |= {name: value for name, value in own.items() if not _is_users(item, name, value)}
        variables[of_resource(item.name, names.ACQUISITION_TOKEN)] = tokens[item.name]
        variables[of_resource(item.name, names.TIMEOUT_SECONDS)] = str(acquired.time_limit_s)
        slots = of_resource(item.name, names.QPU_SLOTS)
        if slots in called_with[item.name]:
            variables[slots] = called_with[item.name][slots]
    variables |= _of_job(job, [item for _, item in held])
    if given:
        prints = sorted(fingerprint(name, value) for name, value in given.items())
        variables[names.QRMI_SLURM_GIVEN] = ",".join(prints)
    if chosen:
        variables[names.QRMI_SLURM_CHOICES] = ",".join(f"{text}={name}" for text, name in chosen)
    broker = acquired.record.broker
    brokered = broker.keys if broker is not None else ()
    ends = [(entry.name, entry.ends_s) for entry in acquired.record.held if entry.name not in brokered]
    ends_s = {name: end_s for name, end_s in ends if end_s is not None}
    return _exports(job, is_ready=True, notes=notes, variables=variables)._replace(ends_s=ends_s)


def _early_ends(record: Record) -> list[str]:
    """Return a sentence for each moment at which sessions end before the job has to."""
    brokered = record.broker.keys if record.broker is not None else ()
    early: dict[tuple[str, str], list[str]] = {}
    for entry in record.held:
        if record.ends_before_job(entry):
            goes_on = "; the job's next request then opens a new one" if entry.name in brokered else ""
            early.setdefault((moment(entry.ends_s or 0), goes_on), []).append(printable(entry.name))
    return [
        f"the session on {', '.join(names)} ends at {when}, and the job may run longer{goes_on}"
        for (when, goes_on), names in early.items()
    ]


def _is_users(item: Candidate, name: str, value: str) -> bool:
    """Tell whether a variable that a job's tasks get for a QPU has the user's own value: not the site's, nor a cap."""
    variable = name.removeprefix(of_resource(item.name, ""))
    if variable in item.credentials.tuned and value == str(item.credentials.capped_at_s):
        return False
    return item.credentials.environment.get(variable) == value != item.resource.variables.get(variable)


def _without_qpu(job: JobContext, reasons: Sequence[str]) -> Exports:
    notes = tuple(f"{PREFIX}: job {job.job_id} has no QPU: {reason}" for reason in reasons)
    return _exports(job, is_ready=False, notes=notes, variables={})


def _exports(job: JobContext, *, is_ready: bool, notes: tuple[str, ...], variables: Mapping[str, str]) -> Exports:
    return Exports(
        job.job_id, job.restart_count, is_ready, notes, variables, start_s=job.start_s, selection=job.selection_text
    )


def _of_job(job: JobContext, held: Sequence[Candidate]) -> dict[str, str]:
    resource_names = ",".join(item.name for item in held)
    return {
        names.QRMI_JOB_QPU_RESOURCES: resource_names,
        names.QRMI_JOB_QPU_TYPES: ",".join(item.installed_type for item in held),
        names.SLURM_JOB_QPU_RESOURCES: resource_names,
        names.SLURM_JOB_QPU_TYPES: ",".join(item.resource.type for item in held),
        names.QRMI_JOB_ID: str(job.job_id),
        names.QRMI_JOB_UID: str(job.uid),
    }


def _of_qpu(item: Candidate, job: JobContext, record: Record) -> dict[str, str]:
    """Return a QPU's variables; where the job reaches it through its broker, without the site's secrets."""
    capped_at_s = item.credentials.capped_at_s
    mark = {} if capped_at_s is None else {of_resource(item.name, names.QRMI_SLURM_CAPPED_AT): str(capped_at_s)}
    if not item.credentials.need_broker:
        return with_name(item.name, item.credentials.environment) | mark
    from qrmi_slurm.broker import variables  # only where a resource has one

    assert record.broker is not None  # noqa: S101 without it the job does not hold this QPU
    found = variables.for_job(record.broker, item.name, item.resource.type, item.credentials.environment)
    return with_name(item.name, found) | mark | {names.QRMI_SLURM_BROKER: job.node}
