"""The environment that QRMI is called with."""

import os

import pytest

from qrmi_slurm.calls import environment
from qrmi_slurm.calls.environment import ForJob


def test_a_call_for_a_job_has_the_sites_variables_the_resources_and_the_jobs():
    made = environment.for_call("ibm-x", {"QRMI_A": "1"}, {"HTTPS_PROXY": "http://p"}, ForJob(12, 1001, 300))
    assert made == {
        "HTTPS_PROXY": "http://p",
        "ibm-x_QRMI_A": "1",
        "ibm-x_QRMI_JOB_TIMEOUT_SECONDS": "300",
        "QRMI_JOB_ID": "12",
        "QRMI_JOB_UID": "1001",
    }


def test_a_probe_runs_for_no_job_and_as_this_user():
    made = environment.for_call("a", {"QRMI_A": "1"}, {})
    assert made == {"a_QRMI_A": "1", "QRMI_JOB_ID": "0", "QRMI_JOB_UID": str(os.getuid())}


def test_the_arguments_are_left_alone():
    variables, site_env = {"QRMI_A": "1"}, {"X": "1"}
    environment.for_call("a", variables, site_env, ForJob(12, 1001, 300))
    assert (variables, site_env) == ({"QRMI_A": "1"}, {"X": "1"})


@pytest.mark.parametrize(
    ("configured", "time_limit_s", "ttl_s"),
    [
        (None, 300, 300),
        (None, 100_000, 28_800),
        ("60", 300, 60),
        ("100000", 300, 100_000),
        ("0", 300, 1),
        ("9999999999", 300, 2**31 - 1),
        ("99999999999", 300, 300),
        ("-5", 300, 300),
        ("ten", 300, 300),
        ("٣", 300, 300),
        ("", 300, 300),
    ],
)
def test_a_session_lives_as_long_as_configured_else_no_longer_than_the_job(configured, time_limit_s, ttl_s):
    assert environment.session_ttl_s(configured, time_limit_s) == ttl_s


@pytest.mark.parametrize(("time_limit_s", "longest_s"), [(1, 1), (300, 300), (28_800, 28_800), (2**31 - 1, 28_800)])
def test_a_session_may_live_as_long_as_the_job_and_the_service_allow(time_limit_s, longest_s):
    assert environment.longest_s(time_limit_s) == longest_s
