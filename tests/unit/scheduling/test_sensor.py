"""The sensor, drain and resume as they are called, against a stand-in of Slurm and one of QRMI."""

import json
import time

import pytest

from qrmi_slurm.calls import backend
from qrmi_slurm.checks import doctor
from qrmi_slurm.errors import BackendError
from qrmi_slurm.outages import reservations
from qrmi_slurm.scheduling import qpus, sensor


@pytest.fixture
def counted(site, slurm, monkeypatch):
    """Return a site whose QPUs a and b have a license each, one job at a time."""
    monkeypatch.setenv("SLURM_CONF", str(site.slurm_conf))
    slurm.licenses = {"qpu_a": (1, 0), "qpu_b": (1, 0)}
    slurm.now_s = time.time()
    return site


@pytest.fixture
def sense(run):
    """Return a function that runs the sensor and returns what it says."""

    def run_sensor(status=0):
        exit_status, out, err = run("sensor", "--json")
        assert exit_status == status, err
        return json.loads(out)

    return run_sensor


def states(site, *resources, **said):
    """Let QRMI say these of the QPUs; None, and it gives no answer."""
    site.resources.clear()
    for name, state in said.items():
        site.add(name, status=state or "exit")
    site.resources.extend(resources)
    site.write_config(json.dumps({"resources": site.resources}))


# --- the sensor -------------------------------------------------------------------------------------------------


def test_out_and_back(counted, slurm, sense):
    """What says that it is paused is out at once and back at once; the list for users says both."""
    states(counted, a="Paused", b="Online")
    assert sense()["changes"] == [{"license": "qpu_a", "qpus": ["a"], "notice": "offline: paused"}]
    assert set(slurm.reservations) == {"qpu_out_qpu_a"}
    listing = {qpu.name: qpu.shown for qpu in qpus.read_published(counted.state_dir).qpus}
    assert (listing["a"].notice, listing["a"].is_usable, listing["b"].notice) == ("offline: paused", False, "")
    assert sense()["changes"] == []
    states(counted, a="Online", b="Online")
    assert sense()["changes"] == [{"license": "qpu_a", "qpus": ["a"], "notice": ""}]
    assert not slurm.reservations


def test_answers_that_do_not_come(counted, slurm, sense, monkeypatch):
    """One alone changes nothing, two in a row do; two with a good one or ten minutes between them are no row."""
    answers = iter(["", "yes", "", "late", "", ""])
    said = []
    for answer in answers:
        if answer == "late":
            path = counted.state_dir / "sensor.json"
            memory = json.loads(path.read_text())
            path.write_text(json.dumps({**memory, "ran_s": memory["ran_s"] - 601}))
            continue
        states(counted, a="Online" if answer else None)
        said.append([change["notice"] for change in sense()["changes"]])
    assert said == [[], [], [], [], ["offline: unreachable"]]


def test_users_own_credentials_are_none_of_its_business(counted, slurm, sense):
    """A QPU that the site has no key for is never taken out; nor put back, where somebody else took it out."""
    own = {"name": "a", "type": "iqm-server", "environment": {}}
    states(counted, own)
    assert sense()["changes"] == []
    slurm.reservations["qpu_out_qpu_a"] = {
        "Licenses": "qpu_a:1",
        "Comment": "offline: paused",
        "EndTime": "now+50minutes",
    }
    assert sense()["changes"] == []
    assert set(slurm.reservations) == {"qpu_out_qpu_a"}


def test_what_is_not_counted_is_left_alone(counted, slurm, sense):
    """A QPU without a license, or with one that Slurm lacks, costs no question to Slurm, and is no fault."""
    states(counted, a="Offline", lost="Offline", none="Offline")
    counted.resources[2]["slurm"] = {"license": None}
    counted.write_config(json.dumps({"resources": counted.resources}))
    said = sense()
    assert (said["out"], said["uncounted"], said["faults"]) == ({"a": "offline"}, ["lost"], [])


def test_a_shared_license_is_out_only_with_all_its_qpus(counted, slurm, sense):
    """Jobs that share one have something to wait for as long as one QPU is up."""
    for said, out in (("Online", {}), (None, {}), ("Paused", {"a": "offline", "c": "offline"})):
        states(counted, a="Offline", c=said)
        counted.resources[1]["slurm"] = {"license": "qpu_a"}
        counted.write_config(json.dumps({"resources": counted.resources}))
        assert sense()["out"] == out


def test_what_is_drained_stays_so(counted, slurm, run, sense):
    """Neither a good answer nor a bad one changes what an admin said; another number of licenses is followed."""
    states(counted, a="Online")
    assert run("drain", "a", "--reason", "x")[0] == 0
    slurm.licenses["qpu_a"] = (2, 0)
    for state in ("Online", "Offline"):
        states(counted, a=state)
        assert sense()["out"] == {"a": "drained: x"}
    assert slurm.reservations["qpu_out_qpu_a"]["Licenses"] == "qpu_a:2"


def test_without_qrmi(counted, slurm, run, monkeypatch):
    """Exit status 2, one sentence, and nothing is changed in Slurm."""
    states(counted, a="Offline")

    def missing():
        raise BackendError("QRMI cannot be imported", "pip install qrmi")

    monkeypatch.setattr(backend, "known_members", missing)
    status, out, err = run("sensor")
    assert (status, out, slurm.changes) == (2, "", [])
    assert err.startswith("error: QRMI cannot be imported")


def test_without_slurm(counted, slurm, run):
    """Exit status 2 and the reason; users have a list all the same, and the next run starts from what was before."""
    states(counted, a="Offline")
    slurm.is_up = False
    status, out, err = run("sensor")
    assert (status, out) == (2, "")
    assert "Unable to contact slurm controller" in err
    assert [qpu.state for qpu in qpus.read_published(counted.state_dir).qpus] == ["offline"]
    assert sensor.last_run(counted.state_dir) is None


def test_one_refusal_does_not_keep_the_others(counted, slurm, run):
    """The other QPU is taken out, the exit status is 1, and standard error says what Slurm would not do."""
    states(counted, a="Offline", b="Offline")
    slurm.full = {"qpu_a"}
    status, out, err = run("sensor")
    assert (status, out) == (1, "b: offline\n")
    assert err == (
        "error: license qpu_a: scontrol failed: Error creating the reservation: Invalid license specification\n"
    )


def test_jobs_are_moved(counted, slurm, run):
    """What the plan says is done, and told; a job that is gone meanwhile is a fault of its own."""
    states(counted, a="Offline", b="Online")
    slurm.licenses["qpu_b"] = (2, 0)
    slurm.jobs = [
        ("7", 9, "Licenses", "qpu_a", "gone qrmi-slurm:any=qpu_a|qpu_b"),
        ("8", 5, "Licenses", "qpu_a", "qrmi-slurm:any=qpu_a|qpu_b"),
        ("9", 5, "Licenses", "qpu_a", "qrmi-slurm:any=qpu_a|qpu_b"),
    ]
    status, out, err = run("sensor")
    assert (status, out) == (1, "a: offline\njob 8: moved from qpu_a to qpu_b\n")
    assert err.startswith("error: job 7: scontrol failed: Job/step already")
    assert [job[3] for job in slurm.jobs] == ["qpu_a", "qpu_b:1", "qpu_a"]


def test_slurm_that_is_slow(counted, slurm, sense, monkeypatch):
    """Past its time a run stops changing things, says so once, and leaves the rest to the next."""
    states(counted, a="Offline", b="Offline")
    monkeypatch.setattr(sensor, "_SLURM_MAY_TAKE_S", -1.0)
    said = sense(status=1)
    assert said["faults"] == [sensor._OUT_OF_TIME]
    assert slurm.changes == []


def test_two_runs_at_once(counted, slurm, sense):
    """The second does nothing at all, and that is no fault."""
    states(counted, a="Offline")
    counted.state_dir.mkdir()
    with sensor._locked(counted.state_dir, "sensor.lock", 0.0) as is_mine:
        assert is_mine
        assert sense()["is_skipped"]
    assert slurm.changes == []
    assert sense()["out"] == {"a": "offline"}


def test_the_catalogue_follows(counted, slurm, sense, run):
    """Where there is one it has each QPU's notice, by the sensor and by the admin's switch; else none is made."""
    path = counted.path / "qrmi_catalogue.lua"
    states(counted, a="Paused", b="Online")
    sense()
    assert not path.exists()
    path.write_text("")
    sense()
    assert '"offline: paused"' in path.read_text()
    run("drain", "b", "--reason", "new key")
    assert '"drained: new key"' in path.read_text()
    run("resume", "b")
    assert "new key" not in path.read_text()


@pytest.mark.parametrize("text", ["", "[]", '{"version": 2}', '{"version": 1, "ran_s": "x", "unanswered": 1}'])
def test_a_memory_that_is_none(tmp_path, text):
    """A damaged one is as good as none."""
    (tmp_path / "sensor.json").write_text(text)
    assert sensor.recall(tmp_path, time.time()) == sensor.Memory()


def test_the_doctor_sees_a_sensor_that_has_stopped():
    """Where it runs its last run is looked at; elsewhere nothing is said of it."""
    assert list(doctor.check_sensor(None, 1000.0)) == []
    (fresh,) = doctor.check_sensor(sensor.Memory(ran_s=970.0), 1000.0)
    assert (fresh.level, fresh.message) == ("ok", "ran 30 s ago")
    (stale,) = doctor.check_sensor(sensor.Memory(ran_s=0.0), 4000.0)
    assert stale.level == "warning"
    assert "has not run for 67 minutes" in stale.message


# --- drain and resume -------------------------------------------------------------------------------------------


def test_drain_and_resume(counted, slurm, run, monkeypatch):
    """Who and when is kept; running jobs are counted; the same again changes nothing; another reason does."""
    states(counted, a="Online", b="Online")
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


def test_a_reason_is_required(counted, run):
    """Without one, or with one that is none, nothing is done."""
    states(counted, a="Online")
    assert run("drain", "a")[0] == 2
    status, _, err = run("drain", "a", "--reason", "  ")
    assert status == 2
    assert "the reason is empty" in err


def test_names_that_are_not_known(counted, slurm, run):
    """Near ones are proposed, and known ones listed, twenty at the most."""
    states(counted, **{f"ibm_{number:02}": "Online" for number in range(22)})
    status, out, err = run("resume", "ibm_00", "imb_01")
    assert (status, out, slurm.changes) == (2, "", [])
    assert "not known at this site: imb_01 (did you mean ibm_01?); known are: ibm_00, ibm_01, " in err
    assert "ibm_19, ... and 2 more" in err


def test_resume_where_the_service_is_down(counted, slurm, run, sense):
    """It goes on to be out of service for the sensor, and no job begins between; old news does not count."""
    states(counted, a="Online")
    run("drain", "a", "--reason", "x")
    states(counted, a="Paused")
    sense()
    slurm.changes.clear()
    assert run("resume", "a")[1] == "a: offline: paused\n"
    assert not [change for change in slurm.changes if change.startswith("delete")]
    run("drain", "a", "--reason", "x")
    memory = json.loads((counted.state_dir / "sensor.json").read_text())
    (counted.state_dir / "sensor.json").write_text(json.dumps({**memory, "ran_s": time.time() - 700}))
    assert run("resume", "a")[1] == "a: in service\n"


def test_json_of_drain(counted, slurm, run):
    """Programs get each license with its QPUs, and why it could not be done where it could not."""
    states(counted, a="Online", b="Online")
    slurm.full = {"qpu_b"}
    status, out, _ = run("drain", "a", "b", "--json", "--reason", "x")
    assert status == 1
    first, second = json.loads(out)["licenses"]
    assert (first["qpus"], first["notice"], first["fault"]) == (["a"], "drained: x", "")
    assert (second["qpus"], second["notice"]) == (["b"], "")
    assert "Invalid license specification" in second["fault"]


# --- what users see ---------------------------------------------------------------------------------------------


def test_a_drained_qpu_in_the_list(counted, slurm, run, monkeypatch):
    """Drained is its state, whatever the service says; users read the admin's words and not the service's."""
    states(counted, a="Paused", b="Online")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    run("qpus")
    run("drain", "b", "--reason", "new fridge")
    rows = {line.split()[0]: line for line in run("qpus")[1].splitlines()}
    assert rows["b"].split()[2:4] == ["no", "drained"]
    assert rows["b"].endswith("  drained: new fridge; maintenance until noon"), "for root, the service's words as well"
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
        "warning: which QPUs are drained is not known: scontrol failed: Unable to contact slurm controller\n",
    )
