"""The lines for slurm.conf, plugstack.conf and systemd."""

import re
from pathlib import Path

import pytest

from qrmi_slurm.checks import setup_lines
from qrmi_slurm.checks.installation import Installation
from qrmi_slurm.errors import QrmiSlurmError
from qrmi_slurm.slurm.plugstack import SiteOptions

CHECKOUT = Path(__file__).resolve().parents[3]
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


@pytest.mark.parametrize("copy", ["/run/slurm/conf/slurm.conf", "/srv/spool/n1/conf-cache/slurm.conf"])
def test_a_configless_node_names_slurmctlds_files(copy):
    """slurmd overwrites its copies, so the lines go into the files that they are copies of; the rest is the node's."""
    found = setup_lines.parts(INSTALLED, OPTIONS, Path(copy), Path("/etc/slurm/own.sh"))
    licenses = setup_lines.license_part(INSTALLED, Path(copy), {"qpu_a": 1}, "")
    text = setup_lines.render([*found, licenses])
    assert str(Path(copy).parent) not in text
    assert "SLURM_CONF" not in text
    for heading in ("slurm.conf on slurmctld's node: add\n", "plugstack.conf on slurmctld's node: add\n"):
        assert f"### /etc/slurm/{heading}" in text
    assert "### /etc/slurm/task_prolog (mode 0755)\n" in text
    assert "### /etc/slurm/slurm.conf on slurmctld's node: add, to let jobs wait" in text
    assert "Slurm sends cli_filter.lua to the nodes from 23.11 on" in text


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
def test_existing_prolog_settings_are_kept(tmp_path, conf, lines):
    """A site's flags stay; with NoHold, where steps wait for Prolog in slurmd, srun has to wait as long."""
    (tmp_path / "slurm.conf").write_text(f"{conf}\n")
    found = parts(conf=tmp_path / "slurm.conf")[str(tmp_path / "slurm.conf")].text
    assert [line for line in found.splitlines() if "olog=" not in line and "Epilog" not in line] == lines


def license_lines(conf="", wanted=None, fault="", installed=INSTALLED, folder=None):
    path = folder / "slurm.conf"
    path.write_text(conf)
    return setup_lines.license_part(installed, path, wanted, fault)


def test_licenses_are_added_to_those_of_slurm_conf(tmp_path):
    """Other licenses keep their order; ours have the config's counts, and the site's plugins run first."""
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
    """A login node has no config, and a user may not read it."""
    lines = license_lines(fault="cannot read /x: Permission denied", folder=tmp_path).text.splitlines()
    plugins = ["JobSubmitPlugins=lua", "CliFilterPlugins=lua"]
    assert lines == ["# Licenses= needs the config: cannot read /x: Permission denied", *plugins]
    assert license_lines(wanted={}, folder=tmp_path).text.splitlines() == plugins


def test_the_note_tells_how_to_install_the_lua_files(tmp_path):
    """If they are not installed it says how to install them, otherwise where they are."""
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


def test_the_units_are_those_of_the_checkout():
    """Each unit is printed, with this installation's path instead of README's."""
    printed = {path.name: part.text for path, part in _units(parts(installed=Installation(Path("/srv/q")))).items()}
    tree = {path.name: path.read_text() for path in (CHECKOUT / "systemd").iterdir()}
    assert printed.keys() == tree.keys()
    assert {name: text.replace("/srv/q/", "/opt/qrmi-slurm/") for name, text in printed.items()} == tree
    assert "ExecStart=/srv/q/bin/qrmi-slurm qpus\n" in printed["qrmi-slurm-qpus.service"]


def _units(found):
    return {Path(path): part for path, part in found.items() if path.startswith("/etc/systemd/")}


def test_the_nodes_of_a_cluster_do_not_recover_at_once():
    """They boot together after a power cut: 1000 of them are spread over 20 s (docs/benchmarks.md, at scale)."""
    timer = parts()["/etc/systemd/system/qrmi-slurm-recover.timer"].text
    [seconds] = re.findall(r"^RandomizedDelaySec=(\d+)s?$", timer, re.MULTILINE)
    assert 1000 / int(seconds) <= 50
    assert "\nOnUnitInactiveSec=60s\n" in timer


def test_a_sites_state_directory_is_kept():
    """The options of the plugin's line are in what is printed."""
    line = parts(options=OPTIONS._replace(state_dir=Path("/shared/qrmi")))["/etc/slurm/plugstack.conf"].text
    assert line.endswith(" --state-dir=/shared/qrmi\n")


@pytest.mark.parametrize(
    ("state_dir", "conf", "writable"),
    [
        ("/var/spool/qrmi-slurm", "/etc/slurm/slurm.conf", {"sensor": ["-/etc/slurm"]}),
        ("/shared/qrmi", "/opt/slurm/etc/slurm.conf", {"sensor": ["-/etc/slurm"]}),
        (
            "/home/slurm/qrmi",
            "/usr/local/etc/slurm.conf",
            {
                "sensor": ["-/etc/slurm", "-/home/slurm/qrmi", "-/usr/local/etc"],
                "recover": ["-/home/slurm/qrmi"],
                "qpus": ["-/home/slurm/qrmi"],
            },
        ),
    ],
)
def test_the_units_may_write_where_they_have_to(state_dir, conf, writable):
    """The state directory; for the sensor also the catalogue's folder. Outside of protected folders they may anyway."""
    found = parts(options=OPTIONS._replace(state_dir=Path(state_dir)), conf=Path(conf))
    for name in ("recover", "sensor", "qpus"):
        lines = found[f"/etc/systemd/system/qrmi-slurm-{name}.service"].text.splitlines()
        assert "ProtectSystem=full" in lines
        given = [line.removeprefix("ReadWritePaths=") for line in lines if line.startswith("ReadWritePaths=")]
        assert sorted(given) == writable.get(name, [])


@pytest.mark.parametrize("existing", ["/etc/slurm/task_prolog", "/etc/slurm/own.sh"])
def test_the_wrapper_for_two_task_prologs_never_runs_itself(existing):
    """Its path differs from that of the site's own TaskProlog."""
    found = parts(Path(existing))
    (script,) = [part for part in found.values() if part.mode == 0o755]
    assert str(script.path) != existing
    assert f"\n{existing} || exit\n" in script.text
    assert script.text.endswith("exec /opt/qrmi-slurm/bin/qrmi-slurm-task-prolog\n")
    assert f"TaskProlog={script.path}\n" in found["/etc/slurm/slurm.conf"].text


@pytest.mark.parametrize("path", ["/opt/two words", "/opt/a#b", "/opt/$x", "/opt/a\nb"])
def test_paths_that_slurms_files_cannot_hold(path):
    """A blank or a comment sign would end the path there, so nothing is printed."""
    with pytest.raises(QrmiSlurmError, match="cannot be used in"):
        parts(installed=Installation(Path(path)))
    with pytest.raises(QrmiSlurmError, match="cannot be used in"):
        parts(Path(path))


def test_the_licenses_of_slots_are_kept_and_asked_for(tmp_path):
    """How many there are is the site's to say; those of slurmdbd are not in slurm.conf."""
    slots = {"a": "lanes", "b": "lanes", "c": "there@slurmdbd", "d": "matlab"}
    (tmp_path / "slurm.conf").write_text("Licenses=matlab:4\n")
    part = setup_lines.license_part(INSTALLED, tmp_path / "slurm.conf", {"qpu_a": 1}, "", slots.values())
    assert part.text.splitlines()[-1] == "# for slots, add to Licenses=: lanes:NUMBER"
    parts = setup_lines.parts(INSTALLED, OPTIONS._replace(slots_licenses=slots), tmp_path / "slurm.conf")
    [line] = [one.text for one in parts if one.path.name == "plugstack.conf"]
    assert line.endswith(
        " --qpu-slots-license:a=lanes --qpu-slots-license:b=lanes --qpu-slots-license:c=there@slurmdbd "
        "--qpu-slots-license:d=matlab\n"
    )
