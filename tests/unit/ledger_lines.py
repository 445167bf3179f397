"""Ledger lines, and the usage a report computes from them."""

import json
from datetime import datetime

from doubles import SECRET

from qrmi_slurm.report import acquisition
from qrmi_slurm.report.timespan import Timespan
from qrmi_slurm.report.usage import Usage

DAY_S = 86400.0
NOW_S = datetime(2026, 1, 31, 15, 30).timestamp()
TODAY_S = datetime(2026, 1, 31).timestamp()


def line(number=1, **changes):
    """Return the line of an acquisition that was held for an hour at noon."""
    acquired_s = changes.pop("at_s", TODAY_S + 12 * 3600)
    held_s = changes.pop("held_s", 3600.0)
    return {
        "version": 1,
        "id": f"c/{number}/0/0/1",
        "cluster": "c",
        "job_id": number,
        "array_job_id": None,
        "array_task_id": None,
        "het_job_id": None,
        "restart": 0,
        "user": "alice",
        "uid": 1001,
        "account": "physics",
        "node": "n1",
        "qpu": "a",
        "type": "oqtopus",
        "token": f"{SECRET}-token",
        "result": "released",
        "by": "epilog",
        "reason": "",
        "asked_s": acquired_s - 1,
        "acquired_s": acquired_s,
        "ended_s": acquired_s + held_s,
        "held_s": held_s,
        **changes,
    }


def failed(number, **changes):
    """Return the line of an acquisition that failed."""
    at_s = TODAY_S + 3600
    return line(
        number, **{"result": "failed", "token": None, "acquired_s": None, "ended_s": at_s, "at_s": at_s, **changes}
    )


def write(path, *lines):
    """Write a ledger file."""
    path.write_text("".join(f"{json.dumps(item)}\n" for item in lines))


def usage_of(*lines, since_s=TODAY_S, until_s=NOW_S, **capacities):
    """Return the usage of some lines."""
    found = [acquisition.from_line(json.dumps(item).encode()) for item in lines]
    return Usage(Timespan(since_s, until_s), tuple(found), capacities)
