"""The ledger: one line for each acquisition, however it ended, and never in the way of a release."""

import json
import os
import time
import types

import pytest
from doubles import COMPUTE_SERVICE, SECRET

from qrmi_slurm.errors import RecordError
from qrmi_slurm.hooks import acquire, recover, release
from qrmi_slurm.report import ledgers
from qrmi_slurm.report.timespan import Timespan
from qrmi_slurm.secret import Secret
from qrmi_slurm.slurm.jobs import Job
from qrmi_slurm.state import ledger
from qrmi_slurm.state.inventory import Item
from qrmi_slurm.state.record import Ended, Entry, Record, State

ALWAYS = Timespan(0, 4e9)


@pytest.fixture(autouse=True)
def n1(monkeypatch):
    monkeypatch.setenv("SLURMD_NODENAME", "n1")


def lines_of(site):
    return [
        json.loads(line)
        for path in sorted((site.state_dir / "test" / ".accounting").glob("*"))
        for line in path.read_text().splitlines()
    ]


def prolog(site, selection, **changes):
    """Acquire as Prolog does, for a job of alice's in physics."""
    told = {"SLURM_JOB_USER": "alice", "SLURM_JOB_ACCOUNT": "physics", **changes}
    folder = site.folder()
    folder.create()
    with folder.locked(1):
        return acquire.acquire(site.job(selection, **told), site.hook_run("prolog"))


def epilog(site, **options):
    folder = site.folder()
    with folder.locked(1):
        return release.release(folder.read(), site.hook_run("epilog"), **options)


def test_a_job_from_prolog_to_epilog_leaves_a_line(site, syslog_lines):
    site.add("a")
    before_s = time.time()
    prolog(site, "a", SLURM_HET_JOB_ID="11")
    (site.folder().path / "array").write_text("10_2\n")
    assert lines_of(site) == []
    epilog(site)
    [line] = lines_of(site)
    token = line.pop("token")
    asked_s, acquired_s, ended_s = (line.pop(name) for name in ("asked_s", "acquired_s", "ended_s"))
    assert token
    assert before_s - 0.01 <= asked_s <= acquired_s <= ended_s <= time.time() + 0.01
    assert line.pop("held_s") == pytest.approx(ended_s - acquired_s, abs=0.002)
    assert line.pop("id") == f"test/12/0/0/{round(asked_s * 1000)}"
    assert line == {
        "version": 1,
        "cluster": "test",
        "job_id": 12,
        "array_job_id": 10,
        "array_task_id": 2,
        "het_job_id": 11,
        "restart": 0,
        "user": "alice",
        "uid": os.getuid(),
        "account": "physics",
        "node": "n1",
        "qpu": "a",
        "type": "ibm-quantum-compute-service",
        "result": "released",
        "by": "epilog",
        "reason": "",
    }
    assert SECRET not in json.dumps(line)


def test_only_root_can_read_the_file(site, syslog_lines):
    prolog(site.add("a"), "a")
    old = os.umask(0)
    try:
        epilog(site)
    finally:
        os.umask(old)
    [path] = (site.state_dir / "test" / ".accounting").iterdir()
    assert path.name == f"n1.{time.strftime('%Y-%m', time.gmtime())}.jsonl"
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_a_refused_qpu_has_its_reason_and_no_time(site, syslog_lines):
    prolog(site.add("a").add("b", acquire="raise", type="oqtopus"), "a,b")
    epilog(site)
    a, b = sorted(lines_of(site), key=lambda line: line["qpu"])
    assert (a["result"], b["result"]) == ("released", "failed")
    assert (b["token"], b["acquired_s"], b["held_s"]) == (None, None, 0.0)
    assert b["reason"]
    assert b["ended_s"] >= b["asked_s"]


def test_a_qpu_that_prolog_gives_back_is_accounted_to_prolog(site, syslog_lines):
    """With --require=all the one that was acquired is released at once."""
    site.configure("--require=all")
    prolog(site.add("a").add("b", acquire="raise", type="oqtopus"), "a,b")
    assert [(line["qpu"], line["result"], line["by"]) for line in lines_of(site)] == [
        ("a", "released", "prolog"),
        ("b", "failed", "prolog"),
    ]


def entry(name="a", *, site=None, state=State.ACQUIRED, token="t", **changes):  # noqa: S107 not one
    environment = {f"{name}_{key}": value for key, value in COMPUTE_SERVICE.items()}
    told = {f"{name}_QRMI_FAKE_{key[5:].upper()}": changes.pop(key) for key in list(changes) if key.startswith("fake_")}
    if site is not None:
        environment[f"{name}_QRMI_FAKE_CALLS"] = str(site.calls_path)
    values = {"asked_s": 1000.0, "acquired_s": None if token is None else 1010.0, "since_s": 1010.0, **changes}
    held = Secret(token) if token else None
    return Entry(name, "ibm-quantum-compute-service", {**environment, **told}, state=state, token=held, **values)


def written(site, *entries):
    folder = site.folder()
    folder.create()
    record = Record("test", 12, os.getuid(), "n1", "b", 0, 1000.0, entries, user="alice", account="physics")
    folder.write(record)
    return folder, record


def test_a_session_that_was_gone_counts_at_most_its_lifetime(site, syslog_lines):
    written(site, entry("a", fake_release="gone", expires_s=1500.0), entry("b", fake_release="gone"))
    epilog(site)
    a, b = lines_of(site)
    assert (a["result"], a["ended_s"], a["held_s"]) == ("gone", 1500.0, 490.0)
    assert b["ended_s"] == pytest.approx(time.time(), abs=5)


def test_a_qpu_that_could_not_be_released_has_no_line_yet(site, syslog_lines):
    folder, _ = written(site, entry("a", fake_release="raise"))
    epilog(site)
    assert lines_of(site) == []
    assert folder.read().entries[0].acquired_s == 1010.0
    [one], damaged = ledgers.read(site.state_dir, ALWAYS, 2000.0)
    assert (one.result, one.acquired_s, one.ended_s, damaged) == ("held", 1010.0, 2000.0, 0)


def test_a_clock_that_was_set_back_makes_no_time_negative(site, syslog_lines):
    written(site, entry("a", acquired_s=time.time() + 9000, asked_s=time.time() + 8999))
    epilog(site)
    [line] = lines_of(site)
    assert line["held_s"] == 0.0
    [one], _ = ledgers.read(site.state_dir, ALWAYS, time.time())
    assert one.held_s(ALWAYS) == 0.0


def test_an_expired_indeterminate_qpu_is_accounted_for_without_time(site, syslog_lines):
    """recover forgets it, and counts no time for a session."""
    folder, _ = written(site, entry("a", token=None, state=State.INDETERMINATE, expires_s=1500.0))
    here = recover.World("test", {}, {})
    [result] = recover.run(site.options(), here, lambda job_ids: dict.fromkeys(job_ids, Job("GONE", 0)), recover.Mode())
    assert (result.plan.step, result.outcome) == (recover.Step.FORGET, "removed")
    assert not folder.exists()
    [line] = lines_of(site)
    assert (line["result"], line["by"], line["ended_s"], line["held_s"]) == ("expired", "recover", 1500.0, 0.0)


def test_a_qpu_that_an_admin_forgets_is_accounted_for(site, syslog_lines):
    folder, record = written(
        site,
        entry("a", token=None, state=State.INDETERMINATE, expires_s=4e9),
        entry("b", token=None, state=State.FAILED, since_s=1003.0, reason="no"),
        entry("c", site=site),
    )
    assert recover.take_back(Item(folder, record), site.options(), is_living=False, forget=True) is None
    told = {line["qpu"]: (line["result"], line["by"]) for line in lines_of(site)}
    assert told == {"a": ("forgotten", "release"), "b": ("failed", "release"), "c": ("released", "release")}
    assert next(line for line in lines_of(site) if line["qpu"] == "b")["ended_s"] == 1003.0


def test_a_token_in_a_journal_counts_from_when_it_was_written(site, syslog_lines):
    """Prolog was killed after its child had written the token; Epilog runs much later."""
    folder, _ = written(site, entry("a", token=None, state=State.ACQUIRING, site=site))
    os.write(folder.journals.open(0), b"t-1")
    os.utime(folder.path / "token-0", (1200.0, 1200.0))
    epilog(site)
    [line] = lines_of(site)
    assert (line["token"], line["acquired_s"], line["result"]) == ("t-1", 1200.0, "released")


def test_a_crash_before_the_record_is_gone_counts_once(site, syslog_lines, monkeypatch):
    """The line is there twice with one id, and the first end counts."""
    folder, _ = written(site, entry("a", site=site))
    monkeypatch.setattr(type(folder), "remove", lambda _self: (_ for _ in ()).throw(RecordError("killed")))
    with pytest.raises(RecordError, match="killed"):
        epilog(site)
    monkeypatch.undo()
    monkeypatch.setenv("SLURMD_NODENAME", "n2")
    held = [one.result for one in ledgers.read(site.state_dir, ALWAYS, 4e9)[0]]
    assert held == ["released"], "the record does not count beside its line"
    first_s = lines_of(site)[0]["ended_s"]
    time.sleep(0.01)
    epilog(site)
    first, second = lines_of(site)
    assert first["id"] == second["id"]
    [one], damaged = ledgers.read(site.state_dir, ALWAYS, 4e9)
    assert (one.ended_s, damaged) == (first_s, 0)


@pytest.mark.parametrize("obstacle", ["file", "read-only", "full"])
def test_a_ledger_that_cannot_be_written_does_not_stop_a_release(site, syslog_lines, monkeypatch, obstacle):
    folder, _ = written(site, entry("a", site=site, token=f"{SECRET}-token"))
    place = site.state_dir / "test" / ".accounting"
    if obstacle == "file":
        place.touch()
    elif obstacle == "full":
        half = types.SimpleNamespace(
            **{**vars(os), "write": lambda fd, content: os.write(fd, content[: len(content) // 2])}
        )
        monkeypatch.setattr(ledger, "os", half)
    else:
        place.mkdir()
        (place / f"n1.{time.strftime('%Y-%m', time.gmtime())}.jsonl").mkdir()
    assert epilog(site) is None
    assert not folder.exists()
    assert len(site.calls()) == 1
    [told] = [line for _, line in syslog_lines if "not-accounted: job=12" in line]
    for part in ("qpu=a", "user=alice", "account=physics", "result=released", "held_s="):
        assert part in told
    assert SECRET not in told


def test_a_line_that_was_cut_off_does_not_damage_the_next(site, syslog_lines):
    folder, record = written(site, entry("a"))
    ended = Ended(record.entries[0], "released", 1100.0)
    line = ledger.line_of(record, ended, None, "epilog")
    ledger.write(folder, [line])
    [path] = (site.state_dir / "test" / ".accounting").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    ledger.write(folder, [{**line, "id": "another"}])
    assert path.read_bytes().count(b"\n") == 3
    found, damaged = ledgers.read(site.state_dir, ALWAYS, 4e9)
    assert sorted(one.id for one in found) == sorted([line["id"], "another"])
    assert damaged == 1


def test_two_acquisitions_of_one_run_have_different_ids(site):
    """If Prolog runs again in the same run, job, restart count and journal are the same, but not the time."""
    _, record = written(site, entry("a"))
    [one] = record.entries
    assert ledger.acquisition_id(record, one) != ledger.acquisition_id(record, one._replace(asked_s=1000.002))


def test_a_record_of_an_older_version_is_accounted_for(site, syslog_lines):
    """It lacks the user and the times, so those that it has are used."""
    folder, _ = written(site, entry("a", since_s=1010.0), entry("b", state=State.RELEASING))
    path = folder.path / "record.json"
    document = json.loads(path.read_text())
    for name in ("user", "account", "het_job_id"):
        del document[name]
    for item in document["entries"]:
        del item["asked_s"], item["acquired_s"]
    path.write_text(json.dumps(document))
    epilog(site)
    a, b = lines_of(site)
    assert (a["user"], a["account"], a["asked_s"], a["acquired_s"]) == ("", "", 1000.0, 1010.0)
    assert b["acquired_s"] == 1000.0
    assert {one.user for one in ledgers.read(site.state_dir, ALWAYS, 4e9)[0]} == {f"uid {os.getuid()}"}


@pytest.mark.parametrize(("text", "expected"), [("10_2\n", (10, 2)), ("", None), ("x_1", None), ("10", None)])
def test_the_array_ids_that_the_plugin_writes(site, text, expected):
    folder, _ = written(site)
    assert folder.array_ids() is None
    (folder.path / "array").write_text(text)
    assert folder.array_ids() == expected


@pytest.mark.parametrize(("name", "file"), [("n 1/../x", "n_1_.._x"), ("gpu-01.b_c", "gpu-01.b_c")])
def test_a_node_name_becomes_a_file_name(site, monkeypatch, name, file):
    monkeypatch.setenv("SLURMD_NODENAME", name)
    folder, _ = written(site)
    ledger.write(folder, [{}])
    [path] = (site.state_dir / "test" / ".accounting").iterdir()
    assert path.name.startswith(f"{file}.2")
