"""The context, over what Slurm 22.05 to 26.05 really gave its hooks, and over what it might give."""

import contextlib
from pathlib import Path

import pytest
from doubles import SECRET
from hypothesis import given
from hypothesis import strategies as st

from qrmi_slurm.errors import ContextError
from qrmi_slurm.slurm import job_context

RECORDINGS = Path(__file__).resolve().parents[2] / "recordings"
VERSIONS = ("22.05", "23.02", "24.05", "25.05", "26.05")
FROM_23_02 = VERSIONS[1:]


def recorded(version, name):
    lines = (RECORDINGS / version / f"{name}.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)


def all_recordings(*hooks):
    paths = sorted(RECORDINGS.glob("*/*.env"))
    chosen = [path for path in paths if path.name.split(".")[1] in hooks]
    return [pytest.param(path.parent.name, path.stem, id=f"{path.parent.name}-{path.stem}") for path in chosen]


def test_every_version_has_recordings():
    # `ran` has what the runs of the tests saw, for docs/support.md.
    assert sorted(path.name for path in RECORDINGS.iterdir()) == [*VERSIONS, "ran"]


@pytest.mark.parametrize(("version", "name"), all_recordings("prolog", "epilog"))
def test_a_recorded_prolog_or_epilog_has_a_context(version, name):
    environment = recorded(version, name)
    job = job_context.of_job(environment)
    assert job.job_id == int(environment["SLURM_JOB_ID"])
    assert (job.uid, job.cluster, job.restart_count) == (1001, "rec", 0)
    assert job.node == name.split(".")[2]
    assert job.slurm_conf == Path("/etc/slurm/slurm.conf")
    assert not any(key == "QRMI_QPU" for key in job.user_environment)


@pytest.mark.parametrize(("version", "name"), all_recordings("task_prolog"))
def test_a_recorded_task_has_a_context(version, name):
    environment = recorded(version, name)
    task = job_context.of_task(environment, 1001)
    assert task.job_id == int(environment["SLURM_JOB_ID"])
    assert task.node == name.split(".")[2]
    assert task.cluster == "rec"
    assert task.task_rank == int(environment["SLURM_PROCID"])
    assert task.inherited_job_id is None
    assert task.job_selection_text == environment.get("SLURM_SPANK_QRMI_QPU")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("launch", ["sbatch-2nodes-licence", "srun-2nodes"])
@pytest.mark.parametrize("hook", ["prolog", "epilog"])
def test_only_the_first_of_two_nodes_acquires(version, launch, hook):
    assert job_context.of_job(recorded(version, f"{launch}.{hook}.n001")).is_first_node
    assert not job_context.of_job(recorded(version, f"{launch}.{hook}.n002")).is_first_node


@pytest.mark.parametrize("version", VERSIONS)
def test_a_job_of_one_node_acquires_there(version):
    job = job_context.of_job(recorded(version, "salloc-then-srun-vv.prolog.n003"))
    assert job.is_first_node
    assert job.selection_text == "a"


@pytest.mark.parametrize("version", VERSIONS)
def test_selections_arrive_as_the_user_wrote_them(version):
    assert job_context.of_job(recorded(version, "sbatch-2nodes-licence.prolog.n001")).selection_text == "a,b"
    assert job_context.of_job(recorded(version, "array-task-1.prolog.n001")).selection_text == "a"


def test_22_05_does_not_tell_the_time_limit():
    assert job_context.of_job(recorded("22.05", "sbatch-2nodes-licence.prolog.n001")).time_limit_s is None


@pytest.mark.parametrize("version", FROM_23_02)
def test_from_23_02_the_time_limit_is_end_minus_start(version):
    assert job_context.of_job(recorded(version, "sbatch-2nodes-licence.prolog.n001")).time_limit_s == 300
    unlimited = job_context.of_job(recorded(version, "sbatch-unlimited-without-qpu.prolog.n001"))
    assert unlimited.time_limit_s == job_context.ENDLESS_S  # what Slurm reports


@pytest.mark.parametrize("version", FROM_23_02)
def test_each_component_of_a_heterogeneous_job_has_its_own_job_id(version):
    first = job_context.of_job(recorded(version, "het-component-0-with-qpu.prolog.n001"))
    second = job_context.of_job(recorded(version, "het-component-1-without-qpu.prolog.n002"))
    assert first.job_id != second.job_id
    assert first.is_first_node
    assert second.is_first_node


@pytest.mark.parametrize("version", VERSIONS)
def test_array_tasks_have_their_own_job_ids(version):
    ids = {job_context.of_job(recorded(version, f"array-task-{n}.prolog.n001")).job_id for n in (1, 2)}
    assert len(ids) == 2


@pytest.mark.parametrize("version", VERSIONS)
def test_each_task_of_a_step_has_its_rank(version):
    ranks = [job_context.of_task(recorded(version, f"srun-2nodes.task_prolog.n00{n}"), 1001).task_rank for n in (1, 2)]
    assert ranks == [0, 1]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_task_knows_the_verbosity_of_srun(version):
    assert job_context.of_task(recorded(version, "salloc-then-srun-vv.task_prolog.n003"), 1001).srun_debug == 5


@pytest.mark.parametrize("version", FROM_23_02)
@pytest.mark.parametrize("hook", ["prolog", "epilog"])
def test_from_23_02_hooks_know_when_the_job_started(version, hook):
    environment = recorded(version, f"sbatch-2nodes-licence.{hook}.n001")
    assert job_context.of_job(environment).start_s == int(environment["SLURM_JOB_START_TIME"])
    assert job_context.of_task(recorded(version, "srun-2nodes.task_prolog.n001"), 1001).start_s


def test_22_05_does_not_tell_when_the_job_started():
    assert job_context.of_job(recorded("22.05", "sbatch-2nodes-licence.prolog.n001")).start_s is None
    assert job_context.of_task(recorded("22.05", "srun-2nodes.task_prolog.n001"), 1001).start_s is None
    assert job_context.of_job({**MINIMAL, "SLURM_JOB_START_TIME": "0"}).start_s is None


@pytest.mark.parametrize("version", VERSIONS)
def test_a_job_that_ends_leaves_no_node(version):
    job = job_context.of_job(recorded(version, "sbatch-2nodes-licence.epilog.n001"))
    assert (job.node_count, job.is_leaving) == (2, False)
    assert not job_context.of_job(recorded(version, "array-task-1.epilog.n001")).is_leaving


@pytest.mark.parametrize("variable", ["SLURM_JOB_NODELIST", "SLURM_NODELIST"])
def test_a_node_that_is_taken_from_a_job_is_not_all_of_its_nodes(variable):
    job = job_context.of_job({**MINIMAL, variable: "n1", "SLURM_JOB_NUM_NODES": "2"})
    assert (job.node_count, job.is_leaving) == (2, True)
    assert not job_context.of_job({**MINIMAL, variable: "n[0x1]", "SLURM_JOB_NUM_NODES": "9"}).is_leaving


def test_without_a_name_in_the_environment_the_cluster_is_that_of_slurm_conf(tmp_path):
    conf = tmp_path / "slurm.conf"
    conf.write_text("ClusterName=Site_A\n")
    assert job_context.of_job({**MINIMAL, "SLURM_CONF": str(conf)}).cluster == "site_a"


@pytest.mark.parametrize(
    ("text", "count"),
    [("n1", 1), ("n1,m2", 2), ("n[001-003,7]", 4), ("r[1-2]n[1-4]", 8), ("a,n[1-2]-ib,b", 4), (" n[5] ", 1)],
)
def test_the_hosts_of_a_node_list_are_counted(text, count):
    assert job_context.host_count(text) == count


@pytest.mark.parametrize("text", ["n[1-2", "n[a-b]", "n[]", "n[1-2-3]", "n[" + "9" * 11 + "]"])
def test_a_node_list_that_cannot_be_counted_is_an_error(text):
    with pytest.raises(ContextError, match="node list"):
        job_context.host_count(text)


MINIMAL = {"SLURMD_NODENAME": "n1", "SLURM_JOB_ID": "7", "SLURM_JOB_UID": "1001"}


def test_the_minimum_that_slurm_sets_is_enough():
    job = job_context.of_job(MINIMAL)
    assert job.is_first_node
    assert (job.cluster, job.restart_count, job.time_limit_s) == ("cluster", 0, None)
    assert job.selection_text == ""


@pytest.mark.parametrize("name", MINIMAL)
def test_a_missing_job_owner_or_node_is_an_error(name):
    with pytest.raises(ContextError, match=name):
        job_context.of_job({key: value for key, value in MINIMAL.items() if key != name})


@pytest.mark.parametrize("text", ["", "abc", "-1", "1.5", "12345678901", "٣", "1 ", "../../etc"])
def test_a_job_id_that_is_not_a_number_is_refused(text):
    with pytest.raises(ContextError, match="SLURM_JOB_ID"):
        job_context.of_job({**MINIMAL, "SLURM_JOB_ID": text})


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "..", ".hidden", "a\n", "x" * 300])
def test_a_cluster_name_that_leads_out_of_the_state_directory_is_refused(name):
    with pytest.raises(ContextError, match="SLURM_CLUSTER_NAME"):
        job_context.of_job({**MINIMAL, "SLURM_CLUSTER_NAME": name})


@pytest.mark.parametrize(
    ("start", "end", "seconds"),
    [
        ("1000", "1300", 300),
        ("1000", "1000", None),
        ("1300", "1000", None),
        ("", "1300", None),
        ("Unknown", "1300", None),
        ("1000", "", None),
        ("1000", "9" * 5000, None),
    ],
)
def test_times_that_make_no_sense_give_no_time_limit(start, end, seconds):
    times = {"SLURM_JOB_START_TIME": start, "SLURM_JOB_END_TIME": end}
    assert job_context.of_job({**MINIMAL, **times}).time_limit_s == seconds


def test_a_requeued_job_has_its_restart_count():
    assert job_context.of_job({**MINIMAL, "SLURM_JOB_RESTART_COUNT": "3"}).restart_count == 3


def test_user_variables_lose_slurms_prefix_and_are_not_shown_in_the_repr():
    job = job_context.of_job({**MINIMAL, "SPANK_QRMI_QPU": "a", "SPANK_a_QRMI_KEY": SECRET, "OTHER": "x"})
    assert job.user_environment == {"a_QRMI_KEY": SECRET}
    assert SECRET not in repr(job)


def test_the_defaults_of_a_task():
    task = job_context.of_task({"SLURM_JOB_ID": "7"}, 1001)
    assert (task.task_rank, task.srun_debug, task.rust_log) == (0, 3, None)
    assert task.job_selection_text is None
    assert task.step_selection_text is None


def expand(text):
    """Expand a hostlist by recursion: each member of the first bracket, followed by the expanded rest."""
    hosts, depth, item = [], 0, ""
    items = []
    for char in text + ",":
        depth += {"[": 1, "]": -1}.get(char, 0)
        if char == "," and depth == 0:
            items.append(item)
            item = ""
        else:
            item += char
    for item in items:
        if "[" not in item:
            hosts.append(item)
            continue
        head, _, rest = item.partition("[")
        inside, _, tail = rest.partition("]")
        for part in inside.split(","):
            low, _, high = part.partition("-")
            for number in range(int(low), int(high or low) + 1):
                hosts += [f"{head}{number:0{len(low)}d}{following}" for following in expand(tail)]
    return hosts


words = st.text("abn-_.0123456789", min_size=1, max_size=6).filter(lambda text: not text.startswith("-"))
numbers = st.integers(0, 12).flatmap(lambda n: st.sampled_from([str(n), f"{n:03d}"]))
spans = st.tuples(numbers, st.integers(0, 3)).map(
    lambda pair: pair[0] if not pair[1] else f"{pair[0]}-{int(pair[0]) + pair[1]:0{len(pair[0])}d}"
)
brackets = st.lists(spans, min_size=1, max_size=3).map(lambda parts: f"[{','.join(parts)}]")
hosts = st.lists(st.tuples(words, brackets | st.just("")), min_size=1, max_size=2).map(
    lambda pairs: "".join(word + bracket for word, bracket in pairs)
)


@given(st.lists(hosts, min_size=1, max_size=3).map(",".join))
def test_the_first_host_is_the_first_of_the_expanded_list(node_list):
    assert job_context.first_host(node_list) == expand(node_list)[0]


@pytest.mark.parametrize(
    ("node_list", "first"),
    [
        ("n001", "n001"),
        ("n[001-003,7]", "n001"),
        ("n[7,1-3]", "n7"),
        ("r[1-2]n[1-4]", "r1n1"),
        ("a,b[1-2]", "a"),
        ("n[09-11].cluster", "n09.cluster"),
        (" n1\n", "n1"),
    ],
)
def test_first_hosts(node_list, first):
    assert job_context.first_host(node_list) == first


@pytest.mark.parametrize("node_list", ["", " ", ",", "n[", "n[1", "n]", "n[]", "n[a]", "n[-1]", "[", "]"])
def test_an_invalid_node_list_is_an_error(node_list):
    with pytest.raises(ContextError):
        job_context.first_host(node_list)


@given(st.text("n1[],-x ", max_size=12))
def test_any_node_list_has_a_first_host_or_is_an_error(node_list):
    with contextlib.suppress(ContextError):
        assert job_context.first_host(node_list)
