"""The environment that QRMI is called with, for a job and for an admin's probe alike."""

import os
from collections.abc import Mapping
from typing import Final, NamedTuple

from qrmi_slurm import names
from qrmi_slurm.names import of_resource

# The longest that a session of the IBM compute service may live, and its default, in seconds.
SERVICE_MAX_TTL_S: Final = 28800

# QRMI parses a session's time to live as an i32, and takes its default where that fails.
_MAX_SESSION_TTL_S: Final = 2**31 - 1

# QRMI needs a job id for some types; a probe has none.
_NO_JOB_ID: Final = 0


class ForJob(NamedTuple):
    """What a job adds to the variables of its QPUs.

    Args:
        job_id: Slurm's id.
        uid: user id of the job's owner.
        time_limit_s: the job's time limit, in seconds.
        user: the owner's login name, by Slurm; empty if unknown.
        gid: the job's group id; None if unknown.
    """

    job_id: int
    uid: int
    time_limit_s: int
    user: str = ""
    gid: int | None = None


def for_call(
    resource_name: str,
    variables: Mapping[str, str],
    site_env: Mapping[str, str],
    job: ForJob | None = None,
    qpu_slots: int | None = None,
) -> dict[str, str]:
    """Return the whole environment of a call.

    Args:
        resource_name: the resource's name, which goes in front of its variables.
        variables: the resource's variables, renamed ones under both names.
        site_env: the site's `--env:` variables.
        job: the job; None for a probe, which runs as this process's user.
        qpu_slots: how many slots of the resource the job has; None where it has no slots.
    """
    own = dict(variables)
    if job is not None:
        own[names.TIMEOUT_SECONDS] = str(job.time_limit_s)
    if qpu_slots is not None:
        own[names.QPU_SLOTS] = str(qpu_slots)
    environment = dict(site_env)
    environment |= with_name(resource_name, own)
    environment[names.QRMI_JOB_ID] = str(job.job_id if job is not None else _NO_JOB_ID)
    environment[names.QRMI_JOB_UID] = str(job.uid if job is not None else os.getuid())
    if qpu_slots is not None:
        environment[names.QPU_SLOTS] = str(qpu_slots)
    # For a call as a user whom the node does not know (child.py).
    if job is not None and job.user and job.gid is not None:
        environment |= {names.SLURM_JOB_USER: job.user, names.SLURM_JOB_GID: str(job.gid)}
    return environment


def with_name(resource_name: str, variables: Mapping[str, str]) -> dict[str, str]:
    """Return variables with the resource's name in front, as QRMI and tasks read them."""
    return {of_resource(resource_name, variable): value for variable, value in variables.items()}


def longest_s(lasts_s: int) -> int:
    """Return how long a session of a job may live, in seconds: as long as the job, if the service lets it.

    It limits what users may ask for, and is what a session gets where nobody asks.

    Args:
        lasts_s: how long the job may last, in seconds, with the site's margin; 2147483647 without an end.
    """
    return max(1, min(SERVICE_MAX_TTL_S, lasts_s))


def with_margin(runs_s: int, margin_s: float) -> int:
    """Return how long a job may last, in whole seconds: as long as Slurm lets it run, and the site's margin."""
    return min(runs_s - int(-margin_s // 1), names.UNLIMITED_TIMEOUT_S)


def session_ttl_s(configured: str | None, lasts_s: int) -> int:
    """Return how long a session may live, in seconds: what is configured, else as long as the job at most.

    Args:
        configured: the config's value, or the user's, which has been capped.
        lasts_s: as of `longest_s`.
    """
    if configured is not None and configured.isascii() and configured.isdecimal() and len(configured) <= 10:
        return max(1, min(int(configured), _MAX_SESSION_TTL_S))
    return longest_s(lasts_s)
