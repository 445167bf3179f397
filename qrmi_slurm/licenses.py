"""The licenses of a running job that left open which QPU it gets: changed to those of the QPU that it has got."""

from collections.abc import Mapping
from pathlib import Path

from qrmi_slurm import scheduler
from qrmi_slurm.logs import HookLog


class JobLicenses:
    """What licenses a job has, and may have instead.

    Where the job has none of those that its QPUs are counted by, the site does not count them, and nothing is changed.

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

    def swap(self, old: str | None, new: str | None, timeout_s: float) -> bool:
        """Give one unit of a license back for one of another, where that is free; tell whether the job may go on.

        Args:
            old: what the job was started with for this QPU; None where it was started with nothing.
            new: what counts the jobs of the QPU that it is to have; None where nothing does.
            timeout_s: how long slurmctld may take for each answer, in seconds.
        """
        if old == new or old is None:
            return True
        if new is not None and self._free(new, timeout_s) < 1:
            self._log.info("license-taken", license=new)
            return False
        wanted = dict(self.held)
        wanted[old] = wanted.get(old, 0) - 1
        if wanted[old] < 1:
            del wanted[old]
        if new is not None:
            wanted[new] = wanted.get(new, 0) + 1
        if not scheduler.change_licenses(self._job_id, wanted, self._slurm_conf, timeout_s):
            self._log.warning("license-unchanged", wanted=new, hint="slurmctld did not change the job's licenses")
            return False
        # Slurm lets an operator take more than there are: another job may have started with the last one meanwhile.
        if new is not None and self._free(new, timeout_s) < 0:
            self._log.info("license-taken", license=new)
            scheduler.change_licenses(self._job_id, self.held, self._slurm_conf, timeout_s)
            return False
        self.held = wanted
        return True

    def _free(self, license: str, timeout_s: float) -> int:
        return (scheduler.free_licenses(self._slurm_conf, timeout_s) or {}).get(license, 0)
