"""slurm.conf, read as Slurm reads it."""

import pytest

from qrmi_slurm.errors import PlugstackError
from qrmi_slurm.slurm import conf_file


@pytest.fixture
def conf(tmp_path):
    return tmp_path / "slurm.conf"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("ClusterName=c\n", "c"),
        ('clustername = "c"  # comment\n', "c"),
        ("CLUSTERNAME=b\nClusterName=c\n", "c"),
        ("#ClusterName=c\n", None),
        ("ClusterNameX=c\nClusterName\n", None),
        ("# old:\x0cClusterName=c\n", None),
    ],
)
def test_the_last_value_of_a_setting_counts(conf, text, value):
    conf.write_text(text)
    assert conf_file.cluster_name(conf) == value


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("", 0),
        ("OverTimeLimit=5\n", 300),
        ("overtimelimit = unlimited\n", 2**31 - 1),
        ("OverTimeLimit=INFINITE\n", 2**31 - 1),
        ("OverTimeLimit=5\nPartitionName=p Nodes=ALL\n", 300),
        ("OverTimeLimit=5\nPartitionName=p Nodes=ALL OverTimeLimit=0\n", 0),
        ('OverTimeLimit=5\npartitionname="p" overtimelimit=2 \\\n State=UP\n', 120),
        ("PartitionName=DEFAULT OverTimeLimit=3\nPartitionName=p\n", 180),
        ("PartitionName=p\nPartitionName=DEFAULT OverTimeLimit=3\n", 0),
        ("PartitionName=P OverTimeLimit=3\nPartitionName=q OverTimeLimit=4\n", 0),
        ("OverTimeLimit=-1\n", 0),
        ("OverTimeLimit=999999\n", 0),
        ("OverTimeLimit=\n", 0),
        ("Include more.conf\n", 420),
    ],
)
def test_how_much_longer_than_its_limit_a_job_may_run(conf, text, seconds):
    """The partition's value goes first; what precedes a partition's line as DEFAULT is its default."""
    (conf.parent / "more.conf").write_text("OverTimeLimit=7\n")
    conf.write_text(text)
    assert conf_file.over_time_limit_s(conf, "p") == seconds


def test_where_the_partition_is_unknown_the_sites_value_counts(conf):
    conf.write_text("OverTimeLimit=5\nPartitionName=p OverTimeLimit=9\n")
    assert conf_file.over_time_limit_s(conf, None) == 300


def test_a_missing_file_counts_as_empty(conf):
    assert conf_file.setting(conf, "ClusterName") is None
    assert conf_file.lines(conf) == []


def test_a_backslash_joins_a_line_to_the_next(conf):
    """parse_config.c, _strip_continuation(); a comment ends with its line."""
    conf.write_text("PrologFlags=Alloc\\ \n,NoHold\n# no more\\\nClusterName=c\\\n")
    assert conf_file.setting(conf, "PrologFlags") == "Alloc,NoHold"
    assert conf_file.setting(conf, "ClusterName") == "c"


def test_includes_are_relative_to_the_file_and_a_later_value_wins(conf):
    conf.write_text("ClusterName=before\nInclude nodes.conf\n")
    (conf.parent / "nodes.conf").write_text("NodeName=n1\n")
    assert conf_file.cluster_name(conf) == "before"
    (conf.parent / "nodes.conf").write_text("ClusterName=included\n")
    assert conf_file.cluster_name(conf) == "included"
    conf.write_text("include nodes.conf\nClusterName=after\n")
    assert conf_file.cluster_name(conf) == "after"


def test_a_file_that_includes_itself_is_an_error(conf):
    conf.write_text("Include slurm.conf\n")
    with pytest.raises(PlugstackError, match=r"slurm\.conf: Include is nested more than 16 deep; look for a file"):
        conf_file.cluster_name(conf)


def test_an_unreadable_file_is_an_error_that_names_it(conf):
    conf.mkdir()
    with pytest.raises(PlugstackError, match=f"cannot read {conf}: Is a directory; all users"):
        conf_file.cluster_name(conf)


@pytest.mark.parametrize("depth", [16, 17])
def test_includes_may_be_nested_16_deep(conf, depth):
    for number in range(depth):
        name = f"{number}.conf" if number else "slurm.conf"
        (conf.parent / name).write_text(f"Include {number + 1}.conf\n")
    (conf.parent / f"{depth}.conf").write_text("ClusterName=c\n")
    if depth == 16:
        assert conf_file.cluster_name(conf) == "c"
    else:
        with pytest.raises(PlugstackError, match="more than 16 deep"):
            conf_file.cluster_name(conf)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """The three places of slurm.conf, in a folder of the test's."""
    found = []
    for name in ("DEFAULT_SLURM_CONF", "CONFIGLESS_SLURM_CONF", "SPOOLED_SLURM_CONF"):
        path = tmp_path / name / getattr(conf_file, name).parent.name / "slurm.conf"
        path.parent.mkdir(parents=True)
        monkeypatch.setattr(conf_file, name, path)
        found.append(path)
    return found


def test_the_first_slurm_conf_with_anything_in_it_is_this_nodes(places):
    """Its own, then slurmd's copy as Slurm's commands find it, then that copy where slurmd has it."""
    assert conf_file.on_this_node() is None
    for path in reversed(places):
        path.touch()
        assert conf_file.on_this_node() != path
        path.write_text("ClusterName=c\n")
        assert conf_file.on_this_node() == path


def test_what_slurmctld_does_not_send_is_in_the_nodes_own_folder(places, tmp_path):
    own, linked, spooled = places
    assert [conf_file.is_copy(path) for path in places] == [False, True, True]
    assert {conf_file.local_folder(path) for path in (own, linked, spooled)} == {own.parent}
    assert conf_file.local_folder(tmp_path / "slurm.conf") == tmp_path
