"""The admin's further commands as they are called: what they print, for whom, and with which exit status."""

import json
import os
import re
import stat
import time
from pathlib import Path

import pytest
from doubles import SECRET

from qrmi_slurm.calls import backend, proxies
from qrmi_slurm.checks import setup_lines
from qrmi_slurm.checks.installation import Installation, this_one
from qrmi_slurm.checks.online import bounded, certificate
from qrmi_slurm.command import render
from qrmi_slurm.errors import QrmiSlurmError, RecordError
from qrmi_slurm.scheduling import qpus
from qrmi_slurm.slurm.plugstack import SiteOptions

FIXTURES = Path(__file__).parents[1] / "fixtures" / "config"


@pytest.fixture
def as_root(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)


@pytest.fixture
def of_site(site, slurm, monkeypatch):
    """Return the site, after the environment was told where its slurm.conf is."""
    monkeypatch.setenv("SLURM_CONF", str(site.slurm_conf))
    return site


# --- what every command has ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        *("validate-config", "doctor", "slurm-conf", "qpus", "status", "recover", "release", "catalogue"),
        *("drain", "resume", "sensor"),
    ],
)
def test_help_has_examples_and_exit_status(run, command):
    """--help shows examples on lines of their own, and the command's exit status."""
    status, out, err = run(command, "--help")
    assert (status, err) == (0, "")
    assert re.search(rf"^ +qrmi-slurm {command}", out, re.MULTILINE)
    assert "Exit status: 0" in " ".join(out.split())


def test_shell_completion(run, monkeypatch, capsys):
    """A shell that asks gets the commands that begin so, and the options of one."""
    for words, count, expected in (("qrmi-slurm doc", 1, "doctor"), ("qrmi-slurm qpus --wat", 2, "--watch")):
        monkeypatch.setenv("_QRMI_SLURM_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(count))
        assert run()[1].strip() == expected
    monkeypatch.delenv("_QRMI_SLURM_COMPLETE")
    assert "--install-completion" in run("--help")[1]


# --- validate-config: for GitHub, online --------------------------------------------------------------------


def test_findings_for_github(run):
    """Each finding is a workflow command with its place, and nothing else is printed."""
    path = FIXTURES / "many_faults.json"
    status, out, err = run("validate-config", "--format", "github", path)
    assert (status, err) == (1, "")
    commands = out.splitlines()
    assert all(re.match(r"::(error|warning|notice) file=\S+,", line) for line in commands)
    (found,) = [line for line in commands if "QS302" in line]
    assert found == (
        f"::error file={path},line=5,col=15,title=QS302%3A neither QRMI nor the suite knows the type"
        "::the type ibm-quantum-compute-sevice is unknown (at resources[0].type)"
        "%0Adid you mean ibm-quantum-compute-service?"
    )


def test_what_github_would_take_for_its_own(run, tmp_path):
    """Per cent, colon and comma in a file's name do not end a property, and no name can begin a command."""
    path = tmp_path / "100%,a:b.json"
    path.write_text('{"resources": [{"name": "x::error::y", "type": "z%0A::error::", "environment": {}}]}')
    path.chmod(0o600)
    out = run("validate-config", "--format", "github", path)[1]
    assert f"file={tmp_path}/100%25%2Ca%3Ab.json,line=1," in out
    assert "z%250A" in out
    assert all(line.startswith(("::error file=", "::warning file=")) for line in out.splitlines())


def test_online_with_a_config_that_cannot_be_loaded(run, of_site):
    """Where the config is refused the network is left alone, and the findings are told."""
    of_site.write_config("{")
    status, out, err = run("validate-config", "--online", "--format", "json")
    assert status == 1
    assert json.loads(out)["online"] == []
    assert err.startswith("warning: --online tried nothing")


# --- progress -----------------------------------------------------------------------------------------------


class Stream:
    encoding = "utf-8"

    def __init__(self, is_terminal):
        self.text = ""
        self.is_terminal = is_terminal

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return self.is_terminal


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_on_a_terminal_only(is_terminal, monkeypatch):
    """What is being done is shown on a terminal while it lasts; a pipe gets nothing of it."""
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Stream(is_terminal)
    with render.progress(stream) as tell:
        tell("asking [red]for all")
        time.sleep(0.2)  # rich draws some twelve times a second
    assert ("asking [red]for all" in stream.text) is is_terminal
    assert is_terminal or not stream.text


# --- qpus ---------------------------------------------------------------------------------------------------


def test_root_asks_and_publishes(run, of_site, as_root):
    """Root's run asks QRMI for each resource, opens no session, and leaves the list for users."""
    of_site.add("free").add("down", status="Paused").add("lost", status="unsupported")
    of_site.add("own", type="iqm-server", secret=SECRET).resources[-1]["environment"].clear()
    of_site.write_config(json.dumps({"resources": of_site.resources}))
    before = os.umask(0o077)  # as systemd may have it
    try:
        status, out, err = run("qpus")
    finally:
        os.umask(before)
    assert (status, err) == (0, "")
    assert of_site.calls() == []
    rows = {line.split()[0]: line.split() for line in out.splitlines()[1:]}
    assert rows["free"][2:6] == ["yes", "online", "-", "-"]
    assert rows["down"][2:4] == ["no", "paused"]
    assert " ".join(rows["down"][6:]) == "maintenance until noon"
    assert rows["lost"][2:4] == ["no", "offline"], "is_accessible answers where status does not"
    assert rows["own"][2:4] == ["?", "users-own"]
    path = of_site.state_dir / "qpus.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert stat.S_IMODE(of_site.state_dir.stat().st_mode) == 0o711
    assert [qpu["name"] for qpu in json.loads(path.read_text())["qpus"]] == ["free", "down", "lost", "own"]
    assert SECRET not in out + path.read_text()
    assert "noon" not in path.read_text(), "the service's words are not for everybody"


def test_a_qpu_that_does_not_answer(run, of_site, as_root, monkeypatch):
    """A service that hangs costs the timeout, is unreachable, and the others are told all the same."""
    of_site.add("free")
    real = backend._availability
    monkeypatch.setattr(backend, "_availability", lambda r: time.sleep(20) if r._name == "stuck" else real(r))
    of_site.add("stuck")
    began_s = time.monotonic()
    status, out, _ = run("qpus", "--timeout", "0.5", "--json")
    assert time.monotonic() - began_s < 5
    assert status == 0
    found = {qpu["name"]: qpu for qpu in json.loads(out)["qpus"]}
    assert (found["free"]["is_usable"], found["stuck"]["is_usable"]) == (True, False)
    assert found["stuck"]["state"] == "unreachable"
    assert found["stuck"]["reason"] == "no answer within 0.5 s"


def test_users_read_the_list(run, of_site, as_root, monkeypatch):
    """Somebody else than root reads what root's last run has left, with its age, and asks nobody."""
    of_site.add("free")
    run("qpus")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(backend, "run", None)
    status, out, _ = run("qpus")
    assert status == 0
    assert out.splitlines()[1].split() == ["free", "ibm-quantum-compute-service", "yes", "online", "-", "0"]
    assert re.fullmatch(r"as of \d+s ago", out.splitlines()[-1])
    assert json.loads(run("qpus", "--json")[1])["qpus"][0]["job_ids"] is None
    assert json.loads(run("qpus", "--json", "other")[1])["qpus"] == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2}', '{"version": 1, "qpus": [{}], "checked_s": 1}'])
def test_a_list_that_is_none(tmp_path, text):
    """A list that is damaged or of another version is one sentence."""
    (tmp_path / "qpus.json").write_text(text)
    with pytest.raises(RecordError, match=r"qpus\.json"):
        qpus.read_published(tmp_path)


def test_a_list_cannot_move_the_cursor(tmp_path):
    """What is read from the list is printed without control characters."""
    item = {"name": "\x1b[2J", "type": "t", "state": "s", "is_usable": "?", "pending_jobs": "x", "held_by": 0}
    (tmp_path / "qpus.json").write_text(json.dumps({"version": 1, "checked_s": 0, "qpus": [item]}))
    (found,) = qpus.read_published(tmp_path).qpus
    assert "\x1b" not in found.name
    assert (found.is_usable, found.pending_jobs) == (None, None)


def test_root_is_told_where_the_list_cannot_be_left(run, of_site, as_root):
    """A state directory that takes no file costs the users' list alone."""
    of_site.add("free")
    of_site.state_dir.write_text("not a folder")
    status, out, err = run("qpus", "--state-dir", of_site.state_dir / "x")
    assert (status, out.splitlines()[1].split()[0]) == (0, "free")
    assert err.startswith("warning: users do not see this: cannot write ")


# --- slurm-conf ---------------------------------------------------------------------------------------------

INSTALLED = Installation(Path("/opt/qrmi-slurm"))
OPTIONS = SiteOptions(config_path=Path("/etc/slurm/qrmi_config.json"))


def parts(existing=None, options=OPTIONS, installed=INSTALLED, conf=Path("/etc/slurm/slurm.conf")):
    found = setup_lines.parts(installed, options, conf, existing)
    return {str(part.path): part for part in found}


def test_the_lines_of_an_installation():
    """Every path is the installation's own."""
    found = parts()
    assert found["/etc/slurm/slurm.conf"].text.splitlines() == [
        "Prolog=/opt/qrmi-slurm/bin/qrmi-slurm-prolog",
        "TaskProlog=/opt/qrmi-slurm/bin/qrmi-slurm-task-prolog",
        "Epilog=/opt/qrmi-slurm/bin/qrmi-slurm-epilog",
        "PrologFlags=Alloc",
    ]
    assert found["/etc/slurm/plugstack.conf"].text.endswith("spank_qrmi.so /etc/slurm/qrmi_config.json\n")
    service = found["/etc/systemd/system/qrmi-slurm-recover.service"].text
    assert "ExecStart=/opt/qrmi-slurm/bin/qrmi-slurm recover\n" in service
    assert "SLURM_CONF" not in service


@pytest.mark.parametrize(
    ("conf", "lines"),
    [
        ("", ["PrologFlags=Alloc"]),
        ("PrologFlags=Serial", ["PrologFlags=Alloc,Serial"]),
        ("PrologFlags = contain, ForceRequeueOnFail", ["PrologFlags=contain,ForceRequeueOnFail"]),
        ("PrologFlags=NoHold", ["PrologFlags=NoHold", "BatchStartTimeout=33"]),
        ("PrologFlags=Alloc,NoHold\nBatchStartTimeout=32", ["PrologFlags=Alloc,NoHold", "BatchStartTimeout=33"]),
        ("PrologFlags=Alloc,NoHold\nBatchStartTimeout=33", ["PrologFlags=Alloc,NoHold"]),
    ],
)
def test_what_slurm_conf_has_of_prologs_settings_stays(tmp_path, conf, lines):
    """A site's flags stay; where its steps wait for Prolog themselves, srun has to wait as long."""
    (tmp_path / "slurm.conf").write_text(f"{conf}\n")
    found = parts(conf=tmp_path / "slurm.conf")[str(tmp_path / "slurm.conf")].text
    assert [line for line in found.splitlines() if "olog=" not in line and "Epilog" not in line] == lines


def license_lines(conf="", wanted=None, fault="", installed=INSTALLED, folder=None):
    path = folder / "slurm.conf"
    path.write_text(conf)
    return setup_lines.license_part(installed, path, wanted, fault)


def test_licenses_take_the_place_of_what_slurm_conf_has(tmp_path):
    """Others stay, in their order; ours have the config's counts, and plugins of the site run first."""
    conf = "Licenses=matlab:4,qpu_a:7,x\nJobSubmitPlugins=all_partitions,lua\nCliFilterPlugins=syslog\n"
    part = license_lines(conf, {"qpu_a": 1, "qpu_b": 2}, folder=tmp_path)
    assert part.text.splitlines() == [
        "Licenses=matlab:4,x,qpu_a:1,qpu_b:2",
        "JobSubmitPlugins=all_partitions,lua",
        "CliFilterPlugins=syslog,lua",
        "# with slurmdbd: AccountingStorageTRES=license/qpu_a,license/qpu_b",
    ]
    conf = "AccountingStorageType=accounting_storage/slurmdbd\nAccountingStorageTRES=gres/gpu,license/qpu_a\n"
    part = license_lines(conf, {"qpu_a": 1, "qpu_b": 2}, folder=tmp_path)
    assert part.text.splitlines()[0] == "Licenses=qpu_a:1,qpu_b:2"
    assert part.text.splitlines()[-1] == "AccountingStorageTRES=gres/gpu,license/qpu_a,license/qpu_b"


def test_without_a_config_the_licenses_are_a_comment(tmp_path):
    """A login node has none, and a user may not read it."""
    lines = license_lines(fault="cannot read /x: Permission denied", folder=tmp_path).text.splitlines()
    plugins = ["JobSubmitPlugins=lua", "CliFilterPlugins=lua"]
    assert lines == ["# Licenses= needs the config: cannot read /x: Permission denied", *plugins]
    assert license_lines(wanted={}, folder=tmp_path).text.splitlines() == plugins


def test_the_lua_files_are_named_where_they_are(tmp_path):
    """And what installs them where they are not."""
    note = license_lines(wanted={}, folder=tmp_path).note
    assert "make -C cli_filter install-lua SLURM_PLUGIN_DIR=/opt/qrmi-slurm/lib" in note[0]
    (tmp_path / "lib" / "lua").mkdir(parents=True)
    (tmp_path / "lib" / "lua" / "qrmi_slurm.lua").touch()
    part = license_lines(wanted={}, installed=Installation(tmp_path), folder=tmp_path)
    assert part.note[0].startswith("Optional. ")
    assert f"install -m 0644 {tmp_path}/lib/lua/job_submit.lua {tmp_path}/ && " in "\n".join(part.note)
    assert setup_lines.render([part]).startswith(
        f"### {tmp_path}/slurm.conf: add, to let jobs wait for QPUs (optional)\n# "
    )


def test_an_installation_goes_by_the_path_that_it_is_called_by(tmp_path, monkeypatch):
    """A link to the version in use is what Slurm's settings are to name, also where the command is a link itself."""
    real, link = tmp_path / "qrmi-slurm-1", tmp_path / "qrmi-slurm"
    (real / "bin").mkdir(parents=True)
    (real / "bin" / "qrmi-slurm").touch()
    link.symlink_to(real.name)
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "qrmi-slurm").symlink_to("../qrmi-slurm/bin/qrmi-slurm")
    monkeypatch.setattr("sys.prefix", str(real))
    for called, prefix in (
        (real / "bin" / "qrmi-slurm", real),
        (link / "bin" / "qrmi-slurm", link),
        (tmp_path / "local" / "qrmi-slurm", link),
        (tmp_path / "elsewhere.py", real),
    ):
        monkeypatch.setattr("sys.argv", [str(called)])
        assert this_one() == Installation(prefix)


def test_units_are_those_of_the_tree():
    """Each unit is printed, with another installation's path in the place of README's."""
    printed = {path.name: part.text for path, part in _units(parts(installed=Installation(Path("/srv/q")))).items()}
    tree = {path.name: path.read_text() for path in (Path(__file__).parents[2] / "systemd").iterdir()}
    assert printed.keys() == tree.keys()
    assert {name: text.replace("/srv/q/bin", "/opt/qrmi-slurm/bin") for name, text in printed.items()} == tree
    assert "ExecStart=/srv/q/bin/qrmi-slurm qpus\n" in printed["qrmi-slurm-qpus.service"]


def _units(found):
    return {Path(path): part for path, part in found.items() if path.startswith("/etc/systemd/")}


def test_a_state_directory_of_the_sites_own_stays():
    """What the plugin's line says already is in what is printed."""
    line = parts(options=OPTIONS._replace(state_dir=Path("/shared/qrmi")))["/etc/slurm/plugstack.conf"].text
    assert line.endswith(" --state-dir=/shared/qrmi\n")


@pytest.mark.parametrize("existing", ["/etc/slurm/task_prolog", "/etc/slurm/own.sh"])
def test_the_script_for_two_task_prologs_never_runs_itself(existing):
    """The printed script has a place that the site's own does not have."""
    found = parts(Path(existing))
    (script,) = [part for part in found.values() if part.mode == 0o755]
    assert str(script.path) != existing
    assert f"\n{existing} || exit\n" in script.text
    assert script.text.endswith("exec /opt/qrmi-slurm/bin/qrmi-slurm-task-prolog\n")
    assert f"TaskProlog={script.path}\n" in found["/etc/slurm/slurm.conf"].text


@pytest.mark.parametrize("path", ["/opt/two words", "/opt/a#b", "/opt/$x", "/opt/a\nb"])
def test_paths_that_slurms_files_cannot_hold(path):
    """A blank or a comment sign would end the path there: nothing is printed that would not work."""
    with pytest.raises(QrmiSlurmError, match="cannot be used in"):
        parts(installed=Installation(Path(path)))
    with pytest.raises(QrmiSlurmError, match="cannot be used in"):
        parts(Path(path))


# --- bounded work -------------------------------------------------------------------------------------------


def test_work_that_takes_too_long_is_left_behind():
    """At the deadline the caller goes on; what the work raises in time is the caller's."""
    began_s = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.1 s"):
        bounded.within(0.1, lambda: time.sleep(1))
    assert time.monotonic() - began_s < 0.3
    assert bounded.within(5, lambda: "answer") == "answer"
    with pytest.raises(KeyError):
        bounded.within(5, lambda: {}["x"])


def test_work_goes_side_by_side():
    """Ten works take as long as one, and their answers come in the works' order."""
    began_s = time.monotonic()
    assert bounded.side_by_side([lambda n=n: time.sleep(0.2) or n for n in range(10)]) == list(range(10))
    assert time.monotonic() - began_s < 1


# --- proxies and certificates -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "environment", "expected"),
    [
        ("https://a.example", {}, None),
        ("https://a.example", {"https_proxy": "http://p:1"}, "http://p:1"),
        ("https://a.example", {"HTTPS_PROXY": "p:1"}, "http://p:1"),
        ("https://a.example", {"http_proxy": "http://p:1"}, None),
        ("http://a.example", {"http_proxy": "http://p:1"}, "http://p:1"),
        ("https://a.example", {"all_proxy": "socks5://p:1"}, "socks5://p:1"),
        ("https://a.example", {"https_proxy": "http://p:1", "no_proxy": "b.example, .example"}, None),
        ("https://a.example", {"https_proxy": "http://p:1", "no_proxy": "a.example"}, None),
        ("https://ba.example", {"https_proxy": "http://p:1", "no_proxy": "a.example"}, "http://p:1"),
        ("https://a.example", {"https_proxy": "http://p:1", "no_proxy": "*"}, None),
        ("https://10.1.2.3", {"https_proxy": "http://p:1", "no_proxy": "10.0.0.0/8"}, None),
        ("https://10.1.2.3", {"https_proxy": "http://p:1", "no_proxy": "10.1.2.3"}, None),
        ("https://11.1.2.3", {"https_proxy": "http://p:1", "no_proxy": "10.0.0.0/8,x"}, "http://p:1"),
    ],
)
def test_which_proxy_a_request_takes(url, environment, expected):
    """The scheme's own variable counts before the one for all, and exceptions before both."""
    assert proxies.proxy_for(url, environment) == expected


def test_a_proxy_is_shown_without_its_password():
    """Scheme, host and port are what an admin has to see."""
    assert proxies.without_password(f"http://user:{SECRET}@[fe80::1]:3128/x") == "http://[fe80::1]:3128"
    assert proxies.without_password(f"http://user:{SECRET}@p:port") == "http://p"


@pytest.mark.parametrize("der", [b"", b"\x30", b"\x30\x03\x02\x01\x01", b"\x30\x84\xff\xff\xff\xff", bytes(100)])
def test_what_is_no_certificate(der):
    """Bytes that are no certificate are a ValueError, whatever they are."""
    with pytest.raises(ValueError, match="not a certificate"):
        certificate.read(der)
