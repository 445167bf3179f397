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
