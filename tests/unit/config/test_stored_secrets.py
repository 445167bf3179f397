"""Secrets that the config only locates: read each time, never shown, and only from places that only root can change."""

import os
import time
import traceback

import pytest
from doubles import COMPUTE_SERVICE, SECRET

from qrmi_slurm.config import slurm_section, stored_secrets
from qrmi_slurm.config.config_file import Resource
from qrmi_slurm.errors import CredentialsError

KEY = "QRMI_IBM_QCS_IAM_APIKEY"


def resource(**source):
    environment = {name: value for name, value in COMPUTE_SERVICE.items() if name != KEY}
    return Resource(
        "a", "ibm-quantum-compute-service", environment, slurm=slurm_section.parse("a", {"secrets": {KEY: source}})
    )


@pytest.fixture
def kept(tmp_path):
    """Return a function that keeps a text in a file, and returns its path."""

    def keep(content, mode=0o600):
        path = tmp_path / "key"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(mode)
        return str(path)

    return keep


@pytest.fixture
def program(tmp_path):
    """Return a function that makes a program of a shell script's body, and returns its path."""

    def make(body, mode=0o755):
        path = tmp_path / "ask"
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(mode)
        return str(path)

    return make


def refusal(item, **limits):
    with pytest.raises(CredentialsError) as caught:
        stored_secrets.fill(item, **limits)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert caught.value.message == f"the site's {KEY} cannot be read; please tell an admin"
    return caught.value.hint


@pytest.mark.parametrize("content", [SECRET, f"{SECRET}\n", f"{SECRET}\r\n"])
def test_a_file_of_one_line_is_the_value(kept, content):
    assert stored_secrets.fill(resource(file=kept(content))).environment == {**COMPUTE_SERVICE, KEY: SECRET}


def test_a_resource_without_stored_secrets_stays_as_it_is():
    item = Resource("a", "t", {"A": "1"}, slurm=slurm_section.parse("a", {"capacity": 2}))
    assert stored_secrets.fill(item) is item


def test_a_new_key_is_used_at_once(kept):
    item = resource(file=kept("old"))
    kept(SECRET)
    assert stored_secrets.fill(item).environment[KEY] == SECRET


def test_a_link_to_a_file_of_our_own_is_followed(kept, tmp_path):
    """Secret managers mount files that way; the owner of the file itself is checked."""
    (tmp_path / "link").symlink_to(kept(SECRET))
    assert stored_secrets.fill(resource(file=str(tmp_path / "link"))).environment[KEY] == SECRET


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620])
def test_a_file_that_others_can_read_or_change_is_refused(kept, mode):
    assert "others can read it" in refusal(resource(file=kept(SECRET, mode)))


def test_a_file_of_another_user_is_refused(kept):
    path = kept(SECRET)
    os.chown(path, 12345, -1)
    assert "owner uid 12345" in refusal(resource(file=path))


@pytest.mark.parametrize("content", ["", "\n", f"{SECRET}\nexport X=1\n", f"{SECRET}\x1b[2J", b"\xff", "x" * 65537])
def test_a_file_that_is_not_one_line_is_refused(kept, content):
    hint = refusal(resource(file=kept(content)))
    assert "it is not one line" in hint or "it is not UTF-8" in hint


def test_a_missing_file_a_folder_and_a_pipe_are_refused(kept, tmp_path):
    assert "No such file or directory" in refusal(resource(file=str(tmp_path / "none")))
    assert "Is a directory" in refusal(resource(file=str(tmp_path)))
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert "it is not a file" in refusal(resource(file=str(tmp_path / "pipe")))


def test_the_output_of_a_command_is_the_value(program):
    source = [program(f'echo "$1-{SECRET}"; echo noise >&2'), "a b; $(exit)"]
    assert stored_secrets.fill(resource(command=source)).environment[KEY] == f"a b; $(exit)-{SECRET}"


def test_a_command_gets_nothing_of_the_hooks_environment(program, monkeypatch):
    """So nothing that a job's user set reaches it."""
    monkeypatch.setenv("LD_AUDIT", "x")
    monkeypatch.setenv("SPANK_X", "x")
    item = resource(command=[program("cat /proc/self/environ | tr '\\0' ' '")])
    assert stored_secrets.fill(item).environment[KEY].split(" ")[0].startswith("PATH=/usr/sbin:")
    assert "SPANK_X" not in stored_secrets.fill(item).environment[KEY]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (f"echo {SECRET}; exit 3", "it ended with exit status 3"),
        (f"echo {SECRET}; exec sleep 30", "it did not answer in time"),
        ("exit 0", "it is not one line"),
        ("head -c 100000 /dev/zero", "it is not one line"),
    ],
)
def test_a_failed_command_is_reported_without_its_output(program, body, reason):
    assert reason in refusal(resource(command=[program(body)]), timeout_s=0.5)


def test_a_command_that_others_can_change_is_not_run(program, tmp_path):
    assert "others can change it" in refusal(resource(command=[program(f"touch {tmp_path}/ran", 0o777)]))
    assert not (tmp_path / "ran").exists()


# --- many resources -----------------------------------------------------------------------------------------------


def named(name, item):
    return item._replace(name=name)


def test_a_source_of_many_resources_is_read_once(program, tmp_path):
    asked = tmp_path / "asked"
    command = [program(f"echo x >>{asked}; echo {SECRET}")]
    found = stored_secrets.fill_all([named(name, resource(command=command)) for name in "abc"])
    assert {item.environment[KEY] for item in found.values()} == {SECRET}
    assert asked.read_text().split() == ["x"]


def test_commands_run_side_by_side_within_one_deadline(program):
    """One that hangs, or has closed its output and hangs, costs only its own resource."""
    body = 'case $1 in a) exec sleep 30 ;; b) exec >&-; exec sleep 30 ;; *) sleep 0.3; echo "$1" ;; esac'
    path = program(body)
    items = [named(name, resource(command=[path, name])) for name in "abcdefghijklmnop"]
    began_s = time.monotonic()
    found = stored_secrets.fill_all(items, 2.5)
    assert time.monotonic() - began_s < 5
    for name in "ab":
        assert found[name].hint.endswith("it did not answer in time")
    assert [found[name].environment[KEY] for name in "cdefghijklmnop"] == list("cdefghijklmnop")


def test_more_commands_than_may_run_at_a_time_wait_for_their_turn(program, tmp_path):
    at_work = tmp_path / "at-work"
    at_work.mkdir()
    path = program(f"mkdir {at_work}/$1; sleep 0.2; ls {at_work} | wc -l; rmdir {at_work}/$1")
    items = [named(f"q{number}", resource(command=[path, str(number)])) for number in range(40)]
    found = stored_secrets.fill_all(items)
    assert 1 < max(int(item.environment[KEY]) for item in found.values()) <= 16
