"""The failures: why a job could not have a QPU, and whether waiting may help."""

from enum import StrEnum
from typing import NamedTuple


class Kind(StrEnum):
    """What kind of failure it was. The words are in AdminComments, so a new version must not change them."""

    OFFLINE = "offline"  # the service says so, in whatever word of QRMI's that is not `online`
    PAUSED = "paused"
    UNREACHABLE = "unreachable"  # no connection
    NO_ANSWER = "no-answer"  # not in time, or not a complete one
    BUSY = "busy"  # 429
    SERVICE_ERROR = "service-error"  # 5xx
    LICENSE = "license"  # other jobs have it, or the session of an ended one is not proven closed
    PERMANENT = "permanent"  # a key that is refused, an unknown name, an access rule, a broken config, a bad value

    @property
    def is_transient(self) -> bool:
        """Whether the same job may have the QPU later."""
        return self is not Kind.PERMANENT


class Failure(NamedTuple):
    """Why a job could not have one QPU.

    Args:
        kind: what kind it was.
        qpu: the QPU's name; a term of `--qpu` where it was not known yet which QPU it would be.
        reason: the sentence for the user; secrets are masked.
        license: that counts the QPU, if Slurm has it; empty where none does.
        is_sites: whether QRMI was called with the site's credentials and endpoint alone, in a process that the user
            cannot touch: nothing that the user set has caused it.
    """

    kind: Kind
    qpu: str
    reason: str
    license: str = ""
    is_sites: bool = False
