"""`qrmi-slurm sensor`, against stand-ins for Slurm and QRMI."""

import json
import time

import pytest

from qrmi_slurm.calls import installed, probe
from qrmi_slurm.errors import BackendError
from qrmi_slurm.scheduling import memory, moves, qpus, sensor, state_files


def test_a_paused_qpu_goes_out_and_comes_back_at_once(counted, slurm, sense, set_states):
    """The list for users says both."""
    set_states(counted, a="Paused", b="Online")
    assert sense()["changes"] == [{"license": "qpu_a", "qpus": ["a"], "notice": "offline: paused"}]
    assert set(slurm.reservations) == {"qpu_out_qpu_a"}
    listing = {qpu.name: qpu.shown for qpu in qpus.read_published(counted.state_dir).qpus}
    assert (listing["a"].notice, listing["a"].is_usable, listing["b"].notice) == ("offline: paused", False, "")
    assert sense()["changes"] == []
    set_states(counted, a="Online", b="Online")
    assert sense()["changes"] == [{"license": "qpu_a", "qpus": ["a"], "notice": ""}]
    assert not slurm.reservations


def test_two_missing_answers_in_a_row_take_a_qpu_out(counted, sense, set_states):
    """One alone changes nothing, nor do two with an answer or ten minutes between them."""
    answers = iter(["", "yes", "", "late", "", ""])
    notices = []
    for answer in answers:
        if answer == "late":
            path = counted.state_dir / "sensor.json"
            document = json.loads(path.read_text())
            path.write_text(json.dumps({**document, "ran_s": document["ran_s"] - 601}))
            continue
        set_states(counted, a="Online" if answer else None)
        notices.append([change["notice"] for change in sense()["changes"]])
    assert notices == [[], [], [], [], ["offline: unreachable"]]


def test_a_qpu_that_there_was_no_time_to_ask_about_stays_as_it_is(counted, sense, set_states, monkeypatch):
    """In service or out of it; and the answers that it did not give before still count."""
    monkeypatch.setattr(probe, "_AT_ONCE", 1)
    for state, timeout_s, out in (
        (None, 20, {}),
        ("Online", 0.4, {}),
        (None, 20, {"a": "offline: unreachable"}),
        ("Online", 0.4, {"a": "offline: unreachable"}),
    ):
        set_states(counted, x="Online")
        if timeout_s < 20:
            counted.add("y", status="hang", slurm={"license": None})
        counted.add("a", status=state or "exit")
        assert sense("--timeout", str(timeout_s))["out"] == out, (state, timeout_s)


def test_a_qpu_whose_users_bring_the_credentials_is_left_alone(counted, slurm, sense, set_states):
    """The sensor never takes it out, and does not put it back if somebody else took it out."""
    own = {"name": "a", "type": "iqm-server", "environment": {}}
    set_states(counted, own)
    assert sense()["changes"] == []
    slurm.reservations["qpu_out_qpu_a"] = {
        "Licenses": "qpu_a:1",
        "Comment": "offline: paused",
        "EndTime": "now+50minutes",
    }
    assert sense()["changes"] == []
    assert set(slurm.reservations) == {"qpu_out_qpu_a"}


def test_a_qpu_that_no_license_counts_is_left_alone(counted, sense, set_states):
    """Without a license, or with one that Slurm lacks, it is no fault, and Slurm is not asked about it."""
    set_states(counted, a="Offline", lost="Offline", none="Offline")
    counted.resources[2]["slurm"] = {"license": None}
    counted.write_config(json.dumps({"resources": counted.resources}))
    said = sense()
    assert (said["out"], said["uncounted"], said["faults"]) == ({"a": "offline"}, ["lost"], [])


def test_a_shared_license_is_out_only_with_all_its_qpus(counted, sense, set_states):
    """Jobs have something to wait for as long as one of the QPUs is up."""
    for state, out in (("Online", {}), (None, {}), ("Paused", {"a": "offline", "c": "offline"})):
        set_states(counted, a="Offline", c=state)
        counted.resources[1]["slurm"] = {"license": "qpu_a"}
        counted.write_config(json.dumps({"resources": counted.resources}))
        assert sense()["out"] == out


def test_a_drained_qpu_stays_drained(counted, slurm, run, sense, set_states):
    """Whatever QRMI answers; only a new count in slurm.conf is taken over."""
    set_states(counted, a="Online")
    assert run("drain", "a", "--reason", "x")[0] == 0
    slurm.licenses["qpu_a"] = (2, 0)
    for state in ("Online", "Offline"):
        set_states(counted, a=state)
        assert sense()["out"] == {"a": "drained: x"}
    assert slurm.reservations["qpu_out_qpu_a"]["Licenses"] == "qpu_a:2"


def test_without_qrmi_nothing_is_changed(counted, slurm, run, monkeypatch, set_states):
    """Exit status 2 and one sentence."""
    set_states(counted, a="Offline")

    def missing():
        raise BackendError("QRMI cannot be imported", "pip install qrmi")

    monkeypatch.setattr(installed, "known_members", missing)
    status, out, err = run("sensor")
    assert (status, out, slurm.changes) == (2, "", [])
    assert err.startswith("error: QRMI cannot be imported")


def test_without_slurm_users_still_have_a_list(counted, slurm, run, set_states):
    """Exit status 2 with the reason; the next run starts from where the last complete one ended."""
    set_states(counted, a="Offline")
    slurm.is_up = False
    status, out, err = run("sensor")
    assert (status, out) == (2, "")
    assert "Unable to contact slurm controller" in err
    assert [qpu.state for qpu in qpus.read_published(counted.state_dir).qpus] == ["offline"]
    assert memory.last_run(counted.state_dir) is None


def test_one_refusal_does_not_stop_the_others(counted, slurm, run, set_states):
    """The other QPU goes out of service, the exit status is 1, and standard error says what Slurm refused."""
    set_states(counted, a="Offline", b="Offline")
    slurm.full = {"qpu_a"}
    status, out, err = run("sensor")
    assert (status, out) == (1, "b: offline\n")
    assert err == (
        "error: license qpu_a: scontrol failed: Error creating the reservation: Invalid license specification\n"
    )


def test_waiting_jobs_are_moved(counted, slurm, run, set_states):
    """The plan is carried out and reported; a job that is gone meanwhile is a fault of its own."""
    set_states(counted, a="Offline", b="Online")
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


def test_a_run_that_is_out_of_time_leaves_the_rest_to_the_next(counted, slurm, sense, monkeypatch, set_states):
    """It says so once and changes nothing more."""
    set_states(counted, a="Offline", b="Offline")
    monkeypatch.setattr(sensor, "_SLURM_LIMIT_S", -1.0)
    assert sense(status=1)["faults"] == ["Slurm's part took longer than 60 s; the next run continues"]
    assert slurm.changes == []


def test_jobs_that_cannot_start_do_not_keep_a_run_busy(counted, slurm, sense, monkeypatch, set_states):
    """A plan in which nobody moves ends in time as well: one user may have thousands of jobs that all differ."""
    set_states(counted, a="Online", b="Online")
    slurm.licenses["qpu_b"] = (0, 0)
    slurm.jobs = [
        (str(number), 9, "Licenses", f"qpu_a,m{number}", "qrmi-slurm:any=qpu_a|qpu_b") for number in range(1, 2000)
    ]
    looked_at = []
    real = moves._next_to_take

    def slowly(job, free):
        looked_at.append(job.job)
        time.sleep(0.01)
        return real(job, free)

    monkeypatch.setattr(moves, "_next_to_take", slowly)
    monkeypatch.setattr(sensor, "_SLURM_LIMIT_S", 1.0)
    assert sense(status=1)["faults"] == ["Slurm's part took longer than 60 s; the next run continues"]
    assert 0 < len(looked_at) <= 100


def test_a_second_run_at_the_same_time_does_nothing(counted, slurm, sense, set_states):
    """And that is no fault."""
    set_states(counted, a="Offline")
    counted.state_dir.mkdir()
    with state_files.locked(counted.state_dir, "sensor.lock", 0.0) as is_held:
        assert is_held
        assert sense()["is_skipped"]
    assert slurm.changes == []
    assert sense()["out"] == {"a": "offline"}


def test_an_existing_catalogue_is_kept_current(counted, sense, run, set_states):
    """It has each notice of the sensor and of the admin's switch; a missing one is not created."""
    path = counted.path / "qrmi_catalogue.lua"
    set_states(counted, a="Paused", b="Online")
    sense()
    assert not path.exists()
    path.write_text("")
    sense()
    assert '"offline: paused"' in path.read_text()
    run("drain", "b", "--reason", "new key")
    assert '"drained: new key"' in path.read_text()
    run("resume", "b")
    assert "new key" not in path.read_text()


BY_JOB = "offline: no-answer since 2026-11-23T06:30, says job 12 on n1"


def told(slurm, age_s=60.0):
    """Let a failed start have taken qpu_a out of service."""
    slurm.now_s = time.time() - age_s
    slurm.reservations["qpu_out_qpu_a"] = {"Licenses": "qpu_a:1", "Comment": BY_JOB, "EndTime": "now+5minutes"}


def test_what_a_failed_start_took_out_comes_back_when_the_qpu_is_online(counted, slurm, sense, set_states):
    set_states(counted, a="Online")
    told(slurm)
    assert sense()["changes"] == [{"license": "qpu_a", "qpus": ["a"], "notice": ""}]
    assert not slurm.reservations


def test_an_answer_that_may_be_older_than_the_failure_does_not_bring_it_back(counted, slurm, sense, set_states):
    set_states(counted, a="Online")
    told(slurm, age_s=-1.0)
    assert sense()["out"] == {"a": "offline: no-answer"}
    assert slurm.changes == []


def test_what_a_failed_start_took_out_stays_out_until_the_qpu_answers(counted, slurm, sense, set_states):
    """Also at the first missing answer, which takes nothing out by itself; from then on it is the sensor's."""
    set_states(counted, a=None)
    told(slurm)
    assert sense()["out"] == {"a": "offline: no-answer"}
    assert slurm.changes == ["update ReservationName=qpu_out_qpu_a EndTime=now+60minutes"]
    assert sense()["out"] == {"a": "offline: unreachable"}
    set_states(counted, a="Paused")
    assert sense()["out"] == {"a": "offline: paused"}
    set_states(counted, a="Online")
    assert sense()["out"] == {}


# --- a capacity that follows the service -----------------------------------------------------------------------


@pytest.fixture
def following(counted, slurm):
    """Set what the service of `a` reports, of which Slurm has four licenses, some of them in use."""

    def set_slots(slots, used=0):
        slurm.licenses["qpu_a"] = (4, used)
        counted.resources.clear()
        told = {} if slots is None else {"slots": slots}
        counted.add("a", status="Online", slurm={"capacity": "auto"}, **told)
        counted.add("b", status="Online")

    return set_slots


def kept_back(slurm):
    """Return how many of each license are kept from jobs, by the reservation's name."""
    return {name: told["Licenses"] for name, told in slurm.reservations.items()}


@pytest.mark.parametrize(
    ("slots", "used", "capacity"),
    [
        ("[3, 3]", 0, 3),
        ("[3, 3]", 2, 3),  # an IBM Quantum System's lanes, whoever uses them
        ("[1, 3]", 2, 3),  # a service that counts those that are free
        ("[0, 3]", 1, 1),  # the others are somebody else's
        ("[0, 3]", 0, 0),
        ("[2]", 1, 3),
        ("[9, 9]", 0, 4),
        ("[1000000, null]", 0, 4),
    ],
)
def test_the_number_of_licenses_follows_the_service(following, slurm, sense, counted, slots, used, capacity):
    """What the service does not have is kept from jobs; users see what can be had."""
    following(slots, used)
    said = sense()
    assert kept_back(slurm) == ({"qpu_less_qpu_a": f"qpu_a:{4 - capacity}"} if capacity < 4 else {})
    assert said["capacities"] == ([{"license": "qpu_a", "capacity": capacity}] if capacity < 4 else [])
    [listed, other] = qpus.read_published(counted.state_dir).qpus
    assert (listed.capacity, listed.used, listed.free) == (capacity, used, max(0, capacity - used))
    assert (other.capacity, other.used, other.free) == (1, 0, 1)
    assert sense()["capacities"] == []


@pytest.mark.parametrize(
    "slots", ["[-1, 3]", "[4294967295]", "[NaN]", '["3"]', "[3.0, 3]", "[true]", "[null, 3]", "[3, -3]"]
)
def test_nonsense_leaves_the_number_as_it_is(following, slurm, sense, slots):
    """And says so."""
    following("[3, 3]")
    sense()
    before = kept_back(slurm)
    following(slots)
    [fault] = sense(status=1)["faults"]
    assert fault.startswith("license qpu_a: the service of a reports nonsense: ")
    assert fault.endswith(" slots; it stays as it is")
    assert kept_back(slurm) == before


def test_a_service_that_does_not_tell_its_capacity(following, slurm, sense):
    following(None)
    assert sense(status=1)["faults"] == [
        "license qpu_a: the service of a does not tell how many slots it has; it stays as it is"
    ]
    assert not slurm.reservations


def test_a_qpu_that_is_offline_keeps_its_number(following, slurm, sense, counted, set_states):
    """It is out of service meanwhile."""
    following("[3, 3]")
    sense()
    set_states(counted, a="Paused", b="Online")
    counted.resources[0]["slurm"] = {"capacity": "auto"}
    counted.write_config(json.dumps({"resources": counted.resources}))
    slurm.full.clear()
    sense()
    assert kept_back(slurm)["qpu_less_qpu_a"] == "qpu_a:1"


def test_a_capacity_that_no_longer_follows_is_given_back(following, slurm, sense, counted, set_states):
    following("[3, 3]")
    sense()
    set_states(counted, a="Online", b="Online")
    sense()
    assert not slurm.reservations


def test_the_license_of_slots_follows_where_there_is_one(following, slurm, sense, counted):
    counted.configure("--qpu-slots-license:a=lanes")
    slurm.licenses["lanes"] = (8, 0)
    following("[5, 5]")
    sense()
    assert kept_back(slurm) == {"qpu_less_lanes": "lanes:3"}


def test_another_number_is_reserved_before_the_former_is_let_go(following, slurm, sense):
    """So that no job starts in between, even where both together are more than there are."""
    names = []
    for slots in ("[1, 1]", "[2, 2]", "[3, 3]", "[0, 0]"):
        following(slots)
        count = len(slurm.changes)
        sense()
        names.append(list(kept_back(slurm).items()))
        words = [change.split()[0] for change in slurm.changes[count:]]
        assert words in (["create"], ["create", "delete"], ["create", "create", "update", "delete"]), words
    assert names == [
        [("qpu_less_qpu_a", "qpu_a:3")],
        [("qpu_fewer_qpu_a", "qpu_a:2")],
        [("qpu_less_qpu_a", "qpu_a:1")],
        [("qpu_fewer_qpu_a", "qpu_a:4")],
    ]


def test_a_run_that_ended_in_between_is_tidied_up(following, slurm, sense):
    following("[3, 3]")
    sense()
    slurm.reservations["qpu_fewer_qpu_a"] = {**slurm.reservations["qpu_less_qpu_a"], "Licenses": "qpu_a:2"}
    sense()
    assert kept_back(slurm) == {"qpu_less_qpu_a": "qpu_a:1"}
    slurm.reservations["qpu_fewer_qpu_a"] = {**slurm.reservations["qpu_less_qpu_a"], "Licenses": "qpu_a:2"}
    following("[1, 1]")
    sense()
    assert list(kept_back(slurm).values()) == ["qpu_a:3"]


def test_it_is_renewed_before_it_ends(following, slurm, sense):
    """Every run does what the last one did; after half a day it is extended."""
    following("[3, 3]")
    sense()
    count = len(slurm.changes)
    sense()
    assert len(slurm.changes) == count
    slurm.now_s -= 13 * 3600
    sense()
    assert slurm.changes[count:] == ["update ReservationName=qpu_less_qpu_a EndTime=now+1440minutes"]
