"""What the doctor makes of answers, files and sockets; a real cluster is looked at in tests/slurm/test_doctor.py."""

import json
import os
import socket
import tempfile
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from qrmi_slurm.checks import doctor, hook_checks, license_checks, plugin_file, state_checks
from qrmi_slurm.checks.installation import Installation
from qrmi_slurm.config.config_file import load
from qrmi_slurm.errors import PlugstackError, SchedulerError
from qrmi_slurm.scheduling import catalogue
from qrmi_slurm.slurm import commands, plugstack
from qrmi_slurm.slurm import settings as settings_

RECORDED = (Path(__file__).parents[2] / "recordings" / "22.05" / "scontrol-show-config.txt").read_text()

# As src/api/config_info.c of 26.05.3 writes it: indices from 24.05 on, two timeouts where they differ.
COMPOSED = """Configuration data as of 2026-11-23T04:58:23
BatchStartTimeout       = 10 sec
Epilog[0]               = /etc/slurm/epilog.d/*
Epilog[1]               = /opt/qrmi-slurm/bin/qrmi-slurm-epilog
EpilogMsgTime           = 2000 usec
MessageTimeout          = 45 sec
NamespaceType           = namespace/tmpfs
EpilogTimeout           = 10
PrologTimeout           = 65534
Prolog[0]               = /opt/qrmi-slurm/bin/qrmi-slurm-prolog
PrologFlags             = Alloc,Contain
SlurmdUser              = root(0)
SLURM_VERSION           = 26.05.3
TaskProlog              = (null)

Slurmctld(primary) at there is UP
"""


def settings_of(**values):
    text = "".join(f"{name} = {value}\n" for name, value in values.items())
    return settings_.parse(text)


def options_of(**values):
    return plugstack.SiteOptions(config_path=Path("/etc/slurm/qrmi_config.json"))._replace(**values)


def told(lines):
    return {line.name: line.level.value for line in lines}


# --- Slurm's answer -----------------------------------------------------------------------------------------


def test_the_answer_of_22_05():
    """A recorded answer: one Prolog, no value as (null), no limit as 65534."""
    settings = settings_.parse(RECORDED)
    assert settings.all("Prolog") == ["/opt/qrmi-slurm/bin/qrmi-slurm-prolog"]
    assert settings.all("TaskProlog") == []
    assert settings.seconds("PrologEpilogTimeout") is None
    assert (settings.seconds("MessageTimeout"), settings.seconds("BatchStartTimeout")) == (10, 10)
    assert settings.flags("PrologFlags") == {"alloc"}
    assert settings.version == (22, 5)
    assert settings.as_of == datetime(2026, 11, 23, 4, 58, 23)


def test_the_answer_of_26_05():
    """Newer releases number several hooks, and tell two timeouts."""
    settings = settings_.parse(COMPOSED)
    assert settings.all("Epilog") == ["/etc/slurm/epilog.d/*", "/opt/qrmi-slurm/bin/qrmi-slurm-epilog"]
    assert (settings.seconds("EpilogTimeout"), settings.seconds("PrologTimeout")) == (10, None)
    assert settings.version == (26, 5)
    lines = list(doctor.timeouts(settings, options_of()))
    assert told(lines) == {
        "PrologTimeout": "ok",
        "EpilogTimeout": "error",
        "MessageTimeout": "ok",
        "BatchStartTimeout": "ok",
    }


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("#!/bin/sh\nexit 1\n", "exit status 1"),
        ("#!/bin/sh\necho 'error: one' >&2\necho 'no controller' >&2\nexit 1\n", "no controller"),
        ("#!/bin/sh\nsleep 30\n", "did not answer within"),
        (None, "there is no scontrol"),
    ],
)
def test_a_slurm_that_does_not_answer(tmp_path, monkeypatch, program, words):
    """A command that fails, hangs or is missing is one sentence."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(commands, "_USUAL", ())
    monkeypatch.setattr(commands, "_TIMEOUT_S", 0.2)
    if program is not None:
        (tmp_path / "scontrol").write_text(program)
        (tmp_path / "scontrol").chmod(0o755)
    with pytest.raises(SchedulerError, match=words):
        settings_.ask(tmp_path / "slurm.conf")


def test_without_slurmctld_the_rest_is_looked_at(tmp_path, monkeypatch):
    """Where slurmctld cannot be asked, that is an error and the files are looked at all the same."""

    def fail(*_):
        raise SchedulerError("no controller")

    monkeypatch.setattr(commands, "run", fail)
    (tmp_path / "slurm.conf").write_text("")
    lines = told(doctor.examine(doctor.Patient(tmp_path / "slurm.conf", Installation(tmp_path))))
    assert lines["Slurm"] == "error"
    assert lines["hooks"] == "warning"
    assert {"plugstack", "config", "state", "space", "shared", "syslog"} <= lines.keys()


@pytest.mark.parametrize(
    ("apart_s", "level"), [(0, "ok"), (29, "ok"), (-31, "warning"), (301, "error"), (-301, "error")]
)
def test_clocks(apart_s, level):
    """Clocks that are half a minute apart are a warning; at five minutes munge refuses."""
    now = datetime.now().replace(microsecond=0)
    settings = settings_.SlurmSettings({}, now + timedelta(seconds=apart_s))
    assert told(doctor.clock(settings, now.timestamp())) == {"clock": level}


@pytest.mark.parametrize(
    ("flags", "level"),
    [
        ("Alloc", "ok"),
        ("Contain", "ok"),
        ("X11", "ok"),
        ("(null)", "warning"),
        ("Alloc,NoHold", "ok"),
        ("Alloc,Serial", "warning"),
    ],
)
def test_prolog_flags(flags, level):
    """Prolog has to run at the allocation, and not one at a time."""
    assert told(doctor.prolog_flags(settings_of(PrologFlags=flags))) == {"PrologFlags": level}


@pytest.mark.parametrize(
    ("flags", "limit_s", "level"),
    [("Alloc", 10, "ok"), ("Alloc,NoHold", 32, "warning"), ("Alloc,NoHold", 33, "ok"), ("(null)", 32, "warning")],
)
def test_srun_may_wait_as_long_as_prolog_does(flags, limit_s, level):
    """Where a step waits for Prolog in slurmd, srun gives it up after BatchStartTimeout and MessageTimeout."""
    settings = settings_of(PrologFlags=flags, BatchStartTimeout=f"{limit_s} sec")
    assert told(doctor.timeouts(settings, options_of()))["BatchStartTimeout"] == level


@pytest.mark.parametrize(
    ("limit_s", "acquire_s", "level"), [(65534, 30, "ok"), (33, 30, "ok"), (32, 30, "error"), (32, 5, "ok")]
)
def test_prolog_may_take_as_long_as_we_do(limit_s, acquire_s, level):
    """A PrologEpilogTimeout below our own and its grace would kill Prolog and drain the node."""
    lines = doctor.timeouts(settings_of(PrologEpilogTimeout=limit_s), options_of(acquire_timeout_s=float(acquire_s)))
    assert next(iter(lines)).level == level


# --- the hooks ----------------------------------------------------------------------------------------------


@pytest.fixture
def installation(tmp_path):
    """An installation in a folder, with a site's folder of hooks beside it."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    found = Installation(tmp_path / "venv")
    for path in (found.prolog, found.task_prolog, found.epilog):
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    (tmp_path / "site").mkdir()
    return found


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def prolog_line(installation, *values):
    return hook_checks._hook("Prolog", [str(value) for value in values], installation.prolog)


def test_a_hook_by_its_path(installation):
    """The script itself is ours."""
    assert prolog_line(installation, installation.prolog).level == "ok"


def test_a_hook_linked_into_a_folder(installation, tmp_path):
    """A link in the folder of a glob is ours, among others that are not."""
    script(tmp_path / "site" / "10-own", "true")
    (tmp_path / "site" / "50-qrmi").symlink_to(installation.prolog)
    line = prolog_line(installation, tmp_path / "site" / "*")
    assert (line.level, line.message) == ("ok", f"{installation.prolog} through {tmp_path}/site/50-qrmi")


def test_a_hook_that_a_sites_script_calls(installation, tmp_path):
    """A script that runs ours is ours; one that only mentions it in a comment is not."""
    script(tmp_path / "site" / "prolog", f"exec {installation.prolog}")
    assert prolog_line(installation, tmp_path / "site" / "prolog").level == "ok"
    script(tmp_path / "site" / "prolog", f"# exec {installation.prolog}")
    assert prolog_line(installation, tmp_path / "site" / "prolog").level == "error"


def test_a_hook_that_stands_twice(installation, tmp_path):
    """Run twice a node's Prolog would acquire for one and find the other's record."""
    for name in ("50-qrmi", "60-qrmi"):
        (tmp_path / "site" / name).symlink_to(installation.prolog)
    assert "2 times" in prolog_line(installation, tmp_path / "site" / "*").message


def test_a_hook_of_another_installation(installation, tmp_path):
    """A hook of another venv works, but this command does not speak for it."""
    other = tmp_path / "site" / "qrmi-slurm-prolog"
    script(other, "true")
    assert prolog_line(installation, other).level == "warning"


def test_a_glob_that_matches_nothing(installation, tmp_path):
    """Slurm drains a node whose Prolog glob matches nothing."""
    line = prolog_line(installation, tmp_path / "site" / "*")
    assert (line.level, "drain" in line.message) == ("error", True)


def test_slurmd_as_another_user(installation):
    """Prolog has to be root's."""
    settings = settings_of(SlurmdUser="slurm(64030)", TaskProlog="(null)")
    assert told(hook_checks.lines(settings, installation))["SlurmdUser"] == "error"


@pytest.fixture
def open_folder():
    """A folder that others may enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize("target", ["b/c/../file", "{base}/b/file"], ids=["relative", "absolute"])
def test_what_blocks_users(open_folder, target):
    """The first folder, or file, on the way and behind each link that others may not enter or read is found."""
    file = open_folder / "b" / "file"
    (open_folder / "b" / "c").mkdir(parents=True)
    file.write_text("")
    link = open_folder / "link"
    link.symlink_to(target.format(base=open_folder))
    for folder in (open_folder / "b", open_folder / "b" / "c"):
        folder.chmod(0o711)
    file.chmod(0o755)
    assert hook_checks.blocking_users(link) is None
    file.chmod(0o750)
    assert hook_checks.blocking_users(link) == file
    (open_folder / "b").chmod(0o700)
    assert hook_checks.blocking_users(link) == open_folder / "b"


def test_a_loop_of_links_ends(open_folder):
    """Links that lead to each other are walked no longer than a sane path is."""
    (open_folder / "a").symlink_to("b")
    (open_folder / "b").symlink_to("a")
    assert hook_checks.blocking_users(open_folder / "a" / "file") is None


# --- the plugin's file --------------------------------------------------------------------------------------


ELF = b"\x7fELF\x02\x01" + bytes(10) + b"\x03\0"
X86_64 = (62).to_bytes(2, "little")  # the code of x86_64 in elf(5)
MARKER = b"qrmi-slurm stub for Slurm\0"


@pytest.fixture
def x86_64(monkeypatch):
    """The tests' files are for this machine."""
    monkeypatch.setattr(plugin_file.platform, "machine", lambda: "x86_64")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a shared object"),
        (b"#!/bin/sh\n", "not a shared object"),
        (b"\x7fELF\x01\x01" + bytes(10) + b"\x03\0" + X86_64 + MARKER + b"22.05.8\0", "not a shared object"),
        (ELF, "a machine other than x86_64"),
        (ELF + X86_64[:1], "not the plugin of qrmi-slurm"),
        (ELF + (183).to_bytes(2, "little") + MARKER + b"22.05.8\0", "a machine other than x86_64"),
        (ELF + X86_64, "not the plugin of qrmi-slurm"),
        (ELF + X86_64 + b"\0spank_qrmi\0spank\0", "not the plugin of qrmi-slurm"),
        (ELF + X86_64 + MARKER, "not the plugin of qrmi-slurm"),
        (ELF + X86_64 + MARKER + b"22.05.8", "not the plugin of qrmi-slurm"),
        (ELF + X86_64 + MARKER + b"22.5.8\0", "not the plugin of qrmi-slurm"),
        (ELF + X86_64 + MARKER + b"22.05.888\0", "not the plugin of qrmi-slurm"),
        (ELF + X86_64 + bytes(1 << 20) + MARKER + b"22.05.8\0", "not the plugin of qrmi-slurm"),
    ],
)
@pytest.mark.usefixtures("x86_64")
def test_what_is_not_our_plugin(tmp_path, content, words):
    """A script, another machine's file, a plugin without our marker and a damaged one are reported."""
    path = tmp_path / "spank_qrmi.so"
    path.write_bytes(content)
    with pytest.raises(PlugstackError, match=words) as caught:
        plugin_file.slurm_version(path)
    assert "make -C cli_filter install" in caught.value.hint


@pytest.mark.parametrize(
    ("version", "found"), [(b"22.05.8", (22, 5, 8)), (b"23.11.10", (23, 11, 10)), (b"26.05.0", (26, 5, 0))]
)
@pytest.mark.usefixtures("x86_64")
def test_the_version_in_our_plugin(tmp_path, version, found):
    """The marker may be anywhere in the file's first MiB."""
    path = tmp_path / "spank_qrmi.so"
    path.write_bytes(ELF + X86_64 + bytes(10_000) + MARKER + version + b"\0" + bytes(10_000))
    assert plugin_file.slurm_version(path) == found


def test_a_program_of_this_machine_is_not_our_plugin():
    with pytest.raises(PlugstackError, match="/bin/true is not the plugin of qrmi-slurm"):
        plugin_file.slurm_version(Path("/bin/true"))


# --- files --------------------------------------------------------------------------------------------------

MOUNTS = r"""22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:5 / /shared rw - nfs4 filer:/shared rw,vers=4.2
31 22 0:6 / /shared\040two rw - lustre there rw
32 22 0:7 / /run rw,nosuid - tmpfs tmpfs rw
33 32 0:8 / /run/state rw - ext4 /dev/vdb rw
34 32 0:9 / /run/state rw - xfs /dev/vdc rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/spool/qrmi-slurm", "ext4"),
        ("/shared/qrmi", "nfs4"),
        ("/sharedness", "ext4"),
        ("/shared two/x", "lustre"),
        ("/run/x", "tmpfs"),
        ("/run/state", "xfs"),
    ],
)
def test_which_file_system_a_path_is_on(path, kind):
    """The deepest mount counts, of two in one place the later, and blanks in a name are escaped there."""
    assert state_checks.file_system(Path(path), MOUNTS) == kind


@pytest.mark.parametrize(
    ("kind", "nodes", "level"), [("nfs4", 9, "ok"), ("ext4", 1, "ok"), ("ext4", 2, "warning"), ("tmpfs", 1, "warning")]
)
def test_sharing(tmp_path, monkeypatch, kind, nodes, level):
    """Local disks are a warning where there is more than one node; memory always is."""
    mounts = tmp_path / "mountinfo"
    mounts.write_text(f"22 1 254:0 / / rw - {kind} there rw\n")
    monkeypatch.setattr(state_checks, "_MOUNTS", mounts)
    assert state_checks._sharing(tmp_path, tmp_path, nodes).level == level


@pytest.mark.parametrize(
    ("container", "conf", "place", "level"),
    [
        (
            "job_container/tmpfs",
            "AutoBasePath=true\nBasePath=/local Dirs=/scratch,/var/spool\n",
            "/var/spool/q",
            "error",
        ),
        ("job_container/tmpfs", "AutoBasePath=true\n", "/tmp/q", "error"),
        ("job_container/tmpfs", "BasePath=/local Dirs=/scratch\n", "/var/spool/q", "ok"),
        ("namespace/linux", "dirs: /dev/shm,/var/spool\n", "/var/spool/q", "error"),
        ("job_container/none", "", "/tmp/q", "warning"),
        ("job_container/none", "", "/var/spool/q", None),
    ],
)
def test_what_a_jobs_private_folders_hide(tmp_path, container, conf, place, level):
    """A state directory below a folder that each job has of its own is an error: tasks do not see their exports."""
    name = "namespace.yaml" if container.startswith("namespace") else "job_container.conf"
    (tmp_path / name).write_text(conf)
    settings = settings_of(JobContainerType=container)
    lines = state_checks._hiding(Path(place), settings, tmp_path / "slurm.conf")
    assert [line.level.value for line in lines] == ([level] if level else [])


@pytest.mark.parametrize(
    ("free", "files", "level"), [(10**6, 1, "ok"), (2000, 1, "warning"), (10, 1, "error"), (10**6, 0, "error")]
)
def test_room(tmp_path, monkeypatch, free, files, level):
    """Little space is a warning; none, or no file more, an error: without a record nothing is acquired."""
    real = os.statvfs(tmp_path)
    fields = [4096, 4096, 10**7, free, free, 10, files, files, 0, real.f_namemax]
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(fields))
    assert state_checks._room(tmp_path).level == level


def test_a_read_only_file_system(tmp_path, monkeypatch):
    """A file system that was mounted read-only, as after an error of its disk, is an error."""
    fields = [4096, 4096, 10**7, 10**6, 10**6, 10, 10, 10, os.ST_RDONLY, 255]
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result(fields))
    assert state_checks._room(tmp_path).level == "error"


def test_syslog(tmp_path):
    """A socket that somebody listens at is ok; one that was left behind, a file and nothing are warnings."""
    path = tmp_path / "log"
    assert doctor.syslog(path).level == "warning"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        assert doctor.syslog(path).level == "ok"
    assert doctor.syslog(path).level == "warning"
    path.unlink()
    path.write_text("")
    assert doctor.syslog(path).level == "warning"


def test_includes_that_match_nothing(tmp_path):
    """Slurm says nothing of an include without files; those of included files count as well."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.conf").write_text("include lost/*\n")
    (tmp_path / "plugstack.conf").write_text("include d/*.conf\ninclude gone.conf # not there\n")
    found = plugstack.empty_includes(tmp_path / "plugstack.conf")
    assert found == [f"{tmp_path}/d/lost/*", f"{tmp_path}/gone.conf"]


# --- licenses ----------------------------------------------------------------------------------------------

HERE = os.uname().nodename.partition(".")[0]
USED = {"JobSubmitPlugins": "lua", "PrologFlags": "Alloc", "SlurmctldHost": f"{HERE}(127.0.0.1)"}


@pytest.fixture
def licensed(tmp_path):
    """Return a function that tells what the doctor says of licenses, with files beside slurm.conf as they should be."""
    config = tmp_path / "qrmi_config.json"
    config.write_text(
        json.dumps({"resources": [{"name": name, "type": "iqm-server", "environment": {}} for name in "ab"]})
    )
    options = options_of(config_path=config)
    (tmp_path / "job_submit.lua").write_text('local qrmi = require("qrmi_slurm")\n')
    catalogue.write(tmp_path / "qrmi_catalogue.lua", load(config).resources.values(), {})

    def look(notices=None, **values):
        return list(license_checks.lines(settings_of(**values), options, tmp_path / "slurm.conf", notices or {}))

    look.folder = tmp_path
    return look


def test_licenses_that_are_as_they_should_be(licensed):
    lines = licensed(**USED, Licenses="matlab:2,qpu_a:1,qpu_b:1")
    assert told(lines) == {"JobSubmitPlugins": "ok", "catalogue": "ok", "Licenses": "ok"}


def test_a_site_without_licenses_reads_one_line(licensed):
    """Whether it has Lua plugins for other things or none."""
    assert told(licensed(PrologFlags="Alloc")) == {"licenses": "ok"}
    (licensed.folder / "qrmi_catalogue.lua").unlink()
    (licensed.folder / "job_submit.lua").write_text("-- qrmi_slurm is not used\n")
    assert told(licensed(**USED, Licenses="matlab:2")) == {"licenses": "ok"}
    (licensed.folder / "qrmi_config.json").write_text("{")
    assert licensed(**USED) == []


@pytest.mark.parametrize(
    ("values", "name", "level", "words"),
    [
        ({"Licenses": "qpu_a:1"}, "Licenses", "error", "Licenses=qpu_a:1,qpu_b:1; then: scontrol reconfigure"),
        ({"Licenses": "qpu_a:1,qpu_b:3"}, "Licenses", "warning", "qpu_b (3, not 1)"),
        ({"JobSubmitPlugins": "(null)"}, "JobSubmitPlugins", "warning", "without lua no job gets the licenses"),
        ({"PrologFlags": "(null)"}, "licenses", "error", "a user's own srun can ask Prolog"),
    ],
)
def test_settings_that_do_not_fit_the_config(licensed, values, name, level, words):
    lines = {line.name: line for line in licensed(**{**USED, "Licenses": "qpu_a:1,qpu_b:1", **values})}
    assert lines[name].level.value == level
    assert words in f"{lines[name].message} {lines[name].hint}"


@pytest.mark.parametrize(
    ("change", "name", "level", "words"),
    [
        (lambda etc: (etc / "qrmi_catalogue.lua").unlink(), "catalogue", "error", "jobs with --qpu are refused"),
        (lambda etc: (etc / "qrmi_catalogue.lua").chmod(0o666), "catalogue", "error", "chmod 0644"),
        (lambda etc: (etc / "qrmi_catalogue.lua").chmod(0o600), "catalogue", "warning", "read by root alone"),
        (lambda etc: os.chown(etc / "qrmi_catalogue.lua", 1, 1), "catalogue", "error", "belongs to uid 1"),
        (lambda etc: (etc / "qrmi_catalogue.lua").write_text(""), "catalogue", "warning", "out of date"),
        (lambda etc: (etc / "job_submit.lua").write_text("x"), "JobSubmitPlugins", "warning", "does not use ours"),
        (lambda etc: (etc / "job_submit.lua").unlink(), "JobSubmitPlugins", "error", "will not start again"),
    ],
)
def test_files_that_are_not_as_they_should_be(licensed, change, name, level, words):
    change(licensed.folder)
    lines = {line.name: line for line in licensed(**USED, Licenses="qpu_a:1,qpu_b:1")}
    assert lines[name].level.value == level
    assert words in f"{lines[name].message} {lines[name].hint}"


def test_a_notice_is_part_of_the_catalogue(licensed):
    lines = licensed({"a": "offline"}, **USED, Licenses="qpu_a:1,qpu_b:1")
    assert told(lines)["catalogue"] == "warning"


def test_a_compute_node_needs_neither_script_nor_catalogue(licensed):
    for name in ("job_submit.lua", "qrmi_catalogue.lua"):
        (licensed.folder / name).unlink()
    lines = licensed(**{**USED, "SlurmctldHost": "elsewhere"}, Licenses="qpu_a:1,qpu_b:1")
    assert told(lines) == {"JobSubmitPlugins": "ok", "Licenses": "ok"}
