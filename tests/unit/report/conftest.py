"""Time zones, and a site with a ledger, for the tests of a report."""

import time

import pytest
from doubles import COMPUTE_SERVICE, SECRET
from ledger_lines import failed, line, write

from qrmi_slurm.secret import Secret
from qrmi_slurm.state.job_folder import JobFolder
from qrmi_slurm.state.record import Entry, Record, State


@pytest.fixture(params=["UTC", "Europe/Berlin", "America/St_Johns"])
def zone(request, monkeypatch):
    """The local time zone: without and with daylight saving time, and at half an hour from full hours."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def report(run, site, monkeypatch):
    """Return a function that runs `report` at a site with three lines and a QPU that is held, and looks for secrets."""
    monkeypatch.setenv("SLURM_CONF", str(site.slurm_conf))
    site.add("a").add("unused")
    folder = site.state_dir / "test" / ".accounting"
    folder.mkdir(parents=True)
    now_s = time.time()
    write(folder / "n1.jsonl", line(1, at_s=now_s - 7200), failed(3, at_s=now_s - 60, user="[bold]bob", account=""))
    write(folder / "n2.jsonl", line(2, at_s=now_s - 9000, user="carol", token=None, qpu="=b"))
    environment = {f"a_{key}": value for key, value in COMPUTE_SERVICE.items()}
    entry = Entry("a", "oqtopus", environment, state=State.ACQUIRED, token=Secret(f"{SECRET}-held"))
    entry = entry._replace(asked_s=now_s - 31, acquired_s=now_s - 30, since_s=now_s - 30)
    held = JobFolder(site.state_dir, "test", 4)
    held.create()
    held.write(Record("test", 4, 1001, "n1", "b", 0, now_s - 31, (entry,), user="dave", account="physics"))

    def run_report(*words):
        status, out, err = run("report", *words)
        if "acquisition" not in words or "--json" not in words:
            assert SECRET not in out
        assert SECRET not in err
        return status, out, err

    return run_report
