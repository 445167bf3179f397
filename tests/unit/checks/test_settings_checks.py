"""slurmctld's configuration: how it is read, and which settings are warnings or errors."""

from datetime import datetime, timedelta
from pathlib import Path

import pytest
from checkups import levels, options_of, settings_of

from qrmi_slurm.checks import settings_checks
from qrmi_slurm.errors import SchedulerError
from qrmi_slurm.slurm import commands, conf_file
from qrmi_slurm.slurm import settings as settings_

RECORDED = (Path(__file__).parents[2] / "recordings" / "22.05" / "scontrol-show-config.txt").read_text()

# As written by src/api/config_info.c of 26.05.3: indices from 24.05 on, separate timeouts if they differ.
COMPOSED = """Configuration data as of 2026-11-23T04:58:23
BatchStartTimeout       = 10 sec
Epilog[0]               = /etc/slurm/epilog.d/*
Epilog[1]               = /opt/qrmi-slurm/bin/qrmi-slurm-epilog
EpilogMsgTime           = 2000 usec
MessageTimeout          = 45 sec
NamespaceType           = namespace/tmpfs
EpilogTimeout           = 10
PrologTimeout           = 65534
Prolog[0]               = /opt/qrmi-slurm/bin/qrmi-slurm-prolog
PrologFlags             = Alloc,Contain
SlurmdUser              = root(0)
SLURM_VERSION           = 26.05.3
TaskProlog              = (null)

Slurmctld(primary) at there is UP
"""


# --- reading the answer -------------------------------------------------------------------------------------


def test_the_answer_of_22_05():
    """A recorded answer: one Prolog, (null) for no value, 65534 for no limit."""
    settings = settings_.parse(RECORDED)
    assert settings.all("Prolog") == ["/opt/qrmi-slurm/bin/qrmi-slurm-prolog"]
    assert settings.all("TaskProlog") == []
    assert settings.seconds("PrologEpilogTimeout") is None
    assert (settings.seconds("MessageTimeout"), settings.seconds("BatchStartTimeout")) == (10, 10)
    assert settings.flags("PrologFlags") == {"alloc"}
    assert settings.version == (22, 5)
    assert settings.as_of == datetime(2026, 11, 23, 4, 58, 23)


def test_the_answer_of_26_05():
    """Newer releases number the hooks and have two timeouts."""
    settings = settings_.parse(COMPOSED)
    assert settings.all("Epilog") == ["/etc/slurm/epilog.d/*", "/opt/qrmi-slurm/bin/qrmi-slurm-epilog"]
    assert (settings.seconds("EpilogTimeout"), settings.seconds("PrologTimeout")) == (10, None)
    assert settings.version == (26, 5)
    assert levels(settings_checks.check_timeouts(settings, options_of())) == {
        "PrologTimeout": "ok",
        "EpilogTimeout": "error",
        "MessageTimeout": "ok",
        "BatchStartTimeout": "ok",
    }


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("#!/bin/sh\nexit 1\n", "exit status 1"),
        ("#!/bin/sh\necho 'error: one' >&2\necho 'no controller' >&2\nexit 1\n", "no controller"),
        ("#!/bin/sh\nsleep 30\n", "did not answer within"),
        (None, "there is no scontrol"),
    ],
)
def test_slurm_does_not_answer(tmp_path, monkeypatch, program, words):
    """A command that fails, hangs or is missing raises an error that says so."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(commands, "_USUAL", ())
    monkeypatch.setattr(commands, "_TIMEOUT_S", 0.2)
    if program is not None:
        (tmp_path / "scontrol").write_text(program)
        (tmp_path / "scontrol").chmod(0o755)
    with pytest.raises(SchedulerError, match=words):
        settings_.ask(tmp_path / "slurm.conf")


# --- the checks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "copy", "level"),
    [
        ("a", None, None),
        ("a", "a", None),
        ("a", "b", "warning"),
        (None, "a", "ok"),
        (None, None, "error"),
    ],
)
def test_which_slurm_conf_a_node_uses(tmp_path, monkeypatch, own, copy, level):
    """Its own needs no word; a copy is named; two that differ, or none, are reported."""
    paths = {"DEFAULT_SLURM_CONF": own, "CONFIGLESS_SLURM_CONF": copy}
    for name, text in paths.items():
        monkeypatch.setattr(conf_file, name, tmp_path / name)
        if text is not None:
            (tmp_path / name).write_text(text)
    monkeypatch.setattr(conf_file, "SPOOLED_SLURM_CONF", tmp_path / "conf-cache" / "slurm.conf")
    used = conf_file.on_this_node() or conf_file.DEFAULT_SLURM_CONF
    found = levels(settings_checks.check_slurm_conf(used))
    assert found == ({} if level is None else {"slurm.conf": level})


@pytest.mark.parametrize(
    ("apart_s", "level"), [(0, "ok"), (29, "ok"), (-31, "warning"), (301, "error"), (-301, "error")]
)
def test_clocks(apart_s, level):
    """A difference of half a minute is a warning; at five minutes munge rejects messages."""
    now = datetime.now().replace(microsecond=0)
    settings = settings_.SlurmSettings({}, now + timedelta(seconds=apart_s))
    assert levels(settings_checks.check_clock(settings, now.timestamp())) == {"clock": level}


@pytest.mark.parametrize(
    ("flags", "level"),
    [
        ("Alloc", "ok"),
        ("Contain", "ok"),
        ("X11", "ok"),
        ("(null)", "warning"),
        ("Alloc,NoHold", "ok"),
        ("Alloc,Serial", "warning"),
        ("Contain,RunInJob", "warning"),
    ],
)
def test_prolog_flags(flags, level):
    """Prolog should run at the allocation, not one at a time, and outside of the job."""
    assert levels(settings_checks.check_prolog_flags(settings_of(PrologFlags=flags))) == {"PrologFlags": level}


@pytest.mark.parametrize(
    ("flags", "limit_s", "level"),
    [("Alloc", 10, "ok"), ("Alloc,NoHold", 32, "warning"), ("Alloc,NoHold", 33, "ok"), ("(null)", 32, "warning")],
)
def test_srun_has_to_wait_as_long_as_prolog_may_take(flags, limit_s, level):
    """If a step waits for Prolog in slurmd, srun gives it up after BatchStartTimeout and MessageTimeout."""
    settings = settings_of(PrologFlags=flags, BatchStartTimeout=f"{limit_s} sec")
    assert levels(settings_checks.check_timeouts(settings, options_of()))["BatchStartTimeout"] == level


@pytest.mark.parametrize(
    ("limit_s", "acquire_s", "level"), [(65534, 30, "ok"), (33, 30, "ok"), (32, 30, "error"), (32, 5, "ok")]
)
def test_slurm_must_not_kill_prolog(limit_s, acquire_s, level):
    """A PrologEpilogTimeout below --acquire-timeout and its grace would kill Prolog and drain the node."""
    settings, options = settings_of(PrologEpilogTimeout=limit_s), options_of(acquire_timeout_s=float(acquire_s))
    assert next(settings_checks.check_timeouts(settings, options)).level == level


@pytest.mark.parametrize(
    ("value", "option", "found"),
    [("1", "requeue", {"JobRequeue": "ok"}), ("0", "requeue", {"JobRequeue": "warning"}), ("0", "fail", {})],
)
def test_a_site_whose_jobs_are_not_requeued(value, option, found):
    options = options_of(on_unavailable=option)
    assert levels(settings_checks.check_requeue(settings_of(JobRequeue=value), options)) == found
