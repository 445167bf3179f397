"""`qrmi-slurm emulator`."""

import sys


def test_the_emulator_without_its_extra(run, monkeypatch):
    """Where the extra is not installed, the command says which line installs it, and exits 2."""
    for name in ["werkzeug", *sys.modules]:
        if name.partition(".")[0] == "werkzeug":
            monkeypatch.setitem(sys.modules, name, None)
        elif name.startswith("qrmi_slurm.emulator"):
            monkeypatch.delitem(sys.modules, name)
    status, out, err = run("emulator")
    assert (status, out) == (2, "")
    assert "pip install 'qrmi-slurm[emulator]'" in err


def test_the_emulator_reads_its_own_options(run):
    """What follows `emulator` is handed on as it stands, and what cannot be used exits 2 with what to write."""
    status, _, err = run("emulator", "--backend", "=FakeX")
    assert status == 2
    assert "NAME=DEVICE" in err
