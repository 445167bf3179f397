"""The doctor as a whole; a real cluster is examined in tests/slurm/test_doctor.py."""

import socket

from checkups import levels

from qrmi_slurm.checks import doctor
from qrmi_slurm.checks.installation import Installation
from qrmi_slurm.errors import SchedulerError
from qrmi_slurm.slurm import commands, plugstack


def test_without_slurmctld_the_rest_is_checked(tmp_path, monkeypatch):
    """If slurmctld does not answer, that is an error, and everything else is still checked."""

    def fail(*_):
        raise SchedulerError("no controller")

    monkeypatch.setattr(commands, "run", fail)
    (tmp_path / "slurm.conf").write_text("")
    found = levels(doctor.examine(doctor.Patient(tmp_path / "slurm.conf", Installation(tmp_path))))
    assert found["Slurm"] == "error"
    assert found["hooks"] == "warning"
    assert {"plugstack", "config", "state", "space", "shared", "syslog"} <= found.keys()


def test_syslog(tmp_path):
    """A socket with a listener is ok; a stale socket, a file and no file at all are warnings."""
    path = tmp_path / "log"
    assert doctor.check_syslog(path).level == "warning"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        assert doctor.check_syslog(path).level == "ok"
    assert doctor.check_syslog(path).level == "warning"
    path.unlink()
    path.write_text("")
    assert doctor.check_syslog(path).level == "warning"


def test_includes_that_match_nothing(tmp_path):
    """Slurm does not report an include without files; those of included files are found too."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.conf").write_text("include lost/*\n")
    (tmp_path / "plugstack.conf").write_text("include d/*.conf\ninclude gone.conf # not there\n")
    found = plugstack.empty_includes(tmp_path / "plugstack.conf")
    assert found == [f"{tmp_path}/d/lost/*", f"{tmp_path}/gone.conf"]
