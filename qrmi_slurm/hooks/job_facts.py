"""What Slurm knows about a job beyond the hook's environment: each fact is asked for once, and only if needed.

subprocess, with which slurmctld is asked, takes 5 ms to load: most jobs never need it.
"""

from typing import TYPE_CHECKING, Final

from qrmi_slurm import names
from qrmi_slurm.errors import SchedulerError
from qrmi_slurm.hooks.hook_run import HookRun
from qrmi_slurm.slurm.job_context import JobContext

if TYPE_CHECKING:
    from qrmi_slurm.config.access import Person
    from qrmi_slurm.hooks.job_licenses import JobLicenses
    from qrmi_slurm.slurm.jobs import Allotment

# slurmctld answers in milliseconds; a busy one must not hold up a job's start.
_MAX_ASK_S: Final = 5.0

# The time limit has to be known, so there is time for a restart of slurmctld, or for its backup to take over.
_MAX_ASK_TIME_LIMIT_S: Final = 20.0


class JobFacts:
    """The facts of one job.

    Args:
        job: the job.
        run: of the hook.
    """

    def __init__(self, job: JobContext, run: HookRun) -> None:
        self._job = job
        self._run = run
        self._person: Person | None = None
        self._allotment: Allotment | None = None
        self._time_limit_s: int | None = None

    def ask_timeout_s(self) -> float:
        """Return how long one more question to slurmctld may take, in seconds."""
        return min(self._run.deadline.call_s / 4, _MAX_ASK_S)

    def person(self, *, needs_qos: bool) -> "Person":
        """Return whose job it is, for access rules.

        Args:
            needs_qos: whether a rule is about the QOS, for which releases before 26.05 have to be asked.
        """
        if self._person is None:
            from qrmi_slurm.config import access  # only where there is a rule

            job = self._job
            person = access.person_of(job.uid, job.user, job.gid)
            self._person = person._replace(account=job.account, partition=job.partition, qos=job.qos)
        if needs_qos and self._person.qos is None:
            self._person = self._person._replace(qos=self._ask_allotment().qos)
        return self._person

    def licenses(self) -> "JobLicenses | None":
        """Return the job's licenses; None where it has none, so that none can be swapped."""
        from qrmi_slurm.hooks.job_licenses import JobLicenses
        from qrmi_slurm.slurm import licenses

        text = self._job.licenses_text
        held = licenses.granted_counts(text) if text is not None else self._ask_allotment().licenses
        return JobLicenses(self._job.job_id, held, self._job.slurm_conf, self._run.log) if held else None

    def time_limit_s(self) -> int:
        """Return the job's time limit in seconds; 2147483647 where it has none.

        Raises:
            SchedulerError: Slurm does not say it. A session could then outlive the job by hours.
        """
        if self._time_limit_s is None:
            seconds = self._job.time_limit_s if self._job.time_limit_s is not None else self._ask_time_limit_s()
            self._time_limit_s = min(seconds, names.UNLIMITED_TIMEOUT_S)
        return self._time_limit_s

    def _ask_time_limit_s(self) -> int:
        from qrmi_slurm.slurm import jobs

        timeout_s = min(self._run.deadline.call_s / 2, _MAX_ASK_TIME_LIMIT_S)
        seconds = jobs.time_limit_s(self._job.job_id, self._job.slurm_conf, timeout_s)
        if seconds is None:
            raise SchedulerError(
                f"Slurm did not tell the job's time limit within {timeout_s:.0f} s, and without it a session could "
                "stay open for hours; submit the job again",
                "is slurmctld running?",
            )
        return seconds

    def _ask_allotment(self) -> "Allotment":
        if self._allotment is None:
            from qrmi_slurm.slurm import jobs

            told = jobs.allotment(self._job.job_id, self._job.slurm_conf, self.ask_timeout_s())
            if told is None:
                self._run.log.warning("allotment-unknown", hint="squeue says neither the job's licenses nor its QOS")
            self._allotment = told or jobs.Allotment({}, "")
        return self._allotment
