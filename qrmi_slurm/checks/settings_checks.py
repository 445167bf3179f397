"""Checks of Slurm's configuration: this node's slurm.conf, and slurmctld's clock, PrologFlags and timeouts."""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

from qrmi_slurm.checks.result import Result, error, ok, warning
from qrmi_slurm.slurm import conf_file, prolog_flags
from qrmi_slurm.slurm.plugstack import SiteOptions
from qrmi_slurm.slurm.settings import SlurmSettings

# slurmd tells waiting users that Prolog hangs this long before MessageTimeout (slurmd/req.c).
_HUNG_BEFORE_S: Final = 2.0

# Beyond MUNGE_DEFAULT_TTL Slurm's messages are rejected; the lower limit keeps logs of two nodes comparable.
_CLOCK_ERROR_S: Final = 300.0
_CLOCK_WARNING_S: Final = 30.0


def check_slurm_conf(slurm_conf: Path) -> Iterator[Result]:
    """Check which slurm.conf this node has; no result if it has one of its own.

    Args:
        slurm_conf: the file that is used.
    """
    name = "slurm.conf"
    own, copy = conf_file.DEFAULT_SLURM_CONF, conf_file.CONFIGLESS_SLURM_CONF
    if not slurm_conf.exists():
        hint = f"if this node is configless, start slurmd; Debian 12 does not do so without {own}: see docs/admin.md"
        yield error(name, f"there is neither {slurm_conf} nor {copy}", hint)
    elif conf_file.is_copy(slurm_conf):
        yield ok(name, f"configless: {slurm_conf} is slurmd's copy of slurmctld's")
    elif slurm_conf == own and copy.exists() and copy.read_bytes() != own.read_bytes():
        message = f"{own} differs from {copy}, which is slurmd's own if it runs with --conf-server"
        yield warning(name, message, f"remove {own} if so, since the hooks use slurmd's; otherwise {copy.parent}")


def check_clock(settings: SlurmSettings, asked_s: float) -> Iterator[Result]:
    """Compare this node's clock with slurmctld's.

    Args:
        settings: Slurm's settings, with slurmctld's time.
        asked_s: when they were asked for by this clock; seconds since the epoch.
    """
    if settings.as_of is None:
        return
    apart_s = abs((settings.as_of - datetime.fromtimestamp(asked_s)).total_seconds())
    hint = "run chrony or systemd-timesyncd on both machines"
    if apart_s >= _CLOCK_ERROR_S:
        yield error("clock", f"differs from slurmctld's by {apart_s:.0f} s, so munge rejects messages", hint)
    elif apart_s >= _CLOCK_WARNING_S:
        yield warning("clock", f"differs from slurmctld's by {apart_s:.0f} s", hint)
    else:
        yield ok("clock", "agrees with slurmctld's")


def check_prolog_flags(settings: SlurmSettings) -> Iterator[Result]:
    """Check that Prolog runs when a job starts, not one at a time, and not on the job's memory."""
    name = "PrologFlags"
    flags = settings.flags(name)
    shown = settings.text(name) or "not set"
    if not prolog_flags.runs_at_start(flags):
        wanted = ",".join(prolog_flags.wanted_flags(sorted(flags)))
        hint = f"set PrologFlags={wanted}; otherwise salloc holds no QPU until its first srun"
        yield warning(name, f"{shown}: Prolog runs at a job's first step on a node", hint)
    elif "serial" in flags:
        hint = "remove Serial: acquiring a QPU may take seconds"
        yield warning(name, f"{shown}: a node runs one Prolog at a time", hint)
    elif "runinjob" in flags:
        hint = "remove RunInJob, or tell users to ask for 50 MB more; a broker may leave its job's control group behind"
        yield warning(name, f"{shown}: the hooks' memory counts as the job's", hint)
    else:
        yield ok(name, shown)


def check_requeue(settings: SlurmSettings, options: SiteOptions) -> Iterator[Result]:
    """Check that batch jobs can wait for a QPU that is not there, where the site wants them to."""
    name = "JobRequeue"
    if options.on_unavailable == "fail" or not settings.text(name):
        return
    if settings.text(name) == "0":
        message = "0: a batch job whose QPU is not there waits only with --requeue, and fails without"
        yield warning(name, message, "set JobRequeue=1, or --on-unavailable=fail on the plugin's line")
    else:
        yield ok(name, f"1; batch jobs wait up to {options.requeue_limit_h:g} h for a QPU that is not there")


def check_timeouts(settings: SlurmSettings, options: SiteOptions) -> Iterator[Result]:
    """Compare Slurm's timeouts with the hooks': if Slurm kills a hook, it drains the node."""
    yield _check_hook_timeout(settings, "PrologTimeout", "--acquire-timeout", options.acquire_timeout_s)
    yield _check_hook_timeout(settings, "EpilogTimeout", "--release-timeout", options.release_timeout_s)
    yield from _check_message_timeout(settings, options.acquire_timeout_s)
    yield from _check_batch_start(settings, options.acquire_timeout_s)


def _check_hook_timeout(settings: SlurmSettings, setting: str, option: str, ours_s: float) -> Result:
    name = setting
    if not settings.text(setting):
        setting = "PrologEpilogTimeout"
        name = f"{setting} (for {name.removesuffix('Timeout')})"
    limit_s = settings.seconds(setting)
    if limit_s is None:
        return ok(name, f"no limit; {option} is {ours_s:g} s")
    wanted_s = ours_s + prolog_flags.GRACE_S
    if limit_s < wanted_s:
        message = f"{limit_s} s is too short for {option}={ours_s:g}: slurmd kills the hook and drains the node"
        return error(name, message, f"set {setting}={wanted_s:.0f} or more, or lower {option} on the plugin's line")
    return ok(name, f"{limit_s} s; {option} is {ours_s:g} s")


def _check_message_timeout(settings: SlurmSettings, acquire_s: float) -> Iterator[Result]:
    name = "MessageTimeout"
    limit_s = settings.seconds(name)
    if limit_s is None:
        return
    told_s = limit_s - _HUNG_BEFORE_S
    if told_s < acquire_s:
        hint = f"set {name}={acquire_s + _HUNG_BEFORE_S + 1:.0f} if that bothers users; it does no other harm"
        yield warning(name, f"{limit_s} s: users see `Prolog hung` after {told_s:g} s", hint)
    else:
        yield ok(name, f"{limit_s} s; --acquire-timeout is {acquire_s:g} s")


def _check_batch_start(settings: SlurmSettings, acquire_s: float) -> Iterator[Result]:
    name = "BatchStartTimeout"
    limit_s = settings.seconds(name)
    if limit_s is None:
        return
    # slurmctld/job_mgr.c, _purge_missing_jobs(): with Alloc a job is CONFIGURING during Prolog, and is skipped.
    wanted_s = prolog_flags.start_timeout_s(acquire_s)
    if not prolog_flags.step_waits(settings.flags("PrologFlags")):
        yield ok(name, f"{limit_s} s; with PrologFlags={settings.text('PrologFlags')} it does not include Prolog")
    elif limit_s < wanted_s:
        message = f"{limit_s} s: if Prolog takes longer, srun gives up its step, and a batch job may count as missing"
        yield warning(name, message, f"set {name}={wanted_s} or more in slurm.conf on all nodes")
    else:
        yield ok(name, f"{limit_s} s; --acquire-timeout is {acquire_s:g} s")
