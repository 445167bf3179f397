"""What slurmctld says of a job that cannot start, and what it is told."""

from pathlib import Path

import pytest

from qrmi_slurm.deadline import Deadline
from qrmi_slurm.errors import SchedulerError
from qrmi_slurm.slurm import commands, requeue
from qrmi_slurm.slurm.requeue import Standing

CONF = Path("/etc/slurm/slurm.conf")


def shown(
    job_id=12,
    *,
    ids="",
    name="bell.sh",
    state="CONFIGURING",
    requeue="1",
    batch="1",
    comment=None,
    folder="/home/u",
    **more,
):
    """Return a job as `scontrol show job` prints it, without the lines that nobody reads."""
    own = {
        "licenses": "(null)",
        "deadline": "N/A",
        "limit": "00:05:00",
        "user_comment": None,
        "submit_line": None,
        **more,
    }
    optional = [
        f"   SubmitLine={own['submit_line']}" if own["submit_line"] else None,
        f"   WorkDir={folder}",
        f"   AdminComment={comment} " if comment is not None else None,
        f"   Comment={own['user_comment']} " if own["user_comment"] is not None else None,
    ]
    return "\n".join(
        [
            f"JobId={job_id} {ids}JobName={name}",
            "   UserId=u(1001) GroupId=u(1001) MCS_label=N/A",
            f"   JobState={state} Reason=None Dependency=(null)",
            f"   Requeue={requeue} Restarts=2 BatchFlag={batch} Reboot=0 ExitCode=0:0",
            f"   RunTime=00:00:01 TimeLimit={own['limit']} TimeMin=N/A",
            f"   StartTime=1000 EndTime=1300 Deadline={own['deadline']}",
            f"   OverSubscribe=OK Contiguous=0 Licenses={own['licenses']} Network=(null)",
            "   Command=/home/u/bell.sh",
            *[line for line in optional if line is not None],
            "   StdErr=/home/u/slurm-12.out",
            "   Power=",
            "",
            "",
        ]
    )


def parse(answer, job_id=12, work_dir="/home/u"):
    return requeue.parse(answer, job_id, work_dir)


def test_a_job_that_may_wait():
    assert parse(shown()) == Standing("12", is_running=True, may_wait=True, restarts=2, comment="")


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"state": "RUNNING"}, "is_running", True),
        ({"state": "COMPLETING"}, "is_running", False),
        ({"state": "CANCELLED"}, "is_running", False),
        ({"state": "PENDING"}, "is_running", False),
        ({"requeue": "0"}, "may_wait", False),
        ({"batch": "0"}, "may_wait", False),
        ({"comment": "seen  by bob"}, "comment", "seen  by bob"),
        ({"comment": "a", "user_comment": "b"}, "comment", "a"),
        ({"ids": "ArrayJobId=10 ArrayTaskId=3 ArrayTaskThrottle=2 "}, "name", "10_3"),
        ({"deadline": "5000"}, "latest_start_s", 4700),
        ({"deadline": "5000", "limit": "UNLIMITED"}, "latest_start_s", 5000 - 2147483647),
        ({"licenses": "qpu_a:1"}, "has_licenses", True),
        ({"submit_line": "sbatch --wrap=a\n\nb"}, "comment", ""),
    ],
)
def test_what_it_says(changes, field, value):
    assert getattr(parse(shown(**changes)), field) == value


def test_of_an_array_the_running_task_is_meant():
    """The last task has the array's own id."""
    first = shown(13, ids="ArrayJobId=12 ArrayTaskId=1 ", comment="of the first")
    last = shown(12, ids="ArrayJobId=12 ArrayTaskId=2 ", comment="of the last")
    assert parse(first + last) == Standing("12_2", True, True, 2, "of the last")


@pytest.mark.parametrize(("comments", "is_common"), [(("a", "a"), True), (("a", None), False), ((None, None), True)])
def test_of_a_heterogeneous_job_the_leader_is_meant(comments, is_common):
    parts = [shown(12 + n, ids=f"HetJobId=12 HetJobOffset={n} ", comment=comment) for n, comment in enumerate(comments)]
    found = parse("".join(parts))
    assert (found.name, found.comment, found.is_common) == ("12", comments[0] or "", is_common)


FORGED = "\n   WorkDir=/x\n   AdminComment=forged\n   StdErr=x"


@pytest.mark.parametrize(
    "changes",
    [
        {"name": f"x{FORGED}"},
        {"name": f"x{FORGED}", "comment": "of an admin"},
        {"user_comment": f"x{FORGED}"},
        {"submit_line": f"sbatch{FORGED}"},
        {"comment": "two\nlines"},
        {"name": "x\n   WorkDir=/home/u"},
        {"submit_line": "sbatch\nJobId=99 JobName=x"},
    ],
)
def test_a_comment_that_may_be_forged_is_not_told(changes):
    """Written back, it would be an operator's word."""
    assert parse(shown(**changes)).comment is None


def test_nor_is_one_that_a_folders_name_may_have_forged():
    folder = "/home/u\n   AdminComment=forged\n   StdErr=x"
    assert parse(shown(folder=folder), work_dir=folder).comment is None
    assert parse(shown(), work_dir=None).comment is None


@pytest.mark.parametrize(
    "answer",
    [
        "",
        shown(13),
        shown() + shown(),
        shown(name=f"x\n{shown()}"),
        shown(name="x\n   JobState=RUNNING Reason=None Dep"),
        shown(name="x\n   Requeue=1 Restarts=9 BatchFlag=1 "),
    ],
)
def test_a_job_that_cannot_be_told_apart_is_not_told(answer):
    assert parse(answer) is None


# --- the commands ----------------------------------------------------------------------------------------------


@pytest.fixture
def slurmctld(monkeypatch):
    """Commands as they are run; `answers` has what each prints, or raises."""

    class Slurmctld:
        def __init__(self):
            self.commands = []
            self.answers = {}

        def run(self, command, slurm_conf, timeout_s=None, time_format="standard"):
            self.commands.append(list(command))
            answer = self.answers.get(command[0] if command[0] != "scontrol" else command[-2], "")
            answer = answer(command) if callable(answer) else answer
            if isinstance(answer, Exception):
                raise answer
            return answer

    daemon = Slurmctld()
    monkeypatch.setattr(commands, "run", daemon.run)
    return daemon


def ask(work_dir="/home/u"):
    return requeue.ask(12, work_dir, CONF, Deadline.after(5))


def test_asking_takes_one_rpc(slurmctld):
    slurmctld.answers["job"] = shown(comment="a")
    assert ask().comment == "a"
    assert slurmctld.commands == [["scontrol", "--local", "show", "job", "12"]]


@pytest.mark.parametrize(("told", "comment"), [("two\nlines", "two\nlines"), ("(null)", "")])
def test_a_comment_that_may_be_forged_is_asked_for_in_another_way(slurmctld, told, comment):
    def squeue(command):
        mark = command[-1].partition("JobID:")[2].partition(",")[0]
        return f"13{mark}of another task{mark}\n12{mark}{told}{mark}\n"

    slurmctld.answers |= {"job": shown(comment="two\nlines"), "squeue": squeue}
    assert ask().comment == comment


def test_a_comment_that_nobody_tells_is_unknown(slurmctld):
    slurmctld.answers |= {"job": shown(), "squeue": SchedulerError("no")}
    assert ask(work_dir=None).comment is None


def test_a_job_that_does_not_wait_costs_no_second_question(slurmctld):
    slurmctld.answers["job"] = shown(batch="0", comment="two\nlines")
    assert not ask().may_wait
    assert len(slurmctld.commands) == 1


def test_an_ambiguous_answer_is_an_error(slurmctld):
    slurmctld.answers["job"] = shown() + shown()
    with pytest.raises(SchedulerError, match="ambiguous"):
        ask()


STANDING = Standing("12", is_running=True, may_wait=True, restarts=0, comment="")


def test_only_a_job_that_is_not_over_is_put_back(slurmctld):
    requeue.put_back("12_3", CONF, 1)
    assert slurmctld.commands == [["scontrol", "requeue", "incomplete", "12_3"]]


@pytest.mark.parametrize(
    ("standing", "comment", "command"),
    [
        (STANDING, "a b", ["JobId=12", "StartTime=now+30", "AdminComment=a b"]),
        (STANDING, None, ["JobId=12", "StartTime=now+30"]),
        (STANDING._replace(is_common=False), "a", ["JobId=12+0", "StartTime=now+30", "AdminComment=a"]),
        (STANDING._replace(is_common=False), None, ["JobId=12", "StartTime=now+30"]),
    ],
)
def test_putting_off_takes_one_rpc(slurmctld, standing, comment, command):
    requeue.put_off(standing, 30, comment, CONF, 1)
    assert slurmctld.commands == [["scontrol", "update", *command]]


@pytest.mark.parametrize(
    ("version", "loses"),
    [
        ("slurm 22.05.8", False),
        ("slurm-wlm 24.11.5", False),
        ("slurm 25.05.0-0rc1", True),
        ("slurm 25.05.8", True),
        ("slurm 25.11.6", True),
        ("slurm 25.11.7", False),
        ("slurm 26.05.5", False),
        ("", False),
    ],
)
def test_releases_that_lose_licenses(version, loses):
    assert requeue.loses_licenses(version) is loses
