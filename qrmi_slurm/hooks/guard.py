"""The guard around Prolog and Epilog: whatever goes wrong inside, the hook logs it and tells Slurm that all is well.

A Prolog or an Epilog that fails drains the node, and a failing Prolog also requeues the job held
(https://slurm.schedmd.com/prolog_epilog.html). No fault of a QPU, a user or a network may take a node out of service.
"""

import os
from collections.abc import Callable, Mapping
from typing import Final

from qrmi_slurm import names
from qrmi_slurm.calls import confinement
from qrmi_slurm.errors import QrmiSlurmError
from qrmi_slurm.log import HookLog

# What Prolog and Epilog always return to Slurm.
EXIT: Final = 0


def guarded(hook: str, work: Callable[[Mapping[str, str], HookLog], None], environment: Mapping[str, str]) -> int:
    """Do a hook's work, and log how it failed if it did.

    Args:
        hook: `prolog` or `epilog`; goes into the log.
        work: what the hook does.
        environment: what slurmd set.

    Returns:
        The exit status. Slurm effect: always 0, since any other would drain the node.
    """
    _open_standard_files()
    log = HookLog(hook, environment.get(names.SLURM_JOB_ID, "?"))
    try:
        confinement.hide_memory()  # QPUs' credentials will be in it
        work(environment, log)
    except QrmiSlurmError as error:
        log.error("failed", reason=error)
    except BaseException:  # the last line
        log.exception("surprise")
    return EXIT


def _open_standard_files() -> None:
    """Open what a daemon may have closed, so that no pipe of ours becomes standard output."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: this one
