"""Fixtures of the command's tests: configs, a site with records, a terminal."""

import os
import sys
import time

import pytest
from doubles import COMPUTE_SERVICE, SECRET

from qrmi_slurm.command import cli
from qrmi_slurm.secret import Secret
from qrmi_slurm.slurm import jobs as jobs_
from qrmi_slurm.state.record import Entry, Record, State


@pytest.fixture
def sound(tmp_path):
    """A config without errors."""
    path = tmp_path / "qrmi_config.json"
    path.write_text('{"resources": [{"name": "EMU_FREE", "type": "pasqal-cloud", "environment": {}}]}')
    path.chmod(0o600)
    return path


@pytest.fixture
def at_site(site, slurm, monkeypatch):
    """A site whose slurm.conf the environment names."""
    monkeypatch.setenv("SLURM_CONF", str(site.slurm_conf))
    return site


@pytest.fixture
def as_root(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)


@pytest.fixture
def run_on_records(site, monkeypatch, capsys, syslog_lines):
    """Return a function that runs the command at the site while Slurm knows some jobs; no stream shows a secret."""
    monkeypatch.setenv("SLURM_CONF", str(site.slurm_conf))
    monkeypatch.setenv("SLURMD_NODENAME", "n9")

    def run_command(*words, jobs=None):
        monkeypatch.setattr(jobs_, "jobs", lambda job_ids, _slurm_conf: _answer(jobs, job_ids))
        monkeypatch.setattr(sys, "argv", ["qrmi-slurm", *words])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        streams = capsys.readouterr()
        assert SECRET not in streams.out + streams.err + repr(syslog_lines)
        return exit_.value.code or 0, streams.out, streams.err

    return run_command


def _answer(jobs, job_ids):
    return None if jobs is None else {job_id: jobs.get(job_id, jobs_.Job("GONE", 0)) for job_id in job_ids}


@pytest.fixture
def hold(site):
    """Return a function that writes the record of a job which holds a QPU."""

    def write(job_id=12, state=State.ACQUIRED, token=f"{SECRET}-a", name="a", job_ends_s=None, **changes):
        folder = site.folder(job_id)
        folder.create()
        environment = {f"{name}_{key}": value for key, value in COMPUTE_SERVICE.items()}
        environment[f"{name}_QRMI_FAKE_CALLS"] = str(site.calls_path)
        held = Entry(
            name,
            "ibm-quantum-compute-service",
            environment,
            state=state,
            token=Secret(token) if token else None,
            **{"since_s": time.time() - 90, **changes},
        )
        folder.write(Record("test", job_id, os.getuid(), "n1", "b", 0, time.time(), (held,), job_ends_s=job_ends_s))
        return folder

    return write


class Stream:
    """A stream that keeps what is written."""

    encoding = "utf-8"

    def __init__(self, is_terminal):
        self.text = ""
        self.is_terminal = is_terminal

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return self.is_terminal


@pytest.fixture
def stream():
    """Return the class of a stream that is a terminal, or is not."""
    return Stream
