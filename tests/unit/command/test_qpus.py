"""`qrmi-slurm qpus`: what root is told and publishes, and what everyone else reads."""

import json
import os
import re
import stat
import time

from doubles import SECRET

from qrmi_slurm.calls import backend, child


def test_root_asks_and_publishes(run, at_site, as_root):
    """Root's run asks QRMI for each resource, opens no session, and publishes the list for users."""
    at_site.add("free").add("down", status="Paused").add("lost", status="unsupported")
    at_site.add("own", type="iqm-server", secret=SECRET).resources[-1]["environment"].clear()
    at_site.write_config(json.dumps({"resources": at_site.resources}))
    before = os.umask(0o077)  # as systemd may set it
    try:
        status, out, err = run("qpus")
    finally:
        os.umask(before)
    assert (status, err) == (0, "")
    assert at_site.calls() == []
    rows = {line.split()[0]: line.split() for line in out.splitlines()[1:]}
    assert rows["free"][2:6] == ["yes", "online", "-", "-"]
    assert rows["down"][2:4] == ["no", "paused"]
    assert " ".join(rows["down"][6:]) == "maintenance until noon"
    assert rows["lost"][2:4] == ["no", "offline"], "is_accessible answers where status does not"
    assert rows["own"][2:4] == ["?", "users-own"]
    path = at_site.state_dir / "qpus.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert stat.S_IMODE(at_site.state_dir.stat().st_mode) == 0o711
    assert [qpu["name"] for qpu in json.loads(path.read_text())["qpus"]] == ["free", "down", "lost", "own"]
    assert SECRET not in out + path.read_text()
    assert "noon" not in path.read_text(), "the service's own words are for root only"


def test_a_qpu_that_does_not_answer(run, at_site, as_root, monkeypatch):
    """A service that hangs is unreachable after the timeout, and the other QPUs are listed."""
    at_site.add("free")
    real = child._availability
    monkeypatch.setattr(child, "_availability", lambda r: time.sleep(20) if r._name == "stuck" else real(r))
    at_site.add("stuck")
    began_s = time.monotonic()
    status, out, _ = run("qpus", "--timeout", "0.5", "--json")
    assert time.monotonic() - began_s < 5
    assert status == 0
    found = {qpu["name"]: qpu for qpu in json.loads(out)["qpus"]}
    assert (found["free"]["is_usable"], found["stuck"]["is_usable"]) == (True, False)
    assert found["stuck"]["state"] == "unreachable"
    assert found["stuck"]["reason"] == "no answer within 0.5 s"


def test_users_read_the_published_list(run, at_site, as_root, monkeypatch):
    """A user other than root sees the list of root's last run with its age; no service is asked."""
    at_site.add("free")
    run("qpus")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(backend, "run", None)
    status, out, _ = run("qpus")
    assert status == 0
    assert out.splitlines()[1].split() == ["free", "ibm-quantum-compute-service", "yes", "online", "-", "0"]
    assert re.fullmatch(r"as of \d+s ago", out.splitlines()[-1])
    assert json.loads(run("qpus", "--json")[1])["qpus"][0]["job_ids"] is None
    assert json.loads(run("qpus", "--json", "other")[1])["qpus"] == []


def test_root_is_warned_if_the_list_cannot_be_published(run, at_site, as_root):
    """If the list for users cannot be written, root still sees the QPUs."""
    at_site.add("free")
    at_site.state_dir.write_text("not a folder")
    status, out, err = run("qpus", "--state-dir", at_site.state_dir / "x")
    assert (status, out.splitlines()[1].split()[0]) == (0, "free")
    assert err.startswith("warning: users do not see this list: cannot write ")
