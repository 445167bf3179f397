"""The options on the plugin's line, read as Slurm reads it."""

from pathlib import Path

import pytest
from doubles import SECRET
from hypothesis import given
from hypothesis import strategies as st

from qrmi_slurm.errors import PlugstackError
from qrmi_slurm.slurm import plugstack
from qrmi_slurm.slurm.plugstack import PluginLine, SiteOptions

ETC = Path("/etc/slurm")


def options_of(*arguments):
    return plugstack.parse_arguments(PluginLine("spank_qrmi.so", arguments, "plugstack.conf:1"), ETC)


@pytest.fixture
def etc(tmp_path):
    (tmp_path / "slurm.conf").write_text("ClusterName=x\n")
    return tmp_path


def test_a_full_line_is_read(etc):
    (etc / "plugstack.conf").write_text(
        "# site\nrequired other.so a b\n"
        "optional\t/usr/lib/slurm/spank_qrmi.so /c.json --state-dir=/s --acquire-timeout=2.5 --release-timeout=7"
        " --require=all --on-unavailable=fail --requeue-limit=0.5 --env:HTTPS_PROXY=http://p:1 --env:EMPTY=  # why\n"
    )
    assert plugstack.read(etc / "slurm.conf") == SiteOptions(
        config_path=Path("/c.json"),
        state_dir=Path("/s"),
        acquire_timeout_s=2.5,
        release_timeout_s=7.0,
        require="all",
        on_unavailable="fail",
        requeue_limit_h=0.5,
        env={"HTTPS_PROXY": "http://p:1", "EMPTY": ""},
        source=f"{etc}/plugstack.conf:3",
        slurm_conf=etc / "slurm.conf",
    )


@pytest.mark.parametrize("line", [None, "", "optional other.so\n", "optional\n", "#optional spank_qrmi.so /c.json\n"])
def test_without_a_line_all_options_have_defaults_and_the_config_is_beside_slurm_conf(etc, line):
    if line is not None:
        (etc / "plugstack.conf").write_text(line)
    slurm_conf = etc / "slurm.conf"
    assert plugstack.read(slurm_conf) == SiteOptions(config_path=etc / "qrmi_config.json", slurm_conf=slurm_conf)


def test_a_missing_slurm_conf_counts_as_empty(tmp_path):
    assert plugstack.read(tmp_path / "slurm.conf").config_path == tmp_path / "qrmi_config.json"


def test_the_first_of_several_lines_counts(etc):
    (etc / "plugstack.conf").write_text("optional spank_qrmi.so /first.json\nrequired spank_qrmi.so /second.json\n")
    assert plugstack.read(etc / "slurm.conf").config_path == Path("/first.json")


def test_included_files_are_read_in_the_order_of_their_names(etc):
    (etc / "plugstack.conf").write_text("include plugstack.conf.d/*.conf\n")
    (etc / "plugstack.conf.d").mkdir()
    (etc / "plugstack.conf.d" / "b.conf").write_text("optional spank_qrmi.so /b.json\n")
    (etc / "plugstack.conf.d" / "a.conf").write_text("optional spank_qrmi.so /a.json\n")
    assert plugstack.read(etc / "slurm.conf").config_path == Path("/a.json")


def test_a_file_that_includes_itself_is_an_error(etc):
    (etc / "plugstack.conf").write_text("include plugstack.conf\n")
    with pytest.raises(PlugstackError, match="deep"):
        plugstack.read(etc / "slurm.conf")


@pytest.mark.parametrize(
    "slurm_conf",
    [
        "PlugStackConfig=other/p.conf",
        "plugstackconfig = other/p.conf # here",
        "PlugStackConfig=/x\nPLUGSTACKCONFIG=other/p.conf",
    ],
)
def test_plugstackconfig_sets_the_path_of_the_file(etc, slurm_conf):
    (etc / "slurm.conf").write_text(f"ClusterName=x\n{slurm_conf}\n")
    assert plugstack.plugstack_path(etc / "slurm.conf") == etc / "other" / "p.conf"


def test_plugstackconfig_may_be_in_an_included_file(etc):
    (etc / "slurm.conf").write_text("Include nodes.conf\n")
    (etc / "nodes.conf").write_text("PlugStackConfig=/p.conf\n")
    assert plugstack.plugstack_path(etc / "slurm.conf") == Path("/p.conf")


def test_an_unreadable_file_is_an_error(etc):
    (etc / "plugstack.conf").mkdir()
    with pytest.raises(PlugstackError, match="cannot read"):
        plugstack.read(etc / "slurm.conf")


def test_a_form_feed_in_a_comment_does_not_end_its_line(etc):
    """Slurm ends lines only at newlines, so text after another separator is still part of the comment."""
    (etc / "plugstack.conf").write_text("# old:\x0coptional spank_qrmi.so /old.json\n")
    assert plugstack.read(etc / "slurm.conf").config_path == etc / "qrmi_config.json"


@pytest.mark.parametrize(
    "argument",
    [
        "--acquire-timeout",
        "--acquire-timeout=",
        "--acquire-timeout=0",
        "--acquire-timeout=-1",
        "--acquire-timeout=ten",
        "--acquire-timeout=1e3",
        "--acquire-timeout=3601",
        "--acquire-timeout=nan",
        "--acquire-timeout=inf",
        "--acquire-timeout=٣",
        "--release-timeout=10s",
        "--session-margin=-1",
        "--session-margin=",
        "--session-margin=minute",
        "--session-margin=nan",
        "--session-margin=3601",
        "--require",
        "--require=most",
        "--require=ANY",
        "--on-unavailable",
        "--on-unavailable=wait",
        "--requeue-limit",
        "--requeue-limit=0",
        "--requeue-limit=0.0001",
        "--requeue-limit=-1",
        "--requeue-limit=8785",
        "--requeue-limit=24h",
        "--requeue-limit=inf",
        "--state-dir",
        "--state-dir=",
        "--state-dir=var",
        "--state-dir=/a/../b",
        "--acquire_timeout=3",
        "--acquire-time=3",
        "--unknown",
        "-x",
        "-",
        "relative.json",
        "require=all",
        "--env:",
        "--env:X",
        "--env:=1",
        "--env:1X=1",
        "--env:A-B=1",
        "--env:A=\x1b[0m",
        "--env",
        "--qpu-slots-license",
        "--qpu-slots-license=a",
        "--qpu-slots-license:",
        "--qpu-slots-license:a",
        "--qpu-slots-license:a=",
        "--qpu-slots-license:=lanes",
        "--qpu-slots-license:a=lanes:2",
        "--qpu-slots-license:a=lanes,others",
        "--qpu-slots-license:a=lanes|others",
        "--qpu-slots-license:a={}",
    ],
)
def test_an_invalid_option_is_an_error_that_names_the_line(argument):
    with pytest.raises(PlugstackError, match=r"plugstack\.conf:1"):
        options_of("/c.json", argument)


def test_slots_are_counted_by_a_license_for_each_resource():
    options = options_of("--qpu-slots-license:a=lanes", "--qpu-slots-license:my:b=other.lanes@slurmdbd")
    assert options.slots_licenses == {"a": "lanes", "my:b": "other.lanes@slurmdbd"}
    with pytest.raises(PlugstackError, match="--qpu-slots-license:a is given twice"):
        options_of("--qpu-slots-license:a=lanes", "--qpu-slots-license:a=others")


def test_a_limit_of_zero_says_what_to_write_instead():
    with pytest.raises(PlugstackError, match=r"--requeue-limit=0 .* need --on-unavailable=fail"):
        options_of("--requeue-limit=0")


@pytest.mark.parametrize(
    "option",
    [
        "--state-dir=/s",
        "--acquire-timeout=3",
        "--release-timeout=3",
        "--require=all",
        "--on-unavailable=fail",
        "--requeue-limit=3",
        "--qpu-slots-license:a=lanes",
    ],
)
def test_an_option_given_twice_is_an_error(option):
    with pytest.raises(PlugstackError, match="twice"):
        options_of(option, option)


@given(st.lists(st.text(alphabet="-=:/.ae1nvrqui t", min_size=1, max_size=24), max_size=4))
def test_every_argument_is_used_or_refused_never_ignored(arguments):
    arguments = [argument for text in arguments for argument in text.split()]
    try:
        options = options_of(*arguments)
    except PlugstackError:
        return
    said = {
        **({str(options.config_path)} and {str(Path(a)): True for a in arguments if not a.startswith("-")}),
        **{a: True for a in arguments if a.startswith("-")},
    }
    heard = {
        str(options.config_path),
        f"--state-dir={options.state_dir}",
        f"--require={options.require}",
        f"--on-unavailable={options.on_unavailable}",
        *(f"--env:{name}={value}" for name, value in options.env.items()),
        *(f"--qpu-slots-license:{name}={license}" for name, license in options.slots_licenses.items()),
    }
    assert all(
        word in heard or "timeout" in word or "limit" in word or word.startswith("--state-dir=/") for word in said
    )


@given(st.floats(0.001, plugstack.MAX_TIMEOUT_S).map(lambda seconds: f"{seconds:.3f}"))
def test_a_timeout_in_range_is_used_unchanged(text):
    assert options_of(f"--acquire-timeout={text}").acquire_timeout_s == float(text)


def test_env_values_are_never_in_a_message_or_repr():
    assert SECRET not in repr(options_of(f"--env:HTTPS_PROXY=http://u:{SECRET}@p"))
    for arguments in ([f"--env:A-B={SECRET}"], [f"--env:A={SECRET}", "--no"], [f"-env:A={SECRET}"]):
        with pytest.raises(PlugstackError) as caught:
            options_of(*arguments)
        assert SECRET not in str(caught.value)


def test_an_env_value_after_a_blank_is_never_in_a_message():
    """`--env NAME=VALUE` is an easy mistake; the value then looks like a path."""
    with pytest.raises(PlugstackError) as caught:
        options_of("/c.json", "--env", f"HTTPS_PROXY=http://u:{SECRET}@p")
    assert SECRET not in str(caught.value)


def test_the_repr_of_a_plugin_line_shows_no_env_value(etc):
    (etc / "plugstack.conf").write_text(f"optional spank_qrmi.so --env:P=http://u:{SECRET}@p\n")
    assert SECRET not in repr(plugstack.plugin_line(etc / "plugstack.conf"))
