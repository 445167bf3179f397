"""The licenses of a running job whose QPU was chosen in Prolog: swaps the job's license for that of the QPU it gets."""

from collections.abc import Mapping
from pathlib import Path

from qrmi_slurm.errors import SchedulerError
from qrmi_slurm.log import HookLog
from qrmi_slurm.slurm import licenses


class JobLicenses:
    """The licenses that a job has, and may swap for others.

    Where the job has no license that counts its QPUs, the site does not count them, and nothing is changed.

    Args:
        job_id: Slurm's id.
        held: how many of each the job has.
        slurm_conf: Slurm's configuration file.
        log: of the hook.
    """

    def __init__(self, job_id: int, held: Mapping[str, int], slurm_conf: Path, log: HookLog) -> None:
        self._job_id = job_id
        self._slurm_conf = slurm_conf
        self._log = log
        self.held = dict(held)
        self._free: set[str] | None = None  # those that were free when first asked

    def swap(self, old: str | None, new: str | None, timeout_s: float) -> bool:
        """Give one license back and take another where one is free; tell whether the job may have the QPU.

        Args:
            old: the license that the job started with for this QPU; None where it started without one.
            new: the license that counts the QPU it is to get; None where nothing counts it.
            timeout_s: how long slurmctld may take for each answer, in seconds.
        """
        if old == new or old is None:
            return True
        if new is not None and not self._may_be_free(new, timeout_s):
            self._log.info("license-taken", license=new)
            return False
        wanted = dict(self.held)
        wanted[old] = wanted.get(old, 0) - 1
        if wanted[old] < 1:
            del wanted[old]
        if new is not None:
            wanted[new] = wanted.get(new, 0) + 1
        if not licenses.change(self._job_id, wanted, self._slurm_conf, timeout_s):
            self._log.warning("license-unchanged", wanted=new, hint="slurmctld did not change the job's licenses")
            return False
        # An operator's update may over-subscribe: another job may have started with the last one meanwhile.
        if new is not None and self._left(new, timeout_s) < 0:
            self._log.info("license-taken", license=new)
            licenses.change(self._job_id, self.held, self._slurm_conf, timeout_s)
            return False
        self.held = wanted
        return True

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
        return found[name].left if name in found else 0

    def _licenses(self, timeout_s: float) -> Mapping[str, licenses.License]:
        try:
            return licenses.read(self._slurm_conf, timeout_s)
        except SchedulerError:
            return {}
