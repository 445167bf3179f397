"""A failed start: tells the sensor that a QPU could not be acquired, by taking its license out of service.

Where Slurm counts a QPU, the next job then waits for it instead of failing as well. The sensor puts it back once it
sees the QPU online; where none runs, Slurm does so after some minutes, and the next job tries.

Only failures of the site's own calls count: what a user's credentials or addresses cause concerns their job alone.
"""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from qrmi_slurm import files
from qrmi_slurm.deadline import MIN_CALL_S, Deadline
from qrmi_slurm.errors import ConfigError, SchedulerError
from qrmi_slurm.failure import Failure, Kind
from qrmi_slurm.hooks.hook_run import HookRun
from qrmi_slurm.state import ledger

# The folder in a cluster's folder that has a file for each license: its lock, and when Slurm was last told.
FOLDER: Final = ".told"

# slurmctld answers in milliseconds; the job is to be requeued in the same time.
_MAX_S: Final = 5.0


def tell(failures: Iterable[Failure], run: HookRun) -> None:
    """Take the licenses of QPUs that could not be acquired out of service, unless they are already.

    Slurm is asked three times where a license goes out of service, once where it is out already, and not at all where
    another Prolog on this node has done so since this one began. A license that several QPUs share goes out of service
    only with all of them.

    Args:
        failures: of one start.
        run: of Prolog.
    """
    failed: dict[str, dict[str, Kind]] = {}  # by license, then by QPU
    for failure in failures:
        if failure.license and failure.is_sites and failure.kind.is_transient and failure.kind is not Kind.LICENSE:
            failed.setdefault(failure.license, {})[failure.qpu] = failure.kind
    failed = {license: kinds for license, kinds in failed.items() if _behind(license, run) == set(kinds)}
    deadline = Deadline.after(min(_MAX_S, run.deadline.left_s / 2))
    for license, kinds in failed.items():
        if deadline.left_s < MIN_CALL_S:
            run.log.warning("sensor-not-told", license=license, reason="no time was left")
            continue
        try:
            _tell_once(license, next(iter(kinds.values())), run, deadline)
        except (SchedulerError, OSError) as error:
            run.log.error("sensor-not-told", license=license, reason=error)


def _behind(license: str, run: HookRun) -> set[str]:
    """Return the names of the config's QPUs that a license counts."""
    from qrmi_slurm.config import config_file

    try:
        resources = config_file.load(run.options.config_path).resources.values()
    except ConfigError:  # it has just changed
        return set()
    return {resource.name for resource in resources if resource.slurm.license == license}


def _tell_once(license: str, kind: Kind, run: HookRun, deadline: Deadline) -> None:
    """Take a license out of service, unless another Prolog on this node has done so since this one began.

    Raises:
        SchedulerError: Slurm refused, or cannot be asked.
        OSError: the state directory cannot be used.
    """
    path = run.folder.path.parent / FOLDER / license
    files.make_folder(path.parent, 0o700)
    began_s = time.time() - (time.monotonic() - (run.deadline.ends_s - run.deadline.length_s))
    with files.locked(path, deadline.left_s / 2) as is_held:
        if not is_held or began_s <= _told_s(path) <= time.time():  # later than now, if the clock was set back
            return
        try:
            _take_out(license, kind, run, deadline)
        finally:
            path.write_text(f"{time.time():.3f}\n")


def _told_s(path: Path) -> float:
    try:
        return float(files.read(path, 100))
    except ValueError:  # the lock was made just now
        return 0.0


def _take_out(license: str, kind: Kind, run: HookRun, deadline: Deadline) -> None:
    from qrmi_slurm.outages import reservations  # loads dataclasses, which other Prologs never need
    from qrmi_slurm.outages.outage import Outage
    from qrmi_slurm.slurm import licenses

    slurm_conf = run.options.slurm_conf
    found = reservations.read(slurm_conf, deadline.call_s)
    if license in found.outages:
        return
    counted = licenses.read(slurm_conf, deadline.call_s).get(license)
    if counted is None:
        return
    since = time.strftime("%Y-%m-%dT%H:%M", time.localtime())
    by = f"job {run.folder.job_id} on {ledger.this_node()}"
    wanted = Outage(license, counted.total, False, kind.value, by, since)
    if reservations.put_new(wanted, found, slurm_conf, deadline):
        run.log.warning("out-of-service", license=license, reason=kind.value)
