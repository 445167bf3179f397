"""What Slurm knows about a job beyond the hook's environment: each fact is asked for once, and only if needed.

subprocess, with which slurmctld is asked, takes 5 ms to load: most jobs never need it.
"""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Final

from qrmi_slurm import names
from qrmi_slurm.calls import environment
from qrmi_slurm.errors import SchedulerError
from qrmi_slurm.hooks.hook_run import HookRun
from qrmi_slurm.slurm import conf_file
from qrmi_slurm.slurm.job_context import ENDLESS_S, JobContext

if TYPE_CHECKING:
    from qrmi_slurm.config.access import Person
    from qrmi_slurm.hooks.job_licenses import Held, JobLicenses, QpuSlots
    from qrmi_slurm.slurm.jobs import Allotment, Times

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
        self._times: Times | None = None
        self._granted: Mapping[str, int] | None = None
        self._has_asked = False
        self._time_limit_s: int | None = None
        self._over_s: int | None = None
        self._counted: Collection[str] = ()

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
            told = self._ask_allotment()
            self._person = self._person._replace(qos=told.qos if told is not None else "")
        return self._person

    def licenses(self, wanted: Collection[str | None]) -> "JobLicenses | None":
        """Return the job's licenses; None where Slurm counts none of those that its QPUs may need.

        Args:
            wanted: the licenses that the config names for those QPUs.
        """
        needed = {license for license in wanted if license}
        listed = conf_file.setting(self._job.slurm_conf, "Licenses") if needed else None
        if not listed and not any("@" in license for license in needed):
            return None  # most sites; nothing was asked
        from qrmi_slurm.hooks.job_licenses import JobLicenses
        from qrmi_slurm.slurm import licenses

        # Remote licenses are in slurmdbd's list, not in slurm.conf.
        of_slurm = licenses.names_in(listed or "")
        counted = {license for license in needed if license in of_slurm or "@" in license}
        if not counted:
            return None
        self._counted = counted
        return JobLicenses(self._held(), counted, self._ask_name, self._job.slurm_conf, self._run.log)

    def qpu_slots(self, license: str) -> "QpuSlots":
        """Return how many slots of a QPU the job has.

        Args:
            license: the license that counts them.
        """
        from qrmi_slurm.hooks import job_licenses

        return job_licenses.qpu_slots(self._held(), license)

    def _held(self) -> "Held":
        """Return what Slurm says about the job's licenses."""
        from qrmi_slurm.hooks.job_licenses import Held
        from qrmi_slurm.slurm import licenses

        job, text = self._job, self._job.licenses_text
        is_component = job.het_job_id is not None
        if text is None:
            told = self._ask_allotment()
            return Held(told.licenses if told is not None else None, is_component)
        is_further = is_component and job.job_id != job.het_job_id
        if "|" in text:  # what the job asked for, not which of them it got
            return Held(self._ask_granted(), is_component, is_further)
        return Held(licenses.granted_counts(text), is_component, is_further)

    def counts(self, license: str) -> bool:
        """Tell whether Slurm counts a license, of those that `licenses` was asked for."""
        return license in self._counted

    def _ask_name(self) -> str | None:
        """Return the job's id as scontrol takes it; None where Slurm does not say."""
        told = self._ask_allotment()
        return told.name or str(self._job.job_id) if told is not None else None

    def time_limit_s(self) -> int:
        """Return the job's time limit in seconds; 2147483647 where it has none, or one of 365 days and more.

        Raises:
            SchedulerError: Slurm does not say it. A session could then outlive the job by hours.
        """
        if self._time_limit_s is None:
            seconds = self._job.time_limit_s
            if seconds is None:
                seconds = self._ask_time_limit_s()
            # Slurm's backfill scheduler gives a job without a limit one of 365 days (YEAR_MINUTES in backfill.c).
            self._time_limit_s = names.UNLIMITED_TIMEOUT_S if seconds >= ENDLESS_S else seconds
        return self._time_limit_s

    def runs_s(self) -> int:
        """Return how long Slurm lets the job run, in seconds: its time limit and OverTimeLimit; 2147483647 without end.

        Raises:
            SchedulerError: Slurm does not say the time limit.
            PlugstackError: slurm.conf cannot be read.
        """
        return min(self.time_limit_s() + self.over_s(), names.UNLIMITED_TIMEOUT_S)

    def over_s(self) -> int:
        """Return how much longer than its time limit Slurm lets the job run, in seconds.

        Raises:
            PlugstackError: slurm.conf cannot be read.
        """
        if self._over_s is None:
            self._over_s = conf_file.over_time_limit_s(self._job.slurm_conf, self._job.partition)
        return self._over_s

    def lasts_s(self) -> int:
        """Return how long the job may last, in seconds, with the site's margin for its sessions.

        Raises:
            SchedulerError: Slurm does not say the time limit.
            PlugstackError: slurm.conf cannot be read.
        """
        return environment.with_margin(self.runs_s(), self._run.options.session_margin_s)

    def start_s(self) -> int | None:
        """Return when the job started, by slurmctld's clock, in seconds since the epoch; None if it did not say.

        On Slurm 22.05 the question about the time limit tells it too: where that was not asked, it is asked now.
        """
        return self._job.start_s if self._job.start_s is not None else self._ask_times().start_s

    def may_have_started_at(self, start_s: int | None) -> bool:
        """Tell whether the job may be the one that started at that time, rather than a later one with the same id.

        Slurm is asked only where the time differs, or it has not told the job's own.

        Args:
            start_s: by slurmctld's clock, in seconds since the epoch; None if unknown.
        """
        if start_s is None or self._job.start_s == start_s:
            return True
        from qrmi_slurm.slurm.jobs import Job

        told = self._ask_times()
        if told.submit_s is None:  # slurmctld does not answer
            return self._job.start_s is None
        return Job("", 0, told.submit_s, told.start_s).has_started_at(start_s)

    def _ask_time_limit_s(self) -> int:
        timeout_s = self._time_limit_timeout_s()
        seconds = self._ask_times().limit_s
        if seconds is None:
            raise SchedulerError(
                f"Slurm did not tell the job's time limit within {timeout_s:.0f} s, and without it a session could "
                "stay open for hours; submit the job again",
                "is slurmctld running?",
            )
        return seconds

    def _ask_times(self) -> "Times":
        if self._times is None:
            from qrmi_slurm.slurm import jobs

            self._times = jobs.times(self._job.job_id, self._job.slurm_conf, self._time_limit_timeout_s())
        return self._times

    def _time_limit_timeout_s(self) -> float:
        return min(self._run.deadline.call_s / 2, _MAX_ASK_TIME_LIMIT_S)

    def _ask_granted(self) -> Mapping[str, int] | None:
        if self._granted is None:
            from qrmi_slurm.slurm import jobs

            self._granted = jobs.granted_licenses(self._job.job_id, self._job.slurm_conf, self.ask_timeout_s())
        return self._granted

    def _ask_allotment(self) -> "Allotment | None":
        if not self._has_asked:
            from qrmi_slurm.slurm import jobs

            self._has_asked = True
            self._allotment = jobs.allotment(self._job.job_id, self._job.slurm_conf, self.ask_timeout_s())
            if self._allotment is None:
                self._run.log.warning("allotment-unknown", hint="squeue says neither the job's licenses nor its QOS")
        return self._allotment
