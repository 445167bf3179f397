"""What a broker logs about requests."""

import pytest

from qrmi_slurm.broker.refusal import Refusal
from qrmi_slurm.broker.request import Request
from qrmi_slurm.broker.request_log import RequestLog
from qrmi_slurm.log import HookLog


@pytest.mark.parametrize("last", ["refused", "failed"])
def test_refusals_and_failures_do_not_fill_the_log(syslog_lines, last):
    log = RequestLog(HookLog("broker", 12, echo=False))
    for count in range(120):
        if (count % 2 == 0) == (last == "failed"):
            log.refused(None, Request("GET", "/x?secret", ()), Refusal("no"))
        else:
            log.failed(None, "no answer")
    lines = [line for _, line in syslog_lines]
    assert len(lines) == 51
    assert "further refusals and failures are not logged" in lines[-1]
    assert not [line for line in lines if "secret" in line]


def test_surprises_do_not_fill_the_log_either(syslog_lines):
    """A job that finds a fault of ours may trigger it as often as it likes."""
    log = RequestLog(HookLog("broker", 12, echo=False))
    for _ in range(60):
        try:
            raise ValueError("ours")
        except ValueError:
            log.surprise()
    assert len(syslog_lines) == 51
