"""What hooks and recover ask slurmctld about jobs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qrmi_slurm.slurm import commands, jobs


@given(st.integers(0, 999), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_a_limit_is_read_in_seconds(days, hours, minutes, seconds):
    clock = f"{hours:02d}:{minutes:02d}:{seconds:02d}"
    text = f"{days}-{clock}" if days else clock
    expected = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    assert jobs.parse_time_limit_s(f"{text}\n") == expected


@pytest.mark.parametrize(("text", "seconds"), [("0:30", 30), ("5:00", 300), ("1:00:00", 3600), ("2-00:00:00", 172800)])
def test_slurm_leaves_out_what_is_zero_in_front(text, seconds):
    assert jobs.parse_time_limit_s(text) == seconds


def test_unlimited_is_the_largest_value_that_all_of_qrmi_parses():
    assert jobs.parse_time_limit_s("UNLIMITED\n") == 2**31 - 1


@pytest.mark.parametrize("text", ["", "garbage", "NOT_SET", "INVALID", "5", "5:00 x"])
def test_what_cannot_be_read_is_no_limit(text):
    assert jobs.parse_time_limit_s(text) is None


@pytest.fixture
def fake_command(tmp_path, monkeypatch):
    def make(script):
        program = tmp_path / "command"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(commands, "find", lambda name: str(program))

    return make


# As Slurm 22.05 writes it; the first record is another task of the same array.
SHOWN = """JobId=11 ArrayJobId=12 ArrayTaskId=1 JobName=x
   RunTime=00:00:01 TimeLimit={other} TimeMin=N/A
   SubmitTime=1000 EligibleTime=1000
   StartTime=1005 EndTime=1305 Deadline=N/A

JobId=12 ArrayJobId=12 ArrayTaskId=2 JobName={name}
   UserId=u(1) GroupId=u(1) MCS_label=N/A
   RunTime=00:00:00 TimeLimit={limit} TimeMin=N/A
   SubmitTime=1000 EligibleTime=1000
   StartTime=1010 EndTime=1310 Deadline=N/A
   Comment=TimeLimit=UNLIMITED
"""


@pytest.fixture
def shows(fake_command, tmp_path):
    """scontrol and squeue, which note what they are asked; squeue says five minutes."""

    def make(name="x", limit="00:05:00", other="00:05:00", squeue="   12    5:00"):
        (tmp_path / "shown").write_text(SHOWN.format(name=name, limit=limit, other=other))
        note = f'echo "$* $SLURM_CONF" >>{tmp_path}/asked'
        fake_command(f'{note}; case $1 in --local) cat {tmp_path}/shown;; *) echo "{squeue}";; esac')
        return lambda: [line.split() for line in (tmp_path / "asked").read_text().splitlines()]

    return make


def test_slurmctld_is_asked_once_with_the_jobs_own_slurm_conf(shows, tmp_path):
    """--local: otherwise scontrol asks for the federation as well."""
    asked = shows()
    assert jobs.times(12, tmp_path / "slurm.conf", 5) == jobs.Times(300, 1000, 1010)
    assert asked() == [["--local", "show", "job", "12", f"{tmp_path}/slurm.conf"]]


def test_a_job_without_a_limit_is_unlimited(shows, tmp_path):
    shows(limit="UNLIMITED", other="UNLIMITED")
    assert jobs.times(12, tmp_path, 5).limit_s == 2**31 - 1


@pytest.mark.parametrize(
    "text",
    [
        {"name": "x\n   RunTime=00:00:00 TimeLimit=UNLIMITED TimeMin=N/A"},
        {"name": "x\n   RunTime=0 TimeLimit=UNLIMITED TimeMin=N/A\n\nJobId=9 JobName=y"},
        {"other": "00:01:00"},
    ],
)
def test_where_the_lines_differ_squeue_is_asked_in_columns_without_a_users_text(shows, tmp_path, text):
    """`scontrol show job` prints a job's name as it is, with its line breaks."""
    asked = shows(**text)
    assert jobs.times(12, tmp_path, 5).limit_s == 300
    assert "--Format=JobID:.20,TimeLimit:.20" in asked()[-1]


def test_who_forges_start_times_leaves_them_unknown(shows, tmp_path):
    shows(name="x\n   StartTime=7 EndTime=8 Deadline=N/A")
    assert jobs.times(12, tmp_path, 5) == jobs.Times(300, 1000, None)


@pytest.mark.parametrize(
    ("job", "is_it"),
    [
        (jobs.Job("RUNNING", 0, 1000, 1010), True),
        (jobs.Job("RUNNING", 0, 1000, 1070), True),  # its nodes have powered up since
        (jobs.Job("RUNNING", 0, 1011, 1012), False),
        (jobs.Job("PENDING", 0, 1011, None), False),
        (jobs.Job("RUNNING", 0), True),
    ],
)
def test_a_job_that_was_submitted_after_the_start_is_another(job, is_it):
    assert job.has_started_at(1010) is is_it
    assert job.has_started_at(None)


@pytest.mark.parametrize("line", [" 11 5:00", " 12 5:00 x", " 12", " 12 soon", ""])
def test_what_is_not_this_jobs_line_is_no_limit(shows, tmp_path, line):
    shows(limit="another", squeue=line)
    assert jobs.times(12, tmp_path, 0.3).limit_s is None


def test_a_limit_is_asked_for_again_where_slurmctld_does_not_answer(fake_command, tmp_path, monkeypatch):
    """It is restarted, or its backup takes over."""
    monkeypatch.setattr(jobs, "_AGAIN_S", 0.01)
    standby = "echo 'slurm_load_jobs error: Slurm backup controller in standby mode' >&2; exit 1"
    count = f"$(grep -c x {tmp_path}/asked)"
    fake_command(f'echo x >>{tmp_path}/asked; [ "{count}" -ge 3 ] || {{ {standby}; }}; cat {tmp_path}/shown')
    (tmp_path / "shown").write_text(SHOWN.format(name="x", limit="00:05:00", other="00:05:00"))
    assert jobs.times(12, tmp_path, 30).limit_s == 300
    assert (tmp_path / "asked").read_text() == "x\n" * 3


def test_a_job_that_slurm_does_not_know_is_asked_for_once(fake_command, tmp_path):
    gone = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"
    fake_command(f"echo x >>{tmp_path}/asked; {gone}")
    assert jobs.times(12, tmp_path, 30).limit_s is None
    assert (tmp_path / "asked").read_text() == "x\n"


SQUEUE = """\
echo "$*" >> {folder}/asked
for word; do
    case $word in
        --jobs=7) echo ' 7 RUNNING 1 1000 1010 1310'; exit ;;
        --jobs=8) printf ' 8 COMPLETED 0 1 2 3\\n 18 RUNNING 0 1 2 3\\n junk\\n'; exit ;;
        --jobs=*) echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1 ;;
    esac
done
printf ' 7 RUNNING 1 1000 1010 1310\\n 8 COMPLETED 0 1 N/A N/A\\n'
"""


@pytest.fixture
def asked(fake_command, tmp_path):
    """A squeue that knows jobs 7 and 8; return a function that returns what it was asked."""
    fake_command(SQUEUE.format(folder=tmp_path))
    (tmp_path / "asked").touch()
    return lambda: [set(line.split()) for line in (tmp_path / "asked").read_text().splitlines()]


@pytest.mark.parametrize("more", [[], range(100, 200)], ids=["one by one", "many"])
def test_jobs_are_known_by_state_and_restart_count(asked, tmp_path, more):
    """A job that ended, or another run of it, does not live; nor does one that Slurm does not know."""
    found = jobs.jobs([7, 8, 9, *more], tmp_path / "slurm.conf")
    assert found.keys() == {7, 8, 9, *more}
    assert found[7].is_living_run(1)
    assert not found[7].is_living_run(0)
    for job_id in (8, 9):
        assert not found[job_id].is_living_run(0)
        assert found[job_id].is_over


def test_few_jobs_are_asked_for_one_by_one_and_many_at_once(asked, tmp_path):
    """slurmctld packs each job that it knows for a question about two."""
    assert jobs.jobs([], tmp_path) == {}
    assert asked() == []
    jobs.jobs([7, 8, 9], tmp_path)
    assert [words & {"--jobs=7", "--jobs=8", "--jobs=9"} for words in asked()] == [
        {"--jobs=7"},
        {"--jobs=8"},
        {"--jobs=9"},
    ]
    jobs.jobs(range(1, 1000), tmp_path)
    [question] = asked()[3:]
    assert not [word for word in question if word.startswith("--jobs")]


@pytest.mark.parametrize("job_ids", [[7], range(1, 100)])
def test_jobs_of_hidden_partitions_are_asked_for_and_no_other_clusters(asked, tmp_path, job_ids):
    """A job that squeue does not show would be taken for one that has ended."""
    jobs.jobs(job_ids, tmp_path / "slurm.conf")
    [question] = asked()
    assert {"--all", "--local", "--array", "--states=all"} <= question


@pytest.mark.parametrize("job_ids", [[7, 8], range(1, 100)])
@pytest.mark.parametrize(
    "script",
    [
        "exit 1",
        "echo 'slurm_load_jobs error: Slurm backup controller in standby mode' >&2; exit 1",
        "exec sleep 30",
        "kill -9 $$",
    ],
)
def test_a_slurmctld_that_does_not_answer_is_asked_only_once(fake_command, tmp_path, monkeypatch, job_ids, script):
    """Then nothing is known of any job, rather than that they have ended."""
    monkeypatch.setattr(jobs, "_JOBS_TIMEOUT_S", 0.3)
    fake_command(f"echo x >> {tmp_path}/asked; {script}")
    assert jobs.jobs(job_ids, tmp_path) is None
    assert (tmp_path / "asked").read_text() == "x\n"


def test_a_list_of_all_jobs_never_says_that_there_is_no_such_job(fake_command, tmp_path):
    """Whatever failed, it is no answer about the jobs that were asked for."""
    fake_command("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert jobs.jobs(range(1, 100), tmp_path) is None
    assert jobs.jobs([1, 2], tmp_path) == dict.fromkeys([1, 2], jobs.Job("GONE", 0))


@pytest.mark.parametrize("script", ["exit 1", "echo nonsense", "kill -9 $$", "printf '\\377\\376'"])
def test_a_failing_command_is_no_limit(fake_command, tmp_path, script):
    fake_command(script)
    assert jobs.times(12, tmp_path, 0.2).limit_s is None


def test_a_hanging_slurmctld_does_not_hold_prolog(fake_command, tmp_path):
    fake_command("exec sleep 30")
    assert jobs.times(12, tmp_path, 0.1).limit_s is None


def test_without_scontrol_there_is_no_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "find", lambda name: None)
    assert jobs.times(12, tmp_path, 0.2).limit_s is None


@pytest.mark.parametrize(
    ("said", "granted"),
    [
        ("12                  lanes:2;other:1\n", {"lanes": 2, "other": 1}),
        ("12                  (null)\n", {}),
        ("13                  lanes:2\n", None),
        ("", None),
    ],
)
def test_the_licenses_that_a_job_was_granted(monkeypatch, tmp_path, said, granted):
    """squeue's column, from 25.05 on."""
    monkeypatch.setattr(jobs.commands, "run", lambda *arguments: said)
    assert jobs.granted_licenses(12, tmp_path, 1.0) == granted
