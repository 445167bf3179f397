"""A node that is taken from a job that goes on: its QPUs are the other nodes'."""

import os

import pytest

from qrmi_slurm.hooks import epilog, prolog
from qrmi_slurm.state import exports

TAKEN = {"SLURM_JOB_NODELIST": "n1", "SLURM_JOB_NUM_NODES": "2"}
LEFT = {"SLURM_JOB_NODELIST": "n2", "SLURM_JOB_NUM_NODES": "1", "SLURMD_NODENAME": "n2"}


@pytest.fixture
def job(site, syslog_lines):
    """A job on n1 and n2 that holds a QPU."""
    site.add("a")
    assert prolog.prolog(site.hook_environment("a", SLURM_JOB_NUM_NODES="2")) == 0
    return site


def end(site, **changes):
    assert epilog.epilog(site.hook_environment("a", **changes)) == 0


def test_the_first_node_leaves_the_qpus_and_the_new_first_node_releases_them(job):
    end(job, **TAKEN)
    assert job.calls() == ["acquire a "]
    assert exports.read(job.folder().exports_path, os.getuid(), 12).is_ready
    assert job.folder().read().has_left
    end(job, **LEFT)
    assert job.calls() == ["acquire a ", "release a session-a"]
    assert not job.folder().exists()


def test_another_node_that_is_taken_changes_nothing(job):
    end(job, SLURM_JOB_NODELIST="n2", SLURM_JOB_NUM_NODES="2", SLURMD_NODENAME="n2")
    assert not job.folder().read().has_left
    end(job, SLURM_JOB_NODELIST="n1", SLURM_JOB_NUM_NODES="1")
    assert job.calls() == ["acquire a ", "release a session-a"]


def test_one_node_after_the_other_may_be_taken(job):
    end(job, SLURM_JOB_NODELIST="n1", SLURM_JOB_NUM_NODES="3")
    end(job, SLURM_JOB_NODELIST="n2", SLURM_JOB_NUM_NODES="2", SLURMD_NODENAME="n2")
    assert job.calls() == ["acquire a "]
    end(job, SLURM_JOB_NODELIST="n3", SLURM_JOB_NUM_NODES="1", SLURMD_NODENAME="n3")
    assert job.calls() == ["acquire a ", "release a session-a"]
