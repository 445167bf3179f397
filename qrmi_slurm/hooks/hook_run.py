"""One run of a hook, or of the command in its place: where it works, who logs, and until when."""

from typing import NamedTuple

from qrmi_slurm.deadline import Deadline
from qrmi_slurm.log import HookLog
from qrmi_slurm.slurm.plugstack import SiteOptions
from qrmi_slurm.state.job_folder import JobFolder


class HookRun(NamedTuple):
    """What every step of a hook's work needs.

    Args:
        options: the site's.
        folder: the job's; its lock is held.
        log: of the hook.
        deadline: when the work has to end.
    """

    options: SiteOptions
    folder: JobFolder
    log: HookLog
    deadline: Deadline

    def within(self, seconds: float) -> "HookRun":
        """Return the same run with no more than so many seconds left."""
        return self._replace(deadline=self.deadline.within(seconds))
