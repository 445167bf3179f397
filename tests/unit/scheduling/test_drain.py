"""`qrmi-slurm drain` and `resume`, and how a drained QPU is listed, against stand-ins for Slurm and QRMI."""

import json
import time

from qrmi_slurm.outages import reservations


def test_drain_and_resume(counted, slurm, run, monkeypatch, set_states):
    """Who drained it and when is kept, running jobs are counted, and only another reason changes anything."""
    set_states(counted, a="Online", b="Online")
    slurm.licenses["qpu_a"] = (3, 2)
    monkeypatch.setenv("SUDO_USER", "alice")
    assert run("drain", "a", "--reason", " new fridge ") == (0, "a: drained: new fridge (2 running jobs keep it)\n", "")
    outage = reservations.read(counted.slurm_conf).outages["qpu_a"]
    assert (outage.count, outage.by) == (3, "alice")
    assert abs(time.mktime(time.strptime(outage.since, "%Y-%m-%dT%H:%M")) - time.time()) < 120
    assert run("drain", "a", "--reason", "new fridge")[1].startswith("a: unchanged: drained: new fridge")
    assert run("drain", "a", "b", "--reason", "later")[1].splitlines()[1] == "b: drained: later"
    assert run("resume", "a", "b", "a")[:2] == (0, "a: in service\nb: in service\n")
    assert run("resume", "a")[:2] == (0, "a: unchanged: in service\n")


def test_a_reason_is_required(counted, run, set_states):
    """Without one, or with an empty one, nothing is done."""
    set_states(counted, a="Online")
    assert run("drain", "a")[0] == 2
    status, _, err = run("drain", "a", "--reason", "  ")
    assert status == 2
    assert "the reason is empty" in err


def test_an_unknown_name_is_refused(counted, slurm, run, set_states):
    """Nothing is done; a similar name is suggested, and up to twenty known ones are listed."""
    set_states(counted, **{f"ibm_{number:02}": "Online" for number in range(22)})
    status, out, err = run("resume", "ibm_00", "imb_01")
    assert (status, out, slurm.changes) == (2, "", [])
    assert "unknown QPU: imb_01 (did you mean ibm_01?); known QPUs: ibm_00, ibm_01, " in err
    assert "ibm_19, ... and 2 more" in err


def test_a_qpu_without_a_license_is_refused(counted, slurm, run, set_states):
    """Whether the config gives it none or Slurm does not have it; the hint says what to add where."""
    set_states(counted, a="Online", lost="Online", none="Online")
    counted.resources[2]["slurm"] = {"license": None}
    counted.write_config(json.dumps({"resources": counted.resources}))
    status, out, err = run("drain", "a", "none", "--reason", "x")
    assert (status, out) == (2, "")
    assert 'none has "license": null, so its jobs have no license to wait for' in err
    status, out, err = run("drain", "a", "lost", "--reason", "x")
    assert (status, out) == (2, "")
    assert "Slurm has no license qpu_lost, so jobs of lost have nothing to wait for" in err
    assert "then run: scontrol reconfigure" in err
    assert slurm.changes == []


def test_qpus_that_share_a_license_are_switched_together(counted, slurm, run, set_states):
    """They have to be named all, or --yes given."""
    set_states(counted, a="Online", c="Online")
    counted.resources[1]["slurm"] = {"license": "qpu_a"}
    counted.write_config(json.dumps({"resources": counted.resources}))
    status, _, err = run("drain", "c", "--reason", "x")
    assert (status, slurm.changes) == (2, [])
    assert "c and a share the license qpu_a: they go out of service together\nhint: name them all, or add --yes" in err
    assert run("drain", "c", "--yes", "--reason", "x")[:2] == (0, "a, c: drained: x\n")
    assert "a and c share the license qpu_a: they come back together" in run("resume", "a")[2]
    assert run("resume", "a", "c")[:2] == (0, "a, c: in service\n")


def test_resume_while_the_service_is_down(counted, slurm, run, sense, set_states):
    """The QPU stays out of service for the sensor's reason, and no job starts in between; old news does not count."""
    set_states(counted, a="Online")
    run("drain", "a", "--reason", "x")
    set_states(counted, a="Paused")
    sense()
    slurm.changes.clear()
    assert run("resume", "a")[1] == "a: offline: paused\n"
    assert not [change for change in slurm.changes if change.startswith("delete")]
    run("drain", "a", "--reason", "x")
    document = json.loads((counted.state_dir / "sensor.json").read_text())
    (counted.state_dir / "sensor.json").write_text(json.dumps({**document, "ran_s": time.time() - 700}))
    assert run("resume", "a")[1] == "a: in service\n"


def test_what_a_failed_start_took_out_can_be_resumed_and_drained(counted, slurm, run, set_states):
    """An admin knows better than a job; an offline QPU that the sensor has seen stays out, as after a drain."""
    set_states(counted, a="Online")
    text = "offline: no-answer since 2026-11-23T06:30, says job 12 on n1"
    by_job = {"Licenses": "qpu_a:1", "Comment": text, "EndTime": "now+5minutes"}
    slurm.reservations["qpu_out_qpu_a"] = dict(by_job)
    assert run("resume", "a")[1] == "a: in service\n"
    slurm.reservations["qpu_out_qpu_a"] = dict(by_job)
    assert run("drain", "a", "--reason", "x")[1] == "a: drained: x\n"


def test_json_of_drain(counted, slurm, run, set_states):
    """Programs get each license with its QPUs, and why Slurm refused."""
    set_states(counted, a="Online", b="Online")
    slurm.full = {"qpu_b"}
    status, out, _ = run("drain", "a", "b", "--json", "--reason", "x")
    assert status == 1
    first, second = json.loads(out)["licenses"]
    assert (first["qpus"], first["notice"], first["fault"]) == (["a"], "drained: x", "")
    assert (second["qpus"], second["notice"]) == (["b"], "")
    assert "Invalid license specification" in second["fault"]


def test_a_drained_qpu_in_the_list(counted, slurm, run, monkeypatch, set_states):
    """Its state is drained, whatever the service says; users read the admin's words but not the service's."""
    set_states(counted, a="Paused", b="Online")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    run("qpus")
    run("drain", "b", "--reason", "new fridge")
    rows = {line.split()[0]: line for line in run("qpus")[1].splitlines()}
    assert rows["b"].split()[2:4] == ["no", "drained"]
    assert rows["b"].endswith("  drained: new fridge; maintenance until noon"), "root reads the service's words as well"
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    public = run("qpus")[1]
    assert "drained: new fridge" in public
    assert "noon" not in public
    found = {qpu["name"]: qpu for qpu in json.loads(run("qpus", "--json")[1])["qpus"]}
    assert (found["b"]["state"], found["b"]["is_usable"], found["b"]["notice"]) == (
        "drained",
        False,
        "drained: new fridge",
    )
    monkeypatch.setattr("os.geteuid", lambda: 0)
    slurm.is_up = False
    status, _, err = run("qpus")
    assert (status, err) == (
        0,
        "warning: cannot tell which QPUs are drained: scontrol failed: Unable to contact slurm controller\n",
    )
