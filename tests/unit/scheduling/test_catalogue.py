"""The catalogue: what is in it, what is not, and how it is written."""

import grp
import hashlib
import os
import pwd
import stat
import subprocess
import time

import pytest
from lua import INTERPRETERS, literal

from qrmi_slurm.config import slurm_section
from qrmi_slurm.config.config_file import Resource
from qrmi_slurm.errors import CatalogueError
from qrmi_slurm.scheduling import catalogue
from qrmi_slurm.scheduling.catalogue import Group

SECRET = "s3cr3t-value"


def resource(name, type_name="ibm-quantum-system", **slurm):
    return Resource(name, type_name, {"QRMI_IBM_QS_IAM_APIKEY": SECRET}, False, slurm_section.parse(name, slurm))


WHOLE = r"""
return {
version = 2,
count = 5,
known = "; known QPUs: ibm_x, y, z, a, b",
types = {
["newtype"] = {1},
["ibmquantumsystem"] = {2, 3},
["directaccess"] = {2, 3},
["ibmibmquantumsystem"] = {2, 3},
["ibmdirectaccess"] = {2, 3},
},
groups = {
["g"] = { gid = 5, members = "\
al\
bo\
" },
["h"] = {  },
},
rules = {
{ users = { names = "\
bob\
", whom = "user bob or groups g, h", groups = {"g", "h"} }, accounts = { names = "\
physics\
", whom = "account physics" }, qos = { names = "\
", whom = "" } },
},
shared = {
["l"] = { capacity = 1, names = "a, b", rules = {0} },
},
shelves = {
{ type = 1, capacity = 1, names = "\
y	1\
" },
{ type = 2, capacity = 1, names = "\
z	2\
a	3\
b	4\
", licenses = "\
qpu_z\
l\
l\
" },
{ type = 3, capacity = 2, rule = 1, notice = "drained: \034m\034", names = "\
ibm_x	5\
", licenses = "\
qpu_ibm_x\
" },
},
}
"""


def test_it_has_what_the_config_says_but_no_secret():
    """QPUs that are alike stand together: first those without a license, last those out of service."""
    rules = {"users": ["bob"], "groups": ["g", "h"], "accounts": ["Physics"], "qos": []}
    text = catalogue.render(
        [
            resource("ibm_x", "direct-access", capacity=2, allow=rules),
            resource("y", "new-type", license=None),
            resource("z"),
            resource("a", license="l"),
            resource("b", license="l"),
        ],
        {"ibm_x": 'drained: "m"'},
        {"g": Group(5, ("al", "bo")), "h": Group(None, None)}.__getitem__,
    )
    head, _, body = text.partition("\n")
    assert body == WHOLE.lstrip("\n")
    checksum = hashlib.sha256(body.encode()).hexdigest()
    assert head == f"-- qrmi-slurm catalogue; made by `qrmi-slurm catalogue`, do not edit; sha256 {checksum}"
    assert SECRET not in text


@pytest.mark.parametrize("interpreter", INTERPRETERS)
def test_lua_reads_each_text_unchanged(interpreter, tmp_path):
    """Including quotes, backslashes, digits after an escape and letters of all languages."""
    texts = ['a"b', "c\\d", "e'n", "größe", "]]", "--[[", "f 1", "%d", "'", "\\", "a\\", "\\n", '"']
    path = tmp_path / "c.lua"
    catalogue.write(path, [resource(text) for text in texts], {text: text + "\x7f1\n" for text in texts})
    script = f"""
    local found = 0
    for _, shelf in ipairs(dofile({literal(str(path))}).shelves) do
        local name = shelf.names:match("^\\n([^\\t]+)\\t%d+\\n$")
        assert(shelf.notice == name .. "\\1271\\n")
        for _, text in ipairs({literal(texts)}) do
            found = found + (text == name and 1 or 0)
        end
    end
    print(found)"""
    done = subprocess.run([interpreter, "-"], input=script, capture_output=True, text=True, timeout=20)
    assert (done.stdout, done.stderr) == (f"{len(texts)}\n", "")


def test_five_thousand_qpus_with_a_rule_each_are_written_quickly():
    """qrmi-slurm sensor compares the file with the config each minute."""
    resources = [resource(f"q{number}", allow={"users": [f"u{number}"]}) for number in range(5000)]
    began_s = time.process_time()
    assert catalogue.render(resources, {}).count("whom") == 5000
    assert time.process_time() - began_s < 2


def test_a_shared_license_has_the_lowest_capacity():
    resources = [resource("a", license="l", capacity=3), resource("b"), resource("c", license="l", capacity=2)]
    assert catalogue.licenses([*resources, resource("d", license=None)]) == {"l": 2, "qpu_b": 1}


def test_users_are_members_of_their_primary_group():
    entry = pwd.getpwnam("nobody")
    group = catalogue.group_of(grp.getgrgid(entry.pw_gid).gr_name)
    assert group.gid == entry.pw_gid
    assert "nobody" in group.members
    assert catalogue.group_of("no-such-group-here") == Group(None, None)


def test_the_members_of_an_empty_group_are_unknown(monkeypatch):
    monkeypatch.setattr(grp, "getgrnam", lambda name: grp.struct_group((name, "x", 7, [])))
    monkeypatch.setattr(pwd, "getpwall", list)
    assert catalogue.group_of("hidden") == Group(7, None)


def test_it_is_replaced_whole_and_readable_by_all(tmp_path):
    path = tmp_path / "qrmi_catalogue.lua"
    old_umask = os.umask(0o077)
    try:
        catalogue.write(path, [resource("a")], {})
    finally:
        os.umask(old_umask)
    inode = path.stat().st_ino
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    catalogue.write(path, [resource("b")], {})
    assert path.stat().st_ino != inode
    assert list(tmp_path.iterdir()) == [path]


def test_it_is_current_while_it_agrees_with_the_config(tmp_path):
    path = tmp_path / "qrmi_catalogue.lua"
    assert not catalogue.is_current(path, [resource("a")], {})
    catalogue.write(path, [resource("a")], {})
    assert catalogue.is_current(path, [resource("a")], {})
    assert not catalogue.is_current(path, [resource("a")], {"a": "offline"})
    assert not catalogue.is_current(path, [resource("a", capacity=2)], {})


def test_a_path_that_cannot_be_written_or_read_is_named(tmp_path):
    with pytest.raises(CatalogueError, match=r"cannot write .*/nowhere/c\.lua: No such file"):
        catalogue.write(tmp_path / "nowhere" / "c.lua", [], {})
    with pytest.raises(CatalogueError, match=r"cannot read .*: Is a directory"):
        catalogue.is_current(tmp_path, [], {})


def test_the_command_writes_it_and_checks_it(slurm, run, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    (tmp_path / "slurm.conf").touch()
    config = tmp_path / "qrmi_config.json"
    config.write_text('{"resources": [{"name": "a", "type": "iqm-server", "environment": {}}]}')
    path = tmp_path / "qrmi_catalogue.lua"
    assert run("catalogue", "--check") == (1, f"{path}: missing or out of date; run: qrmi-slurm catalogue\n", "")
    assert not path.exists()
    assert run("catalogue") == (0, f"{path}: 1 QPU\n", "")
    assert run("catalogue", "--check") == (0, f"{path}: up to date\n", "")
    config.write_text('{"resources": []}')
    assert run("catalogue", "--check")[0] == 1
    other = tmp_path / "other.lua"
    assert run("catalogue", "--output", other) == (0, f"{other}: 0 QPUs\n", "")
    config.write_text("{")
    status, out, err = run("catalogue")
    assert (status, out) == (2, "")
    assert "not valid JSON" in err
