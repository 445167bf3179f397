"""The licenses of a starting job: a QPU that Slurm counts is acquired only for a job that has its license.

Most jobs have it from job_submit.lua. One that was submitted without, that lost it when it was requeued, or whose
choice of a QPU comes to another than Slurm has counted, gets the license here if one is free.
"""

import os
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from qrmi_slurm.errors import SchedulerError
from qrmi_slurm.log import HookLog
from qrmi_slurm.slurm import licenses

# Why a job may not have a QPU; `{}` is the QPU's name.
_TAKEN: Final = "{} is held by other jobs"
_UNKNOWN: Final = "{} could not be acquired: Slurm does not say whether this job has its license; submit the job again"
_FIRST_ONLY: Final = "Slurm accepts licenses only in a heterogeneous job's first component: put --qpu={} there"
_NO_SLOTS: Final = "{{}} is shared by slots, and this job has none: ask for some with --licenses={license}:NUMBER"
_FIXED: Final = "{} could not be acquired: a component of a heterogeneous job cannot change its licenses"


# How often to try for a license that another Prolog tries for at the same moment, and the least pause in between, in
# seconds; the longest is nine times that.
_TRIES: Final = 4
_PAUSE_S: Final = 0.05


class Held(NamedTuple):
    """What Slurm says about a job's licenses.

    Args:
        counts: how many of each the job has; None where Slurm does not say.
        is_component: whether the job is a component of a heterogeneous job: `scontrol update` changes all of them.
        is_further: whether it is another component than the first, in a release where only the first has licenses.
    """

    counts: Mapping[str, int] | None
    is_component: bool = False
    is_further: bool = False


class QpuSlots(NamedTuple):
    """How many slots of a QPU a job has.

    Args:
        number: of slots.
        refusal: why it may not have the QPU, with `{}` in place of the QPU's name; empty where it has slots.
    """

    number: int
    refusal: str = ""


def qpu_slots(held: Held, license: str) -> QpuSlots:
    """Return how many slots a job has.

    Args:
        held: what Slurm says about its licenses.
        license: the license that counts the slots.
    """
    if held.counts is None:
        return QpuSlots(0, _UNKNOWN)
    number = held.counts.get(license, 0)
    if number:
        return QpuSlots(number)
    return QpuSlots(0, _FIRST_ONLY if held.is_further else _NO_SLOTS.format(license=license))


class JobLicenses:
    """The licenses that a job has, and may swap for others.

    Args:
        held: what Slurm says about them.
        counted: the licenses that Slurm has; a QPU with any other, or with none, may be had without.
        ask_name: returns the job's id as scontrol takes it; None where Slurm does not say.
        slurm_conf: Slurm's configuration file.
        log: of the hook.
    """

    def __init__(
        self,
        held: Held,
        counted: Collection[str],
        ask_name: Callable[[], str | None],
        slurm_conf: Path,
        log: HookLog,
    ) -> None:
        self._known = held
        self._counted = counted
        self._ask_name = ask_name
        self._slurm_conf = slurm_conf
        self._log = log
        self.held = dict(held.counts or {})
        self._free: set[str] | None = None  # those that were free when first asked

    def counted(self, license: str | None) -> str | None:
        """Return a license if Slurm counts it; else None."""
        return license if license in self._counted or license in self.held else None

    def swap(self, old: str | None, new: str | None, timeout_s: float) -> str:
        """Give one license back and take another where one is free; return why the job may not have the QPU.

        Args:
            old: the license that the job has for this QPU; None where it has none.
            new: the license that counts the QPU it is to get; None where Slurm counts none.
            timeout_s: how long slurmctld may take for each answer, in seconds.

        Returns:
            The reason, with `{}` in place of the QPU's name; empty where the job may have it.
        """
        if old == new:
            return ""
        if self._known.counts is None or self._known.is_component:
            return self._refusal(new)
        if new is not None and not self._may_be_free(new, timeout_s):
            self._log.info("license-taken", license=new)
            return _TAKEN
        wanted = dict(self.held)
        if old is not None:
            wanted[old] = wanted.get(old, 0) - 1
            if wanted[old] < 1:
                del wanted[old]
        if new is not None:
            wanted[new] = wanted.get(new, 0) + 1
        for attempt in range(_TRIES):
            if not self._change(wanted, timeout_s):
                self._log.warning("license-unchanged", wanted=new, hint="slurmctld did not change the job's licenses")
                return _TAKEN
            # An operator's update may over-subscribe: another job may have got the last one meanwhile.
            if new is None or self._left(new, timeout_s) >= 0:
                self.held = wanted
                return ""
            self._change(self.held, timeout_s)
            if attempt + 1 < _TRIES:  # two Prologs at the same moment would else both give it back
                time.sleep(_PAUSE_S * (1 + os.urandom(1)[0] / 32))
                if self._left(new, timeout_s) <= 0:
                    break
        self._log.info("license-taken", license=new)
        return _TAKEN

    @staticmethod
    def may_pass(refusal: str) -> bool:
        """Tell whether the reason that `swap` gave may not be one at a later start of the job."""
        return refusal in (_TAKEN, _UNKNOWN)

    def _refusal(self, new: str | None) -> str:
        """Return why a job whose licenses cannot be changed may not have a QPU."""
        if new is None:
            return ""  # it keeps a license too many
        if self._known.is_further:
            return _FIRST_ONLY
        return _UNKNOWN if self._known.counts is None else _FIXED

    def _change(self, wanted: Mapping[str, int], timeout_s: float) -> bool:
        name = self._ask_name()
        return name is not None and licenses.change(name, wanted, self._slurm_conf, timeout_s)

    def _may_be_free(self, name: str, timeout_s: float) -> bool:
        """Tell whether a license is free; one that was taken when this hook first asked still counts as taken.

        So a choice among hundreds of taken QPUs costs slurmctld one request.
        """
        if self._free is None:
            self._free = {name for name, license in self._licenses(timeout_s).items() if license.left > 0}
            return name in self._free
        return name in self._free and self._left(name, timeout_s) > 0

    def _left(self, name: str, timeout_s: float) -> int:
        found = self._licenses(timeout_s)
        return found[name].left if name in found else -1

    def _licenses(self, timeout_s: float) -> Mapping[str, licenses.License]:
        try:
            return licenses.read(self._slurm_conf, timeout_s)
        except SchedulerError:
            return {}
